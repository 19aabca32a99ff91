//! One connection from `connect` to `close`, and the next one after it.

use anyhow::{Result, ensure};
use ringpost_ring::{Errno, Op, Ring, Socket};

use super::{CLOSE, CONNECT, LinkState, NO_SOCKET, RECEIVE, Reading, SHUTDOWN, Swarm, token};
use crate::tokens::with_own_tickets;

impl Swarm {
    pub(super) fn start_connects(&mut self, now_ns: u64) -> Result<()> {
        for index in (0..self.retries.len()).rev() {
            if self.retries[index].0 <= now_ns {
                self.waiting.push_back(self.retries.swap_remove(index).1);
            }
        }
        while self.connecting < self.config.connecting_max {
            let Some(client) = self.waiting.pop_front() else { break };
            let slot = &mut self.slots[client as usize];
            assert_eq!(slot.state, LinkState::Down, "a client is queued once");
            slot.state = LinkState::Connecting;
            slot.connect_ns = now_ns;
            self.connecting += 1;
            if self.quic.is_some() {
                self.connect_quic(client)?;
                continue;
            }
            let op = Op::Connect { local: self.sources.take(), remote: self.config.target };
            self.ring.submit(token(CONNECT, client), op);
        }
        Ok(())
    }

    pub(super) fn handle_connected(&mut self, client: u32, socket: Socket) -> Result<()> {
        let now_ms = self.now_ns() / 1_000_000;
        let slot = &mut self.slots[client as usize];
        slot.socket = socket;
        slot.in_flight = 0;
        let tls = match self.config.own_tickets {
            true => slot.tls.get_or_insert_with(|| with_own_tickets(&self.config.tls)),
            false => &self.config.tls,
        };
        slot.client.connect(now_ms, tls, self.config.server_name.clone())?;
        if !slot.wanted {
            self.lose(client, "not needed any more");
            return Ok(());
        }
        self.arm_receive(client);
        self.mark_dirty(client);
        Ok(())
    }

    pub(super) fn handle_refused(&mut self, client: u32, errno: Errno) -> Result<()> {
        self.connecting -= 1;
        self.last_failure = format!("connect to {}: {errno}", self.config.target);
        self.slots[client as usize].state = LinkState::Down;
        self.connect_later(client)
    }

    /// The one place that arms a receive.
    pub(super) fn arm_receive(&mut self, client: u32) {
        let slot = &mut self.slots[client as usize];
        slot.receiving = true;
        slot.in_flight += 1;
        let multishot = slot.reading == Reading::Eager;
        let op = Op::Recv { socket: slot.socket, multishot };
        let op = self.ring.submit(token(RECEIVE, client), op);
        self.slots[client as usize].receive_op = Some(op);
    }

    /// Ends a connection; the client comes back if it is wanted.
    pub(super) fn lose(&mut self, client: u32, reason: &str) {
        let slot = &mut self.slots[client as usize];
        match slot.state {
            LinkState::Down | LinkState::Closing | LinkState::Vanishing => return,
            // A connect in flight has no socket yet; it ends when it has one.
            LinkState::Connecting if slot.socket == NO_SOCKET && slot.quic.is_none() => return,
            LinkState::Connecting => self.connecting -= 1,
            LinkState::Open => {
                self.open -= 1;
                self.traffic.handle_connection_lost();
            }
            LinkState::Leaving => {}
        }
        if slot.wanted && self.last_failure.is_empty() {
            reason.clone_into(&mut self.last_failure);
        }
        slot.client.disconnect();
        slot.state = LinkState::Closing;
        if slot.quic.is_some() {
            self.close_quic(client);
            return;
        }
        if slot.in_flight > 0 {
            slot.in_flight += 1;
            self.ring.submit(token(SHUTDOWN, client), Op::Shutdown { socket: slot.socket });
        } else {
            self.close_when_quiet(client);
        }
    }

    pub(super) fn close_when_quiet(&mut self, client: u32) {
        let slot = &mut self.slots[client as usize];
        if slot.state == LinkState::Vanishing && slot.in_flight == 0 {
            self.leave_ghost(client);
            return;
        }
        if slot.state == LinkState::Closing && slot.in_flight == 0 && slot.socket != NO_SOCKET {
            slot.in_flight = 1;
            let op = Op::CloseSocket { socket: slot.socket };
            slot.socket = NO_SOCKET;
            self.ring.submit(token(CLOSE, client), op);
        }
    }

    pub(super) fn handle_closed(&mut self, client: u32) -> Result<()> {
        let slot = &mut self.slots[client as usize];
        slot.state = LinkState::Down;
        slot.sending = false;
        let at_once = std::mem::take(&mut slot.returns_at_once) || self.logins.is_some();
        match slot.wanted {
            true if at_once => {
                self.waiting.push_back(client);
                Ok(())
            }
            true => self.connect_later(client),
            false => Ok(()),
        }
    }

    /// Exponential backoff, or what the server asked for.
    pub(super) fn connect_later(&mut self, client: u32) -> Result<()> {
        let slot = &mut self.slots[client as usize];
        slot.failures += 1;
        ensure!(
            slot.failures <= FAILURES_MAX,
            "a client gave up after {FAILURES_MAX} attempts: {}",
            self.last_failure
        );
        let backoff_ms = (BACKOFF_MS << slot.failures.min(6)) + u64::from(client % 64);
        let wait_ms = backoff_ms.max(std::mem::take(&mut slot.reconnect_after_ms));
        if slot.wanted {
            self.retries.push((self.ring.now_ns() + wait_ms * 1_000_000, client));
        }
        Ok(())
    }
}

const BACKOFF_MS: u64 = 25;
/// Attempts of one client in a row; with the backoff some 15 seconds, enough for a restart.
const FAILURES_MAX: u32 = 14;
