//! Group commit: what gathered while one batch was synced is the next batch. Also the order of
//! all disk operations of an open store, and the preparation of segments.

use bytes::Bytes;
use ringpost_protocol::mutant::{Mutant, is_active};

use crate::batch::{BATCH_HEAD_BYTES, BatchHead, index};
use crate::checkpoint::CheckpointOp;
use crate::disk::{DiskError, DiskErrorKind, DiskOp, DiskOpId, DiskOutcome, SegmentId};
use crate::entry::Place;
use crate::fault::Fault;
use crate::forming::Batch;
use crate::limits::{ATTEST_MS, BLOCK_BYTES};
use crate::read::ReadTask;
use crate::reclaim::Moved;
use crate::segment::{Header, Preparation, PrepareOp};
use crate::store::{RecordNumber, Store, StoreEvent};

/// The one batch in flight.
#[derive(Debug)]
pub(crate) enum Commit {
    Idle,
    Writing(InFlight),
    Written(InFlight),
    Syncing(InFlight),
}

#[derive(Debug)]
pub(crate) struct InFlight {
    number: u64,
    pub(crate) segment: SegmentId,
    base: u32,
    records: u32,
    last_record: u64,
    copies: Vec<Moved>,
}

/// What an operation under way is for.
#[derive(Debug)]
pub(crate) enum Task {
    WriteBatch,
    SyncBatch,
    Prepare(SegmentId, PrepareOp),
    Read(ReadTask),
    ScanRead { segment: SegmentId, offset: u32, length_bytes: u32 },
    Unlink,
    UnlinkSync,
    Checkpoint(CheckpointOp),
}

impl Commit {
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    pub(crate) fn segment(&self) -> Option<SegmentId> {
        self.place().map(|(segment, _)| segment)
    }

    /// Where the batch in flight begins.
    pub(crate) fn place(&self) -> Option<(SegmentId, u32)> {
        match self {
            Self::Idle => None,
            Self::Writing(batch) | Self::Written(batch) | Self::Syncing(batch) => {
                Some((batch.segment, batch.base))
            }
        }
    }

    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Idle)
    }
}

impl Store {
    /// The next disk operation. Call until `None`.
    pub fn poll_disk(&mut self, now_ms: u64) -> Option<(DiskOpId, DiskOp)> {
        if self.failed {
            return None;
        }
        let (task, op) = self
            .poll_log(now_ms)
            .or_else(|| self.poll_upkeep(now_ms))
            // For what upkeep has written: nothing else would call.
            .or_else(|| self.poll_log(now_ms))
            .or_else(|| self.poll_checkpoint(now_ms))?;
        self.last_op += 1;
        self.tasks.insert(self.last_op, task);
        Some((DiskOpId(self.last_op), op))
    }

    fn poll_log(&mut self, now_ms: u64) -> Option<(Task, DiskOp)> {
        self.poll_commit(now_ms)
            .or_else(|| self.poll_read())
            .or_else(|| self.poll_preparations(now_ms))
    }

    /// Takes the result of an operation.
    pub fn handle_disk(
        &mut self,
        now_ms: u64,
        id: DiskOpId,
        result: Result<DiskOutcome, DiskError>,
    ) {
        let task = self.tasks.remove(&id.0).expect("each operation is answered once");
        if self.failed {
            return;
        }
        let (outcome, error) = match result {
            Ok(DiskOutcome::Read(bytes)) => (bytes, None),
            Ok(_) => (Bytes::new(), None),
            Err(error) => (Bytes::new(), Some(error)),
        };
        match (task, error) {
            (Task::Read(task), error) => {
                let fault = error.map(|error| fault("read", task.place.segment, error));
                self.finish_read(task, fault.map_or(Ok(outcome), Err));
            }
            (Task::ScanRead { offset, length_bytes, .. }, error) => {
                let window = if error.is_none() { Some(outcome) } else { None };
                self.scan_read(offset, length_bytes, window);
            }
            (Task::Prepare(segment, op), Some(error))
                if self.has_no_room(now_ms, segment, op, &error) => {}
            // After a failed write or sync the page cache may hold what the disk does not:
            // nothing from here on could be promised.
            (Task::SyncBatch, Some(_)) if is_active(Mutant::SyncFailureIgnored) => {
                if let Commit::Syncing(batch) = self.commit.take() {
                    self.batch_durable(now_ms, batch);
                }
            }
            (Task::Checkpoint(_), Some(_)) => self.checkpoint_failed(),
            (task, Some(error)) => self.fail_task(&task, error),
            (Task::WriteBatch, None) => {
                if let Commit::Writing(batch) = self.commit.take() {
                    self.commit = Commit::Written(batch);
                }
            }
            (Task::SyncBatch, None) => {
                if let Commit::Syncing(batch) = self.commit.take() {
                    self.batch_durable(now_ms, batch);
                }
            }
            (Task::Prepare(segment, op), None) => self.prepared(segment, op),
            (Task::Unlink, None) => self.unlinked(),
            (Task::Checkpoint(op), None) => self.checkpoint_done(op),
            (Task::UnlinkSync, None) => self.unlink_durable(),
        }
    }

    /// When to call [`Self::poll_disk`] again though nothing happened.
    pub fn poll_timeout(&self) -> Option<u64> {
        if self.failed {
            return None;
        }
        let attest = self.attest_at_ms.filter(|_| self.is_idle());
        let upkeep = [
            self.scan_timeout(),
            self.sweep_timeout(),
            self.clock_timeout(),
            self.checkpoint_timeout(),
            self.disk_room_timeout(),
        ];
        upkeep.into_iter().chain([attest]).flatten().min()
    }

    pub(crate) fn fail(&mut self, fault: Fault) {
        self.failed = true;
        self.events.push_back(StoreEvent::Failed(fault));
    }

    /// Makes room for a record of `length` bytes in the forming batch, in the next batch, or in
    /// the next segment; the place where it is to be encoded.
    pub(crate) fn reserve(&mut self, length: usize) -> Place {
        let filled = self.forming.length();
        if filled > 0 && filled + length > index(self.config.batch_bytes_max) {
            self.close_batch();
        }
        let needed = self.forming.length().max(BATCH_HEAD_BYTES) + length;
        if needed > index(self.config.segment_bytes - self.forming.base()) {
            if self.forming.is_begun() {
                self.close_batch();
            }
            self.begin_segment();
        }
        self.forming.add(length)
    }

    /// Names the segment of the next batch; its file is prepared meanwhile, or already was.
    fn begin_segment(&mut self) {
        self.forming.begin_segment(next_segment(self.forming.segment));
        self.start_segment();
    }

    /// The forming batch is the first of its segment.
    pub(crate) fn start_segment(&mut self) {
        let segment = self.forming.segment;
        self.log.push(segment, BLOCK_BYTES);
        let header = Header { open_count: self.open_count, first_batch: self.forming.number };
        let mut preparations = self.preparations.iter_mut();
        if let Some(spare) = preparations.find(|known| known.segment == segment) {
            spare.start(header);
        } else {
            let mut preparation = Preparation::new(segment);
            preparation.start(header);
            self.preparations.push_back(preparation);
        }
    }

    fn close_batch(&mut self) {
        self.forming.close();
        self.log.extend(self.forming.segment, self.forming.base());
    }

    fn poll_commit(&mut self, now_ms: u64) -> Option<(Task, DiskOp)> {
        match self.commit.take() {
            Commit::Idle => {}
            Commit::Written(batch)
                if is_active(Mutant::SyncSkipped) && batch.number.is_multiple_of(2) =>
            {
                self.batch_durable(now_ms, batch);
            }
            Commit::Written(batch) => {
                let file = batch.segment.into();
                self.commit = Commit::Syncing(batch);
                return Some((Task::SyncBatch, DiskOp::SyncData { file }));
            }
            other => {
                self.commit = other;
                return None;
            }
        }
        self.log_clock_if_due(now_ms);
        if self.forming.is_empty() {
            self.attest_at_ms.filter(|at| *at <= now_ms)?;
            self.attest_at_ms = None;
            self.reserve(0);
            self.forming.attest_only();
        }
        let (segment, end) = self.forming.first_end();
        let mut preparations = self.preparations.iter();
        if !preparations.any(|known| known.segment == segment && known.is_ready(end)) {
            return None;
        }
        let batch = self.forming.take_closed().unwrap_or_else(|| {
            self.close_batch();
            self.forming.take_closed().expect("one was just closed")
        });
        Some((Task::WriteBatch, self.write(batch)))
    }

    fn write(&mut self, batch: Batch) -> DiskOp {
        let Batch { number, segment, base, length, records, mut buffer, last_record, copies } =
            batch;
        assert!(number == self.durable_batch + 1, "one batch in flight");
        let open_count = self.open_count;
        let durable_up_to = self.durable_batch;
        let head = BatchHead { length, records, number, durable_up_to, open_count };
        head.seal(self.config.origin(), segment, base, &mut buffer);
        self.stats.batches_written += 1;
        self.stats.batch_bytes_written += buffer.len() as u64;
        let (cost, batch_bytes) = (buffer.capacity(), buffer.len());
        let data = Bytes::from(buffer);
        let evicted = self.cache.insert(Place { segment, offset: base }, data.clone(), cost);
        if let Some(spare) = evicted.and_then(memory_of)
            && spare.capacity() <= SPARE_SIZES_MAX * batch_bytes
        {
            self.forming.put_spare(spare);
        }
        self.preparations.retain(|known| known.segment >= segment);
        self.commit =
            Commit::Writing(InFlight { number, segment, base, records, last_record, copies });
        DiskOp::Write { file: segment.into(), offset: u64::from(base), data }
    }

    fn batch_durable(&mut self, now_ms: u64, batch: InFlight) {
        self.durable_batch = batch.number;
        // The empty batch attests its predecessor and needs no attestation itself.
        self.attest_at_ms = (batch.records > 0).then_some(now_ms + ATTEST_MS);
        for moved in batch.copies {
            self.move_entry(moved);
        }
        if batch.last_record > self.durable_record {
            self.durable_record = batch.last_record;
            let up_to = RecordNumber(self.durable_record);
            self.events.push_back(StoreEvent::Durable { up_to });
        }
    }

    fn fail_task(&mut self, task: &Task, error: DiskError) {
        let oldest = self.log.oldest().map_or(self.forming.segment, |segment| segment.id);
        let in_flight = self.commit.segment().unwrap_or(self.forming.segment);
        let (step, segment) = match task {
            Task::WriteBatch => ("write of a batch", in_flight),
            Task::SyncBatch => ("sync of a batch", in_flight),
            Task::Prepare(segment, _) => ("preparation", *segment),
            Task::Read(task) => ("read", task.place.segment),
            Task::ScanRead { segment, .. } => ("read for reclaim or expiry", *segment),
            Task::Unlink | Task::UnlinkSync => ("removal", oldest),
            Task::Checkpoint(_) => unreachable!("the store outlives a failed checkpoint"),
        };
        self.fail(fault(step, segment, error));
    }
}

/// The empty buffer behind `batch`, if nothing else shares it.
fn memory_of(mut batch: Bytes) -> Option<Vec<u8>> {
    if !batch.is_unique() {
        return None;
    }
    batch.truncate(0);
    Some(batch.into())
}

pub(crate) fn next_segment(segment: SegmentId) -> SegmentId {
    SegmentId(segment.0.checked_add(1).expect("2^32 segments are 2^58 bytes of log"))
}

fn fault(step: &'static str, segment: SegmentId, error: DiskError) -> Fault {
    match error.kind {
        DiskErrorKind::Full => Fault::Full { step, segment, error },
        DiskErrorKind::Io => Fault::Io { step, segment, error },
    }
}

/// A spare buffer is at most so many times as long as the last batch: the cache counts all of it,
/// so after a burst the buffers of large batches must not come back for small ones.
const SPARE_SIZES_MAX: usize = 4;
