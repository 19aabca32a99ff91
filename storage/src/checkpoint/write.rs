//! Writes checkpoints: one operation at a time, one chunk per poll, within a byte budget.

use std::mem;

use bytes::Bytes;

use super::encode::{End, ITEMS, Stamp, seal};
use super::items::Cursor;
use super::{Found, Replay};
use crate::commit::Task;
use crate::disk::{CheckpointId, DiskOp, SegmentId};
use crate::limits::BLOCK_BYTES;
use crate::store::Store;

/// The checkpoints of an open store.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    /// The newest that is durable.
    current: Option<CheckpointId>,
    /// Number of the next one.
    next: u32,
    state: State,
    /// At full speed, and now.
    requested: bool,
    /// Length of the log behind the last one when this store was opened.
    log_bytes_before: u64,
    /// Of `batch_bytes_written`: where the last one began, or was abandoned.
    mark_bytes: u64,
    /// Length of the last one.
    image_bytes: u64,
    /// The byte budget: no chunk before this time.
    next_write_ms: u64,
}

#[derive(Debug)]
enum State {
    Idle,
    Writing(Box<Image>),
    /// The older one, or an abandoned one, goes.
    Remove(CheckpointId),
    Removing,
}

/// A checkpoint being written.
#[derive(Debug)]
struct Image {
    id: CheckpointId,
    step: Step,
    busy: bool,
    replay: Replay,
    cursor: Cursor,
    /// The highest that the log holds when all is encoded, and where.
    clock: (u64, SegmentId),
    /// The last segment that anything encoded is in.
    newest: SegmentId,
    /// `batch_bytes_written` when it began.
    began_bytes: u64,
    /// Chunks and bytes written.
    chunks: u32,
    offset: u64,
    unsynced_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Chunks,
    /// Waits until this batch is durable, then writes the end.
    End(u64),
    Sync,
    SyncDir,
}

/// One operation of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CheckpointOp {
    Create,
    Write { bytes: u64 },
    SyncSome,
    Sync,
    SyncDir,
    Unlink,
}

impl Checkpoints {
    pub(crate) fn new(found: Found) -> Self {
        Self {
            current: found.current,
            next: found.highest.saturating_add(1),
            state: State::Idle,
            requested: false,
            log_bytes_before: found.log_bytes,
            mark_bytes: 0,
            image_bytes: 0,
            next_write_ms: 0,
        }
    }
}

impl Store {
    /// Writes a checkpoint now and at full speed, for an orderly end of the process: the next
    /// start is short. If one is under way, that one. Nothing happens in a failed store.
    pub fn request_checkpoint(&mut self) {
        self.checkpoints.requested = true;
    }

    /// A checkpoint is requested or being written. While the disk is full none is begun.
    pub fn is_checkpointing(&self) -> bool {
        let waits = self.checkpoints.requested && !self.room.is_full();
        let works = !matches!(self.checkpoints.state, State::Idle);
        (waits || works) && !self.failed
    }

    /// When the next chunk may be written, if that is what a checkpoint waits for.
    pub(crate) fn checkpoint_timeout(&self) -> Option<u64> {
        let State::Writing(image) = &self.checkpoints.state else { return None };
        let waits = image.step == Step::Chunks && !image.busy;
        waits.then_some(self.checkpoints.next_write_ms)
    }

    pub(crate) fn poll_checkpoint(&mut self, now_ms: u64) -> Option<(Task, DiskOp)> {
        if matches!(self.checkpoints.state, State::Idle) && self.is_checkpoint_due() {
            self.begin_checkpoint();
        }
        let State::Writing(image) = &mut self.checkpoints.state else {
            return self.poll_checkpoint_removal();
        };
        if image.busy {
            return None;
        }
        let file = image.id.into();
        let (op, disk_op) = match image.step {
            Step::Create => (CheckpointOp::Create, DiskOp::Create { file }),
            Step::Chunks if image.unsynced_bytes >= SYNC_BYTES => {
                (CheckpointOp::SyncSome, DiskOp::SyncData { file })
            }
            Step::Chunks => return self.poll_chunk(now_ms),
            Step::End(barrier) => {
                if self.durable_batch < barrier {
                    return None;
                }
                return self.poll_end(barrier);
            }
            Step::Sync => (CheckpointOp::Sync, DiskOp::SyncAll { file }),
            Step::SyncDir => (CheckpointOp::SyncDir, DiskOp::SyncDir),
        };
        image.busy = true;
        Some((Task::Checkpoint(op), disk_op))
    }

    /// The operation succeeded.
    pub(crate) fn checkpoint_done(&mut self, op: CheckpointOp) {
        let checkpoints = &mut self.checkpoints;
        let State::Writing(image) = &mut checkpoints.state else {
            checkpoints.state = State::Idle;
            return;
        };
        image.busy = false;
        match op {
            CheckpointOp::Create => image.step = Step::Chunks,
            CheckpointOp::Write { bytes } => {
                image.chunks += 1;
                image.offset += bytes;
                image.unsynced_bytes += bytes;
            }
            CheckpointOp::SyncSome => image.unsynced_bytes = 0,
            CheckpointOp::Sync => image.step = Step::SyncDir,
            CheckpointOp::SyncDir => {
                let (id, bytes) = (image.id, image.offset);
                checkpoints.mark_bytes = image.began_bytes;
                checkpoints.log_bytes_before = 0;
                checkpoints.image_bytes = bytes;
                checkpoints.requested = false;
                let older = checkpoints.current.replace(id);
                checkpoints.state = older.map_or(State::Idle, State::Remove);
                self.stats.checkpoints_written += 1;
                self.stats.checkpoint_bytes_written += bytes;
            }
            CheckpointOp::Unlink => {}
        }
    }

    /// The operation failed: this checkpoint is given up, the store goes on. What is left of its
    /// file has no end, and is removed now or by the next opening.
    pub(crate) fn checkpoint_failed(&mut self) {
        let checkpoints = &mut self.checkpoints;
        let State::Writing(image) = &checkpoints.state else {
            checkpoints.state = State::Idle;
            return;
        };
        checkpoints.state = match image.step {
            Step::Create => State::Idle,
            _ => State::Remove(image.id),
        };
        checkpoints.requested = false;
        checkpoints.log_bytes_before = 0;
        checkpoints.mark_bytes = self.stats.batch_bytes_written;
        self.stats.checkpoints_failed += 1;
    }

    fn poll_checkpoint_removal(&mut self) -> Option<(Task, DiskOp)> {
        let State::Remove(id) = self.checkpoints.state else { return None };
        self.checkpoints.state = State::Removing;
        Some((Task::Checkpoint(CheckpointOp::Unlink), DiskOp::Unlink { file: id.into() }))
    }

    fn poll_end(&mut self, attested: u64) -> Option<(Task, DiskOp)> {
        let State::Writing(mut image) = mem::replace(&mut self.checkpoints.state, State::Idle)
        else {
            return None;
        };
        let next = self.write_end(&mut image, attested);
        self.checkpoints.state = State::Writing(image);
        Some(next)
    }

    fn is_checkpoint_due(&self) -> bool {
        let checkpoints = &self.checkpoints;
        let written = self.stats.batch_bytes_written - checkpoints.mark_bytes;
        let behind = checkpoints.log_bytes_before + written;
        // A large index is not written so often that it costs more than a quarter of the log.
        let due = self.config.checkpoint_log_bytes.max(4 * checkpoints.image_bytes);
        // On a full disk it would take the room that the log waits for.
        (checkpoints.requested || behind >= due) && !self.room.is_full()
    }

    fn begin_checkpoint(&mut self) {
        let checkpoints = &mut self.checkpoints;
        let Some(next) = checkpoints.next.checked_add(1) else { return };
        let id = CheckpointId(checkpoints.next);
        checkpoints.next = next;
        let (segment, offset) = self.commit.place().unwrap_or_else(|| self.forming.first_place());
        checkpoints.state = State::Writing(Box::new(Image {
            id,
            step: Step::Create,
            busy: false,
            replay: Replay { segment, offset, batch: self.durable_batch + 1 },
            cursor: Cursor::default(),
            clock: (0, SegmentId(0)),
            newest: SegmentId(0),
            began_bytes: self.stats.batch_bytes_written,
            chunks: 0,
            offset: 0,
            unsynced_bytes: 0,
        }));
    }

    fn poll_chunk(&mut self, now_ms: u64) -> Option<(Task, DiskOp)> {
        let checkpoints = &mut self.checkpoints;
        if now_ms < checkpoints.next_write_ms && !checkpoints.requested {
            return None;
        }
        let State::Writing(mut image) = mem::replace(&mut checkpoints.state, State::Idle) else {
            return None;
        };
        let chunk = self.next_chunk(&mut image.cursor);
        let next = if let Some(mut chunk) = chunk {
            seal(&self.stamp(image.id), ITEMS, image.chunks, &mut chunk);
            let rate = u64::from(self.config.checkpoint_bytes_per_second).max(1);
            let pause_ms = (chunk.len() as u64 * 1000).div_ceil(rate);
            self.checkpoints.next_write_ms = now_ms.saturating_add(pause_ms);
            Some(write(&mut image, chunk))
        } else {
            image.clock = self.clock.logged();
            image.newest = self.last_segment();
            image.step = Step::End(self.forming.last_number());
            None
        };
        self.checkpoints.state = State::Writing(image);
        // Often nothing is left to wait for.
        next.or_else(|| self.poll_checkpoint(now_ms))
    }

    fn write_end(&self, image: &mut Image, attested: u64) -> (Task, DiskOp) {
        let (entries, devices) = (image.cursor.entries, image.cursor.devices);
        let Image { replay, clock, newest, .. } = *image;
        let end = End { replay, attested, entries, devices, clock, newest };
        image.step = Step::Sync;
        write(image, end.encode(&self.stamp(image.id), image.chunks))
    }

    /// The segment of the last batch that was commanded.
    fn last_segment(&self) -> SegmentId {
        if !self.forming.is_begun() {
            let used = self.log.segments().filter(|segment| segment.used_bytes > BLOCK_BYTES);
            return used.last().map_or(SegmentId(0), |segment| segment.id);
        }
        self.forming.segment
    }

    fn stamp(&self, checkpoint: CheckpointId) -> Stamp {
        Stamp { origin: self.config.origin(), checkpoint, open_count: self.open_count }
    }
}

/// Hands out `chunk` behind what was written before.
fn write(image: &mut Image, chunk: Vec<u8>) -> (Task, DiskOp) {
    let bytes = chunk.len() as u64;
    let op =
        DiskOp::Write { file: image.id.into(), offset: image.offset, data: Bytes::from(chunk) };
    image.busy = true;
    (Task::Checkpoint(CheckpointOp::Write { bytes }), op)
}

/// So much may wait for a sync: one long sync at the end would hold up those of the log.
const SYNC_BYTES: u64 = 4 << 20;
