//! Which label a refusal counts under.

use ringpost_protocol::fault::PeerFault;
use ringpost_protocol::message::RejectCode;

use super::{RefusedConnection, RefusedHello, RefusedSend};
use crate::limits::AddressRefusal;

impl From<&PeerFault> for RefusedHello {
    fn from(fault: &PeerFault) -> Self {
        match fault {
            PeerFault::TokenInvalid(_) | PeerFault::TokenTooLong(_) => Self::TokenInvalid,
            PeerFault::TokenExpired => Self::TokenExpired,
            PeerFault::TokenMismatch => Self::TokenMismatch,
            PeerFault::HelloTimeout => Self::Timeout,
            PeerFault::DevicesFull => Self::DevicesFull,
            PeerFault::Replaced => Self::Replaced,
            _ => Self::BadFrame,
        }
    }
}

impl From<AddressRefusal> for RefusedConnection {
    fn from(refusal: AddressRefusal) -> Self {
        match refusal {
            AddressRefusal::Rate => Self::AddressRate,
            AddressRefusal::Connections => Self::AddressConnections,
        }
    }
}

impl From<RejectCode> for RefusedSend {
    fn from(code: RejectCode) -> Self {
        match code {
            RejectCode::Unspecified => Self::Unspecified,
            RejectCode::UnknownRecipient => Self::UnknownRecipient,
            RejectCode::MailboxFull => Self::MailboxFull,
            RejectCode::SenderShare => Self::SenderShare,
            RejectCode::RateLimited => Self::RateLimited,
            RejectCode::StorageFull => Self::StorageFull,
            RejectCode::StorageFailed => Self::StorageFailed,
            RejectCode::Overloaded => Self::Overloaded,
            RejectCode::TooLarge => Self::TooLarge,
            RejectCode::Unsupported => Self::Unsupported,
            RejectCode::Blocked => Self::Blocked,
            RejectCode::NotAMember => Self::NotAMember,
            RejectCode::StaleRoster => Self::StaleRoster,
            RejectCode::StaleDevices => Self::StaleDevices,
        }
    }
}
