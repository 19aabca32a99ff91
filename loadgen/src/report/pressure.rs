//! Result of the scenarios `slow` and `abuse`.

use serde::Serialize;

use crate::attack::AttackCounts;
use crate::host::{Host, Settings};
use crate::report::rows::{Rows, known, mebibytes};
use crate::report::{Percentiles, Tally};

/// The keys of its JSON.
#[derive(Clone, Debug, Serialize)]
pub struct PressureReport {
    /// What the others did.
    pub pressure: &'static str,
    /// How many of the others.
    pub count: u32,
    /// The well-behaved.
    pub connections: u32,
    pub quiet: PhaseReport,
    /// While readers return to their mailboxes, a storm of logins and mail; null when there are none.
    pub onset: Option<PhaseReport>,
    pub loaded: PhaseReport,
    /// Of delivery to the well-behaved, under pressure over quiet.
    pub p99_ratio: Option<f64>,
    /// The same of the onset.
    pub p99_ratio_onset: Option<f64>,
    /// Of the messages of the well-behaved.
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub others: AttackCounts,
    /// Mail of the readers, fetched at the end; null when the others were no readers.
    pub mail: Option<Tally>,
    /// Connections that the gateway ended because they did not read.
    pub slow_consumers: Option<u64>,
    pub host: Host,
    pub settings: Settings,
}

/// The well-behaved in one phase, and the most memory in use. Slab and TCP buffers are those of the
/// whole host, both ends of each connection.
#[derive(Clone, Debug, Serialize)]
pub struct PhaseReport {
    pub sent: u64,
    pub delivered: u64,
    pub accepted_us: Percentiles,
    pub delivered_us: Percentiles,
    pub server_cpu_cores: Option<f64>,
    pub client_cpu_cores: f64,
    pub server_rss_bytes_max: Option<u64>,
    pub server_send_queue_bytes_max: Option<u64>,
    pub slab_bytes_max: u64,
    pub tcp_bytes_max: u64,
}

impl PressureReport {
    pub fn rows(&self) -> Rows {
        let mut rows = Rows::default();
        rows.add("well-behaved connections", self.connections);
        rows.add("others", format!("{} x {}", self.count, self.pressure));
        rows.add_latency("quiet: delivered", &self.quiet.delivered_us);
        if let Some(onset) = &self.onset {
            rows.add_latency("onset: delivered", &onset.delivered_us);
        }
        rows.add_latency("loaded: delivered", &self.loaded.delivered_us);
        rows.add_known("p99 loaded / quiet", self.p99_ratio, "");
        if self.onset.is_some() {
            rows.add_known("p99 onset / quiet", self.p99_ratio_onset, "");
        }
        rows.add_verdict(self.lost, self.duplicated, self.reordered);
        let two = |of: &dyn Fn(&PhaseReport) -> String| {
            let phases = [Some(&self.quiet), self.onset.as_ref(), Some(&self.loaded)];
            let values: Vec<String> = phases.into_iter().flatten().map(of).collect();
            values.join(" -> ")
        };
        let mib = |bytes: u64| format!("{} MiB", mebibytes(bytes));
        rows.add("server RSS", two(&|phase| known(phase.server_rss_bytes_max.map(mib), "")));
        rows.add(
            "server's send queues",
            two(&|phase| known(phase.server_send_queue_bytes_max.map(mib), "")),
        );
        rows.add("TCP buffers of the host", two(&|phase| mib(phase.tcp_bytes_max)));
        rows.add("slab of the host", two(&|phase| mib(phase.slab_bytes_max)));
        rows.add("server CPU, cores", two(&|phase| known(phase.server_cpu_cores, "")));
        rows.add("load generator CPU, cores", two(&|phase| phase.client_cpu_cores.to_string()));
        let others = &self.others;
        rows.add(
            "others: connections",
            format!("{} opened, {} ended by the gateway", others.opened, others.ended_by_server),
        );
        if others.refused + others.wrongly_welcomed > 0 {
            let text = format!("{} / {}", others.refused, others.wrongly_welcomed);
            rows.add("others: refused / let in", text);
        }
        rows.add_known("ended as slow consumers", self.slow_consumers, "");
        if let Some(mail) = &self.mail {
            rows.add(
                "others: mail",
                format!(
                    "{} accepted, {} rejected, {} delivered in the end; lost / duplicated / \
                     reordered {} / {} / {}",
                    mail.accepted,
                    mail.rejected,
                    mail.delivered,
                    mail.lost,
                    mail.duplicated,
                    mail.reordered
                ),
            );
        }
        rows.add_host(&self.host);
        rows
    }
}
