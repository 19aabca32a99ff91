//! The security audit log: who came in, who did not and why, and what an operator did. JSON lines in a
//! file of their own; `engine/AUDIT.md` has every event and field. No content, no token, no user id:
//! a user is a pseudonym that only the holder of the data directory can make.
//!
//! Whoever records an event does not wait: a thread of its own writes, its queue is bounded, and what
//! finds no room is counted.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

mod event;
mod pseudonym;
mod writer;

pub use self::event::{AuditEvent, Client};
pub use self::pseudonym::{Pseudonyms, SaltFault};
use self::writer::{Job, Writer};
use crate::limits::AUDIT_QUEUE_MAX;
use crate::metrics::expose_counter;

/// The way into the log, for every thread.
#[derive(Clone)]
pub struct AuditLog {
    jobs: SyncSender<Job>,
    shared: Arc<Shared>,
}

/// What the writer shares with everybody.
#[derive(Default)]
struct Shared {
    /// A newly opened file, or none at all, that the writer has not taken up yet.
    next_file: Mutex<Option<Option<File>>>,
    lines: AtomicU64,
    dropped: AtomicU64,
}

/// The log cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AuditFault {
    #[error("cannot open the audit log {}: {error}", path.display())]
    Open { path: PathBuf, error: io::Error },
    #[error(transparent)]
    Salt(#[from] SaltFault),
    #[error("cannot start the thread of the audit log: {0}")]
    Thread(io::Error),
}

/// A file that was opened for the log.
#[derive(Debug)]
pub struct AuditFile(Option<File>);

impl AuditFile {
    /// Opens `path` to append to it, made for its owner alone. `None`: nothing is logged.
    pub fn open(path: Option<&Path>) -> Result<Self, AuditFault> {
        use std::os::unix::fs::OpenOptionsExt;
        let Some(path) = path else { return Ok(Self(None)) };
        let file = File::options().append(true).create(true).mode(0o600).open(path);
        let fault = |error| AuditFault::Open { path: path.to_owned(), error };
        Ok(Self(Some(file.map_err(fault)?)))
    }

    /// Whether there is a directory for the file at `path`.
    pub fn directory_of(path: &Path) -> Result<(), AuditFault> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let listed = std::fs::read_dir(parent.unwrap_or_else(|| Path::new(".")));
        let fault = |error| AuditFault::Open { path: path.to_owned(), error };
        listed.map(|_| ()).map_err(fault)
    }

    pub fn is_open(&self) -> bool {
        self.0.is_some()
    }
}

impl AuditLog {
    /// Starts the thread that writes.
    pub fn start(file: AuditFile, pseudonyms: Pseudonyms) -> Result<Self, AuditFault> {
        let (jobs, queue) = mpsc::sync_channel(AUDIT_QUEUE_MAX);
        let log = Self { jobs, shared: Arc::default() };
        let writer = Writer::new(queue, Arc::clone(&log.shared), file.0, pseudonyms);
        let thread = std::thread::Builder::new().name("audit".to_owned());
        thread.spawn(move || writer.run()).map_err(AuditFault::Thread)?;
        Ok(log)
    }

    /// Queues an event, or counts it as dropped. Never waits.
    pub fn record(&self, event: AuditEvent) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        if self.jobs.try_send(Job::Write { unix_ms, event }).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// From here on lines go to `file`.
    pub fn change_file(&self, file: AuditFile) {
        let mut next = self.shared.next_file.lock().unwrap_or_else(PoisonError::into_inner);
        *next = Some(file.0);
    }

    /// Waits until what is queued is on disk, but not for ever.
    pub fn flush(&self) {
        let (done, is_done) = mpsc::channel();
        if self.jobs.try_send(Job::Flush(done)).is_ok() {
            let _ = is_done.recv_timeout(FLUSH_MAX); // a disk that hangs keeps nobody alive
        }
    }

    /// Appends the text exposition.
    pub fn expose(&self, out: &mut String) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let lines = count(&self.shared.lines);
        expose_counter(out, "ringpost_audit_lines_total", "Lines of the audit log written.", lines);
        let help = "Events of the audit log that had no room in its queue or on its disk.";
        expose_counter(out, "ringpost_audit_dropped_total", help, count(&self.shared.dropped));
    }
}

impl AuditFault {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Open { .. } => {
                "audit.path must be a file that this user may write, in a directory that exists"
            }
            Self::Salt(fault) => fault.fix(),
            Self::Thread(_) => "raise the limit of threads of this user (TasksMax=, ulimit -u)",
        }
        .to_owned()
    }
}

const FLUSH_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
