//! Opening a store: read everything, cut the torn tail, quarantine damage, rebuild the index.
//!
//! Batches are numbered without gaps, and each attests its predecessor. A number that is missing
//! before a later batch, or below the `first_batch` of a later segment, was durable: corruption.
//! What follows the last good batch of an open was never reported durable: torn, and cut. The cut
//! is for ever, since the next open begins a new segment that states its first number.

mod files;
mod image;
mod reread;

use std::collections::VecDeque;
use std::fmt;
use std::mem;

use bytes::Bytes;
use ringpost_protocol::mutant::{Mutant, is_active};

use crate::batch::{BATCH_HEAD_BYTES, BatchHead, Scan, Scanner};
use crate::checkpoint::{Found, Load, Loaded};
use crate::disk::{
    CheckpointId, DiskError, DiskErrorKind, DiskOp, DiskOpId, DiskOutcome, FileId, SegmentId,
};
use crate::fault::OpenFault;
use crate::limits::{
    BATCH_BYTES_MAX, BLOCK_BYTES, CHECKPOINT_CHUNK_BYTES_MAX, CHECKPOINT_CHUNK_BYTES_MIN,
    FILL_CHUNK_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, StoreConfig,
};
use crate::readahead::{ReadAhead, Taken};
use crate::rebuild::Rebuild;
use crate::store::Store;

use self::files::File;
use self::reread::{Reread, Unreadable};

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
    /// The last segment that holds anything: its number, the end of its batches, and of its file.
    last: Option<(SegmentId, u32, u32)>,
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

#[derive(Debug)]
struct FileScan {
    scanner: Scanner,
    /// Where it began.
    from: u32,
    /// Batches from here on are the torn tail of an earlier open.
    limit: u64,
    /// End of the last good batch of this file.
    good_end: u32,
    batches: u64,
    /// First block that is neither good nor zeros, since the last good batch.
    damage: Option<u32>,
    any_damage: bool,
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

/// How far the opening is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub bytes_read: u64,
    pub bytes_total: u64,
}

/// A range that is damaged though it was attested durable. Its records are not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedRange {
    pub segment: SegmentId,
    pub offset: u64,
    pub end: u64,
    /// Numbers of the batches that are missing.
    pub first_batch: u64,
    pub last_batch: u64,
}

impl fmt::Display for DamagedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, offset, end, first_batch, last_batch } = self;
        write!(f, "{segment} from byte {offset} to {end}, batches {first_batch} to {last_batch}")
    }
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    pub open_count: u32,
    pub segments: usize,
    pub batches: u64,
    pub records: u64,
    pub bytes_read: u64,
    pub devices: usize,
    pub mailboxes: usize,
    pub entries: u64,
    /// Corruption: at or below a later attestation.
    pub damaged: Vec<DamagedRange>,
    /// Blocks that the disk refused to read though asked three times.
    pub unreadable_blocks: u64,
    /// Torn tail: the place where the log was cut, if anything but zeros followed.
    pub cut_at: Option<(SegmentId, u64)>,
    /// The checkpoint that was used, and how much of such files was read.
    pub checkpoint: Option<CheckpointId>,
    pub checkpoint_bytes_read: u64,
    /// Entries of the checkpoint that were deleted, and reclaimed with their segment, since.
    pub outdated_entries: u64,
    /// Segments that were prepared but never used, and removed.
    pub unused_segments: usize,
}

impl Opening {
    /// `hash_seed`: a random number for the hash tables of this run.
    pub fn new(config: StoreConfig, hash_seed: u64) -> Self {
        let state = match check(&config) {
            Ok(()) => State::List,
            Err(fault) => State::Failed(fault),
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
        let last = self.files.last().map_or(SegmentId(0), |file| file.segment);
        let next_batch = self.expected.unwrap_or(1);
        let current = report.checkpoint;
        let highest = self.checkpoints.first().map_or(0, |(id, _)| id.0);
        let found = Found { current, highest, log_bytes: self.rebuild.log_bytes };
        let (store, outdated) =
            self.rebuild.finish(self.config, open_count, next_batch, last, found);
        report.outdated_entries = outdated;
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

    /// Scans a file from the batch at `from`.
    fn begin_scan(&mut self, file: usize, from: u32) -> State {
        let Some(File { segment, bytes, first_batch, .. }) = self.files.get(file) else {
            return match self.check_end() {
                Ok(()) => self.end_replay(),
                Err(fault) => State::Failed(fault),
            };
        };
        // Numbers below a later segment's first one that did not turn up are lost.
        if let (Some(first), Some(expected)) = (*first_batch, self.expected)
            && expected < first
        {
            let before = file.checked_sub(1).map(|file| &self.files[file]);
            let (segment, end) = before.map_or((*segment, 0), |file| (file.segment, file.bytes));
            let offset = self.rebuild.log_end(segment);
            self.report.damaged.push(DamagedRange {
                segment,
                offset: u64::from(offset),
                end: u64::from(end),
                first_batch: expected,
                last_batch: first - 1,
            });
            self.report.cut_at = None;
        }
        if let Some(first) = *first_batch {
            // It attests all that came before.
            self.unreadable.clear();
            self.expected = Some(self.expected.map_or(first, |expected| expected.max(first)));
        }
        let limit = self.files[file + 1..].iter().find_map(|later| later.first_batch);
        self.rebuild.begin_segment(*segment);
        self.reads.begin((*segment).into(), u64::from(from), u64::from(*bytes));
        let scanner = Scanner::new(self.config.origin(), *segment, *bytes, BLOCK_BYTES);
        let scan = FileScan {
            scanner: scanner.starting_at(from),
            from,
            limit: limit.unwrap_or(u64::MAX),
            good_end: from,
            batches: 0,
            damage: None,
            any_damage: false,
        };
        State::Scan { file, scan }
    }

    fn scan(&mut self, file: usize, mut scan: FileScan, id: DiskOpId) -> (State, Next) {
        loop {
            match scan.scanner.next() {
                Scan::More { .. } => match self.reads.take() {
                    Taken::Piece(asked_bytes, piece) => {
                        self.progress.bytes_read += piece.len() as u64;
                        scan.scanner.extend(asked_bytes, piece);
                    }
                    Taken::Failed(refused) => {
                        let piece = Box::new(Reread::new(&refused));
                        return (State::Reread { file, scan, piece }, Next::Go);
                    }
                    Taken::Later => {
                        let next = self.reads.poll(id).map_or(Next::Wait, Next::ReadAhead);
                        return (State::Scan { file, scan }, next);
                    }
                    Taken::End => return (self.end_scan(file, &scan), Next::Go),
                },
                Scan::Batch { head, offset, bytes }
                    if head.number < scan.limit
                        && self.expected.is_none_or(|expected| head.number >= expected) =>
                {
                    if let Err(fault) = self.accept(&mut scan, head, offset, &bytes) {
                        self.reads.abandon();
                        return (State::Failed(fault), Next::Go);
                    }
                }
                Scan::Batch { offset, .. } => scan.note_damage(offset),
                Scan::Damage { offset } => {
                    scan.any_damage = true;
                    scan.note_damage(offset);
                }
                Scan::End => return (self.end_scan(file, &scan), Next::Go),
            }
        }
    }

    fn accept(
        &mut self,
        scan: &mut FileScan,
        head: BatchHead,
        offset: u32,
        bytes: &Bytes,
    ) -> Result<(), OpenFault> {
        let segment = scan.scanner.segment;
        if let Some(expected) = self.expected
            && expected < head.number
        {
            self.report.damaged.push(DamagedRange {
                segment,
                offset: u64::from(scan.good_end),
                end: u64::from(offset),
                first_batch: expected,
                last_batch: head.number - 1,
            });
        }
        self.rebuild.batch(segment, offset, &head, &bytes[BATCH_HEAD_BYTES..])?;
        self.expected = Some(head.number + 1);
        self.unattested = Some(LastBatch { segment, offset, bytes: bytes.clone() });
        self.report.batches += 1;
        self.report.records += u64::from(head.records);
        self.report.cut_at = None;
        scan.good_end = self.rebuild.log_end(segment);
        scan.batches += 1;
        scan.damage = None;
        // They are found a piece at a time, so some may lie behind this batch.
        self.unreadable.retain(|block| block.offset > u64::from(offset));
        Ok(())
    }

    fn end_scan(&mut self, file: usize, scan: &FileScan) -> State {
        let File { segment, bytes, is_valid, .. } = self.files[file];
        if let Some(offset) = scan.damage {
            self.report.cut_at = Some((segment, u64::from(offset)));
        }
        let is_blank = scan.batches == 0 && !is_valid && !scan.any_damage;
        if is_blank && scan.from == BLOCK_BYTES {
            self.rebuild.drop_segment();
            self.unused.push_back(segment.into());
            self.report.unused_segments += 1;
        } else {
            self.last = Some((segment, scan.good_end, bytes));
            self.rebuild.end_segment(bytes);
            self.report.segments += 1;
        }
        self.begin_scan(file + 1, BLOCK_BYTES)
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

impl FileScan {
    fn note_damage(&mut self, offset: u32) {
        self.damage.get_or_insert(offset);
    }
}

fn check(config: &StoreConfig) -> Result<(), OpenFault> {
    let whole = |bytes: u32| bytes.is_multiple_of(BLOCK_BYTES);
    let segment_bytes = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
    if !segment_bytes.contains(&config.segment_bytes) || !whole(config.segment_bytes) {
        return Err(OpenFault::Config("segment_bytes: 128 KiB to 1 GiB, a multiple of 4096"));
    }
    let chunk = config.fill_chunk_bytes;
    if !(2 * BLOCK_BYTES..=FILL_CHUNK_BYTES_MAX).contains(&chunk) || !whole(chunk) {
        return Err(OpenFault::Config("fill_chunk_bytes: 8 KiB to 1 MiB, a multiple of 4096"));
    }
    if !(BLOCK_BYTES..=BATCH_BYTES_MAX).contains(&config.batch_bytes_max) {
        return Err(OpenFault::Config("batch_bytes_max: 4 KiB to 16 MiB"));
    }
    let chunk_bytes = CHECKPOINT_CHUNK_BYTES_MIN..=CHECKPOINT_CHUNK_BYTES_MAX;
    if !chunk_bytes.contains(&config.checkpoint_chunk_bytes) {
        return Err(OpenFault::Config("checkpoint_chunk_bytes: 512 to 262144"));
    }
    Ok(())
}
