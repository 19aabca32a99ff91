//! Records: what the log holds, and their bytes. Knows no position and no batch.

mod content;
mod encode;
mod fields;
mod view;

use bytes::Bytes;
use ringpost_protocol::limits::USER_ID_BYTES_MAX;

use crate::limits::RECORD_BYTES_MAX;

pub(crate) use content::NewGap;
pub use content::{
    DeviceRecord, GapReason, NewMessage, ReceiptRecord, StoredMessage, StoredRecord, Text,
};
pub(crate) use encode::{
    ACK_BYTES, CLOCK_BYTES, device_bytes, gap_bytes, message_bytes, put_ack, put_clock, put_device,
    put_gap, put_message, put_receipt, receipt_bytes,
};
pub(crate) use fields::Fields;
pub(crate) use view::{MessageView, View, address};
use view::{parse_ack, parse_clock, parse_device, parse_gap, parse_message, parse_receipt};

/// The part of a record that is the same for all kinds:
/// kind u8, version u8, flags u16, length u32 (of the record without the zeros that fill it up to
/// a multiple of [`RECORD_ALIGN`]), CRC32C u32 of the rest.
///
/// The checksum knows no position, so that a record can be verified alone; that it is the
/// expected one is seen by its seq, which is unique in the store.
#[derive(Clone, Copy)]
pub(crate) struct RawRecord<'a> {
    pub(crate) kind: u8,
    pub(crate) version: u8,
    /// Without the padding.
    pub(crate) bytes: &'a [u8],
    /// With the padding.
    padded: &'a [u8],
}

/// Why a record whose checksum is right cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RecordFault {
    Malformed,
    Unknown,
}

impl<'a> RawRecord<'a> {
    /// The first record of `bytes`, and what follows it.
    pub(crate) fn split(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), RecordFault> {
        let mut fields = Fields(bytes);
        let [kind, version] = fields.array().ok_or(RecordFault::Malformed)?;
        let _flags: [u8; 2] = fields.array().ok_or(RecordFault::Malformed)?;
        let length = usize::try_from(fields.u32().ok_or(RecordFault::Malformed)?)
            .map_err(|_| RecordFault::Malformed)?;
        if length < RECORD_HEAD_BYTES || length > bytes.len().min(RECORD_BYTES_MAX) {
            return Err(RecordFault::Malformed);
        }
        let whole = encode::padded(length);
        let (padded, rest) = bytes.split_at_checked(whole).ok_or(RecordFault::Malformed)?;
        Ok((Self { kind, version, bytes: &padded[..length], padded }, rest))
    }

    /// Bytes that it occupies in its batch.
    pub(crate) fn length(&self) -> usize {
        self.padded.len()
    }

    /// Appends a copy of itself.
    pub(crate) fn copy_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.padded);
    }

    /// Whether the record's own checksum is right.
    pub(crate) fn verify(&self) -> bool {
        self.bytes[8..12] == checksum(self.bytes).to_le_bytes()
    }

    pub(crate) fn parse(&self) -> Result<View<'a>, RecordFault> {
        if self.version != RECORD_VERSION {
            return Err(RecordFault::Unknown);
        }
        let flags = u16::from_le_bytes([self.bytes[2], self.bytes[3]]);
        let fields = Fields(&self.bytes[RECORD_HEAD_BYTES..]);
        let view = match self.kind {
            KIND_MESSAGE => parse_message(fields, flags).map(View::Message),
            KIND_ACK => parse_ack(fields),
            KIND_RECEIPT => parse_receipt(fields).map(View::Receipt),
            KIND_GAP => parse_gap(fields).map(View::Gap),
            KIND_DEVICE => parse_device(fields).map(View::Device),
            KIND_EXPIRY_CLOCK => parse_clock(fields),
            _ => return Err(RecordFault::Unknown),
        };
        view.ok_or(RecordFault::Malformed)
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            KIND_MESSAGE => "message",
            KIND_ACK => "ack",
            KIND_RECEIPT => "receipt",
            KIND_GAP => "gap",
            KIND_DEVICE => "device",
            KIND_LIST_VERSION => "roster or device-list version, reserved",
            KIND_EXPIRY_CLOCK => "expiry clock",
            _ => "no known type",
        }
    }
}

/// Reads the one record in `record` for `mailbox` and `seq`; `None` when the bytes are not that
/// record, whole and unharmed.
pub(crate) fn read_entry(record: &Bytes, mailbox: u64, seq: u64) -> Option<StoredRecord> {
    let (raw, _) = RawRecord::split(record).ok()?;
    if raw.verify() { read_own(record, mailbox, seq) } else { None }
}

/// The same for bytes that never left this process: their checksum is not looked at.
pub(crate) fn read_own(record: &Bytes, mailbox: u64, seq: u64) -> Option<StoredRecord> {
    let (raw, rest) = RawRecord::split(record).ok()?;
    if !rest.is_empty() {
        return None;
    }
    match raw.parse().ok()? {
        View::Message(view) if view.seq == seq && view.mailboxes().any(|id| id == mailbox) => {
            Some(StoredRecord::Message(view.share(record)))
        }
        View::Receipt(view) if view.seq == seq && view.mailbox == mailbox => {
            view.to_record().map(StoredRecord::Receipt)
        }
        View::Gap(view) if view.seq == seq && view.mailbox == mailbox => {
            let group =
                (!view.group.is_empty()).then(|| Text(record.slice_ref(view.group.as_bytes())));
            Some(StoredRecord::Gap { reason: view.reason, group })
        }
        _ => None,
    }
}

/// Over everything but itself.
fn checksum(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..8]), &record[RECORD_HEAD_BYTES..])
}

const RECORD_VERSION: u8 = 1;
const KIND_MESSAGE: u8 = 1;
const KIND_ACK: u8 = 2;
const KIND_RECEIPT: u8 = 3;
const KIND_GAP: u8 = 4;
const KIND_DEVICE: u8 = 5;
const KIND_LIST_VERSION: u8 = 6;
const KIND_EXPIRY_CLOCK: u8 = 7;

/// Records begin on multiples of this, so that the index keeps their places in few bits.
pub(crate) const RECORD_ALIGN: usize = 8;
/// The longest receipt; gaps are shorter.
pub(crate) const SMALL_RECORD_BYTES_MAX: usize =
    RECORD_HEAD_BYTES + 5 * 8 + 3 * (1 + USER_ID_BYTES_MAX);
const RECORD_HEAD_BYTES: usize = 12;
const _: () = assert!(crate::batch::BATCH_HEAD_BYTES.is_multiple_of(RECORD_ALIGN));
