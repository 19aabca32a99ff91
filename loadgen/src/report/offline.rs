//! Result of the scenario `offline`.

use serde::Serialize;

use crate::host::{Host, Settings};
use crate::report::rows::{Rows, mebibytes};

/// The keys of its JSON.
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
    /// Of the index, with all mailboxes full; the gateway's own figure.
    pub memory_bytes_per_queued_record: Option<f64>,
    /// After the restart, with all mailboxes full.
    pub server_rss_bytes_queued: Option<u64>,
    /// At the end.
    pub server_rss_bytes: Option<u64>,
    pub host: Host,
    pub settings: Settings,
}

impl OfflineReport {
    pub fn rows(&self) -> Rows {
        let mut rows = Rows::default();
        rows.add("devices", self.devices);
        rows.add("messages", self.messages);
        rows.add("accepted / rejected", format!("{} / {}", self.accepted, self.rejected));
        rows.add("filled", format!("{}/s", self.filled_per_second));
        rows.add_known("stop", self.stop_ms, "ms");
        rows.add_known("restart until ready", self.restart_ms, "ms");
        rows.add("drained", format!("{}/s", self.drained_per_second));
        rows.add("delivered", self.delivered);
        rows.add_verdict(self.lost, self.duplicated, self.reordered);
        rows.add("duplicated on the wire", self.duplicated_on_wire);
        rows.add_known("disk bytes per payload byte", self.disk_bytes_per_payload_byte, "");
        rows.add_known("index memory per queued message", self.memory_bytes_per_queued_record, "B");
        let rss = self.server_rss_bytes_queued;
        rows.add_known("server RSS, mailboxes full", rss.map(mebibytes), "MiB");
        rows.add_known("server RSS, drained", self.server_rss_bytes.map(mebibytes), "MiB");
        rows.add_host(&self.host);
        rows
    }
}
