//! What a peer can do wrong: one variant for each way, named for what it did. A fault ends one
//! connection and nothing else; none of them panics.

use thiserror::Error;

use crate::id::{IdFault, SendSeq, Seq};
use crate::limits::{
    DEVICES_PER_USER_MAX, ENVELOPE_BYTES_MAX, SENDS_UNANSWERED_MAX, SIGNATURE_BYTES,
    TOKEN_BYTES_MAX,
};
use crate::wire::ErrorCode;

/// The stream of frames is broken; nothing after it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameFault {
    #[error("frame of {bytes} bytes or more is above the limit of {bytes_max}")]
    TooLong { bytes: usize, bytes_max: usize },
    #[error("frame length is not a varint in its shortest form")]
    LengthNotMinimal,
    #[error("frame length is 0")]
    Empty,
    #[error("the stream ended within a frame, after {bytes} of its bytes")]
    Truncated { bytes: usize },
}

/// A client broke the protocol, or may not stay. [`PeerFault::code`] goes out in the fatal Error.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PeerFault {
    #[error(transparent)]
    Frame(#[from] FrameFault),
    #[error("invalid protobuf: {0}")]
    Protobuf(&'static str),
    #[error("a frame holds exactly one field")]
    FieldCount,
    #[error("frame {0} is unknown")]
    UnknownFrame(u32),
    #[error("{field}: {fault}")]
    Id { field: &'static str, fault: IdFault },
    #[error("{0} is missing")]
    FieldMissing(&'static str),
    #[error("token has {0} bytes, at most {TOKEN_BYTES_MAX} are allowed")]
    TokenTooLong(usize),
    #[error(transparent)]
    Call(#[from] CallFault),
    #[error("a Send names more than {DEVICES_PER_USER_MAX} devices")]
    TooManyDevices,
    #[error("a Send names a device twice")]
    DeviceRepeated,
    #[error("a Send to a group takes one shared envelope")]
    GroupPerDevice,
    #[error("envelope has {0} bytes, at most {ENVELOPE_BYTES_MAX} are allowed")]
    EnvelopeTooLarge(usize),
    #[error("a frame came before Hello")]
    BeforeHello,
    #[error("a frame came between Hello and Welcome")]
    BeforeWelcome,
    #[error("a second Hello")]
    HelloRepeated,
    #[error("no Hello came in time")]
    HelloTimeout,
    #[error("no frame came for 2.5 heartbeat intervals")]
    HeartbeatTimeout,
    #[error("token is not valid: {0}")]
    TokenInvalid(&'static str),
    #[error("token does not name this user and device")]
    TokenMismatch,
    #[error("this user cannot have more devices")]
    DevicesFull,
    #[error("token has expired")]
    TokenExpired,
    #[error("a newer connection of this device has taken over")]
    Replaced,
    #[error("ack of {}, but {} is the highest seq sent on this connection", up_to.0, sent.0)]
    AckUnsent { up_to: Seq, sent: Seq },
    #[error("send_seq {} is below the mark {} and not remembered", send_seq.0, mark.0)]
    SendSeqForgotten { send_seq: SendSeq, mark: SendSeq },
    #[error("send_seq is 0")]
    SendSeqZero,
    #[error("more than {SENDS_UNANSWERED_MAX} Sends are unanswered")]
    WindowExceeded,
}

impl PeerFault {
    /// The code that tells the client what it did.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Frame(FrameFault::TooLong { .. }) => ErrorCode::FrameTooLong,
            Self::Frame(FrameFault::LengthNotMinimal) => ErrorCode::FrameLength,
            Self::Frame(FrameFault::Empty) => ErrorCode::FrameEmpty,
            Self::Frame(FrameFault::Truncated { .. }) => ErrorCode::FrameTruncated,
            Self::Protobuf(_) | Self::FieldCount => ErrorCode::FrameInvalid,
            Self::UnknownFrame(_) => ErrorCode::FrameUnknown,
            Self::Id { .. }
            | Self::FieldMissing(_)
            | Self::TokenTooLong(_)
            | Self::Call(_)
            | Self::TooManyDevices
            | Self::DeviceRepeated
            | Self::GroupPerDevice => ErrorCode::FieldInvalid,
            Self::EnvelopeTooLarge(_) => ErrorCode::EnvelopeTooLarge,
            Self::BeforeHello | Self::BeforeWelcome => ErrorCode::HelloExpected,
            Self::HelloRepeated => ErrorCode::HelloRepeated,
            Self::HelloTimeout => ErrorCode::HelloTimeout,
            Self::HeartbeatTimeout => ErrorCode::HeartbeatTimeout,
            Self::TokenInvalid(_) | Self::TokenMismatch => ErrorCode::TokenInvalid,
            Self::DevicesFull => ErrorCode::LimitReached,
            Self::TokenExpired => ErrorCode::TokenExpired,
            Self::Replaced => ErrorCode::Replaced,
            Self::AckUnsent { .. } => ErrorCode::Ack,
            Self::SendSeqForgotten { .. } | Self::SendSeqZero => ErrorCode::SendSeq,
            Self::WindowExceeded => ErrorCode::Window,
        }
    }
}

/// A call, or the reply to one, is outside its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CallFault {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{field} has more than {count_max} entries")]
    TooMany { field: &'static str, count_max: usize },
    #[error("{field} has {bytes} bytes, at most {bytes_max} are allowed")]
    TooLong { field: &'static str, bytes: usize, bytes_max: usize },
    #[error("{0} names one twice")]
    Repeated(&'static str),
    #[error("the numbers of {0} do not rise")]
    NotRising(&'static str),
    #[error("an administrator is no member")]
    AdminNoMember,
    #[error("{0}: a signed prekey has a signature of {SIGNATURE_BYTES} bytes, a one-time key none")]
    Signature(&'static str),
}

/// A server broke the protocol or fell silent. The client closes and connects again later.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ServerFault {
    #[error(transparent)]
    Frame(#[from] FrameFault),
    #[error("invalid protobuf: {0}")]
    Protobuf(&'static str),
    #[error("a frame holds exactly one field")]
    FieldCount,
    #[error("{field}: {fault}")]
    Id { field: &'static str, fault: IdFault },
    #[error("{0} is missing")]
    FieldMissing(&'static str),
    #[error(transparent)]
    Call(#[from] CallFault),
    #[error("a frame came before Welcome")]
    BeforeWelcome,
    #[error("a second Welcome")]
    WelcomeRepeated,
    #[error("seq {} does not rise above {}", seq.0, received.0)]
    SeqNotRising { seq: Seq, received: Seq },
    #[error("no Welcome came in time")]
    WelcomeTimeout,
    #[error("nothing came from the server for 2.5 heartbeat intervals")]
    Silent,
}
