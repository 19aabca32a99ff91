//! The thread that writes: many lines at a time, and few of what strangers can cause.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{AuditEvent, Pseudonyms, Shared};
use crate::limits::AUDIT_REFUSED_PER_SECOND_MAX;

pub(super) enum Job {
    Write {
        unix_ms: u64,
        event: AuditEvent,
    },
    /// Answered when everything before it is on disk.
    Flush(Sender<()>),
}

pub(super) struct Writer {
    queue: Receiver<Job>,
    shared: Arc<Shared>,
    file: Option<File>,
    pseudonyms: Pseudonyms,
    /// Lines that are not written yet, and how many.
    text: String,
    lines: u64,
    quota: Quota,
    failing: bool,
}

/// Refused logins of one second: so many get a line, the others are counted.
#[derive(Debug, Default)]
struct Quota {
    second: u64,
    used: u64,
    left_out: u64,
}

impl Writer {
    pub(super) fn new(
        queue: Receiver<Job>,
        shared: Arc<Shared>,
        file: Option<File>,
        pseudonyms: Pseudonyms,
    ) -> Self {
        Self {
            queue,
            shared,
            file,
            pseudonyms,
            text: String::new(),
            lines: 0,
            quota: Quota::default(),
            failing: false,
        }
    }

    /// Until nobody can record any more.
    pub(super) fn run(mut self) {
        loop {
            match self.queue.recv_timeout(IDLE) {
                Ok(job) => self.handle(job),
                Err(RecvTimeoutError::Timeout) => self.tell_left_out(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            while self.text.len() < BATCH_BYTES_MAX
                && let Ok(job) = self.queue.try_recv()
            {
                self.handle(job);
            }
            self.write();
        }
        self.tell_left_out();
        self.write();
    }

    fn handle(&mut self, job: Job) {
        match job {
            Job::Write { unix_ms, event } => {
                if unix_ms / 1_000 != self.quota.second {
                    self.tell_left_out();
                    self.quota = Quota { second: unix_ms / 1_000, ..Quota::default() };
                }
                if !event.is_refused_login() || self.quota.take() {
                    self.put(unix_ms, &event);
                }
            }
            Job::Flush(done) => {
                self.tell_left_out();
                self.write();
                if let Some(file) = &self.file
                    && let Err(error) = file.sync_data()
                {
                    tracing::warn!(%error, "the audit log cannot be synced");
                }
                let _ = done.send(()); // nobody waits any more
            }
        }
    }

    fn tell_left_out(&mut self) {
        let count = std::mem::take(&mut self.quota.left_out);
        if count > 0 {
            self.put(self.quota.second * 1_000, &AuditEvent::LoginRefusedMore { count });
        }
    }

    fn put(&mut self, unix_ms: u64, event: &AuditEvent) {
        self.text.push_str(&event.line(unix_ms, &self.pseudonyms));
        self.text.push('\n');
        self.lines += 1;
    }

    fn write(&mut self) {
        let next = self.shared.next_file.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(next) = next {
            self.file = next;
        }
        let (text, lines) = (std::mem::take(&mut self.text), std::mem::take(&mut self.lines));
        let Some(file) = self.file.as_mut().filter(|_| lines > 0) else { return };
        match file.write_all(text.as_bytes()) {
            Ok(()) => {
                self.shared.lines.fetch_add(lines, Ordering::Relaxed);
                self.failing = false;
            }
            Err(error) => {
                self.shared.dropped.fetch_add(lines, Ordering::Relaxed);
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::error!(%error, "the audit log cannot be written");
                }
            }
        }
    }
}

impl Quota {
    fn take(&mut self) -> bool {
        if self.used < AUDIT_REFUSED_PER_SECOND_MAX {
            self.used += 1;
            return true;
        }
        self.left_out += 1;
        false
    }
}

/// After so long without an event, what was left out is told.
const IDLE: Duration = Duration::from_secs(1);
const BATCH_BYTES_MAX: usize = 64 << 10;
