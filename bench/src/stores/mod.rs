//! The same durable queue work on several stores: batches of messages for many queues, one durable
//! commit per batch, and what the batch before had is acknowledged, and so deleted, with it.
//!
//! Beside them what the disk does at all: [`plain_file`], and [`fio`], which is not ours.

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::disk::{BackgroundDisk, files_in};
use crate::fixture;
use crate::store::{OpenStore, open};

pub mod fio;
pub mod plain_file;
mod in_fjall;
mod in_redb;

/// What does the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum System {
    /// Only the bytes, by `fio`.
    Fio,
    /// Only the bytes, by this program.
    File,
    /// Our store, a batch formed while the one before is written, as the gateway does it; nothing
    /// is deleted.
    Append,
    /// Our store, a batch formed when the one before is durable; nothing is deleted.
    InTurn,
    /// Our store, with reads and acknowledgements.
    Queue,
    Fjall,
    Redb,
}

/// The work of one turn.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    pub batches: u32,
    pub messages_per_batch: u32,
    pub envelope_bytes: usize,
    /// What our store writes for such a batch, its padding included.
    pub bytes_per_batch: usize,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Time in which batches were made and committed.
    pub time: Duration,
    /// With what a store does ahead, or puts off: zeros ahead of the log.
    pub time_all_in: Duration,
    /// Rising.
    pub batch_times: Vec<Duration>,
}

impl System {
    pub fn name(self) -> &'static str {
        match self {
            Self::Fio => "fio",
            Self::File => "plain file",
            Self::Append => "ringpost, append",
            Self::InTurn => "ringpost, in turn",
            Self::Queue => "ringpost, queue",
            Self::Fjall => "fjall, queue",
            Self::Redb => "redb, queue",
        }
    }

    /// Does `work` in the empty `directory`.
    pub fn run(self, work: &Work, directory: &Path) -> Result<Outcome, Box<dyn Error>> {
        match self {
            Self::Fio => fio::run(work, directory),
            Self::File => plain_file::run(work, directory),
            Self::Append => Ok(in_ringpost_overlapped(work, directory)),
            Self::InTurn => Ok(in_ringpost(work, directory, false)),
            Self::Queue => Ok(in_ringpost(work, directory, true)),
            Self::Fjall => in_fjall::run(work, directory),
            Self::Redb => in_redb::run(work, directory),
        }
    }
}

impl Outcome {
    /// Runs `batch` so often as the work says.
    fn timed(
        work: &Work,
        mut batch: impl FnMut(u64) -> Result<(), Box<dyn Error>>,
    ) -> Result<Self, Box<dyn Error>> {
        let mut batch_times = Vec::new();
        for number in 0..u64::from(work.batches) {
            let started = Instant::now();
            batch(number)?;
            batch_times.push(started.elapsed());
        }
        let time = batch_times.iter().sum();
        Ok(Self::of(time, time, batch_times))
    }

    fn of(time: Duration, time_all_in: Duration, mut batch_times: Vec<Duration>) -> Self {
        batch_times.sort_unstable();
        Self { time, time_all_in, batch_times }
    }

    /// The time that so many of a hundred batches stay below.
    pub fn percentile(&self, percent: usize) -> Duration {
        let last = self.batch_times.len() - 1;
        self.batch_times[(self.batch_times.len() * percent / 100).min(last)]
    }
}

impl Work {
    /// The bytes of one batch as our store writes it, found by writing some.
    pub fn bytes_per_batch(messages_per_batch: u32, envelope_bytes: usize) -> usize {
        let mut disk = crate::disk::NullDisk;
        let (store, _) = open(&mut disk);
        let mut store = OpenStore::with(store, disk, envelope_bytes, QUEUES);
        let before = store.batch_bytes_written();
        (0..messages_per_batch).for_each(|_| store.append());
        store.commit();
        let bytes = store.batch_bytes_written() - before;
        usize::try_from(bytes).expect("a batch is small").next_multiple_of(BLOCK_BYTES)
    }

    /// Queue and number of message `index` of all.
    fn key(index: u64) -> (u64, u64) {
        (fixture::mailbox(index % QUEUES).0, index)
    }

    /// Messages of batch `number`, as indices.
    fn messages(&self, number: u64) -> std::ops::Range<u64> {
        let count = u64::from(self.messages_per_batch);
        number * count..(number + 1) * count
    }

    /// What is deleted with batch `number`: the batch before it.
    fn deleted(&self, number: u64) -> std::ops::Range<u64> {
        number.checked_sub(1).map_or(0..0, |before| self.messages(before))
    }
}

fn in_ringpost(work: &Work, directory: &Path, acknowledges: bool) -> Outcome {
    let began = Instant::now();
    let mut disk = files_in(directory);
    let (store, _) = open(&mut disk);
    let mut store = OpenStore::with(store, disk, work.envelope_bytes, QUEUES);
    let mut batch_times = Vec::new();
    for _ in 0..work.batches {
        let started = Instant::now();
        if acknowledges {
            store.take_all(drop);
        }
        (0..work.messages_per_batch).for_each(|_| store.append());
        store.commit();
        batch_times.push(started.elapsed());
        store.prepare();
    }
    Outcome::of(batch_times.iter().sum(), began.elapsed(), batch_times)
}

/// One batch is on its way to the disk, the next one is formed meanwhile. The time of a batch is
/// that between two durable ones.
fn in_ringpost_overlapped(work: &Work, directory: &Path) -> Outcome {
    let began = Instant::now();
    let mut disk = files_in(directory);
    let (store, _) = open(&mut disk);
    let mut store = OpenStore::with(store, disk, work.envelope_bytes, QUEUES);
    let background = BackgroundDisk::new(files_in(directory));
    let mut batch_times = Vec::new();
    let mut last = Instant::now();
    for number in 0..=work.batches {
        if number < work.batches {
            for message in 0..work.messages_per_batch {
                if message.is_multiple_of(MESSAGES_PER_TURN) {
                    store.turn(&background);
                }
                store.append();
            }
        }
        if number > 0 {
            store.finish_commit(&background);
            let now = Instant::now();
            batch_times.push(now - last);
            last = now;
        }
        store.begin_commit(&background);
    }
    Outcome::of(batch_times.iter().sum(), began.elapsed(), batch_times)
}

/// A turn of the gateway takes some messages, and then looks what its disk has done.
const MESSAGES_PER_TURN: u32 = 32;
/// Queues that the messages are spread over.
pub const QUEUES: u64 = 1000;
/// Length of a segment, and so of the file that the bytes alone are written into.
const SEGMENT_BYTES: usize = 64 << 20;
/// So much of it is used, so that our store stays in its first one.
pub const BYTES_MAX: usize = 48 << 20;
const BLOCK_BYTES: usize = 4096;
