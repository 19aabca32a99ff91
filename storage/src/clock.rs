//! The expiry clock: what a message's end is compared with.
//!
//! While the store is open it follows monotonic time. At start it takes the host's time, but
//! advances at most an hour beyond what the log knows, unless an operator confirmed it: a host
//! with a wrong date must not expire a month of messages. It never goes back. The log knows it to
//! the minute, while something is appended or queued.

use ringpost_protocol::mutant::{Mutant, is_active};

use crate::disk::SegmentId;
use crate::limits::{CLOCK_LOG_MS, CLOCK_STEP_MS_MAX};
use crate::record;
use crate::store::Store;

/// What [`Store::begin_clock`] made of the host's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockStart {
    /// The expiry clock now, Unix milliseconds.
    pub clock_ms: u64,
    /// How far it is behind the host's time. Messages are kept so much longer.
    pub lag_ms: u64,
}

#[derive(Debug, Default)]
pub(crate) struct ExpiryClock {
    /// The highest that the log holds; zero when it holds none.
    pub(crate) logged_ms: u64,
    /// Where that record is.
    logged_in: SegmentId,
    /// Its batch, when it is of this open.
    logged_batch: u64,
    started: Option<Started>,
    /// When the next record is due.
    log_at_ms: u64,
}

/// At monotonic time `now_ms` the clock showed `clock_ms`.
#[derive(Clone, Copy, Debug)]
struct Started {
    clock_ms: u64,
    now_ms: u64,
}

impl ExpiryClock {
    /// As recovered from the log.
    pub(crate) fn recovered(logged_ms: u64, logged_in: SegmentId) -> Self {
        Self { logged_ms, logged_in, ..Self::default() }
    }

    /// The highest that the log holds, and where it stands.
    pub(crate) fn logged(&self) -> (u64, SegmentId) {
        (self.logged_ms, self.logged_in)
    }

    /// The clock at `now_ms`; `None` before [`Store::begin_clock`].
    pub(crate) fn at(&self, now_ms: u64) -> Option<u64> {
        let Started { clock_ms, now_ms: began_ms } = self.started?;
        Some(clock_ms.saturating_add(now_ms.saturating_sub(began_ms)))
    }

    /// The monotonic time at which the clock shows `clock_ms`; it may have passed.
    pub(crate) fn when(&self, clock_ms: u64) -> Option<u64> {
        let started = self.started?;
        Some(started.now_ms.saturating_add(clock_ms.saturating_sub(started.clock_ms)))
    }
}

impl Store {
    /// Starts the expiry clock, once after opening. `now_ms`: monotonic, as everywhere;
    /// `unix_ms`: the host's time; `confirmed`: an operator says that it is right.
    pub fn begin_clock(&mut self, now_ms: u64, unix_ms: u64, confirmed: bool) -> ClockStart {
        let known_ms = self.clock.logged_ms;
        let furthest_ms = known_ms.saturating_add(CLOCK_STEP_MS_MAX);
        let is_bound = known_ms > 0 && !confirmed && !is_active(Mutant::ExpiryClockUnlimited);
        let clock_ms = if is_bound { unix_ms.min(furthest_ms) } else { unix_ms }.max(known_ms);
        self.clock.started = Some(Started { clock_ms, now_ms });
        if !self.failed {
            self.log_clock(now_ms);
        }
        self.sweep.look_again();
        ClockStart { clock_ms, lag_ms: unix_ms.saturating_sub(clock_ms) }
    }

    /// What `NewMessage.expires_at_ms` is compared with, Unix milliseconds. Before
    /// [`Self::begin_clock`] what the log knows.
    pub fn expiry_clock_ms(&self, now_ms: u64) -> u64 {
        self.clock.at(now_ms).unwrap_or(self.clock.logged_ms)
    }

    /// Before a batch is written: the record that is due each minute.
    pub(crate) fn log_clock_if_due(&mut self, now_ms: u64) {
        let concerns = self.entries > 0 || !self.forming.is_empty();
        // While the disk is full nothing is written: one record waits, not one per minute.
        let is_durable = self.clock.logged_batch <= self.durable_batch;
        if self.clock.started.is_some() && now_ms >= self.clock.log_at_ms && concerns && is_durable
        {
            self.log_clock(now_ms);
        }
    }

    fn log_clock(&mut self, now_ms: u64) {
        self.clock.log_at_ms = now_ms.saturating_add(CLOCK_LOG_MS);
        self.clock.logged_ms = self.expiry_clock_ms(now_ms).max(self.clock.logged_ms);
        self.put_clock();
    }

    /// The segment is about to go: what it alone knows of the clock is written again.
    pub(crate) fn carry_clock(&mut self, segment: SegmentId) {
        if self.clock.logged_ms > 0 && self.clock.logged_in <= segment {
            self.put_clock();
        }
    }

    fn put_clock(&mut self) {
        self.clock.logged_in = self.reserve(record::CLOCK_BYTES).segment;
        self.clock.logged_batch = self.forming.number;
        record::put_clock(self.clock.logged_ms, self.forming.buffer());
    }

    /// When a record is due though nothing else is written.
    pub(crate) fn clock_timeout(&self) -> Option<u64> {
        let waits = self.clock.started.is_some() && self.entries > 0 && self.is_idle();
        waits.then_some(self.clock.log_at_ms)
    }
}
