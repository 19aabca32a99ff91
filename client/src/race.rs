//! Attempts to connect that run against each other. Pure: time is given, and counts from the start.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::limits::QUIC_ADDRESSES_MAX;
use crate::path::{Order, Transport};

/// One way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Quic(SocketAddr),
    /// To the resolved addresses in turn.
    Tls,
}

/// Each attempt begins at its time, or earlier when none is under way. The first to succeed wins,
/// and the rest is to be dropped.
#[derive(Debug)]
pub(crate) struct Race {
    /// (milliseconds after the start, attempt), in order.
    pending: VecDeque<(u64, Attempt)>,
    running: usize,
}

impl Race {
    /// QUIC tries the addresses one `stagger_ms` apart: unlike TCP it does not hear that nobody
    /// listens.
    pub(crate) fn new(order: Order, stagger_ms: u64, addresses: &[SocketAddr]) -> Self {
        let start_ms = |rank: usize| stagger_ms.saturating_mul(rank as u64);
        let transports = [Some(order.first), order.second].into_iter().flatten();
        let mut attempts = Vec::new();
        for (rank, transport) in transports.enumerate() {
            match transport {
                Transport::Tls => attempts.push((start_ms(rank), Attempt::Tls)),
                Transport::Quic => attempts.extend(
                    (rank..)
                        .zip(&addresses[..addresses.len().min(QUIC_ADDRESSES_MAX)])
                        .map(|(rank, address)| (start_ms(rank), Attempt::Quic(*address))),
                ),
            }
        }
        attempts.sort_by_key(|(start_ms, _)| *start_ms);
        Self { pending: attempts.into(), running: 0 }
    }

    /// The next attempt that is to begin now.
    pub(crate) fn poll_start(&mut self, now_ms: u64) -> Option<Attempt> {
        let (start_ms, attempt) = *self.pending.front()?;
        if start_ms > now_ms && self.running > 0 {
            return None;
        }
        self.pending.pop_front();
        self.running += 1;
        Some(attempt)
    }

    /// One that had begun came to nothing.
    pub(crate) fn handle_failure(&mut self) {
        self.running -= 1;
    }

    /// When [`Self::poll_start`] has the next one.
    pub(crate) fn poll_timeout(&self) -> Option<u64> {
        self.pending.front().map(|(start_ms, _)| *start_ms)
    }

    /// Nobody won, and nobody is left.
    pub(crate) fn is_over(&self) -> bool {
        self.running == 0 && self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIC_FIRST: Order = Order { first: Transport::Quic, second: Some(Transport::Tls) };

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 7443))
    }

    fn starts(race: &mut Race, now_ms: u64) -> Vec<Attempt> {
        std::iter::from_fn(|| race.poll_start(now_ms)).collect()
    }

    #[test]
    fn the_second_has_to_wait() {
        let mut race = Race::new(QUIC_FIRST, 250, &[address(1)]);
        assert_eq!(starts(&mut race, 0), [Attempt::Quic(address(1))]);
        assert_eq!(race.poll_timeout(), Some(250));
        assert_eq!(starts(&mut race, 249), []);
        assert_eq!(starts(&mut race, 250), [Attempt::Tls]);
        assert_eq!(race.poll_timeout(), None);
        race.handle_failure();
        assert!(!race.is_over());
        race.handle_failure();
        assert!(race.is_over());
    }

    #[test]
    fn a_failure_does_not_let_the_other_wait() {
        let order = Order { first: Transport::Tls, second: Some(Transport::Quic) };
        let mut race = Race::new(order, 250, &[address(1)]);
        assert_eq!(starts(&mut race, 0), [Attempt::Tls]);
        race.handle_failure();
        assert!(!race.is_over());
        assert_eq!(starts(&mut race, 3), [Attempt::Quic(address(1))]);
    }

    #[test]
    fn addresses_of_quic_are_tried_apart_and_beside_tls() {
        let addresses: Vec<SocketAddr> = (1..=9).map(address).collect();
        let mut race = Race::new(QUIC_FIRST, 100, &addresses);
        assert_eq!(starts(&mut race, 0), [Attempt::Quic(address(1))]);
        let second = starts(&mut race, 100);
        assert_eq!(second, [Attempt::Quic(address(2)), Attempt::Tls]);
        assert_eq!(starts(&mut race, 200), [Attempt::Quic(address(3))]);
        assert_eq!(starts(&mut race, 10_000), [Attempt::Quic(address(4))]);
        assert_eq!(race.poll_timeout(), None);
    }

    #[test]
    fn one_transport_runs_alone() {
        let tls = Order { first: Transport::Tls, second: None };
        let mut race = Race::new(tls, 250, &[address(1)]);
        assert_eq!(starts(&mut race, 10_000), [Attempt::Tls]);
        let quic = Order { first: Transport::Quic, second: None };
        let mut race = Race::new(quic, 250, &[address(1), address(2)]);
        assert_eq!(starts(&mut race, 250), [Attempt::Quic(address(1)), Attempt::Quic(address(2))]);
    }
}
