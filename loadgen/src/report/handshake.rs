//! Result of the scenario `handshake`.

use serde::Serialize;

use crate::host::{Host, Settings};
use crate::report::Percentiles;
use crate::report::rows::{Rows, known, mebibytes};

/// The keys of its JSON.
#[derive(Clone, Debug, Serialize)]
pub struct HandshakeReport {
    pub logins: Vec<LoginRow>,
    pub server_rss_bytes: Option<u64>,
    pub host: Host,
    pub settings: Settings,
}

/// One kind of login: TCP, TLS, Hello, token, Welcome, and the goodbye.
#[derive(Clone, Debug, Serialize)]
pub struct LoginRow {
    pub key_exchange: &'static str,
    /// Whether clients offered a session of an earlier connection.
    pub resume: bool,
    pub count: u64,
    /// Handshakes that the server resumed.
    pub resumed: u64,
    pub logins_per_second: f64,
    pub server_cpu_us_per_login: Option<f64>,
    /// Cores' worth of CPU time that each side used: below its cores, it was not the limit.
    pub server_cpu_cores: Option<f64>,
    pub client_cpu_cores: f64,
    /// From connect to Welcome.
    pub login_us: Percentiles,
}

impl LoginRow {
    /// For example `full, X25519`.
    pub fn name(&self) -> String {
        format!("{}, {}", if self.resume { "resumed" } else { "full" }, self.key_exchange)
    }
}

impl HandshakeReport {
    pub fn rows(&self) -> Rows {
        let mut rows = Rows::default();
        for row in &self.logins {
            let at = &row.login_us;
            let ms = |us: u64| us as f64 / 1e3;
            rows.add(
                &row.name(),
                format!(
                    "{}/s, server CPU {} each, Welcome after p50 {:.2} p99 {:.2} ms; {} logins, \
                     {} resumed; cores used: gateway {}, load generator {}",
                    row.logins_per_second,
                    known(row.server_cpu_us_per_login, "us"),
                    ms(at.p50),
                    ms(at.p99),
                    row.count,
                    row.resumed,
                    known(row.server_cpu_cores, ""),
                    row.client_cpu_cores
                ),
            );
        }
        rows.add_known("server RSS", self.server_rss_bytes.map(mebibytes), "MiB");
        rows.add_host(&self.host);
        rows
    }
}
