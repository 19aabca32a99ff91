//! What the app sends and what it is told.

use std::fmt;

use bytes::Bytes;
use ringpost_protocol::id::{DeviceAddress, DeviceId, InstallId, SendSeq, UserId};
use ringpost_protocol::message::{
    DeviceList, GapReason, Recipient, RejectCode, SendBody, SkipReason,
};

/// The app's name of one message in the outbox. Unlike [`SendSeq`] it survives a retry under a new
/// number. Starts at 1 and rises, so it also gives the order in which the app sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SendId(pub u64);

/// Names one piece of news until the app confirms it. Starts at 1 and rises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventId(pub u64);

/// One message that the app hands over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewSend {
    pub to: Recipient,
    pub body: SendBody,
    pub options: SendOptions,
}

/// How a message is to be treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendOptions {
    /// Lifetime at the server, counted from when it stores the message. Zero: the longest one.
    pub ttl_ms: u64,
    /// Wakes the recipient's device; never changes the order.
    pub urgent: bool,
    /// To a group: the version of the roster that it is meant for; 0: whatever it is.
    pub roster_version: u64,
    /// With an envelope for each device: the version of the device list that they are for; 0:
    /// whatever it is.
    pub device_list_version: u64,
}

/// What [`Client::next_event`](crate::Client::next_event) gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Kept in the database, and given again after a restart, until confirmed with its id.
    News { id: EventId, news: News },
    /// About the connection; not kept.
    Status(Status),
    /// Worth knowing at once; not kept.
    Hint(Hint),
}

/// News that must not be lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    Message(Message),
    Sent(Sent),
    Refused(Refused),
    Delivered(Receipt),
    Gap(Gap),
    /// What a [`Messenger`](crate::messenger::Messenger) made of other news; it opens it for the app.
    Sealed(Bytes),
}

/// A message from another device. The app sees each one once.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub from: DeviceAddress,
    pub install_id: InstallId,
    /// The sender's number; rises within (device, installation, direct or group).
    pub send_seq: SendSeq,
    /// When the server stored it, Unix milliseconds.
    pub sent_at_ms: u64,
    pub group: Option<UserId>,
    pub urgent: bool,
    pub envelope: Bytes,
}

/// The server has stored a message of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub id: SendId,
    /// The number it was accepted under: receipts speak in these.
    pub send_seq: SendSeq,
    pub to: Recipient,
    pub server_time_ms: u64,
    /// Devices that did not get it; no receipt of theirs covers it.
    pub skipped: Vec<(UserId, DeviceId, SkipReason)>,
}

/// The server will never store this message; it left the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub id: SendId,
    pub to: Recipient,
    pub code: RejectCode,
}

/// A device has taken everything we sent it up to a number, except what [`Sent::skipped`] names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub peer: DeviceAddress,
    pub group: Option<UserId>,
    pub up_to_send_seq: SendSeq,
}

/// Messages to us are missing: the server could not keep them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The group, when all of them were sent to one.
    pub group: Option<UserId>,
    pub reason: GapReason,
}

/// What the server tells without being asked. It may be lost: everything can be asked for as well. Of
/// several about the same that the app has not taken yet only the last is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// One-time keys of this device that the server still has, a count: they run out.
    KeysLow { remaining_count: u32 },
    /// A message named devices that are not those of this list.
    DeviceList(DeviceList),
    /// A group of this user has another roster; see [`Client::group_get`](crate::Client::group_get).
    GroupChanged { group: UserId, version: u64 },
}

impl Hint {
    /// Whether it makes `earlier` worthless.
    pub(crate) fn replaces(&self, earlier: &Self) -> bool {
        match (self, earlier) {
            (Self::KeysLow { .. }, Self::KeysLow { .. }) => true,
            (Self::DeviceList(list), Self::DeviceList(earlier)) => list.user == earlier.user,
            (Self::GroupChanged { group, .. }, Self::GroupChanged { group: earlier, .. }) => {
                group == earlier
            }
            _ => false,
        }
    }
}

/// State of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The server has welcomed us.
    Connected,
    /// Everything that waited for us at the server has been received.
    CaughtUp,
    /// The connection ended, or could not be made; the next attempt is under way or planned.
    Disconnected { retry_in_ms: u64, reason: String },
    /// A newer connection of this device took over. No attempt follows until
    /// [`Client::reconnect`](crate::Client::reconnect).
    Replaced,
    /// The server refused two tokens in a row, or none could be had. No attempt follows until
    /// [`Client::reconnect`](crate::Client::reconnect).
    TokenRefused { reason: String },
    /// The database failed; nothing more is sent or received by this client.
    StoreFailed { reason: String },
}

// An envelope may hold clear text (before encryption is set up): only its length may be logged.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("from", &self.from)
            .field("send_seq", &self.send_seq)
            .field("group", &self.group)
            .field("envelope_bytes", &self.envelope.len())
            .finish_non_exhaustive()
    }
}
