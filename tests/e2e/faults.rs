//! Bad input ends that one connection with its Error code, and touches nothing else.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ringpost_protocol::limits::{FRAME_BYTES_MAX, SENDS_UNANSWERED_MAX};
use ringpost_protocol::wire::client_frame::Frame;
use ringpost_protocol::wire::{self, ErrorCode, server_frame};

use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::{Keys, now_unix_ms, user_at};
use crate::support::raw::{Raw, framed, hello_frame, send_frame};

/// A connection that behaves well, before, during and after the other one's end.
struct Bystander {
    gateway: Gateway,
    raw: Raw,
    send_seq: u64,
}

impl Bystander {
    fn start() -> Self {
        let gateway = Gateway::start(Settings::default());
        let raw = Raw::open(&gateway, BYSTANDER, "phone");
        drop(Raw::open(&gateway, BYSTANDER, "tablet"));
        Self { gateway, raw, send_seq: 0 }
    }

    /// It is still served, on the same connection.
    fn check(&mut self) {
        self.send_seq += 1;
        self.raw.send(Frame::Send(send_frame(self.send_seq, BYSTANDER, "to my tablet")));
        let (send_seq, answer) = self.raw.expect_answer();
        assert_eq!(send_seq, self.send_seq);
        answer.unwrap();
    }

    /// Each piece of bytes, sent on a welcomed connection, ends it with this code.
    fn refuses(&mut self, code: ErrorCode, bytes: &[u8]) {
        let mut raw = Raw::open(&self.gateway, "mallory", "phone");
        raw.send_bytes(bytes);
        raw.expect_end(code);
        self.check();
    }

    fn refuses_hello(&mut self, code: ErrorCode, token: &str) {
        let mut raw = Raw::connect(&self.gateway);
        raw.hello(token, "phone");
        raw.expect_end(code);
        self.check();
    }
}

#[test]
fn malformed_frames() {
    let mut bystander = Bystander::start();
    bystander.check();
    bystander.refuses(ErrorCode::FrameLength, &[0x82, 0x00, 0x2a, 0x00]);
    bystander.refuses(ErrorCode::FrameEmpty, &[0x00]);
    // 4 GiB, and one byte more than allowed; not a byte of them follows.
    bystander.refuses(ErrorCode::FrameTooLong, &[0x80, 0x80, 0x80, 0x80, 0x10]);
    let mut length = Vec::new();
    ringpost_protocol::frame::put_length(&mut length, FRAME_BYTES_MAX + 1);
    bystander.refuses(ErrorCode::FrameTooLong, &length);
    bystander.refuses(ErrorCode::FrameTooLong, &[0xff; 12]);
    // A field that claims more bytes than the frame has; wire type 7; two fields in one frame.
    bystander.refuses(ErrorCode::FrameInvalid, &[0x03, 0x1a, 0x7f, 0x00]);
    bystander.refuses(ErrorCode::FrameInvalid, &[0x02, 0x0f, 0x00]);
    bystander.refuses(ErrorCode::FrameInvalid, &[0x04, 0x2a, 0x00, 0x2a, 0x00]);
    // Field 15, which nobody has defined.
    bystander.refuses(ErrorCode::FrameUnknown, &[0x02, 0x7a, 0x00]);
    let mut no_user = framed(Frame::Send(send_frame(1, "", "text")));
    bystander.refuses(ErrorCode::FieldInvalid, &no_user);
    // Good frames before the bad one are served.
    no_user.splice(..0, framed(Frame::Ping(wire::Ping {})));
    bystander.refuses(ErrorCode::FieldInvalid, &no_user);
    let envelope = "x".repeat(ringpost_protocol::limits::ENVELOPE_BYTES_MAX + 1);
    let too_large = framed(Frame::Send(send_frame(1, BYSTANDER, &envelope)));
    bystander.refuses(ErrorCode::EnvelopeTooLarge, &too_large);
    assert!(bystander.gateway.metric("ringpost_peer_faults_total") >= 12.0);
}

#[test]
fn a_stream_that_ends_within_a_frame() {
    let mut bystander = Bystander::start();
    let mut raw = Raw::open(&bystander.gateway, "mallory", "phone");
    let frame = framed(Frame::Send(send_frame(1, BYSTANDER, "half of it")));
    raw.send_bytes(&frame[..frame.len() / 2]);
    raw.send_close_notify();
    raw.expect_end(ErrorCode::FrameTruncated);
    bystander.check();
}

#[test]
fn the_error_arrives_while_more_is_in_flight() {
    let mut bystander = Bystander::start();
    let mut raw = Raw::open(&bystander.gateway, "mallory", "phone");
    let mut bytes = vec![0x00];
    for send_seq in 1..=4 {
        let envelope = "x".repeat(50_000);
        bytes.extend(framed(Frame::Send(send_frame(send_seq, BYSTANDER, &envelope))));
    }
    raw.send_bytes(&bytes);
    // Let all of it arrive behind the fault before the first byte is read.
    std::thread::sleep(Duration::from_millis(100));
    raw.expect_end(ErrorCode::FrameEmpty);
    bystander.check();
}

#[test]
fn wrong_tokens() {
    let mut bystander = Bystander::start();
    let keys = bystander.gateway.keys.clone();
    let stranger_dir = tempfile::tempdir().unwrap();
    let stranger = Keys::prepare(stranger_dir.path());
    let good = keys.token("mallory", "phone");
    let [header, claims, signature] = parts(&good);

    bystander.refuses_hello(ErrorCode::TokenInvalid, &stranger.token("mallory", "phone"));
    // The right key's name, another key's signature.
    let forged = stranger.token("mallory", "phone");
    let forged = format!("{header}.{claims}.{}", parts(&forged)[2]);
    bystander.refuses_hello(ErrorCode::TokenInvalid, &forged);
    let root = URL_SAFE_NO_PAD.decode(claims).unwrap();
    let root = String::from_utf8(root).unwrap().replace("mallory", BYSTANDER);
    let root = URL_SAFE_NO_PAD.encode(root);
    bystander.refuses_hello(ErrorCode::TokenInvalid, &format!("{header}.{root}.{signature}"));
    let header = String::from_utf8(URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
    for algorithm in ["none", "HS256"] {
        let header = header.replace("ES256", algorithm).replace("EdDSA", algorithm);
        assert!(header.contains(algorithm));
        let header = URL_SAFE_NO_PAD.encode(header);
        bystander.refuses_hello(ErrorCode::TokenInvalid, &format!("{header}.{claims}.{signature}"));
        bystander.refuses_hello(ErrorCode::TokenInvalid, &format!("{header}.{claims}."));
    }
    let elsewhere = keys.token_for("mallory", "phone", "elsewhere", now_unix_ms());
    bystander.refuses_hello(ErrorCode::TokenInvalid, &elsewhere);
    let expired = keys.token_for("mallory", "phone", "ringpost", now_unix_ms() - 2 * 3_600_000);
    bystander.refuses_hello(ErrorCode::TokenExpired, &expired);
    // A valid token of another device.
    bystander.refuses_hello(ErrorCode::TokenInvalid, &keys.token("mallory", "tablet"));
    bystander.refuses_hello(ErrorCode::FieldInvalid, "");
    bystander.refuses_hello(ErrorCode::TokenInvalid, "not.a.token");
    bystander.refuses_hello(ErrorCode::FieldInvalid, &"x".repeat(9_000));
    bystander.refuses_hello(ErrorCode::TokenInvalid, &"x".repeat(8_000));
    assert!(bystander.gateway.metric("ringpost_hello_refused_total") >= 12.0);
    for secret in [signature, parts(&expired)[2]] {
        assert!(!bystander.gateway.log().contains(secret), "no token is logged");
    }
}

#[test]
fn a_token_that_is_renewed_wrongly() {
    let mut bystander = Bystander::start();
    let keys = bystander.gateway.keys.clone();
    let renew = |token: String| framed(Frame::TokenRenew(wire::TokenRenew { token }));
    bystander.refuses(ErrorCode::TokenInvalid, &renew(keys.token(BYSTANDER, "phone")));
    bystander.refuses(ErrorCode::TokenInvalid, &renew("not.a.token".to_owned()));
    let good = [renew(keys.token("mallory", "phone")), vec![0x00]].concat();
    bystander.refuses(ErrorCode::FrameEmpty, &good);
}

#[test]
fn frames_out_of_turn() {
    let mut bystander = Bystander::start();
    for frame in [
        Frame::Ping(wire::Ping {}),
        Frame::Send(send_frame(1, BYSTANDER, "too early")),
        Frame::Ack(wire::Ack { up_to_seq: 0 }),
        Frame::Bye(wire::Bye {}),
    ] {
        let mut raw = Raw::connect(&bystander.gateway);
        raw.send(frame);
        raw.expect_end(ErrorCode::HelloExpected);
        bystander.check();
    }
    // Behind the Hello, but before its Welcome; for each home, and so before and after the move.
    for shard in 0..2 {
        let user = user_at(shard, 2, "mallory");
        let hello = hello_frame(&bystander.gateway.keys.token(&user, "phone"), "phone");
        let mut raw = Raw::connect(&bystander.gateway);
        raw.send_bytes(
            &[framed(Frame::Hello(hello.clone())), framed(Frame::Hello(hello))].concat(),
        );
        raw.expect_end(ErrorCode::HelloRepeated);
        bystander.check();
    }
    let hello = hello_frame(&bystander.gateway.keys.token("mallory", "phone"), "phone");
    bystander.refuses(ErrorCode::HelloRepeated, &framed(Frame::Hello(hello)));
}

#[test]
fn wrong_numbers() {
    let mut bystander = Bystander::start();
    bystander.refuses(ErrorCode::SendSeq, &framed(Frame::Send(send_frame(0, BYSTANDER, "text"))));
    bystander.refuses(ErrorCode::Ack, &framed(Frame::Ack(wire::Ack { up_to_seq: 1 })));
    bystander.refuses(ErrorCode::Ack, &framed(Frame::Ack(wire::Ack { up_to_seq: u64::MAX })));

    // More answers than are remembered, then a number below all of them.
    let mut raw = Raw::open(&bystander.gateway, "trent", "phone");
    for send_seq in 1_000..1_300 {
        raw.send(Frame::Send(send_frame(send_seq, "nobody at all", "text")));
        raw.expect_answer().1.unwrap_err();
    }
    raw.send(Frame::Send(send_frame(1_299, "nobody at all", "text")));
    assert_eq!(raw.expect_answer().0, 1_299, "a remembered one is answered again");
    raw.send(Frame::Send(send_frame(3, "nobody at all", "text")));
    raw.expect_end(ErrorCode::SendSeq);
    bystander.check();
}

#[test]
fn one_send_too_many_without_an_answer() {
    let mut bystander = Bystander::start();
    for shard in 0..2 {
        // Two of them: one sender may hold a quarter of a mailbox, and a refusal is an answer.
        let recipients = ["one", "other"].map(|name| user_at(shard, 2, name));
        for recipient in &recipients {
            drop(Raw::open(&bystander.gateway, recipient, "phone"));
        }
        let user = user_at(0, 2, &format!("flooder{shard}"));
        let mut raw = Raw::open(&bystander.gateway, &user, "phone");
        let sends_max = u64::try_from(SENDS_UNANSWERED_MAX).unwrap();
        // One TLS record, so they are all there before any can be answered.
        let frames: Vec<u8> = (1..=sends_max + 1)
            .zip(recipients.iter().cycle())
            .flat_map(|(send_seq, recipient)| {
                framed(Frame::Send(send_frame(send_seq, recipient, "")))
            })
            .collect();
        assert!(frames.len() < 16_384);
        raw.send_bytes(&frames);
        raw.expect_end(ErrorCode::Window);
        bystander.check();
    }
    // As many as allowed are fine.
    let mut raw = Raw::open(&bystander.gateway, "no flooder", "phone");
    let sends_max = u64::try_from(SENDS_UNANSWERED_MAX).unwrap();
    let frames: Vec<u8> = (1..=sends_max)
        .flat_map(|send_seq| framed(Frame::Send(send_frame(send_seq, BYSTANDER, ""))))
        .collect();
    raw.send_bytes(&frames);
    let mut answered: Vec<u64> = (1..=sends_max).map(|_| raw.expect_answer().0).collect();
    answered.sort_unstable();
    assert!(answered.into_iter().eq(1..=sends_max), "each is answered once");
}

#[test]
fn a_known_frame_that_is_not_built_yet_is_not_fatal() {
    let mut bystander = Bystander::start();
    let mut raw = Raw::open(&bystander.gateway, "alice", "phone");
    raw.send(Frame::PresenceSet(wire::PresenceSet { request_id: 42, hidden: true }));
    let error = raw.expect(|frame| match frame {
        server_frame::Frame::Error(error) => Some(error),
        _ => None,
    });
    assert_eq!((error.code(), error.fatal, error.request_id), (ErrorCode::Unsupported, false, 42));
    raw.send(Frame::Ping(wire::Ping {}));
    raw.expect(|frame| matches!(frame, server_frame::Frame::Pong(_)).then_some(()));
    bystander.check();
}

fn parts(token: &str) -> [&str; 3] {
    token.split('.').collect::<Vec<_>>().try_into().unwrap()
}

const BYSTANDER: &str = "bystander";
