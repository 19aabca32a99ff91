//! Nothing but logins: every client connects, is welcome, leaves, and connects again.

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use ringpost_ring::Ring;

use super::{LinkState, Swarm};

/// What one thread's clients did.
#[derive(Clone, Debug)]
pub struct Logins {
    pub count: u64,
    /// Those that resumed a TLS session.
    pub resumed: u64,
    /// Time in which they came about.
    pub seconds: f64,
    /// From `connect` to Welcome, in microseconds.
    pub latency_us: Histogram<u64>,
}

impl Logins {
    pub fn new() -> Self {
        let latency_us =
            Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("constant and legal bounds");
        Self { count: 0, resumed: 0, seconds: 0.0, latency_us }
    }

    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.resumed += other.resumed;
        self.seconds = self.seconds.max(other.seconds);
        self.latency_us += &other.latency_us;
    }
}

impl Default for Logins {
    fn default() -> Self {
        Self::new()
    }
}

impl Swarm {
    /// Logs in for so long, and at least `count_min` times, with all clients at once,
    /// `connecting_max` of them at a time.
    pub fn run_logins(&mut self, duration_ns: u64, count_min: u64) -> Result<Logins> {
        self.logins = Some(Logins::new());
        for client in self.clients() {
            self.slots[client as usize].wanted = true;
            self.waiting.push_back(client);
        }
        let start_ns = self.now_ns();
        let end_ns = start_ns + duration_ns;
        let enough = |swarm: &Self| {
            swarm.logins.as_ref().is_none_or(|logins| logins.count >= count_min)
                && swarm.now_ns() >= end_ns
        };
        self.run_until(end_ns + LATE_NS_MAX, enough)?;
        let mut logins = self.logins.take().unwrap_or_default();
        logins.seconds = self.now_ns().saturating_sub(start_ns) as f64 / 1e9;
        self.disconnect()?;
        ensure!(logins.count > 0, "nobody was welcome; last failure: {}", self.last_failure);
        Ok(logins)
    }

    /// Whether this Welcome was all that the client wanted.
    pub(super) fn count_login(&mut self, client: u32) -> bool {
        let Some(logins) = &mut self.logins else { return false };
        let slot = &mut self.slots[client as usize];
        logins.count += 1;
        logins.resumed += u64::from(slot.client.is_resumed());
        let latency_ns = self.ring.now_ns().saturating_sub(slot.connect_ns);
        logins.latency_us.saturating_record(latency_ns / 1_000);
        slot.client.bye();
        slot.state = LinkState::Leaving;
        self.open -= 1;
        self.mark_dirty(client);
        true
    }
}

/// For a server that is too slow for `count_min`.
const LATE_NS_MAX: u64 = 60_000_000_000;
const LATENCY_US_MAX: u64 = 600_000_000;
