//! The client's end of a connection: Hello first, the window of Sends, acks that are legal here,
//! pings in time.
//!
//! It keeps no message. What must survive the connection (the outbox, the numbers, what the app has
//! confirmed) is the caller's, as is replaying it on the next connection.

use std::collections::VecDeque;
use std::fmt;

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::fault::{CallFault, ServerFault};
use crate::field::{
    bytes_field_bytes, nested_field_bytes, put_bytes_field, put_nested_head, put_varint_field,
    varint_field_bytes,
};
use crate::frame::{put_length, split_frame};
use crate::id::{DeviceId, InstallId, MailboxId, MessageNumber, SendSeq, Seq};
use crate::limits::{
    ENVELOPE_BYTES_MAX, FRAME_BYTES_MAX, HEARTBEAT_FOREGROUND_MS, SENDS_UNANSWERED_MAX,
    WELCOME_MS_MAX,
};
use crate::message::{
    Call, ClientEvent, Limits, Mode, Recipient, Welcome, call_frame, parse_server_frame,
};
use crate::session::silence_ms_max;
use crate::wire::{self, client_frame::Frame};

/// One connection, from the end of its handshake to its own end.
///
/// Call order: [`handle_data`](Self::handle_data) with what was read, then
/// [`poll_event`](Self::poll_event) until it is empty; commands at any time; then
/// [`poll_transmit`](Self::poll_transmit) and write it. Call
/// [`handle_timeout`](Self::handle_timeout) at [`poll_timeout`](Self::poll_timeout). After a fault,
/// a fatal Error or a [`bye`](Self::bye), flush and close. Commands before the Welcome are held
/// back until it comes.
pub struct ClientSession {
    state: State,
    /// The Hello until it is transmitted, then frames that wait for the next transmit.
    hello: Vec<u8>,
    frames: Vec<u8>,
    events: VecDeque<ClientEvent>,
    /// Numbers without an answer, rising.
    unanswered: VecDeque<SendSeq>,
    unanswered_max: usize,
    /// When the first of them went out.
    waits_since_ms: Option<u64>,
    /// What the Hello named: seqs committed before it are of this mailbox.
    mailbox_id: MailboxId,
    /// Highest seq received on this connection: the bound of its Acks.
    received_up_to: Seq,
    /// Highest seq that the app has committed.
    committed_up_to: Seq,
    /// Highest seq acknowledged on this connection, or by its Hello.
    acked_up_to: Seq,
    /// Set once it is no longer the one in the Hello, which the Welcome answers.
    mode_changed: Option<Mode>,
    limits: Limits,
    heartbeat_ms: u64,
    /// When something was last transmitted.
    sent_ms: u64,
    /// When something last came, or the interval changed.
    heard_ms: u64,
    pinged_ms: u64,
    pings_unanswered: u32,
    /// When a probe has failed; `u64::MAX` when none is under way.
    probe_ms: u64,
    /// Pongs until that of the probe.
    probe_pongs: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitWelcome,
    Open,
    Closed,
}

// The queued Hello carries the token, and frames carry envelopes: neither belongs in a log.
impl fmt::Debug for ClientSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSession")
            .field("state", &self.state)
            .field("unanswered", &self.unanswered.len())
            .field("received_up_to", &self.received_up_to)
            .field("acked_up_to", &self.acked_up_to)
            .finish_non_exhaustive()
    }
}

/// What goes into the Hello.
#[derive(Clone)]
pub struct ClientHello {
    pub token: String,
    pub device: DeviceId,
    pub install_id: InstallId,
    pub mailbox_id: MailboxId,
    pub acked_up_to: Seq,
    pub mode: Mode,
    pub capabilities: u64,
}

/// A Send. Numbers rise on each connection; replays come first, under the numbers they had.
#[derive(Clone, Copy)]
pub struct ClientSend<'a> {
    pub send_seq: SendSeq,
    /// Stays the same when the message is sent again; zero: the same as `send_seq`.
    pub message_number: MessageNumber,
    pub to: &'a Recipient,
    /// Of a group: the version of the roster that it is meant for; 0: whatever it is.
    pub roster_version: u64,
    /// Of envelopes per device: the version of the list that they are for; 0: whatever it is.
    pub device_list_version: u64,
    pub body: SendContent<'a>,
    /// 0: as long as the server allows.
    pub ttl_ms: u64,
    pub urgent: bool,
    pub after_reject: bool,
}

/// What is sent, borrowed: it is copied once, into the transmit buffer.
#[derive(Clone, Copy)]
pub enum SendContent<'a> {
    Shared(&'a [u8]),
    PerDevice(&'a [(DeviceId, Bytes)]),
}

/// Why a Send was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendRefused {
    #[error("as many Sends as the server allows are unanswered")]
    WindowFull,
    /// The server has lowered its limits since, or the message was never within them.
    #[error("{bytes} bytes of envelope or frame are above the limit of {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
}

/// Why a call was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallRefused {
    #[error(transparent)]
    Fault(#[from] CallFault),
    #[error("a frame of {bytes} bytes is above this server's limit of {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
}

impl ClientSession {
    /// The handshake is done; the Hello is queued.
    pub fn new(now_ms: u64, hello: ClientHello) -> Self {
        let mut session = Self {
            state: State::AwaitWelcome,
            hello: Vec::new(),
            frames: Vec::new(),
            events: VecDeque::new(),
            unanswered: VecDeque::new(),
            unanswered_max: SENDS_UNANSWERED_MAX,
            waits_since_ms: None,
            mailbox_id: hello.mailbox_id,
            received_up_to: Seq::default(),
            committed_up_to: hello.acked_up_to,
            acked_up_to: hello.acked_up_to,
            mode_changed: None,
            limits: Limits::of_protocol(),
            heartbeat_ms: hello.mode.heartbeat_ms(),
            sent_ms: now_ms,
            heard_ms: now_ms,
            pinged_ms: now_ms,
            pings_unanswered: 0,
            probe_ms: u64::MAX,
            probe_pongs: 0,
        };
        let frame = wire::Hello {
            token: hello.token,
            device: hello.device.as_str().to_owned(),
            install_id: hello.install_id.0,
            mailbox_id: hello.mailbox_id.0,
            acked_up_to: hello.acked_up_to.0,
            mode: Some(wire_mode(hello.mode)),
            capabilities: hello.capabilities,
        };
        put_frame(&mut session.hello, Frame::Hello(frame));
        session
    }

    /// Takes the whole frames off the front of `buf`. Events queue up; those before a fault count.
    pub fn handle_data(&mut self, now_ms: u64, buf: &mut BytesMut) -> Result<(), ServerFault> {
        while self.state != State::Closed {
            let frame = split_frame(buf, FRAME_BYTES_MAX).map_err(ServerFault::from);
            let handled = frame.and_then(|frame| match frame {
                Some(frame) => self.handle_frame(now_ms, &frame).map(|()| true),
                None => Ok(false),
            });
            match handled {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(fault) => {
                    self.state = State::Closed;
                    return Err(fault);
                }
            }
        }
        Ok(())
    }

    fn handle_frame(&mut self, now_ms: u64, frame: &Bytes) -> Result<(), ServerFault> {
        self.heard_ms = now_ms;
        let Some(event) = parse_server_frame(frame)? else { return Ok(()) };
        match &event {
            ClientEvent::Welcome(welcome) => self.welcomed(welcome)?,
            ClientEvent::Error { fatal, .. } => {
                if *fatal {
                    self.state = State::Closed;
                }
            }
            // A server that is full or stopping may say so at once.
            ClientEvent::GoAway { .. } => {}
            _ if self.state == State::AwaitWelcome => return Err(ServerFault::BeforeWelcome),
            ClientEvent::Answered { send_seq, .. } => {
                if let Ok(index) = self.unanswered.binary_search(send_seq) {
                    self.unanswered.remove(index);
                    if self.unanswered.is_empty() {
                        self.waits_since_ms = None;
                    }
                }
            }
            ClientEvent::Deliver(delivery) => self.received(delivery.seq)?,
            ClientEvent::Gap { seq, .. } | ClientEvent::Delivered { seq, .. } => {
                self.received(*seq)?;
            }
            ClientEvent::Pong => self.ponged(),
            ClientEvent::CaughtUp
            | ClientEvent::Replied { .. }
            | ClientEvent::KeysLow { .. }
            | ClientEvent::DeviceList(_)
            | ClientEvent::GroupChanged { .. } => {}
        }
        self.events.push_back(event);
        Ok(())
    }

    fn welcomed(&mut self, welcome: &Welcome) -> Result<(), ServerFault> {
        if self.state != State::AwaitWelcome {
            return Err(ServerFault::WelcomeRepeated);
        }
        self.state = State::Open;
        self.probe_ms = u64::MAX;
        self.limits = welcome.limits;
        self.heartbeat_ms = match self.mode_changed {
            Some(mode) => granted_ms(mode, &self.limits),
            None => welcome.heartbeat_ms.max(1),
        };
        let unanswered_max = welcome.limits.sends_unanswered_max as usize;
        self.unanswered_max = unanswered_max.clamp(1, SENDS_UNANSWERED_MAX);
        if welcome.mailbox_id != self.mailbox_id {
            // What was committed was of a mailbox that is gone; it must not delete new mail.
            self.mailbox_id = welcome.mailbox_id;
            self.committed_up_to = Seq::default();
            self.acked_up_to = Seq::default();
        }
        Ok(())
    }

    fn received(&mut self, seq: Seq) -> Result<(), ServerFault> {
        let received = self.received_up_to.max(self.acked_up_to);
        if seq <= received {
            return Err(ServerFault::SeqNotRising { seq, received });
        }
        self.received_up_to = seq;
        Ok(())
    }

    /// Pongs come in the order of the Pings: one that was under way before the probe is no answer.
    fn ponged(&mut self) {
        self.pings_unanswered = self.pings_unanswered.saturating_sub(1);
        self.probe_pongs = self.probe_pongs.saturating_sub(1);
        if self.probe_pongs == 0 {
            self.probe_ms = u64::MAX;
        }
    }

    /// Sends a message, or replays one.
    ///
    /// # Panics
    /// If `send_seq` is 0 or not above that of every Send before it on this connection.
    pub fn send(&mut self, send: &ClientSend<'_>) -> Result<(), SendRefused> {
        if self.unanswered.len() >= self.unanswered_max {
            return Err(SendRefused::WindowFull);
        }
        put_send(&mut self.frames, send, &self.limits)?;
        let last = self.unanswered.back().copied().unwrap_or_default();
        assert!(send.send_seq > last, "numbers of Sends rise");
        self.unanswered.push_back(send.send_seq);
        Ok(())
    }

    /// Asks for something; a [`ClientEvent::Replied`] or a non-fatal Error with this id follows,
    /// unless the connection ends before. A server can take it only after the Welcome, so that one
    /// before it waits here.
    ///
    /// # Errors
    /// [`CallRefused`]: the server would end the connection.
    pub fn call(&mut self, request_id: u64, call: &Call) -> Result<(), CallRefused> {
        call.check()?;
        let frame = wire::ClientFrame { frame: Some(call_frame(request_id, call)) };
        let bytes = frame.encoded_len();
        let bytes_max = FRAME_BYTES_MAX.min(self.limits.frame_bytes_max as usize);
        if bytes > bytes_max {
            return Err(CallRefused::TooLarge { bytes, bytes_max });
        }
        put_length(&mut self.frames, bytes);
        frame.encode_raw(&mut self.frames);
        Ok(())
    }

    /// Everything up to `up_to` is durably committed. May be called for a seq received on an older
    /// connection: what the server may hear of it now is sent now, the rest when it comes again.
    /// `up_to` must be of the mailbox that the last Welcome named.
    pub fn ack(&mut self, up_to: Seq) {
        self.committed_up_to = self.committed_up_to.max(up_to);
    }

    /// The user looks at the app, or stops doing so.
    pub fn set_mode(&mut self, now_ms: u64, mode: Mode) {
        self.mode_changed = Some(mode);
        self.heartbeat_ms = granted_ms(mode, &self.limits);
        put_frame(&mut self.frames, Frame::Mode(wire_mode(mode)));
        // Silence was legal under a longer interval: measure it from now, and ask at once whether
        // the connection is still alive.
        self.heard_ms = now_ms;
        self.ping(now_ms);
    }

    /// The path to the server may have changed: asks whether it still leads there. Without an answer
    /// within `answer_ms_max` the server is taken for gone.
    pub fn probe(&mut self, now_ms: u64, answer_ms_max: u64) {
        self.probe_ms = now_ms.saturating_add(answer_ms_max);
        // Before the Welcome that is the answer: nothing else may be sent.
        if self.state == State::Open {
            self.ping(now_ms);
        }
        self.probe_pongs = self.pings_unanswered;
    }

    /// Prolongs the session with a newer token.
    pub fn renew_token(&mut self, token: &str) {
        let frame = wire::TokenRenew { token: token.to_owned() };
        put_frame(&mut self.frames, Frame::TokenRenew(frame));
    }

    /// Leaves on purpose. Transmit once more, then close.
    pub fn bye(&mut self) {
        put_frame(&mut self.frames, Frame::Bye(wire::Bye {}));
    }

    /// Queues a Ping when one is due. A server that is silent for too long is a fault.
    pub fn handle_timeout(&mut self, now_ms: u64) -> Result<(), ServerFault> {
        let fault = match self.state {
            State::AwaitWelcome if now_ms >= self.silent_at_ms() => ServerFault::WelcomeTimeout,
            State::Open if now_ms >= self.silent_at_ms() => ServerFault::Silent,
            State::Open if now_ms >= self.ping_at_ms() => {
                self.ping(now_ms);
                return Ok(());
            }
            _ => return Ok(()),
        };
        self.state = State::Closed;
        Err(fault)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout); `u64::MAX` when there is no deadline.
    pub fn poll_timeout(&self) -> u64 {
        match self.state {
            State::AwaitWelcome => self.silent_at_ms(),
            State::Open => self.silent_at_ms().min(self.ping_at_ms()),
            State::Closed => u64::MAX,
        }
    }

    /// Appends what is to be written; false when there is nothing.
    pub fn poll_transmit(&mut self, now_ms: u64, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        out.append(&mut self.hello);
        if self.state == State::Open {
            self.put_ack();
            out.append(&mut self.frames);
        }
        if out.len() == start {
            return false;
        }
        self.sent_ms = now_ms;
        if !self.unanswered.is_empty() {
            self.waits_since_ms.get_or_insert(now_ms);
        }
        true
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// Sends without an answer on this connection.
    pub fn unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// One Ack for all that was committed since the last, within what this connection has brought.
    fn put_ack(&mut self) {
        let up_to = self.committed_up_to.min(self.received_up_to);
        if up_to > self.acked_up_to {
            self.acked_up_to = up_to;
            put_frame(&mut self.frames, Frame::Ack(wire::Ack { up_to_seq: up_to.0 }));
        }
    }

    fn ping(&mut self, now_ms: u64) {
        self.pinged_ms = now_ms;
        self.pings_unanswered = self.pings_unanswered.saturating_add(1);
        put_frame(&mut self.frames, Frame::Ping(wire::Ping {}));
    }

    /// Pings when either direction has been idle for an interval: the server must hear of this
    /// client, and only an answer tells this client that the server is there.
    fn ping_at_ms(&self) -> u64 {
        let sent_ms = self.sent_ms.max(self.pinged_ms);
        let (heard_ms, interval_ms) = self.patience();
        sent_ms.min(heard_ms.max(self.pinged_ms)).saturating_add(interval_ms)
    }

    /// Since when the server owes us something, and the interval that holds now. Who waits for answers
    /// is not patient in the background either: nobody sees a message that does not go. Over QUIC
    /// nothing else might tell that the server has forgotten the connection: who has used up what it
    /// may send has nothing under way that could be reset.
    fn patience(&self) -> (u64, u64) {
        match self.waits_since_ms {
            Some(since_ms) => {
                (self.heard_ms.max(since_ms), self.heartbeat_ms.min(HEARTBEAT_FOREGROUND_MS))
            }
            None => (self.heard_ms, self.heartbeat_ms),
        }
    }

    fn silent_at_ms(&self) -> u64 {
        let (heard_ms, interval_ms) = self.patience();
        let silence_ms_max = match self.state {
            State::AwaitWelcome => WELCOME_MS_MAX,
            _ => silence_ms_max(interval_ms),
        };
        heard_ms.saturating_add(silence_ms_max).min(self.probe_ms)
    }
}

/// Appends a Send by hand: no intermediate struct, one copy of the envelopes.
fn put_send(out: &mut Vec<u8>, send: &ClientSend<'_>, limits: &Limits) -> Result<(), SendRefused> {
    let (to_number, to) = match send.to {
        Recipient::User(user) => (2, user.as_str()),
        Recipient::Group(group) => (3, group.as_str()),
    };
    let entry_bytes = |(device, envelope): &(DeviceId, Bytes)| {
        bytes_field_bytes(device.as_str().len()) + bytes_field_bytes(envelope.len())
    };
    let (number, content_bytes, envelope_bytes_max) = match send.body {
        SendContent::Shared(envelope) => (8, envelope.len(), envelope.len()),
        SendContent::PerDevice(entries) => (
            7,
            entries.iter().map(|entry| nested_field_bytes(entry_bytes(entry))).sum(),
            entries.iter().map(|(_, envelope)| envelope.len()).max().unwrap_or(0),
        ),
    };
    let body_bytes = varint_field_bytes(send.send_seq.0)
        + bytes_field_bytes(to.len())
        + varint_field_bytes(send.ttl_ms)
        + varint_field_bytes(u64::from(send.urgent))
        + varint_field_bytes(u64::from(send.after_reject))
        + varint_field_bytes(send.message_number.0)
        + varint_field_bytes(send.roster_version)
        + varint_field_bytes(send.device_list_version)
        + nested_field_bytes(content_bytes);
    let frame_bytes = nested_field_bytes(body_bytes);
    for (bytes, told_max, bytes_max) in [
        (envelope_bytes_max, limits.envelope_bytes_max, ENVELOPE_BYTES_MAX),
        (frame_bytes, limits.frame_bytes_max, FRAME_BYTES_MAX),
    ] {
        let bytes_max = bytes_max.min(told_max as usize);
        if bytes > bytes_max {
            return Err(SendRefused::TooLarge { bytes, bytes_max });
        }
    }
    put_length(out, frame_bytes);
    put_nested_head(out, SEND, body_bytes);
    put_varint_field(out, 1, send.send_seq.0);
    put_bytes_field(out, to_number, to.as_bytes());
    put_varint_field(out, 4, send.ttl_ms);
    put_varint_field(out, 5, u64::from(send.urgent));
    put_varint_field(out, 6, u64::from(send.after_reject));
    put_varint_field(out, 9, send.message_number.0);
    put_varint_field(out, 10, send.roster_version);
    put_varint_field(out, 11, send.device_list_version);
    put_nested_head(out, number, content_bytes);
    match send.body {
        SendContent::Shared(envelope) => out.extend_from_slice(envelope),
        SendContent::PerDevice(entries) => {
            for entry in entries {
                put_nested_head(out, 1, entry_bytes(entry));
                put_bytes_field(out, 1, entry.0.as_str().as_bytes());
                put_bytes_field(out, 2, &entry.1);
            }
        }
    }
    Ok(())
}

/// The interval that a server with these limits grants; never 0, which would ping without end.
fn granted_ms(mode: Mode, limits: &Limits) -> u64 {
    let granted_ms = match mode {
        Mode::Foreground => limits.heartbeat_foreground_ms,
        Mode::Background { interval_ms } => interval_ms
            .min(limits.heartbeat_background_ms_max)
            .max(limits.heartbeat_background_ms_min),
    };
    granted_ms.max(1)
}

fn wire_mode(mode: Mode) -> wire::Mode {
    let (kind, interval_ms) = match mode {
        Mode::Foreground => (wire::ModeKind::Foreground, 0),
        Mode::Background { interval_ms } => (wire::ModeKind::Background, interval_ms),
    };
    wire::Mode { kind: kind as i32, interval_ms }
}

fn put_frame(out: &mut Vec<u8>, frame: Frame) {
    let frame = wire::ClientFrame { frame: Some(frame) };
    put_length(out, frame.encoded_len());
    frame.encode_raw(out);
}

/// Field number in ClientFrame.
const SEND: u8 = 2;
