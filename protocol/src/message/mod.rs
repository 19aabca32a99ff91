//! Typed requests and answers: what a frame says once it has been parsed. Nothing behind this
//! module sees an unchecked length or id.
//!
//! [`parse_client_frame`] is the server's way in, the `put_*` functions are its way out. The
//! client's way in is [`crate::session::ClientSession`], which gives [`ClientEvent`]s.

use std::fmt;

use bytes::Bytes;

use crate::id::{DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq, UserId};
use crate::limits::{
    DELIVERS_UNACKED_MAX, DEVICES_PER_USER_MAX, ENVELOPE_BYTES_MAX, FRAME_BYTES_MAX,
    HEARTBEAT_BACKGROUND_MS_MAX, HEARTBEAT_BACKGROUND_MS_MIN, HEARTBEAT_FOREGROUND_MS,
    SENDS_UNANSWERED_MAX, TTL_MS_MAX,
};

pub use crate::wire::{ErrorCode, GapReason, GoAwayReason, Limits, RejectCode, SkipReason};
pub(crate) use call::call_frame;
pub use call::{
    Call, DeviceList, DeviceListPut, GroupState, KeyBundle, KeysPublish, PublicKey, Reply,
    put_device_list, put_group_changed, put_keys_low, put_reply,
};
pub use encode::{
    DeliverHead, DeliveredHead, put_caught_up, put_deliver, put_delivered, put_error, put_fault,
    put_gap, put_go_away, put_outcome, put_pong, put_welcome,
};
pub(crate) use event::parse_server_frame;
pub use event::{ClientEvent, Delivery};
pub use parse::parse_client_frame;

mod call;
mod encode;
mod event;
mod parse;
#[cfg(test)]
mod tests;

/// What a client asks for.
#[derive(Clone, PartialEq, Eq)]
pub enum Request {
    Hello(Hello),
    Send(SendRequest),
    Ack {
        up_to: Seq,
    },
    Mode(Mode),
    Ping,
    TokenRenew {
        token: String,
    },
    Bye,
    /// To be answered by exactly one reply, or a non-fatal Error, with this id. Not 0.
    Call {
        request_id: u64,
        call: Box<Call>,
    },
    /// A known frame that is not served yet. 0 when it carries no request_id.
    Unsupported {
        request_id: u64,
    },
}

/// Who a client says it is, and where it resumes. Nothing is proved before the token is verified.
#[derive(Clone, PartialEq, Eq)]
pub struct Hello {
    pub token: String,
    /// Must equal the token's claim.
    pub device: DeviceId,
    pub install_id: InstallId,
    /// Zero: the client knows none.
    pub mailbox_id: MailboxId,
    /// Counts as zero when `mailbox_id` is not the mailbox's.
    pub acked_up_to: Seq,
    pub mode: Mode,
    pub capabilities: u64,
}

/// Whether the user looks at the app. The interval is already within its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    #[default]
    Foreground,
    Background {
        interval_ms: u64,
    },
}

impl Mode {
    /// Background mode with the interval brought into its bounds.
    pub fn background(interval_ms: u64) -> Self {
        let (min, max) = (HEARTBEAT_BACKGROUND_MS_MIN, HEARTBEAT_BACKGROUND_MS_MAX);
        Self::Background { interval_ms: interval_ms.clamp(min, max) }
    }

    /// Longest time between two frames of the client.
    pub fn heartbeat_ms(self) -> u64 {
        match self {
            Self::Foreground => HEARTBEAT_FOREGROUND_MS,
            Self::Background { interval_ms } => interval_ms,
        }
    }
}

/// A message to be stored and delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendRequest {
    /// Not zero.
    pub send_seq: SendSeq,
    /// Not zero: `send_seq` when the client gave none.
    pub message_number: MessageNumber,
    pub to: Recipient,
    /// Of a group: the version that it is meant for; 0: whatever it is.
    pub roster_version: u64,
    /// Of a user's device list: the version that envelopes per device are for; 0: whatever it is.
    pub device_list_version: u64,
    pub body: SendBody,
    /// 1 ..= TTL_MS_MAX.
    pub ttl_ms: u64,
    pub urgent: bool,
    /// Ends the block that a retryable Rejected of this recipient set up.
    pub after_reject: bool,
}

/// Where a message goes. A user and a group of the same name are different recipients.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Recipient {
    User(UserId),
    Group(UserId),
}

/// What is delivered. Envelopes share the memory of the frame they came in.
#[derive(Clone, PartialEq, Eq)]
pub enum SendBody {
    /// The same for every device.
    Shared(Bytes),
    /// 1 ..= DEVICES_PER_USER_MAX different devices. Never to a group.
    PerDevice(Vec<(DeviceId, Bytes)>),
}

/// The one answer to a Send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Durable in at least one mailbox.
    Accepted {
        /// When it was stored: `sent_at_ms` of the Delivers.
        server_time_ms: u64,
        /// Devices it was not stored for.
        skipped: Vec<(UserId, DeviceId, SkipReason)>,
    },
    /// Stored in no mailbox. `RejectCode::Unspecified` stands for a code newer than this library.
    Rejected { code: RejectCode, retry_after_ms: Option<u64> },
}

impl Outcome {
    /// Whether the Send may be tried again under a new number. Both ends must agree on this: such
    /// an outcome blocks the recipient until a Send with `after_reject`.
    pub fn is_retryable(&self) -> bool {
        match *self {
            Self::Accepted { .. } => false,
            Self::Rejected { code: RejectCode::Unspecified, retry_after_ms } => {
                retry_after_ms.is_some()
            }
            Self::Rejected { code, .. } => code.is_retryable(),
        }
    }
}

impl RejectCode {
    /// Whether a Send refused with this code may succeed later.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::MailboxFull
            | Self::SenderShare
            | Self::RateLimited
            | Self::StorageFull
            | Self::StorageFailed
            | Self::Overloaded => true,
            Self::Unspecified
            | Self::UnknownRecipient
            | Self::TooLarge
            | Self::Unsupported
            | Self::Blocked
            | Self::NotAMember
            | Self::StaleRoster
            | Self::StaleDevices => false,
        }
    }
}

/// What a server says when it opens a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Welcome {
    pub mailbox_id: MailboxId,
    /// Interval granted for the mode in Hello.
    pub heartbeat_ms: u64,
    pub server_time_ms: u64,
    /// What this server allows; [`Limits::of_protocol`] unless the operator lowered it.
    pub limits: Limits,
    pub capabilities: u64,
}

impl Limits {
    /// The bounds that the protocol itself sets.
    pub fn of_protocol() -> Self {
        let narrow = |bound: usize| u32::try_from(bound).expect("FRAME_BYTES_MAX bounds them all");
        Self {
            frame_bytes_max: narrow(FRAME_BYTES_MAX),
            envelope_bytes_max: narrow(ENVELOPE_BYTES_MAX),
            sends_unanswered_max: narrow(SENDS_UNANSWERED_MAX),
            delivers_unacked_max: narrow(DELIVERS_UNACKED_MAX),
            devices_per_user_max: narrow(DEVICES_PER_USER_MAX),
            ttl_ms_max: TTL_MS_MAX,
            heartbeat_foreground_ms: HEARTBEAT_FOREGROUND_MS,
            heartbeat_background_ms_min: HEARTBEAT_BACKGROUND_MS_MIN,
            heartbeat_background_ms_max: HEARTBEAT_BACKGROUND_MS_MAX,
        }
    }

    /// Those of a server that takes no longer frames; the longest envelope shrinks with them.
    pub fn with_frame_bytes_max(frame_bytes_max: u32) -> Self {
        let limits = Self::of_protocol();
        let routing_bytes = limits.frame_bytes_max - limits.envelope_bytes_max;
        Self {
            frame_bytes_max: frame_bytes_max.min(limits.frame_bytes_max),
            envelope_bytes_max: frame_bytes_max
                .saturating_sub(routing_bytes)
                .min(limits.envelope_bytes_max),
            ..limits
        }
    }
}

impl SendBody {
    /// Bytes of its longest envelope.
    pub fn envelope_bytes_max(&self) -> usize {
        match self {
            Self::Shared(envelope) => envelope.len(),
            Self::PerDevice(envelopes) => {
                envelopes.iter().map(|(_, envelope)| envelope.len()).max().unwrap_or(0)
            }
        }
    }
}

// Tokens and envelopes must not reach a log by way of `{:?}`.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello(hello) => hello.fmt(f),
            Self::Send(send) => send.fmt(f),
            Self::Ack { up_to } => write!(f, "Ack({})", up_to.0),
            Self::Mode(mode) => mode.fmt(f),
            Self::Ping => write!(f, "Ping"),
            Self::TokenRenew { .. } => write!(f, "TokenRenew"),
            Self::Bye => write!(f, "Bye"),
            Self::Call { request_id, call } => write!(f, "Call({request_id}, {call:?})"),
            Self::Unsupported { request_id } => write!(f, "Unsupported({request_id})"),
        }
    }
}

impl fmt::Debug for Hello {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hello")
            .field("device", &self.device)
            .field("install_id", &self.install_id)
            .field("mailbox_id", &self.mailbox_id)
            .field("acked_up_to", &self.acked_up_to)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SendBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared(envelope) => write!(f, "Shared({} bytes)", envelope.len()),
            Self::PerDevice(envelopes) => write!(f, "PerDevice({} envelopes)", envelopes.len()),
        }
    }
}
