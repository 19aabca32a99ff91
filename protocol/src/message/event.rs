//! Server frames to typed events: the client's way in.

use std::fmt;

use bytes::Bytes;
use prost::Message;

use crate::fault::ServerFault;
use crate::field::{Fields, Value};
use crate::id::{
    DeviceAddress, DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq, UserId,
};
use crate::message::call::{DeviceList, Reply, Told, parse_told};
use crate::message::{ErrorCode, GapReason, GoAwayReason, Outcome, RejectCode, Welcome};
use crate::wire::{self, server_frame::Frame};

/// What a server told a client.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientEvent {
    /// The session is open. A `mailbox_id` other than the one in Hello is a new mailbox: seqs from
    /// before it must be neither acknowledged nor compared.
    Welcome(Welcome),
    /// The one answer to a Send.
    Answered {
        send_seq: SendSeq,
        outcome: Outcome,
    },
    Deliver(Delivery),
    /// Messages are missing; acknowledged like a Deliver.
    Gap {
        seq: Seq,
        group: Option<UserId>,
        reason: GapReason,
    },
    /// `peer` has what `install_id` sent up to a number, except Sends whose outcome named that
    /// device as skipped, and those rejected or expired. To be ignored, but acknowledged, when
    /// `install_id` is not this installation.
    Delivered {
        seq: Seq,
        peer: DeviceAddress,
        group: Option<UserId>,
        install_id: InstallId,
        up_to_send_seq: SendSeq,
    },
    /// All that had waited has been delivered.
    CaughtUp,
    Pong,
    /// The server closes soon; connect again after this time.
    GoAway {
        reason: GoAwayReason,
        reconnect_after_ms: u64,
        other_address: Option<String>,
    },
    /// The one answer to a call, unless it is an Error with its id.
    Replied {
        request_id: u64,
        reply: Reply,
    },
    /// The stock of this device's one-time keys runs out.
    KeysLow {
        remaining_count: u32,
    },
    /// A Send named devices that this list does not have, or not those that it has.
    DeviceList(DeviceList),
    /// A group of this user has this version now. May be lost.
    GroupChanged {
        group: UserId,
        version: u64,
    },
    /// After a fatal one the connection ends. `Replaced` forbids reconnecting automatically.
    Error {
        code: ErrorCode,
        text: String,
        fatal: bool,
        request_id: u64,
    },
}

/// A message from the mailbox.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivery {
    pub seq: Seq,
    pub from: DeviceAddress,
    pub install_id: InstallId,
    pub send_seq: SendSeq,
    /// Rises with each message of one sending installation to one user or group, and stays the
    /// same when it is stored twice: a client keeps the highest and drops what is not above it.
    /// Not zero.
    pub message_number: MessageNumber,
    pub sent_at_ms: u64,
    pub group: Option<UserId>,
    pub urgent: bool,
    /// Shares the memory of the frame it came in.
    pub envelope: Bytes,
}

/// Parses the one field of a ServerFrame; `None`: a frame newer than this library, or of a feature
/// that it does not use.
pub(crate) fn parse_server_frame(frame: &Bytes) -> Result<Option<ClientEvent>, ServerFault> {
    let mut fields = Fields::new(frame);
    let (number, value) = fields.next()?.ok_or(ServerFault::FieldCount)?;
    if fields.next()?.is_some() {
        return Err(ServerFault::FieldCount);
    }
    if let (DELIVER, Value::Bytes(body)) = (number, value) {
        return parse_deliver(frame, body).map(|delivery| Some(ClientEvent::Deliver(delivery)));
    }
    let decoded = wire::ServerFrame::decode(frame.clone())
        .map_err(|_| ServerFault::Protobuf("message does not decode"))?;
    let Some(decoded) = decoded.frame else { return Ok(None) };
    Ok(Some(match decoded {
        Frame::Welcome(welcome) => ClientEvent::Welcome(Welcome {
            mailbox_id: MailboxId(welcome.mailbox_id),
            heartbeat_ms: welcome.heartbeat_ms,
            server_time_ms: welcome.server_time_ms,
            limits: welcome.limits.ok_or(ServerFault::FieldMissing("Welcome.limits"))?,
            capabilities: welcome.capabilities,
        }),
        Frame::Accepted(accepted) => parse_accepted(accepted)?,
        Frame::Rejected(rejected) => ClientEvent::Answered {
            send_seq: SendSeq(rejected.send_seq),
            outcome: Outcome::Rejected {
                code: RejectCode::try_from(rejected.code).unwrap_or_default(),
                retry_after_ms: rejected.retry_after_ms,
            },
        },
        Frame::Gap(gap) => ClientEvent::Gap {
            seq: Seq(gap.seq),
            group: group_id(&gap.group)?,
            reason: GapReason::try_from(gap.reason).unwrap_or_default(),
        },
        Frame::CaughtUp(_) => ClientEvent::CaughtUp,
        Frame::Delivered(delivered) => ClientEvent::Delivered {
            seq: Seq(delivered.seq),
            peer: address(&delivered.peer_user, &delivered.peer_device)?,
            group: group_id(&delivered.group)?,
            install_id: InstallId(delivered.install_id),
            up_to_send_seq: SendSeq(delivered.up_to_send_seq),
        },
        Frame::Pong(_) => ClientEvent::Pong,
        Frame::GoAway(go_away) => ClientEvent::GoAway {
            reason: GoAwayReason::try_from(go_away.reason).unwrap_or_default(),
            reconnect_after_ms: go_away.reconnect_after_ms,
            other_address: Some(go_away.other_address).filter(|address| !address.is_empty()),
        },
        Frame::Error(error) => ClientEvent::Error {
            code: ErrorCode::try_from(error.code).unwrap_or_default(),
            text: error.text,
            fatal: error.fatal,
            request_id: error.request_id,
        },
        // Read above, without the generated code.
        Frame::Deliver(_) => return Err(ServerFault::Protobuf("Deliver is not a message")),
        frame => return Ok(parse_told(frame)?.map(ClientEvent::from)),
    }))
}

fn parse_accepted(accepted: wire::Accepted) -> Result<ClientEvent, ServerFault> {
    let mut skipped = Vec::with_capacity(accepted.skipped_devices.len());
    for device in &accepted.skipped_devices {
        let DeviceAddress { user, device: id } = address(&device.user, &device.device)?;
        skipped.push((user, id, device.reason()));
    }
    let outcome = Outcome::Accepted { server_time_ms: accepted.server_time_ms, skipped };
    Ok(ClientEvent::Answered { send_seq: SendSeq(accepted.send_seq), outcome })
}

fn parse_deliver(frame: &Bytes, body: &[u8]) -> Result<Delivery, ServerFault> {
    let (mut seq, mut send_seq, mut install_id, mut sent_at_ms) = (0, 0, 0, 0);
    let (mut user, mut device, mut group, mut urgent) = ("", "", "", false);
    let (mut envelope, mut message_number) = (Bytes::new(), 0);
    let mut fields = Fields::new(body);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => seq = value.varint()?,
            2 => user = value.text()?,
            3 => device = value.text()?,
            4 => install_id = value.fixed64()?,
            5 => send_seq = value.varint()?,
            6 => sent_at_ms = value.varint()?,
            7 => group = value.text()?,
            8 => urgent = value.varint()? != 0,
            9 => message_number = value.varint()?,
            15 => envelope = frame.slice_ref(value.bytes()?),
            _ => {}
        }
    }
    Ok(Delivery {
        seq: Seq(seq),
        from: address(user, device)?,
        install_id: InstallId(install_id),
        send_seq: SendSeq(send_seq),
        message_number: MessageNumber(if message_number == 0 { send_seq } else { message_number }),
        sent_at_ms,
        group: group_id(group)?,
        urgent,
        envelope,
    })
}

fn address(user: &str, device: &str) -> Result<DeviceAddress, ServerFault> {
    let user = UserId::new(user).map_err(|fault| ServerFault::Id { field: "user", fault })?;
    let device =
        DeviceId::new(device).map_err(|fault| ServerFault::Id { field: "device", fault })?;
    Ok(DeviceAddress { user, device })
}

/// The empty string stands for "not a group".
fn group_id(group: &str) -> Result<Option<UserId>, ServerFault> {
    if group.is_empty() {
        return Ok(None);
    }
    UserId::new(group).map(Some).map_err(|fault| ServerFault::Id { field: "group", fault })
}

// The envelope must not reach a log by way of `{:?}`.
impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("seq", &self.seq)
            .field("from", &self.from)
            .field("send_seq", &self.send_seq)
            .field("group", &self.group)
            .field("envelope_bytes", &self.envelope.len())
            .finish_non_exhaustive()
    }
}

impl From<Told> for ClientEvent {
    fn from(told: Told) -> Self {
        match told {
            Told::Reply { request_id, reply } => Self::Replied { request_id, reply },
            Told::KeysLow { remaining_count } => Self::KeysLow { remaining_count },
            Told::DeviceList(list) => Self::DeviceList(list),
            Told::GroupChanged { group, version } => Self::GroupChanged { group, version },
        }
    }
}

impl From<&'static str> for ServerFault {
    fn from(malformed: &'static str) -> Self {
        Self::Protobuf(malformed)
    }
}

/// Field number in ServerFrame.
const DELIVER: u32 = 4;
