//! What the directory counts. Its thread writes, the control thread reads.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::request::{Answer, Request};
use crate::metrics::{
    Histogram, Nanoseconds, Records, expose_counter, expose_gauge, expose_histogram,
};

/// Figures of the whole process.
#[derive(Debug)]
pub struct DirectoryMetrics {
    // Held for a few additions, by two threads that are not on the message path.
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    commits: u64,
    reads: u64,
    failures: u64,
    commit_time: Histogram<Nanoseconds>,
    batch: Histogram<Records>,
    one_time_keys: u64,
    handed_out: u64,
    exhausted: u64,
    limited: u64,
}

impl DirectoryMetrics {
    /// `stock`: the one-time keys that the directory holds.
    pub(super) fn new(stock: u64) -> Self {
        let counts = Counts { one_time_keys: stock, ..Counts::default() };
        Self { counts: Mutex::new(counts) }
    }

    /// A batch was carried out and has left so many one-time keys.
    pub(super) fn applied(
        &self,
        requests: &[Request],
        answers: &[Answer],
        took: Duration,
        stock: u64,
    ) {
        let counts = &mut *self.lock();
        counts.one_time_keys = stock;
        if requests.iter().all(Request::is_read) {
            counts.reads += 1;
        } else {
            counts.commits += 1;
            counts.commit_time.observe(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        }
        counts.batch.observe(requests.len() as u64);
        for taken in answers.iter().filter_map(bundles).flatten() {
            if taken.bundle.one_time_key.is_some() {
                counts.handed_out += 1;
            } else if taken.is_limited {
                counts.limited += 1;
            } else {
                counts.exhausted += 1;
            }
        }
    }

    pub(super) fn failed(&self) {
        self.lock().failures += 1;
    }

    /// Appends the text exposition.
    pub fn expose(&self, out: &mut String) {
        let counts = self.lock();
        let totals = [
            (
                "ringpost_directory_commits_total",
                "Durable commits of the directory.",
                counts.commits,
            ),
            (
                "ringpost_directory_reads_total",
                "Batches of the directory that changed nothing.",
                counts.reads,
            ),
            (
                "ringpost_directory_failures_total",
                "Times that the directory failed and was opened again.",
                counts.failures,
            ),
            (
                "ringpost_one_time_keys_handed_out_total",
                "One-time keys handed out, each once.",
                counts.handed_out,
            ),
            (
                "ringpost_one_time_keys_exhausted_total",
                "Bundles handed out without a one-time key, because the device has none left.",
                counts.exhausted,
            ),
            (
                "ringpost_one_time_keys_limited_total",
                "The same, because too many of the device were taken lately.",
                counts.limited,
            ),
        ];
        for (name, help, value) in totals {
            expose_counter(out, name, help, value);
        }
        let help = "One-time keys in stock.";
        expose_gauge(out, "ringpost_one_time_keys", help, counts.one_time_keys);
        let help = "Time of one durable commit of the directory.";
        expose_histogram(out, "ringpost_directory_commit_seconds", help, &counts.commit_time);
        let help = "Requests that the directory carried out together.";
        expose_histogram(out, "ringpost_directory_batch_requests", help, &counts.batch);
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Additions do not panic halfway.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bundles(answer: &Answer) -> Option<&Vec<super::TakenBundle>> {
    match answer {
        Answer::Bundles(bundles) => Some(bundles),
        _ => None,
    }
}
