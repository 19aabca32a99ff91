//! Result of the scenario `churn`.

use std::time::Duration;

use serde::Serialize;

use crate::durable::verify::DurableCounts;
use crate::host::{Host, Settings};
use crate::report::rows::{Rows, known, mebibytes};
use crate::report::{Percentiles, round};
use crate::sample::{Sample, slope_per_minute};

/// The keys of its JSON.
#[derive(Clone, Debug, Serialize)]
pub struct ChurnReport {
    pub connections: u32,
    pub sent: u64,
    pub accepted: u64,
    pub rejected: u64,
    pub delivered: u64,
    pub lost: u64,
    pub duplicated: u64,
    /// Sent again after a crash and known from the client's mark: legal, and not shown to an app.
    pub duplicated_on_wire: u64,
    pub reordered: u64,
    /// Clients that vanished without a word, and returned.
    pub vanished: u64,
    pub gateway_kills: u32,
    pub client_kills: u32,
    /// Of the gateway, from the start of the new process until it is ready.
    pub restart_ms_max: Option<u64>,
    /// The absence of recipients included.
    pub delivered_us: Percentiles,
    /// Of the apps that are killed; null when there are none.
    pub durable: Option<DurableCounts>,
    pub memory: MemorySlopes,
    pub server_rss_bytes: Option<u64>,
    pub host: Host,
    pub settings: Settings,
}

/// Bytes a minute by which memory rose, by least squares over the load without its first fifth.
/// Those of the kernel are the host's, everything else on it included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct MemorySlopes {
    /// Null when the gateway is not ours, or was killed: a new process starts small.
    pub server_rss_bytes_per_minute: Option<f64>,
    pub slab_bytes_per_minute: Option<f64>,
    pub tcp_bytes_per_minute: Option<f64>,
}

impl MemorySlopes {
    pub fn of(samples: &[Sample], origin_s: f64, duration: Duration, one_process: bool) -> Self {
        let (first_s, last_s) =
            (origin_s + 0.2 * duration.as_secs_f64(), origin_s + duration.as_secs_f64());
        let slope = |of: fn(&Sample) -> Option<u64>| {
            let points: Vec<(f64, f64)> = samples
                .iter()
                .filter(|sample| (first_s..=last_s).contains(&sample.at_s))
                .filter_map(|sample| Some((sample.at_s, of(sample)? as f64)))
                .collect();
            slope_per_minute(&points).map(round)
        };
        let rss = slope(|sample| sample.server_rss_bytes);
        Self {
            server_rss_bytes_per_minute: rss.filter(|_| one_process),
            slab_bytes_per_minute: slope(|sample| Some(sample.slab_bytes)),
            tcp_bytes_per_minute: slope(|sample| Some(sample.tcp_bytes)),
        }
    }
}

impl ChurnReport {
    pub fn rows(&self) -> Rows {
        let mut rows = Rows::default();
        rows.add("connections", self.connections);
        rows.add("sent", self.sent);
        rows.add("accepted / rejected", format!("{} / {}", self.accepted, self.rejected));
        rows.add("delivered", self.delivered);
        rows.add_verdict(self.lost, self.duplicated, self.reordered);
        rows.add("duplicated on the wire", self.duplicated_on_wire);
        rows.add("clients that vanished", self.vanished);
        let kills = format!("{} / {}", self.gateway_kills, self.client_kills);
        rows.add("kill -9 of gateway / of apps", kills);
        if self.gateway_kills > 0 {
            rows.add_known("longest restart until ready", self.restart_ms_max, "ms");
        }
        rows.add_latency("delivered", &self.delivered_us);
        if let Some(durable) = &self.durable {
            rows.add(
                "apps: taken / delivered / refused",
                format!("{} / {} / {}", durable.taken, durable.delivered, durable.refused),
            );
            rows.add(
                "apps: lost / duplicated / reordered",
                format!("{} / {} / {}", durable.lost, durable.duplicated, durable.reordered),
            );
            rows.add("apps: invented / gaps", format!("{} / {}", durable.invented, durable.gaps));
        }
        let slope = |bytes: Option<f64>| known(bytes.map(|bytes| round(bytes / 1024.0)), "KiB/min");
        rows.add("server RSS slope", slope(self.memory.server_rss_bytes_per_minute));
        rows.add("slab slope of the host", slope(self.memory.slab_bytes_per_minute));
        rows.add("TCP buffers slope of the host", slope(self.memory.tcp_bytes_per_minute));
        rows.add_known("server RSS", self.server_rss_bytes.map(mebibytes), "MiB");
        rows.add_host(&self.host);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_leaves_out_the_warm_up_and_processes_that_were_killed() {
        let samples: Vec<Sample> = (0..=100)
            .map(|second| Sample {
                at_s: 1_000.0 + f64::from(second),
                server_rss_bytes: Some(if second < 20 { 1 } else { 5_000 + second as u64 }),
                ..Sample::default()
            })
            .collect();
        let duration = Duration::from_secs(100);
        let slopes = MemorySlopes::of(&samples, 1_000.0, duration, true);
        assert_eq!(slopes.server_rss_bytes_per_minute, Some(60.0));
        assert_eq!(slopes.slab_bytes_per_minute, Some(0.0));
        let killed = MemorySlopes::of(&samples, 1_000.0, duration, false);
        assert_eq!(killed.server_rss_bytes_per_minute, None);
    }
}
