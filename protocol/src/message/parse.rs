//! Client frames to typed requests: the server's way in.
//!
//! Send is read by hand, as slices of the frame: it is the hot path, and its lists are bounded
//! before anything is allocated for them. Frames that come once in a while use the generated code.

use bytes::Bytes;
use prost::Message;

use crate::fault::PeerFault;
use crate::field::{Fields, Value};
use crate::id::{DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq, UserId};
use crate::limits::{DEVICES_PER_USER_MAX, ENVELOPE_BYTES_MAX, TOKEN_BYTES_MAX, TTL_MS_MAX};
use crate::message::call::{is_call, parse_call};
use crate::message::{Hello, Mode, Recipient, Request, SendBody, SendRequest};
use crate::wire;

/// Parses the one field of a ClientFrame. Envelopes share the memory of `frame`.
pub fn parse_client_frame(frame: Bytes) -> Result<Request, PeerFault> {
    let mut fields = Fields::new(&frame);
    let (number, value) = fields.next()?.ok_or(PeerFault::FieldCount)?;
    if fields.next()?.is_some() {
        return Err(PeerFault::FieldCount);
    }
    let body = match value {
        Value::Bytes(body) => body,
        // Every known frame is a message; a wrong wire type is no other frame.
        _ if is_known(number) => return Err(PeerFault::Protobuf("frame is not a message")),
        _ => return Err(PeerFault::UnknownFrame(number)),
    };
    match number {
        HELLO => parse_hello(decode(body)?),
        SEND => Ok(Request::Send(parse_send(&frame, body)?)),
        ACK => {
            let ack: wire::Ack = decode(body)?;
            Ok(Request::Ack { up_to: Seq(ack.up_to_seq) })
        }
        MODE => Ok(Request::Mode(parse_mode(decode(body)?))),
        PING => decode::<wire::Ping>(body).map(|_| Request::Ping),
        TOKEN_RENEW => {
            let wire::TokenRenew { token } = decode(body)?;
            Ok(Request::TokenRenew { token: checked_token(token)? })
        }
        BYE => decode::<wire::Bye>(body).map(|_| Request::Bye),
        _ if is_call(number) => {
            let (request_id, call) = parse_call(&frame, number, body)?;
            Ok(Request::Call { request_id, call: Box::new(call) })
        }
        _ if is_unsupported(number) => {
            Ok(Request::Unsupported { request_id: parse_request_id(number, body)? })
        }
        _ => Err(PeerFault::UnknownFrame(number)),
    }
}

fn parse_hello(hello: wire::Hello) -> Result<Request, PeerFault> {
    if hello.install_id == 0 {
        return Err(PeerFault::FieldMissing("Hello.install_id"));
    }
    Ok(Request::Hello(Hello {
        token: checked_token(hello.token)?,
        device: device_id("Hello.device", &hello.device)?,
        install_id: InstallId(hello.install_id),
        mailbox_id: MailboxId(hello.mailbox_id),
        acked_up_to: Seq(hello.acked_up_to),
        mode: hello.mode.map(parse_mode).unwrap_or_default(),
        capabilities: hello.capabilities,
    }))
}

fn parse_mode(mode: wire::Mode) -> Mode {
    match mode.kind() {
        wire::ModeKind::Unspecified | wire::ModeKind::Foreground => Mode::Foreground,
        wire::ModeKind::Background => Mode::background(mode.interval_ms),
    }
}

fn checked_token(token: String) -> Result<String, PeerFault> {
    match token.len() {
        0 => Err(PeerFault::FieldMissing("token")),
        bytes if bytes > TOKEN_BYTES_MAX => Err(PeerFault::TokenTooLong(bytes)),
        _ => Ok(token),
    }
}

fn parse_send(frame: &Bytes, body: &[u8]) -> Result<SendRequest, PeerFault> {
    let (mut send_seq, mut ttl_ms, mut urgent, mut after_reject) = (0, 0, false, false);
    let (mut to, mut content, mut message_number) = (None, None, 0);
    let (mut roster_version, mut device_list_version) = (0, 0);
    let mut fields = Fields::new(body);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => send_seq = value.varint()?,
            2 => to = Some(Recipient::User(user_id("Send.user", value.text()?)?)),
            3 => to = Some(Recipient::Group(user_id("Send.group", value.text()?)?)),
            4 => ttl_ms = value.varint()?,
            5 => urgent = value.varint()? != 0,
            6 => after_reject = value.varint()? != 0,
            7 => {
                // A message field that comes twice is merged, by the rules of protobuf.
                let mut envelopes = match content.take() {
                    Some(SendBody::PerDevice(envelopes)) => envelopes,
                    _ => Vec::new(),
                };
                parse_envelopes(frame, value.bytes()?, &mut envelopes)?;
                content = Some(SendBody::PerDevice(envelopes));
            }
            8 => content = Some(SendBody::Shared(envelope(frame, value.bytes()?)?)),
            9 => message_number = value.varint()?,
            10 => roster_version = value.varint()?,
            11 => device_list_version = value.varint()?,
            _ => {}
        }
    }
    if send_seq == 0 {
        return Err(PeerFault::SendSeqZero);
    }
    let to = to.ok_or(PeerFault::FieldMissing("Send.to"))?;
    let body = content.ok_or(PeerFault::FieldMissing("Send.body"))?;
    if let SendBody::PerDevice(envelopes) = &body {
        if matches!(to, Recipient::Group(_)) {
            return Err(PeerFault::GroupPerDevice);
        }
        if envelopes.is_empty() {
            return Err(PeerFault::FieldMissing("Send.per_device.envelopes"));
        }
    }
    let ttl_ms = if ttl_ms == 0 { TTL_MS_MAX } else { ttl_ms.min(TTL_MS_MAX) };
    let message_number = MessageNumber(if message_number == 0 { send_seq } else { message_number });
    let send_seq = SendSeq(send_seq);
    Ok(SendRequest {
        send_seq,
        message_number,
        to,
        roster_version,
        device_list_version,
        body,
        ttl_ms,
        urgent,
        after_reject,
    })
}

fn parse_envelopes(
    frame: &Bytes,
    body: &[u8],
    envelopes: &mut Vec<(DeviceId, Bytes)>,
) -> Result<(), PeerFault> {
    let mut fields = Fields::new(body);
    while let Some((number, value)) = fields.next()? {
        if number != 1 {
            continue;
        }
        if envelopes.len() == DEVICES_PER_USER_MAX {
            return Err(PeerFault::TooManyDevices);
        }
        let (mut device, mut bytes) = ("", &[][..]);
        let mut entry = Fields::new(value.bytes()?);
        while let Some((number, value)) = entry.next()? {
            match number {
                1 => device = value.text()?,
                2 => bytes = value.bytes()?,
                _ => {}
            }
        }
        if envelopes.iter().any(|(known, _)| known.as_str() == device) {
            return Err(PeerFault::DeviceRepeated);
        }
        let device = device_id("Send.per_device.device", device)?;
        envelopes.push((device, envelope(frame, bytes)?));
    }
    Ok(())
}

/// A part of the frame as `Bytes` of its own, without a copy.
fn envelope(frame: &Bytes, part: &[u8]) -> Result<Bytes, PeerFault> {
    if part.len() > ENVELOPE_BYTES_MAX {
        return Err(PeerFault::EnvelopeTooLarge(part.len()));
    }
    Ok(frame.slice_ref(part))
}

/// Field 1 of a frame that is not served, where it is the request_id.
///
/// Read without decoding the rest: lists in it are not bounded yet, and nothing is allocated.
fn parse_request_id(number: u32, body: &[u8]) -> Result<u64, PeerFault> {
    let mut request_id = 0;
    let mut fields = Fields::new(body);
    while let Some((field, value)) = fields.next()? {
        if field == 1 && number != TYPING {
            request_id = value.varint()?;
        }
    }
    Ok(request_id)
}

fn user_id(field: &'static str, id: &str) -> Result<UserId, PeerFault> {
    UserId::new(id).map_err(|fault| PeerFault::Id { field, fault })
}

fn device_id(field: &'static str, id: &str) -> Result<DeviceId, PeerFault> {
    DeviceId::new(id).map_err(|fault| PeerFault::Id { field, fault })
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, PeerFault> {
    M::decode(body).map_err(|_| PeerFault::Protobuf("message does not decode"))
}

impl From<&'static str> for PeerFault {
    fn from(malformed: &'static str) -> Self {
        Self::Protobuf(malformed)
    }
}

fn is_known(number: u32) -> bool {
    (HELLO..=BYE).contains(&number) || is_call(number) || is_unsupported(number)
}

/// Presence, typing and media: in the schema, not served.
fn is_unsupported(number: u32) -> bool {
    matches!(number, 16..=19 | 40..=41)
}

// Field numbers of ClientFrame.
const HELLO: u32 = 1;
const SEND: u32 = 2;
const ACK: u32 = 3;
const MODE: u32 = 4;
const PING: u32 = 5;
const TOKEN_RENEW: u32 = 6;
const BYE: u32 = 7;
const TYPING: u32 = 19;
