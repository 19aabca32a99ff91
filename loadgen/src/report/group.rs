//! Result of the scenario `group`.

use serde::Serialize;

use crate::host::{Host, Settings};
use crate::report::Percentiles;
use crate::report::rows::Rows;

/// The keys of its JSON.
#[derive(Clone, Debug, Serialize)]
pub struct GroupReport {
    pub members: u32,
    pub devices: u32,
    pub messages: u64,
    pub accepted: u64,
    /// Of the roster, while members sent.
    pub changes: u32,
    /// Sends that were meant for an older roster (STALE_ROSTER), and went out again.
    pub stale: u64,
    /// Sends of somebody who was no member then; they went out again when the sender was.
    pub outside: u64,
    pub rejected: u64,
    /// Devices that answers named as skipped, all answers together.
    pub skipped: u64,
    /// Messages that reached a device, each counted once there.
    pub delivered: u64,
    pub lost: u64,
    /// Messages at devices of users who were no members when they were accepted.
    pub leaked: u64,
    pub duplicated: u64,
    /// Messages that two devices saw in different orders, or on the wrong side of a change.
    pub reordered: u64,
    pub corrupted: u64,
    pub gaps: u64,
    pub seconds: f64,
    pub deliveries_per_second: f64,
    /// Null without the server's metrics. Receipts are in it: each delivery makes one.
    pub server_cpu_us_per_delivery: Option<f64>,
    /// Bytes of the batches written; the same.
    pub disk_bytes_per_delivery: Option<f64>,
    pub accepted_after_us: Percentiles,
    pub delivered_after_us: Percentiles,
    pub host: Host,
    pub settings: Settings,
}

impl GroupReport {
    pub fn is_clean(&self) -> bool {
        let faults = [
            self.rejected,
            self.skipped,
            self.lost,
            self.leaked,
            self.duplicated,
            self.reordered,
            self.corrupted,
            self.gaps,
        ];
        faults.iter().all(|&count| count == 0) && self.accepted == self.messages
    }

    pub fn rows(&self) -> Rows {
        let mut rows = Rows::default();
        rows.add("members / devices", format!("{} / {}", self.members, self.devices));
        rows.add("messages", self.messages);
        rows.add("accepted / rejected", format!("{} / {}", self.accepted, self.rejected));
        rows.add("delivered", format!("{} ({}/s)", self.delivered, self.deliveries_per_second));
        rows.add_verdict(self.lost, self.duplicated, self.reordered);
        rows.add("leaked", self.leaked);
        rows.add(
            "changes / stale / outside",
            format!("{} / {} / {}", self.changes, self.stale, self.outside),
        );
        rows.add_latency("accepted", &self.accepted_after_us);
        rows.add_latency("delivered", &self.delivered_after_us);
        rows.add_known("server CPU per delivery", self.server_cpu_us_per_delivery, "us");
        rows.add_known("disk bytes per delivery", self.disk_bytes_per_delivery, "B");
        rows.add_host(&self.host);
        rows
    }
}
