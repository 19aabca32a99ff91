//! Preparation of segments ahead of the log, and what happens when the disk has no room for it.
//!
//! Behind the segment in use there is a spare: whole, zero-filled and synced. A message may begin
//! a segment only when its spare is whole, so when the disk fills up, what messages have not used
//! yet of those two is the reserve: messages are refused ([`StoreFull::Disk`]), and acks,
//! receipts, gaps, devices and reclaim go on in it. The preparation is tried again every second;
//! once the spare is whole again, messages are taken. What was filled in vain stays: it is part
//! of the reserve, and a retry costs one refused write.
//!
//! When even the reserve is used up nothing fails: batches wait. What may wait is bounded: no
//! message is taken, each ack deletes an entry that was there, each receipt and each gap comes
//! from such an entry, reclaim copies only what fits the reserve, and a device is recorded once.
//!
//! [`StoreFull::Disk`]: crate::StoreFull::Disk

use crate::batch::{BATCH_HEAD_BYTES, index, padded};
use crate::commit::{Task, next_segment};
use crate::disk::{DiskError, DiskErrorKind, DiskOp, SegmentId};
use crate::limits::{BLOCK_BYTES, DISK_RETRY_MS};
use crate::segment::{Preparation, PrepareOp};
use crate::store::{Store, StoreEvent};

/// Whether the disk has room for the next segment.
#[derive(Debug, Default)]
pub(crate) struct DiskRoom {
    full_since_ms: Option<u64>,
    /// While it is full: no attempt before this time.
    retry_at_ms: u64,
    /// The store was polled since then: what it waits for now is the end of an operation, however
    /// long that takes, and no time.
    retried: bool,
}

impl DiskRoom {
    pub(crate) fn is_full(&self) -> bool {
        self.full_since_ms.is_some()
    }
}

impl Store {
    /// Since when the disk has no room for the next segment, monotonic; messages are refused.
    pub fn disk_full_since_ms(&self) -> Option<u64> {
        self.room.full_since_ms
    }

    /// Fills the segment in use and its spare; while commands come in, not much faster than the
    /// log needs it: the spare is whole by the time that half of the segment is used.
    pub(crate) fn poll_preparations(&mut self, now_ms: u64) -> Option<(Task, DiskOp)> {
        let config = &self.config;
        let current = self.forming.segment;
        let end = self.forming.end();
        let is_idle = self.forming.is_empty() && self.commit.is_idle();
        if self.preparations.back().is_none_or(|last| last.segment == current) {
            self.preparations.push_back(Preparation::new(next_segment(current)));
        }
        let grows = !self.room.is_full() || now_ms >= self.room.retry_at_ms;
        self.room.retried = grows;
        for preparation in &mut self.preparations {
            let segment = preparation.segment;
            let want = if is_idle || segment < current {
                config.segment_bytes
            } else if segment > current {
                end.saturating_mul(2)
            } else {
                end.saturating_add(FILL_AHEAD_CHUNKS * config.fill_chunk_bytes)
            };
            let want = grows.then_some(want.min(config.segment_bytes));
            if let Some((op, disk_op)) = preparation.poll(want, self.durable_batch, config) {
                return Some((Task::Prepare(segment, op), disk_op));
            }
        }
        None
    }

    pub(crate) fn prepared(&mut self, segment: SegmentId, op: PrepareOp) {
        let mut preparations = self.preparations.iter_mut();
        if let Some(found) = preparations.find(|known| known.segment == segment) {
            found.done(op);
        }
        if self.room.is_full() && self.is_spare_whole() {
            self.room.full_since_ms = None;
            self.events.push_back(StoreEvent::DiskRecovered);
        }
    }

    /// A preparation failed. `false`: that closes the store. Only what needs new room may fail; a
    /// failed sync leaves unknown what is on the disk.
    pub(crate) fn has_no_room(
        &mut self,
        now_ms: u64,
        segment: SegmentId,
        op: PrepareOp,
        error: &DiskError,
    ) -> bool {
        let needs_room =
            matches!(op, PrepareOp::Create | PrepareOp::Header | PrepareOp::Fill { .. });
        if error.kind != DiskErrorKind::Full || !needs_room {
            return false;
        }
        let mut preparations = self.preparations.iter_mut();
        if let Some(found) = preparations.find(|known| known.segment == segment) {
            found.refused(op);
        }
        self.room.retry_at_ms = now_ms.saturating_add(DISK_RETRY_MS);
        self.room.retried = false;
        if !self.room.is_full() {
            self.room.full_since_ms = Some(now_ms);
            self.events.push_back(StoreEvent::DiskFull { since_ms: now_ms });
        }
        true
    }

    pub(crate) fn disk_room_timeout(&self) -> Option<u64> {
        (self.room.is_full() && !self.room.retried).then_some(self.room.retry_at_ms)
    }

    /// Whether a record of `length` bytes would begin a segment that is not prepared. Only
    /// messages ask: a burst of them must not use up the reserve before anybody knows.
    pub(crate) fn outruns_spare(&self, length: usize) -> bool {
        let filled = self.forming.length();
        let closes = filled > 0 && filled + length > index(self.config.batch_bytes_max);
        let (base, filled) =
            if closes { (self.forming.end(), 0) } else { (self.forming.base(), filled) };
        let needed = filled.max(BATCH_HEAD_BYTES) + length;
        needed > index(self.config.segment_bytes - base) && !self.is_spare_whole()
    }

    /// The segment in use and the next one: nothing more is wanted of the disk.
    fn is_spare_whole(&self) -> bool {
        let current = self.forming.segment;
        let mut ahead = self.preparations.iter().filter(|known| known.segment >= current);
        ahead.clone().count() == 2 && ahead.all(|known| known.is_whole(&self.config))
    }

    /// Bytes of log that can be written though the disk is full.
    fn reserve_bytes(&self) -> u64 {
        let current = self.forming.segment;
        let ahead = self.preparations.iter().filter(|known| known.segment >= current);
        let bytes = ahead.map(|known| {
            let used = if known.segment == current { self.forming.end() } else { BLOCK_BYTES };
            u64::from(known.ready().saturating_sub(used))
        });
        bytes.sum()
    }

    /// While the disk is full: whether reclaim may write `bytes` of copies, in so many batches
    /// that each must be rounded up. An eighth of a segment stays for acks.
    pub(crate) fn reserve_takes(&self, bytes: u64) -> bool {
        let batches = 2 + 2 * bytes / u64::from(self.config.batch_bytes_max) + bytes / (128 << 10);
        let batches_bytes = batches * u64::from(BLOCK_BYTES + padded(1));
        let kept = u64::from(self.config.segment_bytes / 8);
        bytes + batches_bytes + kept <= self.reserve_bytes()
    }
}

/// Zeros ahead of the log in the segment in use.
const FILL_AHEAD_CHUNKS: u32 = 4;
