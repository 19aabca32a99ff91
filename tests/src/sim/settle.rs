//! Liveness: when nothing goes wrong any more, everything is delivered, and some of it all the time.

use ringpost_client::limits::{RETRY_DOUBLINGS_MAX, RETRY_MS_MIN};
use ringpost_engine::limits::OUTBOUND_BYTES_MAX;
use ringpost_protocol::limits::FRAME_BYTES_MAX;

use super::clock::MS;
use super::oracle::Violation;
use super::world::World;

/// How long a world took to deliver what was left when its faults stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    pub whole_ms: u64,
    /// The longest time in which nothing advanced.
    pub still_ms: u64,
}

impl World {
    /// Runs until everything that can be delivered is. Fails when nothing advances for long: no
    /// outcome, message or receipt is told, of which there are finitely many; and when it all takes
    /// longer than the retries of the longest outbox may.
    pub(super) fn settle(&mut self) -> Result<(), Violation> {
        let bound = self.patience();
        let start_ns = self.host.borrow().clock.now_ns();
        let mut advanced_ns = start_ns;
        loop {
            let seen = self.oracle.advances;
            let end_ns = start_ns + bound.whole_ms * MS;
            let has_advanced = self
                .run_until(end_ns.min(advanced_ns + bound.still_ms * MS), |world| {
                    world.oracle.advances != seen || world.is_settled()
                })?;
            let now_ns = self.host.borrow().clock.now_ns();
            self.settled.whole_ms = (now_ns - start_ns) / MS;
            self.settled.still_ms = self.settled.still_ms.max((now_ns - advanced_ns) / MS);
            if self.is_settled() {
                return Ok(());
            }
            if !has_advanced {
                return Err(Violation(self.why_unsettled(bound)));
            }
            advanced_ns = now_ns;
        }
    }

    /// How long this world may take. A mailbox that is full takes a sender's share in a round: a
    /// wait of the client, then one flight to the gateway and back, and one between the gateway and
    /// the recipient, each behind as much as may stand before it on a slow link.
    fn patience(&self) -> Settled {
        let host = self.host.borrow();
        let weights = &host.faults.weights;
        let trip_ms = DELAY_FACTOR_MAX * weights.network_ns * weights.slow_link / MS;
        let queued_bytes = OUTBOUND_BYTES_MAX + FRAME_BYTES_MAX;
        let trips = 4 + (queued_bytes / weights.send_buffer_bytes) as u64;
        let still_ms = COME_BACK_MS_MAX + trips * trip_ms;
        let round_ms = (RETRY_MS_MIN << RETRY_DOUBLINGS_MAX) + trips * trip_ms;
        let senders = u64::try_from(self.clients.len().max(4)).expect("few");
        let records = u64::from(self.shape.mailbox_records_max) / senders;
        let share = if self.shape.is_narrow() { 1 } else { records };
        let longest = self.clients.iter().map(|client| client.outbox_len()).max().unwrap_or(0);
        let rounds = (longest as u64).div_ceil(share);
        // A link carries what its buffer holds, once in a trip.
        let loads = (self.oracle.most_owed_bytes() / weights.send_buffer_bytes) as u64;
        Settled { whole_ms: FETCH_MS_MAX + rounds * round_ms + loads * trip_ms, still_ms }
    }

    fn is_settled(&self) -> bool {
        self.gateway.queued_records().is_some()
            && !self.gateway.draining
            && self.clients.iter().all(|client| client.is_idle())
            && self.oracle.missing().is_empty()
    }

    fn why_unsettled(&self, bound: Settled) -> String {
        let clients: Vec<String> = self.clients.iter().map(|client| client.state()).collect();
        let mut missing = self.oracle.missing();
        missing.truncate(8);
        format!(
            "not settled without faults: {:?}, allowed {bound:?}: {}; {}",
            self.settled,
            missing.join(", "),
            clients.join("; ")
        )
    }
}

/// A delay is at most so many times the usual one.
const DELAY_FACTOR_MAX: u64 = 16;
/// Until a client is back that stays away, does not read, or has yet to notice that its connection
/// is gone, and the gateway that starts again.
const COME_BACK_MS_MAX: u64 = 300_000;
/// Until what waits in mailboxes has been fetched, but for the time that its bytes need.
const FETCH_MS_MAX: u64 = 1_200_000;
