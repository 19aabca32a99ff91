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
        let panics = self.quic_panics()?;
        let before = self.quic_links();
        let may_crash = self.crash.is_some();
        for (number, (_, link)) in (0..).zip(&before) {
            let rebind = if number % 2 == 0 { Rebind::Port } else { Rebind::Network };
            self.host.borrow_mut().quic_rebind(*link, rebind);
        }
        self.pass(NOTICE_MS)?;
        let after = self.quic_links();
        // A debug build of quinn-proto 0.11.19 may panic when a path validation fails, which takes only
        // long delays, and its connection ends there. A release build goes on.
        let has_panicked = self.quic_panics()? > panics;
        // The process was made to end meanwhile.
        let has_crashed = may_crash && self.crash.is_none();
        let all_live = before.iter().all(|link| after.contains(link));
        self.oracle.require(all_live || has_panicked || has_crashed, || {
            format!("connections end when clients move: before {before:?}, then {after:?}")
        });
        self.host.borrow_mut().coverage.handovers += before.len() as u64;
        self.oracle.verdict()
    }

    fn quic_panics(&mut self) -> Result<u64, Violation> {
        let answers = self.gateway.request_metrics();
        self.pass(100)?;
        let metrics = std::mem::take(&mut *answers.lock().expect("one thread"));
        Ok(metrics.iter().map(|metrics| metrics.quic_panics.get()).sum())
    }

    fn quic_links(&self) -> Vec<(usize, LinkId)> {
        let links = self.clients.iter().map(|client| client.conn.as_ref().map(|conn| conn.link));
        let links = links.enumerate().filter_map(|(client, link)| Some((client, link?)));
        links.filter(|(_, link)| is_quic(*link)).collect()
    }
}

/// Longer than a heartbeat goes unanswered.
const NOTICE_MS: u64 = 300_000;
