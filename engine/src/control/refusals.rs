//! What the shards refuse, told to the audit log now and then as sums: one line for each would be a
//! gift to whoever wants to fill the disk.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::State;
use crate::audit::AuditEvent;
use crate::limits::AUDIT_REFUSALS_MS;
use crate::metrics::ShardMetrics;

/// Compares the counters again and again, as long as the gateway runs.
pub(super) async fn tell(state: Rc<State>) {
    let (mut before, mut told) = (counts(&ShardMetrics::default()), Instant::now());
    loop {
        tokio::time::sleep(Duration::from_millis(AUDIT_REFUSALS_MS)).await;
        if !state.settings.borrow().audits {
            continue;
        }
        let (metrics, silent) = state.shard_metrics().await;
        if silent > 0 {
            continue; // the counts of the others alone would seem to fall
        }
        let now = counts(&metrics);
        let risen = risen(&before, &now);
        if !risen.is_empty() {
            let seconds = told.elapsed().as_secs();
            state.audit.record(AuditEvent::Refusals { seconds, counts: risen });
        }
        (before, told) = (now, Instant::now());
    }
}

/// By kind, named as in the metrics.
fn counts(metrics: &ShardMetrics) -> Vec<(String, u64)> {
    let hellos = metrics.hello_refused.each().map(|(code, count)| (format!("hello_{code}"), count));
    let refused = metrics.connections_refused.each();
    let refused = refused.map(|(reason, count)| (format!("connection_{reason}"), count));
    let sends = metrics.messages_rejected.each().filter(|(code, _)| *code == "rate_limited");
    let sends = sends.map(|(code, count)| (format!("send_{code}"), count));
    let bounds = metrics.bound_hits.each().filter(|(bound, _)| STRANGERS_BOUNDS.contains(bound));
    let bounds = bounds.map(|(bound, count)| (format!("bound_{bound}"), count));
    let handshakes = ("handshakes_failed".to_owned(), metrics.handshakes_failed.get());
    hellos.chain(refused).chain(sends).chain(bounds).chain([handshakes]).collect()
}

fn risen(before: &[(String, u64)], now: &[(String, u64)]) -> Vec<(String, u64)> {
    let pairs = before.iter().zip(now);
    let rises = pairs.map(|((_, old), (kind, new))| (kind.clone(), new.saturating_sub(*old)));
    rises.filter(|(_, rise)| *rise > 0).collect()
}

/// Bounds that somebody outside reaches by wanting too much, not the load of all.
const STRANGERS_BOUNDS: [&str; 6] = [
    "connections_per_shard",
    "handshakes",
    "handshakes_pending",
    "connection_frames",
    "connection_bytes",
    "user_sends",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Bound, RefusedHello};

    #[test]
    fn only_what_has_risen_is_told() {
        let mut metrics = ShardMetrics::default();
        metrics.hello_refused.add(RefusedHello::TokenExpired);
        let before = counts(&metrics);
        assert_eq!(risen(&before, &before), []);
        metrics.hello_refused.add(RefusedHello::TokenExpired);
        metrics.hello_refused.add(RefusedHello::TokenInvalid);
        metrics.bound_hits.add(Bound::ConnectionsPerShard);
        metrics.bound_hits.add(Bound::MeshCredits);
        metrics.handshakes_failed += 3;
        let mut told = risen(&before, &counts(&metrics));
        told.sort();
        let told: Vec<_> = told.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
        let expected = [
            ("bound_connections_per_shard", 1),
            ("handshakes_failed", 3),
            ("hello_token_expired", 1),
            ("hello_token_invalid", 1),
        ];
        assert_eq!(told, expected);
    }
}
