//! Reads one segment file from its header to its end.

use std::collections::BTreeMap;

use ringpost_storage::inspect::{
    self, BatchFound, HeaderFound, RecordFound, SegmentScan, SegmentStep,
};
use ringpost_storage::limits::{BLOCK_BYTES, FORMAT_VERSION};
use ringpost_storage::{FileId, SegmentId};

use super::StoreToolFault;
use super::target::TargetShard;
use crate::data_dir::ShardDisk;

/// What a segment file holds, whoever still needs it.
#[derive(Clone, Debug)]
pub(super) struct SegmentFound {
    pub(super) segment: SegmentId,
    pub(super) file_bytes: u64,
    pub(super) header: HeaderFound,
    pub(super) batches: u64,
    /// Numbers of the first and the last good batch.
    pub(super) first_batch: Option<u64>,
    pub(super) last_batch: Option<u64>,
    pub(super) records: BTreeMap<&'static str, u64>,
    pub(super) record_bytes: u64,
    /// End of the last good batch.
    pub(super) good_end: u32,
    /// Blocks that are no good batch and not zero; those that meet are one range.
    pub(super) damaged: Vec<(u32, u32)>,
    /// What is wrong inside batches that are good as a whole.
    pub(super) faults: Vec<String>,
}

impl SegmentFound {
    /// The header is intact and belongs here.
    pub(super) fn has_own_header(&self, shard: &TargetShard) -> bool {
        match self.header {
            HeaderFound::Valid(header) => {
                header.segment == self.segment
                    && header.format_version == FORMAT_VERSION
                    && (header.shard, header.store_id) == (shard.shard, shard.store_id)
            }
            HeaderFound::Blank | HeaderFound::Damaged => false,
        }
    }

    pub(super) fn open_count(&self) -> Option<u32> {
        match self.header {
            HeaderFound::Valid(header) => Some(header.open_count),
            HeaderFound::Blank | HeaderFound::Damaged => None,
        }
    }

    fn note_batch(&mut self, batch: &BatchFound) {
        self.batches += 1;
        self.first_batch.get_or_insert(batch.number);
        self.last_batch = Some(batch.number);
        self.good_end = batch.offset.saturating_add(batch.padded_bytes);
    }

    fn note_damage(&mut self, offset: u32) {
        let end = offset.saturating_add(BLOCK_BYTES);
        match self.damaged.last_mut() {
            Some(last) if last.1 == offset => last.1 = end,
            _ => self.damaged.push((offset, end)),
        }
    }

    fn note_record(&mut self, record: &RecordFound<'_>) {
        *self.records.entry(record.name).or_default() += 1;
        self.record_bytes += u64::from(record.length_bytes);
        let what = match (record.is_intact, &record.content) {
            (false, _) => "has a wrong checksum",
            (true, None) => "is malformed or of an unknown kind or version",
            (true, Some(_)) => return,
        };
        self.faults.push(format!("the record ({}) at {} {what}", record.name, record.offset));
    }
}

/// Scans `segment` of `shard`; `on_record` sees every record, `on_bytes` how much was read.
pub(super) fn scan(
    shard: &TargetShard,
    disk: &mut ShardDisk,
    segment: SegmentId,
    file_bytes: u64,
    on_record: &mut dyn FnMut(&BatchFound, &RecordFound<'_>) -> Result<(), StoreToolFault>,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<SegmentFound, StoreToolFault> {
    let file = FileId::Segment(segment);
    let fault = |error| StoreToolFault::Io { path: shard.path.join(file.file_name()), error };
    let header = inspect::read_header(&disk.read(file, 0, BLOCK_BYTES).map_err(fault)?);
    let mut found = SegmentFound {
        segment,
        file_bytes,
        header,
        batches: 0,
        first_batch: None,
        last_batch: None,
        records: BTreeMap::new(),
        record_bytes: 0,
        good_end: BLOCK_BYTES,
        damaged: Vec::new(),
        faults: Vec::new(),
    };
    let end = u32::try_from(file_bytes).unwrap_or(u32::MAX);
    let mut scan = SegmentScan::new(shard.store_id, shard.shard, segment, end);
    loop {
        match scan.step() {
            SegmentStep::Read { offset, length_bytes } => {
                match disk.read(file, u64::from(offset), length_bytes) {
                    Ok(bytes) => {
                        on_bytes(bytes.len() as u64);
                        scan.feed(offset, length_bytes, bytes);
                    }
                    Err(error) => {
                        if let Some(at) = scan.unreadable(length_bytes) {
                            found.note_damage(at);
                            found.faults.push(format!("the block at {at} cannot be read: {error}"));
                        }
                    }
                }
            }
            SegmentStep::Batch(batch) => {
                found.note_batch(&batch);
                let mut count: u64 = 0;
                for record in batch.records() {
                    count += 1;
                    match record {
                        Ok(record) => {
                            found.note_record(&record);
                            on_record(&batch, &record)?;
                        }
                        Err(at) => found.faults.push(format!("no record at {at}")),
                    }
                }
                if count != u64::from(batch.record_count) {
                    let BatchFound { number, record_count, .. } = batch;
                    let text = format!("batch {number} says {record_count} records, has {count}");
                    found.faults.push(text);
                }
            }
            SegmentStep::Damaged { offset } => found.note_damage(offset),
            SegmentStep::End => return Ok(found),
        }
    }
}
