//! Names and values of a report: the table on the terminal and the one in the HTML page.

use std::fmt::{self, Display};

use crate::host::Host;
use crate::report::Percentiles;

/// In the order in which they are shown.
#[derive(Clone, Debug, Default)]
pub struct Rows(Vec<(String, String)>);

impl Rows {
    pub fn add(&mut self, name: &str, value: impl Display) {
        self.0.push((name.to_owned(), value.to_string()));
    }

    pub fn add_known(&mut self, name: &str, value: Option<impl Display>, unit: &str) {
        self.add(name, known(value, unit));
    }

    /// `name`: what happened to the messages, for example `delivered`.
    pub fn add_latency(&mut self, name: &str, at: &Percentiles) {
        let ms = |us: u64| us as f64 / 1e3;
        let text = format!(
            "p50 {:.2}  p90 {:.2}  p99 {:.2}  p99.9 {:.2}  max {:.2}",
            ms(at.p50),
            ms(at.p90),
            ms(at.p99),
            ms(at.p999),
            ms(at.max)
        );
        self.add(&format!("{name} after, ms"), text);
    }

    /// What the verification found.
    pub fn add_verdict(&mut self, lost: u64, duplicated: u64, reordered: u64) {
        self.add("lost / duplicated / reordered", format!("{lost} / {duplicated} / {reordered}"));
    }

    pub fn add_host(&mut self, host: &Host) {
        let disk = host.data_filesystem.as_deref().unwrap_or("unknown");
        let text = format!(
            "{} x {}, {:.0} MiB, Linux {}, data on {disk}, {}",
            host.cores,
            host.cpu_model,
            mebibytes(host.memory_bytes),
            host.kernel,
            host.date
        );
        self.add("host", text);
        let on = |cores: &Option<Vec<usize>>| {
            cores.as_ref().map_or_else(
                || "any".to_owned(),
                |cores| {
                    let cores: Vec<String> = cores.iter().map(usize::to_string).collect();
                    cores.join(",")
                },
            )
        };
        let text = format!(
            "gateway {}, load generator {}",
            on(&host.server_cores),
            on(&host.client_cores)
        );
        self.add("cores", text);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|(name, value)| writeln!(f, "{name:<34} {value}"))
    }
}

/// The value with its unit, or that it is not known.
pub fn known(value: Option<impl Display>, unit: &str) -> String {
    value.map_or_else(|| "unknown".into(), |value| format!("{value} {unit}").trim().to_owned())
}

pub fn mebibytes(bytes: u64) -> f64 {
    super::round(bytes as f64 / (1024.0 * 1024.0))
}
