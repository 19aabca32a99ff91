//! All QUIC connections of one shard.

mod arrivals;
mod containment;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn_proto::VarInt;
use ringpost_ring::DatagramSend;
use ringpost_ring::steering::Program;

use super::admission::Admission;
use super::clock::Clock;
use super::config::QuicConfig;
use super::connection::{Connection, Report};
use super::timers::Timers;
use super::transmit::Family;
use super::{ForeignDatagram, QuicCounters, QuicEvent, Read, StreamKey};
use crate::limits::{self, Gate, QUIC_CLOSE_LINGER_MS, QUIC_TIMEOUTS_PER_TURN};

/// The QUIC side of one shard. How to call it: [the module](super).
pub struct QuicEndpoint {
    shard: u16,
    config: QuicConfig,
    /// How datagrams are steered, and so whose one is.
    steering: Program,
    quic: quinn_proto::Endpoint,
    clock: Clock,
    /// By the index that quinn-proto gave them, which it gives again when they are gone.
    connections: Vec<Option<Box<Connection>>>,
    connection_count: usize,
    next_generation: u32,
    timers: Timers,
    /// Their timers have fired.
    due: Vec<u32>,
    /// They may have something to tell.
    touched: Vec<u32>,
    /// They may have something to send; each in turn sends one train.
    dirty: VecDeque<u32>,
    events: VecDeque<QuicEvent>,
    responses: VecDeque<DatagramSend>,
    foreign: VecDeque<(u16, ForeignDatagram)>,
    admission: Admission,
    gate: Option<Gate>,
    family: Family,
    counters: QuicCounters,
    /// For whatever is being written.
    buffer: Vec<u8>,
}

/// Where a datagram came from.
#[derive(Clone, Copy)]
struct Source {
    from: SocketAddr,
    local: Option<IpAddr>,
    ecn: u8,
}

impl QuicEndpoint {
    /// The endpoint of `shard`, one of `shards`.
    pub fn new(config: &QuicConfig, shard: u16, shards: u16, now_ns: u64) -> Self {
        let endpoint = Arc::new(config.endpoint(shard, shards));
        let seed = config.shard_seed(shard);
        let quic = quinn_proto::Endpoint::new(endpoint, Some(config.server()), false, seed);
        Self {
            shard,
            config: config.clone(),
            steering: config.program(shards),
            quic,
            clock: Clock::new(now_ns),
            connections: Vec::new(),
            connection_count: 0,
            next_generation: 0,
            timers: Timers::new(now_ns),
            due: Vec::new(),
            touched: Vec::new(),
            dirty: VecDeque::new(),
            events: VecDeque::new(),
            responses: VecDeque::new(),
            foreign: VecDeque::new(),
            admission: Admission::default(),
            gate: None,
            family: Family::default(),
            counters: QuicCounters::default(),
            buffer: Vec::new(),
        }
    }

    /// Takes a newer certificate or other limits; connections go on with what they began with. The
    /// naming of connection ids and the keys stay.
    pub fn set_config(&mut self, config: &QuicConfig) {
        assert!(config.naming == self.config.naming, "ids that were given out name their shards");
        self.quic.set_server_config(Some(config.server()));
        self.config = config.clone();
    }

    /// Asks `gate` from now on, before a handshake begins with an address that is proven. Who is let
    /// in under one that is not is the owner's to ask, when the stream is there.
    pub fn set_gate(&mut self, gate: Gate) {
        self.gate = Some(gate);
    }

    /// How the address of a connection was let in; `None`: the gate was not asked. Given once.
    pub fn take_admission(&mut self, key: StreamKey) -> Option<limits::Admission> {
        let index = self.find(key)?;
        self.connections[index as usize].as_mut()?.admission.take().map(|admission| *admission)
    }

    /// Lets nobody in from now on, and ends those that have not opened their stream.
    pub fn stop_accepting(&mut self) {
        self.admission.is_closed = true;
        let now = self.clock.now;
        for index in (0..).take(self.connections.len()) {
            self.contained(index, |conn, _, _, _| conn.turn_away(now));
            self.touch(index);
        }
        self.settle_touched();
    }

    /// Follows the steering program of the sockets: what it would have sent to another shard is
    /// foreign, what it leaves to the kernel's hash is handled where it lands.
    pub fn set_steering(&mut self, program: &Program) {
        assert!(program.shards() == self.steering.shards(), "the number of shards stays");
        self.steering = program.clone();
    }

    /// Takes what arrived from one address: datagrams of `segment_bytes` each, the last one may be
    /// shorter. `ecn` are the two bits of the header.
    pub fn handle_datagrams(
        &mut self,
        now_ns: u64,
        from: SocketAddr,
        local: Option<IpAddr>,
        ecn: u8,
        segment_bytes: u32,
        data: &[u8],
    ) {
        self.clock.set(now_ns);
        let segment_bytes = usize::try_from(segment_bytes.max(1)).expect("a 64-bit platform");
        let source = Source { from, local, ecn };
        for datagram in data.chunks(segment_bytes) {
            self.counters.datagrams_received += 1;
            match self.steering.shard(datagram) {
                Some(owner) if owner != self.shard => self.put_foreign(owner, source, datagram),
                _ => self.handle_datagram(source, datagram),
            }
        }
        self.settle_touched();
    }

    /// Takes a datagram that landed on another shard.
    pub fn handle_foreign(&mut self, now_ns: u64, foreign: &ForeignDatagram) {
        self.clock.set(now_ns);
        self.counters.forwarded += 1;
        let &ForeignDatagram { from, local, ecn, ref data } = foreign;
        if self.steering.shard(data).is_some_and(|owner| owner != self.shard) {
            self.counters.misrouted += 1;
            return;
        }
        self.handle_datagram(Source { from, local, ecn }, data);
        self.settle_touched();
    }

    /// Runs the timers that are due; at most so many that the turn stays short.
    pub fn handle_timeout(&mut self, now_ns: u64) {
        self.clock.set(now_ns);
        self.timers.expire(now_ns, &mut self.due);
        let rest = self.due.split_off(self.due.len().min(QUIC_TIMEOUTS_PER_TURN));
        for index in std::mem::replace(&mut self.due, rest) {
            let now = self.clock.now;
            self.contained(index, |conn, _, events, counters| {
                conn.handle_timeout(&mut Report { now, events, counters });
            });
            self.touch(index);
        }
        self.settle_touched();
    }

    /// When [`QuicEndpoint::handle_timeout`] should be called.
    pub fn poll_timeout(&self) -> Option<u64> {
        let is_due_now = !self.due.is_empty() || !self.events.is_empty();
        if is_due_now { Some(self.clock.now_ns) } else { self.timers.next_ns() }
    }

    pub fn poll_event(&mut self) -> Option<QuicEvent> {
        self.events.pop_front()
    }

    /// A datagram for another shard's [`QuicEndpoint::handle_foreign`].
    pub fn poll_foreign(&mut self) -> Option<(u16, ForeignDatagram)> {
        self.foreign.pop_front()
    }

    /// What to send next.
    pub fn poll_transmit(&mut self, now_ns: u64) -> Option<DatagramSend> {
        self.clock.set(now_ns);
        if let Some(response) = self.responses.pop_front() {
            self.counters.datagrams_sent += 1;
            return Some(response);
        }
        while let Some(index) = self.dirty.pop_front() {
            if let Some(send) = self.transmit(index) {
                self.dirty.push_back(index);
                return Some(send);
            }
            self.finish_turn(index);
        }
        None
    }

    /// What has arrived on a stream, at most `max_bytes`.
    pub fn read(&mut self, key: StreamKey, max_bytes: usize) -> Read {
        let Some(index) = self.find(key) else { return Read::Reset };
        let read = self.contained(index, |conn, _, _, _| conn.read(max_bytes));
        let Some((read, must_tell)) = read else { return Read::Reset };
        if must_tell {
            self.mark_dirty(index);
        }
        read
    }

    /// Writes `data` to a stream, takes from its front what was taken, and gives its length. When
    /// something is left, [`QuicEvent::Writable`] follows.
    pub fn write(&mut self, key: StreamKey, data: &mut Vec<Bytes>) -> usize {
        let Some(index) = self.find(key) else { return 0 };
        let written_bytes = self.contained(index, |conn, _, _, _| conn.write(data));
        self.mark_dirty(index);
        written_bytes.unwrap_or(0)
    }

    /// Ends our direction of a stream behind what was written.
    pub fn finish(&mut self, key: StreamKey) {
        let Some(index) = self.find(key) else { return };
        self.contained(index, |conn, _, _, _| conn.finish());
        self.mark_dirty(index);
    }

    /// Ends a connection. The client is told `code` and `reason`.
    pub fn close(&mut self, key: StreamKey, code: u32, reason: Bytes) {
        let Some(index) = self.find(key) else { return };
        let now = self.clock.now;
        let linger = now + Duration::from_millis(QUIC_CLOSE_LINGER_MS);
        self.contained(index, |conn, _, _, _| {
            conn.close(now, linger, VarInt::from_u32(code), reason);
        });
        self.mark_dirty(index);
    }

    pub fn counters(&self) -> &QuicCounters {
        &self.counters
    }

    /// Connections, those included that begin, linger or have ended a moment ago.
    pub fn connections(&self) -> usize {
        self.connection_count
    }

    /// Handshakes under way.
    pub fn handshakes_pending(&self) -> usize {
        self.admission.pending
    }

    /// As if its panic had come when it began.
    #[cfg(test)]
    pub(super) fn lose(&mut self, key: StreamKey) {
        self.forget(key.index);
    }

    #[cfg(test)]
    pub(super) fn inner(&mut self, key: StreamKey) -> &mut quinn_proto::Connection {
        let index = self.find(key).expect("a test names an open connection");
        self.mark_dirty(index);
        self.connections[index as usize].as_mut().expect("found").inner()
    }

    /// The open connection that `key` names.
    fn find(&self, key: StreamKey) -> Option<u32> {
        let conn = self.connections.get(key.index as usize)?.as_ref()?;
        (conn.key == key && conn.is_open()).then_some(key.index)
    }

    /// One train of a connection.
    fn transmit(&mut self, index: u32) -> Option<DatagramSend> {
        let now = self.clock.now;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let transmit = self.contained(index, |conn, _, _, _| conn.poll_transmit(now, &mut buffer));
        self.buffer = buffer;
        let (transmit, from) = transmit??;
        let segment_bytes = transmit.segment_size.unwrap_or(transmit.size);
        self.counters.datagrams_sent += transmit.size.div_ceil(segment_bytes.max(1)) as u64;
        Some(self.family.send(&transmit, from, &self.buffer))
    }

    /// A connection has nothing more to send: only now its next deadline is known.
    fn finish_turn(&mut self, index: u32) {
        if let Some(Some(conn)) = self.connections.get_mut(index as usize) {
            conn.is_dirty = false;
        }
        self.settle(index);
        let deadline = self.contained(index, |conn, _, _, _| conn.poll_timeout());
        let deadline_ns = deadline.flatten().map(|at| self.clock.ns(at));
        self.timers.set(index, deadline_ns);
    }

    fn touch(&mut self, index: u32) {
        let Some(Some(conn)) = self.connections.get_mut(index as usize) else { return };
        if !std::mem::replace(&mut conn.is_touched, true) {
            self.touched.push(index);
        }
    }

    fn mark_dirty(&mut self, index: u32) {
        let Some(Some(conn)) = self.connections.get_mut(index as usize) else { return };
        if !std::mem::replace(&mut conn.is_dirty, true) {
            self.dirty.push_back(index);
        }
    }

    /// Hears what the connections have to say that something has happened to.
    fn settle_touched(&mut self) {
        while let Some(index) = self.touched.pop() {
            if let Some(Some(conn)) = self.connections.get_mut(index as usize) {
                conn.is_touched = false;
            }
            self.settle(index);
            self.mark_dirty(index);
        }
    }

    fn settle(&mut self, index: u32) {
        let now = self.clock.now;
        let settled = self.contained(index, |conn, quic, events, counters| {
            let settled = conn.settle(quic, &mut Report { now, events, counters });
            let is_done = conn.is_pending && !conn.is_greeting();
            conn.is_pending &= !is_done;
            (settled, is_done)
        });
        let Some((settled, is_done)) = settled else { return };
        self.admission.pending -= usize::from(is_done);
        if settled.is_drained {
            self.forget(index);
        } else if settled.is_answered {
            self.mark_dirty(index);
        }
    }
}
