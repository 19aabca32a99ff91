//! Datagrams between the ring and the QUIC endpoint, what the endpoint has to tell, and new QUIC
//! connections.

use std::net::IpAddr;

use bytes::Bytes;
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::{Completion, Errno, Op, Outcome, Ring};

use super::Shard;
use super::conn::{Conn, ConnKey};
use super::edge::{CLOSE_REFUSED, Input};
use super::link::Link;
use super::message::{MeshMessage, ShardEvent};
use super::stream::{Owner, Stream};
use super::token::Token;
use crate::limits::{DATAGRAM_SENDS_MAX, FOREIGN_UNANSWERED_MAX};
use crate::metrics::Bound;
use crate::transport::Transport;
use crate::transport::quic::{ForeignDatagram, QuicEvent, StreamKey};

impl<R: Ring> Shard<R> {
    /// Arms the receive of datagrams if it should be and is not. The only place that does.
    pub(super) fn arm_datagrams(&mut self) {
        let is_ready = self.is_ready();
        let stops = self.drain.is_some_and(|drain| drain.stopping);
        let Some(edge) = &mut self.edge else { return };
        match edge.recv {
            None if is_ready && !stops && self.time.now_ms >= edge.recv_after_ms => {
                edge.recv_after_ms = 0;
                let op = Op::RecvDatagrams { socket: edge.socket };
                edge.recv = Some(self.ring.submit(Token::Datagrams.pack(), op));
            }
            Some(target) if stops && !std::mem::replace(&mut edge.recv_cancelled, true) => {
                self.ring.submit(Token::Unowned.pack(), Op::Cancel { target });
            }
            _ => {}
        }
    }

    pub(super) fn handle_datagrams(&mut self, completion: Completion) {
        let edge = self.edge.as_mut().expect("datagrams belong to an edge");
        if !completion.more {
            edge.recv = None;
        }
        match completion.result {
            Ok(Outcome::Datagrams(datagrams)) => {
                let data = self.ring.bytes(&datagrams.lease);
                let count = data.len().div_ceil(datagrams.segment_bytes as usize);
                self.metrics.datagrams_per_receive.observe(count as u64);
                edge.endpoint.handle_datagrams(
                    self.ring.now_ns(),
                    datagrams.from,
                    datagrams.local,
                    datagrams.ecn,
                    datagrams.segment_bytes,
                    data,
                );
                self.ring.release(datagrams.lease);
                self.forward_foreign();
            }
            Ok(other) => unreachable!("a receive of datagrams gives them, not {other:?}"),
            // The pool is refilled in this turn, and the receive armed again.
            Err(Errno::NOBUFS | Errno::CANCELED) => {}
            Err(errno) => {
                tracing::warn!(%errno, "receiving datagrams");
                edge.recv_after_ms = self.time.now_ms + RECV_RETRY_MS;
            }
        }
    }

    /// Gives datagrams of other shards' connections to them, as many as may be under way.
    fn forward_foreign(&mut self) {
        let Some(edge) = &mut self.edge else { return };
        while let Some((shard, datagram)) = edge.endpoint.poll_foreign() {
            if is_active(Mutant::DatagramNotForwarded) {
                continue;
            }
            let lane = &mut self.lanes[usize::from(shard)];
            if lane.foreign_unanswered >= FOREIGN_UNANSWERED_MAX
                || self.mesh.reserve(shard).is_err()
            {
                self.metrics.bound_hits.add(Bound::ForeignDatagrams);
                continue;
            }
            lane.foreign_unanswered += 1;
            let message = MeshMessage::Datagram(Box::new(datagram));
            if self.mesh.push(shard, message) {
                self.ring.submit(Token::Unowned.pack(), Op::Wake { shard });
            }
        }
    }

    /// Another shard got a datagram of one of this shard's connections.
    pub(super) fn handle_foreign(&mut self, from: u16, datagram: &ForeignDatagram) {
        if let Some(edge) = &mut self.edge {
            edge.endpoint.handle_foreign(self.ring.now_ns(), datagram);
        }
        self.push_mesh(from, MeshMessage::DatagramTaken);
    }

    pub(super) fn handle_datagram_taken(&mut self, from: u16) {
        self.mesh.replied(from);
        self.lanes[usize::from(from)].foreign_unanswered -= 1;
    }

    /// Timers, what the endpoint tells, and the streams that have something to do.
    pub(super) fn drive_edge(&mut self) {
        let now_ns = self.ring.now_ns();
        let Some(edge) = &mut self.edge else { return };
        edge.endpoint.handle_timeout(now_ns);
        while let Some(edge) = &mut self.edge
            && let Some(event) = edge.endpoint.poll_event()
        {
            self.handle_quic(event);
        }
        self.watch_flood();
        let Some(edge) = &mut self.edge else { return };
        for _ in 0..edge.ready.len() {
            let Some(edge) = &mut self.edge else { return };
            let Some(key) = edge.ready.pop_front() else { break };
            if let Some(stream) = edge.streams.get_mut(key) {
                stream.is_ready = false;
                self.drive_stream(key);
            }
        }
    }

    fn handle_quic(&mut self, event: QuicEvent) {
        let edge = self.edge.as_mut().expect("its endpoint spoke");
        match event {
            QuicEvent::Opened { key, from } => self.admit_stream(key, from),
            QuicEvent::Readable(key) => {
                if let Some(stream) = edge.streams.get_mut(key) {
                    stream.is_readable = true;
                    self.drive_stream(key);
                }
            }
            QuicEvent::Writable(key) => {
                edge.go_on_sending(key);
                self.drive_stream(key);
            }
            // The limits of addresses stay with the one that it came from: they are for who begins
            // connections.
            QuicEvent::Moved { key, from } => {
                tracing::debug!(shard = self.id, ?key, %from, "a client has a new address");
            }
            QuicEvent::Ended { key, reason } => {
                tracing::debug!(shard = self.id, ?key, ?reason, "QUIC connection ended");
                if let Some(stream) = edge.streams.get_mut(key) {
                    match stream.owner {
                        // Who comes home finds out by his first order.
                        Owner::Moving => drop(edge.streams.remove(key)),
                        Owner::Here(_) | Owner::There { .. } => {
                            stream.is_gone = true;
                            self.drive_stream(key);
                        }
                    }
                }
            }
        }
    }

    /// Moves on what a stream and its connection have for each other.
    pub(super) fn drive_stream(&mut self, key: StreamKey) {
        let Some(edge) = &mut self.edge else { return };
        let Some(stream) = edge.streams.get_mut(key) else { return };
        match stream.owner {
            Owner::Here(conn) => self.drive_here(key, conn),
            Owner::There { home, conn } => self.tell_home(key, home, conn),
            Owner::Moving => {}
        }
    }

    /// What a stream of one of this shard's own connections has for it.
    fn drive_here(&mut self, key: StreamKey, conn: ConnKey) {
        let Some(edge) = &mut self.edge else { return };
        let Some(stream) = edge.streams.get_mut(key) else { return };
        if std::mem::take(&mut stream.owes_sent) {
            self.link_sent(conn);
        }
        let Some(edge) = &mut self.edge else { return };
        let Some(stream) = edge.streams.get_mut(key) else { return };
        if stream.is_gone {
            edge.streams.remove(key);
            return self.link_gone(conn);
        }
        if !stream.may_read() {
            return;
        }
        let wants = match edge.read(key) {
            Input::Received(data) => self.link_received(conn, &data),
            Input::Ended => self.link_ended(conn),
            Input::Nothing => return,
        };
        let Some(edge) = &mut self.edge else { return };
        if let Some(stream) = edge.streams.get_mut(key)
            && stream.owner == Owner::Here(conn)
        {
            stream.wants = wants;
            if stream.may_read() {
                edge.queue(key); // the others have their turn first
            }
        }
    }

    /// A client has completed its handshake and opened its stream.
    fn admit_stream(&mut self, stream: StreamKey, from: IpAddr) {
        let conn = self.begin_stream(stream, from);
        let edge = self.edge.as_mut().expect("its endpoint spoke");
        let Some(conn) = conn else {
            return edge.endpoint.close(stream, CLOSE_REFUSED, Bytes::new());
        };
        let key = self.conns.insert(conn);
        edge.streams.insert(stream, Stream::new(key));
        self.greetings.begin(key, self.time.now_ms);
        self.schedule(key);
        self.rearm.push(key);
    }

    /// `None`: it is not wanted.
    fn begin_stream(&mut self, stream: StreamKey, from: IpAddr) -> Option<Conn> {
        if self.drain.is_some() {
            return None;
        }
        let edge = self.edge.as_ref().expect("its endpoint spoke");
        let is_full = edge.streams.len() >= self.limits.connections_max;
        let bound = if is_full { Some(Bound::ConnectionsPerShard) } else { self.accept_bound() };
        if let Some(bound) = bound {
            self.metrics.bound_hits.add(bound);
            return None;
        }
        // With a proven address it was asked before the handshake.
        let edge = self.edge.as_mut().expect("its endpoint spoke");
        let admission = match edge.endpoint.take_admission(stream) {
            Some(admission) => self.let_in(admission),
            None => self.admit_address(from)?,
        };
        let frame_bytes_max = self.limits.frame_bytes_max;
        let link = Link::Quic(stream);
        let mut conn = Conn::new(link, Transport::Quic, from, frame_bytes_max, self.time.now_ms);
        (conn.is_exempt, conn.guard) = (admission.is_exempt, admission.guard);
        Some(conn)
    }

    /// Tells when clients have to prove their addresses, because so many begin handshakes.
    fn watch_flood(&mut self) {
        let now_ms = self.time.now_ms;
        let Some(edge) = &mut self.edge else { return };
        let retries = edge.endpoint.counters().retries;
        let Some(is_on) = edge.flood.observe(retries, now_ms) else { return };
        self.metrics.quic_floods += u64::from(is_on);
        (self.events)(ShardEvent::Flood { shard: self.id, is_on });
    }

    /// Gives the ring what the endpoint has to send. What finds no room is asked for again when a
    /// send has completed.
    pub(super) fn transmit(&mut self) {
        let now_ns = self.ring.now_ns();
        let Some(edge) = &mut self.edge else { return };
        edge.has_more_to_send = false;
        loop {
            if edge.sends_in_flight >= DATAGRAM_SENDS_MAX {
                edge.has_more_to_send = true;
                self.metrics.bound_hits.add(Bound::DatagramSends);
                return;
            }
            let Some(send) = edge.endpoint.poll_transmit(now_ns) else { return };
            let segment_bytes = send.segment_bytes.map_or(send.data.len(), usize::from).max(1);
            let count = send.data.len().div_ceil(segment_bytes) as u64;
            self.metrics.datagrams_per_send.observe(count);
            let op = Op::SendDatagrams { socket: edge.socket, send: Box::new(send) };
            self.ring.submit(Token::DatagramsSent.pack(), op);
            edge.sends_in_flight += 1;
        }
    }

    pub(super) fn handle_datagrams_sent(&mut self, completion: Completion) {
        let edge = self.edge.as_mut().expect("datagrams belong to an edge");
        edge.sends_in_flight -= 1;
        if let Err(errno) = completion.result {
            // Lost, as datagrams may be: the connection sends what was in them again.
            tracing::debug!(%errno, "sending datagrams");
            self.metrics.datagram_sends_failed += 1;
        }
    }
}

/// What fails for a reason of the socket's own is not tried again at once.
const RECV_RETRY_MS: u64 = 10;
