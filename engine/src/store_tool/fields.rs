//! The fields of records, as tools show them.

use ringpost_protocol::id::MailboxId;
use ringpost_storage::inspect::{self, RecordContent, RecordFound};
use ringpost_storage::{SegmentId, Store};
use serde_json::{Value, json};

/// What a record says, by kind; of an envelope only its length.
pub(super) fn fields(record: &RecordFound<'_>, full_ids: bool) -> Value {
    let id = |text: &str| id(text, full_ids);
    let hex = |mailbox: u64| format!("{mailbox:016x}");
    match &record.content {
        Some(RecordContent::Message {
            seq,
            user,
            device,
            group,
            install_id,
            send_seq,
            message_number,
            sent_at_ms,
            expires_at_ms,
            is_urgent,
            mailboxes,
            envelope_bytes,
        }) => json!({
            "seq": seq.to_string(),
            "user": id(user),
            "device": id(device),
            "group": id(group),
            "install_id": hex(*install_id),
            "send_seq": send_seq.to_string(),
            "message_number": message_number.to_string(),
            "sent_at_ms": sent_at_ms,
            "expires_at_ms": expires_at_ms,
            "is_urgent": is_urgent,
            "mailboxes": mailboxes.iter().map(|id| hex(*id)).collect::<Vec<_>>(),
            "envelope_bytes": envelope_bytes,
        }),
        Some(RecordContent::Ack { mailbox, up_to }) => {
            json!({"mailbox": hex(*mailbox), "up_to": up_to.to_string()})
        }
        Some(RecordContent::Receipt {
            mailbox,
            seq,
            slot,
            user,
            device,
            group,
            install_id,
            up_to_send_seq,
        }) => json!({
            "mailbox": hex(*mailbox),
            "seq": seq.to_string(),
            "slot": hex(*slot),
            "user": id(user),
            "device": id(device),
            "group": id(group),
            "install_id": hex(*install_id),
            "up_to_send_seq": up_to_send_seq.to_string(),
        }),
        Some(RecordContent::Gap { mailbox, seq, replaces, reason, group }) => json!({
            "mailbox": hex(*mailbox),
            "seq": seq.to_string(),
            "replaces": replaces.to_string(),
            "reason": format!("{reason:?}").to_lowercase(),
            "group": id(group),
        }),
        Some(RecordContent::Device { mailbox, created_unix_ms, user, device }) => json!({
            "mailbox": hex(*mailbox),
            "created_unix_ms": created_unix_ms,
            "user": id(user),
            "device": id(device),
        }),
        Some(RecordContent::Clock { unix_ms }) => json!({"clock_ms": unix_ms}),
        None => json!({}),
    }
}

/// An id of a user, device or group: two characters and the length, as in logs, unless `full`.
pub(super) fn id(text: &str, full: bool) -> String {
    if full || text.is_empty() {
        return text.to_owned();
    }
    let start: String = text.chars().take(2).collect();
    format!("{start}..({})", text.len())
}

/// Mailboxes that still need the record; `None` for kinds that are in no mailbox.
pub(super) fn live_mailboxes(
    store: &Store,
    record: &RecordFound<'_>,
    segment: SegmentId,
) -> Option<usize> {
    let (seq, mailboxes) = match record.content.as_ref()? {
        RecordContent::Message { seq, mailboxes, .. } => (*seq, mailboxes.clone()),
        RecordContent::Receipt { seq, mailbox, .. } | RecordContent::Gap { seq, mailbox, .. } => {
            (*seq, vec![*mailbox])
        }
        RecordContent::Ack { .. } | RecordContent::Device { .. } | RecordContent::Clock { .. } => {
            return None;
        }
    };
    let is_live = |mailbox: &&u64| {
        let mailbox = MailboxId(**mailbox);
        inspect::is_live(store, mailbox, seq, segment, record.offset)
    };
    Some(mailboxes.iter().filter(is_live).count())
}

/// Texts without their quotes.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
