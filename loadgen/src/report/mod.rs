//! The end of a run: a table to read, JSON to keep and an HTML page to show. The keys of the JSON are
//! an interface; they are the same in every run, and null where a value is not known.

pub mod charts;
pub mod chat;
pub mod churn;
pub mod group;
pub mod handover;
pub mod handshake;
pub mod keys;
pub mod offline;
pub mod page;
pub mod pressure;
pub mod rows;
pub mod svg;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::measure::Measure;

/// Times; whole numbers are microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Percentiles<T = u64> {
    pub p50: T,
    pub p90: T,
    pub p99: T,
    pub p999: T,
    pub max: T,
}

impl Percentiles {
    /// From the intended send time, for latencies.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: histogram.max() }
    }

    /// The same in milliseconds, with two digits behind the point.
    pub fn ms(self) -> Percentiles<f64> {
        let Self { p50, p90, p99, p999, max } = self;
        let [p50, p90, p99, p999, max] =
            [p50, p90, p99, p999, max].map(|us| round(us as f64 / 1e3));
        Percentiles { p50, p90, p99, p999, max }
    }
}

/// What became of messages.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Tally {
    pub sent: u64,
    pub accepted: u64,
    pub rejected: u64,
    pub delivered: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
}

impl From<&Measure> for Tally {
    fn from(measure: &Measure) -> Self {
        Self {
            sent: measure.sent,
            accepted: measure.accepted,
            rejected: measure.rejected,
            delivered: measure.delivered,
            lost: measure.lost,
            duplicated: measure.duplicated,
            reordered: measure.reordered,
        }
    }
}

/// What the server's metrics said before and after a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServerUse {
    pub cpu_seconds: f64,
    pub rss_bytes: u64,
    /// Memory of the indexes of the mailboxes.
    pub index_bytes: Option<u64>,
    /// Records in the mailboxes.
    pub queued_records: Option<u64>,
}

impl ServerUse {
    /// Bytes of the index for each record in a mailbox.
    pub fn index_bytes_per_record(&self) -> Option<f64> {
        let (bytes, records) = self.index_bytes.zip(self.queued_records)?;
        (records > 0).then(|| round(bytes as f64 / records as f64))
    }
}

/// Two decimals are more than such a number can bear.
pub fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
