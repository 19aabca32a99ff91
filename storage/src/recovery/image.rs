//! The part of opening that concerns checkpoints: the newest whole one is loaded, and the log is
//! replayed from where it says. `checkpoint/mod.rs` argues why that is enough.

use bytes::Bytes;
use ringpost_protocol::mutant::{Mutant, is_active};

use super::{DamagedRange, File, Next, Opening, State};
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
        let Some(load) = Load::new(tail, self.config.origin(), id) else {
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
        match self.files.get(first) {
            Some(file) if file.segment == replay.segment => {
                let batch = if is_active(Mutant::CheckpointReplayedTooLate) {
                    loaded.end.attested + 1
                } else {
                    replay.batch
                };
                self.expected = Some(batch);
                let skipped = replay.offset.min(file.bytes).saturating_sub(BLOCK_BYTES);
                self.progress.bytes_total -= u64::from(skipped);
                self.begin_scan(first, replay.offset.max(BLOCK_BYTES))
            }
            // That segment was reclaimed since, or never came to be.
            _ => self.begin_scan(first, BLOCK_BYTES),
        }
    }

    /// All is read. The checkpoint attests batches like a later batch would.
    pub(super) fn end_replay(&mut self) -> State {
        let Some(loaded) = self.loaded else { return State::Rewrite };
        let attested = loaded.end.attested;
        if let (Some(expected), Some((segment, good_end, bytes))) = (self.expected, self.last)
            && expected <= attested
        {
            self.report.damaged.push(DamagedRange {
                segment,
                offset: u64::from(good_end),
                end: u64::from(bytes),
                first_batch: expected,
                last_batch: attested,
            });
            self.report.cut_at = None;
        }
        self.expected = self.expected.max(Some(attested + 1));
        State::Rewrite
    }
}
