//! Opening a store: read everything, cut the torn tail, quarantine damage, rebuild the index.
//!
//! Batches are numbered without gaps, and each attests its predecessor. A number that is missing
//! before a later batch, or below the `first_batch` of a later segment, was durable: corruption.
//! What follows the last good batch of an open was never reported durable: torn, and cut. The cut
//! is for ever, since the next open begins a new segment that states its first number.

mod files;
mod image;
mod replay;
mod report;
mod reread;

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;
use ringpost_protocol::mutant::{Mutant, is_active};

use crate::checkpoint::{Found, Load, Loaded};
use crate::disk::{
    CheckpointId, DiskError, DiskErrorKind, DiskOp, DiskOpId, DiskOutcome, FileId, SegmentId,
};
use crate::fault::OpenFault;
use crate::limits::{BLOCK_BYTES, StoreConfig};
use crate::readahead::ReadAhead;
use crate::rebuild::Rebuild;
use crate::store::Store;

use self::files::File;
use self::replay::{FileScan, LogEnd};
use self::reread::{Reread, Unreadable};

pub use self::report::{DamagedRange, Progress, RecoveryReport};

/// A store being opened. Run `poll_disk` until `None`, execute, `handle_disk`; repeat until
/// `is_done`, then `finish`.
#[derive(Debug)]
pub struct Opening {
    config: StoreConfig,
    state: State,
    /// The operation handed out and not yet answered.
    pending: Option<DiskOpId>,
    last_op: u64,
    files: Vec<File>,
    /// Newest first, with their lengths in bytes.
    checkpoints: Vec<(CheckpointId, u64)>,
    loaded: Option<Loaded>,
    hash_seed: u64,
    rebuild: Rebuild,
    reads: ReadAhead,
    /// Number of the batch that must come next; unknown before the first.
    expected: Option<u64>,
    /// Of the last segment that holds anything.
    last: Option<LogEnd>,
    /// Segments that were prepared and not used.
    blank: Vec<SegmentId>,
    /// The checkpoint spares the reading of some log.
    skips_log: bool,
    /// The last good batch, which nothing attests yet.
    unattested: Option<LastBatch>,
    /// Blocks that no batch behind them attests yet.
    unreadable: Vec<Unreadable>,
    unused: VecDeque<FileId>,
    /// The directory is to be synced.
    removed: bool,
    progress: Progress,
    report: RecoveryReport,
}

/// A batch, without its padding.
#[derive(Debug)]
struct LastBatch {
    segment: SegmentId,
    offset: u32,
    bytes: Bytes,
}

#[derive(Debug)]
enum State {
    List,
    Headers {
        file: usize,
    },
    /// Reads the end of a checkpoint, by its place in the list.
    Tail {
        checkpoint: usize,
    },
    Load {
        checkpoint: usize,
        load: Box<Load>,
    },
    Scan {
        file: usize,
        scan: FileScan,
    },
    /// What reading ahead did not get.
    Reread {
        file: usize,
        scan: FileScan,
        piece: Box<Reread>,
    },
    /// Writes the last batch once more: after a failed sync the page cache may show it and count it
    /// as written, and no later sync would bring it to the disk.
    Rewrite,
    /// Makes durable what is in the page cache only, before it is served.
    Sync,
    Unlink,
    SyncDir,
    Done,
    Failed(OpenFault),
}

/// How a state goes on.
enum Next {
    /// Waits for the answer of this operation.
    Ask(DiskOp),
    /// A read that others may overtake.
    ReadAhead(DiskOp),
    /// Waits for a read that is under way.
    Wait,
    Go,
}

impl Opening {
    /// `hash_seed`: a random number for the hash tables of this run.
    pub fn new(config: StoreConfig, hash_seed: u64) -> Self {
        let state = match config.check() {
            Ok(()) => State::List,
            Err(wrong) => State::Failed(OpenFault::Config(wrong)),
        };
        Self {
            config,
            state,
            pending: None,
            last_op: 0,
            files: Vec::new(),
            checkpoints: Vec::new(),
            loaded: None,
            hash_seed,
            rebuild: Rebuild::new(hash_seed),
            reads: ReadAhead::default(),
            expected: None,
            last: None,
            blank: Vec::new(),
            skips_log: false,
            unattested: None,
            unreadable: Vec::new(),
            unused: VecDeque::new(),
            removed: false,
            progress: Progress::default(),
            report: RecoveryReport::default(),
        }
    }

    /// The next disk operation; `None` until one is answered, or when done. Several reads may be
    /// under way, and complete in any order.
    pub fn poll_disk(&mut self) -> Option<(DiskOpId, DiskOp)> {
        while self.pending.is_none() {
            let id = DiskOpId(self.last_op + 1);
            let state = mem::replace(&mut self.state, State::Done);
            let (state, next) = self.step(state, id);
            self.state = state;
            match next {
                Next::Ask(op) => {
                    self.pending = Some(id);
                    self.last_op = id.0;
                    return Some((id, op));
                }
                Next::ReadAhead(op) => {
                    self.last_op = id.0;
                    return Some((id, op));
                }
                Next::Wait => return None,
                Next::Go => {}
            }
        }
        None
    }

    pub fn handle_disk(&mut self, id: DiskOpId, result: Result<DiskOutcome, DiskError>) {
        if self.pending != Some(id) {
            return self.reads.handle(id, result);
        }
        self.pending = None;
        let state = mem::replace(&mut self.state, State::Done);
        self.state = match result {
            Ok(outcome) => self.answered(state, outcome),
            Err(error) => self.refused(state, error),
        };
    }

    /// Opened, or failed: call `finish`.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done | State::Failed(_)) && self.reads.is_idle()
    }

    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The store, or why there is none.
    ///
    /// # Panics
    /// Before [`Self::is_done`].
    pub fn finish(self) -> Result<(Store, RecoveryReport), OpenFault> {
        match self.state {
            State::Done => {}
            State::Failed(fault) => return Err(fault),
            _ => panic!("the store is still being opened"),
        }
        let mut report = self.report;
        let known = self.files.iter().filter_map(|file| file.open_count).max().unwrap_or(0);
        let step = u32::from(!is_active(Mutant::SeqReusedAfterCrash));
        let open_count = known.max(self.rebuild.open_count).saturating_add(step).max(1);
        if open_count >= 1 << 24 {
            return Err(OpenFault::OpensUsedUp);
        }
        let next_batch = self.expected.unwrap_or(1);
        let current = report.checkpoint;
        let highest = self.checkpoints.first().map_or(0, |(id, _)| id.0);
        let found = Found { current, highest, log_bytes: self.rebuild.log_bytes };
        let named = self.loaded.map_or(SegmentId(0), |loaded| loaded.end.last_named());
        let (mut store, dropped) =
            self.rebuild.finish(self.config, open_count, next_batch, named, found);
        report.outdated_entries = dropped.outdated;
        report.lost_entries = dropped.lost.len() as u64;
        store.stats.lost_batches = report.lost_batches();
        let stats = store.stats();
        report.open_count = open_count;
        report.devices = store.devices.len();
        report.mailboxes = store.mailboxes.len();
        report.entries = stats.entries;
        report.bytes_read = self.progress.bytes_read;
        Ok((store, report))
    }

    /// Goes on without an answer. `id` is that of the next operation.
    fn step(&mut self, state: State, id: DiskOpId) -> (State, Next) {
        match state {
            State::List => (state, Next::Ask(DiskOp::List)),
            State::Headers { file } => match self.files.get(file) {
                Some(File { segment, .. }) => {
                    let (file, length_bytes) = ((*segment).into(), 2 * BLOCK_BYTES);
                    (state, Next::Ask(DiskOp::Read { file, offset: 0, length_bytes }))
                }
                None => (State::Tail { checkpoint: 0 }, Next::Go),
            },
            State::Tail { checkpoint } => self.tail(checkpoint),
            State::Load { checkpoint, load } => self.load(checkpoint, load, id),
            State::Scan { file, scan } => self.scan(file, scan, id),
            State::Reread { file, scan, piece } => {
                let next = piece.poll(scan.scanner.segment);
                (State::Reread { file, scan, piece }, next)
            }
            State::Rewrite => match &self.unattested {
                Some(LastBatch { segment, offset, bytes }) => {
                    let (file, offset, data) =
                        ((*segment).into(), u64::from(*offset), bytes.clone());
                    (state, Next::Ask(DiskOp::Write { file, offset, data }))
                }
                None => (State::Unlink, Next::Go),
            },
            State::Sync => match &self.unattested {
                Some(last) => (state, Next::Ask(DiskOp::SyncData { file: last.segment.into() })),
                None => (State::Unlink, Next::Go),
            },
            State::Unlink => match self.unused.front() {
                Some(file) => (state, Next::Ask(DiskOp::Unlink { file: *file })),
                None if self.removed => (State::SyncDir, Next::Go),
                None => (State::Done, Next::Go),
            },
            State::SyncDir => (state, Next::Ask(DiskOp::SyncDir)),
            State::Done | State::Failed(_) => (state, Next::Wait),
        }
    }

    fn answered(&mut self, state: State, outcome: DiskOutcome) -> State {
        match (state, outcome) {
            (State::List, DiskOutcome::Listed(files)) => match self.listed(files) {
                Ok(()) => State::Headers { file: 0 },
                Err(fault) => State::Failed(fault),
            },
            (State::Headers { file }, DiskOutcome::Read(bytes)) => {
                match self.read_header(file, &bytes) {
                    Ok(()) => State::Headers { file: file + 1 },
                    Err(fault) => State::Failed(fault),
                }
            }
            (State::Tail { checkpoint }, DiskOutcome::Read(bytes)) => {
                self.begin_load(checkpoint, &bytes)
            }
            (State::Reread { file, scan, piece }, DiskOutcome::Read(bytes)) => {
                self.reread(file, scan, piece, &bytes)
            }
            (State::Rewrite, DiskOutcome::Done) => State::Sync,
            (State::Sync, DiskOutcome::Done) => State::Unlink,
            (State::Unlink, DiskOutcome::Done) => {
                self.unused.pop_front();
                self.removed = true;
                State::Unlink
            }
            (State::SyncDir, DiskOutcome::Done) => State::Done,
            (state, _) => {
                let text = "the driver's answer is of another operation".into();
                let error = DiskError { kind: DiskErrorKind::Io, text };
                State::Failed(self.disk_fault(&state, error))
            }
        }
    }

    fn refused(&mut self, state: State, error: DiskError) -> State {
        let state = match state {
            State::Reread { file, scan, piece } => {
                return self.reread_refused(file, scan, piece, error);
            }
            other => other,
        };
        match (&state, self.unused.front()) {
            // Nothing depends on a checkpoint, neither on reading one nor on its absence.
            (State::Tail { checkpoint }, _) => State::Tail { checkpoint: checkpoint + 1 },
            (State::Unlink, Some(FileId::Checkpoint(_))) => {
                self.unused.pop_front();
                state
            }
            _ => State::Failed(self.disk_fault(&state, error)),
        }
    }

    fn disk_fault(&self, state: &State, error: DiskError) -> OpenFault {
        let (step, segment) = match state {
            State::List => ("listing", None),
            State::Headers { file } => ("read of a header", Some(self.files[*file].segment)),
            State::Scan { scan, .. } | State::Reread { scan, .. } => {
                ("read", Some(scan.scanner.segment))
            }
            State::Rewrite => ("write", self.unattested.as_ref().map(|last| last.segment)),
            State::Sync => ("sync", self.unattested.as_ref().map(|last| last.segment)),
            State::Unlink => match self.unused.front() {
                Some(FileId::Segment(segment)) => ("removal of an unused segment", Some(*segment)),
                _ => ("removal of a checkpoint", None),
            },
            State::Tail { .. } | State::Load { .. } => ("read of a checkpoint", None),
            State::SyncDir | State::Done | State::Failed(_) => ("sync", None),
        };
        OpenFault::Disk { step, segment, error }
    }
}
