//! `ringpost check`: everything that a start would refuse, without a start.
//!
//! A gateway may be running with this configuration: its data directory is not locked, and its ports
//! count as its own.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use serde_json::json;

use crate::audit::AuditFile;
use crate::config::{Config, ConfigFault, KeySource, Place};
use crate::control::keys::{self, Obtained};
use crate::control::tls_files::{self, EXPIRY_WARNING_DAYS, TlsFiles};
use crate::control::validity::Standing;
use crate::data_dir::{self, DataDirState};
use crate::host::{Host, RAISE_OPEN_FILES};
use crate::transport::tls::ServerConfig;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    Ok,
    /// The gateway starts, and something will go wrong.
    Warning,
    /// The gateway does not start, or no client can use it.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Finding {
    pub subject: &'static str,
    pub grade: Grade,
    pub text: String,
    /// What to do about it.
    pub fix: Option<String>,
    /// Where in the configuration it is.
    pub place: Option<Place>,
}

/// Everything that was looked at.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
}

impl Report {
    /// Checks the configuration at `path`, and what it names.
    pub fn of(path: &Path) -> Self {
        let mut report = Self::default();
        let config = match Config::load(path) {
            Ok(config) => config,
            Err(faults) => {
                for fault in &faults.0 {
                    report.add_fault(fault);
                }
                return report;
            }
        };
        report.ok("configuration", path.display().to_string());
        report.check_certificate(&config);
        report.check_keys(&config);
        let stores = report.check_data_dir(&config);
        report.check_audit(&config);
        report.check_host(&config, stores.map_or(0, |stores| stores.storage_shards));
        let is_running = stores.is_some_and(|stores| stores.in_use);
        report.check_quic(&config);
        let tcp = |address| TcpListener::bind(address).map(drop);
        report.check_port("listen", "TCP", config.listen, is_running, tcp);
        if config.serves_quic() {
            let udp = |address| UdpSocket::bind(address).map(drop);
            report.check_port("listen", "UDP", config.listen, is_running, udp);
        }
        report.check_port("admin_listen", "TCP", config.admin_listen, is_running, tcp);
        if let Some(keys_listen) = config.keys_listen {
            report.check_port("keys.listen", "TCP", keys_listen, is_running, tcp);
        }
        report
    }

    pub fn count(&self, grade: Grade) -> usize {
        self.findings.iter().filter(|finding| finding.grade == grade).count()
    }

    /// One object, for scripts.
    pub fn json(&self) -> String {
        let findings = self.findings.iter().map(|finding| {
            let Finding { subject, grade, text, fix, place } = finding;
            let mut value = json!({ "subject": subject, "grade": grade.word(), "text": text });
            if let Some(fix) = fix {
                value["fix"] = fix.as_str().into();
            }
            if let Some(Place { path, line, column }) = place {
                value["file"] = path.display().to_string().into();
                (value["line"], value["column"]) = ((*line).into(), (*column).into());
            }
            value
        });
        json!({
            "problems": self.count(Grade::Problem),
            "warnings": self.count(Grade::Warning),
            "findings": findings.collect::<Vec<_>>(),
        })
        .to_string()
    }

    /// Lines, for people.
    pub fn human(&self) -> String {
        let mut text = String::new();
        for Finding { subject, grade, text: found, fix, .. } in &self.findings {
            text.push_str(&format!("{:<8} {subject}: {found}\n", grade.word()));
            if let Some(fix) = fix {
                text.push_str(&format!("         fix: {fix}\n"));
            }
        }
        let (problems, warnings) = (self.count(Grade::Problem), self.count(Grade::Warning));
        text.push_str(&format!("{problems} problems, {warnings} warnings\n"));
        text
    }

    fn add(&mut self, subject: &'static str, grade: Grade, text: String, fix: Option<String>) {
        self.findings.push(Finding { subject, grade, text, fix, place: None });
    }

    fn ok(&mut self, subject: &'static str, text: String) {
        self.add(subject, Grade::Ok, text, None);
    }

    fn problem(&mut self, subject: &'static str, error: &dyn std::error::Error, fix: String) {
        self.add(subject, Grade::Problem, error.to_string(), Some(fix));
    }

    fn add_fault(&mut self, fault: &ConfigFault) {
        self.findings.push(Finding {
            subject: "configuration",
            grade: Grade::Problem,
            text: fault.to_string(),
            fix: Some(fault.fix()),
            place: fault.place().cloned(),
        });
    }

    fn check_certificate(&mut self, config: &Config) {
        const SUBJECT: &str = "certificate";
        let files = match tls_files::load(&config.tls.certificate_path, &config.tls.key_path) {
            Ok(files) => files,
            Err(fault) => return self.problem(SUBJECT, &fault, fault.fix()),
        };
        let TlsFiles { certificates, key, validity } = files;
        if let Err(fault) = ServerConfig::new(certificates, key) {
            return self.problem(SUBJECT, &fault, fault.fix().to_owned());
        }
        let path = config.tls.certificate_path.display();
        let (grade, text, fix) = match validity.now() {
            Standing::Valid { days } if days >= EXPIRY_WARNING_DAYS => {
                return self.ok(SUBJECT, format!("{path} is valid for {days} days"));
            }
            Standing::Valid { days } => {
                (Grade::Warning, format!("{path} expires in {days} days"), "renew it")
            }
            Standing::NotYet => (
                Grade::Problem,
                format!("{path} is not valid yet"),
                "set this host's clock right, or use a certificate that is valid",
            ),
            Standing::Expired { days_ago } => (
                Grade::Problem,
                format!("{path} has expired {days_ago} days ago"),
                "renew it: no client accepts it",
            ),
        };
        self.add(SUBJECT, grade, text, Some(fix.to_owned()));
    }

    fn check_keys(&mut self, config: &Config) {
        let origin = match &config.auth.keys {
            KeySource::File(path) => path.display().to_string(),
            KeySource::Url(url) => url.to_string(),
        };
        match keys::obtain_now(&config.auth, &config.data_dir) {
            Ok(Ok(Obtained { verifier, fault: None, .. })) => {
                let count = verifier.key_count();
                self.ok("keys", format!("{origin} has {count} that verify tokens"));
            }
            Ok(Ok(Obtained { fault: Some(fault), .. })) => {
                let text = format!("{fault}; a start would use those kept from the last fetch");
                self.add("keys", Grade::Warning, text, Some(fault.fix()));
            }
            Ok(Err(fault)) => self.problem("keys", &fault, fault.fix()),
            Err(error) => self.add("keys", Grade::Problem, error.to_string(), None),
        }
    }

    fn check_data_dir(&mut self, config: &Config) -> Option<Stores> {
        const SUBJECT: &str = "data_dir";
        let path = config.data_dir.display();
        let state = match data_dir::look_at(&config.data_dir) {
            Ok(state) => state,
            Err(fault) => {
                self.problem(SUBJECT, &fault, fault.fix());
                return None;
            }
        };
        let DataDirState::Used { current, in_use } = state else {
            self.ok(SUBJECT, format!("{path} is new"));
            return None;
        };
        let recorded = current.storage_shards;
        let running = if in_use { "; a gateway runs on it" } else { "" };
        self.ok(SUBJECT, format!("{path} has stores of {recorded} shards{running}"));
        let wanted = config.storage_shards.unwrap_or(recorded);
        if wanted != recorded {
            let text = format!("the next start rewrites the stores for {wanted} shards first");
            let fix = "nobody is served meanwhile: choose the time; or leave storage_shards out";
            self.add(SUBJECT, Grade::Warning, text, Some(fix.to_owned()));
        }
        Some(Stores { storage_shards: wanted, in_use })
    }

    fn check_quic(&mut self, config: &Config) {
        const SUBJECT: &str = "quic";
        // Tickets need the secret without QUIC too.
        if let Err(fault) = data_dir::existing_quic_secret(&config.data_dir) {
            return self.problem(SUBJECT, &fault, fault.fix());
        }
        if !config.serves_quic() {
            let why =
                if config.quic.enabled { "proxy_protocol is set" } else { "it is not enabled" };
            return self.ok(SUBJECT, format!("not served: {why}"));
        }
        self.ok(SUBJECT, "served on the address and port of listen".to_owned());
    }

    /// Opening it makes it, so only its directory is looked at when it is not there.
    fn check_audit(&mut self, config: &Config) {
        let Some(path) = &config.audit.path else { return };
        let opened = match path.exists() {
            true => AuditFile::open(Some(path)).map(|_| ()),
            false => AuditFile::directory_of(path),
        };
        match opened {
            Ok(()) => self.ok("audit", format!("{} can be written", path.display())),
            Err(fault) => self.problem("audit", &fault, fault.fix()),
        }
    }

    fn check_host(&mut self, config: &Config, storage_shards: u16) {
        let shards = config.shards.max(storage_shards);
        match Host::look(shards) {
            Ok(host) => {
                let wanted = config.limits.live.connections_max;
                let room = host.connections_room.min(wanted);
                self.ok("host", format!("{shards} shards of up to {room} connections"));
                if let Some(shortage) = host.shortage(&config.limits.live) {
                    self.add("host", Grade::Warning, shortage, Some(RAISE_OPEN_FILES.to_owned()));
                }
            }
            Err(fault) => {
                self.problem("host", &fault, fault.fix());
            }
        }
    }

    /// Binds the port for a moment.
    fn check_port(
        &mut self,
        key: &'static str,
        protocol: &str,
        address: SocketAddr,
        is_running: bool,
        bind: impl Fn(SocketAddr) -> io::Result<()>,
    ) {
        match bind(address) {
            Ok(()) => self.ok(key, format!("{address} is free ({protocol})")),
            Err(error) if is_running && error.kind() == io::ErrorKind::AddrInUse => {
                self.ok(key, format!("{address} is in use ({protocol}), and a gateway is running"));
            }
            Err(error) => {
                let text = format!("cannot listen on {address} ({protocol}): {error}");
                let fix = format!("stop what listens there, or set {key} to another address");
                self.add(key, Grade::Problem, text, Some(fix));
            }
        }
    }
}

/// What the data directory holds.
#[derive(Clone, Copy, Debug)]
struct Stores {
    storage_shards: u16,
    in_use: bool,
}

impl Grade {
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}
