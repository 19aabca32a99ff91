//! When the key set is fetched next. Time and chance are parameters.

use crate::limits::{
    KEY_SET_AGE_S, KEY_SET_AGE_S_DEFAULT, KEY_SET_DEMAND_MS, KEY_SET_RETRY_MS, KEY_SET_RETRY_MS_MAX,
};

/// Call [`Schedule::due_ms`] after each of the other calls. All times are monotonic.
#[derive(Debug)]
pub(super) struct Schedule {
    due_ms: u64,
    /// In a row.
    failures: u32,
    /// When a demand was last heard.
    demanded_ms: Option<u64>,
}

impl Schedule {
    /// The first fetch is due after `max_age_s`, as for [`Schedule::succeeded`].
    pub(super) fn new(now_ms: u64, max_age_s: Option<u64>) -> Self {
        let mut schedule = Self { due_ms: now_ms, failures: 0, demanded_ms: None };
        schedule.succeeded(now_ms, max_age_s);
        schedule
    }

    /// The first fetch is due at once.
    pub(super) fn at_once(now_ms: u64) -> Self {
        Self { due_ms: now_ms, failures: 0, demanded_ms: None }
    }

    pub(super) fn due_ms(&self) -> u64 {
        self.due_ms
    }

    /// `max_age_s`: what the server says.
    pub(super) fn succeeded(&mut self, now_ms: u64, max_age_s: Option<u64>) {
        let age_s = max_age_s.unwrap_or(KEY_SET_AGE_S_DEFAULT);
        let age_s = age_s.clamp(*KEY_SET_AGE_S.start(), *KEY_SET_AGE_S.end());
        (self.failures, self.due_ms) = (0, now_ms + age_s * 1_000);
    }

    /// Between a half and the whole of a pause that doubles, so that a fleet does not come as one.
    pub(super) fn failed(&mut self, now_ms: u64, random: u64) {
        let doublings = self.failures.min(u64::BITS - 1);
        let pause_ms = KEY_SET_RETRY_MS.saturating_mul(1 << doublings).min(KEY_SET_RETRY_MS_MAX);
        self.failures += 1;
        self.due_ms = now_ms + pause_ms / 2 + random % (pause_ms / 2 + 1);
    }

    /// Somebody needs a newer set: a token has an unknown kid, or the operator asks.
    pub(super) fn demanded(&mut self, now_ms: u64) {
        let earliest_ms =
            self.demanded_ms.map_or(now_ms, |last_ms| now_ms.max(last_ms + KEY_SET_DEMAND_MS));
        if earliest_ms < self.due_ms {
            (self.due_ms, self.demanded_ms) = (earliest_ms, Some(earliest_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_holds_within_bounds() {
        let due = |max_age_s| Schedule::new(7, max_age_s).due_ms() - 7;
        assert_eq!(due(None), 300_000);
        assert_eq!(due(Some(600)), 600_000);
        assert_eq!(due(Some(0)), 60_000);
        assert_eq!(due(Some(u64::MAX)), 3_600_000);
        assert_eq!(Schedule::at_once(7).due_ms(), 7);
    }

    #[test]
    fn failures_wait_longer_and_longer_and_not_all_the_same() {
        let mut schedule = Schedule::at_once(0);
        for (failure, pause_ms) in [1_000, 2_000, 4_000, 8_000].into_iter().enumerate() {
            let now_ms = 1_000_000 * failure as u64;
            schedule.failed(now_ms, 0);
            assert_eq!(schedule.due_ms() - now_ms, pause_ms / 2);
        }
        for _ in 0..200 {
            schedule.failed(0, u64::MAX);
            assert!(schedule.due_ms() <= KEY_SET_RETRY_MS_MAX);
        }
        schedule.failed(0, KEY_SET_RETRY_MS_MAX / 2);
        assert_eq!(schedule.due_ms(), KEY_SET_RETRY_MS_MAX);
        schedule.succeeded(0, None);
        schedule.failed(0, 0);
        assert_eq!(schedule.due_ms(), 500, "a success ends the row");
    }

    #[test]
    fn demand_brings_a_fetch_forward_but_not_often() {
        let mut schedule = Schedule::new(0, None);
        schedule.demanded(5);
        assert_eq!(schedule.due_ms(), 5);
        schedule.succeeded(6, None);
        schedule.demanded(7);
        assert_eq!(schedule.due_ms(), 10_005);
        schedule.demanded(8);
        assert_eq!(schedule.due_ms(), 10_005);
        schedule.failed(10_006, 0);
        schedule.demanded(10_007);
        assert_eq!(schedule.due_ms(), 10_506, "a retry is near enough");
    }
}
