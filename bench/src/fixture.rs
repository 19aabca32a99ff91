//! Seeded data: ids, envelopes and client frames, the same in every run.

use bytes::Bytes;
use prost::Message;
use ringpost_protocol::frame::put_length;
use ringpost_protocol::id::{DeviceAddress, DeviceId, InstallId, MailboxId, SendSeq, Seq, UserId};
use ringpost_protocol::message::DeliverHead;
use ringpost_protocol::wire::{self, client_frame::Frame, send};

/// The installation that sends everything.
pub const INSTALL: InstallId = InstallId(0x5eed);
/// A plausible wall clock: the length of a varint depends on it.
pub const UNIX_MS: u64 = 1_795_000_000_000;

/// Bytes that look like ciphertext: splitmix64 of a fixed seed.
pub fn envelope(bytes: usize) -> Vec<u8> {
    let mut state = 0x5eed_u64;
    let mut words = std::iter::repeat_with(move || splitmix64(&mut state).to_le_bytes());
    let mut envelope = Vec::with_capacity(bytes + 8);
    while envelope.len() < bytes {
        envelope.extend_from_slice(&words.next().expect("endless"));
    }
    envelope.truncate(bytes);
    envelope
}

/// User number `index`, with an id as long as a UUID.
pub fn user(index: u64) -> UserId {
    let id = format!("00000000-0000-4000-8000-{index:012x}");
    UserId::new(&id).expect("36 bytes of ASCII")
}

/// The phone of user number `index`.
pub fn device(index: u64) -> DeviceAddress {
    let device = DeviceId::new("phone").expect("5 bytes of ASCII");
    DeviceAddress { user: user(index), device }
}

/// Mailbox number `index`; ids are random in the gateway, so they are spread here.
pub fn mailbox(index: u64) -> MailboxId {
    let mut state = index;
    MailboxId(splitmix64(&mut state))
}

/// A Send to user 2 as it comes from the wire, length included.
pub fn send_frame(send_seq: SendSeq, envelope: &Bytes) -> Vec<u8> {
    framed(Frame::Send(wire::Send {
        send_seq: send_seq.0,
        to: Some(send::To::User(user(2).as_str().to_owned())),
        body: Some(send::Body::Shared(envelope.clone())),
        ..wire::Send::default()
    }))
}

/// An Ack as it comes from the wire, length included.
pub fn ack_frame(up_to: Seq) -> Vec<u8> {
    framed(Frame::Ack(wire::Ack { up_to_seq: up_to.0 }))
}

/// The Hello of user 1 as it comes from the wire, length included.
pub fn hello_frame() -> Vec<u8> {
    framed(Frame::Hello(wire::Hello {
        token: "token".into(),
        device: "phone".into(),
        install_id: INSTALL.0,
        ..wire::Hello::default()
    }))
}

/// What stands before the envelope of a Deliver from `from`.
pub fn deliver_head(from: &DeviceAddress, number: u64) -> DeliverHead<'_> {
    DeliverHead {
        seq: Seq::new(1, number),
        from_user: from.user.as_str(),
        from_device: from.device.as_str(),
        install_id: INSTALL,
        send_seq: SendSeq(number),
        message_number: ringpost_protocol::id::MessageNumber(SendSeq(number).0),
        sent_at_ms: UNIX_MS,
        group: None,
        urgent: false,
    }
}

fn framed(frame: Frame) -> Vec<u8> {
    let frame = wire::ClientFrame { frame: Some(frame) };
    let mut bytes = Vec::new();
    put_length(&mut bytes, frame.encoded_len());
    frame.encode(&mut bytes).expect("a vector grows");
    bytes
}

fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
