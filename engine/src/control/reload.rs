//! A new configuration for a gateway that runs: on SIGHUP the file is read again.
//!
//! Everything is read and checked before anything is applied, so a fault anywhere leaves the whole
//! running configuration as it is. What cannot change while the gateway runs is named in a warning.
//! No connection is dropped: those that are open keep their certificate and token.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::signal::unix::Signal;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::auth::{KeySetFault, Verifier};
use super::tls_files::{self, TlsFilesFault};
use super::validity::{Standing, Validity};
use super::{DrainPlan, Phase, State};
use crate::config::{Config, ConfigFaults};
use crate::shard::ShardSettings;
use crate::transport::tls;

/// Sets the log filter; an error says why it could not.
pub type SetLogFilter = Box<dyn Fn(&str) -> Result<(), String> + Send>;

/// What it takes to reload a configuration.
pub struct Reloader {
    pub path: PathBuf,
    /// What the gateway was started with.
    pub started: Config,
    /// What the shards have now.
    pub settings: ShardSettings,
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
    KeySet(#[from] KeySetFault),
}

/// Checked, and not yet applied.
struct Prepared {
    config: Config,
    settings: ShardSettings,
    validity: Validity,
}

impl Reloader {
    /// Reloads on each signal, as long as the gateway runs.
    pub(super) async fn run(mut self, state: Rc<State>, mut hangup: Signal) {
        while hangup.recv().await.is_some() {
            if state.phase.get() == Phase::Draining {
                warn!("SIGHUP: a gateway that drains takes no new configuration");
                continue;
            }
            match self.prepare() {
                Ok(prepared) => self.apply(prepared, &state).await,
                Err(fault) => {
                    fault.log();
                    state.metrics.reload_refused();
                }
            }
        }
    }

    fn prepare(&self) -> Result<Prepared, ReloadFault> {
        let config = Config::load(&self.path)?;
        let files = tls_files::load(&config.tls.certificate_path, &config.tls.key_path)?;
        let validity = files.validity;
        if let Standing::Expired { days_ago } = validity.now() {
            let path = config.tls.certificate_path;
            return Err(TlsFilesFault::Expired { path, days_ago }.into());
        }
        let verifier = Verifier::load(&config.auth.jwks_path, &config.auth.audience)?;
        let settings = ShardSettings {
            acceptor: self.settings.acceptor.with_certificate(files)?,
            verifier: Arc::new(verifier),
            limits: Arc::new(config.limits.live.within(self.connections_room)),
            reconnect_jitter_ms: config.drain.reconnect_jitter_ms,
        };
        Ok(Prepared { config, settings, validity })
    }

    async fn apply(&mut self, prepared: Prepared, state: &State) {
        let Prepared { config, settings, validity } = prepared;
        if let Err(text) = (self.set_log_filter)(&config.log.filter) {
            warn!("the log filter stays as it was: {text}");
        }
        state.drain.set(DrainPlan::from(&config.drain));
        self.settings = settings;
        let silent = apply_to_shards(&self.settings, state).await;
        if silent > 0 {
            warn!(silent, "shards are busy and take the new settings later");
        }
        for key in self.started.needs_restart(&config) {
            warn!(key, "this key has changed, and takes effect at the next start");
        }
        tls_files::tell_validity(&config.tls.certificate_path, &validity);
        info!(
            path = %self.path.display(),
            keys = self.settings.verifier.key_count(),
            "configuration reloaded"
        );
        state.metrics.reloaded(unix_s(), validity);
    }
}

/// Gives the settings to all shards. Returns how many have not taken them yet.
pub(super) async fn apply_to_shards(settings: &ShardSettings, state: &State) -> usize {
    let mut answers = Vec::with_capacity(state.shards);
    for port in state.ports.borrow().iter() {
        let (applied, answer) = oneshot::channel();
        port.apply(settings.clone(), applied);
        answers.push(answer);
    }
    let deadline = tokio::time::Instant::now() + APPLY_MAX;
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
            Self::Certificate(fault) => error!(%fault, "{KEPT}"),
            Self::KeySet(fault) => error!(%fault, fix = fault.fix(), "{KEPT}"),
        }
    }
}

/// The wall clock.
pub(super) fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A shard takes its settings within one turn of its loop.
const APPLY_MAX: Duration = Duration::from_secs(2);
