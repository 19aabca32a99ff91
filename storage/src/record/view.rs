//! Bytes to records: views that borrow the batch, one per kind.

use bytes::Bytes;
use ringpost_protocol::id::{
    DeviceAddress, DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq, UserId,
};

use super::encode::{MESSAGE_FIXED_BYTES, MessageFields, padded};
use super::fields::Fields;
use super::{DeviceRecord, GapReason, ReceiptRecord, StoredMessage, Text};
use crate::limits::MAILBOXES_PER_RECORD_MAX;

/// A parsed record that borrows the batch.
#[derive(Clone, Copy)]
pub(crate) enum View<'a> {
    Message(MessageView<'a>),
    Receipt(ReceiptView<'a>),
    Gap(GapView<'a>),
    Device(DeviceView<'a>),
    Ack { mailbox: u64, up_to: u64 },
    Clock { unix_ms: u64 },
}

#[derive(Clone, Copy)]
pub(crate) struct MessageView<'a> {
    pub(crate) seq: u64,
    pub(crate) install_id: u64,
    pub(crate) send_seq: u64,
    pub(crate) message_number: u64,
    pub(crate) sent_at_ms: u64,
    pub(crate) expires_at_ms: u64,
    /// Hash of the sender's address, so that recovery need not compute it.
    pub(crate) sender: u32,
    pub(crate) urgent: bool,
    mailboxes: &'a [[u8; 8]],
    pub(crate) user: &'a str,
    pub(crate) device: &'a str,
    pub(crate) group: &'a str,
    pub(crate) envelope: &'a [u8],
}

#[derive(Clone, Copy)]
pub(crate) struct ReceiptView<'a> {
    pub(crate) mailbox: u64,
    pub(crate) seq: u64,
    /// Keyed hash of (peer, group, install): what a later receipt replaces.
    pub(crate) slot: u64,
    pub(crate) install_id: u64,
    pub(crate) up_to_send_seq: u64,
    pub(crate) user: &'a str,
    pub(crate) device: &'a str,
    pub(crate) group: &'a str,
}

#[derive(Clone, Copy)]
pub(crate) struct GapView<'a> {
    pub(crate) mailbox: u64,
    pub(crate) seq: u64,
    /// Seq of the entry whose place it takes; zero: of none.
    pub(crate) replaces: u64,
    pub(crate) reason: GapReason,
    pub(crate) group: &'a str,
}

#[derive(Clone, Copy)]
pub(crate) struct DeviceView<'a> {
    pub(crate) mailbox: u64,
    pub(crate) created_unix_ms: u64,
    pub(crate) user: &'a str,
    pub(crate) device: &'a str,
}

impl View<'_> {
    /// The highest seq that the record speaks of; zero when of none.
    pub(crate) fn highest_seq(&self) -> Seq {
        Seq(match self {
            View::Message(view) => view.seq,
            View::Receipt(view) => view.seq,
            View::Gap(view) => view.seq.max(view.replaces),
            View::Ack { up_to, .. } => *up_to,
            View::Device(_) | View::Clock { .. } => 0,
        })
    }
}

impl<'a> MessageView<'a> {
    pub(crate) fn mailboxes(&self) -> impl ExactSizeIterator<Item = u64> + 'a {
        self.mailboxes.iter().map(|id| u64::from_le_bytes(*id))
    }

    pub(crate) fn copy_bytes(&self, mailboxes: usize) -> usize {
        let texts = self.user.len() + self.device.len() + self.group.len();
        padded(MESSAGE_FIXED_BYTES + 8 * mailboxes + texts + self.envelope.len())
    }

    /// Encodes the same message for those of its mailboxes that still need it. Never for one that
    /// acknowledged it: the copy may outlive that ack record.
    pub(crate) fn copy_to(&self, mailboxes: &[u64], out: &mut Vec<u8>) {
        let fields = MessageFields {
            seq: self.seq,
            install_id: self.install_id,
            send_seq: self.send_seq,
            message_number: self.message_number,
            sent_at_ms: self.sent_at_ms,
            expires_at_ms: self.expires_at_ms,
            sender: self.sender,
            urgent: self.urgent,
            user: self.user,
            device: self.device,
            group: self.group,
        };
        fields.put(mailboxes.iter().copied(), self.envelope, out);
    }

    /// `record` holds the bytes of this view.
    pub(super) fn share(&self, record: &Bytes) -> StoredMessage {
        let text = |text: &str| Text(record.slice_ref(text.as_bytes()));
        StoredMessage {
            from_user: text(self.user),
            from_device: text(self.device),
            install_id: InstallId(self.install_id),
            send_seq: SendSeq(self.send_seq),
            message_number: MessageNumber(self.message_number),
            sent_at_ms: self.sent_at_ms,
            expires_at_ms: self.expires_at_ms,
            urgent: self.urgent,
            group: (!self.group.is_empty()).then(|| text(self.group)),
            envelope: record.slice_ref(self.envelope),
        }
    }
}

impl ReceiptView<'_> {
    pub(super) fn to_record(self) -> Option<ReceiptRecord> {
        let group = if self.group.is_empty() { None } else { Some(UserId::new(self.group).ok()?) };
        Some(ReceiptRecord {
            peer: address(self.user, self.device)?,
            group,
            install_id: InstallId(self.install_id),
            up_to_send_seq: SendSeq(self.up_to_send_seq),
        })
    }
}

impl DeviceView<'_> {
    pub(crate) fn to_record(self) -> Option<DeviceRecord> {
        Some(DeviceRecord {
            address: address(self.user, self.device)?,
            mailbox: MailboxId(self.mailbox),
            created_unix_ms: self.created_unix_ms,
        })
    }
}

pub(super) fn parse_message(mut fields: Fields<'_>, flags: u16) -> Option<MessageView<'_>> {
    let [seq, install_id, send_seq, message_number, sent_at_ms, expires_at_ms] = fields.u64s()?;
    let sender = fields.u32()?;
    let count = usize::from(u16::from_le_bytes(fields.array()?));
    if count == 0 || count > MAILBOXES_PER_RECORD_MAX {
        return None;
    }
    let (mailboxes, _) = fields.take(8 * count)?.as_chunks();
    let [user, device, group] = fields.texts()?;
    Some(MessageView {
        seq,
        install_id,
        send_seq,
        message_number,
        sent_at_ms,
        expires_at_ms,
        sender,
        urgent: flags & 1 != 0,
        mailboxes,
        user,
        device,
        group,
        envelope: fields.0,
    })
}

pub(super) fn parse_ack(mut fields: Fields<'_>) -> Option<View<'_>> {
    let [mailbox, up_to] = fields.u64s()?;
    fields.0.is_empty().then_some(View::Ack { mailbox, up_to })
}

pub(super) fn parse_clock(mut fields: Fields<'_>) -> Option<View<'_>> {
    let [unix_ms] = fields.u64s()?;
    fields.0.is_empty().then_some(View::Clock { unix_ms })
}

pub(super) fn parse_receipt(mut fields: Fields<'_>) -> Option<ReceiptView<'_>> {
    let [mailbox, seq, slot, install_id, up_to_send_seq] = fields.u64s()?;
    let [user, device, group] = fields.texts()?;
    fields.0.is_empty().then_some(ReceiptView {
        mailbox,
        seq,
        slot,
        install_id,
        up_to_send_seq,
        user,
        device,
        group,
    })
}

pub(super) fn parse_gap(mut fields: Fields<'_>) -> Option<GapView<'_>> {
    let [mailbox, seq, replaces] = fields.u64s()?;
    let [code] = fields.array()?;
    let reason = GapReason::from_code(code)?;
    let [group] = fields.texts()?;
    fields.0.is_empty().then_some(GapView { mailbox, seq, replaces, reason, group })
}

pub(super) fn parse_device(mut fields: Fields<'_>) -> Option<DeviceView<'_>> {
    let [mailbox, created_unix_ms] = fields.u64s()?;
    let [user, device] = fields.texts()?;
    fields.0.is_empty().then_some(DeviceView { mailbox, created_unix_ms, user, device })
}

pub(crate) fn address(user: &str, device: &str) -> Option<DeviceAddress> {
    Some(DeviceAddress { user: UserId::new(user).ok()?, device: DeviceId::new(device).ok()? })
}
