//! Which transport to use on this network, and when to try QUIC again. Pure: time and the seed are
//! given.

use std::fmt;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::limits::{PROBE_MS_MAX, QUIC_RETRY_MS_MAX, QUIC_RETRY_MS_MIN, STAGGER_MS};

/// What carries the protocol. Both lead to the same address: `host:port` names a UDP and a TCP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Survives a change of network without a handshake.
    Quic,
    /// TLS over TCP, for networks that drop UDP.
    Tls,
}

/// Which transports may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transports {
    /// Whichever is faster, QUIC first; on a network without UDP the other one.
    #[default]
    Both,
    QuicOnly,
    TlsOnly,
}

/// How to choose between transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathConfig {
    pub transports: Transports,
    /// Head start of the preferred transport before the other one.
    pub stagger_ms: u64,
    /// Ceiling of the first wait before QUIC is tried again where TLS was faster; the wait is at
    /// least half of it. Doubles with each failure.
    pub quic_retry_ms: u64,
    /// Ceiling of every such wait.
    pub quic_retry_ms_max: u64,
    /// Time for an answer after [`Client::network_changed`](crate::Client::network_changed).
    pub probe_ms_max: u64,
}

/// The transport to begin with, and the one that follows [`PathConfig::stagger_ms`] later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) first: Transport,
    pub(crate) second: Option<Transport>,
}

/// What is known of the present network.
#[derive(Debug)]
pub(crate) struct Paths {
    config: PathConfig,
    preferred: Transport,
    /// When to try QUIC beside a connection over TLS.
    retry_at_ms: Option<u64>,
    /// Tries of QUIC in a row that came to nothing on this network.
    failure_count: u32,
    random: SmallRng,
}

impl Paths {
    pub(crate) fn new(config: PathConfig, seed: u64) -> Self {
        Self {
            config,
            preferred: Transport::Quic,
            retry_at_ms: None,
            failure_count: 0,
            random: SmallRng::seed_from_u64(seed),
        }
    }

    pub(crate) fn config(&self) -> &PathConfig {
        &self.config
    }

    /// How to connect now.
    pub(crate) fn order(&self) -> Order {
        let other = match self.preferred {
            Transport::Quic => Transport::Tls,
            Transport::Tls => Transport::Quic,
        };
        match self.config.transports {
            Transports::Both => Order { first: self.preferred, second: Some(other) },
            Transports::QuicOnly => Order { first: Transport::Quic, second: None },
            Transports::TlsOnly => Order { first: Transport::Tls, second: None },
        }
    }

    /// The server has welcomed us over this transport.
    pub(crate) fn handle_welcome(&mut self, now_ms: u64, transport: Transport) {
        match transport {
            Transport::Quic => self.prefer_quic(),
            // QUIC had its head start and was not faster: as good as blocked.
            Transport::Tls if self.preferred == Transport::Quic => self.prefer_tls(now_ms),
            Transport::Tls => {}
        }
    }

    /// A connection came about, but ended before the Welcome. Where it was lost, handshakes pass
    /// here, and the rest may not; where the server ended it, the path is not to blame.
    pub(crate) fn handle_unwelcome(&mut self, now_ms: u64, transport: Transport, is_lost: bool) {
        match transport {
            Transport::Quic if is_lost => self.prefer_tls(now_ms),
            Transport::Tls if is_lost => self.prefer_quic(),
            // It was to take over from TLS; at the next connection it waits again.
            Transport::Quic if self.retry_at_ms.is_some() => self.plan_retry(now_ms),
            Transport::Quic | Transport::Tls => {}
        }
    }

    /// QUIC could not even be tried beside a connection over TLS.
    pub(crate) fn handle_retry_put_off(&mut self, now_ms: u64) {
        self.plan_retry(now_ms);
    }

    /// QUIC was tried beside a connection over TLS, to no avail.
    pub(crate) fn handle_retry_failed(&mut self, now_ms: u64) {
        self.prefer_tls(now_ms);
    }

    /// Another network: nothing is known of it.
    pub(crate) fn handle_network_change(&mut self) {
        self.prefer_quic();
    }

    /// When to try QUIC beside a connection over TLS, if at all.
    pub(crate) fn poll_retry(&self) -> Option<u64> {
        self.retry_at_ms
    }

    fn prefer_quic(&mut self) {
        self.preferred = Transport::Quic;
        self.retry_at_ms = None;
        self.failure_count = 0;
    }

    fn prefer_tls(&mut self, now_ms: u64) {
        self.preferred = Transport::Tls;
        if self.config.transports == Transports::Both {
            self.failure_count = self.failure_count.saturating_add(1);
            self.plan_retry(now_ms);
        }
    }

    fn plan_retry(&mut self, now_ms: u64) {
        let doublings = self.failure_count.saturating_sub(1);
        let factor = 1_u64.checked_shl(doublings).unwrap_or(u64::MAX);
        let ceiling_ms =
            self.config.quic_retry_ms.saturating_mul(factor).min(self.config.quic_retry_ms_max);
        // Clients that lost one server together come back apart.
        let wait_ms = self.random.random_range(ceiling_ms / 2..=ceiling_ms);
        self.retry_at_ms = Some(now_ms.saturating_add(wait_ms));
    }
}

impl Default for PathConfig {
    fn default() -> Self {
        Self {
            transports: Transports::default(),
            stagger_ms: STAGGER_MS,
            quic_retry_ms: QUIC_RETRY_MS_MIN,
            quic_retry_ms_max: QUIC_RETRY_MS_MAX,
            probe_ms_max: PROBE_MS_MAX,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quic => "QUIC",
            Self::Tls => "TLS over TCP",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIC_FIRST: Order = Order { first: Transport::Quic, second: Some(Transport::Tls) };
    const TLS_FIRST: Order = Order { first: Transport::Tls, second: Some(Transport::Quic) };

    fn paths(transports: Transports) -> Paths {
        Paths::new(PathConfig { transports, ..PathConfig::default() }, 1)
    }

    #[test]
    fn quic_is_first_until_the_other_was_faster() {
        let mut paths = paths(Transports::Both);
        assert_eq!((paths.order(), paths.poll_retry()), (QUIC_FIRST, None));
        paths.handle_welcome(0, Transport::Quic);
        assert_eq!((paths.order(), paths.poll_retry()), (QUIC_FIRST, None));
        paths.handle_welcome(1_000, Transport::Tls);
        assert_eq!(paths.order(), TLS_FIRST);
        let retry_ms = paths.poll_retry().unwrap();
        assert!((16_000..=31_000).contains(&retry_ms), "{retry_ms}");
        // TLS lost and made again: QUIC had no chance to show anything.
        paths.handle_welcome(2_000, Transport::Tls);
        assert_eq!(paths.poll_retry(), Some(retry_ms));
    }

    #[test]
    fn the_wait_doubles_to_its_ceiling_and_quic_ends_it() {
        let mut paths = paths(Transports::Both);
        paths.handle_welcome(0, Transport::Tls);
        for round in 1..100 {
            paths.handle_retry_failed(0);
            let ceiling_ms = (30_000_u64 << round.min(20)).min(3_600_000);
            let wait_ms = paths.poll_retry().unwrap();
            assert!((ceiling_ms / 2..=ceiling_ms).contains(&wait_ms), "{round}: {wait_ms}");
        }
        paths.handle_welcome(0, Transport::Quic);
        assert_eq!((paths.order(), paths.poll_retry()), (QUIC_FIRST, None));
        paths.handle_welcome(0, Transport::Tls);
        assert!(paths.poll_retry().unwrap() <= 30_000, "the failures are forgotten");
    }

    #[test]
    fn another_network_is_a_new_chance() {
        let mut paths = paths(Transports::Both);
        paths.handle_welcome(0, Transport::Tls);
        paths.handle_retry_failed(0);
        paths.handle_network_change();
        assert_eq!((paths.order(), paths.poll_retry()), (QUIC_FIRST, None));
    }

    #[test]
    fn a_transport_that_passes_no_more_than_handshakes_comes_second() {
        let mut paths = paths(Transports::Both);
        paths.handle_unwelcome(0, Transport::Quic, true);
        assert_eq!(paths.order(), TLS_FIRST);
        assert!(paths.poll_retry().is_some());
        paths.handle_unwelcome(0, Transport::Tls, true);
        assert_eq!((paths.order(), paths.poll_retry()), (QUIC_FIRST, None));
    }

    #[test]
    fn a_try_that_the_server_or_the_token_ended_is_made_again_after_the_same_wait() {
        let mut paths = paths(Transports::Both);
        paths.handle_unwelcome(0, Transport::Quic, false);
        assert_eq!((paths.order(), paths.poll_retry()), (QUIC_FIRST, None));
        paths.handle_welcome(0, Transport::Tls);
        for now_ms in (100_000..3_000_000).step_by(100_000) {
            if now_ms % 200_000 == 0 {
                paths.handle_unwelcome(now_ms, Transport::Quic, false);
            } else {
                paths.handle_retry_put_off(now_ms);
            }
            let wait_ms = paths.poll_retry().unwrap() - now_ms;
            assert!((15_000..=30_000).contains(&wait_ms), "{wait_ms}");
        }
        assert_eq!(paths.order(), TLS_FIRST);
    }

    #[test]
    fn one_transport_alone_has_no_choice() {
        for (transports, first) in
            [(Transports::QuicOnly, Transport::Quic), (Transports::TlsOnly, Transport::Tls)]
        {
            let mut paths = paths(transports);
            for transport in [Transport::Quic, Transport::Tls] {
                paths.handle_welcome(0, transport);
                paths.handle_unwelcome(0, transport, true);
                assert_eq!(paths.order(), Order { first, second: None });
                assert_eq!(paths.poll_retry(), None);
            }
        }
    }
}
