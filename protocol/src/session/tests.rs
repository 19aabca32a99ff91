use bytes::{Bytes, BytesMut};
use prost::Message;

use super::*;
use crate::fault::{PeerFault, ServerFault};
use crate::frame::split_frame;
use crate::id::{DeviceAddress, DeviceId, InstallId, MailboxId, SendSeq, Seq, UserId};
use crate::limits::*;
use crate::message::*;
use crate::wire::{self, client_frame::Frame};

const MAILBOX: MailboxId = MailboxId(11);
const TOKEN_EXPIRES_UNIX_MS: u64 = 1_000_000_000;

/// Both ends of one connection, back to back on one clock.
struct Pair {
    client: ClientSession,
    server: ServerSession,
    /// Bytes under way.
    to_server: BytesMut,
    to_client: Vec<u8>,
    requests: Vec<Request>,
    events: Vec<ClientEvent>,
    now_ms: u64,
    limits: Limits,
}

impl Pair {
    fn new(acked_up_to: u64) -> Self {
        Self {
            client: ClientSession::new(0, client_hello(acked_up_to)),
            server: ServerSession::new(0),
            to_server: BytesMut::new(),
            to_client: Vec::new(),
            requests: Vec::new(),
            events: Vec::new(),
            now_ms: 0,
            limits: Limits::of_protocol(),
        }
    }

    /// A pair whose session is open.
    fn open(acked_up_to: u64) -> Self {
        Self::open_with(acked_up_to, Limits::of_protocol())
    }

    fn open_with(acked_up_to: u64, limits: Limits) -> Self {
        let mut pair = Self::new(acked_up_to);
        pair.limits = limits;
        pair.step();
        assert!(matches!(pair.requests[..], [Request::Hello(_)]));
        pair.welcome(MAILBOX);
        pair.step();
        assert!(matches!(pair.events[..], [ClientEvent::Welcome(_)]));
        pair.requests.clear();
        pair.events.clear();
        pair
    }

    fn welcome(&mut self, mailbox_id: MailboxId) {
        let welcome = Welcome {
            mailbox_id,
            heartbeat_ms: self.server.mode().heartbeat_ms(),
            server_time_ms: 5,
            limits: self.limits,
            capabilities: 0,
        };
        let (now_ms, out) = (self.now_ms, &mut self.to_client);
        self.server.welcome(now_ms, TOKEN_EXPIRES_UNIX_MS, &welcome, out);
    }

    /// Moves what is under way, a byte at a time to the client, until nothing moves.
    fn step(&mut self) {
        loop {
            let mut out = Vec::new();
            let moved = self.client.poll_transmit(self.now_ms, &mut out);
            self.to_server.extend_from_slice(&out);
            while let Some(frame) = split_frame(&mut self.to_server, FRAME_BYTES_MAX).unwrap() {
                let request =
                    self.server.handle_frame(self.now_ms, frame, &mut self.to_client).unwrap();
                self.requests.extend(request);
            }
            if !moved && self.to_client.is_empty() {
                return;
            }
            let mut buf = BytesMut::new();
            for byte in self.to_client.drain(..) {
                buf.extend_from_slice(&[byte]);
                self.client.handle_data(self.now_ms, &mut buf).unwrap();
            }
            assert!(buf.is_empty());
            self.events.extend(std::iter::from_fn(|| self.client.poll_event()));
        }
    }

    fn deliver(&mut self, seq: u64) {
        let head = DeliverHead {
            seq: Seq(seq),
            from_user: "bob",
            from_device: "phone",
            install_id: InstallId(2),
            send_seq: SendSeq(seq),
            message_number: crate::id::MessageNumber(SendSeq(seq).0),
            sent_at_ms: 1,
            group: None,
            urgent: false,
        };
        self.server.deliver(&mut self.to_client, &head, b"hi");
    }

    fn send(&mut self, send_seq: u64) -> Result<(), SendRefused> {
        let to = Recipient::User(UserId::new("bob").unwrap());
        self.client.send(&client_send(send_seq, &to, SendContent::Shared(b"hi")))
    }

    /// The clock at which something is due at one of the ends.
    fn next_ms(&self) -> u64 {
        self.client.poll_timeout().min(self.server.poll_timeout(self.now_ms, 0))
    }
}

fn client_hello(acked_up_to: u64) -> ClientHello {
    ClientHello {
        token: "t".into(),
        device: DeviceId::new("phone").unwrap(),
        install_id: InstallId(1),
        mailbox_id: MAILBOX,
        acked_up_to: Seq(acked_up_to),
        mode: Mode::Foreground,
        capabilities: 0,
    }
}

fn client_send<'a>(send_seq: u64, to: &'a Recipient, body: SendContent<'a>) -> ClientSend<'a> {
    let send_seq = SendSeq(send_seq);
    ClientSend {
        send_seq,
        message_number: crate::id::MessageNumber::default(),
        to,
        roster_version: 300,
        device_list_version: 301,
        body,
        ttl_ms: 0,
        urgent: true,
        after_reject: false,
    }
}

fn frame(frame: Frame) -> Bytes {
    wire::ClientFrame { frame: Some(frame) }.encode_to_vec().into()
}

fn ping() -> Bytes {
    frame(Frame::Ping(wire::Ping {}))
}

fn pong() -> BytesMut {
    let frame = wire::ServerFrame { frame: Some(wire::server_frame::Frame::Pong(wire::Pong {})) };
    BytesMut::from(&frame.encode_length_delimited_to_vec()[..])
}

fn hello() -> Bytes {
    let (token, device) = ("t".into(), "phone".into());
    frame(Frame::Hello(wire::Hello { token, device, install_id: 1, ..Default::default() }))
}

#[test]
fn a_server_session_takes_few_bytes() {
    assert!(size_of::<ServerSession>() <= 64, "{}", size_of::<ServerSession>());
}

#[test]
fn a_conversation_passes_both_ways() {
    let mut pair = Pair::open(0);
    assert!(pair.server.is_open());
    pair.send(1).unwrap();
    pair.step();
    let [Request::Send(send)] = &pair.requests[..] else { panic!("one Send") };
    assert_eq!(send.body, SendBody::Shared(Bytes::from_static(b"hi")));
    assert!(send.urgent && !send.after_reject && send.ttl_ms == TTL_MS_MAX);
    assert_eq!(pair.client.unanswered(), 1);

    let outcome = Outcome::Accepted { server_time_ms: 3, skipped: vec![] };
    put_outcome(&mut pair.to_client, SendSeq(1), &outcome);
    pair.deliver(5);
    let group = Some("g");
    pair.server.gap(&mut pair.to_client, Seq(6), GapReason::Full, group);
    let peer = DeviceAddress {
        user: UserId::new("bob").unwrap(),
        device: DeviceId::new("phone").unwrap(),
    };
    let (install_id, up_to_send_seq) = (InstallId(1), SendSeq(1));
    let head = DeliveredHead { seq: Seq(7), peer: &peer, group, install_id, up_to_send_seq };
    pair.server.delivered(&mut pair.to_client, &head);
    put_caught_up(&mut pair.to_client);
    assert_eq!(pair.server.sent_up_to(), Seq(7));
    pair.step();
    assert_eq!(pair.client.unanswered(), 0);
    let [
        ClientEvent::Answered { send_seq: SendSeq(1), .. },
        ClientEvent::Deliver(_),
        ClientEvent::Gap { seq: Seq(6), .. },
        ClientEvent::Delivered { up_to_send_seq: SendSeq(1), .. },
        ClientEvent::CaughtUp,
    ] = &pair.events[..]
    else {
        panic!("{:?}", pair.events)
    };
}

#[test]
fn sends_of_both_kinds_arrive_as_they_were_given() {
    let mut pair = Pair::open(0);
    let group = Recipient::Group(UserId::new("g").unwrap());
    let user = Recipient::User(UserId::new("bob").unwrap());
    let entries: Vec<(DeviceId, Bytes)> = [("a", 0), ("b", 300), ("c", 20_000)]
        .map(|(device, bytes)| (DeviceId::new(device).unwrap(), vec![3; bytes].into()))
        .to_vec();
    let shared = vec![4; ENVELOPE_BYTES_MAX];
    pair.client.send(&client_send(1, &user, SendContent::PerDevice(&entries))).unwrap();
    pair.client.send(&client_send(2, &group, SendContent::Shared(&shared))).unwrap();
    pair.client.send(&client_send(3, &group, SendContent::Shared(b""))).unwrap();
    pair.step();
    let bodies: Vec<_> = pair
        .requests
        .iter()
        .map(|request| match request {
            Request::Send(send) => (&send.to, &send.body),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(bodies[0], (&user, &SendBody::PerDevice(entries)));
    assert_eq!(bodies[1], (&group, &SendBody::Shared(shared.into())));
    assert_eq!(bodies[2], (&group, &SendBody::Shared(Bytes::new())));
}

#[test]
fn sends_that_no_server_takes_are_refused_at_once() {
    let mut client = ClientSession::new(0, client_hello(0));
    let to = Recipient::User(UserId::new("bob").unwrap());
    let large = vec![0; ENVELOPE_BYTES_MAX + 1];
    let refused = client.send(&client_send(1, &to, SendContent::Shared(&large)));
    assert!(matches!(refused, Err(SendRefused::TooLarge { .. })));
    let half = Bytes::from(vec![0; FRAME_BYTES_MAX / 2]);
    let entries = ["a", "b"].map(|device| (DeviceId::new(device).unwrap(), half.clone()));
    let refused = client.send(&client_send(1, &to, SendContent::PerDevice(&entries)));
    assert!(matches!(refused, Err(SendRefused::TooLarge { .. })));
    assert_eq!(client.unanswered(), 0);
}

#[test]
fn the_client_keeps_to_what_the_server_allows() {
    let limits = Limits::with_frame_bytes_max(20_000);
    let envelope_bytes_max = limits.envelope_bytes_max as usize;
    assert_eq!(limits.envelope_bytes_max, 20_000 - 4_096);
    assert_eq!(Limits::with_frame_bytes_max(u32::MAX), Limits::of_protocol());
    let mut pair = Pair::open_with(0, limits);
    let to = Recipient::User(UserId::new("b".repeat(128).as_str()).unwrap());
    let body = vec![0; envelope_bytes_max + 1];
    let refused = pair.client.send(&client_send(1, &to, SendContent::Shared(&body)));
    let (bytes, bytes_max) = (envelope_bytes_max + 1, envelope_bytes_max);
    assert_eq!(refused, Err(SendRefused::TooLarge { bytes, bytes_max }));
    let half = Bytes::from(vec![0; 10_000]);
    let entries = ["a", "b"].map(|device| (DeviceId::new(device).unwrap(), half.clone()));
    let refused = pair.client.send(&client_send(1, &to, SendContent::PerDevice(&entries)));
    assert!(matches!(refused, Err(SendRefused::TooLarge { bytes_max: 20_000, .. })));
    pair.client.send(&client_send(1, &to, SendContent::Shared(&body[1..]))).unwrap();
}

#[test]
fn the_client_keeps_to_its_window() {
    let mut pair = Pair::open(0);
    for send_seq in 1..=SENDS_UNANSWERED_MAX as u64 {
        pair.send(send_seq).unwrap();
    }
    assert_eq!(pair.send(257), Err(SendRefused::WindowFull));
    pair.step();
    let outcome = Outcome::Accepted { server_time_ms: 3, skipped: vec![] };
    // Answers may come in any order, and for Sends of an older connection.
    for send_seq in [100, 9_999] {
        put_outcome(&mut pair.to_client, SendSeq(send_seq), &outcome);
    }
    pair.step();
    assert_eq!((pair.client.unanswered(), pair.events.len()), (255, 2));
    pair.send(257).unwrap();
}

#[test]
fn nothing_is_sent_between_hello_and_welcome() {
    let mut pair = Pair::new(0);
    pair.send(1).unwrap();
    pair.step();
    assert!(matches!(pair.requests[..], [Request::Hello(_)]));
    pair.welcome(MAILBOX);
    pair.step();
    assert!(matches!(pair.requests[..], [Request::Hello(_), Request::Send(_)]));
}

#[test]
fn acks_stay_within_what_this_connection_brought() {
    let mut pair = Pair::open(3);
    // Committed while the connection changed: this server has not sent 5 yet.
    pair.client.ack(Seq(5));
    pair.step();
    assert_eq!(pair.requests, []);
    pair.deliver(4);
    pair.step();
    assert_eq!(pair.requests, [Request::Ack { up_to: Seq(4) }]);
    pair.deliver(5);
    pair.deliver(8);
    pair.step();
    pair.client.ack(Seq(4));
    pair.step();
    assert_eq!(pair.requests[1..], [Request::Ack { up_to: Seq(5) }]);
}

#[test]
fn a_new_mailbox_makes_old_commits_void() {
    let mut pair = Pair::new(1_000);
    pair.client.ack(Seq(2_000));
    pair.step();
    pair.welcome(MailboxId(99));
    pair.step();
    pair.requests.clear();
    pair.deliver(4);
    pair.step();
    assert_eq!(pair.requests, [], "new mail is not acknowledged by an old commit");
    pair.client.ack(Seq(4));
    pair.step();
    assert_eq!(pair.requests, [Request::Ack { up_to: Seq(4) }]);
}

#[test]
fn an_idle_pair_lives_on_pings() {
    for mode in [Mode::Foreground, Mode::background(600_000)] {
        let mut pair = Pair::open(0);
        if mode != Mode::Foreground {
            pair.client.set_mode(0, mode);
            pair.step();
            assert_eq!(pair.requests, [Request::Mode(mode)]);
        }
        pair.events.clear();
        for _ in 0..20 {
            pair.now_ms = pair.next_ms();
            pair.client.handle_timeout(pair.now_ms).unwrap();
            pair.server.handle_timeout(pair.now_ms, 0).unwrap();
            pair.step();
        }
        assert_eq!(pair.events, vec![ClientEvent::Pong; 20]);
        assert_eq!(pair.now_ms, 20 * mode.heartbeat_ms());
    }
}

#[test]
fn silence_of_two_and_a_half_intervals_is_a_fault_at_both_ends() {
    let mut pair = Pair::open(0);
    let limit_ms = HEARTBEAT_FOREGROUND_MS * 5 / 2;
    assert_eq!(pair.server.poll_timeout(0, 0), limit_ms);
    assert_eq!(pair.server.handle_timeout(limit_ms - 1, 0), Ok(()));
    assert_eq!(pair.server.handle_timeout(limit_ms, 0), Err(PeerFault::HeartbeatTimeout));
    assert_eq!(pair.server.poll_timeout(limit_ms, 0), u64::MAX);

    assert_eq!(pair.client.poll_timeout(), HEARTBEAT_FOREGROUND_MS);
    pair.client.handle_timeout(HEARTBEAT_FOREGROUND_MS).unwrap();
    assert_eq!(pair.client.poll_timeout(), 2 * HEARTBEAT_FOREGROUND_MS);
    assert_eq!(pair.client.handle_timeout(limit_ms), Err(ServerFault::Silent));
    // One that slept for hours finds out at once.
    let mut pair = Pair::open(0);
    assert_eq!(pair.client.handle_timeout(9_999_999), Err(ServerFault::Silent));
}

#[test]
fn who_waits_for_an_answer_is_not_patient_in_the_background_either() {
    let mut pair = Pair::open(0);
    pair.client.set_mode(0, Mode::background(600_000));
    pair.step();
    pair.now_ms = 500_000;
    assert_eq!(pair.client.poll_timeout(), 600_000);
    pair.send(1).unwrap();
    pair.client.poll_transmit(pair.now_ms, &mut Vec::new());
    assert_eq!(pair.client.poll_timeout(), 500_000 + HEARTBEAT_FOREGROUND_MS, "from now on");
    pair.client.handle_timeout(500_000 + HEARTBEAT_FOREGROUND_MS).unwrap();
    let limit_ms = 500_000 + HEARTBEAT_FOREGROUND_MS * 5 / 2;
    assert_eq!(pair.client.handle_timeout(limit_ms), Err(ServerFault::Silent));
}

#[test]
fn coming_to_the_foreground_asks_whether_the_connection_lives() {
    let mut pair = Pair::open(0);
    pair.client.set_mode(0, Mode::background(600_000));
    pair.step();
    pair.now_ms = 500_000;
    pair.client.set_mode(pair.now_ms, Mode::Foreground);
    pair.client.handle_timeout(pair.now_ms).unwrap();
    pair.events.clear();
    pair.step();
    assert_eq!(pair.events, [ClientEvent::Pong]);
    let silent_ms = HEARTBEAT_FOREGROUND_MS * 5 / 2;
    assert_eq!(pair.server.poll_timeout(pair.now_ms, 0), pair.now_ms + silent_ms);
}

#[test]
fn a_probe_wants_its_own_answer_in_time() {
    let mut pair = Pair::open(0);
    pair.now_ms = HEARTBEAT_FOREGROUND_MS;
    pair.client.handle_timeout(pair.now_ms).unwrap();
    pair.client.probe(pair.now_ms, 1_000);
    let failed_ms = pair.now_ms + 1_000;
    assert_eq!(pair.client.poll_timeout(), failed_ms);
    // The answer to the ping before it says nothing about the new path.
    pair.client.handle_data(pair.now_ms, &mut pong()).unwrap();
    assert_eq!(pair.client.poll_timeout(), failed_ms);
    pair.client.handle_data(pair.now_ms, &mut pong()).unwrap();
    assert_eq!(pair.client.poll_timeout(), pair.now_ms + HEARTBEAT_FOREGROUND_MS);

    pair.client.probe(pair.now_ms, 1_000);
    assert_eq!(pair.client.handle_timeout(failed_ms), Err(ServerFault::Silent));
}

#[test]
fn a_probe_before_the_welcome_is_answered_by_it() {
    let mut pair = Pair::new(0);
    pair.client.set_mode(0, Mode::Foreground);
    pair.client.probe(0, 1_000);
    assert_eq!(pair.client.poll_timeout(), 1_000);
    pair.step();
    pair.welcome(MAILBOX);
    pair.step();
    assert_eq!(pair.client.poll_timeout(), HEARTBEAT_FOREGROUND_MS);

    let mut client = ClientSession::new(0, client_hello(0));
    client.probe(0, 1_000);
    assert_eq!(client.handle_timeout(1_000), Err(ServerFault::WelcomeTimeout));
}

#[test]
fn a_mode_set_before_the_welcome_outlives_it() {
    let mut pair = Pair::new(0);
    let mode = Mode::background(600_000);
    pair.client.set_mode(0, mode);
    pair.step();
    pair.welcome(MAILBOX);
    pair.step();
    assert_eq!(pair.server.mode(), mode);
    assert_eq!(pair.client.poll_timeout(), 600_000);
}

#[test]
fn hello_and_welcome_must_come_in_time() {
    let mut server = ServerSession::new(50);
    assert_eq!(server.poll_timeout(50, 0), 50 + HELLO_MS_MAX);
    assert_eq!(server.handle_timeout(50 + HELLO_MS_MAX - 1, 0), Ok(()));
    assert_eq!(server.handle_timeout(50 + HELLO_MS_MAX, 0), Err(PeerFault::HelloTimeout));

    let mut server = ServerSession::new(0);
    server.handle_frame(1, hello(), &mut Vec::new()).unwrap();
    assert_eq!(server.poll_timeout(1, 0), u64::MAX, "the token is being verified");
    assert_eq!(server.handle_timeout(99_999_999, u64::MAX), Ok(()));

    let mut client = ClientSession::new(0, client_hello(0));
    assert_eq!(client.poll_timeout(), WELCOME_MS_MAX);
    assert_eq!(client.handle_timeout(WELCOME_MS_MAX), Err(ServerFault::WelcomeTimeout));
}

#[test]
fn a_token_expires_unless_it_is_renewed() {
    let mut pair = Pair::open(0);
    let unix_ms = TOKEN_EXPIRES_UNIX_MS - 10;
    assert_eq!(pair.server.poll_timeout(1_000, unix_ms), 1_010);
    assert_eq!(pair.server.handle_timeout(1_000, unix_ms), Ok(()));
    pair.client.renew_token("newer");
    pair.step();
    assert_eq!(pair.requests, [Request::TokenRenew { token: "newer".into() }]);
    pair.server.renewed(TOKEN_EXPIRES_UNIX_MS + 5);
    assert_eq!(pair.server.handle_timeout(1_010, TOKEN_EXPIRES_UNIX_MS), Ok(()));
    let fault = pair.server.handle_timeout(1_015, TOKEN_EXPIRES_UNIX_MS + 5);
    assert_eq!(fault, Err(PeerFault::TokenExpired));
}

#[test]
fn frames_in_the_wrong_state_are_faults_and_end_the_session() {
    let mut out = Vec::new();
    let mut server = ServerSession::new(0);
    assert_eq!(server.handle_frame(0, ping(), &mut out), Err(PeerFault::BeforeHello));
    assert_eq!(server.handle_frame(0, hello(), &mut out), Ok(None), "nothing is read any more");

    let mut server = ServerSession::new(0);
    server.handle_frame(0, hello(), &mut out).unwrap();
    assert_eq!(server.handle_frame(0, hello(), &mut out), Err(PeerFault::HelloRepeated));

    let mut server = ServerSession::new(0);
    server.handle_frame(0, hello(), &mut out).unwrap();
    assert_eq!(server.handle_frame(0, ping(), &mut out), Err(PeerFault::BeforeWelcome));
    assert!(out.is_empty());

    let mut pair = Pair::open(0);
    assert_eq!(pair.server.handle_frame(0, hello(), &mut out), Err(PeerFault::HelloRepeated));
    let mut pair = Pair::open(0);
    let bad = pair.server.handle_frame(0, Bytes::from_static(&[0xff]), &mut out);
    assert!(matches!(bad, Err(PeerFault::Protobuf(_))));
    pair.deliver(1);
    assert!(pair.to_client.is_empty(), "a closed session sends no mailbox");
}

#[test]
fn an_ack_above_what_was_sent_here_is_a_fault() {
    let ack = |up_to_seq| frame(Frame::Ack(wire::Ack { up_to_seq }));
    let mut pair = Pair::open(50);
    pair.deliver(60);
    let mut out = Vec::new();
    for up_to in [0, 55, 60, 60] {
        let request = pair.server.handle_frame(0, ack(up_to), &mut out);
        assert_eq!(request, Ok(Some(Request::Ack { up_to: Seq(up_to) })));
    }
    let fault = PeerFault::AckUnsent { up_to: Seq(61), sent: Seq(60) };
    assert_eq!(pair.server.handle_frame(0, ack(61), &mut out), Err(fault));
}

#[test]
fn frames_that_are_not_served_get_an_error_and_the_session_goes_on() {
    let mut pair = Pair::open(0);
    let unserved =
        frame(Frame::MediaUpload(wire::MediaUpload { request_id: 7, ..Default::default() }));
    assert_eq!(pair.server.handle_frame(0, unserved, &mut pair.to_client), Ok(None));
    pair.send(1).unwrap();
    pair.step();
    assert!(matches!(pair.requests[..], [Request::Send(_)]));
    let [ClientEvent::Error { code, fatal, request_id, .. }] = &pair.events[..] else {
        panic!("{:?}", pair.events)
    };
    assert_eq!((*code, *fatal, *request_id), (ErrorCode::Unsupported, false, 7));
}

#[test]
fn bye_ends_the_session() {
    let mut pair = Pair::open(0);
    pair.client.bye();
    pair.step();
    assert_eq!(pair.requests, [Request::Bye]);
    assert!(!pair.server.is_open());
}

#[test]
fn a_fatal_error_ends_the_client_and_go_away_does_not() {
    let mut pair = Pair::open(0);
    put_go_away(&mut pair.to_client, GoAwayReason::Drain, 500, None);
    pair.step();
    let outcome = Outcome::Accepted { server_time_ms: 3, skipped: vec![] };
    pair.send(1).unwrap();
    put_outcome(&mut pair.to_client, SendSeq(1), &outcome);
    pair.step();
    assert_eq!(pair.client.unanswered(), 0, "answers before the end still count");
    let mut bytes = Vec::new();
    put_fault(&mut bytes, &PeerFault::Replaced);
    put_pong(&mut bytes);
    pair.client.handle_data(0, &mut BytesMut::from(&bytes[..])).unwrap();
    let event = pair.client.poll_event();
    assert!(matches!(
        event,
        Some(ClientEvent::Error { code: ErrorCode::Replaced, fatal: true, .. })
    ));
    assert_eq!((pair.client.poll_event(), pair.client.poll_timeout()), (None, u64::MAX));
}

#[test]
fn a_server_that_breaks_the_rules_is_a_fault() {
    let fault_of = |pair: &mut Pair, bytes: &[u8]| {
        pair.client.handle_data(0, &mut BytesMut::from(bytes)).unwrap_err()
    };
    let mut bytes = Vec::new();
    put_pong(&mut bytes);
    assert_eq!(fault_of(&mut Pair::new(0), &bytes), ServerFault::BeforeWelcome);

    let mut pair = Pair::open(10);
    bytes.clear();
    put_gap(&mut bytes, Seq(10), GapReason::Full, None);
    let fault = ServerFault::SeqNotRising { seq: Seq(10), received: Seq(10) };
    assert_eq!(fault_of(&mut pair, &bytes), fault);

    assert!(matches!(fault_of(&mut Pair::open(0), &[0]), ServerFault::Frame(_)));
    assert!(matches!(fault_of(&mut Pair::open(0), &[1, 0xff]), ServerFault::Protobuf(_)));
}
