//! What a messenger keeps: one sealed record a row, all of them in memory as well.

use std::collections::{BTreeSet, VecDeque};

use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use serde::{Deserialize, Serialize};

use super::news::{Conversation, MessageId};
use crate::e2ee::clock::CausalClock;
use crate::e2ee::{
    GroupReceiver, GroupSender, IdentityKey, OwnKeys, PairState, PublicIdentity, Roster,
};

/// Names a record. In the database it is a keyed hash of this.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum Row {
    Own,
    Contact(UserId),
    Pair(DeviceAddress),
    Clock(Conversation),
    Group(UserId),
    Receiver(UserId, DeviceAddress),
    Waiting(u64),
    Held(u64),
    Tracked(u64),
    Posted(u64),
    Part(u64),
}

/// As it is written; the same encoding as [`Record`].
#[derive(Serialize)]
pub(super) enum RecordRef<'a> {
    Own(&'a Own),
    Contact(&'a UserId, &'a Acquaintance),
    Pair(&'a DeviceAddress, &'a PairState),
    Clock(&'a Conversation, &'a CausalClock),
    Group(&'a UserId, &'a Group),
    Receiver(&'a UserId, &'a DeviceAddress, &'a GroupReceiver),
    Waiting(u64, &'a Waiting),
    Held(u64, &'a Held),
    Tracked(u64, &'a Tracked),
    Posted(u64, &'a Posted),
    Part(u64, &'a Part),
}

#[derive(Deserialize)]
pub(super) enum Record {
    Own(Box<Own>),
    Contact(UserId, Acquaintance),
    Pair(DeviceAddress, PairState),
    Clock(Conversation, CausalClock),
    Group(UserId, Box<Group>),
    Receiver(UserId, DeviceAddress, GroupReceiver),
    Waiting(u64, Waiting),
    Held(u64, Held),
    Tracked(u64, Tracked),
    Posted(u64, Posted),
    Part(u64, Part),
}

/// Who we are.
#[derive(Serialize, Deserialize)]
pub(super) struct Own {
    pub(super) address: DeviceAddress,
    /// Of the user: signs device lists and rosters.
    pub(super) user: IdentityKey,
    /// Of this device.
    pub(super) keys: OwnKeys,
    pub(super) is_list_published: bool,
    /// Of the code that links this device, until it is linked or turns out to be the first.
    pub(super) link: Option<[u8; 32]>,
    /// What of the device list is to be changed at the server.
    #[serde(default)]
    pub(super) changes: VecDeque<ListChange>,
    /// Groups that we have left, oldest first.
    #[serde(default)]
    pub(super) left: VecDeque<UserId>,
}

/// A change of the own device list. It is made on whatever list the server has, so that two devices
/// may change it at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum ListChange {
    /// `secret`: of the code that the new device has shown.
    Link {
        device: DeviceId,
        identity: PublicIdentity,
        secret: [u8; 32],
    },
    Remove(DeviceId),
}

/// A user whose device list we have; ourselves among them.
#[derive(Serialize, Deserialize)]
pub(super) struct Acquaintance {
    /// Opened again by [`Contact::meet`](crate::e2ee::Contact::meet).
    #[serde(with = "hex")]
    pub(super) encoded: Vec<u8>,
    /// A list that another identity signed; the app has to say whether it is to be taken.
    pub(super) offered: Option<Vec<u8>>,
    /// The person has compared this identity with the own one.
    #[serde(default)]
    pub(super) is_verified: bool,
}

/// A group as this device knows it.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Group {
    /// `None` until the server has made it.
    pub(super) roster: Option<Roster>,
    pub(super) sender: Option<GroupSender>,
    /// What the server is still to be asked for.
    pub(super) steps: VecDeque<Step>,
    pub(super) is_member: bool,
    /// Who put us there; `None`: ourselves.
    #[serde(default)]
    pub(super) by: Option<UserId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    Create(Vec<UserId>),
    Add(Vec<UserId>),
    Remove(Vec<UserId>),
    Leave,
}

/// A message that is not encrypted yet.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub(super) to: Conversation,
    #[serde(with = "hex")]
    pub(super) payload: Vec<u8>,
    /// The app wants to hear what becomes of it.
    pub(super) message: Option<MessageId>,
    /// Own other devices get it as well.
    pub(super) is_synced: bool,
    /// Devices that it has been sent to already.
    #[serde(default)]
    pub(super) except: Vec<DeviceAddress>,
    /// So often it has been encrypted for devices or members that were not the present ones.
    #[serde(default)]
    pub(super) tries: u8,
}

/// A message in the outbox, as it was before it was encrypted.
#[derive(Serialize, Deserialize)]
pub(super) struct Posted {
    pub(super) waiting: Waiting,
    /// Whom it was encrypted for; none: for a group.
    pub(super) devices: Vec<DeviceAddress>,
    /// Of a group.
    pub(super) roster_version: u64,
    /// Users of whom other devices are to get it: it waits for those anew.
    pub(super) repeated_for: BTreeSet<UserId>,
    /// Its Sends that are not answered.
    #[serde(skip)]
    pub(super) parts: usize,
}

/// One Send of it, by the outbox entry.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) posted: u64,
    pub(super) device_list_version: u64,
}

/// A message that cannot be opened, or used, yet.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) from: DeviceAddress,
    pub(super) group: Option<UserId>,
    pub(super) sent_at_ms: u64,
    /// As it came; once `is_opened`, what was in it.
    #[serde(with = "hex")]
    pub(super) bytes: Vec<u8>,
    pub(super) is_opened: bool,
    /// Once opened, of a group: whom it was written for.
    #[serde(default)]
    pub(super) roster_version: Option<u64>,
    pub(super) since_ms: u64,
    /// The sender's device list was fetched after it came.
    pub(super) is_looked_up: bool,
}

/// A message in the outbox, or sent.
#[derive(Serialize, Deserialize)]
pub(super) struct Tracked {
    pub(super) message: MessageId,
    pub(super) conversation: Conversation,
    /// Once the server has it.
    pub(super) send_seq: Option<u64>,
    /// No receipt of these covers it.
    pub(super) skipped: Vec<DeviceAddress>,
    pub(super) delivered_to: BTreeSet<UserId>,
}

/// Half the size of JSON's lists of numbers.
mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&crate::e2ee::hex(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        crate::e2ee::unhex(&text).ok_or_else(|| D::Error::custom("not hexadecimal"))
    }
}
