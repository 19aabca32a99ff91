//! Identifiers and counters, each a type of its own so that they cannot be mixed up.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::limits::{DEVICE_ID_BYTES_MAX, SLOT_COUNT, USER_ID_BYTES_MAX};

/// A user or group: 1 to 128 bytes of UTF-8, compared bytewise.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserId(Arc<str>);

/// A device of a user: 1 to 64 bytes of ASCII, compared bytewise.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceId(Arc<str>);

/// What names a mailbox on the wire: a user and one of its devices.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct DeviceAddress {
    pub user: UserId,
    pub device: DeviceId,
}

/// Random number of one installation of the client. A new one resets the send memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct InstallId(pub u64);

/// Random number in the device record. A client that knows another one has acknowledged messages
/// of a store that no longer exists. Zero: the client knows none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MailboxId(pub u64);

/// A sender's number of one Send; starts at 1 and rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct SendSeq(pub u64);

/// A sender's number of one message. Unlike [`SendSeq`] it stays the same when a refused message is
/// sent again, and so tells the receiver what it has already. Rises per recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MessageNumber(pub u64);

/// Position of a record in a mailbox: open count of the store << 40 | record number of that open.
/// Strictly increasing, never reused, gaps are legal. Zero: before the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Seq(pub u64);

/// One of [`SLOT_COUNT`] parts of the user space; the unit that shards own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(u16);

/// Why an identifier was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdFault {
    #[error("user id must have 1 to {USER_ID_BYTES_MAX} bytes, this one has {0}")]
    UserLength(usize),
    #[error("device id must have 1 to {DEVICE_ID_BYTES_MAX} bytes, this one has {0}")]
    DeviceLength(usize),
    #[error("device id must be ASCII")]
    DeviceNotAscii,
}

impl UserId {
    pub fn new(id: &str) -> Result<Self, IdFault> {
        if id.is_empty() || id.len() > USER_ID_BYTES_MAX {
            return Err(IdFault::UserLength(id.len()));
        }
        Ok(Self(id.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The slot that owns this user's mailboxes: xxh3_64 of the bytes with seed 0, modulo
    /// [`SLOT_COUNT`].
    pub fn slot(&self) -> SlotId {
        let hash = xxh3_64_with_seed(self.0.as_bytes(), 0);
        SlotId(u16::try_from(hash % u64::from(SLOT_COUNT)).expect("SLOT_COUNT fits u16"))
    }
}

impl DeviceId {
    pub fn new(id: &str) -> Result<Self, IdFault> {
        if id.is_empty() || id.len() > DEVICE_ID_BYTES_MAX {
            return Err(IdFault::DeviceLength(id.len()));
        }
        if !id.is_ascii() {
            return Err(IdFault::DeviceNotAscii);
        }
        Ok(Self(id.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for UserId {
    type Error = IdFault;

    fn try_from(id: String) -> Result<Self, IdFault> {
        Self::new(&id)
    }
}

impl From<UserId> for String {
    fn from(id: UserId) -> Self {
        id.as_str().into()
    }
}

impl TryFrom<String> for DeviceId {
    type Error = IdFault;

    fn try_from(id: String) -> Result<Self, IdFault> {
        Self::new(&id)
    }
}

impl From<DeviceId> for String {
    fn from(id: DeviceId) -> Self {
        id.as_str().into()
    }
}

impl DeviceAddress {
    /// A stable hash for tables that must not keep the whole address.
    pub fn hash32(&self) -> u32 {
        let user = xxh3_64_with_seed(self.user.as_str().as_bytes(), 1);
        let both = xxh3_64_with_seed(self.device.as_str().as_bytes(), user);
        u32::try_from(both >> 32).expect("32 bits remain")
    }
}

impl Seq {
    /// Bits of the record number within one open of the store.
    pub const RECORD_BITS: u32 = 40;

    pub fn new(open_count: u32, record_number: u64) -> Self {
        assert!(open_count < 1 << 24 && record_number < 1 << Self::RECORD_BITS);
        Self(u64::from(open_count) << Self::RECORD_BITS | record_number)
    }

    /// The open of the store that gave it, if a store gave it.
    pub fn open_count(self) -> u32 {
        u32::try_from(self.0 >> Self::RECORD_BITS).expect("24 bits remain")
    }
}

impl SlotId {
    pub fn get(self) -> u16 {
        self.0
    }

    /// The storage shard that is this slot's home.
    pub fn shard(self, storage_shards: u16) -> u16 {
        self.0 % storage_shards
    }
}

// Ids appear in logs only shortened: the whole one is personal data.
impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start: String = self.0.chars().take(2).collect();
        write!(f, "{start}..({})", self.0.len())
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start: String = self.0.chars().take(2).collect();
        write!(f, "{start}..({})", self.0.len())
    }
}
