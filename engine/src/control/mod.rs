//! The control thread: signals, draining, the admin endpoint. It runs beside the shards, never on
//! the path of a message, and speaks to them only through [`ShardPort`] and [`ShardReporter`].
//!
//! A shard reports itself ready once, later drained or failed once; when one fails the process
//! ends, because its users would be cut off while the others look healthy.

use std::cell::{Cell, RefCell};
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::{AbortHandle, LocalSet};
use tracing::{error, info, warn};

use self::counts::ControlMetrics;
use self::keys::{Demand, Refresher};
use self::reload::Reloader;
pub use self::reports::{DirectoryReporter, ShardReporter, ShardReports, shard_reports};
use self::reports::{ShardReport, ShardState};
pub use self::rest::KeysInterface;
use self::validity::Validity;
use crate::audit::{AuditEvent, AuditLog};
use crate::config::DrainConfig;
use crate::directory::ControlPort;
use crate::metrics::ShardMetrics;
use crate::shard::ShardSettings;
use crate::shard::message::KeysLowNews;

pub mod admin;
pub mod auth;
mod counts;
pub mod dev;
mod http;
pub mod keys;
mod refusals;
pub mod reload;
mod reports;
mod rest;
pub mod tls_files;
pub mod token;
pub mod validity;

/// What control asks of one shard. Neither call blocks or waits.
pub trait ShardPort: Send {
    /// The shard answers with a copy of its counters; dropping `reply` says that it cannot.
    fn request_metrics(&self, reply: oneshot::Sender<ShardMetrics>);
    /// The shard takes these settings and answers; dropping `applied` says that it cannot.
    fn apply(&self, settings: ShardSettings, applied: oneshot::Sender<()>);
    /// The shard stops accepting, sends GoAway, flushes, syncs, and reports itself drained.
    fn drain(&self, plan: DrainPlan);
    /// The shard tells the device, and drops `told` then.
    fn tell_keys_low(&self, news: KeysLowNews, told: OwnedSemaphorePermit);
}

/// How shards are to drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainPlan {
    /// After this time the shard closes what is still open.
    pub drain_ms_max: u64,
    /// Each client is told to return after a random time up to this one.
    pub reconnect_jitter_ms: u64,
}

/// Why the gateway ended other than by failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// A signal came and every shard drained.
    Drained,
}

/// Why the gateway failed while it ran.
#[derive(Debug, thiserror::Error)]
pub enum ControlFault {
    #[error("the control thread cannot start: {0}")]
    Runtime(std::io::Error),
    #[error("shard {shard} failed: {text}")]
    ShardFailed { shard: u16, text: String },
    #[error("the directory failed: {0}")]
    DirectoryFailed(String),
    #[error("{missing} of {shards} shards did not drain within {waited_ms} ms")]
    DrainTooSlow { missing: usize, shards: usize, waited_ms: u64 },
    #[error("a second signal ended the drain")]
    Interrupted,
}

impl From<&DrainConfig> for DrainPlan {
    fn from(config: &DrainConfig) -> Self {
        Self { drain_ms_max: config.drain_ms_max, reconnect_jitter_ms: config.reconnect_jitter_ms }
    }
}

/// Everything that the control thread needs; [`Control::run`] is that thread.
pub struct Control {
    /// Bound already, so that a port in use shows before any shard starts.
    pub admin: TcpListener,
    pub ports: Vec<Box<dyn ShardPort>>,
    pub reports: ShardReports,
    pub drain: DrainPlan,
    /// Of the certificate in use.
    pub certificate: Validity,
    /// What the shards have.
    pub settings: ShardSettings,
    /// When their keys were read or fetched.
    pub keys_unix_ms: u64,
    /// Keeps their keys fresh, if they come from a URL.
    pub refresher: Option<Refresher>,
    /// `None`: there is no file to read again, and SIGHUP ends the gateway as SIGTERM does.
    pub reloader: Option<Reloader>,
    pub audit: AuditLog,
    /// `None`: there is no directory.
    pub directory: Option<ControlPort>,
    /// Where public keys are served over HTTPS.
    pub keys_interface: Option<KeysInterface>,
}

/// Whether clients are served, as `/readyz` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Serving,
    Draining,
}

/// What the admin endpoint sees.
struct State {
    ports: RefCell<Vec<Box<dyn ShardPort>>>,
    shards: usize,
    phase: Cell<Phase>,
    shards_ready: Cell<usize>,
    reopening: Vec<Arc<AtomicBool>>,
    started: Instant,
    drain: Cell<DrainPlan>,
    /// What the shards have now.
    settings: RefCell<ShardSettings>,
    key_demand: Arc<Demand>,
    refreshing: RefCell<Option<AbortHandle>>,
    audit: AuditLog,
    directory: Option<ControlPort>,
    metrics: ControlMetrics,
}

impl State {
    /// From now on only `refresher` fetches keys.
    fn refresh_keys(state: &Rc<Self>, refresher: Option<Refresher>) {
        let task = refresher
            .map(|refresher| tokio::task::spawn_local(refresher.run(Rc::clone(state))))
            .map(|task| task.abort_handle());
        if let Some(before) = state.refreshing.replace(task) {
            before.abort();
        }
    }

    /// The counters of all shards that answer, and how many do not.
    async fn shard_metrics(&self) -> (ShardMetrics, u64) {
        // All are asked before any is awaited, so the copies are of about the same moment.
        let mut replies = Vec::with_capacity(self.shards);
        for port in self.ports.borrow().iter() {
            let (reply, answer) = oneshot::channel();
            port.request_metrics(reply);
            replies.push(answer);
        }
        let deadline = tokio::time::Instant::now() + SHARD_REPLY_MAX;
        let (mut sum, mut silent) = (ShardMetrics::default(), 0);
        for answer in replies {
            match tokio::time::timeout_at(deadline, answer).await {
                Ok(Ok(shard)) => sum.merge(&shard),
                _ => silent += 1,
            }
        }
        (sum, silent)
    }

    /// Shards whose store has failed and is not open again.
    fn shards_reopening(&self) -> Vec<usize> {
        let flags = self.reopening.iter().enumerate();
        flags.filter(|(_, flag)| flag.load(Ordering::Relaxed)).map(|(shard, _)| shard).collect()
    }
}

impl Control {
    /// Runs until the gateway is drained or fails. `on_serving` is called once all shards serve.
    pub fn run(self, on_serving: impl FnOnce()) -> Result<ExitReason, ControlFault> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ControlFault::Runtime)?;
        LocalSet::new().block_on(&runtime, self.run_on_runtime(on_serving))
    }

    async fn run_on_runtime(self, on_serving: impl FnOnce()) -> Result<ExitReason, ControlFault> {
        let mut stop = StopSignals::new().map_err(ControlFault::Runtime)?;
        let hangup = signal(SignalKind::hangup()).map_err(ControlFault::Runtime)?;
        let listener = admin::listen(self.admin).map_err(ControlFault::Runtime)?;
        let shards = self.ports.len();
        let ShardReports { mut reports, reopening, key_demand } = self.reports;
        let state = Rc::new(State {
            ports: RefCell::new(self.ports),
            shards,
            phase: Cell::new(Phase::Starting),
            shards_ready: Cell::new(0),
            reopening,
            started: Instant::now(),
            drain: Cell::new(self.drain),
            metrics: ControlMetrics::new(
                reload::unix_ms() / 1_000,
                self.certificate,
                self.keys_unix_ms,
            ),
            settings: RefCell::new(self.settings),
            key_demand,
            refreshing: RefCell::default(),
            audit: self.audit,
            directory: self.directory,
        });
        if let (Some(interface), Some(directory)) = (self.keys_interface, &state.directory) {
            rest::start(interface, Rc::clone(&state), directory.clone())
                .map_err(ControlFault::Runtime)?;
        }
        State::refresh_keys(&state, self.refresher);
        tokio::task::spawn_local(refusals::tell(Rc::clone(&state)));
        tokio::task::spawn_local(admin::serve(listener, Rc::clone(&state)));
        match self.reloader {
            Some(reloader) => {
                tokio::task::spawn_local(reloader.run(Rc::clone(&state), hangup));
            }
            None => stop.hangup = Some(hangup),
        }
        serve_until_stopped(&state, &mut reports, &mut stop, on_serving).await?;
        drain(&state, &mut reports, &mut stop).await?;
        Ok(ExitReason::Drained)
    }
}

async fn serve_until_stopped(
    state: &State,
    reports: &mut mpsc::Receiver<ShardReport>,
    stop: &mut StopSignals,
    on_serving: impl FnOnce(),
) -> Result<(), ControlFault> {
    let mut on_serving = Some(on_serving);
    loop {
        let report = tokio::select! {
            name = stop.next() => {
                info!("{name}: draining");
                state.audit.record(AuditEvent::Draining { signal: name });
                return Ok(());
            }
            report = reports.recv() => report.expect("a reporter reports before it is dropped"),
        };
        let (shard, shard_state) = of_shard(report)?;
        match shard_state {
            ShardState::Ready => {
                state.shards_ready.set(state.shards_ready.get() + 1);
                if state.shards_ready.get() == state.shards {
                    state.phase.set(Phase::Serving);
                    info!(shards = state.shards, "serving");
                    on_serving.take().expect("each shard becomes ready once")();
                }
            }
            ShardState::Drained => return Err(ended_early(shard)),
            ShardState::Failed(text) => return Err(failed(shard, text)),
        }
    }
}

async fn drain(
    state: &State,
    reports: &mut mpsc::Receiver<ShardReport>,
    stop: &mut StopSignals,
) -> Result<(), ControlFault> {
    let plan = state.drain.get();
    state.phase.set(Phase::Draining);
    for port in state.ports.borrow().iter() {
        port.drain(plan);
    }
    let started = Instant::now();
    let waited_max = Duration::from_millis(plan.drain_ms_max) + DRAIN_MARGIN;
    let timeout = tokio::time::sleep(waited_max);
    tokio::pin!(timeout);
    let mut missing = state.shards;
    while missing > 0 {
        let report = tokio::select! {
            name = stop.next() => {
                if started.elapsed() < SIGNAL_REPEAT_MAX {
                    continue;
                }
                warn!("{name}: ending without waiting for {missing} shards");
                return Err(ControlFault::Interrupted);
            }
            () = &mut timeout => {
                let waited_ms = u64::try_from(waited_max.as_millis()).unwrap_or(u64::MAX);
                return Err(ControlFault::DrainTooSlow { missing, shards: state.shards, waited_ms });
            }
            report = reports.recv() => report.expect("a reporter reports before it is dropped"),
        };
        let (shard, shard_state) = of_shard(report)?;
        match shard_state {
            ShardState::Ready => {} // recovered while the signal came
            ShardState::Drained => missing -= 1,
            ShardState::Failed(text) => return Err(failed(shard, text)),
        }
    }
    info!(elapsed_ms = started.elapsed().as_millis(), "drained");
    Ok(())
}

fn of_shard(report: ShardReport) -> Result<(u16, ShardState), ControlFault> {
    match report {
        ShardReport::Shard { shard, state } => Ok((shard, state)),
        ShardReport::DirectoryFailed(text) => {
            error!("the directory failed: {text}");
            Err(ControlFault::DirectoryFailed(text))
        }
    }
}

fn failed(shard: u16, text: String) -> ControlFault {
    error!(shard, "{text}");
    ControlFault::ShardFailed { shard, text }
}

fn ended_early(shard: u16) -> ControlFault {
    failed(shard, "it drained without being asked to".to_owned())
}

impl ControlFault {
    /// What to do about it.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::Runtime(_) => "check the limits of open files and threads of this user",
            Self::ShardFailed { .. } => {
                "see the log above; the store recovers at the next start, nothing accepted is lost"
            }
            Self::DirectoryFailed(_) => {
                "look at the disk of data_dir; what was acknowledged is kept"
            }
            Self::DrainTooSlow { .. } => {
                "nothing accepted is lost; if it happens again, look at the disk's sync times"
            }
            Self::Interrupted => "nothing accepted is lost; one signal is enough next time",
        }
    }
}

/// SIGTERM (service managers) and SIGINT (Ctrl-C); SIGHUP (a closed terminal) if nothing is reloaded.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: None,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = received(&mut self.hangup) => "SIGHUP",
        }
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// A shard answers within one turn of its loop; this long only when it is stuck.
const SHARD_REPLY_MAX: Duration = Duration::from_secs(2);
/// Beyond the shards' own limit: closing, the last sync.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);
/// Supervisors signal a process and its group: what repeats that soon is the same wish.
const SIGNAL_REPEAT_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
