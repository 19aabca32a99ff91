//! Records to bytes.

use ringpost_protocol::id::UserId;

use super::{
    DeviceRecord, KIND_ACK, KIND_DEVICE, KIND_EXPIRY_CLOCK, KIND_GAP, KIND_MESSAGE, KIND_RECEIPT,
    NewGap, NewMessage, RECORD_ALIGN, RECORD_HEAD_BYTES, RECORD_VERSION, ReceiptRecord, checksum,
};

pub(crate) fn message_bytes(message: &NewMessage<'_>) -> usize {
    let texts = message.from.user.as_str().len()
        + message.from.device.as_str().len()
        + message.group.map_or(0, str::len);
    padded(MESSAGE_FIXED_BYTES + 8 * message.mailboxes.len() + texts + message.envelope.len())
}

pub(crate) fn put_message(message: &NewMessage<'_>, seq: u64, sender: u32, out: &mut Vec<u8>) {
    let fields = MessageFields {
        seq,
        install_id: message.install_id.0,
        send_seq: message.send_seq.0,
        message_number: message.message_number.0,
        sent_at_ms: message.sent_at_ms,
        expires_at_ms: message.expires_at_ms,
        sender,
        urgent: message.urgent,
        user: message.from.user.as_str(),
        device: message.from.device.as_str(),
        group: message.group.unwrap_or_default(),
    };
    fields.put(message.mailboxes.iter().map(|id| id.0), message.envelope, out);
}

pub(crate) fn put_ack(mailbox: u64, up_to: u64, out: &mut Vec<u8>) {
    let start = begin(KIND_ACK, 0, out);
    put_u64(mailbox, out);
    put_u64(up_to, out);
    end(start, out);
}

pub(crate) fn put_clock(unix_ms: u64, out: &mut Vec<u8>) {
    let start = begin(KIND_EXPIRY_CLOCK, 0, out);
    put_u64(unix_ms, out);
    end(start, out);
}

pub(crate) fn receipt_bytes(receipt: &ReceiptRecord) -> usize {
    let group = receipt.group.as_ref().map_or(0, |group| group.as_str().len());
    let peer = receipt.peer.user.as_str().len() + receipt.peer.device.as_str().len();
    padded(RECEIPT_FIXED_BYTES + peer + group)
}

pub(crate) fn put_receipt(
    mailbox: u64,
    seq: u64,
    slot: u64,
    receipt: &ReceiptRecord,
    out: &mut Vec<u8>,
) {
    let start = begin(KIND_RECEIPT, 0, out);
    let group = receipt.group.as_ref().map_or("", UserId::as_str);
    for value in [mailbox, seq, slot, receipt.install_id.0, receipt.up_to_send_seq.0] {
        put_u64(value, out);
    }
    put_texts(&[receipt.peer.user.as_str(), receipt.peer.device.as_str(), group], out);
    end(start, out);
}

pub(crate) fn gap_bytes(group: &str) -> usize {
    padded(RECORD_HEAD_BYTES + 3 * 8 + 1 + 1 + group.len())
}

pub(crate) fn put_gap(mailbox: u64, seq: u64, gap: NewGap<'_>, out: &mut Vec<u8>) {
    let start = begin(KIND_GAP, 0, out);
    for value in [mailbox, seq, gap.replaces] {
        put_u64(value, out);
    }
    out.push(gap.reason.code());
    put_texts(&[gap.group], out);
    end(start, out);
}

pub(crate) fn device_bytes(device: &DeviceRecord) -> usize {
    let address = &device.address;
    let texts = address.user.as_str().len() + address.device.as_str().len();
    padded(RECORD_HEAD_BYTES + 2 * 8 + 2 + texts)
}

pub(crate) fn put_device(device: &DeviceRecord, out: &mut Vec<u8>) {
    let start = begin(KIND_DEVICE, 0, out);
    put_u64(device.mailbox.0, out);
    put_u64(device.created_unix_ms, out);
    put_texts(&[device.address.user.as_str(), device.address.device.as_str()], out);
    end(start, out);
}

pub(super) struct MessageFields<'a> {
    pub(super) seq: u64,
    pub(super) install_id: u64,
    pub(super) send_seq: u64,
    pub(super) message_number: u64,
    pub(super) sent_at_ms: u64,
    pub(super) expires_at_ms: u64,
    pub(super) sender: u32,
    pub(super) urgent: bool,
    pub(super) user: &'a str,
    pub(super) device: &'a str,
    pub(super) group: &'a str,
}

impl MessageFields<'_> {
    pub(super) fn put(
        &self,
        mailboxes: impl ExactSizeIterator<Item = u64>,
        envelope: &[u8],
        out: &mut Vec<u8>,
    ) {
        let start = begin(KIND_MESSAGE, u16::from(self.urgent), out);
        let numbers = [
            self.seq,
            self.install_id,
            self.send_seq,
            self.message_number,
            self.sent_at_ms,
            self.expires_at_ms,
        ];
        for value in numbers {
            put_u64(value, out);
        }
        out.extend_from_slice(&self.sender.to_le_bytes());
        let count = u16::try_from(mailboxes.len()).expect("at most MAILBOXES_PER_RECORD_MAX");
        out.extend_from_slice(&count.to_le_bytes());
        for mailbox in mailboxes {
            put_u64(mailbox, out);
        }
        put_texts(&[self.user, self.device, self.group], out);
        out.extend_from_slice(envelope);
        end(start, out);
    }
}

fn begin(kind: u8, flags: u16, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[kind, RECORD_VERSION]);
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    start
}

/// The length is without the padding that follows.
fn end(start: usize, out: &mut Vec<u8>) {
    let record = &mut out[start..];
    let length = u32::try_from(record.len()).expect("at most RECORD_BYTES_MAX");
    record[4..8].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(record);
    record[8..12].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + padded(out.len() - start), 0);
}

/// Bytes that a record of `length` occupies.
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(RECORD_ALIGN)
}

fn put_u64(value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_le_bytes());
}

/// Lengths first, one byte each, then the texts: ids have at most 128 bytes.
fn put_texts(texts: &[&str], out: &mut Vec<u8>) {
    for text in texts {
        out.push(u8::try_from(text.len()).expect("ids have at most 128 bytes"));
    }
    for text in texts {
        out.extend_from_slice(text.as_bytes());
    }
}

pub(crate) const ACK_BYTES: usize = (RECORD_HEAD_BYTES + 2 * 8).next_multiple_of(RECORD_ALIGN);
pub(crate) const CLOCK_BYTES: usize = (RECORD_HEAD_BYTES + 8).next_multiple_of(RECORD_ALIGN);
pub(super) const MESSAGE_FIXED_BYTES: usize = RECORD_HEAD_BYTES + 6 * 8 + 4 + 2 + 3;
const RECEIPT_FIXED_BYTES: usize = RECORD_HEAD_BYTES + 5 * 8 + 3;
