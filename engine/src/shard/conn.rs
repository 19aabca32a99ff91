//! Connections: their states, their table, and what is armed on their links.
//!
//! ```text
//! Greeting --Hello, token--> Moving --mesh--> (home shard) Registering --durable--> Open
//!     |                        |                               |                     |
//!     +------------------------+------------- fault, Bye, EOF -+---------------------+--> Closing
//! ```
//!
//! Until it is at home a connection has at most one single-shot receive armed, so that it can move
//! as soon as nothing is in flight. At home a multishot receive stays armed. A slot is freed after
//! the last completion of its operations.

use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use ringpost_protocol::message::SendRequest;
use ringpost_protocol::session::ServerSession;
use slab::Slab;

use super::flow::Flow;
use super::link::{Link, Pending};
use super::message::{DeviceIndex, Login};
use crate::limits::{AddressGuard, LimitSet};
use crate::transport::Transport;
use crate::transport::proxy::HeaderReader;

/// One connection.
pub struct Conn {
    pub(super) link: Link,
    pub(super) phase: Phase,
    pub(super) transport: Transport,
    pub(super) session: ServerSession,
    /// Bound of the frames that it sends, as told in Welcome.
    pub(super) frame_bytes_max: u32,
    /// Plaintext that is not yet a whole frame, or waits for room behind `blocked`.
    pub(super) input: BytesMut,
    /// Frames that are not yet sealed.
    pub(super) out: Vec<u8>,
    /// Ciphertext that a short send left over; goes out before anything else is sealed.
    pub(super) unsent: Vec<Bytes>,
    pub(super) recv: Option<Pending>,
    pub(super) send: Option<Pending>,
    /// A Send that waits for a mesh credit or for the store; nothing behind it is read.
    pub(super) blocked: Option<Box<SendRequest>>,
    /// When the send in flight counts as stalled.
    pub(super) send_deadline_ms: u64,
    /// Earliest wheel entry of this connection; later deadlines wait for it.
    pub(super) scheduled_ms: u64,
    /// Stands in the queue of connections to flush.
    pub(super) dirty: bool,
    /// A cancel of the receive is on its way, because too much is waiting.
    pub(super) recv_paused: bool,
    /// The peer sends nothing more.
    pub(super) peer_closed: bool,
    /// It counts among the connections that are not verified yet.
    pub(super) is_unverified: bool,
    /// What it sent last waits for its step; nothing more is read.
    pub(super) awaits_step: bool,
    /// It waits for a credit of the shard that has its stream.
    pub(super) awaits_credit: bool,
    /// It ends without what was queued for its peer.
    pub(super) is_aborted: bool,
    pub(super) held: Held,
    /// Requests that the directory has not answered.
    pub(super) inquiries: u8,
    pub(super) flow: Flow,
    /// Monotonic.
    pub(super) accepted_ms: u64,
    /// The client's, behind a balancer too.
    pub(super) address: IpAddr,
    /// No rates hold for it.
    pub(super) is_exempt: bool,
    /// Counts it among those of its address, also after it has moved.
    pub(super) guard: Option<AddressGuard>,
    /// The part of the balancer's header that has come, until it is whole.
    pub(super) header: Option<Box<HeaderReader>>,
    generation: u32,
}

/// Why frames that have arrived are not handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    No,
    /// It had its share of this turn.
    ForTurn,
    /// It does not read the answers.
    ForOutput,
}

/// Where a connection stands.
pub enum Phase {
    /// Transport handshake, then the first frame.
    Greeting,
    /// Verified; leaves for its home shard once nothing is in flight and a credit is there.
    Moving(Box<Login>),
    /// At home; waits until its device's record is durable.
    Registering { device: DeviceIndex },
    /// Welcomed.
    Open { device: DeviceIndex },
    /// Flushes, ends its direction, reads what still comes, closes.
    Closing(Closing),
}

/// Progress of the end.
#[derive(Clone, Copy, Debug)]
pub struct Closing {
    pub(super) shutdown: Shutdown,
    /// When reading on is given up.
    pub(super) deadline_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// What is queued goes out first.
    Flushing,
    Submitted,
    Done,
}

/// Names a connection of one shard for as long as it lives, and nothing after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnKey {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// The connections of one shard.
#[derive(Default)]
pub struct ConnTable {
    slab: Slab<Conn>,
    next_generation: u32,
}

impl Conn {
    pub(super) fn new(
        link: Link,
        transport: Transport,
        address: IpAddr,
        frame_bytes_max: u32,
        now_ms: u64,
    ) -> Self {
        Self {
            link,
            phase: Phase::Greeting,
            transport,
            session: ServerSession::new(now_ms),
            frame_bytes_max,
            input: BytesMut::new(),
            out: Vec::new(),
            unsent: Vec::new(),
            recv: None,
            send: None,
            blocked: None,
            send_deadline_ms: u64::MAX,
            scheduled_ms: u64::MAX,
            dirty: false,
            recv_paused: false,
            peer_closed: false,
            is_unverified: true,
            awaits_step: false,
            awaits_credit: false,
            is_aborted: false,
            held: Held::No,
            inquiries: 0,
            flow: Flow::default(),
            accepted_ms: now_ms,
            address,
            is_exempt: false,
            guard: None,
            header: None,
            generation: 0,
        }
    }

    fn is_named_by(&self, key: ConnKey) -> bool {
        self.generation == key.generation
    }

    /// The device behind a welcomed connection.
    pub(super) fn device(&self) -> Option<DeviceIndex> {
        match self.phase {
            Phase::Open { device } => Some(device),
            _ => None,
        }
    }

    /// Whether nothing can be sent any more.
    pub(super) fn has_ended(&self) -> bool {
        matches!(&self.phase, Phase::Closing(closing) if closing.shutdown != Shutdown::Flushing)
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(_))
    }

    /// Whether frames may be taken from `input`.
    pub(super) fn takes_frames(&self) -> bool {
        self.blocked.is_none()
            && self.held == Held::No
            && matches!(self.phase, Phase::Greeting | Phase::Open { .. })
    }

    /// Whether a receive should be armed: never on the way home, and not while too much waits.
    pub(super) fn wants_recv(&self) -> bool {
        if self.recv.is_some() || self.peer_closed {
            return false;
        }
        match &self.phase {
            Phase::Moving(_) => false,
            Phase::Closing(closing) => closing.shutdown != Shutdown::Flushing,
            _ => !self.recv_paused && !self.awaits_step && !self.flow.is_paused(),
        }
    }

    /// Whether the transport has nothing left to say.
    pub(super) fn is_flushed(&self) -> bool {
        self.send.is_none()
            && self.unsent.is_empty()
            && self.out.is_empty()
            && !self.transport.wants_seal()
    }

    /// When this connection must be looked at, monotonic milliseconds.
    pub(super) fn deadline_ms(&self, now_ms: u64, unix_ms: u64, limits: &LimitSet) -> u64 {
        let own_ms = match &self.phase {
            Phase::Closing(closing) => closing.deadline_ms,
            // Who is not read cannot say that he is there.
            Phase::Open { .. } if self.flow.is_paused() => self.flow.deadline_ms(),
            Phase::Open { .. } => self.session.poll_timeout(now_ms, unix_ms),
            _ => self.flow.deadline_ms().min(self.welcome_deadline_ms(limits)),
        };
        own_ms.min(self.send_deadline_ms)
    }

    /// When a connection that is not welcome yet has waited too long.
    pub(super) fn welcome_deadline_ms(&self, limits: &LimitSet) -> u64 {
        match self.phase {
            Phase::Open { .. } | Phase::Closing(_) => u64::MAX,
            _ => self.accepted_ms + limits.handshake_ms_max,
        }
    }
}

impl ConnTable {
    /// Generations fit into the token of an operation.
    const GENERATION_MASK: u32 = (1 << 24) - 1;

    pub(super) fn insert(&mut self, mut conn: Conn) -> ConnKey {
        self.next_generation = (self.next_generation + 1) & Self::GENERATION_MASK;
        conn.generation = self.next_generation;
        let generation = conn.generation;
        let index = u32::try_from(self.slab.insert(conn)).expect("bounded by the limits");
        ConnKey { index, generation }
    }

    pub(super) fn get(&self, key: ConnKey) -> Option<&Conn> {
        let conn = self.slab.get(key.index as usize);
        conn.filter(|conn| conn.is_named_by(key))
    }

    pub(super) fn get_mut(&mut self, key: ConnKey) -> Option<&mut Conn> {
        let conn = self.slab.get_mut(key.index as usize);
        conn.filter(|conn| conn.is_named_by(key))
    }

    pub(super) fn remove(&mut self, key: ConnKey) -> Conn {
        assert!(self.get(key).is_some(), "a connection is removed once");
        self.slab.remove(key.index as usize)
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn keys(&self) -> Vec<ConnKey> {
        self.slab
            .iter()
            .map(|(index, conn)| ConnKey {
                index: u32::try_from(index).expect("bounded by the limits"),
                generation: conn.generation,
            })
            .collect()
    }
}
