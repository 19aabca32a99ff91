//! Frames of the server: each function appends one whole frame, length included, to `out`.
//!
//! What answers or carries a message is written by hand: no intermediate struct, no allocation but
//! the growth of `out`, and an envelope is copied once. The rest uses the generated code.

use prost::Message;

use crate::fault::PeerFault;
use crate::field::{
    bytes_field_bytes, fixed64_field_bytes, nested_field_bytes, put_bytes_field, put_fixed64_field,
    put_nested_head, put_varint_field, varint_field_bytes,
};
use crate::frame::put_length;
use crate::id::{DeviceAddress, InstallId, MessageNumber, SendSeq, Seq};
use crate::message::{ErrorCode, GapReason, GoAwayReason, Outcome, Welcome};
use crate::wire::{self, server_frame::Frame};

/// Everything of a Deliver but its envelope.
#[derive(Clone, Copy, Debug)]
pub struct DeliverHead<'a> {
    pub seq: Seq,
    pub from_user: &'a str,
    pub from_device: &'a str,
    pub install_id: InstallId,
    pub send_seq: SendSeq,
    pub message_number: MessageNumber,
    pub sent_at_ms: u64,
    pub group: Option<&'a str>,
    pub urgent: bool,
}

/// A receipt: `peer` has acknowledged what `install_id` sent up to a number, except what was
/// skipped for that device, rejected or expired.
#[derive(Clone, Copy, Debug)]
pub struct DeliveredHead<'a> {
    pub seq: Seq,
    pub peer: &'a DeviceAddress,
    pub group: Option<&'a str>,
    pub install_id: InstallId,
    pub up_to_send_seq: SendSeq,
}

/// Opens the session.
pub fn put_welcome(out: &mut Vec<u8>, welcome: &Welcome) {
    let frame = wire::Welcome {
        mailbox_id: welcome.mailbox_id.0,
        heartbeat_ms: welcome.heartbeat_ms,
        server_time_ms: welcome.server_time_ms,
        limits: Some(welcome.limits),
        capabilities: welcome.capabilities,
    };
    put_frame(out, Frame::Welcome(frame));
}

/// Answers a Send.
pub fn put_outcome(out: &mut Vec<u8>, send_seq: SendSeq, outcome: &Outcome) {
    match outcome {
        Outcome::Accepted { server_time_ms, skipped } if skipped.is_empty() => {
            let body_bytes = varint_field_bytes(send_seq.0) + varint_field_bytes(*server_time_ms);
            put_head(out, ACCEPTED, body_bytes);
            put_varint_field(out, 1, send_seq.0);
            put_varint_field(out, 2, *server_time_ms);
        }
        Outcome::Accepted { server_time_ms, skipped } => {
            let skipped_devices = skipped.iter().map(|(user, device, reason)| {
                let (user, device) = (user.as_str().to_owned(), device.as_str().to_owned());
                wire::SkippedDevice { user, device, reason: *reason as i32 }
            });
            let frame = wire::Accepted {
                send_seq: send_seq.0,
                server_time_ms: *server_time_ms,
                skipped_devices: skipped_devices.collect(),
            };
            put_frame(out, Frame::Accepted(frame));
        }
        Outcome::Rejected { code, retry_after_ms } => {
            let frame = wire::Rejected {
                send_seq: send_seq.0,
                code: *code as i32,
                retry_after_ms: *retry_after_ms,
            };
            put_frame(out, Frame::Rejected(frame));
        }
    }
}

/// Delivers a message. This is the one copy of the envelope on its way to the connection.
pub fn put_deliver(out: &mut Vec<u8>, head: &DeliverHead<'_>, envelope: &[u8]) {
    let group = head.group.unwrap_or_default();
    // Left out where it says nothing new.
    let message_number =
        if head.message_number.0 == head.send_seq.0 { 0 } else { head.message_number.0 };
    let body_bytes = varint_field_bytes(head.seq.0)
        + bytes_field_bytes(head.from_user.len())
        + bytes_field_bytes(head.from_device.len())
        + fixed64_field_bytes(head.install_id.0)
        + varint_field_bytes(head.send_seq.0)
        + varint_field_bytes(head.sent_at_ms)
        + bytes_field_bytes(group.len())
        + varint_field_bytes(u64::from(head.urgent))
        + varint_field_bytes(message_number)
        + bytes_field_bytes(envelope.len());
    put_head(out, DELIVER, body_bytes);
    put_varint_field(out, 1, head.seq.0);
    put_bytes_field(out, 2, head.from_user.as_bytes());
    put_bytes_field(out, 3, head.from_device.as_bytes());
    put_fixed64_field(out, 4, head.install_id.0);
    put_varint_field(out, 5, head.send_seq.0);
    put_varint_field(out, 6, head.sent_at_ms);
    put_bytes_field(out, 7, group.as_bytes());
    put_varint_field(out, 8, u64::from(head.urgent));
    put_varint_field(out, 9, message_number);
    put_bytes_field(out, 15, envelope);
}

/// Tells that messages are missing.
pub fn put_gap(out: &mut Vec<u8>, seq: Seq, reason: GapReason, group: Option<&str>) {
    let group = group.unwrap_or_default();
    let reason = reason as u64;
    let body_bytes =
        varint_field_bytes(seq.0) + bytes_field_bytes(group.len()) + varint_field_bytes(reason);
    put_head(out, GAP, body_bytes);
    put_varint_field(out, 1, seq.0);
    put_bytes_field(out, 2, group.as_bytes());
    put_varint_field(out, 3, reason);
}

/// Tells a sender how far a device of a recipient has acknowledged.
pub fn put_delivered(out: &mut Vec<u8>, head: &DeliveredHead<'_>) {
    let (user, device) = (head.peer.user.as_str(), head.peer.device.as_str());
    let group = head.group.unwrap_or_default();
    let body_bytes = varint_field_bytes(head.seq.0)
        + bytes_field_bytes(user.len())
        + bytes_field_bytes(device.len())
        + bytes_field_bytes(group.len())
        + varint_field_bytes(head.up_to_send_seq.0)
        + fixed64_field_bytes(head.install_id.0);
    put_head(out, DELIVERED, body_bytes);
    put_varint_field(out, 1, head.seq.0);
    put_bytes_field(out, 2, user.as_bytes());
    put_bytes_field(out, 3, device.as_bytes());
    put_bytes_field(out, 4, group.as_bytes());
    put_varint_field(out, 5, head.up_to_send_seq.0);
    put_fixed64_field(out, 6, head.install_id.0);
}

/// Tells that all that had waited has been sent.
pub fn put_caught_up(out: &mut Vec<u8>) {
    put_head(out, CAUGHT_UP, 0);
}

/// Answers a Ping.
pub fn put_pong(out: &mut Vec<u8>) {
    put_head(out, PONG, 0);
}

/// Announces the end of the connection; the caller flushes and closes.
pub fn put_go_away(
    out: &mut Vec<u8>,
    reason: GoAwayReason,
    reconnect_after_ms: u64,
    other_address: Option<&str>,
) {
    let frame = wire::GoAway {
        reason: reason as i32,
        reconnect_after_ms,
        other_address: other_address.unwrap_or_default().to_owned(),
    };
    put_frame(out, Frame::GoAway(frame));
}

/// Refuses something. `request_id` 0: it is no request.
pub fn put_error(out: &mut Vec<u8>, code: ErrorCode, text: &str, fatal: bool, request_id: u64) {
    let frame = wire::Error { code: code as i32, text: text.to_owned(), fatal, request_id };
    put_frame(out, Frame::Error(frame));
}

/// The last frame of a connection whose client broke the protocol.
pub fn put_fault(out: &mut Vec<u8>, fault: &PeerFault) {
    put_error(out, fault.code(), &fault.to_string(), true, 0);
}

/// Length of the frame, key and length of its one field; `body_bytes` bytes follow.
fn put_head(out: &mut Vec<u8>, number: u8, body_bytes: usize) {
    let frame_bytes = nested_field_bytes(body_bytes);
    out.reserve(frame_bytes + crate::limits::LENGTH_PREFIX_BYTES_MAX);
    put_length(out, frame_bytes);
    put_nested_head(out, number, body_bytes);
}

fn put_frame(out: &mut Vec<u8>, frame: Frame) {
    let frame = wire::ServerFrame { frame: Some(frame) };
    put_length(out, frame.encoded_len());
    frame.encode_raw(out);
}

// Field numbers of ServerFrame.
const ACCEPTED: u8 = 2;
const DELIVER: u8 = 4;
const GAP: u8 = 5;
const CAUGHT_UP: u8 = 6;
const DELIVERED: u8 = 7;
const PONG: u8 = 8;
