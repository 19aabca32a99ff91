//! Writes a new store from its beginning to its end. Nothing reads it meanwhile and a crash throws
//! it away, so a batch need not wait until the one before it is synced.

use bytes::Bytes;

use super::ReshardFault;
use crate::batch::{BATCH_HEAD_BYTES, BatchHead, Origin, index, padded};
use crate::blocking::BlockingDisk;
use crate::disk::{DiskOp, FileId, SegmentId};
use crate::limits::{BLOCK_BYTES, StoreConfig};
use crate::segment::Header;

#[derive(Debug)]
pub(super) struct Writer<D> {
    disk: D,
    origin: Origin,
    open_count: u32,
    segment_bytes: u32,
    batch_bytes_max: usize,
    segment: SegmentId,
    /// Where the forming batch begins.
    base: u32,
    number: u64,
    records: u32,
    /// The forming batch: its head reserved, then its records.
    buffer: Vec<u8>,
    file_bytes: u64,
}

impl<D: BlockingDisk> Writer<D> {
    pub(super) fn begin(
        disk: D,
        shard: u16,
        config: &StoreConfig,
        open_count: u32,
    ) -> Result<Self, ReshardFault> {
        let batch_bytes_max = index(config.batch_bytes_max.min(BATCH_BYTES));
        let mut writer = Self {
            disk,
            origin: Origin { store_id: config.store_id, shard },
            open_count,
            segment_bytes: config.segment_bytes,
            batch_bytes_max,
            segment: SegmentId(0),
            base: 0,
            number: 1,
            records: 0,
            buffer: vec![0; BATCH_HEAD_BYTES],
            file_bytes: 0,
        };
        writer.begin_segment()?;
        Ok(writer)
    }

    /// One record of `length` bytes, which `encode` appends to what it is given.
    pub(super) fn record(
        &mut self,
        length: usize,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), ReshardFault> {
        if self.records > 0 && self.buffer.len() + length > self.batch_bytes_max {
            self.write_batch()?;
        }
        if self.buffer.len() + length > index(self.segment_bytes - self.base) {
            if self.records > 0 {
                self.write_batch()?;
            }
            self.sync_segment()?;
            self.begin_segment()?;
        }
        let end = self.buffer.len() + length;
        encode(&mut self.buffer);
        assert!(self.buffer.len() == end, "a record has the length that was reserved for it");
        self.records += 1;
        Ok(())
    }

    /// Completes the store: the last batch is empty and attests the one before it. Everything is
    /// synced when this returns. Gives the bytes of all files.
    pub(super) fn finish(mut self) -> Result<u64, ReshardFault> {
        if self.records > 0 {
            self.write_batch()?;
        }
        if self.segment_bytes - self.base < BLOCK_BYTES {
            self.sync_segment()?;
            self.begin_segment()?;
        }
        self.write_batch()?;
        self.sync_segment()?;
        self.execute("sync of the directory", None, DiskOp::SyncDir)?;
        Ok(self.file_bytes)
    }

    fn begin_segment(&mut self) -> Result<(), ReshardFault> {
        self.segment = SegmentId(self.segment.0 + 1);
        let file = FileId::Segment(self.segment);
        self.execute("making", Some(file), DiskOp::Create { file })?;
        let header = Header { open_count: self.open_count, first_batch: self.number };
        let data = header.encode(self.origin, self.segment);
        self.execute("write of the header", Some(file), DiskOp::Write { file, offset: 0, data })?;
        self.base = BLOCK_BYTES;
        Ok(())
    }

    fn write_batch(&mut self) -> Result<(), ReshardFault> {
        let length = u32::try_from(self.buffer.len()).expect("a batch fits its segment");
        let next = Vec::with_capacity(self.buffer.capacity());
        let mut batch = std::mem::replace(&mut self.buffer, next);
        batch.resize(index(padded(length)), 0);
        self.buffer.resize(BATCH_HEAD_BYTES, 0);
        let head = BatchHead {
            length,
            records: self.records,
            number: self.number,
            durable_up_to: self.number - 1,
            open_count: self.open_count,
        };
        head.seal(self.origin, self.segment, self.base, &mut batch);
        let file = FileId::Segment(self.segment);
        let offset = u64::from(self.base);
        let data = Bytes::from(batch);
        self.execute("write of a batch", Some(file), DiskOp::Write { file, offset, data })?;
        self.base += padded(length);
        self.number += 1;
        self.records = 0;
        Ok(())
    }

    /// At the end of every segment, so that little is left to sync at the end of all.
    fn sync_segment(&mut self) -> Result<(), ReshardFault> {
        let file = FileId::Segment(self.segment);
        self.execute("sync", Some(file), DiskOp::SyncAll { file })?;
        self.file_bytes += u64::from(self.base);
        Ok(())
    }

    fn execute(
        &mut self,
        step: &'static str,
        file: Option<FileId>,
        op: DiskOp,
    ) -> Result<(), ReshardFault> {
        let shard = self.origin.shard;
        let fault = |error| ReshardFault::Write { step, shard, file, error };
        self.disk.execute(op).map(|_| ()).map_err(fault)
    }
}

/// There may be many targets, each with a batch in memory.
const BATCH_BYTES: u32 = 512 << 10;
