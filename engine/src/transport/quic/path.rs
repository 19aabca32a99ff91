//! Where a client is. QUIC tells nobody when that changes, so it is asked after each datagram.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use quinn_proto::Connection;

use super::QuicCounters;

/// The path of one connection.
pub(super) struct Path {
    current: Ends,
    /// The one before, which may still be answered.
    previous: Option<Ends>,
    /// Where the owner believes the client to be.
    told: SocketAddr,
    /// The current path is not validated yet; so many answers to path challenges had come when it
    /// began.
    unvalidated: Option<u64>,
    /// To be told.
    moved: bool,
    /// Nothing could be sent on the current path yet.
    silent: bool,
}

#[derive(Clone, Copy)]
struct Ends {
    remote: SocketAddr,
    /// Our address there: answers must come from it.
    local: Option<IpAddr>,
}

impl Path {
    pub(super) fn new(remote: SocketAddr, local: Option<IpAddr>) -> Self {
        let current = Ends { remote, local };
        Self {
            current,
            previous: None,
            told: remote,
            unvalidated: None,
            moved: false,
            silent: false,
        }
    }

    /// The client's address, validated or not.
    pub(super) fn remote(&self) -> SocketAddr {
        self.current.remote
    }

    /// The client's address, as it has proven it: the handshake's, then validated ones.
    pub(super) fn proven(&self) -> SocketAddr {
        self.told
    }

    /// Our address for what goes to `remote`.
    pub(super) fn local(&self, remote: SocketAddr) -> Option<IpAddr> {
        let mut known = [Some(self.current), self.previous].into_iter().flatten();
        known.find(|ends| ends.remote == remote)?.local
    }

    /// The connection has handled a datagram.
    pub(super) fn handle_datagram(
        &mut self,
        connection: &Connection,
        from: SocketAddr,
        local: Option<IpAddr>,
        counters: &mut QuicCounters,
    ) {
        let remote = connection.remote_address();
        if remote != self.current.remote {
            counters.path_changes += 1;
            self.previous = Some(self.current);
            self.current = Ends { remote, local };
            self.unvalidated = Some(answers(connection));
            self.silent = true;
        } else if from == remote {
            self.current.local = local;
            self.look_for_validation(connection, counters);
        } else if self.unvalidated.is_some() {
            // An answer from another path validates nothing.
            self.unvalidated = Some(answers(connection));
        }
    }

    fn look_for_validation(&mut self, connection: &Connection, counters: &mut QuicCounters) {
        let Some(before) = self.unvalidated else { return };
        if answers(connection) > before {
            self.unvalidated = None;
            counters.path_validations += 1;
            self.moved = self.told != self.current.remote;
            self.told = self.current.remote;
        }
    }

    /// The connection has had its turn to send.
    pub(super) fn handle_transmit(&mut self) {
        self.silent = false;
    }

    /// Runs the timers of the connection, of which one may end a validation. On a path that is new in
    /// this turn they wait for what is sent there first: a loss timer of the old path, seen late, would
    /// find nothing under way and take the handshake for the reason (quinn-proto asserts against it).
    pub(super) fn handle_timeout(
        &mut self,
        connection: &mut Connection,
        now: Instant,
        counters: &mut QuicCounters,
    ) {
        if self.silent {
            return;
        }
        let controller = |connection: &Connection| {
            std::ptr::from_ref(connection.congestion_state()).cast::<()>()
        };
        let before = controller(connection);
        connection.handle_timeout(now);
        // Both paths live until one is dropped, so a path that was put back is at another place.
        if controller(connection) == before {
            return;
        }
        counters.path_failures += 1;
        // The old path comes back without its loss detection: with nothing under way that could be
        // acknowledged there, nothing that was lost would ever be sent again.
        connection.ping();
        let remote = connection.remote_address();
        if remote != self.current.remote {
            self.current = Ends { remote, local: self.local(remote) };
        }
        self.previous = None;
        self.unvalidated = None;
    }

    /// A validated change that nobody was told of yet.
    pub(super) fn poll_moved(&mut self) -> Option<SocketAddr> {
        std::mem::take(&mut self.moved).then_some(self.told)
    }
}

/// Answers to path challenges that have come.
fn answers(connection: &Connection) -> u64 {
    connection.stats().frame_rx.path_response
}
