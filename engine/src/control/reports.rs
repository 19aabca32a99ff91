//! What shards and the directory tell the control thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;

use super::keys::Demand;

/// One shard's voice. Dropped before [`ShardReporter::drained`] it reports a failure, so a shard
/// whose thread ends cannot go unnoticed.
#[derive(Debug)]
pub struct ShardReporter {
    shard: u16,
    reports: mpsc::Sender<ShardReport>,
    /// Not a report: it may change often, and only the present state counts.
    reopening: Arc<AtomicBool>,
    key_demand: Arc<Demand>,
    settled: bool,
}

/// What the shards report, for [`Control`](super::Control).
#[derive(Debug)]
pub struct ShardReports {
    pub(super) reports: mpsc::Receiver<ShardReport>,
    /// In the order of the shards.
    pub(super) reopening: Vec<Arc<AtomicBool>>,
    pub(super) key_demand: Arc<Demand>,
}

/// The directory's voice. Dropped before [`DirectoryReporter::ended`] it reports a failure.
#[derive(Debug)]
pub struct DirectoryReporter {
    reports: mpsc::Sender<ShardReport>,
    settled: bool,
}

#[derive(Debug)]
pub(super) enum ShardReport {
    Shard { shard: u16, state: ShardState },
    DirectoryFailed(String),
}

#[derive(Debug)]
pub(super) enum ShardState {
    Ready,
    Drained,
    Failed(String),
}

/// A reporter per shard, in order, and the receiving end.
pub fn shard_reports(shards: u16) -> (Vec<ShardReporter>, ShardReports) {
    let (reports, receiver) = mpsc::channel(usize::from(shards) * REPORTS_PER_SHARD + 1);
    let key_demand = Arc::<Demand>::default();
    let reporters: Vec<_> = (0..shards)
        .map(|shard| ShardReporter {
            shard,
            reports: reports.clone(),
            reopening: Arc::default(),
            key_demand: Arc::clone(&key_demand),
            settled: false,
        })
        .collect();
    let reopening = reporters.iter().map(|reporter| Arc::clone(&reporter.reopening)).collect();
    (reporters, ShardReports { reports: receiver, reopening, key_demand })
}

impl DirectoryReporter {
    /// For the directory that `shard` asks.
    pub fn beside(shard: &ShardReporter) -> Self {
        Self { reports: shard.reports.clone(), settled: false }
    }

    /// All that was asked is answered, and nobody can ask any more.
    pub fn ended(mut self) {
        self.settled = true;
    }

    /// The directory cannot go on; the process ends with exit code 1.
    pub fn failed(mut self, text: impl Into<String>) {
        self.report(text.into());
    }

    fn report(&mut self, text: String) {
        self.settled = true;
        // Closed means that control has ended and nobody needs to know.
        let _ = self.reports.try_send(ShardReport::DirectoryFailed(text));
    }
}

impl Drop for DirectoryReporter {
    fn drop(&mut self) {
        if !self.settled {
            self.report("its thread ended unexpectedly".to_owned());
        }
    }
}

impl ShardReporter {
    pub fn shard(&self) -> u16 {
        self.shard
    }

    /// The shard has recovered its store and accepts connections. Called once.
    pub fn ready(&self) {
        self.report(ShardState::Ready);
    }

    /// Whether the shard's store has failed and is not open again.
    pub fn set_reopening(&self, reopening: bool) {
        self.reopening.store(reopening, Ordering::Relaxed);
    }

    /// A token names a key that is not known; perhaps it is new.
    pub fn unknown_key(&self) {
        self.key_demand.raise();
    }

    /// The shard has flushed and synced everything.
    pub fn drained(mut self) {
        self.settled = true;
        self.report(ShardState::Drained);
    }

    /// The shard cannot go on; the process ends with exit code 1.
    pub fn failed(mut self, text: impl Into<String>) {
        self.settled = true;
        self.report(ShardState::Failed(text.into()));
    }

    fn report(&self, state: ShardState) {
        // Full cannot be, closed means that control has ended and nobody needs to know.
        let _ = self.reports.try_send(ShardReport::Shard { shard: self.shard, state });
    }
}

impl Drop for ShardReporter {
    fn drop(&mut self) {
        if !self.settled {
            self.report(ShardState::Failed("its thread ended unexpectedly".to_owned()));
        }
    }
}

/// Ready, drained or failed, and one to spare.
const REPORTS_PER_SHARD: usize = 3;
