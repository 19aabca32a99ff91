//! Result of the scenario `handover`.

use serde::Serialize;

use crate::host::{Host, Settings};
use crate::measure::Measure;
use crate::report::rows::{Rows, known, mebibytes};
use crate::report::{Percentiles, Tally, round};
use crate::swarm::Handovers;

/// The keys of its JSON.
#[derive(Clone, Debug, Serialize)]
pub struct HandoverReport {
    pub connections: u32,
    /// Clients that move to another address and port. Its keys stand beside the others.
    #[serde(flatten)]
    pub quic: PhaseReport,
    /// Clients whose TCP connection breaks within a frame, and that resume on another one.
    pub reconnect: PhaseReport,
    /// Datagrams that came to another shard than that of their connection, while QUIC ran.
    pub foreign_datagrams: Option<u64>,
    /// Those that were passed on to it.
    pub forwarded_datagrams: Option<u64>,
    pub server_rss_bytes: Option<u64>,
    pub host: Host,
    pub settings: Settings,
}

/// One of the two ways through a change of the network.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseReport {
    pub handovers: u64,
    pub handovers_planned: u64,
    /// From the last frame before a change to the first one after: how often the client hears
    /// something at all is part of it.
    pub silence_ms: Percentiles<f64>,
    /// From the change to the first frame after it.
    pub recovery_ms: Percentiles<f64>,
    /// The first one included.
    pub handshakes_per_connection: f64,
    /// Handshakes that a ticket shortened.
    pub handshakes_resumed: u64,
    #[serde(flatten)]
    pub messages: Tally,
    pub delivered_us: Percentiles,
}

fn text(times_ms: &Percentiles<f64>) -> String {
    format!("p50 {:.2}  p99 {:.2}  max {:.2}", times_ms.p50, times_ms.p99, times_ms.max)
}

impl PhaseReport {
    pub fn new(connections: u32, planned: u64, measure: &Measure, handovers: &Handovers) -> Self {
        Self {
            handovers: handovers.count,
            handovers_planned: planned,
            silence_ms: Percentiles::of(&handovers.silence_us).ms(),
            recovery_ms: Percentiles::of(&handovers.recovery_us).ms(),
            handshakes_per_connection: round(
                handovers.handshakes as f64 / f64::from(connections.max(1)),
            ),
            handshakes_resumed: handovers.resumed,
            messages: measure.into(),
            delivered_us: Percentiles::of(&measure.delivered_us),
        }
    }
}

impl HandoverReport {
    pub fn rows(&self) -> Rows {
        let mut rows = Rows::default();
        rows.add("connections", self.connections);
        for (name, row) in [("QUIC", &self.quic), ("TCP", &self.reconnect)] {
            let mut add = |what: &str, value: String| rows.add(&format!("{name}: {what}"), value);
            add("handovers / planned", format!("{} / {}", row.handovers, row.handovers_planned));
            add("silence, ms", text(&row.silence_ms));
            add("change to first frame, ms", text(&row.recovery_ms));
            add(
                "handshakes a connection",
                format!("{} ({} resumed)", row.handshakes_per_connection, row.handshakes_resumed),
            );
            let Tally { sent, accepted, delivered, lost, duplicated, reordered, .. } = row.messages;
            add("sent / accepted / delivered", format!("{sent} / {accepted} / {delivered}"));
            add("lost / duplicated / reordered", format!("{lost} / {duplicated} / {reordered}"));
            rows.add_latency(&format!("{name}: delivered"), &row.delivered_us);
        }
        rows.add("foreign / forwarded datagrams", {
            let (foreign, forwarded) = (self.foreign_datagrams, self.forwarded_datagrams);
            format!("{} / {}", known(foreign, ""), known(forwarded, ""))
        });
        rows.add_known("server RSS", self.server_rss_bytes.map(mebibytes), "MiB");
        rows.add_host(&self.host);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_told_in_milliseconds() {
        let mut handovers = Handovers::new();
        for us in [1_500, 2_500, 40_000] {
            handovers.silence_us.record(us).unwrap();
            handovers.recovery_us.record(us / 10).unwrap();
            handovers.count += 1;
        }
        handovers.handshakes = 4;
        let row = PhaseReport::new(4, 3, &Measure::new(), &handovers);
        assert!(row.silence_ms.p50 == 2.5 && (40.0..40.1).contains(&row.silence_ms.max));
        assert_eq!((row.recovery_ms.p50, row.handshakes_per_connection), (0.25, 1.0));
        let json = serde_json::to_value(&row).unwrap();
        assert!(json["silence_ms"]["p99"].is_number() && json["lost"].is_number());
    }
}
