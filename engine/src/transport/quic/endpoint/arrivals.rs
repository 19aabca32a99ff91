//! What comes in: to a connection, to another shard, or from a client that nobody knows yet.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ConnectionHandle, DatagramEvent, EcnCodepoint, EndpointEvent, Incoming, Transmit,
};

use super::super::admission::{Candidate, Verdict};
use super::super::connection::Connection;
use super::super::{ForeignDatagram, StreamKey};
use super::{QuicEndpoint, Source};
use crate::limits::{AddressRefusal, Admission, QUIC_FOREIGN_MAX, QUIC_RESPONSES_MAX};

impl QuicEndpoint {
    pub(super) fn put_foreign(&mut self, owner: u16, source: Source, datagram: &[u8]) {
        self.counters.foreign += 1;
        if self.foreign.len() >= QUIC_FOREIGN_MAX {
            self.counters.foreign_dropped += 1;
            return;
        }
        let Source { from, local, ecn } = source;
        let data = Bytes::copy_from_slice(datagram);
        self.foreign.push_back((owner, ForeignDatagram { from, local, ecn, data }));
    }

    /// A panic outside of any connection costs the datagram.
    pub(super) fn handle_datagram(&mut self, source: Source, datagram: &[u8]) {
        let taken = catch_unwind(AssertUnwindSafe(|| self.take_datagram(source, datagram)));
        if taken.is_err() {
            self.count_panic("a datagram", source.from);
        }
    }

    fn take_datagram(&mut self, source: Source, datagram: &[u8]) {
        let from = self.family.take(source.from);
        let local = source.local.map(|ip| ip.to_canonical());
        let ecn = EcnCodepoint::from_bits(source.ecn);
        // An allocation of its own: one byte that waits for those before it would otherwise hold
        // the whole train, and a client could claim 64 KB with each.
        let data = BytesMut::from(datagram);
        self.buffer.clear();
        match self.quic.handle(self.clock.now, from, local, ecn, data, &mut self.buffer) {
            None => {}
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let Some(index) = self.index_of(handle) else { return };
                self.contained(index, |conn, _, _, counters| {
                    conn.handle_event(event, from, local, counters);
                });
                self.touch(index);
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.admit(incoming),
            Some(DatagramEvent::Response(transmit)) => {
                let is_short = self.buffer.first().is_some_and(|first| first & 0x80 == 0);
                self.counters.resets += u64::from(is_short);
                self.respond(&transmit);
            }
        }
    }

    /// The connection of a handle. One that is not there was lost when it began, in a panic.
    fn index_of(&mut self, handle: ConnectionHandle) -> Option<u32> {
        if matches!(self.connections.get(handle.0), Some(Some(_))) {
            return Some(narrow(handle.0));
        }
        self.quic.handle_event(handle, EndpointEvent::drained());
        None
    }

    fn admit(&mut self, incoming: Incoming) {
        let address = incoming.remote_address().ip();
        let (now_ns, now_ms) = (self.clock.now_ns, self.clock.now_ns / 1_000_000);
        let candidate = Candidate {
            is_address_proven: incoming.remote_address_validated(),
            may_retry: incoming.may_retry(),
            is_over_limit: self
                .gate
                .as_ref()
                .is_some_and(|gate| gate.would_refuse(address, now_ms)),
        };
        let limits = &self.config.limits;
        match self.admission.decide(now_ns, candidate, self.connection_count, limits) {
            Verdict::Accept if candidate.is_address_proven => self.accept_proven(incoming, now_ms),
            Verdict::Accept => self.accept(incoming, None),
            Verdict::Retry => {
                self.counters.retries += 1;
                match self.quic.retry(incoming, &mut self.buffer) {
                    Ok(transmit) => self.respond(&transmit),
                    Err(fault) => self.quic.ignore(fault.into_incoming()),
                }
            }
            Verdict::Refuse => {
                self.counters.refused += 1;
                self.refuse(incoming);
            }
            Verdict::Ignore => {
                self.counters.ignored += 1;
                self.quic.ignore(incoming);
            }
        }
    }

    /// The limits of an address hold before anything is spent on it.
    fn accept_proven(&mut self, incoming: Incoming, now_ms: u64) {
        let from = incoming.remote_address();
        let admission = self.gate.as_ref().map(|gate| gate.admit(from.ip(), now_ms)).transpose();
        match admission {
            Ok(admission) => self.accept(incoming, admission),
            Err(refusal) => {
                tracing::debug!(address = %from, ?refusal, "QUIC connection refused");
                match refusal {
                    AddressRefusal::Rate => self.counters.refused_address_rate += 1,
                    AddressRefusal::Connections => self.counters.refused_address_connections += 1,
                }
                self.admission.take_back();
                self.refuse(incoming);
            }
        }
    }

    fn refuse(&mut self, incoming: Incoming) {
        let transmit = self.quic.refuse(incoming, &mut self.buffer);
        self.respond(&transmit);
    }

    fn accept(&mut self, incoming: Incoming, admission: Option<Admission>) {
        let from = incoming.remote_address();
        let accepted = self.quic.accept(incoming, self.clock.now, &mut self.buffer, None);
        match accepted.map_err(Box::new) {
            // It goes with its first packet. quinn-proto sets no timer that would end it.
            Ok((handle, connection)) if connection.is_closed() => {
                self.counters.handshakes_failed += 1;
                self.quic.handle_event(handle, EndpointEvent::drained());
            }
            Ok((handle, connection)) => self.insert(handle, connection, admission),
            Err(fault) => {
                tracing::debug!(address = %from, cause = %fault.cause, "QUIC handshake failed");
                self.counters.handshakes_failed += 1;
                if let Some(transmit) = fault.response {
                    self.respond(&transmit);
                }
            }
        }
    }

    fn insert(
        &mut self,
        handle: ConnectionHandle,
        connection: quinn_proto::Connection,
        admission: Option<Admission>,
    ) {
        let index = narrow(handle.0);
        self.next_generation = self.next_generation.wrapping_add(1);
        let key = StreamKey { shard: self.shard, index, generation: self.next_generation };
        let patience = Duration::from_millis(self.config.limits.handshake_ms_max);
        let mut connection = Connection::new(connection, handle, key, self.clock.now + patience);
        connection.admission = admission.map(Box::new);
        if handle.0 >= self.connections.len() {
            self.connections.resize_with(handle.0 + 1, || None);
        }
        self.connections[handle.0] = Some(Box::new(connection));
        self.connection_count += 1;
        self.admission.pending += 1;
        self.touch(index);
    }

    fn respond(&mut self, transmit: &Transmit) {
        if self.responses.len() >= QUIC_RESPONSES_MAX {
            self.counters.responses_dropped += 1;
            return;
        }
        self.responses.push_back(self.family.send(transmit, transmit.src_ip, &self.buffer));
    }
}

/// Indices are of connections, whose number is bounded.
fn narrow(index: usize) -> u32 {
    u32::try_from(index).expect("bounded by the limits")
}
