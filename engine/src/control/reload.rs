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

use super::keys::{self, KeysFault, Obtained};
use super::tls_files::{self, TlsFilesFault};
use super::validity::{Standing, Validity};
use super::{DrainPlan, Phase, State};
use crate::config::{Config, ConfigFaults, KeySource};
use crate::transport::Acceptor;
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
}

/// Checked, and not yet applied.
struct Prepared {
    config: Config,
    acceptor: Acceptor,
    /// `None`: as they are.
    keys: Option<Obtained>,
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
            match self.prepare(&state).await {
                Ok(prepared) => self.apply(prepared, &state).await,
                Err(fault) => {
                    fault.log();
                    state.metrics.reload_refused();
                }
            }
        }
    }

    async fn prepare(&self, state: &State) -> Result<Prepared, ReloadFault> {
        let config = Config::load(&self.path)?;
        let files = tls_files::load(&config.tls.certificate_path, &config.tls.key_path)?;
        let validity = files.validity;
        if let Standing::Expired { days_ago } = validity.now() {
            let path = config.tls.certificate_path;
            return Err(TlsFilesFault::Expired { path, days_ago }.into());
        }
        let acceptor = state.settings.borrow().acceptor.with_certificate(files)?;
        let keys = self.new_keys(&config).await?;
        Ok(Prepared { config, acceptor, keys, validity })
    }

    /// `None`: they come from the same URL as before, which is asked beside the reload, because the
    /// last good ones will do.
    async fn new_keys(&self, config: &Config) -> Result<Option<Obtained>, ReloadFault> {
        if matches!(config.auth.keys, KeySource::Url(_)) && config.auth == self.config.auth {
            return Ok(None);
        }
        let obtained = keys::obtain(&config.auth, &self.started.data_dir).await?;
        match obtained.fault {
            Some(fault) => Err(fault.into()),
            None => Ok(Some(obtained)),
        }
    }

    async fn apply(&mut self, prepared: Prepared, state: &Rc<State>) {
        let Prepared { config, acceptor, keys, validity } = prepared;
        if let Err(text) = (self.set_log_filter)(&config.log.filter) {
            warn!("the log filter stays as it was: {text}");
        }
        state.drain.set(DrainPlan::from(&config.drain));
        {
            let mut settings = state.settings.borrow_mut();
            settings.acceptor = acceptor;
            settings.limits = Arc::new(config.limits.live.within(self.connections_room));
            settings.reconnect_jitter_ms = config.drain.reconnect_jitter_ms;
            if let Some(Obtained { verifier, .. }) = &keys {
                settings.verifier = Arc::new(verifier.clone());
            }
        }
        match keys {
            Some(obtained) => {
                obtained.keep();
                let Obtained { fetched_unix_ms, refresher, .. } = obtained;
                state.metrics.keys_read(fetched_unix_ms);
                State::refresh_keys(state, refresher);
            }
            None => state.key_demand.raise(),
        }
        let silent = apply_to_shards(state).await;
        if silent > 0 {
            warn!(silent, "shards are busy and take the new settings later");
        }
        for key in self.started.needs_restart(&config) {
            warn!(key, "this key has changed, and takes effect at the next start");
        }
        tls_files::tell_validity(&config.tls.certificate_path, &validity);
        let keys = state.settings.borrow().verifier.key_count();
        info!(path = %self.path.display(), keys, "configuration reloaded");
        state.metrics.reloaded(unix_ms() / 1_000, validity);
        self.config = config;
    }
}

/// Gives the settings to all shards. Returns how many have not taken them yet.
pub(super) async fn apply_to_shards(state: &State) -> usize {
    let mut answers = Vec::with_capacity(state.shards);
    for port in state.ports.borrow().iter() {
        let (applied, answer) = oneshot::channel();
        port.apply(state.settings.borrow().clone(), applied);
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
            Self::Certificate(fault) => error!(%fault, fix = fault.fix(), "{KEPT}"),
            Self::Keys(fault) => error!(%fault, fix = fault.fix(), "{KEPT}"),
        }
    }
}

/// The wall clock.
pub(super) fn unix_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// A shard takes its settings within one turn of its loop.
const APPLY_MAX: Duration = Duration::from_secs(2);
