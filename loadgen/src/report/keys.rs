//! Result of the scenario `keys`.

use serde::Serialize;

use crate::host::{Host, Settings};
use crate::report::Percentiles;
use crate::report::rows::Rows;

/// The keys of its JSON.
#[derive(Clone, Debug, Serialize)]
pub struct KeysReport {
    pub owners: u32,
    pub takers: u32,
    /// One-time keys that the server has taken, refills included.
    pub published: u64,
    /// One-time keys that came to a taker.
    pub handed_out: u64,
    /// Of those, keys that had been handed out before.
    pub duplicates: u64,
    /// Published, neither handed out nor in stock in the end.
    pub lost: u64,
    /// Answers that are not what the owner has published.
    pub corrupted: u64,
    /// Requests that the server refused.
    pub refused: u64,
    /// Bundles with the signed prekey alone, because the stock was empty.
    pub fallbacks: u64,
    /// In stock in the end, when it is meant to be empty.
    pub remaining: u64,
    /// Times that an owner heard that few keys are left, and that it then published more.
    pub warnings: u64,
    pub refills: u64,
    /// Frames, of up to 100 keys, while the stocks are filled.
    pub publishes: u64,
    pub publishes_per_second: f64,
    pub keys_published_per_second: f64,
    /// While owners refill their stocks.
    pub fetches: u64,
    pub fetches_per_second: f64,
    /// Null without the server's metrics.
    pub server_cpu_us_per_publish: Option<f64>,
    /// The same; refills are in it.
    pub server_cpu_us_per_fetch: Option<f64>,
    /// By which the directory's file has grown for each key of full stocks; null when the gateway is
    /// not ours.
    pub disk_bytes_per_key: Option<f64>,
    pub publish_us: Percentiles,
    pub fetch_us: Percentiles,
    pub host: Host,
    pub settings: Settings,
}

impl KeysReport {
    /// No key went to two, none was lost, and the empty stock was met.
    pub fn is_clean(&self) -> bool {
        let faults = [self.duplicates, self.lost, self.corrupted, self.refused, self.remaining];
        faults.iter().all(|&count| count == 0) && self.fallbacks > 0 && self.warnings > 0
    }

    pub fn rows(&self) -> Rows {
        let mut rows = Rows::default();
        rows.add("owners / takers", format!("{} / {}", self.owners, self.takers));
        rows.add(
            "published",
            format!(
                "{} keys; at first {} frames ({}/s), {} keys/s",
                self.published,
                self.publishes,
                self.publishes_per_second,
                self.keys_published_per_second
            ),
        );
        rows.add("fetched", format!("{} ({}/s)", self.fetches, self.fetches_per_second));
        rows.add("warned / refilled", format!("{} / {}", self.warnings, self.refills));
        rows.add("handed out", format!("{} keys", self.handed_out));
        rows.add("without a one-time key", self.fallbacks);
        rows.add(
            "duplicates / lost / left / corrupted",
            format!(
                "{} / {} / {} / {}",
                self.duplicates, self.lost, self.remaining, self.corrupted
            ),
        );
        rows.add("refused", self.refused);
        rows.add_latency("published", &self.publish_us);
        rows.add_latency("fetched", &self.fetch_us);
        rows.add_known("server CPU per publish", self.server_cpu_us_per_publish, "us");
        rows.add_known("server CPU per fetch", self.server_cpu_us_per_fetch, "us");
        rows.add_known("disk bytes per key", self.disk_bytes_per_key, "B");
        rows.add_host(&self.host);
        rows
    }
}
