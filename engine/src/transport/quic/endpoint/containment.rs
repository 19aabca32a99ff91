//! A bug in one connection's state machine ends that connection, and no other.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use quinn_proto::EndpointEvent;

use super::super::connection::Connection;
use super::super::{EndReason, QuicCounters, QuicEvent};
use super::QuicEndpoint;

impl QuicEndpoint {
    /// Runs `call` on a connection and survives its panics, which the connection does not. `None`:
    /// there is no such connection, or no longer.
    pub(super) fn contained<T>(
        &mut self,
        index: u32,
        call: impl FnOnce(
            &mut Connection,
            &mut quinn_proto::Endpoint,
            &mut VecDeque<QuicEvent>,
            &mut QuicCounters,
        ) -> T,
    ) -> Option<T> {
        let Self { connections, quic, events, counters, .. } = self;
        let conn = connections.get_mut(index as usize)?.as_mut()?;
        match catch_unwind(AssertUnwindSafe(|| call(conn, quic, events, counters))) {
            Ok(value) => Some(value),
            Err(_) => {
                self.bury(index);
                None
            }
        }
    }

    /// Ends a connection that has panicked.
    fn bury(&mut self, index: u32) {
        let Some(conn) = self.forget(index) else { return };
        self.count_panic("a connection", conn.path.remote());
        self.quic.handle_event(conn.handle(), EndpointEvent::drained());
        if conn.is_open() {
            let reason = EndReason::Panicked;
            self.events.push_back(QuicEvent::Ended { key: conn.key, reason });
        }
        // Half-changed state may panic once more on its way out.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(conn)));
    }

    pub(super) fn forget(&mut self, index: u32) -> Option<Box<Connection>> {
        let conn = self.connections.get_mut(index as usize)?.take()?;
        self.connection_count -= 1;
        self.admission.pending -= usize::from(conn.is_pending);
        self.timers.set(index, None);
        Some(conn)
    }

    pub(super) fn count_panic(&mut self, of: &str, address: SocketAddr) {
        self.counters.panics += 1;
        tracing::error!(%address, "QUIC: a panic ended {of}; the shard goes on");
    }
}
