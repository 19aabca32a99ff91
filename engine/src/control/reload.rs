//! A new configuration for a gateway that runs: on SIGHUP the file is read again.
//!
//! Everything is read and checked before anything is applied, so a fault anywhere leaves the whole
//! running configuration as it is. What cannot change while the gateway runs is named in a warning.
//! No connection is dropped: those that are open keep their certificate and token.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::signal::unix::Signal;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::auth::Verifier;
use super::keys::{self, KeysFault, Obtained, Refresher};
use super::tls_files::{self, TlsFilesFault};
use super::validity::{Standing, Validity};
use super::{DrainPlan, Phase, SHARD_REPLY_MAX, State};
use crate::audit::{AuditEvent, AuditFault, AuditFile};
use crate::config::{Config, ConfigFaults, KeySource};
use crate::start::quic_limits;
use crate::transport::Acceptor;
use crate::transport::quic::QuicConfig;
use crate::transport::tls;

/// Sets the log filter; an error says why it could not.
pub type SetLogFilter = Box<dyn Fn(&str) -> Result<(), String> + Send>;

/// What it takes to reload a configuration.
pub struct Reloader {
    pub path: PathBuf,
    /// What the gateway was started with.
    pub started: Config,
    /// What holds now.
    pub config: Config,
    /// Connections of one shard that the host has files for.
    pub connections_room: usize,
    pub set_log_filter: SetLogFilter,
}

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
enum ReloadFault {
    #[error(transparent)]
    Config(#[from] ConfigFaults),
    #[error(transparent)]
    TlsFiles(#[from] TlsFilesFault),
    #[error(transparent)]
    Certificate(#[from] tls::ConfigFault),
    #[error(transparent)]
    Keys(#[from] KeysFault),
    #[error(transparent)]
    Audit(#[from] AuditFault),
}

/// Checked, and not yet applied.
struct Prepared {
    config: Config,
    acceptor: Acceptor,
    quic: Option<QuicConfig>,
    keys: NewKeys,
    audit: AuditFile,
    validity: Validity,
}

/// Where a reload gets its keys.
enum NewKeys {
    Now(Box<Obtained>),
    /// They come from the same URL as before: the last good ones will do until it answers.
    Later(Box<Refresher>),
}

impl Reloader {
    /// Reloads on each signal, as long as the gateway runs.
    pub(super) async fn run(mut self, state: Rc<State>, mut hangup: Signal) {
        while hangup.recv().await.is_some() {
            if state.phase.get() == Phase::Draining {
                warn!("SIGHUP: a gateway that drains takes no new configuration");
                continue;
            }
            match self.prepare(&state).await {
                Ok(prepared) => self.apply(prepared, &state).await,
                Err(fault) => {
                    fault.log();
                    self.reopen_audit(&state);
                    let reason = fault.to_string();
                    state.audit.record(AuditEvent::ReloadRefused { reason });
                    state.metrics.reload_refused();
                }
            }
        }
    }

    /// The log may have been moved away, which is no reason to wait for a configuration that is good.
    fn reopen_audit(&self, state: &State) {
        match AuditFile::open(self.config.audit.path.as_deref()) {
            Ok(file) => state.audit.change_file(file),
            Err(fault) => warn!(%fault, fix = fault.fix(), "the audit log goes on as it is"),
        }
    }

    async fn prepare(&self, state: &State) -> Result<Prepared, ReloadFault> {
        let config = Config::load(&self.path)?;
        let files = tls_files::load(&config.tls.certificate_path, &config.tls.key_path)?;
        let validity = files.validity;
        // A start goes on with one, because there is nothing better; here the old one is.
        let path = || config.tls.certificate_path.clone();
        match validity.now() {
            Standing::Valid { .. } => {}
            Standing::Expired { days_ago } => {
                return Err(TlsFilesFault::Expired { path: path(), days_ago }.into());
            }
            Standing::NotYet => return Err(TlsFilesFault::NotYetValid { path: path() }.into()),
        }
        let acceptor = state.settings.borrow().acceptor.with_certificate(files)?;
        let quic = self.new_quic(&config, &acceptor, state);
        let keys = self.new_keys(&config).await?;
        let audit = AuditFile::open(config.audit.path.as_deref())?;
        Ok(Prepared { config, acceptor, quic, keys, audit, validity })
    }

    /// QUIC shows the certificate that TLS over TCP shows.
    fn new_quic(&self, config: &Config, acceptor: &Acceptor, state: &State) -> Option<QuicConfig> {
        let settings = state.settings.borrow();
        let quic = settings.quic.as_ref()?;
        let limits = config.limits.live.within(self.connections_room);
        Some(acceptor.share_with(quic).with_limits(quic_limits(&limits, &config.quic)))
    }

    async fn new_keys(&self, config: &Config) -> Result<NewKeys, ReloadFault> {
        let (auth, data_dir) = (&config.auth, &self.started.data_dir);
        if let KeySource::Url(url) = &auth.keys
            && *auth == self.config.auth
        {
            return Ok(NewKeys::Later(Box::new(Refresher::new(url, &auth.audience, data_dir)?)));
        }
        let obtained = keys::obtain(auth, data_dir).await?;
        match obtained.fault {
            Some(fault) => Err(fault.into()),
            None => Ok(NewKeys::Now(Box::new(obtained))),
        }
    }

    async fn apply(&mut self, prepared: Prepared, state: &Rc<State>) {
        let Prepared { config, acceptor, quic, keys, audit, validity } = prepared;
        if let Err(text) = (self.set_log_filter)(&config.log.filter) {
            warn!("the log filter stays as it was: {text}");
        }
        let audits = audit.is_open();
        state.audit.change_file(audit);
        state.drain.set(DrainPlan::from(&config.drain));
        {
            let mut settings = state.settings.borrow_mut();
            (settings.acceptor, settings.quic) = (acceptor, quic);
            settings.audits = audits;
            settings.limits = Arc::new(config.limits.live.within(self.connections_room));
            settings.reconnect_jitter_ms = config.drain.reconnect_jitter_ms;
            if let NewKeys::Now(obtained) = &keys
                && *settings.verifier != obtained.verifier
            {
                state.audit.record(keys_changed(&obtained.verifier));
                settings.verifier = Arc::new(obtained.verifier.clone());
            }
        }
        match keys {
            NewKeys::Now(obtained) => {
                obtained.keep();
                let Obtained { fetched_unix_ms, refresher, .. } = *obtained;
                state.metrics.keys_read(fetched_unix_ms);
                State::refresh_keys(state, refresher);
            }
            NewKeys::Later(refresher) => State::refresh_keys(state, Some(*refresher)),
        }
        let silent = apply_to_shards(state).await;
        if silent > 0 {
            warn!(silent, "shards are busy and take the new settings later");
        }
        let restart_needed = self.started.needs_restart(&config);
        for key in &restart_needed {
            warn!(key, "this key has changed, and takes effect at the next start");
        }
        tls_files::tell_validity(&config.tls.certificate_path, &validity);
        let keys = state.settings.borrow().verifier.key_count();
        info!(path = %self.path.display(), keys, "configuration reloaded");
        state.audit.record(AuditEvent::Reloaded { restart_needed });
        state.metrics.reloaded(unix_ms() / 1_000, validity);
        self.config = config;
    }
}

/// For the audit log.
pub(super) fn keys_changed(verifier: &Verifier) -> AuditEvent {
    let key_ids = verifier.key_ids().into_iter().map(str::to_owned).collect();
    AuditEvent::KeysChanged { key_ids }
}

/// Gives the settings to all shards. Returns how many have not taken them yet.
pub(super) async fn apply_to_shards(state: &State) -> usize {
    let mut answers = Vec::with_capacity(state.shards);
    for port in state.ports.borrow().iter() {
        let (applied, answer) = oneshot::channel();
        port.apply(state.settings.borrow().clone(), applied);
        answers.push(answer);
    }
    let deadline = tokio::time::Instant::now() + SHARD_REPLY_MAX;
    let mut silent = 0;
    for answer in answers {
        if !matches!(tokio::time::timeout_at(deadline, answer).await, Ok(Ok(()))) {
            silent += 1;
        }
    }
    silent
}

impl ReloadFault {
    fn log(&self) {
        const KEPT: &str = "reload refused, the running configuration stays";
        match self {
            Self::Config(faults) => {
                for fault in &faults.0 {
                    error!(%fault, fix = fault.fix(), "{KEPT}");
                }
            }
            Self::TlsFiles(fault) => error!(%fault, fix = fault.fix(), "{KEPT}"),
            Self::Certificate(fault) => error!(%fault, fix = fault.fix(), "{KEPT}"),
            Self::Audit(fault) => error!(%fault, fix = fault.fix(), "{KEPT}"),
            Self::Keys(fault) => error!(%fault, fix = fault.fix(), "{KEPT}"),
        }
    }
}

/// The wall clock.
pub(super) fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
