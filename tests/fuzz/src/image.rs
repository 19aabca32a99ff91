//! Segment files written by hand, after the page on the format, and the repair of their checksums
//! after damage: what is behind a checksum must be reached too.

use std::ops::Range;

use ringpost_storage::SegmentId;
use ringpost_storage::limits::{BLOCK_BYTES, FORMAT_VERSION};

use crate::store::{SHARD, STORE_ID};

/// Head of a batch. `length` and checksum follow from what is in it.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    pub(crate) records: u32,
    pub(crate) number: u64,
    pub(crate) durable_up_to: u64,
    pub(crate) store_id: u64,
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    pub(crate) open_count: u32,
    pub(crate) shard: u16,
}

/// The first block of a segment.
pub(crate) fn header(segment: SegmentId, open_count: u32, first_batch: u64) -> Vec<u8> {
    let mut block = b"RINGPOST\0\0\0\0".to_vec();
    block.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    block.extend_from_slice(&SHARD.to_le_bytes());
    block.extend_from_slice(&STORE_ID.to_le_bytes());
    block.extend_from_slice(&segment.0.to_le_bytes());
    block.extend_from_slice(&open_count.to_le_bytes());
    block.extend_from_slice(&first_batch.to_le_bytes());
    block.resize(BLOCK, 0);
    repair_header(&mut block);
    block
}

/// Appends a batch and its padding.
pub(crate) fn put_batch(head: &Head, records: &[u8], file: &mut Vec<u8>) {
    let start = file.len();
    let length = u32::try_from(BATCH_HEAD + records.len()).expect("inputs are short");
    file.extend_from_slice(b"RPB1\0\0\0\0");
    file.extend_from_slice(&length.to_le_bytes());
    file.extend_from_slice(&head.records.to_le_bytes());
    for value in [head.number, head.durable_up_to, head.store_id] {
        file.extend_from_slice(&value.to_le_bytes());
    }
    for value in [head.segment, head.offset, head.open_count] {
        file.extend_from_slice(&value.to_le_bytes());
    }
    file.extend_from_slice(&head.shard.to_le_bytes());
    file.extend_from_slice(&[0; 2]);
    file.extend_from_slice(records);
    let end = file.len();
    repair_crc(&mut file[start..end], 4, 8..end - start);
    file.resize(end.next_multiple_of(BLOCK), 0);
}

/// Appends a record and its padding.
pub(crate) fn put_record(kind: u8, version: u8, flags: u16, fields: &[u8], batch: &mut Vec<u8>) {
    let start = batch.len();
    let length = u32::try_from(RECORD_HEAD + fields.len()).expect("inputs are short");
    batch.extend_from_slice(&[kind, version]);
    batch.extend_from_slice(&flags.to_le_bytes());
    batch.extend_from_slice(&length.to_le_bytes());
    batch.extend_from_slice(&[0; 4]);
    batch.extend_from_slice(fields);
    repair_record(&mut batch[start..]);
    batch.resize(start + (batch.len() - start).next_multiple_of(8), 0);
}

/// Makes the checksums of the chunks of a checkpoint right, as far as their lengths make sense.
pub(crate) fn repair_checkpoint(file: &mut [u8]) {
    let mut rest = file;
    while rest.starts_with(b"RPC1") {
        let length = u32_at(rest, 8).unwrap_or_default() as usize;
        if length < CHUNK_HEAD || length > rest.len() {
            return;
        }
        repair_crc(rest, 4, 8..length);
        rest = &mut rest[length..];
    }
}

/// Makes all checksums of a segment right, as far as its lengths make sense: of the header, of
/// records inside batches if `records`, of batches.
pub(crate) fn repair(file: &mut [u8], records: bool) {
    repair_header(file);
    for offset in (BLOCK..file.len()).step_by(BLOCK) {
        let block = &mut file[offset..];
        let length = u32_at(block, 8).unwrap_or_default() as usize;
        if !block.starts_with(b"RPB1") || length < BATCH_HEAD || length > block.len() {
            continue;
        }
        let mut at = BATCH_HEAD;
        while records && let Some(record) = u32_at(&block[..length], at + 4) {
            let record = record as usize;
            if record < RECORD_HEAD || at + record > length {
                break;
            }
            repair_record(&mut block[at..at + record]);
            at += record.next_multiple_of(8);
        }
        repair_crc(block, 4, 8..length);
    }
}

fn repair_header(file: &mut [u8]) {
    if file.len() >= HEADER && file.starts_with(b"RINGPOST") {
        repair_crc(file, 8, 12..HEADER);
    }
}

fn repair_record(record: &mut [u8]) {
    let front = crc32c::crc32c(&record[..8]);
    let crc = crc32c::crc32c_append(front, &record[RECORD_HEAD..]);
    record[8..12].copy_from_slice(&crc.to_le_bytes());
}

fn repair_crc(bytes: &mut [u8], at: usize, covered: Range<usize>) {
    let crc = crc32c::crc32c(&bytes[covered]);
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

pub(crate) const BLOCK: usize = BLOCK_BYTES as usize;
pub(crate) const BATCH_HEAD: usize = 56;
const RECORD_HEAD: usize = 12;
const HEADER: usize = 40;
const CHUNK_HEAD: usize = 40;
