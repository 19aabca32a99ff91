//! One thread's clients on one ring: connecting at a bounded pace, reading, writing, connecting
//! again. What is sent, and what it means when it arrives, is in [`crate::traffic`].
//!
//! One turn: due messages -> flush -> one enter -> completions. A client has at most one send in
//! flight; what comes up meanwhile shares the next one.

mod handover;
mod link;
mod logins;
mod quic;
mod reading;
mod vanish;

pub use handover::Handovers;
pub use logins::Logins;
pub use quic::quic_config;
pub use reading::Reading;
pub use vanish::{Churn, GHOST_NS};

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use ringpost_protocol::message::{ClientEvent, ErrorCode};
use ringpost_ring::{
    Completion, Errno, Group, Op, OpId, Outcome, Ring, Socket, Uring, UringConfig,
};
use rustls::pki_types::ServerName;

use crate::addr::SourceAddresses;
use crate::client::{Client, Identity};
use crate::fleet::{Part, Progress};
use crate::measure::Measure;
use crate::traffic::Traffic;
use handover::{Change, Changes, Cut};
use quic::{DATAGRAM_BUFFERS, Quic, QuicConn};

/// What all threads share.
pub struct SwarmConfig {
    pub target: SocketAddr,
    pub server_name: ServerName<'static>,
    pub tls: Arc<rustls::ClientConfig>,
    /// Each client resumes its own sessions, and nobody else's.
    pub own_tickets: bool,
    /// Set: clients come over QUIC, with this.
    pub quic: Option<quinn_proto::ClientConfig>,
    /// Connections of one thread between `connect` and Welcome.
    pub connecting_max: u32,
    /// Due messages are looked for no more often than this; latency counts from the intended time
    /// all the same.
    pub tick_ns: u64,
}

/// One thread's clients.
pub struct Swarm {
    ring: Uring,
    config: Arc<SwarmConfig>,
    pub(crate) slots: Vec<Slot>,
    pub(crate) traffic: Traffic,
    sources: SourceAddresses,
    /// Clients that want a connection, in order.
    waiting: VecDeque<u32>,
    /// Clients that try again later: (monotonic ns, client).
    retries: Vec<(u64, u32)>,
    /// Clients between `connect` and Welcome.
    connecting: u32,
    /// Clients that are welcome.
    open: u32,
    /// Clients to flush before the next enter; each has its `dirty` flag set.
    dirty: Vec<u32>,
    completions: Vec<Completion>,
    received: BytesMut,
    plaintext: Vec<u8>,
    /// The timer sweep: when to go on, and with which client.
    sweep_ns: u64,
    sweep_next: usize,
    last_failure: String,
    progress: Arc<Progress>,
    /// Slow readers between two looks: (monotonic ns, client), in order.
    resting: VecDeque<(u64, u32)>,
    churn: Option<Churn>,
    /// Sockets of clients that vanished: (when to close it, socket), in order.
    ghosts: VecDeque<(u64, Socket)>,
    /// Every client logs in, leaves, and logs in again.
    logins: Option<Logins>,
    quic: Option<Quic>,
    changes: Changes,
    handovers: Handovers,
}

/// A client and its socket.
pub(crate) struct Slot {
    pub(crate) client: Client,
    state: LinkState,
    /// Of a client with tickets of its own.
    tls: Option<Arc<rustls::ClientConfig>>,
    socket: Socket,
    /// Operations on the socket without their final completion; it is closed at 0.
    in_flight: u8,
    receiving: bool,
    /// The receive of `receiving`.
    receive_op: Option<OpId>,
    reading: Reading,
    /// A slow reader between two looks.
    resting: bool,
    sending: bool,
    dirty: bool,
    /// When the connection under way began, monotonic.
    connect_ns: u64,
    /// When a client that vanished comes back, monotonic.
    return_ns: u64,
    /// Whether to connect again after a loss.
    wanted: bool,
    failures: u32,
    reconnect_after_ms: u64,
    /// The connection, if clients come over QUIC; there is no socket then.
    quic: Option<Box<QuicConn>>,
    /// When the last frame came, monotonic.
    heard_ns: u64,
    /// A change of the network after which nothing has come yet.
    change: Option<Change>,
    /// Whether the client's network ends with what it says next.
    cut: Cut,
    /// Connects again without a wait.
    returns_at_once: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkState {
    Down,
    /// From `connect` to Welcome.
    Connecting,
    Open,
    /// Bye is on its way.
    Leaving,
    /// Shut down; waits for the last completion.
    Closing,
    /// As good as dead; waits for the last completion, and its socket stays open.
    Vanishing,
}

impl Swarm {
    /// On the thread that will run it.
    pub fn new(
        group: &Group,
        thread: u16,
        config: Arc<SwarmConfig>,
        part: Part,
        progress: Arc<Progress>,
    ) -> Result<Self> {
        let Part { identities, traffic, sources } = part;
        let sizes = UringConfig {
            receive_buffer_count: 1024,
            datagram_buffer_count: if config.quic.is_some() { DATAGRAM_BUFFERS } else { 0 },
            ..UringConfig::default()
        };
        let ring = Uring::new(group, thread, sizes)
            .map_err(|fault| anyhow!("{fault}: {}", fault.fix()))?;
        let server_name = || config.server_name.to_str().into_owned();
        Ok(Self {
            quic: config.quic.clone().map(|quic| Quic::new(quic, server_name(), ring.now_ns())),
            ring,
            config,
            slots: identities.into_iter().map(Slot::new).collect(),
            traffic,
            sources,
            waiting: VecDeque::new(),
            retries: Vec::new(),
            connecting: 0,
            open: 0,
            dirty: Vec::new(),
            completions: Vec::new(),
            received: BytesMut::with_capacity(SCRATCH_BYTES),
            plaintext: Vec::with_capacity(SCRATCH_BYTES),
            sweep_ns: 0,
            sweep_next: 0,
            last_failure: String::new(),
            progress,
            resting: VecDeque::new(),
            churn: None,
            ghosts: VecDeque::new(),
            logins: None,
            changes: Changes::default(),
            handovers: Handovers::new(),
        })
    }

    pub fn now_ns(&self) -> u64 {
        self.ring.now_ns()
    }

    /// Looks at the clock and the sockets after a pause, in which nobody did.
    pub fn refresh(&mut self) -> Result<()> {
        self.turn(0)
    }

    /// The counts of everything that was sent so far.
    pub fn finish(&mut self) -> Measure {
        self.traffic.finish()
    }

    /// Connects all clients.
    pub fn connect_all(&mut self) -> Result<()> {
        self.connect(self.clients())
    }

    /// Connects these clients and waits until all are welcome.
    pub fn connect(&mut self, clients: Range<u32>) -> Result<()> {
        let wanted = self.open + u32::try_from(clients.len()).expect("a range of u32");
        for client in clients {
            self.slots[client as usize].wanted = true;
            self.waiting.push_back(client);
        }
        let mut seen = self.open;
        let mut deadline_ns = self.now_ns() + CONNECT_STALL_NS_MAX;
        while self.open < wanted {
            let goal = seen + 1;
            let moved = self.run_until(deadline_ns, |swarm| swarm.open >= goal)?;
            ensure!(
                moved,
                "{} of {wanted} clients are connected and no more come; last failure: {}",
                self.open,
                self.last_failure
            );
            seen = self.open;
            deadline_ns = self.now_ns() + CONNECT_STALL_NS_MAX;
        }
        Ok(())
    }

    /// Says Bye on all connections and closes them.
    pub fn disconnect(&mut self) -> Result<()> {
        self.waiting.clear();
        self.retries.clear();
        self.close_ghosts(u64::MAX);
        for client in self.clients() {
            let slot = &mut self.slots[client as usize];
            slot.wanted = false;
            // A reader that does not read would not see the end.
            self.read_eagerly(client);
            let slot = &mut self.slots[client as usize];
            match slot.state {
                LinkState::Open => {
                    slot.client.bye();
                    slot.state = LinkState::Leaving;
                    self.open -= 1;
                    self.mark_dirty(client);
                }
                LinkState::Connecting => self.lose(client, "not needed any more"),
                _ => {}
            }
        }
        let all_down = |swarm: &Self| swarm.slots.iter().all(|slot| slot.state == LinkState::Down);
        if !self.run_until(self.now_ns() + BYE_NS_MAX, all_down)? {
            for client in self.clients() {
                self.lose(client, "the server did not close after Bye");
            }
            let closed = self.run_until(self.now_ns() + BYE_NS_MAX, all_down)?;
            ensure!(closed, "sockets did not close");
        }
        Ok(())
    }

    /// Turns until `done` says so or the time has come; whether it was done.
    pub fn run_until(&mut self, deadline_ns: u64, done: impl Fn(&Self) -> bool) -> Result<bool> {
        loop {
            let now_ns = self.now_ns();
            self.start_connects(now_ns)?;
            self.send_due(now_ns);
            self.vanish_due(now_ns);
            self.change_due(now_ns);
            self.quic_due(now_ns)?;
            self.read_due(now_ns);
            self.sweep(now_ns);
            self.flush()?;
            if done(self) {
                return Ok(true);
            }
            if now_ns >= deadline_ns {
                return Ok(false);
            }
            let wait_ns = self.next_ns().min(deadline_ns).saturating_sub(now_ns);
            self.turn(wait_ns.max(self.config.tick_ns))?;
        }
    }

    /// One enter, and everything that came of it.
    fn turn(&mut self, wait_ns: u64) -> Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.enter(wait_ns, &mut completions);
        for completion in completions.drain(..) {
            self.handle_completion(completion)?;
        }
        self.completions = completions;
        self.progress.set(self.open, self.traffic.measure());
        Ok(())
    }

    /// When something is to be done even if nothing arrives.
    fn next_ns(&self) -> u64 {
        let retry_ns = self.retries.iter().map(|&(at_ns, _)| at_ns).min().unwrap_or(u64::MAX);
        let rest_ns = self.resting.front().map_or(u64::MAX, |&(at_ns, _)| at_ns);
        let vanish_ns = self.churn.as_ref().map_or(u64::MAX, Churn::next_ns);
        let send_ns = self.traffic.next_ns().unwrap_or(u64::MAX);
        let quic_ns = self.quic.as_ref().map_or(u64::MAX, Quic::next_ns);
        let next_ns = self.sweep_ns.min(retry_ns).min(rest_ns).min(vanish_ns).min(send_ns);
        next_ns.min(quic_ns).min(self.changes.next_ns())
    }

    /// Looks at a tenth of all timers every tenth of a second.
    fn sweep(&mut self, now_ns: u64) {
        if now_ns < self.sweep_ns {
            return;
        }
        self.sweep_ns = now_ns + SWEEP_NS;
        let now_ms = now_ns / 1_000_000;
        for _ in 0..self.slots.len().div_ceil(10) {
            self.sweep_next = (self.sweep_next + 1) % self.slots.len();
            let client = u32::try_from(self.sweep_next).expect("clients are counted in u32");
            match self.slots[self.sweep_next].client.handle_timeout(now_ms) {
                Ok(true) => self.mark_dirty(client),
                Ok(false) => {}
                Err(error) => self.lose(client, &format!("{error:#}")),
            }
        }
    }

    fn handle_completion(&mut self, completion: Completion) -> Result<()> {
        let (kind, client) = (completion.token >> 32, client_of(completion.token));
        if quic::KINDS.contains(&kind) {
            return self.handle_quic(completion);
        }
        let Some(slot) = self.slots.get_mut(client as usize) else { return Ok(()) };
        if !completion.more && kind != CONNECT {
            slot.in_flight -= 1;
        }
        match (kind, completion.result) {
            (CONNECT, Ok(Outcome::Connected(socket))) => self.handle_connected(client, socket)?,
            (CONNECT, Err(errno)) => self.handle_refused(client, errno)?,
            (RECEIVE, result) => {
                slot.receiving = completion.more;
                self.handle_received(client, result)?;
                self.rest(client);
            }
            (SEND, Ok(Outcome::Sent { sent_bytes, data })) => {
                self.handle_sent(client, sent_bytes, data);
            }
            (SEND, Err(errno)) => self.lose(client, &format!("send: {errno}")),
            (CLOSE, _) => self.handle_closed(client)?,
            _ => {}
        }
        self.close_when_quiet(client);
        Ok(())
    }

    fn handle_received(&mut self, client: u32, result: Result<Outcome, Errno>) -> Result<()> {
        let lease = match result {
            Ok(Outcome::Received(Some(lease))) => lease,
            // The pool was empty; armed again with the flush, when leases are back.
            Err(Errno::NOBUFS) => {
                self.mark_dirty(client);
                return Ok(());
            }
            Ok(_) => {
                self.lose(client, "the server closed the connection");
                return Ok(());
            }
            Err(errno) => {
                self.lose(client, &format!("receive: {errno}"));
                return Ok(());
            }
        };
        let now_ms = self.ring.now_ns() / 1_000_000;
        let slot = &mut self.slots[client as usize];
        let ciphertext = self.ring.bytes(&lease);
        let was_handshaking = slot.client.is_handshaking();
        let handled = slot.client.handle_received(now_ms, ciphertext, &mut self.received);
        let is_done = was_handshaking && !slot.client.is_handshaking();
        self.handovers.handshakes += u64::from(is_done);
        self.ring.release(lease);
        self.handle_events(client, handled)
    }

    /// What came of bytes that were received, whatever they came over.
    fn handle_events(&mut self, client: u32, handled: Result<()>) -> Result<()> {
        let mut heard = false;
        while let Some(event) = self.slots[client as usize].client.poll_event() {
            if !std::mem::replace(&mut heard, true) {
                self.note_heard(client);
            }
            self.handle_event(client, event)?;
        }
        match handled {
            Ok(()) => self.mark_dirty(client),
            Err(error) => self.lose(client, &format!("{error:#}")),
        }
        Ok(())
    }

    fn handle_event(&mut self, client: u32, event: ClientEvent) -> Result<()> {
        let slot = &mut self.slots[client as usize];
        match event {
            ClientEvent::Welcome(welcome) => {
                slot.client.handle_welcome(&welcome);
                slot.failures = 0;
                self.handovers.resumed += u64::from(slot.client.is_resumed());
                if slot.state == LinkState::Connecting {
                    slot.state = LinkState::Open;
                    self.connecting -= 1;
                    self.open += 1;
                }
                if self.count_login(client) {
                    return Ok(());
                }
                self.resume(client);
            }
            ClientEvent::GoAway { reconnect_after_ms, .. } => {
                slot.reconnect_after_ms = reconnect_after_ms;
            }
            ClientEvent::Error { code, text, fatal, .. } => {
                self.last_failure = format!("{code:?}: {text}");
                // A refused Hello would be refused again, and a replaced client must not return.
                let hopeless = slot.state == LinkState::Connecting || code == ErrorCode::Replaced;
                if slot.wanted && (hopeless || !fatal) {
                    bail!("the server answered with an error: {}", self.last_failure);
                }
            }
            event => self.handle_message(client, event)?,
        }
        Ok(())
    }

    fn handle_sent(&mut self, client: u32, sent_bytes: usize, mut data: Vec<Bytes>) {
        let slot = &mut self.slots[client as usize];
        slot.sending = false;
        let mut left = sent_bytes;
        for chunk in &mut data {
            let step = left.min(chunk.len());
            chunk.advance(step);
            left -= step;
        }
        data.retain(|chunk| !chunk.is_empty());
        if data.is_empty() {
            match slot.cut {
                Cut::Sending if slot.state == LinkState::Open => self.cut(client),
                _ => self.mark_dirty(client),
            }
        } else if !matches!(slot.state, LinkState::Closing | LinkState::Vanishing) {
            slot.sending = true;
            slot.in_flight += 1;
            let op = Op::Send { socket: slot.socket, data };
            self.ring.submit(token(SEND, client), op);
        }
    }

    pub(crate) fn mark_dirty(&mut self, client: u32) {
        let slot = &mut self.slots[client as usize];
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push(client);
        }
    }

    /// Seals and submits what the dirty clients have to say.
    fn flush(&mut self) -> Result<()> {
        for client in std::mem::take(&mut self.dirty) {
            let slot = &mut self.slots[client as usize];
            slot.dirty = false;
            if slot.quic.is_some() {
                self.flush_quic(client)?;
                continue;
            }
            let gone = [LinkState::Down, LinkState::Closing, LinkState::Vanishing];
            if gone.contains(&slot.state) || slot.socket == NO_SOCKET {
                continue;
            }
            if !slot.sending {
                let mut ciphertext = Vec::new();
                let now_ms = self.ring.now_ns() / 1_000_000;
                slot.client.poll_transmit(now_ms, &mut self.plaintext, &mut ciphertext);
                if !ciphertext.is_empty() {
                    self.changes.shorten(slot, &mut ciphertext);
                    slot.sending = true;
                    slot.in_flight += 1;
                    let data = vec![Bytes::from(ciphertext)];
                    let op = Op::Send { socket: slot.socket, data };
                    self.ring.submit(token(SEND, client), op);
                }
            }
            if !slot.receiving && self.is_due_to_read(client) {
                self.arm_receive(client);
            }
        }
        Ok(())
    }

    fn clients(&self) -> Range<u32> {
        0..u32::try_from(self.slots.len()).expect("clients are counted in u32")
    }
}

impl Slot {
    fn new(identity: Identity) -> Self {
        Self {
            client: Client::new(identity),
            state: LinkState::Down,
            tls: None,
            socket: NO_SOCKET,
            in_flight: 0,
            receiving: false,
            receive_op: None,
            reading: Reading::Eager,
            resting: false,
            connect_ns: 0,
            return_ns: 0,
            sending: false,
            dirty: false,
            wanted: false,
            failures: 0,
            reconnect_after_ms: 0,
            quic: None,
            heard_ns: 0,
            change: None,
            cut: Cut::No,
            returns_at_once: false,
        }
    }
}

fn token(kind: u64, client: u32) -> u64 {
    kind << 32 | u64::from(client)
}

fn client_of(token: u64) -> u32 {
    u32::try_from(token & u64::from(u32::MAX)).expect("masked")
}

// Kinds of operations, the high half of a token.
const CONNECT: u64 = 1;
const RECEIVE: u64 = 2;
const SEND: u64 = 3;
const SHUTDOWN: u64 = 4;
const CLOSE: u64 = 5;
const CANCEL: u64 = 6;
const GHOST: u64 = 7;

const NO_SOCKET: Socket = Socket(-1);
const SCRATCH_BYTES: usize = 64 * 1024;
const SWEEP_NS: u64 = 100_000_000;
/// A ramp in which nobody new is welcome for so long has failed.
const CONNECT_STALL_NS_MAX: u64 = 30_000_000_000;
/// Time for the server to close after Bye.
const BYE_NS_MAX: u64 = 2_000_000_000;
