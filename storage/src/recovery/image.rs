//! The part of opening that concerns checkpoints: the newest whole one is loaded, and the log is
//! replayed from where it says. `checkpoint/mod.rs` argues why that is enough.

use bytes::Bytes;
use ringpost_protocol::mutant::{Mutant, is_active};

use std::mem;

use super::{File, Next, Opening, State};
use crate::checkpoint::{END_BYTES, Load};
use crate::disk::{DiskOp, DiskOpId, FileId};
use crate::limits::BLOCK_BYTES;
use crate::readahead::Taken;
use crate::rebuild::Rebuild;

impl Opening {
    /// Reads the end of a checkpoint; without one the whole log is read.
    pub(super) fn tail(&mut self, checkpoint: usize) -> (State, Next) {
        let Some((id, bytes)) = self.checkpoints.get(checkpoint) else {
            return (self.begin_replay(), Next::Go);
        };
        let end_bytes = END_BYTES as u64;
        match bytes.checked_sub(end_bytes) {
            Some(offset) => {
                let length_bytes = u32::try_from(END_BYTES).expect("a small constant");
                let op = DiskOp::Read { file: (*id).into(), offset, length_bytes };
                (State::Tail { checkpoint }, Next::Ask(op))
            }
            None => (State::Tail { checkpoint: checkpoint + 1 }, Next::Go),
        }
    }

    pub(super) fn begin_load(&mut self, checkpoint: usize, tail: &[u8]) -> State {
        let (id, bytes) = self.checkpoints[checkpoint];
        let oldest = self.files.first().map(|file| file.segment);
        let load = Load::new(tail, self.config.origin(), id);
        let Some(load) = load.filter(|load| load.fits(oldest)) else {
            return State::Tail { checkpoint: checkpoint + 1 };
        };
        self.reads.begin(id.into(), 0, bytes);
        State::Load { checkpoint, load: Box::new(load) }
    }

    pub(super) fn load(
        &mut self,
        checkpoint: usize,
        mut load: Box<Load>,
        id: DiskOpId,
    ) -> (State, Next) {
        let fed = match self.reads.take() {
            Taken::Piece(_, piece) => self.feed(&mut load, &piece),
            Taken::Failed(_) => None,
            Taken::Later => {
                let next = self.reads.poll(id).map_or(Next::Wait, Next::ReadAhead);
                return (State::Load { checkpoint, load }, next);
            }
            Taken::End => {
                self.loaded = load.finish();
                if self.loaded.is_some() {
                    self.report.checkpoint = Some(self.checkpoints[checkpoint].0);
                    return (self.begin_replay(), Next::Go);
                }
                None
            }
        };
        if fed.is_some() {
            return (State::Load { checkpoint, load }, Next::Go);
        }
        self.reads.abandon();
        self.rebuild = Rebuild::new(self.hash_seed);
        (State::Tail { checkpoint: checkpoint + 1 }, Next::Go)
    }

    fn feed(&mut self, load: &mut Load, piece: &Bytes) -> Option<()> {
        self.report.checkpoint_bytes_read += piece.len() as u64;
        load.feed(piece, &mut self.rebuild)
    }

    /// Begins with the segment that the checkpoint names; the older ones are not read.
    fn begin_replay(&mut self) -> State {
        let used = self.report.checkpoint;
        let useless = self.checkpoints.iter().map(|(id, _)| *id).filter(|id| Some(*id) != used);
        self.unused.extend(useless.map(FileId::Checkpoint));
        let Some(loaded) = self.loaded else { return self.begin_scan(0, BLOCK_BYTES) };
        self.rebuild.open_count = loaded.open_count;
        self.rebuild.clock = loaded.end.clock;
        let replay = loaded.end.replay;
        let first = self.files.partition_point(|file| file.segment < replay.segment);
        for file in 0..first {
            let File { segment, bytes, .. } = self.files[file];
            self.rebuild.begin_segment(segment);
            self.rebuild.end_segment(bytes);
            self.report.segments += 1;
            self.progress.bytes_total -= u64::from(bytes.saturating_sub(BLOCK_BYTES));
        }
        let next = self.files.get(first);
        let held = next.filter(|file| file.segment == replay.segment);
        let is_whole = held.is_some_and(|file| file.bytes >= replay.offset);
        let was_begun = replay.offset > BLOCK_BYTES && replay.batch > 1;
        self.skips_log = first > 0 || (is_whole && was_begun);
        // While an older one is there, that segment was not reclaimed: it never came to be, or is
        // lost.
        let is_reclaimed = first == 0
            && held.is_none()
            && next.is_some_and(|file| file.first_batch.is_some_and(|it| it >= replay.batch));
        if !is_reclaimed {
            // With what stood in it before the position: the batch before at least.
            let is_lost = was_begun && !is_whole;
            self.expected = Some(replay.batch - u64::from(is_lost));
        }
        if is_active(Mutant::CheckpointReplayedTooLate) && held.is_some() {
            self.expected = Some(loaded.end.attested + 1);
        }
        let from = if held.is_some() { replay.offset.max(BLOCK_BYTES) } else { BLOCK_BYTES };
        let skipped = held.map_or(0, |file| from.min(file.bytes).saturating_sub(BLOCK_BYTES));
        self.progress.bytes_total -= u64::from(skipped);
        self.begin_scan(first, from)
    }

    /// All is read. The checkpoint attests batches like a later batch would.
    pub(super) fn end_replay(&mut self) -> State {
        if let Some(loaded) = self.loaded {
            let attested = loaded.end.attested;
            let mut missing = self.expected.unwrap_or(loaded.end.replay.batch);
            // The last batch is always there: reclaim waits for a later one.
            if !self.skips_log && self.report.batches == 0 {
                missing = missing.min(attested);
            }
            if missing <= attested && attested > 0 {
                self.note_lost(missing.max(1), attested);
            }
            self.expected = self.expected.max(Some(attested + 1));
        }
        self.drop_blank();
        State::Rewrite
    }

    /// Segments that hold nothing go, unless something is missing: what is there when damage is
    /// judged must be there when it is judged again.
    fn drop_blank(&mut self) {
        if !self.report.damaged.is_empty() {
            return;
        }
        for segment in mem::take(&mut self.blank) {
            self.rebuild.drop_segment(segment);
            self.unused.push_back(segment.into());
            self.report.segments -= 1;
            self.report.unused_segments += 1;
        }
    }
}
