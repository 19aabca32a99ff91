//! One shard: everything that one core owns, and its loop.
//!
//! The shard takes time and completions from its [`Ring`] and gives operations back; it sees no
//! file descriptor, no clock and no thread. Behind the ring stands the kernel, or the simulator.
//!
//! What carries a connection is a `link`: a socket of the ring, or a QUIC stream, whose side is in `edge`,
//! `datagrams`, `stream`, and, where it is another shard's, `relay`.
//!
//! A message passes through the files in this order: `accept` and `greeting` (or a move from another
//! shard), `inbound`, `route`, `deposit`, `disk` (durable), `mailbox`, `outbound`; its acknowledgement through
//! `receipts`. A group is served in `group` and `group_call`, by its `roster`; what is sent to it, in `fanout`.

mod token;
pub mod message;
mod settings;
mod audit;
mod accept;
mod greeting;
mod proxied;
pub mod conn;
pub mod link;
mod stream;
mod edge;
mod datagrams;
pub mod relay;
mod flow;
mod inbound;
mod inbox;
mod route;
mod lanes;
mod blocks;
mod deposit;
mod cache;
mod directory;
mod lists;
mod stale;
pub mod roster;
pub mod group;
pub mod group_call;
mod roster_store;
pub mod fanout;
mod home;
mod disk;
mod opening;
mod durable;
mod backlog;
mod mailbox;
mod receipts;
mod outbound;
mod wheel;
mod drain;
mod snapshot;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;
use ringpost_ring::{
    COMPLETIONS_PER_ENTER_MAX, Completion, Listener, OpId, Ring, UdpSocket, WOKEN_TOKEN,
};
use ringpost_storage::{Store, StoreConfig};

use self::conn::{ConnKey, ConnTable};
use self::directory::Inquiries;
pub use self::disk::{Listing, StoreDirectory};
use self::drain::Drain;
use self::edge::Edge;
use self::greeting::Greetings;
use self::home::Home;
use self::lanes::Lane;
use self::link::LinkDone;
use self::message::ShardEvent;
use self::outbound::SpareBuffers;

pub use self::settings::ShardSettings;
use self::token::Token;
use self::wheel::Wheel;
use crate::control::auth::Verifier;
use crate::directory::DirectoryPort;
use crate::limits::{AddressTable, Cidr, Gate, LimitSet, SHARDS_MAX};
use crate::mesh::Mesh;
use crate::metrics::{Bound, ShardMetrics};
use crate::transport::Acceptor;
use crate::transport::quic::QuicEndpoint;

/// What a shard is told at its start, once and for all.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub shard: u16,
    /// The first `storage_shards` shards own the slots; the others only accept and hand over.
    pub storage_shards: u16,
    /// The operator says that the host's clock is right: the expiry clock follows it at once, however
    /// far it has to go.
    pub confirm_clock: bool,
    /// Seed of the shard's random numbers: mailbox ids and return times.
    pub random_seed: u64,
    /// Connections come through balancers, from these addresses only, and begin with a PROXY
    /// header. `None`: they come from the clients themselves.
    pub proxy_trusted: Option<Vec<Cidr>>,
}

/// What a shard works with.
pub struct ShardParts<R> {
    pub ring: R,
    pub listener: Option<Listener>,
    /// Where QUIC comes in; it is served if the settings have a configuration for it.
    pub datagrams: Option<UdpSocket>,
    pub mesh: Mesh,
    /// What holds until [`message::ControlRequest::Apply`] brings other ones.
    pub settings: ShardSettings,
    /// The same for all shards.
    pub addresses: Arc<AddressTable>,
    /// `None`: there is no directory, and what asks for it is answered UNSUPPORTED.
    pub directory: Option<Box<dyn DirectoryPort>>,
    /// `None` for a shard that owns no slots.
    pub store: Option<(StoreConfig, StoreDirectory)>,
    /// Told of the shard's milestones; called from the shard's thread and must not block.
    pub events: Box<dyn FnMut(ShardEvent) + Send>,
}

/// Time of one turn.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Time {
    /// Monotonic.
    pub(crate) now_ms: u64,
    /// Wall clock.
    pub(crate) unix_ms: u64,
}

/// Whether the loop goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Continue,
    /// Drained and synced.
    Finished,
    /// The store failed and cannot be opened again; what is not durable is lost with the process, and
    /// was never acknowledged.
    Failed,
}

/// One core's part of the gateway. Call [`Shard::turn`] until it is over.
pub struct Shard<R> {
    id: u16,
    config: ShardConfig,
    /// What is allowed now; replaced as a whole.
    limits: Arc<LimitSet>,
    /// Clients sent away for overload come back after a time from zero up to this.
    reconnect_jitter_ms: u64,
    audits: bool,
    ring: R,
    time: Time,
    completions: Vec<Completion>,
    listener: Option<Listener>,
    accept: Option<OpId>,
    accept_after_ms: u64,
    /// Its end is on the way.
    accept_cancelled: bool,
    /// When an unverified connection may be pushed out for a new one, if that is waited for.
    room_to_greet_ms: u64,
    acceptor: Acceptor,
    verifier: Arc<Verifier>,
    gate: Gate,
    greetings: Greetings,
    conns: ConnTable,
    /// `None`: no QUIC.
    edge: Option<Box<Edge>>,
    links_done: VecDeque<LinkDone>,
    /// Wraps.
    turn_number: u32,
    /// Connections with frames that the last turn has left.
    held: Vec<ConnKey>,
    /// Connections whose Send to a group waited for the one before.
    woken: Vec<ConnKey>,
    /// Connections with something to flush in this turn.
    dirty: Vec<ConnKey>,
    spare_out: SpareBuffers,
    /// Connections whose receive may have to be armed in this turn.
    rearm: Vec<ConnKey>,
    wheel: Wheel<ConnKey>,
    due: Vec<ConnKey>,
    /// Receive buffer for plaintext, shared by all connections that hold no partial frame.
    plaintext: BytesMut,
    /// `None` for a shard that owns no slots.
    home: Option<Home>,
    mesh: Mesh,
    inquiries: Inquiries,
    /// One per destination shard.
    lanes: Vec<Lane>,
    drain: Option<Drain>,
    random: Random,
    metrics: ShardMetrics,
    events: Box<dyn FnMut(ShardEvent) + Send>,
    /// The first turn has been made: from then on something always leads to the next one.
    started: bool,
    ready: bool,
    failed: bool,
}

impl<R: Ring> Shard<R> {
    pub fn new(config: ShardConfig, parts: ShardParts<R>) -> Self {
        let ShardParts { ring, listener, datagrams, mesh, settings, .. } = parts;
        let ShardParts { addresses, directory, store, events, .. } = parts;
        let ShardSettings { acceptor, quic, verifier, limits, reconnect_jitter_ms, audits } =
            settings;
        assert!(config.storage_shards <= SHARDS_MAX && config.storage_shards <= mesh.shards());
        assert_eq!(store.is_some(), config.shard < config.storage_shards);
        let time = Time { now_ms: ring.now_ns() / 1_000_000, unix_ms: ring.unix_ms() };
        let gate = Gate::new(addresses, Arc::clone(&limits));
        let edge = datagrams.zip(quic).map(|(socket, quic)| {
            let mut endpoint = QuicEndpoint::new(&quic, config.shard, mesh.shards(), ring.now_ns());
            endpoint.set_gate(gate.clone());
            Box::new(Edge::new(endpoint, socket))
        });
        let mut random = Random::new(config.random_seed);
        let home = store
            .map(|(store, directory)| Home::new(store, directory, random.next_u64(), time.now_ms));
        Self {
            id: config.shard,
            ring,
            time,
            completions: Vec::new(),
            listener,
            accept: None,
            accept_after_ms: 0,
            accept_cancelled: false,
            room_to_greet_ms: u64::MAX,
            acceptor,
            verifier,
            gate,
            greetings: Greetings::default(),
            conns: ConnTable::default(),
            edge,
            links_done: VecDeque::new(),
            turn_number: 0,
            held: Vec::new(),
            woken: Vec::new(),
            dirty: Vec::new(),
            spare_out: SpareBuffers::default(),
            rearm: Vec::new(),
            wheel: Wheel::new(time.now_ms),
            due: Vec::new(),
            plaintext: BytesMut::new(),
            home,
            inquiries: Inquiries::new(directory),
            lanes: (0..mesh.shards()).map(|_| Lane::default()).collect(),
            mesh,
            drain: None,
            random,
            metrics: ShardMetrics::default(),
            events,
            started: false,
            ready: false,
            failed: false,
            limits,
            reconnect_jitter_ms,
            audits,
            config,
        }
    }

    /// One turn of the loop, and the whole of it: reap, handle, mesh, timers, store, flush, submit.
    pub fn turn(&mut self) -> Turn {
        self.reap();
        self.turn_number = self.turn_number.wrapping_add(1);
        self.drive_greetings();
        self.resume_held();
        self.handle_completions();
        self.drain_mesh();
        self.expire_timers();
        self.drive_edge();
        self.drive_links();
        self.drive_store();
        self.serve_waiters();
        self.drive_drain();
        self.flush();
        self.transmit();
        self.arm_receives();
        self.arm_accept();
        self.arm_datagrams();
        self.started = true;
        if self.failed {
            Turn::Failed
        } else if self.is_finished() {
            self.close();
            (self.events)(ShardEvent::Finished { shard: self.id });
            Turn::Finished
        } else {
            Turn::Continue
        }
    }

    /// Submits what the last turn has produced and takes what has completed; sleeps only when
    /// nothing is left to do.
    fn reap(&mut self) {
        let wait_ns = self.wait_ns();
        let sleeps = wait_ns > 0 && self.mesh.arm_sleep();
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.enter(if sleeps { wait_ns } else { 0 }, &mut completions);
        if completions.len() + 1 >= COMPLETIONS_PER_ENTER_MAX {
            self.metrics.bound_hits.add(Bound::CompletionsPerTurn);
        }
        self.completions = completions;
        if sleeps {
            self.mesh.disarm_sleep();
        }
        self.time = Time { now_ms: self.ring.now_ns() / 1_000_000, unix_ms: self.ring.unix_ms() };
    }

    fn wait_ns(&self) -> u64 {
        if !self.started || !self.dirty.is_empty() || !self.rearm.is_empty() {
            return 0;
        }
        if !self.held.is_empty()
            || !self.woken.is_empty()
            || self.greetings.has_waiting()
            || !self.links_done.is_empty()
        {
            return 0;
        }
        let now_ms = self.time.now_ms;
        let mut deadline_ms = self.wheel.next_deadline_ms().unwrap_or(u64::MAX);
        if let Some(home) = &self.home {
            deadline_ms = deadline_ms.min(home.deadline_ms());
        }
        if self.accept.is_none() && self.accept_after_ms > now_ms {
            deadline_ms = deadline_ms.min(self.accept_after_ms);
        }
        deadline_ms = deadline_ms.min(self.room_to_greet_ms);
        if self.drain.is_some() {
            deadline_ms = deadline_ms.min(now_ms + DRAIN_TURN_MS);
        }
        let wait_ns = deadline_ms.saturating_sub(now_ms).saturating_mul(1_000_000);
        match &self.edge {
            Some(edge) => wait_ns.min(edge.deadline_ns().saturating_sub(self.ring.now_ns())),
            None => wait_ns,
        }
    }

    fn handle_completions(&mut self) {
        let mut completions = std::mem::take(&mut self.completions);
        for completion in completions.drain(..) {
            if completion.token == WOKEN_TOKEN {
                continue; // the mesh is drained in every turn
            }
            match Token::unpack(completion.token) {
                Token::Unowned => {}
                Token::Accept => self.handle_accept(completion),
                Token::Recv(key) => self.handle_recv(key, completion),
                Token::Send(key) => self.handle_sent(key, completion),
                Token::Shutdown(key) => self.handle_shutdown(key),
                Token::Disk(index) => self.handle_disk(index, completion.result),
                Token::Datagrams => self.handle_datagrams(completion),
                Token::DatagramsSent => self.handle_datagrams_sent(completion),
            }
        }
        self.completions = completions;
    }

    fn expire_timers(&mut self) {
        let mut due = std::mem::take(&mut self.due);
        self.wheel.expire(self.time.now_ms, &mut due);
        for key in due.drain(..) {
            self.handle_deadline(key);
        }
        self.due = due;
        self.sweep_send_memory();
    }

    fn is_ready(&self) -> bool {
        self.ready
    }

    fn close(&mut self) {
        if let Some(home) = &mut self.home
            && let Some(open) = home.state.try_open_mut()
        {
            open.disk.close(&mut self.ring);
        }
        self.ring.enter(0, &mut self.completions);
    }

    /// The ring, for whoever stands behind the seam.
    pub fn ring(&self) -> &R {
        &self.ring
    }

    /// The store while it is open, for whoever watches the shard from outside.
    pub fn store(&self) -> Option<&Store> {
        let home = self.home.as_ref().filter(|home| home.state.is_open())?;
        Some(&home.state.open().store)
    }
}

/// Random numbers of one shard, from its seed: nothing secret is made of them.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64: every seed has the full period.
    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is above zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}

/// While draining, the loop looks at its connections at least this often.
const DRAIN_TURN_MS: u64 = 20;
