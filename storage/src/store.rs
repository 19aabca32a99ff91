//! The store of one shard: commands in, disk operations out.

use ringpost_protocol::id::{MailboxId, Seq};

use crate::disk::{DiskError, DiskOp, DiskOpId, DiskOutcome, SegmentId};
use crate::fault::{Fault, StoreFull};
use crate::record::{DeviceRecord, GapReason, NewMessage, ReceiptRecord, StoredRecord};

/// Number of a command within this open, from 1. Zero: before the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RecordNumber(pub u64);

/// Names one read between [`Store::read`] and [`StoreEvent::ReadDone`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadId(pub u64);

/// How a read begins.
#[derive(Clone, Debug)]
pub enum ReadStart {
    Ready(StoredRecord),
    Pending(ReadId),
    /// No such durable entry: acknowledged or replaced meanwhile.
    Gone,
}

/// Whether a mailbox takes one more message of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Free,
    /// The mailbox is at its bound.
    Full,
    /// The sender holds its share of the mailbox.
    SenderShare,
}

#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// Every command up to this number survives a crash.
    Durable {
        up_to: RecordNumber,
    },
    ReadDone {
        id: ReadId,
        result: Result<StoredRecord, Fault>,
    },
    /// Reclaim found records whose bytes on disk are damaged; they are lost.
    Damaged {
        segment: SegmentId,
        entries: u64,
    },
    /// The store takes and gives nothing more.
    Failed(Fault),
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    pub segments: u64,
    /// Bytes of all segment files.
    pub file_bytes: u64,
    /// Bytes of records that are still needed.
    pub live_bytes: u64,
    pub mailboxes: u64,
    pub entries: u64,
    pub devices: u64,
    /// Commands that are not durable yet.
    pub queued_records: u64,
    pub queued_bytes: u64,
    pub cache_bytes: u64,
    pub batches_written: u64,
    pub batch_bytes_written: u64,
    pub reclaimed_segments: u64,
    pub reclaim_copied_bytes: u64,
    pub reads_from_cache: u64,
    pub reads_from_disk: u64,
    pub damaged_records: u64,
}

/// One shard's store. Made by [`crate::Opening`].
#[derive(Debug)]
pub struct Store {}

impl RecordNumber {
    /// The number that must be durable for `seq`, a seq of this open, to be durable.
    pub fn of(seq: Seq) -> Self {
        Self(seq.0 & ((1 << Seq::RECORD_BITS) - 1))
    }
}

impl Store {
    pub fn append_message(&mut self, _message: &NewMessage<'_>) -> Result<Seq, StoreFull> {
        unimplemented!()
    }

    pub fn room(&self, _mailbox: MailboxId, _sender_hash: u32, _envelope_bytes: usize) -> Room {
        unimplemented!()
    }

    pub fn append_gap(
        &mut self,
        _mailbox: MailboxId,
        _reason: GapReason,
        _group: Option<&str>,
    ) -> Seq {
        unimplemented!()
    }

    pub fn put_device(&mut self, _device: &DeviceRecord) -> RecordNumber {
        unimplemented!()
    }

    pub fn devices(&self) -> impl Iterator<Item = DeviceRecord> + '_ {
        std::iter::empty()
    }

    pub fn put_receipt(&mut self, _mailbox: MailboxId, _receipt: &ReceiptRecord) -> Seq {
        unimplemented!()
    }

    pub fn ack(&mut self, _mailbox: MailboxId, _up_to: Seq) -> RecordNumber {
        unimplemented!()
    }

    /// The first durable entry after `after`.
    pub fn next(&self, _mailbox: MailboxId, _after: Seq) -> Option<Seq> {
        unimplemented!()
    }

    /// The newest durable entry; zero when there is none.
    pub fn tail(&self, _mailbox: MailboxId) -> Seq {
        unimplemented!()
    }

    /// Entries queued, durable or not.
    pub fn len(&self, _mailbox: MailboxId) -> usize {
        unimplemented!()
    }

    /// The highest acknowledged seq; zero when unknown: an empty mailbox is forgotten.
    pub fn acked(&self, _mailbox: MailboxId) -> Seq {
        unimplemented!()
    }

    pub fn read(&mut self, _mailbox: MailboxId, _seq: Seq) -> ReadStart {
        unimplemented!()
    }

    pub fn open_count(&self) -> u32 {
        unimplemented!()
    }

    pub fn last_assigned(&self) -> RecordNumber {
        unimplemented!()
    }

    pub fn durable_up_to(&self) -> RecordNumber {
        unimplemented!()
    }

    pub fn poll_disk(&mut self, _now_ms: u64) -> Option<(DiskOpId, DiskOp)> {
        unimplemented!()
    }

    pub fn handle_disk(
        &mut self,
        _now_ms: u64,
        _id: DiskOpId,
        _result: Result<DiskOutcome, DiskError>,
    ) {
        unimplemented!()
    }

    pub fn poll_event(&mut self) -> Option<StoreEvent> {
        unimplemented!()
    }

    /// When to call `poll_disk` again though nothing happened.
    pub fn poll_timeout(&self) -> Option<u64> {
        unimplemented!()
    }

    pub fn stats(&self) -> StoreStats {
        unimplemented!()
    }

    /// Every command is durable.
    pub fn is_idle(&self) -> bool {
        unimplemented!()
    }
}
