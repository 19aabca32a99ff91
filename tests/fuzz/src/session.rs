//! The server's end of a connection: any bytes as frames, and scripts of nearly valid ones, against
//! the order that the protocol states; what it answers, against the client's end; and the send
//! memory behind it, across connections, against [`SendModel`].

use bytes::{Bytes, BytesMut};
use ringpost_protocol::fault::PeerFault;
use ringpost_protocol::frame::{put_length, split_frame};
use ringpost_protocol::id::{
    DeviceAddress, DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq, UserId,
};
use ringpost_protocol::limits::FRAME_BYTES_MAX;
use ringpost_protocol::message::{
    DeliverHead, DeliveredHead, GapReason, GoAwayReason, Limits, Mode, Outcome, RejectCode,
    Request, SkipReason, Welcome, parse_client_frame, put_fault, put_go_away, put_outcome,
};
use ringpost_protocol::session::{ClientHello, ClientSession, ServerSession};
use ringpost_protocol::wire;
use ringpost_protocol::wire::client_frame::Frame;

use crate::client_frames::{self, encode, meaning};
use crate::script::Script;
use crate::seeds::{self, Seed};
use crate::send_model::SendModel;

/// A script of steps; the first byte chooses a plain stream of frames instead.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let mut world = World::new();
    if script.byte() == b'F' {
        world.stream(script.rest());
        return;
    }
    while !script.is_empty() {
        world.step(&mut script);
    }
}

struct World {
    now_ms: u64,
    conn: Connection,
    memory: SendModel,
}

/// One connection, and what is expected of it.
struct Connection {
    session: ServerSession,
    stage: Stage,
    heard_ms: u64,
    heartbeat_ms: u64,
    expires_unix_ms: u64,
    sent_up_to: u64,
    install: InstallId,
    /// What the session has written and the client has not read.
    out: Vec<u8>,
    client: ClientSession,
    /// Frames in `out`.
    frames: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    AwaitHello,
    AwaitWelcome,
    Open,
    Closed,
}

impl World {
    fn new() -> Self {
        let now_ms = 1_000_000;
        Self { now_ms, conn: Connection::new(now_ms), memory: SendModel::new(InstallId(9)) }
    }

    /// The bytes of a peer, as the shard takes them.
    fn stream(&mut self, stream: &[u8]) {
        let mut buf = BytesMut::from(stream);
        loop {
            match split_frame(&mut buf, FRAME_BYTES_MAX) {
                Ok(Some(frame)) => {
                    self.frame(frame);
                    if self.conn.stage == Stage::AwaitWelcome {
                        self.welcome(u64::MAX, Limits::of_protocol());
                    }
                    if self.conn.stage == Stage::Closed {
                        return self.conn.read(self.now_ms);
                    }
                }
                Ok(None) => return self.conn.read(self.now_ms),
                Err(fault) => {
                    put_fault(&mut self.conn.out, &fault.into());
                    self.conn.frames += 1;
                    self.conn.read(self.now_ms);
                    return;
                }
            }
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 18 {
            0 => self.frame(Bytes::copy_from_slice(script.bytes())),
            1 => self.frame(encode(client_frames::hello(script))),
            2..=4 => {
                let high = self.memory.high();
                let number = high.wrapping_add(script.number()).wrapping_sub(script.number());
                self.frame(encode(client_frames::send(script, number)));
            }
            5 => {
                let above = script.number();
                let up_to_seq = self.conn.sent_up_to.wrapping_add(above).wrapping_sub(1);
                self.frame(encode(Frame::Ack(wire::Ack { up_to_seq })));
            }
            6 => self.frame(encode(client_frames::other(script))),
            7 => {
                let limits = limits(script);
                self.welcome(script.number().saturating_mul(1000), limits);
            }
            8 | 9 => self.conn.deliver(script),
            10 => self.settle(script),
            11 => self.burst(script),
            12 => {
                let install = InstallId(u64::from(script.byte() % 4).max(1));
                self.conn = Connection::new(self.now_ms);
                self.conn.install = install;
            }
            13 => {
                self.now_ms += script.number().min(10_000_000);
                self.conn.time(self.now_ms);
            }
            14 => {
                let expires_unix_ms = script.number().saturating_mul(1000);
                self.conn.session.renewed(expires_unix_ms);
                self.conn.expires_unix_ms = expires_unix_ms;
            }
            15 => self.lose(script),
            _ => self.open(),
        }
        self.conn.read(self.now_ms);
    }

    /// The usual beginning.
    fn open(&mut self) {
        if self.conn.stage == Stage::AwaitHello {
            self.frame(encode(Frame::Hello(wire::Hello {
                token: "t".into(),
                device: "phone".into(),
                install_id: self.conn.install.0,
                ..Default::default()
            })));
            self.welcome(u64::MAX, Limits::of_protocol());
        }
    }

    fn welcome(&mut self, expires_unix_ms: u64, limits: Limits) {
        if self.conn.stage != Stage::AwaitWelcome {
            return;
        }
        let welcome = Welcome {
            mailbox_id: MailboxId(6),
            heartbeat_ms: 30_000,
            server_time_ms: UNIX_MS + self.now_ms,
            limits,
            capabilities: 0,
        };
        self.conn.session.welcome(self.now_ms, expires_unix_ms, &welcome, &mut self.conn.out);
        self.conn.frames += 1;
        self.conn.stage = Stage::Open;
        self.conn.heard_ms = self.now_ms;
        self.conn.expires_unix_ms = expires_unix_ms;
        self.memory.connection_started(self.conn.install);
    }

    fn frame(&mut self, frame: Bytes) {
        let parsed = parse_client_frame(frame.clone());
        let meaning = meaning(&frame);
        match (&parsed, &meaning) {
            // Not served: only its request_id is read, so the rest may be malformed.
            (Ok(Request::Unsupported { .. }), None) => {}
            (Ok(parsed), meaning) => assert_eq!(Some(parsed), meaning.as_ref()),
            // The generated code forgives what the schema does not: a value that a later one
            // replaces may be wrong, and there may be groups and several fields.
            (Err(fault), _) => assert!(!fault.to_string().is_empty()),
        }
        let Some(request) = self.conn.frame(self.now_ms, frame, parsed) else { return };
        if let Request::Send(send) = request {
            let answer = self.memory.admit(send.send_seq.0, &send.to, send.after_reject);
            self.conn.answer(send.send_seq.0, answer);
        }
    }

    fn settle(&mut self, script: &mut Script<'_>) {
        let index = usize::from(script.byte());
        let outcome = outcome(script);
        if let Some((number, outcome)) = self.memory.settle(index, outcome) {
            self.conn.answer(number, Ok(Some(outcome)));
        }
    }

    /// The store fails: the connection goes, if it waits for what nobody knows.
    fn lose(&mut self, script: &mut Script<'_>) {
        let index = usize::from(script.byte());
        if self.memory.lose(index).is_some() && self.conn.stage == Stage::Open {
            put_go_away(&mut self.conn.out, GoAwayReason::Storage, 5, None);
            self.conn.frames += 1;
        }
    }

    /// Many Sends at once: new ones, or the last ones again.
    fn burst(&mut self, script: &mut Script<'_>) {
        let (count, names, flags) = (u64::from(script.byte() % 80), script.byte(), script.byte());
        let high = self.memory.high();
        let first = if flags & 1 == 0 { high.wrapping_add(1) } else { high.wrapping_sub(count) };
        for index in 0..count {
            let number = first.wrapping_add(index);
            let name = format!("u{}", number % u64::from(names.max(1)));
            self.frame(encode(Frame::Send(wire::Send {
                send_seq: number,
                to: Some(wire::send::To::User(name)),
                body: Some(wire::send::Body::Shared(Bytes::new())),
                after_reject: flags & 2 != 0,
                ..Default::default()
            })));
            if flags & 4 != 0 {
                let outcome = outcome(&mut Script::new(&[flags >> 3, 1]));
                if let Some((number, outcome)) = self.memory.settle(0, outcome) {
                    self.conn.answer(number, Ok(Some(outcome)));
                }
            }
        }
    }
}

impl Connection {
    fn new(now_ms: u64) -> Self {
        let hello = ClientHello {
            token: "t".into(),
            device: DeviceId::new("phone").expect("a short name"),
            install_id: InstallId(9),
            mailbox_id: MailboxId(0),
            acked_up_to: Seq(0),
            mode: Mode::Foreground,
            capabilities: 0,
        };
        Self {
            session: ServerSession::new(now_ms),
            stage: Stage::AwaitHello,
            heard_ms: now_ms,
            heartbeat_ms: 30_000,
            expires_unix_ms: u64::MAX,
            sent_up_to: 0,
            install: InstallId(9),
            out: Vec::new(),
            client: ClientSession::new(now_ms, hello),
            frames: 0,
        }
    }

    /// Gives the frame to the session. What it asks of the shard, if it is to be served.
    fn frame(
        &mut self,
        now_ms: u64,
        frame: Bytes,
        parsed: Result<Request, PeerFault>,
    ) -> Option<Request> {
        let before = self.out.len();
        let found = self.session.handle_frame(now_ms, frame, &mut self.out);
        let expected = self.expect(parsed);
        match &expected {
            Ok(Some(Request::Ping | Request::Unsupported { .. })) => {
                assert_eq!(found, Ok(None));
                assert!(self.out.len() > before, "it is answered");
                self.frames += 1;
            }
            _ => {
                assert_eq!(found, expected);
                assert_eq!(self.out.len(), before, "nothing is to be said");
            }
        }
        if self.stage != Stage::Closed && expected.is_ok() {
            self.heard_ms = now_ms;
        }
        match expected {
            Err(fault) => {
                self.fail(&fault);
                None
            }
            Ok(request) => {
                match &request {
                    Some(Request::Hello(hello)) => {
                        self.stage = Stage::AwaitWelcome;
                        self.heartbeat_ms = hello.mode.heartbeat_ms();
                        self.install = hello.install_id;
                    }
                    Some(Request::Mode(mode)) => self.heartbeat_ms = mode.heartbeat_ms(),
                    Some(Request::Bye) => self.stage = Stage::Closed,
                    _ => {}
                }
                request
            }
        }
    }

    fn expect(&self, parsed: Result<Request, PeerFault>) -> Result<Option<Request>, PeerFault> {
        if self.stage == Stage::Closed {
            return Ok(None);
        }
        let request = parsed?;
        match (&request, self.stage) {
            (Request::Hello(_), Stage::AwaitHello) => Ok(Some(request)),
            (Request::Hello(_), _) => Err(PeerFault::HelloRepeated),
            (_, Stage::AwaitHello) => Err(PeerFault::BeforeHello),
            (Request::Bye, Stage::AwaitWelcome) => Ok(Some(request)),
            (_, Stage::AwaitWelcome) => Err(PeerFault::BeforeWelcome),
            (Request::Ack { up_to }, _) if up_to.0 > self.sent_up_to => {
                Err(PeerFault::AckUnsent { up_to: *up_to, sent: Seq(self.sent_up_to) })
            }
            _ => Ok(Some(request)),
        }
    }

    /// As the shard does it: the fault is told, and nothing else is said or read.
    fn fail(&mut self, fault: &PeerFault) {
        self.stage = Stage::Closed;
        put_fault(&mut self.out, fault);
        self.frames += 1;
    }

    fn answer(&mut self, number: u64, answer: Result<Option<Outcome>, PeerFault>) {
        match answer {
            Ok(Some(outcome)) if self.stage == Stage::Open => {
                put_outcome(&mut self.out, SendSeq(number), &outcome);
                self.frames += 1;
            }
            Ok(_) => {}
            Err(fault) => {
                // The session itself stays open: the shard drops it.
                self.fail(&fault);
                self.session = ServerSession::new(0);
                let bye = encode(Frame::Hello(wire::Hello::default()));
                let closed = self.session.handle_frame(0, bye, &mut Vec::new());
                assert!(closed.is_err(), "a Hello without an installation");
            }
        }
    }

    fn deliver(&mut self, script: &mut Script<'_>) {
        if !matches!(self.stage, Stage::Open | Stage::Closed) {
            return;
        }
        let Some(seq) = self.sent_up_to.checked_add(script.number().max(1)) else { return };
        let group = script.flag().then_some("group");
        let before = self.out.len();
        match script.byte() % 3 {
            0 => {
                let head = DeliverHead {
                    seq: Seq(seq),
                    from_user: "bob",
                    from_device: "phone",
                    install_id: InstallId(script.number()),
                    send_seq: SendSeq(script.number()),
                    message_number: MessageNumber(script.number()),
                    sent_at_ms: script.number(),
                    group,
                    urgent: script.flag(),
                };
                self.session.deliver(&mut self.out, &head, script.bytes());
            }
            1 => self.session.gap(&mut self.out, Seq(seq), GapReason::Full, group),
            _ => {
                let user = UserId::new("carol").expect("a short name");
                let device = DeviceId::new("tablet").expect("a short name");
                let peer = DeviceAddress { user, device };
                let install_id = InstallId(script.number());
                let up_to_send_seq = SendSeq(script.number());
                let seq = Seq(seq);
                let head = DeliveredHead { seq, peer: &peer, group, install_id, up_to_send_seq };
                self.session.delivered(&mut self.out, &head);
            }
        }
        assert_eq!(self.out.len() > before, self.stage == Stage::Open, "closed is silent");
        if self.stage == Stage::Open {
            self.frames += 1;
            self.sent_up_to = seq;
        }
    }

    fn time(&mut self, now_ms: u64) {
        let unix_ms = UNIX_MS + now_ms;
        let due = self.session.poll_timeout(now_ms, unix_ms) <= now_ms;
        let fault = self.session.handle_timeout(now_ms, unix_ms).err();
        let silent_ms = now_ms - self.heard_ms;
        let expected = match self.stage {
            Stage::AwaitHello if silent_ms >= 10_000 => Some(PeerFault::HelloTimeout),
            Stage::Open if unix_ms >= self.expires_unix_ms => Some(PeerFault::TokenExpired),
            Stage::Open if 2 * silent_ms >= 5 * self.heartbeat_ms => {
                Some(PeerFault::HeartbeatTimeout)
            }
            _ => None,
        };
        assert_eq!(fault, expected);
        assert_eq!(due, fault.is_some(), "the deadline is when something happens");
        if let Some(fault) = fault {
            self.fail(&fault);
        }
    }

    /// Whatever the server says, its own client understands it, frame by frame.
    fn read(&mut self, now_ms: u64) {
        let mut buf = BytesMut::from(&self.out[..]);
        self.out.clear();
        let read = self.client.handle_data(now_ms, &mut buf);
        assert_eq!(read, Ok(()), "the server broke the protocol");
        let mut events = 0;
        while let Some(event) = self.client.poll_event() {
            events += 1;
            assert!(!format!("{event:?}").is_empty());
        }
        assert!(buf.is_empty(), "a frame was not read");
        assert_eq!(events, std::mem::take(&mut self.frames), "one event for each frame");
        assert_eq!(self.session.is_open(), self.stage == Stage::Open);
    }
}

pub fn outcome(script: &mut Script<'_>) -> Outcome {
    match script.byte() % 16 {
        0..=3 => Outcome::Accepted { server_time_ms: script.number(), skipped: Vec::new() },
        4 => {
            let user = UserId::new("bob").expect("a short name");
            let device = DeviceId::new("phone").expect("a short name");
            let skipped = vec![(user, device, SkipReason::Full)];
            Outcome::Accepted { server_time_ms: script.number(), skipped }
        }
        code => Outcome::Rejected {
            code: RejectCode::try_from(i32::from(code) - 5).unwrap_or_default(),
            retry_after_ms: script.flag().then(|| script.number()),
        },
    }
}

pub fn limits(script: &mut Script<'_>) -> Limits {
    if script.flag() {
        return Limits::of_protocol();
    }
    let mut narrow = || u32::try_from(script.number()).unwrap_or(u32::MAX);
    let mut limits = Limits {
        frame_bytes_max: narrow(),
        envelope_bytes_max: narrow(),
        sends_unanswered_max: narrow(),
        delivers_unacked_max: narrow(),
        devices_per_user_max: narrow(),
        ..Limits::default()
    };
    limits.ttl_ms_max = script.number();
    limits.heartbeat_foreground_ms = script.number();
    limits.heartbeat_background_ms_min = script.number();
    limits.heartbeat_background_ms_max = script.number();
    limits
}

/// One frame with its length.
pub fn framed(frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_length(&mut out, frame.len());
    out.extend_from_slice(frame);
    out
}

const UNIX_MS: u64 = 1_790_000_000_000;

/// One connection as it usually goes, as plain bytes and as a script, and the edges of the window.
pub fn seeds() -> Vec<Seed> {
    let message = |send_seq| {
        Frame::Send(wire::Send {
            send_seq,
            to: Some(wire::send::To::User("bob".into())),
            body: Some(wire::send::Body::Shared(Bytes::from_static(b"envelope"))),
            ttl_ms: 1000,
            urgent: true,
            after_reject: true,
            message_number: 77,
            roster_version: 300,
            device_list_version: 301,
        })
    };
    let envelope = |device: &str| wire::DeviceEnvelope {
        device: device.into(),
        envelope: Bytes::from_static(b"own envelope"),
    };
    let envelopes = vec![envelope("phone"), envelope("tablet")];
    let per_device = Frame::Send(wire::Send {
        send_seq: 3,
        to: Some(wire::send::To::User("carol".into())),
        body: Some(wire::send::Body::PerDevice(wire::DeviceEnvelopes { envelopes })),
        ..Default::default()
    });
    let hello = Frame::Hello(wire::Hello {
        token: "t.o.k".into(),
        device: "phone".into(),
        install_id: 9,
        mailbox_id: 6,
        acked_up_to: 5,
        mode: Some(wire::Mode { kind: 2, interval_ms: 300_000 }),
        capabilities: 1,
    });
    let mode = Frame::Mode(wire::Mode { kind: 2, interval_ms: 1 });
    let renew = Frame::TokenRenew(wire::TokenRenew { token: "newer".into() });
    let unsupported = Frame::KeyCount(wire::KeyCount { request_id: 8 });
    let frames = [hello, message(1), message(2), per_device, mode, renew, unsupported];
    let frames = frames.into_iter().chain([Frame::Ping(wire::Ping {}), Frame::Bye(wire::Bye {})]);
    let frames: Vec<_> = frames.map(|frame| encode(frame).to_vec()).collect();
    let script = |steps: &[&[u8]]| [&[0], &steps.concat()[..]].concat();
    vec![
        ("stream", seeds::stream(b"F", &frames)),
        (
            "mail",
            script(&[&[16], &[8, 5, 0, 0, 1, 2, 3, 4, 0, 2, 0, 9, 9], &[8, 1, 0, 1], &[5, 1, 0]]),
        ),
        ("time", script(&[&[16], &[13, 0xd1, 1], &[14, 9], &[13, 1], &[12, 1], &[13, 0xd0, 0]])),
        (
            "window",
            script(&[&[16], &[11, 79, 9, 0], &[11, 79, 9, 0], &[11, 79, 9, 0], &[11, 79, 9, 0]]),
        ),
        ("settled", script(&[&[16], &[11, 79, 9, 4], &[11, 79, 3, 0x44], &[11, 79, 9, 1]])),
        (
            "rejected",
            script(&[&[16], &[11, 9, 3, 0x34], &[11, 9, 3, 0], &[11, 9, 3, 2], &[10, 3, 6]]),
        ),
        (
            "lost",
            script(&[&[16], &[11, 20, 3, 0], &[15, 4], &[15, 4], &[12, 9], &[16], &[11, 20, 3, 1]]),
        ),
        (
            "again",
            script(&[&[16], &[11, 20, 3, 0], &[12, 9], &[16], &[11, 20, 3, 1], &[10, 3, 0, 9]]),
        ),
        (
            "installed-anew",
            script(&[&[16], &[11, 9, 3, 0], &[12, 2], &[16], &[11, 9, 3, 0], &[10, 3]]),
        ),
    ]
}
