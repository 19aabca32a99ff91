//! Goes through the log: which batches count, which are missing, where the torn tail begins.

use bytes::Bytes;

use super::files::File;
use super::reread::Reread;
use super::{DamagedRange, LastBatch, Next, Opening, State};
use crate::batch::{BATCH_HEAD_BYTES, BatchHead, Scan, Scanner};
use crate::disk::{DiskOpId, SegmentId};
use crate::fault::OpenFault;
use crate::limits::BLOCK_BYTES;
use crate::readahead::Taken;

/// One segment being read.
#[derive(Debug)]
pub(super) struct FileScan {
    pub(super) scanner: Scanner,
    /// Where it began.
    from: u32,
    /// Batches from here on are the torn tail of an earlier open.
    limit: u64,
    /// End of the last good batch of this file.
    good_end: u32,
    batches: u64,
    /// First block that is neither good nor zeros, since the last good batch.
    damage: Option<u32>,
    /// Anything but zeros and batches that count.
    any_damage: bool,
}

/// Where the log broke off: its last segment, the end of its batches, and of its file.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogEnd {
    pub(super) segment: SegmentId,
    pub(super) offset: u32,
    pub(super) file_end: u32,
}

impl Opening {
    /// Scans a file from the batch at `from`.
    pub(super) fn begin_scan(&mut self, file: usize, from: u32) -> State {
        let Some(File { segment, bytes, first_batch, .. }) = self.files.get(file) else {
            return match self.check_end() {
                Ok(()) => self.end_replay(),
                Err(fault) => State::Failed(fault),
            };
        };
        let (segment, bytes) = (*segment, *bytes);
        if let Some(first) = *first_batch {
            self.expect_first(first);
        }
        let limit = self.files[file + 1..].iter().find_map(|later| later.first_batch);
        self.rebuild.begin_segment(segment);
        self.reads.begin(segment.into(), u64::from(from), u64::from(bytes));
        let scanner = Scanner::new(self.config.origin(), segment, bytes, BLOCK_BYTES);
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

    /// A segment begins with batch `first`, and attests all that came before. What did not turn up
    /// is lost.
    fn expect_first(&mut self, first: u64) {
        self.unreadable.clear();
        let expected = match self.expected {
            Some(expected) => expected,
            // The segments before hold something of which not even a number can be read: the last
            // batch at least.
            None if self.last.is_some() => (first - 1).max(1),
            None => first,
        };
        if expected < first {
            self.note_lost(expected, first - 1);
        }
        self.expected = Some(expected.max(first));
    }

    /// Batches that were attested and did not turn up behind the last good one.
    pub(super) fn note_lost(&mut self, first_batch: u64, last_batch: u64) {
        let begin = self.loaded.map(|loaded| {
            let replay = loaded.end.replay;
            LogEnd { segment: replay.segment, offset: replay.offset, file_end: replay.offset }
        });
        let LogEnd { segment, offset, file_end } =
            self.last.or(begin).expect("numbers are expected behind a segment or a checkpoint");
        let (offset, end) = (u64::from(offset), u64::from(file_end));
        let range = DamagedRange { segment, offset, end, first_batch, last_batch };
        self.report.damaged.push(range);
        self.report.cut_at = None;
    }

    pub(super) fn scan(&mut self, file: usize, mut scan: FileScan, id: DiskOpId) -> (State, Next) {
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
                // A batch that does not count is no reason to take the file for an empty one: its
                // head may stand for that of the file.
                Scan::Batch { offset, .. } | Scan::Damage { offset } => scan.note_damage(offset),
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
        // With nothing known before, the batch before at least was in this segment too.
        let is_first = offset == BLOCK_BYTES || head.number == 1;
        let before = (!is_first).then(|| head.number - 1);
        if let Some(expected) = self.expected.or(before)
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
        self.rebuild.end_segment(bytes);
        self.report.segments += 1;
        let is_blank = scan.batches == 0 && !is_valid && !scan.any_damage;
        if is_blank && scan.from == BLOCK_BYTES {
            self.blank.push(segment);
        } else {
            self.last = Some(LogEnd { segment, offset: scan.good_end.min(bytes), file_end: bytes });
        }
        self.begin_scan(file + 1, BLOCK_BYTES)
    }
}

impl FileScan {
    fn note_damage(&mut self, offset: u32) {
        self.any_damage = true;
        self.damage.get_or_insert(offset);
    }
}
