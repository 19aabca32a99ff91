//! The end of a run: a table to read and JSON to keep. The keys of the JSON are an interface; they
//! are the same in every run, and null where a value is not known.

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::host::{Host, Settings};
use crate::measure::Measure;

/// Result of the scenario `chat`.
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
    pub server_rss_bytes: Option<u64>,
    pub host: Host,
    pub settings: Settings,
}

/// Result of the scenario `offline`.
#[derive(Clone, Debug, Serialize)]
pub struct OfflineReport {
    pub devices: u32,
    pub messages: u64,
    pub accepted: u64,
    pub rejected: u64,
    pub filled_per_second: f64,
    /// From the signal to the end of the old process.
    pub stop_ms: Option<u64>,
    /// From the start of the new process until it is ready.
    pub restart_ms: Option<u64>,
    pub drained_per_second: f64,
    pub delivered: u64,
    pub duplicated: u64,
    /// Sent again after a crash and known from the client's mark: legal, and not shown to an app.
    pub duplicated_on_wire: u64,
    pub reordered: u64,
    pub lost: u64,
    pub disk_bytes_per_payload_byte: Option<f64>,
    pub server_rss_bytes: Option<u64>,
    pub host: Host,
    pub settings: Settings,
}

/// Latency, in microseconds from the intended send time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

impl Percentiles {
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: histogram.max() }
    }
}

/// What the server's metrics said before and after a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServerUse {
    pub cpu_seconds: f64,
    pub rss_bytes: u64,
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
        let cpu_us = before.zip(after).and_then(|(before, after)| {
            let cpu_us = (after.cpu_seconds - before.cpu_seconds) * 1e6;
            (measure.delivered > 0).then(|| round(cpu_us / measure.delivered as f64))
        });
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
            server_cpu_us_per_message: cpu_us,
            server_rss_bytes: after.map(|server| server.rss_bytes),
            host,
            settings,
        }
    }

    pub fn table(&self) -> String {
        let mut out = String::new();
        row(&mut out, "connections", &self.connections);
        row(&mut out, "sent", &self.sent);
        row(&mut out, "accepted / rejected", &format!("{} / {}", self.accepted, self.rejected));
        row(&mut out, "delivered", &self.delivered);
        row(
            &mut out,
            "lost / duplicated / reordered",
            &format!("{} / {} / {}", self.lost, self.duplicated, self.reordered),
        );
        latency(&mut out, "accepted", &self.accepted_us);
        latency(&mut out, "delivered", &self.delivered_us);
        row(&mut out, "server CPU per message", &known(self.server_cpu_us_per_message, "us"));
        row(&mut out, "server RSS", &known(self.server_rss_bytes.map(mebibytes), "MiB"));
        footer(&mut out, &self.host);
        out
    }
}

impl OfflineReport {
    pub fn table(&self) -> String {
        let mut out = String::new();
        row(&mut out, "devices", &self.devices);
        row(&mut out, "messages", &self.messages);
        row(&mut out, "accepted / rejected", &format!("{} / {}", self.accepted, self.rejected));
        row(&mut out, "filled", &format!("{}/s", self.filled_per_second));
        row(&mut out, "stop", &known(self.stop_ms, "ms"));
        row(&mut out, "restart until ready", &known(self.restart_ms, "ms"));
        row(&mut out, "drained", &format!("{}/s", self.drained_per_second));
        row(&mut out, "delivered", &self.delivered);
        row(
            &mut out,
            "lost / duplicated / reordered",
            &format!("{} / {} / {}", self.lost, self.duplicated, self.reordered),
        );
        row(&mut out, "duplicated on the wire", &self.duplicated_on_wire);
        row(&mut out, "disk bytes per payload byte", &known(self.disk_bytes_per_payload_byte, ""));
        row(&mut out, "server RSS", &known(self.server_rss_bytes.map(mebibytes), "MiB"));
        footer(&mut out, &self.host);
        out
    }
}

/// Two decimals are more than such a number can bear.
pub fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn row(out: &mut String, name: &str, value: &dyn std::fmt::Display) {
    writeln!(out, "{name:<30} {value}").expect("writing to a string does not fail");
}

fn latency(out: &mut String, name: &str, at: &Percentiles) {
    let ms = |us: u64| us as f64 / 1e3;
    let text = format!(
        "p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
        ms(at.p50),
        ms(at.p90),
        ms(at.p99),
        ms(at.p999),
        ms(at.max)
    );
    row(out, &format!("{name} after, ms"), &text);
}

fn footer(out: &mut String, host: &Host) {
    let disk = host.data_filesystem.as_deref().unwrap_or("unknown");
    let text = format!(
        "{} x {}, {:.0} MiB, Linux {}, data on {disk}, {}",
        host.cores,
        host.cpu_model,
        mebibytes(host.memory_bytes),
        host.kernel,
        host.date
    );
    row(out, "host", &text);
}

fn known<T: std::fmt::Display>(value: Option<T>, unit: &str) -> String {
    value.map_or_else(|| "unknown".into(), |value| format!("{value} {unit}").trim().to_owned())
}

fn mebibytes(bytes: u64) -> f64 {
    round(bytes as f64 / (1024.0 * 1024.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(server: bool) -> ChatReport {
        let mut measure = Measure::new();
        for latency_ns in [1_000_000, 2_000_000, 3_000_000, 4_000_000] {
            measure.sent += 1;
            measure.accepted(latency_ns);
            measure.delivered(2 * latency_ns);
        }
        let at = |cpu_seconds| server.then_some(ServerUse { cpu_seconds, rss_bytes: 5 << 20 });
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
        let table = report(true).table();
        for text in ["sent", "accepted", "p99.9", "50 us", "5 MiB", "lost / duplicated"] {
            assert!(table.contains(text), "{text} in\n{table}");
        }
    }
}
