//! Frames of a client: made from a script, and what they mean by the generated code alone.

use bytes::Bytes;
use prost::Message;
use ringpost_protocol::id::{DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq, UserId};
use ringpost_protocol::limits::{
    DEVICES_PER_USER_MAX, ENVELOPE_BYTES_MAX, TOKEN_BYTES_MAX, TTL_MS_MAX,
};
use ringpost_protocol::message::{Hello, Mode, Recipient, Request, SendBody, SendRequest};
use ringpost_protocol::wire::client_frame::Frame;
use ringpost_protocol::wire::{self, send};

use crate::calls::{call, meaning_of_call};
use crate::script::Script;

pub(crate) fn hello(script: &mut Script<'_>) -> Frame {
    Frame::Hello(wire::Hello {
        token: text(script, &["t.o.k", "", "x"]),
        device: text(script, &["phone", "tablet", "", "\u{e9}"]),
        install_id: script.number(),
        mailbox_id: script.number(),
        acked_up_to: script.number(),
        mode: script.flag().then(|| mode(script)),
        capabilities: script.number(),
    })
}

/// A Send with this number.
pub(crate) fn send(script: &mut Script<'_>, send_seq: u64) -> Frame {
    let to = match script.byte() % 8 {
        0 => None,
        1 | 2 => Some(send::To::Group(text(script, &USERS))),
        _ => Some(send::To::User(text(script, &USERS))),
    };
    let body = match script.byte() % 8 {
        0 => None,
        1..=3 => {
            let count = usize::from(script.byte()) % (DEVICES_PER_USER_MAX + 2);
            let envelopes = (0..count).map(|index| wire::DeviceEnvelope {
                device: if script.flag() { format!("d{index}") } else { text(script, &["", "d0"]) },
                envelope: Bytes::copy_from_slice(script.bytes()),
            });
            Some(send::Body::PerDevice(wire::DeviceEnvelopes { envelopes: envelopes.collect() }))
        }
        4 => Some(send::Body::Shared(
            vec![7; ENVELOPE_BYTES_MAX + usize::from(script.flag())].into(),
        )),
        _ => Some(send::Body::Shared(Bytes::copy_from_slice(script.bytes()))),
    };
    Frame::Send(wire::Send {
        send_seq,
        ttl_ms: script.number(),
        urgent: script.flag(),
        after_reject: script.flag(),
        message_number: script.number(),
        roster_version: script.number(),
        device_list_version: script.number(),
        to,
        body,
    })
}

/// A frame of any kind but Hello, Send and Ack.
pub(crate) fn other(script: &mut Script<'_>) -> Frame {
    let request_id = script.number();
    let users = vec![text(script, &USERS)];
    match script.byte() % 12 {
        0 => Frame::Mode(mode(script)),
        1 => Frame::TokenRenew(wire::TokenRenew { token: text(script, &["t", ""]) }),
        2 => Frame::Bye(wire::Bye {}),
        3 => Frame::PresenceSubscribe(wire::PresenceSubscribe { request_id, users }),
        4 => Frame::Typing(wire::Typing::default()),
        5 | 6 => call(script),
        7 => Frame::MediaDownload(wire::MediaDownload { request_id, ..Default::default() }),
        _ => Frame::Ping(wire::Ping {}),
    }
}

pub(crate) fn encode(frame: Frame) -> Bytes {
    wire::ClientFrame { frame: Some(frame) }.encode_to_vec().into()
}

/// What `frame` asks for; `None` when it breaks a rule. Frames that are not served are told by
/// their request_id alone.
pub(crate) fn meaning(frame: &Bytes) -> Option<Request> {
    match wire::ClientFrame::decode(frame.clone()).ok()?.frame? {
        Frame::Hello(hello) => meaning_of_hello(hello),
        Frame::Send(send) => meaning_of_send(send).map(Request::Send),
        Frame::Ack(ack) => Some(Request::Ack { up_to: Seq(ack.up_to_seq) }),
        Frame::Mode(mode) => Some(Request::Mode(meaning_of_mode(&mode))),
        Frame::Ping(_) => Some(Request::Ping),
        Frame::TokenRenew(renew) => {
            let whole = (1..=TOKEN_BYTES_MAX).contains(&renew.token.len());
            whole.then_some(Request::TokenRenew { token: renew.token })
        }
        Frame::Bye(_) => Some(Request::Bye),
        frame if is_unsupported(&frame) => {
            Some(Request::Unsupported { request_id: request_id(&frame) })
        }
        frame => meaning_of_call(frame)
            .map(|(request_id, call)| Request::Call { request_id, call: Box::new(call) }),
    }
}

fn meaning_of_hello(hello: wire::Hello) -> Option<Request> {
    if hello.install_id == 0 || !(1..=TOKEN_BYTES_MAX).contains(&hello.token.len()) {
        return None;
    }
    Some(Request::Hello(Hello {
        token: hello.token,
        device: DeviceId::new(&hello.device).ok()?,
        install_id: InstallId(hello.install_id),
        mailbox_id: MailboxId(hello.mailbox_id),
        acked_up_to: Seq(hello.acked_up_to),
        mode: hello.mode.map_or(Mode::Foreground, |mode| meaning_of_mode(&mode)),
        capabilities: hello.capabilities,
    }))
}

fn meaning_of_send(send: wire::Send) -> Option<SendRequest> {
    let to = match send.to? {
        send::To::User(user) => Recipient::User(UserId::new(&user).ok()?),
        send::To::Group(group) => Recipient::Group(UserId::new(&group).ok()?),
    };
    let body = match send.body? {
        send::Body::Shared(envelope) => SendBody::Shared(envelope),
        send::Body::PerDevice(list) => {
            let mut envelopes = Vec::new();
            for entry in list.envelopes {
                envelopes.push((DeviceId::new(&entry.device).ok()?, entry.envelope));
            }
            let repeats = |at: usize| envelopes[..at].iter().any(|(id, _)| *id == envelopes[at].0);
            let count_is_right = (1..=DEVICES_PER_USER_MAX).contains(&envelopes.len());
            if !count_is_right || (0..envelopes.len()).any(repeats) {
                return None;
            }
            SendBody::PerDevice(envelopes)
        }
    };
    let too_large = match &body {
        SendBody::Shared(envelope) => envelope.len() > ENVELOPE_BYTES_MAX,
        SendBody::PerDevice(all) => all.iter().any(|(_, one)| one.len() > ENVELOPE_BYTES_MAX),
    };
    let to_group = matches!((&to, &body), (Recipient::Group(_), SendBody::PerDevice(_)));
    if send.send_seq == 0 || too_large || to_group {
        return None;
    }
    let number = if send.message_number == 0 { send.send_seq } else { send.message_number };
    Some(SendRequest {
        send_seq: SendSeq(send.send_seq),
        message_number: MessageNumber(number),
        to,
        roster_version: send.roster_version,
        device_list_version: send.device_list_version,
        body,
        ttl_ms: if (1..=TTL_MS_MAX).contains(&send.ttl_ms) { send.ttl_ms } else { TTL_MS_MAX },
        urgent: send.urgent,
        after_reject: send.after_reject,
    })
}

fn meaning_of_mode(mode: &wire::Mode) -> Mode {
    match mode.kind() {
        wire::ModeKind::Background => {
            Mode::Background { interval_ms: mode.interval_ms.clamp(240_000, 1_500_000) }
        }
        _ => Mode::Foreground,
    }
}

/// Presence, typing and media: in the schema, not served.
fn is_unsupported(frame: &Frame) -> bool {
    matches!(
        frame,
        Frame::PresenceSet(_)
            | Frame::PresenceSubscribe(_)
            | Frame::PresenceUnsubscribe(_)
            | Frame::Typing(_)
            | Frame::MediaUpload(_)
            | Frame::MediaDownload(_)
    )
}

fn request_id(frame: &Frame) -> u64 {
    match frame {
        Frame::PresenceSet(frame) => frame.request_id,
        Frame::PresenceSubscribe(frame) => frame.request_id,
        Frame::PresenceUnsubscribe(frame) => frame.request_id,
        Frame::MediaUpload(frame) => frame.request_id,
        Frame::MediaDownload(frame) => frame.request_id,
        _ => 0,
    }
}

fn mode(script: &mut Script<'_>) -> wire::Mode {
    wire::Mode { kind: i32::from(script.byte() % 4), interval_ms: script.number() }
}

/// One of the usual texts, one at the bounds of an id, or one of the script's.
pub(crate) fn text(script: &mut Script<'_>, usual: &[&str]) -> String {
    let choice = usize::from(script.byte());
    match usual.get(choice) {
        Some(text) => (*text).to_owned(),
        None if choice >= 0xf0 => "y".repeat(choice - 0xf0 + 60),
        None if choice >= 0xe0 => "y".repeat(choice - 0xe0 + 120),
        None if choice >= 0xd0 => String::from_utf8_lossy(script.bytes()).into_owned(),
        None => usual[choice % usual.len()].to_owned(),
    }
}

pub(crate) const USERS: [&str; 6] = ["bob", "carol", "dave", "", "group", "x"];
