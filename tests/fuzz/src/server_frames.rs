//! Frames of a server, made from a script, and what they mean by the generated code alone.

use bytes::Bytes;
use prost::Message;
use ringpost_protocol::id::{
    DeviceAddress, DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq, UserId,
};
use ringpost_protocol::message::{
    ClientEvent, Delivery, ErrorCode, GapReason, GoAwayReason, Outcome, RejectCode, Reply, Welcome,
};
use ringpost_protocol::wire;
use ringpost_protocol::wire::server_frame::Frame;

use crate::calls::{meaning_of_reply, reply, user};
use crate::client_frames::{USERS, text};
use crate::script::Script;
use crate::session::limits;

pub(crate) fn welcome(script: &mut Script<'_>) -> Frame {
    Frame::Welcome(wire::Welcome {
        mailbox_id: u64::from(script.byte() % 4),
        heartbeat_ms: script.number().saturating_mul(1000),
        server_time_ms: script.number(),
        limits: (script.byte() % 8 != 7).then(|| limits(script)),
        capabilities: script.number(),
    })
}

/// The answer to this Send.
pub(crate) fn answer(script: &mut Script<'_>, send_seq: u64) -> Frame {
    if script.flag() {
        return Frame::Rejected(wire::Rejected {
            send_seq,
            code: i32::from(script.byte()) - 1,
            retry_after_ms: script.flag().then(|| script.number()),
        });
    }
    let skipped = (0..script.byte() % 4).map(|_| wire::SkippedDevice {
        user: text(script, &USERS),
        device: text(script, &DEVICES),
        reason: i32::from(script.byte()) - 1,
    });
    let skipped_devices = skipped.collect();
    Frame::Accepted(wire::Accepted { send_seq, server_time_ms: script.number(), skipped_devices })
}

/// A frame of the mailbox with this seq.
pub(crate) fn mail(script: &mut Script<'_>, seq: u64) -> Frame {
    match script.byte() % 4 {
        0 => Frame::Gap(wire::Gap {
            seq,
            group: text(script, &USERS),
            reason: i32::from(script.byte()) - 1,
        }),
        1 => Frame::Delivered(wire::Delivered {
            seq,
            peer_user: text(script, &USERS),
            peer_device: text(script, &DEVICES),
            group: text(script, &USERS),
            up_to_send_seq: script.number(),
            install_id: script.number(),
        }),
        _ => Frame::Deliver(wire::Deliver {
            seq,
            from_user: text(script, &USERS),
            from_device: text(script, &DEVICES),
            install_id: script.number(),
            send_seq: script.number(),
            sent_at_ms: script.number(),
            group: text(script, &USERS),
            urgent: script.flag(),
            message_number: script.number(),
            envelope: Bytes::copy_from_slice(script.bytes()),
        }),
    }
}

pub(crate) fn other(script: &mut Script<'_>) -> Frame {
    match script.byte() % 8 {
        0 => Frame::GoAway(wire::GoAway {
            reason: i32::from(script.byte()) - 1,
            reconnect_after_ms: script.number(),
            other_address: text(script, &["", "other:7443"]),
        }),
        1 => Frame::Error(wire::Error {
            code: i32::from(script.byte()) - 1,
            text: text(script, &["no"]),
            fatal: script.flag(),
            request_id: script.number(),
        }),
        2 => Frame::CaughtUp(wire::CaughtUp {}),
        3 | 4 => reply(script),
        _ => Frame::Pong(wire::Pong {}),
    }
}

pub(crate) fn encode(frame: Frame) -> Bytes {
    wire::ServerFrame { frame: Some(frame) }.encode_to_vec().into()
}

/// What `frame` tells the client. `Ok(None)`: nothing that it uses; `Err`: it breaks a rule.
pub(crate) fn meaning(frame: &Bytes) -> Result<Option<ClientEvent>, ()> {
    let frame = wire::ServerFrame::decode(frame.clone()).map_err(|_| ())?.frame;
    Ok(Some(match frame.ok_or(())? {
        Frame::Welcome(welcome) => ClientEvent::Welcome(Welcome {
            mailbox_id: MailboxId(welcome.mailbox_id),
            heartbeat_ms: welcome.heartbeat_ms,
            server_time_ms: welcome.server_time_ms,
            limits: welcome.limits.ok_or(())?,
            capabilities: welcome.capabilities,
        }),
        Frame::Accepted(accepted) => {
            let mut skipped = Vec::new();
            for device in accepted.skipped_devices {
                let address = address(&device.user, &device.device)?;
                skipped.push((address.user, address.device, device.reason()));
            }
            let outcome = Outcome::Accepted { server_time_ms: accepted.server_time_ms, skipped };
            ClientEvent::Answered { send_seq: SendSeq(accepted.send_seq), outcome }
        }
        Frame::Rejected(rejected) => {
            let code = RejectCode::try_from(rejected.code).unwrap_or(RejectCode::Unspecified);
            let outcome = Outcome::Rejected { code, retry_after_ms: rejected.retry_after_ms };
            ClientEvent::Answered { send_seq: SendSeq(rejected.send_seq), outcome }
        }
        Frame::Deliver(deliver) => ClientEvent::Deliver(delivery(deliver)?),
        Frame::Gap(gap) => ClientEvent::Gap {
            seq: Seq(gap.seq),
            group: group(&gap.group)?,
            reason: GapReason::try_from(gap.reason).unwrap_or(GapReason::Unspecified),
        },
        Frame::Delivered(delivered) => ClientEvent::Delivered {
            seq: Seq(delivered.seq),
            peer: address(&delivered.peer_user, &delivered.peer_device)?,
            group: group(&delivered.group)?,
            install_id: InstallId(delivered.install_id),
            up_to_send_seq: SendSeq(delivered.up_to_send_seq),
        },
        Frame::CaughtUp(_) => ClientEvent::CaughtUp,
        Frame::Pong(_) => ClientEvent::Pong,
        Frame::GoAway(away) => ClientEvent::GoAway {
            reason: GoAwayReason::try_from(away.reason).unwrap_or(GoAwayReason::Unspecified),
            reconnect_after_ms: away.reconnect_after_ms,
            other_address: if away.other_address.is_empty() {
                None
            } else {
                Some(away.other_address)
            },
        },
        Frame::Error(error) => ClientEvent::Error {
            code: ErrorCode::try_from(error.code).unwrap_or(ErrorCode::Unspecified),
            text: error.text,
            fatal: error.fatal,
            request_id: error.request_id,
        },
        Frame::GroupChanged(changed) => ClientEvent::GroupChanged {
            group: user(&changed.group).ok_or(())?,
            version: changed.version,
        },
        Frame::Presence(_) | Frame::TypingFrom(_) | Frame::MediaTicket(_) => return Ok(None),
        frame => match meaning_of_reply(frame).ok_or(())? {
            (0, Reply::KeysLow { remaining_count }) => ClientEvent::KeysLow { remaining_count },
            (0, Reply::DeviceList(list)) => ClientEvent::DeviceList(list),
            (request_id, reply) => ClientEvent::Replied { request_id, reply },
        },
    }))
}

fn delivery(deliver: wire::Deliver) -> Result<Delivery, ()> {
    let sent_as = deliver.message_number;
    Ok(Delivery {
        seq: Seq(deliver.seq),
        from: address(&deliver.from_user, &deliver.from_device)?,
        install_id: InstallId(deliver.install_id),
        send_seq: SendSeq(deliver.send_seq),
        message_number: MessageNumber(if sent_as == 0 { deliver.send_seq } else { sent_as }),
        sent_at_ms: deliver.sent_at_ms,
        group: group(&deliver.group)?,
        urgent: deliver.urgent,
        envelope: deliver.envelope,
    })
}

fn address(user: &str, device: &str) -> Result<DeviceAddress, ()> {
    let user = UserId::new(user).map_err(|_| ())?;
    Ok(DeviceAddress { user, device: DeviceId::new(device).map_err(|_| ())? })
}

fn group(group: &str) -> Result<Option<UserId>, ()> {
    if group.is_empty() { Ok(None) } else { UserId::new(group).map(Some).map_err(|_| ()) }
}

const DEVICES: [&str; 4] = ["phone", "tablet", "", "\u{e9}"];
