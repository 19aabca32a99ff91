//! What is asked of the directory, and what it answers.

use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use ringpost_protocol::message::{DeviceListPut, KeyBundle, KeysPublish};

use crate::limits::PerHour;

/// One request, within the limits of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stores keys of `owner`. Answered by `Published`, `NoIdentity` or `StockFull`.
    Publish { owner: DeviceAddress, keys: KeysPublish },
    /// Takes one bundle for each device of `user`. Answered by `Bundles`.
    Fetch {
        user: UserId,
        /// None: all that have keys.
        devices: Vec<DeviceId>,
        /// The device that asks for the keys of its own user.
        except: Option<DeviceId>,
        /// One-time keys of one device that are handed out, to whomever.
        keys_per_hour: PerHour,
    },
    /// Answered by `Stock`.
    Count { owner: DeviceAddress },
    /// Answered by `List`.
    GetList { user: UserId },
    /// Stores a list whose version is one more than the stored one. Answered by `Stored` or `Conflict`.
    PutList { user: UserId, list: DeviceListPut },
    /// Answered by `Roster`.
    GetRoster { group: UserId },
    /// Stores a roster if the stored one has `expected_version`, 0 if there is none; it gets the next
    /// version. Answered by `Stored` or `Conflict`.
    PutRoster { group: UserId, expected_version: u64, roster: Roster },
}

/// Answer to a [`Request`] of the same place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The one-time keys that the device has now.
    Published { stock: u32 },
    /// The device has no identity key, and the request brought none.
    NoIdentity,
    /// The stock of the device, or the number of devices of the user, would be too large; nothing is
    /// stored.
    StockFull,
    /// In the order of the devices' names.
    Bundles(Vec<TakenBundle>),
    /// `None`: the device has published no keys.
    Stock(Option<u32>),
    /// Of version 0 when there is none.
    List(DeviceListPut),
    /// Of version 0 when there is none.
    Roster { version: u64, roster: Roster },
    /// It has this version now.
    Stored { version: u64 },
    /// Nothing changed; the stored version is this one, 0 when there is none.
    Conflict { version: u64 },
    /// The directory failed, and nobody knows whether the request was carried out.
    Failed,
}

/// A bundle, and what it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenBundle {
    pub bundle: KeyBundle,
    /// One-time keys that remain.
    pub stock: u32,
    /// The device has a one-time key, and too many were taken lately.
    pub is_limited: bool,
}

/// Members of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// Each once, in an order that the writer chooses.
    pub members: Vec<UserId>,
    /// Those who may change it.
    pub admins: Vec<UserId>,
}

impl Request {
    /// Whether it changes nothing.
    pub fn is_read(&self) -> bool {
        matches!(self, Self::Count { .. } | Self::GetList { .. } | Self::GetRoster { .. })
    }
}
