//! What the log holds, as callers give and get it.

use std::ops::Deref;

use bytes::Bytes;
use ringpost_protocol::id::{DeviceAddress, InstallId, MailboxId, MessageNumber, SendSeq, UserId};

/// A message to append; everything is borrowed and copied once, into the batch.
#[derive(Clone, Copy, Debug)]
pub struct NewMessage<'a> {
    pub from: &'a DeviceAddress,
    pub install_id: InstallId,
    pub send_seq: SendSeq,
    pub message_number: MessageNumber,
    pub sent_at_ms: u64,
    pub expires_at_ms: u64,
    pub urgent: bool,
    pub group: Option<&'a str>,
    /// One to [`crate::limits::MAILBOXES_PER_RECORD_MAX`] different mailboxes.
    pub mailboxes: &'a [MailboxId],
    pub envelope: &'a [u8],
}

/// A text inside a batch; no copy of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(pub(super) Bytes);

/// A message read back. All parts share the memory of the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredMessage {
    pub from_user: Text,
    pub from_device: Text,
    pub install_id: InstallId,
    pub send_seq: SendSeq,
    pub message_number: MessageNumber,
    pub sent_at_ms: u64,
    pub expires_at_ms: u64,
    pub urgent: bool,
    pub group: Option<Text>,
    pub envelope: Bytes,
}

/// Why a mailbox lacks a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    Full,
    Expired,
    /// It was stored, and the disk lost it.
    Damaged,
}

/// A gap to write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewGap<'a> {
    pub(crate) reason: GapReason,
    /// Seq of the entry whose place it takes; zero: of none.
    pub(crate) replaces: u64,
    /// Empty: not of one group.
    pub(crate) group: &'a str,
}

/// "Your messages up to this one were delivered"; one per (peer, group, install) and mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptRecord {
    pub peer: DeviceAddress,
    pub group: Option<UserId>,
    pub install_id: InstallId,
    pub up_to_send_seq: SendSeq,
}

/// A device exists, and this is its mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRecord {
    pub address: DeviceAddress,
    pub mailbox: MailboxId,
    pub created_unix_ms: u64,
}

/// What a mailbox entry refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredRecord {
    Message(StoredMessage),
    Receipt(ReceiptRecord),
    Gap { reason: GapReason, group: Option<Text> },
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when the record was parsed")
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Text({})", self.0.len())
    }
}

impl GapReason {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Full => 1,
            Self::Expired => 2,
            Self::Damaged => 3,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Full),
            2 => Some(Self::Expired),
            3 => Some(Self::Damaged),
            _ => None,
        }
    }
}
