//! The counters of a shard as they are told to whoever asks.

use ringpost_ring::Ring;

use super::Shard;
use super::lanes::Lane;
use crate::metrics::ShardMetrics;

impl<R: Ring> Shard<R> {
    /// A copy of the counters, with what is measured only when asked for.
    pub(super) fn snapshot(&self) -> ShardMetrics {
        let mut metrics = self.metrics.clone();
        metrics.connections.set(self.conns.len() as u64);
        metrics.handshakes_pending.set(self.greetings.count() as u64);
        metrics.addresses.set(self.gate.addresses() as u64);
        metrics.timers.set(self.wheel.len() as u64);
        metrics.mesh_unanswered.set(self.mesh.unanswered());
        metrics.directory_unanswered.set(self.inquiries.unanswered() as u64);
        let group_requests = self.lanes.iter().map(Lane::group_requests).sum();
        metrics.group_requests_unanswered.set(group_requests);
        metrics.mesh_depth.set(self.mesh.depth() as u64);
        metrics.set_ring(&self.ring.counters());
        if let Some(edge) = &self.edge {
            metrics.set_quic(&edge.endpoint);
        }
        if let Some(home) = &self.home {
            metrics.device_lists_cached.set(home.lists.len() as u64);
            metrics.mailboxes.set(home.devices.len() as u64);
            metrics.sends_waiting.set(home.backlog.sends() as u64);
            metrics.groups.set(home.groups.len() as u64);
            metrics.group_sends_open.set(home.fanouts.len() as u64);
            metrics.stores_reopening.set(u64::from(home.reopening.is_under_way()));
            if home.state.is_open() {
                let store = home.store();
                metrics.set_store(&store.stats(), home.reopening.counted());
                let clock_ms = store.expiry_clock_ms(self.time.now_ms);
                metrics.expiry_clock_lag.set(self.time.unix_ms.saturating_sub(clock_ms) / 1_000);
            }
        }
        metrics
    }
}
