//! What shards say to each other.

use ringpost_protocol::id::{DeviceAddress, InstallId, MessageNumber, SendSeq, UserId};
use ringpost_protocol::message::{DeviceList, Hello, Outcome, Recipient, SendBody};
use ringpost_ring::steering::Program;

use super::conn::Conn;
use super::fanout::{GroupPart, PartReply};
use super::group::GroupRequest;
use super::group_call::{GroupAnswer, GroupNews};
use super::lists::ListReader;
use super::relay::{NewsReply, OrderReply, StreamNews, StreamOrder};
use super::settings::ShardSettings;
use crate::audit::AuditEvent;
use crate::control::auth::Claims;
use crate::directory::{Answered, TakenBundle};
use crate::limits::ONE_TIME_KEYS_LOW;
use crate::metrics::ShardMetrics;
use crate::transport::quic::ForeignDatagram;

/// One message of the mesh. Large ones are boxed, so that the queues stay small.
pub enum MeshMessage {
    /// Request: take over a connection whose user lives at the receiver.
    Move(Box<Arrival>),
    /// Reply: the connection was taken, or closed with a reason that its client was told.
    Moved,
    /// Request: store a message in the mailboxes of its recipient.
    Store(Box<StoreRequest>),
    /// Reply: what became of it; sent only when the outcome is durable.
    Stored(Box<StoreReply>),
    /// Reply: the store failed, and nobody knows whether the message was stored.
    Unknown(Box<UnknownSend>),
    /// Request: store a delivered receipt in the mailbox of the device that sent the message.
    Receipt(Box<ReceiptRequest>),
    /// Reply: the receipt is durable, or has no mailbox any more. It comes as late as a store that
    /// failed is open again.
    ReceiptStored { device: DeviceIndex },
    /// Note after a retryable refusal or an unknown outcome: the sender's home knows of it, and what
    /// follows on the mesh was sent with that knowledge.
    BlockArmed(Box<BlockArmed>),
    /// Request: a Send to a group, answered by `Stored` or `Unknown`, or something else that concerns
    /// it, answered by `GroupAnswer`.
    Group(GroupRequest),
    /// Reply: what was asked of a group.
    GroupAnswer(Box<GroupAnswer>),
    /// Request: store a message in the mailboxes of those members that live at the receiver.
    Part(Box<GroupPart>),
    /// Reply: what became of it; sent only when the outcome is durable.
    PartDone(Box<PartReply>),
    /// Request: tell connected devices that their group has changed.
    GroupNews(Box<GroupNews>),
    /// Reply: they are told.
    GroupNewsTaken,
    /// Request: what a connection at home does with its stream at the receiver.
    StreamOrder(Box<StreamOrder>),
    /// Reply: what became of it so far.
    StreamOrderReply(OrderReply),
    /// Request: what has happened to the stream of a connection at the receiver.
    StreamNews(Box<StreamNews>),
    /// Reply: the connection knows.
    StreamNewsReply(NewsReply),
    /// Request: a datagram that came to the wrong shard.
    Datagram(Box<ForeignDatagram>),
    /// Reply: it was taken.
    DatagramTaken,
    /// Request: tell a device of the receiver that its one-time keys run out. Left out when there is
    /// no credit.
    KeysLow(Box<KeysLowNews>),
    /// Reply: it is told, if it is there.
    KeysLowTaken,
    /// Request: the device list of a user of the receiver.
    GetList(Box<ListRequest>),
    /// Reply.
    List(Box<ListReply>),
    /// From the directory.
    Answered(Box<Answered>),
    /// From the control thread.
    Control(ControlRequest),
}

/// Index of a device in its home shard; never reused while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceIndex(pub u32);

/// A connection on its way home. Nothing is in flight on its socket.
pub struct Arrival {
    pub conn: Conn,
    pub login: Login,
}

/// A Hello whose token was verified.
pub struct Login {
    pub hello: Hello,
    pub claims: Claims,
}

/// Who waits for the outcome of a Send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub shard: u16,
    pub device: DeviceIndex,
    pub install_id: InstallId,
    pub send_seq: SendSeq,
}

/// A Send on its way to the home of its recipient.
pub struct StoreRequest {
    pub origin: Origin,
    pub from: DeviceAddress,
    pub to: UserId,
    pub message_number: MessageNumber,
    /// 0: the list is not looked at.
    pub device_list_version: u64,
    pub body: SendBody,
    pub ttl_ms: u64,
    pub urgent: bool,
    pub after_reject: bool,
}

#[cfg(test)]
impl StoreRequest {
    /// From another shard; names no list.
    pub(super) fn sample(send_seq: u64, to: &str) -> Self {
        let user = UserId::new("eve").unwrap();
        let device = ringpost_protocol::id::DeviceId::new("d").unwrap();
        Self {
            origin: Origin {
                shard: 1,
                device: DeviceIndex(7),
                install_id: InstallId(1),
                send_seq: SendSeq(send_seq),
            },
            from: DeviceAddress { user, device },
            to: UserId::new(to).unwrap(),
            message_number: MessageNumber(send_seq),
            device_list_version: 0,
            body: SendBody::Shared(bytes::Bytes::new()),
            ttl_ms: 1,
            urgent: false,
            after_reject: false,
        }
    }
}

pub struct StoreReply {
    pub origin: Origin,
    pub to: Recipient,
    pub outcome: Outcome,
    /// The recipient's device list, which the sender did not know.
    pub list: Option<Box<DeviceList>>,
}

/// A Send that its client must replay.
pub struct UnknownSend {
    pub origin: Origin,
    pub to: Recipient,
}

/// "Your messages up to `up_to_send_seq` have reached `peer`."
pub struct ReceiptRequest {
    /// The device that acknowledged, at its home shard.
    pub reply_to: DeviceIndex,
    /// The device whose messages were acknowledged.
    pub sender: DeviceAddress,
    pub install_id: InstallId,
    pub peer: DeviceAddress,
    pub group: Option<UserId>,
    pub up_to_send_seq: SendSeq,
}

/// A device has few one-time keys left.
pub struct KeysLowNews {
    pub owner: DeviceAddress,
    pub remaining: u32,
}

impl KeysLowNews {
    /// What the owner of a bundle hears when it was taken: nothing while there are enough.
    pub(crate) fn of(user: &UserId, taken: &TakenBundle) -> Option<Self> {
        let TakenBundle { bundle, stock, .. } = taken;
        if *stock >= ONE_TIME_KEYS_LOW || bundle.one_time_key.is_none() {
            return None;
        }
        let owner = DeviceAddress { user: user.clone(), device: bundle.device.clone() };
        Some(Self { owner, remaining: *stock })
    }
}

/// A connection wants to read the device list of `user`.
pub struct ListRequest {
    pub(super) reader: ListReader,
    pub(super) user: UserId,
}

pub struct ListReply {
    pub(super) reader: ListReader,
    /// `None`: it cannot be read now.
    pub(super) list: Option<DeviceList>,
}

/// Identifies a block: see `shard/route.rs`.
pub struct BlockArmed {
    pub origin: Origin,
    pub to: UserId,
}

/// What the control thread asks of a shard.
pub enum ControlRequest {
    /// Hand a copy of the counters to the closure.
    Metrics(Box<dyn FnOnce(ShardMetrics) + Send>),
    /// Take these settings from now on, then call the closure.
    Apply { settings: Box<ShardSettings>, applied: Box<dyn FnOnce() + Send> },
    /// Stop accepting, tell every client to come back after a time up to `jitter_ms`, and close all
    /// connections within `within_ms`.
    Drain { within_ms: u64, jitter_ms: u64 },
    /// The kernel chooses the shards of datagrams by this program from now on.
    Steered(Program),
    /// The key interface has given out keys of a device that lives here. The closure is called once
    /// it is told.
    KeysLow { news: Box<KeysLowNews>, told: Box<dyn FnOnce() + Send> },
    /// All shards are drained: finish the store and end.
    Stop,
}

/// What a shard tells the control thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardEvent {
    /// The store is open and connections are accepted.
    Ready { shard: u16 },
    /// The store failed, and is being opened again; its devices are not served.
    Reopening { shard: u16, reason: String },
    /// A token names a key that is not known. It may come often.
    UnknownKey { shard: u16 },
    /// For the audit log, while one is kept.
    Audit(Box<AuditEvent>),
    /// It is open again.
    Reopened { shard: u16 },
    /// So many QUIC handshakes are begun that clients have to prove their addresses; or no more.
    Flood { shard: u16, is_on: bool },
    /// Draining: no connection is left, but other shards may still ask for something.
    Quiet { shard: u16 },
    /// After [`ControlRequest::Stop`]: everything is durable, the loop ends.
    Finished { shard: u16 },
    /// The shard cannot go on; the process must end with exit code 1.
    Failed { shard: u16, reason: String },
}
