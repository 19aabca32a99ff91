//! The end of a shard: stop accepting, tell every client when to come back, flush, close; then,
//! when no shard has a connection left, finish the store.

use ringpost_protocol::message::{self, GoAwayReason};
use ringpost_ring::{Op, Ring};

use super::Shard;
use super::conn::{ConnKey, Phase};
use super::message::{ControlRequest, ShardEvent};
use super::token::Token;

/// A drain in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// When connections with unanswered Sends are closed all the same.
    deadline_ms: u64,
    /// Clients are told to come back after a time chosen from zero up to this.
    jitter_ms: u64,
    /// [`ShardEvent::Quiet`] has been reported.
    quiet: bool,
    /// No shard has a connection left: finish the store and end.
    pub(super) stopping: bool,
    /// When the shard ends although its checkpoint is not complete; the next start takes longer then.
    pub(super) checkpoint_until_ms: u64,
}

impl<R: Ring> Shard<R> {
    pub(super) fn handle_control(&mut self, request: ControlRequest) {
        match request {
            ControlRequest::Metrics(reply) => reply(self.snapshot()),
            ControlRequest::Apply { settings, applied } => {
                self.apply(*settings);
                applied();
            }
            ControlRequest::Drain { within_ms, jitter_ms } => {
                self.begin_drain(within_ms, jitter_ms);
            }
            ControlRequest::Steered(program) => {
                if let Some(edge) = &mut self.edge {
                    edge.endpoint.set_steering(&program);
                }
            }
            ControlRequest::KeysLow { news, told } => {
                self.warn_owner(&news.owner, news.remaining);
                told();
            }
            ControlRequest::Stop => {
                let drain = self.drain.get_or_insert(Drain {
                    deadline_ms: 0,
                    jitter_ms: 0,
                    quiet: true,
                    stopping: true,
                    checkpoint_until_ms: 0,
                });
                drain.stopping = true;
                // What is left of the drain's time, and a moment if nothing is.
                let least_ms = self.time.now_ms + CHECKPOINT_MS;
                drain.checkpoint_until_ms = drain.deadline_ms.max(least_ms);
                if let Some(home) = &mut self.home
                    && let Some(open) = home.state.try_open_mut()
                {
                    open.store.request_checkpoint();
                }
            }
        }
    }

    fn begin_drain(&mut self, within_ms: u64, jitter_ms: u64) {
        if self.drain.is_some() {
            return;
        }
        let deadline_ms = self.time.now_ms + within_ms;
        self.drain = Some(Drain {
            deadline_ms,
            jitter_ms,
            quiet: false,
            stopping: false,
            checkpoint_until_ms: 0,
        });
        if let Some(target) = self.accept {
            self.ring.submit(Token::Unowned.pack(), Op::Cancel { target });
        }
        if let Some(edge) = &mut self.edge {
            edge.endpoint.stop_accepting();
        }
        for key in self.conns.keys() {
            self.say_go_away(key);
        }
    }

    fn say_go_away(&mut self, key: ConnKey) {
        let reconnect_after_ms = self.return_time_ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.is_closing() {
            return;
        }
        if !conn.transport.is_handshaking() {
            let reason = GoAwayReason::Drain;
            message::put_go_away(&mut conn.out, reason, reconnect_after_ms, None);
            self.mark_dirty(key);
        }
    }

    /// When a client that is sent away should come back: spread, so that a fleet returns as a ramp.
    pub(super) fn return_time_ms(&mut self) -> u64 {
        let jitter_ms = self.drain.map_or(self.reconnect_jitter_ms, |drain| drain.jitter_ms);
        self.random.below(jitter_ms + 1)
    }

    /// Closes the connections whose Sends have been answered, then reports and ends.
    pub(super) fn drive_drain(&mut self) {
        let Some(drain) = self.drain else { return };
        let expired = self.time.now_ms >= drain.deadline_ms;
        for key in self.conns.keys() {
            if expired || !self.awaits_answers(key) {
                self.begin_close(key);
            }
        }
        let drain = self.drain.as_mut().expect("checked above");
        let is_quiet = expired || self.edge.as_ref().is_none_or(|edge| edge.is_quiet());
        if self.conns.len() == 0 && is_quiet && !drain.quiet {
            drain.quiet = true;
            (self.events)(ShardEvent::Quiet { shard: self.id });
        }
    }

    fn awaits_answers(&self, key: ConnKey) -> bool {
        let Some(conn) = self.conns.get(key) else { return false };
        if conn.inquiries > 0 {
            return true;
        }
        let Phase::Open { device } = conn.phase else { return false };
        let home = self.home.as_ref().expect("an open connection is at home");
        home.device(device).memory.as_ref().is_some_and(|memory| memory.unanswered() > 0)
    }

    /// Whether the shard may end: nothing queued, nothing in flight but its own wake-up.
    pub(super) fn is_finished(&self) -> bool {
        let stopping = self.drain.is_some_and(|drain| drain.stopping);
        let settled = self.home.as_ref().is_none_or(|home| home.state.is_settled());
        let edge_settled = self.edge.as_ref().is_none_or(|edge| edge.is_settled());
        let answered = self.inquiries.unanswered() == 0;
        stopping && self.conns.len() == 0 && settled && answered && edge_settled
    }
}

/// Time for the checkpoint at the end, if the drain has none left.
const CHECKPOINT_MS: u64 = 1_000;
