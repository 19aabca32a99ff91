//! Records: what the log holds, and their bytes. Knows no position and no batch.

use std::ops::Deref;

use bytes::Bytes;
use ringpost_protocol::id::{
    DeviceAddress, DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, UserId,
};

use crate::limits::{MAILBOXES_PER_RECORD_MAX, RECORD_BYTES_MAX};

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
pub struct Text(Bytes);

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

/// The part of a record that is the same for all kinds:
/// kind u8, version u8, flags u16, length u32 (of the whole record), CRC32C u32 of the rest.
///
/// The checksum knows no position, so that a record can be verified alone; that it is the
/// expected one is seen by its seq, which is unique in the store.
#[derive(Clone, Copy)]
pub(crate) struct RawRecord<'a> {
    pub(crate) kind: u8,
    pub(crate) version: u8,
    pub(crate) bytes: &'a [u8],
}

/// A parsed record that borrows the batch.
#[derive(Clone, Copy)]
pub(crate) enum View<'a> {
    Message(MessageView<'a>),
    Receipt(ReceiptView<'a>),
    Gap(GapView<'a>),
    Device(DeviceView<'a>),
    Ack { mailbox: u64, up_to: u64 },
}

#[derive(Clone, Copy)]
pub(crate) struct MessageView<'a> {
    pub(crate) seq: u64,
    install_id: u64,
    send_seq: u64,
    message_number: u64,
    sent_at_ms: u64,
    expires_at_ms: u64,
    /// Hash of the sender's address, so that recovery need not compute it.
    pub(crate) sender: u32,
    urgent: bool,
    mailboxes: &'a [[u8; 8]],
    user: &'a str,
    device: &'a str,
    group: &'a str,
    envelope: &'a [u8],
}

#[derive(Clone, Copy)]
pub(crate) struct ReceiptView<'a> {
    pub(crate) mailbox: u64,
    pub(crate) seq: u64,
    /// Keyed hash of (peer, group, install): what a later receipt replaces.
    pub(crate) slot: u64,
    install_id: u64,
    up_to_send_seq: u64,
    user: &'a str,
    device: &'a str,
    group: &'a str,
}

#[derive(Clone, Copy)]
pub(crate) struct GapView<'a> {
    pub(crate) mailbox: u64,
    pub(crate) seq: u64,
    pub(crate) reason: GapReason,
    group: &'a str,
}

#[derive(Clone, Copy)]
pub(crate) struct DeviceView<'a> {
    mailbox: u64,
    created_unix_ms: u64,
    user: &'a str,
    device: &'a str,
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
        let (bytes, rest) = bytes.split_at(length);
        Ok((Self { kind, version, bytes }, rest))
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
            KIND_EXPIRY_CLOCK => "expiry clock, reserved",
            _ => "no known type",
        }
    }
}

impl<'a> MessageView<'a> {
    pub(crate) fn mailboxes(&self) -> impl ExactSizeIterator<Item = u64> + 'a {
        self.mailboxes.iter().map(|id| u64::from_le_bytes(*id))
    }

    pub(crate) fn copy_bytes(&self, mailboxes: usize) -> usize {
        let texts = self.user.len() + self.device.len() + self.group.len();
        MESSAGE_FIXED_BYTES + 8 * mailboxes + texts + self.envelope.len()
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
    fn share(&self, record: &Bytes) -> StoredMessage {
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
    fn to_record(self) -> Option<ReceiptRecord> {
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

/// Reads the one record in `record` for `mailbox` and `seq`; `None` when the bytes are not that
/// record, whole and unharmed.
pub(crate) fn read_entry(record: &Bytes, mailbox: u64, seq: u64) -> Option<StoredRecord> {
    let (raw, rest) = RawRecord::split(record).ok()?;
    if !rest.is_empty() || !raw.verify() {
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

pub(crate) fn message_bytes(message: &NewMessage<'_>) -> usize {
    let texts = message.from.user.as_str().len()
        + message.from.device.as_str().len()
        + message.group.map_or(0, str::len);
    MESSAGE_FIXED_BYTES + 8 * message.mailboxes.len() + texts + message.envelope.len()
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

pub(crate) fn receipt_bytes(receipt: &ReceiptRecord) -> usize {
    RECEIPT_FIXED_BYTES
        + receipt.peer.user.as_str().len()
        + receipt.peer.device.as_str().len()
        + receipt.group.as_ref().map_or(0, |group| group.as_str().len())
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
    RECORD_HEAD_BYTES + 2 * 8 + 1 + 1 + group.len()
}

pub(crate) fn put_gap(mailbox: u64, seq: u64, reason: GapReason, group: &str, out: &mut Vec<u8>) {
    let start = begin(KIND_GAP, 0, out);
    put_u64(mailbox, out);
    put_u64(seq, out);
    out.push(reason.code());
    put_texts(&[group], out);
    end(start, out);
}

pub(crate) fn device_bytes(device: &DeviceRecord) -> usize {
    let address = &device.address;
    RECORD_HEAD_BYTES + 2 * 8 + 2 + address.user.as_str().len() + address.device.as_str().len()
}

pub(crate) fn put_device(device: &DeviceRecord, out: &mut Vec<u8>) {
    let start = begin(KIND_DEVICE, 0, out);
    put_u64(device.mailbox.0, out);
    put_u64(device.created_unix_ms, out);
    put_texts(&[device.address.user.as_str(), device.address.device.as_str()], out);
    end(start, out);
}

impl GapReason {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Full => 1,
            Self::Expired => 2,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Full),
            2 => Some(Self::Expired),
            _ => None,
        }
    }
}

struct MessageFields<'a> {
    seq: u64,
    install_id: u64,
    send_seq: u64,
    message_number: u64,
    sent_at_ms: u64,
    expires_at_ms: u64,
    sender: u32,
    urgent: bool,
    user: &'a str,
    device: &'a str,
    group: &'a str,
}

impl MessageFields<'_> {
    fn put(
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

fn end(start: usize, out: &mut [u8]) {
    let record = &mut out[start..];
    let length = u32::try_from(record.len()).expect("at most RECORD_BYTES_MAX");
    record[4..8].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(record);
    record[8..12].copy_from_slice(&crc.to_le_bytes());
}

/// Over everything but itself.
fn checksum(record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&record[..8]), &record[RECORD_HEAD_BYTES..])
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

fn parse_message(mut fields: Fields<'_>, flags: u16) -> Option<MessageView<'_>> {
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

fn parse_ack(mut fields: Fields<'_>) -> Option<View<'_>> {
    let [mailbox, up_to] = fields.u64s()?;
    fields.0.is_empty().then_some(View::Ack { mailbox, up_to })
}

fn parse_receipt(mut fields: Fields<'_>) -> Option<ReceiptView<'_>> {
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

fn parse_gap(mut fields: Fields<'_>) -> Option<GapView<'_>> {
    let [mailbox, seq] = fields.u64s()?;
    let [code] = fields.array()?;
    let reason = GapReason::from_code(code)?;
    let [group] = fields.texts()?;
    fields.0.is_empty().then_some(GapView { mailbox, seq, reason, group })
}

fn parse_device(mut fields: Fields<'_>) -> Option<DeviceView<'_>> {
    let [mailbox, created_unix_ms] = fields.u64s()?;
    let [user, device] = fields.texts()?;
    fields.0.is_empty().then_some(DeviceView { mailbox, created_unix_ms, user, device })
}

fn address(user: &str, device: &str) -> Option<DeviceAddress> {
    Some(DeviceAddress { user: UserId::new(user).ok()?, device: DeviceId::new(device).ok()? })
}

/// Reads little-endian fields off the front.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*front)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64s<const N: usize>(&mut self) -> Option<[u64; N]> {
        let mut values = [0; N];
        for value in &mut values {
            *value = u64::from_le_bytes(self.array()?);
        }
        Some(values)
    }

    fn texts<const N: usize>(&mut self) -> Option<[&'a str; N]> {
        let lengths: [u8; N] = self.array()?;
        let mut texts = [""; N];
        for (text, length) in texts.iter_mut().zip(lengths) {
            *text = std::str::from_utf8(self.take(usize::from(length))?).ok()?;
        }
        Some(texts)
    }
}

const RECORD_VERSION: u8 = 1;
const KIND_MESSAGE: u8 = 1;
const KIND_ACK: u8 = 2;
const KIND_RECEIPT: u8 = 3;
const KIND_GAP: u8 = 4;
const KIND_DEVICE: u8 = 5;
const KIND_LIST_VERSION: u8 = 6;
const KIND_EXPIRY_CLOCK: u8 = 7;

const RECORD_HEAD_BYTES: usize = 12;
pub(crate) const ACK_BYTES: usize = RECORD_HEAD_BYTES + 2 * 8;
const MESSAGE_FIXED_BYTES: usize = RECORD_HEAD_BYTES + 6 * 8 + 4 + 2 + 3;
const RECEIPT_FIXED_BYTES: usize = RECORD_HEAD_BYTES + 5 * 8 + 3;
