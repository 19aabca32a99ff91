//! Where the keys that verify tokens come from: a file, or a URL that is asked again and again.
//!
//! Of a URL the last good set is kept, in memory and in the data directory, so neither a fault of its
//! server nor a restart meanwhile stops logins. All of it is on the control thread: shards only get
//! a finished [`Verifier`], and only when it differs.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

mod fetch;
mod kept;
mod schedule;

pub use self::fetch::FetchFault;
use self::fetch::{Fetched, Fetcher};
use self::kept::KeptFile;
use self::schedule::Schedule;
use super::State;
use super::auth::{KeySetFault, Verifier};
use super::reload::{apply_to_shards, keys_changed, unix_ms};
use crate::config::{AuthConfig, KeySetUrl, KeySource};
use crate::limits::KEY_SET_FETCH_MS_MAX;

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysFault {
    #[error(transparent)]
    Set(#[from] KeySetFault),
    #[error("{url}: {fault}")]
    Fetch { url: String, fault: FetchFault },
}

/// Keys for a start or a reload.
pub struct Obtained {
    pub verifier: Verifier,
    /// When they were read or fetched; of a kept set, when it was fetched.
    pub fetched_unix_ms: u64,
    /// They are the ones kept from an earlier fetch, because this one failed.
    pub fault: Option<KeysFault>,
    /// Asks again later; `None` for a file.
    pub refresher: Option<Refresher>,
    /// What was fetched.
    text: Option<Bytes>,
}

/// Keeps the keys of one URL fresh.
pub struct Refresher {
    fetcher: Fetcher,
    kept: KeptFile,
    audience: String,
    schedule: Schedule,
    /// Zero of the schedule's time.
    started: Instant,
}

/// A wish for newer keys: from shards that met an unknown kid, or from the operator.
#[derive(Debug, Default)]
pub struct Demand {
    /// Heard, and not answered by a fetch since; further wishes are the same one.
    pending: AtomicBool,
    heard: Notify,
}

/// Reads the file, or asks the URL; if that fails, the set kept in `data_dir` will do. Writes nothing:
/// see [`Obtained::keep`].
pub async fn obtain(auth: &AuthConfig, data_dir: &Path) -> Result<Obtained, KeysFault> {
    match &auth.keys {
        KeySource::File(path) => {
            let verifier = Verifier::load(path, &auth.audience)?;
            let fetched_unix_ms = unix_ms();
            let (fault, refresher, text) = (None, None, None);
            Ok(Obtained { verifier, fetched_unix_ms, fault, refresher, text })
        }
        KeySource::Url(url) => Refresher::new(url, &auth.audience, data_dir)?.obtain().await,
    }
}

/// As [`obtain`], for a caller without a runtime.
pub fn obtain_now(
    auth: &AuthConfig,
    data_dir: &Path,
) -> std::io::Result<Result<Obtained, KeysFault>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(obtain(auth, data_dir)))
}

impl Obtained {
    /// Writes what was fetched into the data directory, which exists by now.
    pub fn keep(&self) {
        if let (Some(refresher), Some(text)) = (&self.refresher, &self.text) {
            refresher.keep(text);
        }
    }
}

impl Refresher {
    /// Asks at once when it runs. Reads the certificate authorities.
    pub(super) fn new(url: &KeySetUrl, audience: &str, data_dir: &Path) -> Result<Self, KeysFault> {
        let time_max = Duration::from_millis(KEY_SET_FETCH_MS_MAX);
        Ok(Self {
            fetcher: Fetcher::new(url, time_max).map_err(|fault| fetch_fault(url, fault))?,
            kept: KeptFile::of(data_dir),
            audience: audience.to_owned(),
            schedule: Schedule::at_once(0),
            started: Instant::now(),
        })
    }

    async fn obtain(mut self) -> Result<Obtained, KeysFault> {
        let fault = match self.fetch().await {
            Ok((verifier, Fetched { body, max_age_s })) => {
                self.schedule = Schedule::new(self.now_ms(), max_age_s);
                let (fetched_unix_ms, refresher) = (unix_ms(), Some(self));
                let text = Some(body);
                return Ok(Obtained { verifier, fetched_unix_ms, fault: None, refresher, text });
            }
            Err(fault) => fault,
        };
        let Some((text, fetched_unix_ms)) = self.kept.read(&self.fetcher.url) else {
            return Err(fault);
        };
        let origin = self.fetcher.url.to_string();
        let verifier = Verifier::parse(&text, &origin, &self.audience)?;
        self.schedule.failed(self.now_ms(), rand::random());
        let (fault, refresher, text) = (Some(fault), Some(self), None);
        Ok(Obtained { verifier, fetched_unix_ms, fault, refresher, text })
    }

    /// The set, checked, and as it came.
    async fn fetch(&self) -> Result<(Verifier, Fetched), KeysFault> {
        let url = &self.fetcher.url;
        let fetched = self.fetcher.fetch().await.map_err(|fault| fetch_fault(url, fault))?;
        let verifier = Verifier::parse(&fetched.body, &url.to_string(), &self.audience)?;
        Ok((verifier, fetched))
    }

    /// A fault means only that a start would need the server.
    fn keep(&self, text: &[u8]) {
        if let Err(error) = self.kept.write(&self.fetcher.url, text, unix_ms()) {
            warn!(%error, "the key set cannot be kept in the data directory");
        }
    }

    /// Fetches when it is due or demanded, as long as the gateway runs.
    pub(super) async fn run(mut self, state: Rc<State>) {
        loop {
            let due = self.started + Duration::from_millis(self.schedule.due_ms());
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = state.key_demand.heard.notified() => {
                    self.schedule.demanded(self.now_ms());
                    continue;
                }
            }
            match self.fetch().await {
                Ok((verifier, Fetched { body, max_age_s })) => {
                    self.keep(&body);
                    self.schedule.succeeded(self.now_ms(), max_age_s);
                    state.metrics.keys_fetched(unix_ms());
                    install(verifier, &state).await;
                }
                Err(fault) => {
                    self.schedule.failed(self.now_ms(), rand::random());
                    state.metrics.fetch_failed();
                    let fix = fault.fix();
                    warn!(%fault, fix, "the keys cannot be fetched; the last good ones stay");
                }
            }
            state.key_demand.pending.store(false, Ordering::Release);
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Gives the shards keys that differ from theirs.
async fn install(verifier: Verifier, state: &State) {
    let same = *state.settings.borrow().verifier == verifier;
    if same {
        return;
    }
    info!(keys = verifier.key_count(), key_ids = ?verifier.key_ids(), "new keys");
    state.audit.record(keys_changed(&verifier));
    state.settings.borrow_mut().verifier = Arc::new(verifier);
    apply_to_shards(state).await;
}

impl Demand {
    /// Costs little when it is repeated; never blocks.
    pub fn raise(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            self.heard.notify_one();
        }
    }
}

impl KeysFault {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Set(fault) => fault.fix(),
            Self::Fetch { fault, .. } => fault.fix().to_owned(),
        }
    }
}

fn fetch_fault(url: &KeySetUrl, fault: FetchFault) -> KeysFault {
    KeysFault::Fetch { url: url.to_string(), fault }
}

#[cfg(test)]
mod tests;
