//! Sender keys: each device encrypts its messages to a group once, with a key that it has sent to
//! every member's devices over the [sessions](super::pair) with them.
//!
//! ```text
//! distribution  1 | group | roster version 8 | roster hash 32 | Megolm session key
//! message       0x13 | tag 8 | Megolm message
//! ```
//!
//! Megolm by itself accepts replays, keeps its oldest key, and knows no members. Here a key is good
//! for one roster, so many messages and so long; every index opens once, and keys that fall behind
//! the window are forgotten. The tag is the start of a hash of the key's id.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_protocol::id::UserId;
use serde::{Deserialize, Serialize};
use vodozemac::megolm::{
    DecryptionError, GroupSession, GroupSessionPickle, InboundGroupSession,
    InboundGroupSessionPickle, MegolmMessage, SessionConfig, SessionKey,
};

use super::device_list::MemberDevice;
use super::fault::Fault;
use super::identity::hash;
use super::roster::Roster;
use super::wire::{Reader, hex, put_address, put_user};
use crate::limits::{
    GROUP_KEY_MESSAGES_MAX, GROUP_KEY_MS_MAX, GROUP_KEYS_PER_SENDER_MAX, GROUP_WINDOW,
    PLAINTEXT_BYTES_MAX,
};

/// This device's key for one group.
#[derive(Serialize, Deserialize)]
pub struct GroupSender {
    #[serde(with = "outbound")]
    session: GroupSession,
    roster_version: u64,
    roster_hash: [u8; 32],
    made_ms: u64,
    /// Devices that have the key, by the hash of address and identities.
    holders: BTreeSet<[u8; 32]>,
}

/// What to do before the next message to the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Make a new [`GroupSender`]: the roster changed, a device that has the key is gone, or the
    /// key is used up.
    Rotate,
    /// Send [`GroupSender::distribution`] to these, call [`GroupSender::distributed`], persist;
    /// none: nothing is to do.
    Distribute(Vec<MemberDevice>),
}

/// The keys of the other devices in one group.
#[derive(Default, Serialize, Deserialize)]
pub struct GroupReceiver {
    /// By the hash of address and identities of the sender; oldest first.
    keys: BTreeMap<String, Vec<SenderKey>>,
}

/// A message to the group, opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    pub plaintext: Vec<u8>,
    /// Whom the sender wrote it for. Below the present version: the sender did not know the last
    /// change, and who was removed by it may have read this.
    pub roster_version: u64,
}

#[derive(Serialize, Deserialize)]
struct SenderKey {
    tag: [u8; TAG_BYTES],
    roster_version: u64,
    #[serde(with = "inbound")]
    session: InboundGroupSession,
    /// One above the highest index opened.
    next: u32,
    /// Bit n: index `next - 1 - n` was opened.
    seen: u64,
}

impl GroupSender {
    pub fn new(roster: &Roster, now_ms: u64) -> Self {
        Self {
            session: GroupSession::new(SessionConfig::version_1()),
            roster_version: roster.members().version,
            roster_hash: *roster.hash(),
            made_ms: now_ms,
            holders: BTreeSet::new(),
        }
    }

    /// `devices`: all devices of all members but this one, from their signed lists. One of somebody
    /// who is not in the roster is [`Fault::NotMember`]; one from a list that another identity than
    /// the roster's has signed is [`Fault::IdentityChanged`].
    pub fn plan(
        &self,
        roster: &Roster,
        devices: &BTreeSet<MemberDevice>,
        now_ms: u64,
    ) -> Result<Plan, Fault> {
        devices.iter().try_for_each(|device| roster.admits(device))?;
        let now: BTreeSet<_> = devices.iter().map(fingerprint).collect();
        if self.is_expired(roster, now_ms) || !self.holders.is_subset(&now) {
            return Ok(Plan::Rotate);
        }
        let new = devices.iter().filter(|device| !self.holders.contains(&fingerprint(device)));
        Ok(Plan::Distribute(new.cloned().collect()))
    }

    /// The key from the next message on: those before stay closed to who gets it now.
    pub fn distribution(&self, group: &UserId) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_user(&mut out, group);
        out.extend(self.roster_version.to_be_bytes());
        out.extend(self.roster_hash);
        out.extend(self.session.session_key().to_bytes());
        out
    }

    /// These were sent the key.
    pub fn distributed(&mut self, devices: &[MemberDevice]) {
        self.holders.extend(devices.iter().map(fingerprint));
    }

    /// One message for all devices that have the key. Persist before sending.
    pub fn encrypt(
        &mut self,
        roster: &Roster,
        plaintext: &[u8],
        now_ms: u64,
    ) -> Result<Vec<u8>, Fault> {
        if plaintext.len() > PLAINTEXT_BYTES_MAX {
            let (bytes, bytes_max) = (plaintext.len(), PLAINTEXT_BYTES_MAX);
            return Err(Fault::TooLong { bytes, bytes_max });
        }
        if self.is_expired(roster, now_ms) {
            return Err(Fault::SenderKeyExpired);
        }
        let mut out = vec![GROUP];
        out.extend(tag(&self.session.session_id()));
        out.extend(self.session.encrypt(plaintext).to_bytes());
        Ok(out)
    }

    fn is_expired(&self, roster: &Roster, now_ms: u64) -> bool {
        self.roster_hash != *roster.hash()
            || self.session.message_index() >= GROUP_KEY_MESSAGES_MAX
            || now_ms.saturating_sub(self.made_ms) >= GROUP_KEY_MS_MAX
    }
}

impl GroupReceiver {
    /// A key that came over the session with `sender`. [`Fault::RosterBehind`] asks for the newer
    /// roster, and for this again afterwards.
    pub fn accept(
        &mut self,
        sender: &MemberDevice,
        roster: &Roster,
        distribution: &[u8],
    ) -> Result<(), Fault> {
        let mut reader = Reader::new(DISTRIBUTION, distribution);
        reader.version(VERSION)?;
        let (group, theirs) = (reader.user()?, reader.u64()?);
        let roster_hash: [u8; 32] = reader.array()?;
        let key = SessionKey::from_bytes(reader.slice(SESSION_KEY_BYTES)?);
        let key = key.map_err(|_| reader.fault())?;
        reader.finish()?;
        let ours = roster.members().version;
        if group != roster.members().group {
            return Err(Fault::NotMember);
        }
        // Before all else: who is not a member yet may be one of that roster.
        if theirs > ours {
            return Err(Fault::RosterBehind { theirs, ours });
        }
        roster.admits(sender)?;
        if roster.hash_of(theirs) != Some(&roster_hash) {
            return Err(Fault::RosterDiffers { theirs, ours });
        }
        let session = InboundGroupSession::new(&key, SessionConfig::version_1());
        let (tag, next) = (tag(&session.session_id()), session.first_known_index());
        let keys = self.keys.entry(hex(&fingerprint(sender))).or_default();
        // Taking a known key again would forget which of its messages were opened.
        if keys.iter().all(|known| known.tag != tag) {
            keys.push(SenderKey { tag, roster_version: theirs, session, next, seen: 0 });
        }
        if keys.len() > GROUP_KEYS_PER_SENDER_MAX {
            keys.remove(0);
        }
        Ok(())
    }

    /// Opens a message that the server says is from `sender`. Leaves everything as it was when it
    /// fails.
    pub fn decrypt(
        &mut self,
        sender: &MemberDevice,
        roster: &Roster,
        envelope: &[u8],
    ) -> Result<Opened, Fault> {
        let mut reader = Reader::new(MESSAGE, envelope);
        reader.version(GROUP)?;
        let tag: [u8; TAG_BYTES] = reader.array()?;
        let bytes = reader.rest();
        let message = MegolmMessage::from_bytes(bytes).map_err(|_| Fault::Malformed(MESSAGE))?;
        if message.to_bytes() != bytes {
            return Err(Fault::Malformed(MESSAGE));
        }
        roster.admits(sender)?;
        let keys = self.keys.get_mut(&hex(&fingerprint(sender)));
        let keys = keys.into_iter().flatten();
        let key = keys.into_iter().find(|key| key.tag == tag).ok_or(Fault::NoSenderKey)?;
        let plaintext = key.decrypt(&message)?;
        Ok(Opened { plaintext, roster_version: key.roster_version })
    }

    /// Forgets the keys of devices that are no longer in the group.
    pub fn retain(&mut self, devices: &BTreeSet<MemberDevice>) {
        let now: BTreeSet<_> = devices.iter().map(|device| hex(&fingerprint(device))).collect();
        self.keys.retain(|sender, _| now.contains(sender));
    }
}

impl SenderKey {
    fn decrypt(&mut self, message: &MegolmMessage) -> Result<Vec<u8>, Fault> {
        let index = message.message_index();
        if index >= GROUP_KEY_MESSAGES_MAX {
            return Err(Fault::SenderKeyExpired);
        }
        if index < self.next {
            let back = self.next - 1 - index;
            if back >= GROUP_WINDOW {
                return Err(Fault::MessageKeyGone);
            }
            if self.seen >> back & 1 == 1 {
                return Err(Fault::ReplayedGroupMessage);
            }
        }
        let opened = self.session.decrypt(message).map_err(|fault| match fault {
            DecryptionError::UnknownMessageIndex(..) => Fault::MessageKeyGone,
            _ => Fault::Altered,
        })?;
        if index >= self.next {
            let forward = index - self.next + 1;
            self.seen = self.seen.checked_shl(forward).unwrap_or(0);
            self.next = index + 1;
        }
        self.seen |= 1 << (self.next - 1 - index);
        let oldest = self.next.saturating_sub(GROUP_WINDOW);
        if oldest > self.session.first_known_index() {
            self.session.advance_to(oldest);
        }
        Ok(opened.plaintext)
    }
}

fn fingerprint(device: &MemberDevice) -> [u8; 32] {
    let (party, user_identity) = (device.party(), device.user_identity());
    let mut address = Vec::new();
    put_address(&mut address, &party.address);
    hash("Ringpost member 1", &[&address, party.identity.as_bytes(), user_identity.as_bytes()])
}

fn tag(session_id: &str) -> [u8; TAG_BYTES] {
    let hash = hash("Ringpost group key 1", &[session_id.as_bytes()]);
    hash[..TAG_BYTES].try_into().expect("8 of 32")
}

mod outbound {
    use super::{Deserialize as _, GroupSession, GroupSessionPickle, Serialize as _};

    pub(super) fn serialize<S: serde::Serializer>(
        session: &GroupSession,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        session.pickle().serialize(s)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        d: D,
    ) -> Result<GroupSession, D::Error> {
        Ok(GroupSession::from_pickle(GroupSessionPickle::deserialize(d)?))
    }
}

mod inbound {
    use super::{Deserialize as _, InboundGroupSession, InboundGroupSessionPickle, Serialize as _};

    pub(super) fn serialize<S: serde::Serializer>(
        session: &InboundGroupSession,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        session.pickle().serialize(s)
    }

    pub(super) fn deserialize<'de, D: serde::Deserializer<'de>>(
        d: D,
    ) -> Result<InboundGroupSession, D::Error> {
        Ok(InboundGroupSession::from_pickle(InboundGroupSessionPickle::deserialize(d)?))
    }
}

const MESSAGE: &str = "group message";
const DISTRIBUTION: &str = "key of the group";
const VERSION: u8 = 1;
const GROUP: u8 = 0x13;
const TAG_BYTES: usize = 8;
/// Version, index, ratchet, public key and signature.
const SESSION_KEY_BYTES: usize = 1 + 4 + 128 + 32 + 64;
const _: () = assert!(GROUP_WINDOW == u64::BITS);
