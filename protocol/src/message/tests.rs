use bytes::Bytes;
use prost::Message;

use super::*;
use crate::fault::PeerFault;
use crate::frame::split_frame;
use crate::id::DeviceAddress;
use crate::limits::TOKEN_BYTES_MAX;
use crate::seeded::Seeded;
use crate::wire::{self, client_frame, server_frame};

fn parse(frame: client_frame::Frame) -> Result<Request, PeerFault> {
    let frame = wire::ClientFrame { frame: Some(frame) };
    parse_client_frame(frame.encode_to_vec().into())
}

fn send_to_user() -> wire::Send {
    wire::Send {
        send_seq: 7,
        to: Some(wire::send::To::User("bob".into())),
        body: Some(wire::send::Body::Shared(Bytes::from_static(b"secret"))),
        ..Default::default()
    }
}

fn hello() -> wire::Hello {
    wire::Hello {
        token: "t.o.k".into(),
        device: "phone".into(),
        install_id: 9,
        ..Default::default()
    }
}

fn parse_send(send: wire::Send) -> Result<Request, PeerFault> {
    parse(client_frame::Frame::Send(send))
}

fn per_device(envelopes: &[(&str, usize)]) -> Option<wire::send::Body> {
    let envelopes = envelopes.iter().map(|(device, bytes)| wire::DeviceEnvelope {
        device: (*device).into(),
        envelope: vec![1; *bytes].into(),
    });
    Some(wire::send::Body::PerDevice(wire::DeviceEnvelopes { envelopes: envelopes.collect() }))
}

/// The one frame in `bytes`, decoded by the generated code.
fn decode(bytes: &[u8]) -> server_frame::Frame {
    let mut buf = bytes::BytesMut::from(bytes);
    let frame = split_frame(&mut buf, FRAME_BYTES_MAX).unwrap().unwrap();
    assert!(buf.is_empty(), "one whole frame");
    let decoded = wire::ServerFrame::decode(&frame[..]).unwrap();
    assert_eq!(decoded.encode_to_vec(), frame, "both encoders give the same bytes");
    decoded.frame.unwrap()
}

fn event(bytes: &[u8]) -> ClientEvent {
    let frame = split_frame(&mut bytes.into(), FRAME_BYTES_MAX).unwrap().unwrap();
    parse_server_frame(&frame).unwrap().unwrap()
}

#[test]
fn hello_is_typed_and_bounded() {
    let full = wire::Hello {
        mailbox_id: 4,
        acked_up_to: 5,
        capabilities: 6,
        mode: Some(wire::Mode { kind: 2, interval_ms: 1 }),
        ..hello()
    };
    let expected = Hello {
        token: "t.o.k".into(),
        device: DeviceId::new("phone").unwrap(),
        install_id: InstallId(9),
        mailbox_id: MailboxId(4),
        acked_up_to: Seq(5),
        mode: Mode::Background { interval_ms: HEARTBEAT_BACKGROUND_MS_MIN },
        capabilities: 6,
    };
    let parse_hello = |hello| parse(client_frame::Frame::Hello(hello));
    assert_eq!(parse_hello(full), Ok(Request::Hello(expected)));
    let Ok(Request::Hello(short)) = parse_hello(hello()) else { panic!("a Hello") };
    assert_eq!((short.mode, short.mailbox_id), (Mode::Foreground, MailboxId(0)));

    let no_install = wire::Hello { install_id: 0, ..hello() };
    assert_eq!(parse_hello(no_install), Err(PeerFault::FieldMissing("Hello.install_id")));
    let no_token = wire::Hello { token: String::new(), ..hello() };
    assert_eq!(parse_hello(no_token), Err(PeerFault::FieldMissing("token")));
    let long = wire::Hello { token: "x".repeat(TOKEN_BYTES_MAX + 1), ..hello() };
    assert_eq!(parse_hello(long), Err(PeerFault::TokenTooLong(TOKEN_BYTES_MAX + 1)));
    for device in ["", "\u{e9}", &"d".repeat(65)] {
        let bad = wire::Hello { device: device.into(), ..hello() };
        assert!(matches!(parse_hello(bad), Err(PeerFault::Id { field: "Hello.device", .. })));
    }
}

#[test]
fn mode_is_clamped() {
    let parse_mode = |kind, interval_ms| {
        parse(client_frame::Frame::Mode(wire::Mode { kind, interval_ms })).unwrap()
    };
    let background = |interval_ms| Request::Mode(Mode::Background { interval_ms });
    assert_eq!(parse_mode(1, 5), Request::Mode(Mode::Foreground));
    assert_eq!(parse_mode(0, 5), Request::Mode(Mode::Foreground));
    assert_eq!(parse_mode(2, 0), background(HEARTBEAT_BACKGROUND_MS_MIN));
    assert_eq!(parse_mode(2, 600_000), background(600_000));
    assert_eq!(parse_mode(2, u64::MAX), background(HEARTBEAT_BACKGROUND_MS_MAX));
    assert_eq!(Mode::Foreground.heartbeat_ms(), HEARTBEAT_FOREGROUND_MS);
}

#[test]
fn a_send_shares_the_memory_of_its_frame() {
    for body in [send_to_user().body, per_device(&[("a", 100), ("b", 200)])] {
        let send = wire::Send { body, ..send_to_user() };
        let frame = wire::ClientFrame { frame: Some(client_frame::Frame::Send(send)) };
        let frame = Bytes::from(frame.encode_to_vec());
        let range = frame.as_ptr_range();
        let Ok(Request::Send(send)) = parse_client_frame(frame.clone()) else { panic!("a Send") };
        let envelopes = match send.body {
            SendBody::Shared(envelope) => vec![envelope],
            SendBody::PerDevice(entries) => entries.into_iter().map(|(_, e)| e).collect(),
        };
        assert!(envelopes.iter().all(|envelope| range.contains(&envelope.as_ptr())));
    }
}

#[test]
fn ttl_is_clamped_and_defaulted() {
    for (wanted, given) in [(0, TTL_MS_MAX), (1, 1), (TTL_MS_MAX + 1, TTL_MS_MAX)] {
        let Ok(Request::Send(send)) = parse_send(wire::Send { ttl_ms: wanted, ..send_to_user() })
        else {
            panic!("a Send")
        };
        assert_eq!(send.ttl_ms, given);
    }
}

#[test]
fn sends_outside_the_bounds_are_refused() {
    let base = send_to_user;
    let to_group = Some(wire::send::To::Group("g".into()));
    let many: Vec<String> = (0..=DEVICES_PER_USER_MAX).map(|n| n.to_string()).collect();
    let many: Vec<(&str, usize)> = many.iter().map(|name| (name.as_str(), 1)).collect();
    let large = vec![0; ENVELOPE_BYTES_MAX + 1];
    let large_fault = PeerFault::EnvelopeTooLarge(ENVELOPE_BYTES_MAX + 1);
    let shared_large = Some(wire::send::Body::Shared(large.into()));
    let cases = [
        (wire::Send { send_seq: 0, ..base() }, PeerFault::SendSeqZero),
        (wire::Send { to: None, ..base() }, PeerFault::FieldMissing("Send.to")),
        (wire::Send { body: None, ..base() }, PeerFault::FieldMissing("Send.body")),
        (
            wire::Send { body: per_device(&[]), ..base() },
            PeerFault::FieldMissing("Send.per_device.envelopes"),
        ),
        (wire::Send { body: per_device(&many), ..base() }, PeerFault::TooManyDevices),
        (
            wire::Send { body: per_device(&[("a", 1), ("a", 1)]), ..base() },
            PeerFault::DeviceRepeated,
        ),
        (
            wire::Send { to: to_group.clone(), body: per_device(&[("a", 1)]), ..base() },
            PeerFault::GroupPerDevice,
        ),
        (wire::Send { body: shared_large, ..base() }, large_fault.clone()),
        (wire::Send { body: per_device(&[("a", ENVELOPE_BYTES_MAX + 1)]), ..base() }, large_fault),
    ];
    for (send, fault) in cases {
        assert_eq!(parse_send(send), Err(fault));
    }
    let allowed = wire::Send { body: per_device(&many[1..]), ..base() };
    assert!(parse_send(allowed).is_ok());
    assert!(parse_send(wire::Send { to: to_group, ..base() }).is_ok());
    for user in [String::new(), "u".repeat(129)] {
        let send = wire::Send { to: Some(wire::send::To::User(user)), ..base() };
        assert!(matches!(parse_send(send), Err(PeerFault::Id { field: "Send.user", .. })));
    }
    let nameless = wire::Send { body: per_device(&[("", 1)]), ..base() };
    assert!(matches!(parse_send(nameless), Err(PeerFault::Id { .. })));
}

#[test]
fn the_hand_written_parser_agrees_with_the_generated_code() {
    let mut random = Seeded(1);
    for _ in 0..2_000 {
        let name = |random: &mut Seeded| "x".repeat(1 + random.index(60));
        let body = if random.chance(50) {
            let length = random.index(300);
            Some(wire::send::Body::Shared(random.bytes(length).into()))
        } else {
            let devices = ["a", "b", "c", "d"];
            let count = 1 + random.index(4);
            let entries: Vec<_> =
                devices[..count].iter().map(|d| (*d, random.index(200))).collect();
            per_device(&entries)
        };
        let send = wire::Send {
            send_seq: random.spread() | 1,
            to: Some(wire::send::To::User(name(&mut random))),
            ttl_ms: random.below(TTL_MS_MAX) + 1,
            urgent: random.chance(50),
            after_reject: random.chance(50),
            message_number: random.spread().max(1),
            roster_version: random.spread(),
            device_list_version: random.spread(),
            body,
        };
        let Ok(Request::Send(parsed)) = parse_send(send.clone()) else { panic!("a Send") };
        let body = match parsed.body {
            SendBody::Shared(envelope) => wire::send::Body::Shared(envelope),
            SendBody::PerDevice(entries) => {
                let envelopes = entries.into_iter().map(|(device, envelope)| {
                    wire::DeviceEnvelope { device: device.as_str().into(), envelope }
                });
                wire::send::Body::PerDevice(wire::DeviceEnvelopes {
                    envelopes: envelopes.collect(),
                })
            }
        };
        let Recipient::User(user) = parsed.to else { panic!("to a user") };
        let back = wire::Send {
            send_seq: parsed.send_seq.0,
            to: Some(wire::send::To::User(user.as_str().into())),
            ttl_ms: parsed.ttl_ms,
            urgent: parsed.urgent,
            after_reject: parsed.after_reject,
            message_number: parsed.message_number.0,
            roster_version: parsed.roster_version,
            device_list_version: parsed.device_list_version,
            body: Some(body),
        };
        assert_eq!(back, send);
    }
}

#[test]
fn a_send_without_a_message_number_is_numbered_by_its_send_seq() {
    let Ok(Request::Send(send)) = parse_send(send_to_user()) else { panic!("a Send") };
    assert_eq!(send.message_number.0, send.send_seq.0);
}

#[test]
fn unknown_fields_are_skipped_unknown_frames_are_not() {
    let mut body = send_to_user().encode_to_vec();
    // Fields 20 (varint), 21 (fixed64), 22 (bytes) and 23 (fixed32).
    body.extend([0xa0, 1, 5, 0xa9, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0xb2, 1, 1, 9, 0xbd, 1, 1, 2, 3, 4]);
    let mut frame = vec![2 << 3 | 2, body.len().to_le_bytes()[0]];
    frame.extend(body);
    let parsed = parse_client_frame(frame.into());
    assert_eq!(parsed, parse_send(send_to_user()));

    assert_eq!(parse_client_frame(vec![8 << 3 | 2, 0].into()), Err(PeerFault::UnknownFrame(8)));
    assert_eq!(parse_client_frame(vec![8 << 3, 0].into()), Err(PeerFault::UnknownFrame(8)));
    let ping = [5 << 3 | 2, 0];
    assert_eq!(parse_client_frame(ping.to_vec().into()), Ok(Request::Ping));
    assert_eq!(parse_client_frame(ping.repeat(2).into()), Err(PeerFault::FieldCount));
    assert_eq!(parse_client_frame(Bytes::new()), Err(PeerFault::FieldCount));
    let not_a_message = parse_client_frame(vec![5 << 3, 0].into());
    assert!(matches!(not_a_message, Err(PeerFault::Protobuf(_))));
}

#[test]
fn every_truncation_of_a_frame_is_a_fault_or_a_shorter_request_never_a_panic() {
    let send = wire::Send { body: per_device(&[("a", 20), ("b", 20)]), ..send_to_user() };
    let frame = wire::ClientFrame { frame: Some(client_frame::Frame::Send(send)) };
    let whole = Bytes::from(frame.encode_to_vec());
    for length in 0..whole.len() {
        let fault = parse_client_frame(whole.slice(..length)).unwrap_err();
        assert!(matches!(fault, PeerFault::Protobuf(_) | PeerFault::FieldCount), "{fault}");
    }
    let mut random = Seeded(2);
    for _ in 0..20_000 {
        let mut bytes = whole.to_vec();
        for _ in 0..=random.below(3) {
            let at = random.index(bytes.len());
            bytes[at] = random.next().to_le_bytes()[0];
        }
        let _ = parse_client_frame(bytes.into());
        let length = random.index(40);
        let noise = Bytes::from(random.bytes(length));
        let _ = parse_client_frame(noise.clone());
        let _ = parse_server_frame(&noise);
    }
}

#[test]
fn frames_of_later_issues_are_known_and_keep_their_request_id() {
    use client_frame::Frame;
    let request_id = 300;
    let frames = [
        Frame::PresenceSet(wire::PresenceSet { request_id, hidden: true }),
        Frame::PresenceSubscribe(wire::PresenceSubscribe { request_id, users: vec![] }),
        Frame::PresenceUnsubscribe(wire::PresenceUnsubscribe { request_id, users: vec![] }),
        Frame::MediaUpload(wire::MediaUpload { request_id, ..Default::default() }),
        Frame::MediaDownload(wire::MediaDownload { request_id, media_id: "m".into() }),
    ];
    for frame in frames {
        assert_eq!(parse(frame), Ok(Request::Unsupported { request_id }));
    }
    let to = Some(wire::typing::To::User("bob".into()));
    let typing = wire::Typing { to, ciphertext: Bytes::from_static(b"..") };
    assert_eq!(parse(Frame::Typing(typing)), Ok(Request::Unsupported { request_id: 0 }));
}

#[test]
fn hand_written_encoders_decode_equal_with_the_generated_code() {
    let mut random = Seeded(3);
    for _ in 0..2_000 {
        let length = random.index(400);
        let envelope = random.bytes(length);
        let group = random.chance(50).then_some("group");
        let head = DeliverHead {
            seq: Seq(random.spread()),
            from_user: &"u".repeat(1 + random.index(128)),
            from_device: "phone",
            install_id: InstallId(random.spread()),
            send_seq: SendSeq(random.spread().max(1)),
            message_number: MessageNumber(random.spread().max(1)),
            sent_at_ms: random.spread(),
            group,
            urgent: random.chance(50),
        };
        let mut out = Vec::new();
        put_deliver(&mut out, &head, &envelope);
        let expected = wire::Deliver {
            seq: head.seq.0,
            from_user: head.from_user.into(),
            from_device: head.from_device.into(),
            install_id: head.install_id.0,
            send_seq: head.send_seq.0,
            sent_at_ms: head.sent_at_ms,
            group: group.unwrap_or_default().into(),
            urgent: head.urgent,
            message_number: match head.message_number.0 {
                same if same == head.send_seq.0 => 0,
                number => number,
            },
            envelope: envelope.clone().into(),
        };
        assert_eq!(decode(&out), server_frame::Frame::Deliver(expected));
        let ClientEvent::Deliver(delivery) = event(&out) else { panic!("a Deliver") };
        assert_eq!(delivery.envelope, envelope);
        assert_eq!((delivery.seq, delivery.send_seq), (head.seq, head.send_seq));
        assert_eq!(delivery.message_number, head.message_number);
        assert_eq!(delivery.group.as_ref().map(UserId::as_str), group);
        assert_eq!((delivery.urgent, delivery.install_id), (head.urgent, head.install_id));
    }
}

#[test]
fn the_largest_deliver_fits_a_frame() {
    let head = DeliverHead {
        seq: Seq(u64::MAX),
        from_user: &"u".repeat(128),
        from_device: &"d".repeat(64),
        install_id: InstallId(u64::MAX),
        send_seq: SendSeq(u64::MAX),
        message_number: MessageNumber(u64::MAX - 1),
        sent_at_ms: u64::MAX,
        group: Some(&"g".repeat(128)),
        urgent: true,
    };
    let mut out = Vec::new();
    put_deliver(&mut out, &head, &vec![7; ENVELOPE_BYTES_MAX]);
    assert!(matches!(decode(&out), server_frame::Frame::Deliver(_)));
}

#[test]
fn answers_and_receipts_survive_the_wire() {
    let user = UserId::new("bob").unwrap();
    let device = DeviceId::new("tablet").unwrap();
    let skipped = vec![(user.clone(), device.clone(), SkipReason::Full)];
    let outcomes = [
        Outcome::Accepted { server_time_ms: 1_700_000_000_000, skipped: vec![] },
        Outcome::Accepted { server_time_ms: 0, skipped },
        Outcome::Rejected { code: RejectCode::MailboxFull, retry_after_ms: None },
        Outcome::Rejected { code: RejectCode::RateLimited, retry_after_ms: Some(0) },
        Outcome::Rejected { code: RejectCode::Unspecified, retry_after_ms: Some(9) },
    ];
    for outcome in outcomes {
        let mut out = Vec::new();
        put_outcome(&mut out, SendSeq(300), &outcome);
        decode(&out);
        assert_eq!(event(&out), ClientEvent::Answered { send_seq: SendSeq(300), outcome });
    }

    let peer = DeviceAddress { user, device };
    for group in [None, Some("g")] {
        let mut out = Vec::new();
        let (install_id, up_to_send_seq) = (InstallId(3), SendSeq(4));
        let head = DeliveredHead { seq: Seq(1), peer: &peer, group, install_id, up_to_send_seq };
        put_delivered(&mut out, &head);
        decode(&out);
        let (seq, peer) = (Seq(1), peer.clone());
        let group_id = group.map(|group| UserId::new(group).unwrap());
        let expected = ClientEvent::Delivered {
            seq,
            peer,
            group: group_id.clone(),
            install_id,
            up_to_send_seq,
        };
        assert_eq!(event(&out), expected);

        for reason in [GapReason::Full, GapReason::Expired, GapReason::Damaged] {
            let mut out = Vec::new();
            put_gap(&mut out, Seq(8), reason, group);
            decode(&out);
            let expected = ClientEvent::Gap { seq: Seq(8), group: group_id.clone(), reason };
            assert_eq!(event(&out), expected);
        }
    }
}

#[test]
fn the_other_frames_of_the_server_survive_the_wire() {
    let welcome = Welcome {
        mailbox_id: MailboxId(1),
        heartbeat_ms: 30_000,
        server_time_ms: 5,
        limits: Limits::of_protocol(),
        capabilities: 0,
    };
    type Put<'a> = &'a dyn Fn(&mut Vec<u8>);
    let error = ClientEvent::Error {
        code: ErrorCode::HelloExpected,
        text: PeerFault::BeforeHello.to_string(),
        fatal: true,
        request_id: 0,
    };
    let away = |other_address: Option<&str>| ClientEvent::GoAway {
        reason: GoAwayReason::Drain,
        reconnect_after_ms: 77,
        other_address: other_address.map(str::to_owned),
    };
    let cases: [(Put<'_>, ClientEvent); 6] = [
        (&|out| put_welcome(out, &welcome), ClientEvent::Welcome(welcome.clone())),
        (&|out| put_caught_up(out), ClientEvent::CaughtUp),
        (&|out| put_pong(out), ClientEvent::Pong),
        (&|out| put_fault(out, &PeerFault::BeforeHello), error),
        (&|out| put_go_away(out, GoAwayReason::Drain, 77, None), away(None)),
        (&|out| put_go_away(out, GoAwayReason::Drain, 77, Some("h:1")), away(Some("h:1"))),
    ];
    for (put, expected) in cases {
        let mut out = Vec::new();
        put(&mut out);
        decode(&out);
        assert_eq!(event(&out), expected);
    }
}

#[test]
fn retryable_is_what_the_schema_says() {
    let rejected = |code, retry_after_ms| Outcome::Rejected { code, retry_after_ms };
    assert!(rejected(RejectCode::MailboxFull, None).is_retryable());
    assert!(!rejected(RejectCode::TooLarge, Some(1)).is_retryable());
    assert!(!rejected(RejectCode::Unspecified, None).is_retryable());
    assert!(rejected(RejectCode::Unspecified, Some(1)).is_retryable());
}

#[test]
fn unknown_server_frames_and_reasons_are_ignored() {
    assert_eq!(parse_server_frame(&Bytes::from_static(&[0xe2, 0x3f, 0])), Ok(None));
    let ticket = server_frame::Frame::MediaTicket(wire::MediaTicket::default());
    let frame = wire::ServerFrame { frame: Some(ticket) }.encode_to_vec();
    assert_eq!(parse_server_frame(&frame.into()), Ok(None));
    let gap = wire::Gap { seq: 1, reason: 99, ..Default::default() };
    let frame = wire::ServerFrame { frame: Some(server_frame::Frame::Gap(gap)) };
    let expected = ClientEvent::Gap { seq: Seq(1), group: None, reason: GapReason::Unspecified };
    assert_eq!(parse_server_frame(&frame.encode_to_vec().into()), Ok(Some(expected)));
}

#[test]
fn debug_output_has_no_token_and_no_envelope() {
    let requests = [
        parse(client_frame::Frame::Hello(hello())),
        parse(client_frame::Frame::TokenRenew(wire::TokenRenew { token: "t.o.k".into() })),
        parse_send(send_to_user()),
    ];
    for request in requests {
        let text = format!("{:?}", request.unwrap());
        assert!(!text.contains("t.o.k") && !text.contains("secret"), "{text}");
    }
}
