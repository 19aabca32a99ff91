//! When and where to connect again. Pure: time and the seed are given.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Exponential backoff with full jitter, so that many clients that lost one server return spread
/// out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReconnectConfig {
    /// Ceiling of the first wait; doubles with each round through the addresses.
    pub first_ms: u64,
    /// Ceiling of every wait.
    pub ceiling_ms: u64,
    /// A connection that lasted this long makes the next wait a first one again.
    pub stable_ms: u64,
}

/// How to connect after a connection ended or could not be made.
#[derive(Debug)]
pub(crate) struct Reconnect {
    config: ReconnectConfig,
    address_count: usize,
    address_index: usize,
    /// In a row, without a stable connection between.
    failure_count: u32,
    welcomed_at_ms: Option<u64>,
    random: SmallRng,
}

impl Reconnect {
    pub(crate) fn new(config: ReconnectConfig, address_count: usize, seed: u64) -> Self {
        assert!(address_count > 0, "a client without an address is refused when it opens");
        Self {
            config,
            address_count,
            address_index: 0,
            failure_count: 0,
            welcomed_at_ms: None,
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// Which address to try now.
    pub(crate) fn address_index(&self) -> usize {
        self.address_index
    }

    pub(crate) fn handle_welcome(&mut self, now_ms: u64) {
        self.welcomed_at_ms = Some(now_ms);
    }

    /// The connection ended, or was not made. `told_ms` is the wait the server asked for; it has
    /// chosen the jitter. Gives the time to wait.
    pub(crate) fn handle_end(&mut self, now_ms: u64, told_ms: Option<u64>) -> u64 {
        let lasted_ms = self.welcomed_at_ms.take().map(|at_ms| now_ms.saturating_sub(at_ms));
        if lasted_ms.is_some_and(|ms| ms >= self.config.stable_ms) {
            self.failure_count = 0;
        }
        let round = self.failure_count / u32::try_from(self.address_count).unwrap_or(u32::MAX);
        self.failure_count = self.failure_count.saturating_add(1);
        self.address_index = (self.address_index + 1) % self.address_count;
        let factor = 1_u64.checked_shl(round).unwrap_or(u64::MAX);
        let ceiling_ms = self.config.first_ms.saturating_mul(factor).min(self.config.ceiling_ms);
        let own_ms = self.random.random_range(0..=ceiling_ms);
        told_ms.unwrap_or(own_ms)
    }

    /// The user asks, or the network came back: forget the failures.
    pub(crate) fn reset(&mut self) {
        self.failure_count = 0;
    }
}

impl Default for ReconnectConfig {
    fn default() -> Self {
        Self { first_ms: 500, ceiling_ms: 60_000, stable_ms: 30_000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(address_count: usize, seed: u64) -> Reconnect {
        Reconnect::new(ReconnectConfig::default(), address_count, seed)
    }

    #[test]
    fn waits_stay_below_a_ceiling_that_doubles() {
        let mut longest = [0_u64; 12];
        for seed in 0..500 {
            let mut policy = policy(1, seed);
            for slot in &mut longest {
                *slot = (*slot).max(policy.handle_end(0, None));
            }
        }
        for (attempt, longest_ms) in longest.into_iter().enumerate() {
            let ceiling_ms = (500_u64 << attempt).min(60_000);
            assert!(longest_ms <= ceiling_ms, "attempt {attempt}: {longest_ms}");
            assert!(longest_ms > ceiling_ms / 2, "attempt {attempt}: {longest_ms}");
        }
    }

    #[test]
    fn waits_are_spread_down_to_zero() {
        let shortest = (0..500).map(|seed| policy(1, seed).handle_end(0, None)).min();
        assert!(shortest.unwrap() < 20);
    }

    #[test]
    fn the_server_chooses_the_wait_when_it_names_one() {
        let mut policy = policy(1, 1);
        assert_eq!(policy.handle_end(0, Some(7_777)), 7_777);
        assert_eq!(policy.handle_end(0, Some(90_000)), 90_000);
    }

    #[test]
    fn addresses_are_tried_in_turn_and_the_ceiling_grows_by_round() {
        let mut policy = policy(3, 1);
        let mut tried = Vec::new();
        for _ in 0..4 {
            tried.push(policy.address_index());
            let wait_ms = policy.handle_end(0, None);
            assert!(wait_ms <= if tried.len() <= 3 { 500 } else { 1_000 });
        }
        assert_eq!(tried, [0, 1, 2, 0]);
    }

    #[test]
    fn only_a_stable_connection_starts_over() {
        let grown = |lasted_ms: u64| {
            let mut longest_ms = 0;
            for seed in 0..200 {
                let mut policy = policy(1, seed);
                for _ in 0..6 {
                    policy.handle_end(0, None);
                }
                policy.handle_welcome(1_000);
                longest_ms = longest_ms.max(policy.handle_end(1_000 + lasted_ms, None));
            }
            longest_ms
        };
        assert!(grown(29_999) > 16_000);
        assert!(grown(30_000) <= 500);
    }

    #[test]
    fn many_failures_do_not_overflow() {
        let mut policy = policy(1, 1);
        for _ in 0..200 {
            assert!(policy.handle_end(0, None) <= 60_000);
        }
    }
}
