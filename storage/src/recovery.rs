//! Opening a store: read everything, cut the torn tail, quarantine damage, rebuild the index.
//!
//! Batches are numbered without gaps, and each attests its predecessor. A number that is missing
//! before a later batch, or below the `first_batch` of a later segment, was durable: corruption.
//! What follows the last good batch of an open was never reported durable: torn, and cut. The cut
//! is for ever, since the next open begins a new segment that states its first number.

use std::collections::VecDeque;
use std::fmt;
use std::mem;

use bytes::Bytes;
use ringpost_protocol::mutant::{Mutant, is_active};

use crate::batch::{BATCH_HEAD_BYTES, BatchHead, Scan, Scanner, index};
use crate::disk::{DiskError, DiskErrorKind, DiskOp, DiskOpId, DiskOutcome, FileId, SegmentId};
use crate::fault::OpenFault;
use crate::limits::{
    BATCH_BYTES_MAX, BLOCK_BYTES, FILL_CHUNK_BYTES_MAX, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN,
    StoreConfig,
};
use crate::rebuild::Rebuild;
use crate::segment::{Header, HeaderBlock};
use crate::store::Store;

/// A store being opened. Run `poll_disk` until `None`, execute, `handle_disk`; repeat until
/// `is_done`, then `finish`. One operation is under way at a time.
#[derive(Debug)]
pub struct Opening {
    config: StoreConfig,
    state: State,
    /// The operation handed out and not yet answered.
    pending: Option<DiskOpId>,
    last_op: u64,
    files: Vec<File>,
    rebuild: Rebuild,
    /// Number of the batch that must come next; unknown before the first.
    expected: Option<u64>,
    /// Segment of the last good batch, which nothing attests yet.
    unattested: Option<SegmentId>,
    unused: VecDeque<SegmentId>,
    progress: Progress,
    report: RecoveryReport,
}

#[derive(Debug)]
enum State {
    List,
    Headers {
        file: usize,
    },
    Scan {
        file: usize,
        scan: FileScan,
        read: Option<(u32, u32)>,
    },
    /// Makes durable what kill -9 may have left in the page cache only, before it is served.
    Sync,
    Unlink,
    SyncDir,
    Done,
    Failed(OpenFault),
}

/// One segment file and what its first block says.
#[derive(Debug)]
struct File {
    segment: SegmentId,
    bytes: u32,
    open_count: Option<u32>,
    first_batch: Option<u64>,
    /// The header is intact: the segment was in use.
    is_valid: bool,
}

#[derive(Debug)]
struct FileScan {
    scanner: Scanner,
    /// Batches from here on are the torn tail of an earlier open.
    limit: u64,
    /// End of the last good batch of this file.
    good_end: u32,
    batches: u64,
    /// First block that is neither good nor zeros, since the last good batch.
    damage: Option<u32>,
    any_damage: bool,
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
    /// Torn tail: the place where the log was cut, if anything but zeros followed.
    pub cut_at: Option<(SegmentId, u64)>,
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
            rebuild: Rebuild::new(hash_seed),
            expected: None,
            unattested: None,
            unused: VecDeque::new(),
            progress: Progress::default(),
            report: RecoveryReport::default(),
        }
    }

    /// The next disk operation; `None` while one is under way or when done.
    pub fn poll_disk(&mut self) -> Option<(DiskOpId, DiskOp)> {
        if self.pending.is_some() {
            return None;
        }
        loop {
            let state = mem::replace(&mut self.state, State::Done);
            let (state, op) = self.step(state);
            self.state = state;
            if let Some(op) = op {
                self.last_op += 1;
                let id = DiskOpId(self.last_op);
                self.pending = Some(id);
                return Some((id, op));
            }
            if self.is_done() {
                return None;
            }
        }
    }

    pub fn handle_disk(&mut self, id: DiskOpId, result: Result<DiskOutcome, DiskError>) {
        assert!(self.pending.take() == Some(id), "each operation is answered once");
        let state = mem::replace(&mut self.state, State::Done);
        self.state = match result {
            Ok(outcome) => self.answered(state, outcome),
            Err(error) => State::Failed(self.disk_fault(&state, error)),
        };
    }

    /// Opened, or failed: call `finish`.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done | State::Failed(_))
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
        let open_count = (known.max(self.rebuild.open_count) + step).max(1);
        if open_count >= 1 << 24 {
            return Err(OpenFault::OpensUsedUp);
        }
        let last = self.files.last().map_or(SegmentId(0), |file| file.segment);
        let next_batch = self.expected.unwrap_or(1);
        let store = self.rebuild.finish(self.config, open_count, next_batch, last);
        let stats = store.stats();
        report.open_count = open_count;
        report.devices = store.devices.len();
        report.mailboxes = store.mailboxes.len();
        report.entries = stats.entries;
        report.bytes_read = self.progress.bytes_read;
        Ok((store, report))
    }

    /// Goes on without an answer: the next state, or the operation that this one needs.
    fn step(&mut self, state: State) -> (State, Option<DiskOp>) {
        match state {
            State::List => (state, Some(DiskOp::List)),
            State::Headers { file } => match self.files.get(file) {
                Some(File { segment, .. }) => {
                    let length_bytes = 2 * BLOCK_BYTES;
                    let op = DiskOp::Read { file: (*segment).into(), offset: 0, length_bytes };
                    (state, Some(op))
                }
                None => (self.begin_scan(0), None),
            },
            State::Scan { file, scan, .. } => self.scan(file, scan),
            State::Sync => match self.unattested {
                Some(segment) => (state, Some(DiskOp::SyncData { file: segment.into() })),
                None => (State::Unlink, None),
            },
            State::Unlink => match self.unused.front() {
                Some(segment) => (state, Some(DiskOp::Unlink { file: (*segment).into() })),
                None if self.report.unused_segments > 0 => (State::SyncDir, None),
                None => (State::Done, None),
            },
            State::SyncDir => (state, Some(DiskOp::SyncDir)),
            State::Done | State::Failed(_) => (state, None),
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
            (State::Scan { file, mut scan, read }, DiskOutcome::Read(bytes)) => {
                let (offset, asked) = read.expect("a read was asked for");
                self.progress.bytes_read += bytes.len() as u64;
                scan.scanner.feed(offset, asked, bytes);
                State::Scan { file, scan, read: None }
            }
            (State::Sync, DiskOutcome::Done) => State::Unlink,
            (State::Unlink, DiskOutcome::Done) => {
                self.unused.pop_front();
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

    fn listed(&mut self, mut files: Vec<(FileId, u64)>) -> Result<(), OpenFault> {
        files.sort_unstable_by_key(|(file, _)| *file);
        for (file, bytes) in files {
            let FileId::Segment(segment) = file else { continue };
            let fits = u32::try_from(bytes).ok().filter(|bytes| *bytes <= SEGMENT_BYTES_MAX);
            let bytes = fits.ok_or(OpenFault::TooLong { segment, bytes })?;
            self.progress.bytes_total += u64::from(bytes.saturating_sub(BLOCK_BYTES));
            self.files.push(File {
                segment,
                bytes,
                open_count: None,
                first_batch: None,
                is_valid: false,
            });
        }
        Ok(())
    }

    fn read_header(&mut self, file: usize, bytes: &Bytes) -> Result<(), OpenFault> {
        let origin = self.config.origin();
        let file = &mut self.files[file];
        let block = bytes.get(index(BLOCK_BYTES)..).unwrap_or_default();
        match Header::decode(bytes, origin, file.segment)? {
            HeaderBlock::Valid(header) => {
                file.is_valid = true;
                file.open_count = Some(header.open_count);
                file.first_batch = Some(header.first_batch);
            }
            // The first batch says the same, if it is there.
            HeaderBlock::Blank | HeaderBlock::Damaged => {
                if let Some(head) = BatchHead::parse(block, origin, file.segment, BLOCK_BYTES) {
                    file.open_count = Some(head.open_count);
                    file.first_batch = Some(head.number);
                }
            }
        }
        Ok(())
    }

    fn begin_scan(&mut self, file: usize) -> State {
        let Some(File { segment, bytes, first_batch, .. }) = self.files.get(file) else {
            return State::Sync;
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
            self.expected = Some(self.expected.map_or(first, |expected| expected.max(first)));
        }
        let limit = self.files[file + 1..].iter().find_map(|later| later.first_batch);
        self.rebuild.begin_segment(*segment);
        let scan = FileScan {
            scanner: Scanner::new(self.config.origin(), *segment, *bytes, READ_BYTES),
            limit: limit.unwrap_or(u64::MAX),
            good_end: BLOCK_BYTES,
            batches: 0,
            damage: None,
            any_damage: false,
        };
        State::Scan { file, scan, read: None }
    }

    fn scan(&mut self, file: usize, mut scan: FileScan) -> (State, Option<DiskOp>) {
        let segment = scan.scanner.segment;
        loop {
            match scan.scanner.next() {
                Scan::More { offset, length_bytes } => {
                    let op = DiskOp::Read {
                        file: segment.into(),
                        offset: u64::from(offset),
                        length_bytes,
                    };
                    let read = Some((offset, length_bytes));
                    return (State::Scan { file, scan, read }, Some(op));
                }
                Scan::Batch { head, offset, bytes }
                    if head.number < scan.limit
                        && self.expected.is_none_or(|expected| head.number >= expected) =>
                {
                    if let Err(fault) = self.accept(&mut scan, head, offset, &bytes) {
                        return (State::Failed(fault), None);
                    }
                }
                Scan::Batch { offset, .. } => scan.note_damage(offset),
                Scan::Damage { offset } => {
                    scan.any_damage = true;
                    scan.note_damage(offset);
                }
                Scan::End => return (self.end_scan(file, &scan), None),
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
        self.unattested = Some(segment);
        self.report.batches += 1;
        self.report.records += u64::from(head.records);
        self.report.cut_at = None;
        scan.good_end = self.rebuild.log_end(segment);
        scan.batches += 1;
        scan.damage = None;
        Ok(())
    }

    fn end_scan(&mut self, file: usize, scan: &FileScan) -> State {
        let File { segment, bytes, is_valid, .. } = self.files[file];
        if let Some(offset) = scan.damage {
            self.report.cut_at = Some((segment, u64::from(offset)));
        }
        if scan.batches == 0 && !is_valid && !scan.any_damage {
            self.rebuild.drop_segment();
            self.unused.push_back(segment);
            self.report.unused_segments += 1;
        } else {
            self.rebuild.end_segment(bytes);
            self.report.segments += 1;
        }
        self.begin_scan(file + 1)
    }

    fn disk_fault(&self, state: &State, error: DiskError) -> OpenFault {
        let (step, segment) = match state {
            State::List => ("listing", None),
            State::Headers { file } => ("read of a header", Some(self.files[*file].segment)),
            State::Scan { scan, .. } => ("read", Some(scan.scanner.segment)),
            State::Sync => ("sync", self.unattested),
            State::Unlink => ("removal of an unused segment", self.unused.front().copied()),
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
    Ok(())
}

const READ_BYTES: u32 = 4 << 20;
