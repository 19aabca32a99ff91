//! A client that changes its address keeps its connection over QUIC.

use super::net::LinkId;
use super::oracle::Violation;
use super::quic::{Rebind, is_quic};
use super::world::World;

impl World {
    /// Moves everybody while nothing goes wrong. Before, there is time to notice what connections
    /// are dead, and afterwards for heartbeats on the new path.
    pub(super) fn hand_over(&mut self) -> Result<(), Violation> {
        if self.host.borrow().faults.weights.quic == 0 {
            return Ok(());
        }
        self.pass(NOTICE_MS)?;
        let before = self.quic_links();
        for (number, (_, link)) in (0..).zip(&before) {
            let rebind = if number % 2 == 0 { Rebind::Port } else { Rebind::Network };
            self.host.borrow_mut().quic_rebind(*link, rebind);
        }
        self.pass(NOTICE_MS)?;
        let after = self.quic_links();
        self.oracle.require(after == before, || {
            format!("connections end when clients move: before {before:?}, then {after:?}")
        });
        self.host.borrow_mut().coverage.handovers += before.len() as u64;
        self.oracle.verdict()
    }

    fn quic_links(&self) -> Vec<(usize, LinkId)> {
        let links = self.clients.iter().map(|client| client.conn.as_ref().map(|conn| conn.link));
        let links = links.enumerate().filter_map(|(client, link)| Some((client, link?)));
        links.filter(|(_, link)| is_quic(*link)).collect()
    }
}

/// Longer than a heartbeat goes unanswered.
const NOTICE_MS: u64 = 300_000;
