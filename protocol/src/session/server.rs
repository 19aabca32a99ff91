//! The server's end of a connection: which frame may come when, liveness, token expiry.
//!
//! It keeps a few words for each connection and no message. Mailboxes, windows and the token are
//! the shard's business.

use bytes::Bytes;

use crate::fault::PeerFault;
use crate::id::Seq;
use crate::limits::HELLO_MS_MAX;
use crate::message::{
    DeliverHead, DeliveredHead, ErrorCode, GapReason, Mode, Request, Welcome, parse_client_frame,
    put_deliver, put_delivered, put_error, put_gap, put_pong, put_welcome,
};
use crate::mutant::{Mutant, is_active};

/// One connection, from accept to its end.
///
/// Call order: [`handle_frame`](Self::handle_frame) gives the Hello; verify its token, then
/// [`welcome`](Self::welcome); from then on `handle_frame`, and the commands
/// [`deliver`](Self::deliver), [`gap`](Self::gap), [`delivered`](Self::delivered) in the order of
/// seq. Call [`handle_timeout`](Self::handle_timeout) at [`poll_timeout`](Self::poll_timeout).
/// After a fault or a Bye nothing is read any more.
#[derive(Debug)]
pub struct ServerSession {
    state: State,
    mode: Mode,
    /// When the connection was accepted, and then when its last frame came.
    heard_ms: u64,
    token_expires_unix_ms: u64,
    /// Highest seq sent on this connection: the bound of its Acks.
    sent_up_to: Seq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitHello,
    /// Hello has come, its token is being verified and its mailbox found.
    AwaitWelcome,
    Open,
    Closed,
}

impl ServerSession {
    /// A connection was accepted, and its handshake is done.
    pub fn new(now_ms: u64) -> Self {
        Self {
            state: State::AwaitHello,
            mode: Mode::Foreground,
            heard_ms: now_ms,
            token_expires_unix_ms: u64::MAX,
            sent_up_to: Seq::default(),
        }
    }

    /// Takes one frame. Answers what needs no shard by itself, into `out`; the rest is returned.
    pub fn handle_frame(
        &mut self,
        now_ms: u64,
        frame: Bytes,
        out: &mut Vec<u8>,
    ) -> Result<Option<Request>, PeerFault> {
        if self.state == State::Closed {
            return Ok(None);
        }
        let request = parse_client_frame(frame).and_then(|request| self.check(request));
        if request.is_err() {
            self.state = State::Closed;
        }
        let request = request?;
        self.heard_ms = now_ms;
        match request {
            Request::Hello(ref hello) => {
                self.state = State::AwaitWelcome;
                self.mode = hello.mode;
            }
            Request::Mode(mode) => self.mode = mode,
            Request::Bye => self.state = State::Closed,
            Request::Ping => {
                put_pong(out);
                return Ok(None);
            }
            Request::Unsupported { request_id } => {
                put_error(out, ErrorCode::Unsupported, "not served", false, request_id);
                return Ok(None);
            }
            Request::Send(_)
            | Request::Ack { .. }
            | Request::TokenRenew { .. }
            | Request::Call { .. } => {}
        }
        Ok(Some(request))
    }

    /// Whether the request may come now.
    fn check(&self, request: Request) -> Result<Request, PeerFault> {
        match (self.state, &request) {
            (State::AwaitHello, Request::Hello(_)) => Ok(request),
            (State::AwaitHello, _) => Err(PeerFault::BeforeHello),
            (_, Request::Hello(_)) => Err(PeerFault::HelloRepeated),
            (State::AwaitWelcome, Request::Bye) => Ok(request),
            (State::AwaitWelcome, _) => Err(PeerFault::BeforeWelcome),
            (_, &Request::Ack { up_to })
                if up_to > self.sent_up_to && !is_active(Mutant::AckOfUnsentAccepted) =>
            {
                Err(PeerFault::AckUnsent { up_to, sent: self.sent_up_to })
            }
            _ => Ok(request),
        }
    }

    /// Opens the session: the token is verified until `token_expires_unix_ms`, the mailbox is there.
    pub fn welcome(
        &mut self,
        now_ms: u64,
        token_expires_unix_ms: u64,
        welcome: &Welcome,
        out: &mut Vec<u8>,
    ) {
        assert_eq!(self.state, State::AwaitWelcome, "welcome answers one Hello");
        self.state = State::Open;
        // The client's first interval starts when it hears the Welcome.
        self.heard_ms = now_ms;
        self.token_expires_unix_ms = token_expires_unix_ms;
        put_welcome(out, welcome);
    }

    /// The connection was not read until now: silence counts from here.
    pub fn was_not_read(&mut self, now_ms: u64) {
        if self.state == State::Open {
            self.heard_ms = self.heard_ms.max(now_ms);
        }
    }

    /// A newer token is verified.
    pub fn renewed(&mut self, token_expires_unix_ms: u64) {
        self.token_expires_unix_ms = token_expires_unix_ms;
    }

    /// Sends a message of the mailbox. Like the two below, nothing once the session is closed.
    pub fn deliver(&mut self, out: &mut Vec<u8>, head: &DeliverHead<'_>, envelope: &[u8]) {
        if self.note_sent(head.seq) {
            put_deliver(out, head, envelope);
        }
    }

    /// Sends a gap of the mailbox.
    pub fn gap(&mut self, out: &mut Vec<u8>, seq: Seq, reason: GapReason, group: Option<&str>) {
        if self.note_sent(seq) {
            put_gap(out, seq, reason, group);
        }
    }

    /// Sends a receipt of the mailbox.
    pub fn delivered(&mut self, out: &mut Vec<u8>, head: &DeliveredHead<'_>) {
        if self.note_sent(head.seq) {
            put_delivered(out, head);
        }
    }

    /// Raises the bound of Acks; false when the client is not listening any more.
    fn note_sent(&mut self, seq: Seq) -> bool {
        if self.state == State::Closed {
            return false;
        }
        assert_eq!(self.state, State::Open, "a mailbox is sent after the Welcome");
        assert!(seq > self.sent_up_to, "a mailbox is sent in the order of seq");
        self.sent_up_to = seq;
        true
    }

    /// Highest seq sent on this connection; 0 before the first.
    pub fn sent_up_to(&self) -> Seq {
        self.sent_up_to
    }

    /// Whether the Welcome is out and neither a Bye nor a fault has come.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// What the client said last.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Ends the session when a deadline has passed. `unix_ms` is for the token alone.
    pub fn handle_timeout(&mut self, now_ms: u64, unix_ms: u64) -> Result<(), PeerFault> {
        let fault = match self.state {
            State::AwaitHello if now_ms >= self.silent_at_ms() => PeerFault::HelloTimeout,
            State::Open if unix_ms >= self.token_expires_unix_ms => PeerFault::TokenExpired,
            State::Open if now_ms >= self.silent_at_ms() => PeerFault::HeartbeatTimeout,
            _ => return Ok(()),
        };
        self.state = State::Closed;
        Err(fault)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), on the monotonic clock; `u64::MAX`
    /// when there is no deadline.
    pub fn poll_timeout(&self, now_ms: u64, unix_ms: u64) -> u64 {
        match self.state {
            State::AwaitHello => self.silent_at_ms(),
            State::Open => {
                let token_ms = self.token_expires_unix_ms.saturating_sub(unix_ms);
                self.silent_at_ms().min(now_ms.saturating_add(token_ms))
            }
            // What takes time here is the server's own.
            State::AwaitWelcome | State::Closed => u64::MAX,
        }
    }

    fn silent_at_ms(&self) -> u64 {
        match self.state {
            State::AwaitHello => self.heard_ms + HELLO_MS_MAX,
            _ => self.heard_ms + super::silence_ms_max(self.mode.heartbeat_ms()),
        }
    }
}
