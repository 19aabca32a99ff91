//! Result of the scenario `chat`.

use serde::Serialize;

use crate::host::{Host, Settings};
use crate::measure::Measure;
use crate::report::rows::{Rows, mebibytes};
use crate::report::{Percentiles, ServerUse, round};

/// The keys of its JSON.
#[derive(Clone, Debug, Serialize)]
pub struct ChatReport {
    pub connections: u32,
    pub sent: u64,
    pub accepted: u64,
    pub rejected: u64,
    pub delivered: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub lost: u64,
    pub accepted_us: Percentiles,
    pub delivered_us: Percentiles,
    pub server_cpu_us_per_message: Option<f64>,
    /// Delivered, durable and acknowledged messages for each second of the gateway's CPU time.
    pub messages_per_server_cpu_second: Option<f64>,
    pub server_rss_bytes: Option<u64>,
    pub host: Host,
    pub settings: Settings,
}

impl ChatReport {
    /// `before` and `after`: the server's metrics around the load; unknown without an admin port.
    pub fn new(
        connections: u32,
        measure: &Measure,
        before: Option<ServerUse>,
        after: Option<ServerUse>,
        host: Host,
        settings: Settings,
    ) -> Self {
        let cpu_s = before.zip(after).map(|(before, after)| after.cpu_seconds - before.cpu_seconds);
        let cpu_s = cpu_s.filter(|&cpu_s| cpu_s > 0.0 && measure.delivered > 0);
        let delivered = measure.delivered as f64;
        Self {
            connections,
            sent: measure.sent,
            accepted: measure.accepted,
            rejected: measure.rejected,
            delivered: measure.delivered,
            duplicated: measure.duplicated,
            reordered: measure.reordered,
            lost: measure.lost,
            accepted_us: Percentiles::of(&measure.accepted_us),
            delivered_us: Percentiles::of(&measure.delivered_us),
            server_cpu_us_per_message: cpu_s.map(|cpu_s| round(cpu_s * 1e6 / delivered)),
            messages_per_server_cpu_second: cpu_s.map(|cpu_s| (delivered / cpu_s).round()),
            server_rss_bytes: after.map(|server| server.rss_bytes),
            host,
            settings,
        }
    }

    pub fn rows(&self) -> Rows {
        let mut rows = Rows::default();
        rows.add("connections", self.connections);
        rows.add("sent", self.sent);
        rows.add("accepted / rejected", format!("{} / {}", self.accepted, self.rejected));
        rows.add("delivered", self.delivered);
        rows.add_verdict(self.lost, self.duplicated, self.reordered);
        rows.add_latency("accepted", &self.accepted_us);
        rows.add_latency("delivered", &self.delivered_us);
        rows.add_known("server CPU per message", self.server_cpu_us_per_message, "us");
        rows.add_known("messages per server CPU-second", self.messages_per_server_cpu_second, "");
        rows.add_known("server RSS", self.server_rss_bytes.map(mebibytes), "MiB");
        rows.add_host(&self.host);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(server: bool) -> ChatReport {
        let mut measure = Measure::new();
        for latency_ns in [1_000_000, 2_000_000, 3_000_000, 4_000_000] {
            measure.sent += 1;
            measure.accepted(latency_ns);
            measure.delivered(0, 2 * latency_ns);
        }
        let at = |cpu_seconds| {
            let memory = ServerUse { rss_bytes: 5 << 20, ..ServerUse::default() };
            server.then_some(ServerUse { cpu_seconds, ..memory })
        };
        ChatReport::new(2, &measure, at(1.0), at(1.000_2), Host::read(None), Settings::new())
    }

    #[test]
    fn the_keys_of_the_json_are_the_interface() {
        let json = serde_json::to_value(report(true)).unwrap();
        let mut keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut wanted = [
            "connections",
            "sent",
            "accepted",
            "rejected",
            "delivered",
            "duplicated",
            "reordered",
            "lost",
            "accepted_us",
            "delivered_us",
            "server_cpu_us_per_message",
            "messages_per_server_cpu_second",
            "server_rss_bytes",
            "host",
            "settings",
        ];
        wanted.sort_unstable();
        assert_eq!(keys, wanted);
        for latency in ["accepted_us", "delivered_us"] {
            for key in ["p50", "p90", "p99", "p999", "max"] {
                assert!(json[latency][key].is_u64(), "{latency}.{key}");
            }
        }
        for key in ["machine", "cpu_model", "cores", "kernel", "date", "memory_bytes"] {
            assert!(!json["host"][key].is_null(), "host.{key}");
        }
        assert_eq!(json["server_cpu_us_per_message"], 50.0);
        assert_eq!(json["messages_per_server_cpu_second"], 20_000.0);
        assert_eq!(json["server_rss_bytes"], 5 << 20);
    }

    #[test]
    fn what_is_not_known_is_null() {
        let json = serde_json::to_value(report(false)).unwrap();
        assert!(json["server_cpu_us_per_message"].is_null());
        assert!(json["server_rss_bytes"].is_null());
        assert!(json["host"]["data_filesystem"].is_null());
    }

    #[test]
    fn the_table_has_every_count() {
        let table = report(true).rows().to_string();
        for text in ["sent", "accepted", "p99.9", "50 us", "5 MiB", "lost / duplicated"] {
            assert!(table.contains(text), "{text} in\n{table}");
        }
    }
}
