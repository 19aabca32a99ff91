//! The client's end of a connection: whatever a server sends, what it tells the app is what the
//! frames say, and what it sends is what the server's end accepts.

use bytes::{Bytes, BytesMut};
use ringpost_protocol::fault::ServerFault;
use ringpost_protocol::frame::split_frame;
use ringpost_protocol::id::{DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq, UserId};
use ringpost_protocol::limits::{ENVELOPE_BYTES_MAX, FRAME_BYTES_MAX, SENDS_UNANSWERED_MAX};
use ringpost_protocol::message::{
    ClientEvent, Mode, Recipient, Request, SendBody, parse_client_frame,
};
use ringpost_protocol::session::{
    ClientHello, ClientSend, ClientSession, SendContent, SendRefused,
};

use crate::script::Script;
use crate::seeds::{self, Seed};
use crate::server_frames;
use crate::session::framed;
use ringpost_protocol::wire::server_frame::Frame;

/// A script of steps; the first byte chooses a plain stream of the server's bytes instead.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    let kind = script.byte();
    let mut world = World::new(&mut script);
    if kind == b'F' {
        let chunk_bytes = usize::from(script.byte()).max(1);
        for chunk in script.rest().chunks(chunk_bytes) {
            world.receive(chunk, None);
        }
        world.transmit();
        return;
    }
    while !script.is_empty() {
        world.step(&mut script);
    }
    world.transmit();
}

struct World {
    now_ms: u64,
    session: ClientSession,
    buf: BytesMut,
    mailbox: u64,
    is_open: bool,
    is_closed: bool,
    /// What the Hello named, until a Welcome says that the mailbox is another one.
    acked_up_to: u64,
    received_up_to: u64,
    /// Of this mailbox; the app's commits are of what it was given.
    committed_up_to: u64,
    said_hello: bool,
    last_send: u64,
    /// Sends without an answer, in order.
    unanswered: Vec<u64>,
    unanswered_max: usize,
    /// Sends that were not transmitted yet.
    queued: Vec<(u64, Recipient, SendBody)>,
}

impl World {
    fn new(script: &mut Script<'_>) -> Self {
        let (mailbox, acked_up_to) = (u64::from(script.byte() % 4), script.number());
        let now_ms = 5_000;
        let hello = ClientHello {
            token: "t.o.k".into(),
            device: DeviceId::new("phone").expect("a short name"),
            install_id: InstallId(7),
            mailbox_id: MailboxId(mailbox),
            acked_up_to: Seq(acked_up_to),
            mode: mode(script),
            capabilities: 0,
        };
        Self {
            now_ms,
            session: ClientSession::new(now_ms, hello),
            buf: BytesMut::new(),
            mailbox,
            is_open: false,
            is_closed: false,
            acked_up_to,
            received_up_to: 0,
            committed_up_to: acked_up_to,
            said_hello: false,
            last_send: 0,
            unanswered: Vec::new(),
            unanswered_max: SENDS_UNANSWERED_MAX,
            queued: Vec::new(),
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 16 {
            0 => self.frame(Bytes::copy_from_slice(script.bytes())),
            1 => self.frame(server_frames::encode(server_frames::welcome(script))),
            2 | 3 => {
                let pick = usize::from(script.byte()).checked_rem(self.unanswered.len());
                let number = pick.map_or(3, |pick| self.unanswered[pick]);
                self.frame(server_frames::encode(server_frames::answer(script, number)));
            }
            4 | 5 => {
                let base = self.received_up_to.max(self.acked_up_to);
                let seq = base.wrapping_add(script.number());
                self.frame(server_frames::encode(server_frames::mail(script, seq)));
            }
            6 => self.frame(server_frames::encode(server_frames::other(script))),
            7 => self.receive(script.bytes(), None),
            8 | 9 => self.send(script),
            10 => {
                // The app commits what it was given, here or on an older connection.
                let up_to = self.committed_up_to.max(self.received_up_to.min(script.number()));
                self.session.ack(Seq(up_to));
                self.committed_up_to = up_to;
            }
            11 => {
                let mode = mode(script);
                self.session.set_mode(self.now_ms, mode);
            }
            12 => self.session.renew_token("newer"),
            13 if script.byte() == 0 => self.session.bye(),
            14 => {
                self.now_ms += script.number().min(5_000_000);
                self.time();
            }
            _ => self.transmit(),
        }
    }

    fn frame(&mut self, frame: Bytes) {
        if frame.is_empty() {
            return;
        }
        let bytes = framed(&frame);
        self.receive(&bytes, Some(frame));
    }

    /// Gives bytes to the session. `whole`: they are this one frame.
    fn receive(&mut self, bytes: &[u8], whole: Option<Bytes>) {
        let aligned = self.buf.is_empty() && !self.is_closed;
        self.buf.extend_from_slice(bytes);
        let before = self.buf.clone();
        let read = self.session.handle_data(self.now_ms, &mut self.buf);
        if self.is_closed {
            assert_eq!((read, &self.buf), (Ok(()), &before), "nothing is read any more");
            return;
        }
        let mut events = Vec::new();
        while let Some(event) = self.session.poll_event() {
            events.push(event);
        }
        if let Some(frame) = whole.filter(|_| aligned) {
            match (server_frames::meaning(&frame), &read) {
                (Ok(event), Ok(())) => assert_eq!(events, Vec::from_iter(event)),
                (Err(()), Ok(())) => assert!(events.is_empty(), "{events:?} of a broken frame"),
                (_, Err(_)) => assert!(events.is_empty(), "{events:?} of a refused frame"),
            }
        }
        for event in events {
            self.event(event);
        }
        match read {
            Ok(()) => {}
            Err(fault) => {
                self.refused(&fault);
                self.is_closed = true;
            }
        }
    }

    /// Takes note of what the app was told, which had to be legal then.
    fn event(&mut self, event: ClientEvent) {
        let seq = match event {
            ClientEvent::Welcome(welcome) => {
                assert!(!self.is_open, "a second Welcome");
                self.is_open = true;
                let allowed = welcome.limits.sends_unanswered_max as usize;
                self.unanswered_max = allowed.clamp(1, SENDS_UNANSWERED_MAX);
                if welcome.mailbox_id.0 != self.mailbox {
                    self.mailbox = welcome.mailbox_id.0;
                    (self.acked_up_to, self.committed_up_to) = (0, 0);
                }
                return;
            }
            ClientEvent::Error { fatal, .. } => {
                self.is_closed |= fatal;
                return;
            }
            ClientEvent::GoAway { .. } => return,
            ClientEvent::Answered { send_seq, .. } => {
                assert!(self.is_open);
                self.unanswered.retain(|number| *number != send_seq.0);
                return;
            }
            ClientEvent::CaughtUp
            | ClientEvent::Pong
            | ClientEvent::Replied { .. }
            | ClientEvent::KeysLow { .. }
            | ClientEvent::DeviceList(_)
            | ClientEvent::GroupChanged { .. } => {
                assert!(self.is_open);
                return;
            }
            ClientEvent::Deliver(delivery) => delivery.seq,
            ClientEvent::Gap { seq, .. } | ClientEvent::Delivered { seq, .. } => seq,
        };
        assert!(self.is_open && seq.0 > self.received_up_to.max(self.acked_up_to));
        self.received_up_to = seq.0;
    }

    fn refused(&self, fault: &ServerFault) {
        match fault {
            ServerFault::BeforeWelcome => assert!(!self.is_open),
            ServerFault::WelcomeRepeated => assert!(self.is_open),
            ServerFault::SeqNotRising { seq, received } => {
                assert!(seq <= received);
                assert_eq!(received.0, self.received_up_to.max(self.acked_up_to));
            }
            ServerFault::Silent | ServerFault::WelcomeTimeout => panic!("something came: {fault}"),
            _ => assert!(!fault.to_string().is_empty()),
        }
    }

    fn send(&mut self, script: &mut Script<'_>) {
        let Some(number) = self.last_send.checked_add(u64::from(script.byte()).max(1)) else {
            return;
        };
        let to = UserId::new(["bob", "carol"][usize::from(script.byte() % 2)]);
        let to = to.expect("a short name");
        let envelope = Bytes::copy_from_slice(script.bytes());
        let count = script.byte() % 18;
        let to_group = count == 0 && script.flag();
        let devices = (0..count).map(|index| {
            (DeviceId::new(&format!("d{index}")).expect("a short name"), envelope.clone())
        });
        let devices: Vec<_> = devices.collect();
        let too_large = if count == 17 { vec![0; ENVELOPE_BYTES_MAX + 1] } else { Vec::new() };
        let content = match count {
            0 => SendContent::Shared(&envelope),
            17 => SendContent::Shared(&too_large),
            _ => SendContent::PerDevice(&devices),
        };
        let to = if to_group { Recipient::Group(to) } else { Recipient::User(to) };
        let send = ClientSend {
            send_seq: SendSeq(number),
            message_number: MessageNumber(script.number()),
            to: &to,
            roster_version: script.number(),
            device_list_version: script.number(),
            body: content,
            ttl_ms: script.number(),
            urgent: script.flag(),
            after_reject: script.flag(),
        };
        let full = self.unanswered.len() >= self.unanswered_max;
        match self.session.send(&send) {
            Ok(()) => {
                assert!(!full && count != 17, "a Send beyond a limit was taken");
                let body = if count == 0 {
                    SendBody::Shared(envelope)
                } else {
                    SendBody::PerDevice(devices)
                };
                self.last_send = number;
                self.unanswered.push(number);
                self.queued.push((number, to, body));
            }
            Err(SendRefused::WindowFull) => assert!(full),
            Err(SendRefused::TooLarge { bytes, bytes_max }) => assert!(bytes > bytes_max),
        }
        assert_eq!(self.session.unanswered(), self.unanswered.len());
    }

    fn time(&mut self) {
        let due = self.session.poll_timeout() <= self.now_ms;
        let found = self.session.handle_timeout(self.now_ms);
        self.is_closed |= found.is_err();
        assert!(due || found.is_ok(), "a fault before the deadline: {found:?}");
        self.transmit();
        let next = self.session.poll_timeout();
        assert!(next > self.now_ms, "the deadline does not move: at {}, {next}", self.now_ms);
    }

    /// Everything that goes out is what a server accepts now.
    fn transmit(&mut self) {
        let mut out = Vec::new();
        let wrote = self.session.poll_transmit(self.now_ms, &mut out);
        assert_eq!(wrote, !out.is_empty());
        let mut buf = BytesMut::from(&out[..]);
        while let Some(frame) = split_frame(&mut buf, FRAME_BYTES_MAX).expect("whole frames") {
            let request = parse_client_frame(frame).expect("a frame that the server reads");
            if !std::mem::replace(&mut self.said_hello, true) {
                assert!(matches!(request, Request::Hello(_)), "{request:?} before the Hello");
                continue;
            }
            assert!(self.is_open, "{request:?} before the Welcome");
            match request {
                Request::Ack { up_to } => {
                    let (received, committed) = (self.received_up_to, self.committed_up_to);
                    assert!(up_to.0 <= received, "ack of {}, {received} came", up_to.0);
                    assert!(up_to.0 <= committed, "ack of {}, {committed} is kept", up_to.0);
                    assert!(up_to.0 > self.acked_up_to, "an ack that says nothing new");
                    self.acked_up_to = up_to.0;
                }
                Request::Send(send) => {
                    let queued = self.queued.remove(0);
                    assert_eq!((send.send_seq.0, send.to, send.body), queued);
                }
                Request::Ping | Request::Mode(_) | Request::TokenRenew { .. } | Request::Bye => {}
                other => panic!("{other:?} was not asked for"),
            }
        }
        assert!(buf.is_empty(), "whole frames");
        assert!(!self.session.poll_transmit(self.now_ms, &mut out), "everything was written");
    }
}

fn mode(script: &mut Script<'_>) -> Mode {
    match script.flag() {
        true => Mode::background(script.number().saturating_mul(1000)),
        false => Mode::Foreground,
    }
}

/// One connection as it usually goes, as plain bytes and as a script.
pub fn seeds() -> Vec<Seed> {
    let program = |length| (0..length).map(|index: u8| index.wrapping_mul(29)).collect::<Vec<_>>();
    let make = |frame: fn(&mut Script<'_>) -> Frame, program: &[u8]| {
        server_frames::encode(frame(&mut Script::new(program))).to_vec()
    };
    let welcome = make(server_frames::welcome, &[1, 30, 0, 0, 1]);
    let frames = [
        welcome,
        make(|script| server_frames::mail(script, 4), &[2, 0, 0, 1, 2, 3, 4, 1, 5, 3, 0, 7, 7, 7]),
        make(|script| server_frames::mail(script, 5), &[0, 3, 1]),
        make(|script| server_frames::mail(script, 6), &[1, 0, 0, 3, 1, 2]),
        make(|script| server_frames::answer(script, 1), &[0, 2, 0, 0, 1, 0, 0, 1, 1, 9]),
        make(|script| server_frames::answer(script, 2), &[1, 3, 1, 9]),
        make(server_frames::other, &[2]),
        make(server_frames::other, &[5]),
        make(server_frames::other, &[0, 1, 5, 1]),
        make(server_frames::other, &[1, 3, 0, 1]),
    ];
    let open = [0, 1, 0, 0, 15, 1, 1, 30, 0, 0, 1, 0];
    let script = |steps: &[&[u8]]| [&open, &steps.concat()[..]].concat();
    let send: &[u8] = &[8, 1, 0, 4, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 15];
    vec![
        ("stream", seeds::stream(&[b'F', 1, 0, 0, 60], &frames)),
        ("sends", script(&[send, send, &[2, 0, 0, 0, 5], &[3, 0, 1, 3, 1, 9], send])),
        ("mail", script(&[&[4, 1, 2, 0, 0, 1, 2, 3, 0, 0], &[10, 200], &[15], &[5, 3, 0, 3, 1]])),
        (
            "time",
            script(&[&[11, 1, 250], &[14, 0xd1, 0], &[14, 0xd2, 0], &[11, 0], &[14, 0xd3, 1]]),
        ),
        ("any", [&open[..], &program(250)].concat()),
    ]
}
