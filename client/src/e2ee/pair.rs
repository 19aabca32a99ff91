//! All sessions with one other device: which one to send on, and which one a message belongs to.
//!
//! There is one at most times. There are two when both sides began at once, or when one side began
//! anew because it lost its state or had no answer. The one that was begun or accepted last is sent
//! on; after a simultaneous start both sides settle on the one with the lower id. The others stay
//! for messages that are still under way.
//!
//! ```text
//! sender    needs_bundle -> begin(bundle) -> encrypt -> persist -> send
//! receiver  decrypt -> persist the pair, the prekeys and the plaintext together -> acknowledge
//! ```
//!
//! Going back to an older state reuses keys: never restore one.

use rand::CryptoRng;
use ringpost_protocol::id::DeviceAddress;
use serde::{Deserialize, Serialize};
use vodozemac::olm;

use super::bundle::Bundle;
use super::fault::Fault;
use super::identity::{IdentityKey, PublicIdentity, hash};
use super::prekey::PreKeys;
use super::session::{Envelope, Session, TAG_BYTES, session_id};
use super::wire::put_address;
use super::x3dh::FirstHeader;
use crate::limits::{SESSION_IDLE_MS_MAX, SESSIONS_PER_PAIR_MAX};

/// A device and its identity, which a signed device list ties to the user.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Party {
    pub address: DeviceAddress,
    pub identity: PublicIdentity,
}

/// The secrets of this device.
#[derive(Debug, Serialize, Deserialize)]
pub struct OwnKeys {
    pub identity: IdentityKey,
    pub prekeys: PreKeys,
}

/// The sessions between this device and one other. Bound to both identities: when the other device
/// gets a new one, drop this and make another with [`Self::new`].
pub struct Pair {
    own: Party,
    peer: Party,
    state: PairState,
}

/// What of a [`Pair`] is kept on disk, sealed.
#[derive(Serialize, Deserialize)]
pub struct PairState {
    /// Hash of both devices. Sessions of one must never encrypt for another.
    parties: [u8; 32],
    /// The first one is sent on.
    sessions: Vec<Session>,
}

impl Pair {
    /// Without a session yet.
    pub fn new(own: Party, peer: Party) -> Self {
        let state = PairState { parties: parties(&own, &peer), sessions: Vec::new() };
        Self { own, peer, state }
    }

    /// From disk. [`Fault::SealBroken`] when the state is that of two other devices.
    pub fn restore(own: Party, peer: Party, state: PairState) -> Result<Self, Fault> {
        match state.parties == parties(&own, &peer) {
            true => Ok(Self { own, peer, state }),
            false => Err(Fault::SealBroken),
        }
    }

    pub fn peer(&self) -> &Party {
        &self.peer
    }

    /// To be persisted after each [`Self::begin`], [`Self::encrypt`] and [`Self::decrypt`], before
    /// anything that came of it leaves the device.
    pub fn state(&self) -> &PairState {
        &self.state
    }

    /// Fetch a bundle and [`Self::begin`] before the next [`Self::encrypt`].
    pub fn needs_bundle(&self, now_ms: u64) -> bool {
        self.state.sessions.first().is_none_or(|session| session.is_stale(now_ms))
    }

    /// Begins a session with keys from the directory. [`Fault::IdentityChanged`] when they are those
    /// of another identity than the device list names.
    pub fn begin(
        &mut self,
        own: &IdentityKey,
        bundle: &Bundle,
        now_ms: u64,
        rng: &mut impl CryptoRng,
    ) -> Result<(), Fault> {
        if bundle.identity() != self.peer.identity {
            return Err(Fault::IdentityChanged);
        }
        let context = context(&self.own, &self.peer);
        let session = Session::begin(own, bundle, &context, now_ms, rng)?;
        self.adopt(session, now_ms);
        Ok(())
    }

    /// Encrypts for the other device. [`Fault::NoSession`] and [`Fault::SessionStale`] ask for
    /// [`Self::begin`].
    pub fn encrypt(&mut self, plaintext: &[u8]) -> Result<Vec<u8>, Fault> {
        self.state.sessions.first_mut().ok_or(Fault::NoSession)?.encrypt(plaintext)
    }

    /// Opens a message of the other device. After [`Fault::NoSession`] the other side uses a session
    /// that is lost here: [`Self::begin`] a new one and write on it, so that it learns.
    pub fn decrypt(
        &mut self,
        own: &mut OwnKeys,
        envelope: &[u8],
        now_ms: u64,
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, Fault> {
        match Envelope::decode(envelope)? {
            Envelope::First { header, message } => {
                self.decrypt_first(own, &header, &message, now_ms, rng)
            }
            Envelope::Normal { tag, message } => self.decrypt_normal(tag, &message, now_ms),
        }
    }

    fn decrypt_first(
        &mut self,
        own: &mut OwnKeys,
        header: &FirstHeader,
        message: &olm::Message,
        now_ms: u64,
        rng: &mut impl CryptoRng,
    ) -> Result<Vec<u8>, Fault> {
        if header.identity != self.peer.identity {
            return Err(Fault::IdentityChanged);
        }
        let id = session_id(header, &self.own.identity);
        if let Some(at) = self.state.sessions.iter().position(|session| session.id == id) {
            return self.decrypt_at(at, message, now_ms);
        }
        let (signed, one_time) = own.prekeys.secrets(header, now_ms)?;
        let (mut session, plaintext) = Session::accept(
            &own.identity,
            header,
            message,
            (&signed, one_time.as_ref()),
            &context(&self.peer, &self.own),
            now_ms,
            rng,
        )?;
        own.prekeys.spend(header);
        if let Some(current) = self.state.sessions.first_mut().filter(|c| !c.is_confirmed()) {
            session.rival = Some(current.id);
            current.rival = Some(id);
        }
        self.adopt(session, now_ms);
        Ok(plaintext)
    }

    fn decrypt_normal(
        &mut self,
        tag: [u8; TAG_BYTES],
        message: &olm::Message,
        now_ms: u64,
    ) -> Result<Vec<u8>, Fault> {
        let mut sessions = self.state.sessions.iter();
        let at = sessions.position(|session| session.tag() == tag).ok_or(Fault::NoSession)?;
        self.decrypt_at(at, message, now_ms)
    }

    fn decrypt_at(
        &mut self,
        at: usize,
        message: &olm::Message,
        now_ms: u64,
    ) -> Result<Vec<u8>, Fault> {
        let plaintext = self.state.sessions[at].decrypt(message, now_ms)?;
        self.settle(at);
        Ok(plaintext)
    }

    /// Of two sessions begun at once, and that both sides have, the lower id is sent on.
    fn settle(&mut self, at: usize) {
        let Some(rival_id) = self.state.sessions[at].rival else { return };
        let sessions = &mut self.state.sessions;
        let Some(rival_at) = sessions.iter().position(|session| session.id == rival_id) else {
            return;
        };
        // Unless a third one was begun meanwhile.
        if (at != 0 && rival_at != 0) || !sessions[rival_at].is_confirmed() {
            return;
        }
        let chosen = if sessions[at].id < rival_id { at } else { rival_at };
        let chosen = sessions.remove(chosen);
        sessions.insert(0, chosen);
    }

    /// The newest is sent on; those that were idle for long, or are too many, go.
    fn adopt(&mut self, session: Session, now_ms: u64) {
        let sessions = &mut self.state.sessions;
        sessions.retain(|old| now_ms.saturating_sub(old.used_ms) < SESSION_IDLE_MS_MAX);
        sessions.insert(0, session);
        sessions.truncate(SESSIONS_PER_PAIR_MAX);
    }
}

fn parties(own: &Party, peer: &Party) -> [u8; 32] {
    let mut addresses = Vec::new();
    put_address(&mut addresses, &own.address);
    put_address(&mut addresses, &peer.address);
    let identities = [own.identity.as_bytes().as_slice(), peer.identity.as_bytes()];
    hash("Ringpost parties 1", &[&addresses, identities[0], identities[1]])
}

/// What the root of a session is bound to besides the identities.
fn context(initiator: &Party, responder: &Party) -> Vec<u8> {
    let mut out = b"Ringpost pair 1\0".to_vec();
    put_address(&mut out, &initiator.address);
    put_address(&mut out, &responder.address);
    out
}
