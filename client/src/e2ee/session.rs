//! One Double Ratchet with one other device, and the messages it makes.
//!
//! ```text
//! first   0x11 | identity 32 | ephemeral 32 | signed id 4 | one-time id 4 or 0 | Olm message
//! normal  0x12 | tag 8 | Olm message
//! ```
//!
//! The tag is the start of the session's id and picks the session at the receiver; it is no secret
//! and, like the header of a first message, not trusted: with a wrong one the message does not open.
//! The initiator sends first messages until it has had an answer.

use rand::CryptoRng;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use vodozemac::olm;

use super::bundle::Bundle;
use super::fault::Fault;
use super::identity::{IdentityKey, PublicIdentity, Secret, hash};
use super::wire::Reader;
use super::x3dh::{self, FirstHeader};
use crate::limits::{
    PLAINTEXT_BYTES_MAX, SESSION_UNANSWERED_MESSAGES_MAX, SESSION_UNCONFIRMED_MS_MAX,
};

/// Length of the part of a session's id that is sent.
pub(super) const TAG_BYTES: usize = 8;

pub(super) type SessionId = [u8; 32];

/// A message between two devices, taken apart; nothing in it has been checked.
pub(super) enum Envelope {
    First { header: FirstHeader, message: olm::Message },
    Normal { tag: [u8; TAG_BYTES], message: olm::Message },
}

#[derive(Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) id: SessionId,
    /// What first messages begin with, until the first answer; `None` at the responder.
    opening: Option<FirstHeader>,
    /// The session that the other side began while we began this one, or the other way round.
    pub(super) rival: Option<SessionId>,
    #[serde(with = "pickle")]
    ratchet: olm::Session,
    /// Messages sent since the last one was received.
    unanswered_count: u32,
    begun_ms: u64,
    /// When it last opened a message, or began.
    pub(super) used_ms: u64,
}

impl Envelope {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader::new(MESSAGE, bytes);
        match reader.u8()? {
            FIRST => {
                let header = FirstHeader::decode(&mut reader)?;
                Ok(Self::First { header, message: olm_message(reader.rest())? })
            }
            NORMAL => {
                let tag = reader.array()?;
                Ok(Self::Normal { tag, message: olm_message(reader.rest())? })
            }
            _ => Err(reader.fault()),
        }
    }
}

/// Whether it may begin a session, which spends keys of the receiver.
pub(crate) fn is_first(envelope: &[u8]) -> bool {
    envelope.first() == Some(&FIRST)
}

impl Session {
    /// Begins as the initiator; it can encrypt at once.
    pub(super) fn begin(
        own: &IdentityKey,
        bundle: &Bundle,
        context: &[u8],
        now_ms: u64,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, Fault> {
        let (header, root) = x3dh::initiate(own, bundle, context, rng)?;
        let ratchet = root.initiator_ratchet(bundle, rng)?;
        let id = session_id(&header, &bundle.identity());
        Ok(Self::new(id, Some(header), ratchet, now_ms))
    }

    /// Accepts as the responder: a session exists only together with its first plaintext. Whoever
    /// gets one deletes the one-time secret.
    pub(super) fn accept(
        own: &IdentityKey,
        header: &FirstHeader,
        message: &olm::Message,
        secrets: (&Secret, Option<&Secret>),
        context: &[u8],
        now_ms: u64,
        rng: &mut impl CryptoRng,
    ) -> Result<(Self, Vec<u8>), Fault> {
        let (signed, one_time) = secrets;
        let root = x3dh::respond(own, header, signed, one_time, context)?;
        let ratchet = root.responder_ratchet(signed, rng);
        let mut session = Self::new(session_id(header, &own.public()), None, ratchet, now_ms);
        let plaintext = session.decrypt(message, now_ms)?;
        Ok((session, plaintext))
    }

    fn new(
        id: SessionId,
        opening: Option<FirstHeader>,
        ratchet: olm::Session,
        now_ms: u64,
    ) -> Self {
        let (rival, unanswered_count) = (None, 0);
        Self { id, opening, rival, ratchet, unanswered_count, begun_ms: now_ms, used_ms: now_ms }
    }

    pub(super) fn encrypt(&mut self, plaintext: &[u8]) -> Result<Vec<u8>, Fault> {
        if plaintext.len() > PLAINTEXT_BYTES_MAX {
            let (bytes, bytes_max) = (plaintext.len(), PLAINTEXT_BYTES_MAX);
            return Err(Fault::TooLong { bytes, bytes_max });
        }
        if self.unanswered_count >= SESSION_UNANSWERED_MESSAGES_MAX {
            return Err(Fault::SessionStale);
        }
        let message = self.ratchet.encrypt(plaintext).map_err(|_| Fault::WeakKey(MESSAGE))?;
        self.unanswered_count += 1;
        let mut out = Vec::with_capacity(plaintext.len() + OVERHEAD_BYTES_MAX);
        match &self.opening {
            Some(header) => {
                out.push(FIRST);
                header.encode(&mut out);
            }
            None => {
                out.push(NORMAL);
                out.extend(&self.id[..TAG_BYTES]);
            }
        }
        out.extend(inner(&message).to_bytes());
        Ok(out)
    }

    /// Leaves the session as it was when it fails.
    pub(super) fn decrypt(
        &mut self,
        message: &olm::Message,
        now_ms: u64,
    ) -> Result<Vec<u8>, Fault> {
        let message = olm::OlmMessage::Normal(message.clone());
        // On a copy: vodozemac takes the next step of its own ratchet before it knows whether a
        // message with a new ratchet key is genuine.
        let mut ratchet = olm::Session::from_pickle(self.ratchet.pickle());
        let plaintext = ratchet.decrypt(&message).map_err(fault)?;
        self.ratchet = ratchet;
        self.opening = None;
        self.unanswered_count = 0;
        self.used_ms = now_ms;
        Ok(plaintext)
    }

    /// The other side has it for certain.
    pub(super) fn is_confirmed(&self) -> bool {
        self.opening.is_none()
    }

    /// It should not be sent on: it was begun long ago without an answer, or so much was sent that
    /// losing it all would be a gap the other side does not bridge.
    pub(super) fn is_stale(&self, now_ms: u64) -> bool {
        let is_old = now_ms.saturating_sub(self.begun_ms) >= SESSION_UNCONFIRMED_MS_MAX;
        self.unanswered_count >= SESSION_UNANSWERED_MESSAGES_MAX || (!self.is_confirmed() && is_old)
    }

    pub(super) fn tag(&self) -> &[u8] {
        &self.id[..TAG_BYTES]
    }
}

/// Both sides compute the same from the first header.
pub(super) fn session_id(header: &FirstHeader, responder: &PublicIdentity) -> SessionId {
    let mut encoded = Vec::with_capacity(x3dh::FIRST_HEADER_BYTES);
    header.encode(&mut encoded);
    hash("Ringpost session 1", &[&encoded, responder.as_bytes()])
}

fn olm_message(bytes: &[u8]) -> Result<olm::Message, Fault> {
    let message = olm::Message::from_bytes(bytes).map_err(|_| Fault::Malformed(MESSAGE))?;
    // Its decoder takes foreign fields and orders of fields, which the MAC does not cover.
    if message.to_bytes() == bytes { Ok(message) } else { Err(Fault::Malformed(MESSAGE)) }
}

fn inner(message: &olm::OlmMessage) -> &olm::Message {
    match message {
        olm::OlmMessage::Normal(message) => message,
        olm::OlmMessage::PreKey(message) => message.message(),
    }
}

fn fault(fault: olm::DecryptionError) -> Fault {
    use olm::DecryptionError as E;
    match fault {
        E::MissingMessageKey(_) => Fault::MessageKeyGone,
        E::TooBigMessageGap(count, _) => Fault::GapTooBig { count },
        E::NonContributoryKey => Fault::WeakKey(MESSAGE),
        E::InvalidMAC(_) | E::InvalidMACLength(..) | E::InvalidPadding(_) => Fault::Altered,
    }
}

/// vodozemac's own encryption of this state is deterministic; [`seal`](super::seal) is used instead.
mod pickle {
    use super::{Deserialize as _, Deserializer, Serialize as _, Serializer, olm};

    pub(super) fn serialize<S: Serializer>(
        session: &olm::Session,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        session.pickle().serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<olm::Session, D::Error> {
        Ok(olm::Session::from_pickle(olm::SessionPickle::deserialize(d)?))
    }
}

const MESSAGE: &str = "message";
const FIRST: u8 = 0x11;
const NORMAL: u8 = 0x12;
/// Header, ratchet key, index, lengths, block padding and MAC.
const OVERHEAD_BYTES_MAX: usize = 1 + x3dh::FIRST_HEADER_BYTES + 80;
