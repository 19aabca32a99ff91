//! Time as quinn-proto wants it.

use std::time::{Duration, Instant};

/// Instants are what quinn-proto wants, and are only ever counted from here.
pub(super) struct Clock {
    start: Instant,
    start_ns: u64,
    pub(super) now: Instant,
    pub(super) now_ns: u64,
}

impl Clock {
    pub(super) fn new(now_ns: u64) -> Self {
        let start = Instant::now();
        Self { start, start_ns: now_ns, now: start, now_ns }
    }

    pub(super) fn set(&mut self, now_ns: u64) {
        assert!(now_ns >= self.now_ns, "time goes on: {now_ns} after {}", self.now_ns);
        self.now_ns = now_ns;
        self.now = self.start + Duration::from_nanos(now_ns - self.start_ns);
    }

    pub(super) fn ns(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start);
        self.start_ns + u64::try_from(since.as_nanos()).unwrap_or(u64::MAX - self.start_ns)
    }
}
