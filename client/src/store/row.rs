//! Encoding of the database's values: protobuf, so that a later version may add fields.

use bytes::Bytes;
use prost::Message as _;
use ringpost_protocol::id::{DeviceAddress, DeviceId, IdFault, InstallId, SendSeq, UserId};
use ringpost_protocol::message::{GapReason, Recipient, RejectCode, SendBody, SkipReason};

use crate::event::{Gap, Message, NewSend, News, Receipt, Refused, SendId, SendOptions, Sent};
use crate::store::inbox::MarkKey;

/// A stored value that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowFault {
    #[error("stored value is not valid protobuf: {0}")]
    Encoding(#[from] prost::DecodeError),
    #[error("stored value has a bad identifier: {0}")]
    Id(#[from] IdFault),
    #[error("stored value lacks {0}")]
    Missing(&'static str),
    #[error("stored value has an unknown {0}")]
    Unknown(&'static str),
}

pub(super) fn encode_counters(counters: &CounterRow) -> Vec<u8> {
    counters.encode_to_vec()
}

pub(super) fn decode_counters(bytes: &[u8]) -> Result<CounterRow, RowFault> {
    Ok(CounterRow::decode(bytes)?)
}

pub(super) fn encode_send(send: &NewSend) -> Vec<u8> {
    let (shared, per_device) = match &send.body {
        SendBody::Shared(envelope) => (Some(envelope.clone()), Vec::new()),
        SendBody::PerDevice(list) => {
            let rows = list.iter().map(|(device, envelope)| DeviceEnvelopeRow {
                device: device.as_str().into(),
                envelope: envelope.clone(),
            });
            (None, rows.collect())
        }
    };
    let SendOptions { ttl_ms, urgent, roster_version, device_list_version } = send.options;
    let to = Some(recipient_row(&send.to));
    let row =
        SendRow { to, shared, per_device, ttl_ms, urgent, roster_version, device_list_version };
    row.encode_to_vec()
}

pub(super) fn decode_send(bytes: &[u8]) -> Result<NewSend, RowFault> {
    let row = SendRow::decode(bytes)?;
    let body = match row.shared {
        Some(envelope) => SendBody::Shared(envelope),
        None => {
            let list = row.per_device.into_iter();
            let list = list.map(|row| Ok((DeviceId::new(&row.device)?, row.envelope)));
            SendBody::PerDevice(list.collect::<Result<_, IdFault>>()?)
        }
    };
    let options = SendOptions {
        ttl_ms: row.ttl_ms,
        urgent: row.urgent,
        roster_version: row.roster_version,
        device_list_version: row.device_list_version,
    };
    Ok(NewSend { to: recipient(row.to)?, body, options })
}

pub(super) fn encode_news(news: &News) -> Vec<u8> {
    let kind = match news {
        News::Message(message) => NewsKind::Message(MessageRow {
            from: Some(address_row(&message.from)),
            install_id: message.install_id.0,
            send_seq: message.send_seq.0,
            sent_at_ms: message.sent_at_ms,
            group: group_row(message.group.as_ref()),
            urgent: message.urgent,
            envelope: message.envelope.clone(),
        }),
        News::Sent(sent) => NewsKind::Sent(SentRow {
            id: sent.id.0,
            send_seq: sent.send_seq.0,
            to: Some(recipient_row(&sent.to)),
            server_time_ms: sent.server_time_ms,
            skipped: sent.skipped.iter().map(skipped_row).collect(),
        }),
        News::Refused(refused) => NewsKind::Refused(RefusedRow {
            id: refused.id.0,
            to: Some(recipient_row(&refused.to)),
            code: refused.code as i32,
        }),
        News::Delivered(receipt) => NewsKind::Receipt(ReceiptRow {
            peer: Some(address_row(&receipt.peer)),
            group: group_row(receipt.group.as_ref()),
            up_to_send_seq: receipt.up_to_send_seq.0,
        }),
        News::Gap(gap) => NewsKind::Gap(GapRow {
            group: group_row(gap.group.as_ref()),
            reason: gap.reason as i32,
        }),
        News::Sealed(record) => NewsKind::Sealed(record.clone()),
    };
    NewsRow { kind: Some(kind) }.encode_to_vec()
}

pub(super) fn decode_news(bytes: &[u8]) -> Result<News, RowFault> {
    let kind = NewsRow::decode(bytes)?.kind.ok_or(RowFault::Missing("its kind"))?;
    Ok(match kind {
        NewsKind::Message(row) => News::Message(Message {
            from: address(row.from)?,
            install_id: InstallId(row.install_id),
            send_seq: SendSeq(row.send_seq),
            sent_at_ms: row.sent_at_ms,
            group: group(row.group)?,
            urgent: row.urgent,
            envelope: row.envelope,
        }),
        NewsKind::Sent(row) => News::Sent(Sent {
            id: SendId(row.id),
            send_seq: SendSeq(row.send_seq),
            to: recipient(row.to)?,
            server_time_ms: row.server_time_ms,
            skipped: row.skipped.into_iter().map(skipped).collect::<Result<_, _>>()?,
        }),
        NewsKind::Refused(row) => News::Refused(Refused {
            id: SendId(row.id),
            to: recipient(row.to)?,
            code: RejectCode::try_from(row.code).map_err(|_| RowFault::Unknown("code"))?,
        }),
        NewsKind::Receipt(row) => News::Delivered(Receipt {
            peer: address(row.peer)?,
            group: group(row.group)?,
            up_to_send_seq: SendSeq(row.up_to_send_seq),
        }),
        NewsKind::Gap(row) => News::Gap(Gap {
            group: group(row.group)?,
            reason: GapReason::try_from(row.reason).map_err(|_| RowFault::Unknown("reason"))?,
        }),
        NewsKind::Sealed(record) => News::Sealed(record),
    })
}

pub(super) fn mark_key(
    user: &str,
    device: &str,
    install_id: u64,
    group: &str,
) -> Result<MarkKey, RowFault> {
    let group = if group.is_empty() { None } else { Some(UserId::new(group)?) };
    let from = DeviceAddress { user: UserId::new(user)?, device: DeviceId::new(device)? };
    Ok(MarkKey { from, install_id: InstallId(install_id), group })
}

fn recipient_row(to: &Recipient) -> RecipientRow {
    let (id, is_group) = match to {
        Recipient::User(id) => (id, false),
        Recipient::Group(id) => (id, true),
    };
    RecipientRow { id: id.as_str().into(), is_group }
}

fn recipient(row: Option<RecipientRow>) -> Result<Recipient, RowFault> {
    let row = row.ok_or(RowFault::Missing("its recipient"))?;
    let id = UserId::new(&row.id)?;
    Ok(if row.is_group { Recipient::Group(id) } else { Recipient::User(id) })
}

fn address_row(address: &DeviceAddress) -> AddressRow {
    AddressRow { user: address.user.as_str().into(), device: address.device.as_str().into() }
}

fn address(row: Option<AddressRow>) -> Result<DeviceAddress, RowFault> {
    let row = row.ok_or(RowFault::Missing("an address"))?;
    Ok(DeviceAddress { user: UserId::new(&row.user)?, device: DeviceId::new(&row.device)? })
}

fn group_row(group: Option<&UserId>) -> Option<String> {
    group.map(|id| id.as_str().into())
}

fn group(row: Option<String>) -> Result<Option<UserId>, RowFault> {
    Ok(row.map(|id| UserId::new(&id)).transpose()?)
}

fn skipped_row((user, device, reason): &(UserId, DeviceId, SkipReason)) -> SkippedRow {
    let address = AddressRow { user: user.as_str().into(), device: device.as_str().into() };
    SkippedRow { address: Some(address), reason: *reason as i32 }
}

fn skipped(row: SkippedRow) -> Result<(UserId, DeviceId, SkipReason), RowFault> {
    let DeviceAddress { user, device } = address(row.address)?;
    let reason = SkipReason::try_from(row.reason).map_err(|_| RowFault::Unknown("reason"))?;
    Ok((user, device, reason))
}

/// The counters; one row.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct CounterRow {
    #[prost(fixed64, tag = "1")]
    pub(super) install_id: u64,
    #[prost(fixed64, tag = "2")]
    pub(super) mailbox_id: u64,
    #[prost(uint64, tag = "3")]
    pub(super) acked_up_to: u64,
    #[prost(uint64, tag = "4")]
    pub(super) next_send_id: u64,
    #[prost(uint64, tag = "5")]
    pub(super) next_send_seq: u64,
    #[prost(uint64, tag = "6")]
    pub(super) next_event_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SendRow {
    #[prost(message, optional, tag = "1")]
    to: Option<RecipientRow>,
    #[prost(bytes = "bytes", optional, tag = "2")]
    shared: Option<Bytes>,
    #[prost(message, repeated, tag = "3")]
    per_device: Vec<DeviceEnvelopeRow>,
    #[prost(uint64, tag = "4")]
    ttl_ms: u64,
    #[prost(bool, tag = "5")]
    urgent: bool,
    #[prost(uint64, tag = "6")]
    roster_version: u64,
    #[prost(uint64, tag = "7")]
    device_list_version: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeviceEnvelopeRow {
    #[prost(string, tag = "1")]
    device: String,
    #[prost(bytes = "bytes", tag = "2")]
    envelope: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RecipientRow {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "2")]
    is_group: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AddressRow {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(string, tag = "2")]
    device: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NewsRow {
    #[prost(oneof = "NewsKind", tags = "1, 2, 3, 4, 5, 6")]
    kind: Option<NewsKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum NewsKind {
    #[prost(message, tag = "1")]
    Message(MessageRow),
    #[prost(message, tag = "2")]
    Sent(SentRow),
    #[prost(message, tag = "3")]
    Refused(RefusedRow),
    #[prost(message, tag = "4")]
    Receipt(ReceiptRow),
    #[prost(message, tag = "5")]
    Gap(GapRow),
    #[prost(bytes = "bytes", tag = "6")]
    Sealed(Bytes),
}

#[derive(Clone, PartialEq, prost::Message)]
struct MessageRow {
    #[prost(message, optional, tag = "1")]
    from: Option<AddressRow>,
    #[prost(fixed64, tag = "2")]
    install_id: u64,
    #[prost(uint64, tag = "3")]
    send_seq: u64,
    #[prost(uint64, tag = "4")]
    sent_at_ms: u64,
    #[prost(string, optional, tag = "5")]
    group: Option<String>,
    #[prost(bool, tag = "6")]
    urgent: bool,
    #[prost(bytes = "bytes", tag = "7")]
    envelope: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SentRow {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    send_seq: u64,
    #[prost(message, optional, tag = "3")]
    to: Option<RecipientRow>,
    #[prost(uint64, tag = "4")]
    server_time_ms: u64,
    #[prost(message, repeated, tag = "5")]
    skipped: Vec<SkippedRow>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SkippedRow {
    #[prost(message, optional, tag = "1")]
    address: Option<AddressRow>,
    #[prost(int32, tag = "2")]
    reason: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RefusedRow {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, optional, tag = "2")]
    to: Option<RecipientRow>,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReceiptRow {
    #[prost(message, optional, tag = "1")]
    peer: Option<AddressRow>,
    #[prost(string, optional, tag = "2")]
    group: Option<String>,
    #[prost(uint64, tag = "3")]
    up_to_send_seq: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GapRow {
    #[prost(string, optional, tag = "1")]
    group: Option<String>,
    #[prost(int32, tag = "2")]
    reason: i32,
}
