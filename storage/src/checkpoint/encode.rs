//! The bytes of a checkpoint file.
//!
//! ```text
//! file     [chunk]... the last one is the end; no padding between them
//! chunk    "RPC1" | crc u32 | length u32 | format version u16 | kind u8 | 0 u8 | number u32, from 0
//!          | checkpoint u32 | open_count u32 | store_id u64 | shard u16 | 0 u16 | items or end
//!   1 items    each tag u8 | fields
//!     1 queue   mailbox, acked u64 | count u32 | count x entry, 20 bytes, see `entry.rs`
//!     2 device  mailbox, created_unix_ms u64 | segment, offset, length u32 | lengths u8 x 2
//!               | user | device
//!     3 segment segment u32 | earliest expiry of its messages u64, Unix milliseconds
//!   2 end      replay: batch u64, segment, offset u32 | attested batch u64 | entries, devices u64
//!              | expiry clock u64, Unix milliseconds, and its segment u32 | newest segment u32
//!              | zeros up to 128 bytes
//! ```
//!
//! Little-endian. The crc (CRC32C) covers all that follows it; a length counts its whole chunk.

use crate::batch::{Origin, index, is_batch_number};
use crate::disk::{CheckpointId, SegmentId};
use crate::limits::{BLOCK_BYTES, CHECKPOINT_CHUNK_BYTES_MAX, FORMAT_VERSION};
use crate::record::Fields;

use super::Replay;

/// What all chunks of one file have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) origin: Origin,
    pub(crate) checkpoint: CheckpointId,
    pub(crate) open_count: u32,
}

/// Head of a chunk; its checksum was right.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkHead {
    pub(super) kind: u8,
    pub(super) number: u32,
    pub(super) stamp: Stamp,
}

/// What the last chunk says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) replay: Replay,
    /// Every batch up to this one was durable.
    pub(crate) attested: u64,
    /// Entries and devices that the chunks hold.
    pub(crate) entries: u64,
    pub(crate) devices: u64,
    /// The expiry clock as the log holds it, and where.
    pub(crate) clock: (u64, SegmentId),
    /// The segment of the attested batch: nothing in the image names a newer one.
    pub(crate) newest: SegmentId,
}

/// The place of a chunk's head.
pub(super) fn begin() -> Vec<u8> {
    vec![0; CHUNK_HEAD_BYTES]
}

/// Fills the head of `chunk`, which began with [`begin`].
pub(super) fn seal(stamp: &Stamp, kind: u8, number: u32, chunk: &mut [u8]) {
    let length = u32::try_from(chunk.len()).expect("a chunk is about CHUNK_BYTES");
    let mut head = Vec::with_capacity(CHUNK_HEAD_BYTES);
    head.extend_from_slice(&MAGIC.to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    head.extend_from_slice(&length.to_le_bytes());
    head.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    head.extend_from_slice(&[kind, 0]);
    head.extend_from_slice(&number.to_le_bytes());
    head.extend_from_slice(&stamp.checkpoint.0.to_le_bytes());
    head.extend_from_slice(&stamp.open_count.to_le_bytes());
    head.extend_from_slice(&stamp.origin.store_id.to_le_bytes());
    head.extend_from_slice(&stamp.origin.shard.to_le_bytes());
    head.extend_from_slice(&[0; 2]);
    chunk[..CHUNK_HEAD_BYTES].copy_from_slice(&head);
    let crc = crc32c::crc32c(&chunk[8..]);
    chunk[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Length of the chunk that `bytes` begins with, if it may be one.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let mut fields = Fields(bytes);
    let [magic, _crc, length] = [fields.u32()?, fields.u32()?, fields.u32()?];
    let length = index(length);
    let sane = (CHUNK_HEAD_BYTES..=CHUNK_BYTES_MAX).contains(&length);
    (magic == MAGIC && sane).then_some(length)
}

/// Head and items of a whole chunk, if it is undamaged and of this format.
pub(super) fn open(chunk: &[u8]) -> Option<(ChunkHead, Fields<'_>)> {
    let mut fields = Fields(chunk);
    let [_magic, crc, _length] = [fields.u32()?, fields.u32()?, fields.u32()?];
    let version = u16::from_le_bytes(fields.array()?);
    let [kind, _zero] = fields.array()?;
    let number = fields.u32()?;
    let checkpoint = CheckpointId(fields.u32()?);
    let open_count = fields.u32()?;
    let [store_id] = fields.u64s()?;
    let shard = u16::from_le_bytes(fields.array()?);
    let _zero: [u8; 2] = fields.array()?;
    let sound = crc == crc32c::crc32c(&chunk[8..]) && version == FORMAT_VERSION;
    let stamp = Stamp { origin: Origin { store_id, shard }, checkpoint, open_count };
    sound.then_some((ChunkHead { kind, number, stamp }, fields))
}

impl End {
    /// The last segment that the image may name, whether or not its file is still there.
    pub(crate) fn last_named(&self) -> SegmentId {
        let Replay { segment, offset, .. } = self.replay;
        // At its beginning: perhaps it never came to be.
        let held = segment.0.saturating_sub(u32::from(offset <= BLOCK_BYTES));
        self.newest.max(SegmentId(held))
    }

    pub(super) fn encode(&self, stamp: &Stamp, number: u32) -> Vec<u8> {
        let mut chunk = begin();
        chunk.extend_from_slice(&self.replay.batch.to_le_bytes());
        chunk.extend_from_slice(&self.replay.segment.0.to_le_bytes());
        chunk.extend_from_slice(&self.replay.offset.to_le_bytes());
        for value in [self.attested, self.entries, self.devices, self.clock.0] {
            chunk.extend_from_slice(&value.to_le_bytes());
        }
        chunk.extend_from_slice(&self.clock.1.0.to_le_bytes());
        chunk.extend_from_slice(&self.newest.0.to_le_bytes());
        chunk.resize(END_BYTES, 0);
        seal(stamp, END, number, &mut chunk);
        chunk
    }

    /// Reads the last [`END_BYTES`] of a file: its end, and the number of chunks before it.
    pub(crate) fn decode(tail: &[u8]) -> Option<(Stamp, u32, Self)> {
        let (head, mut fields) = open(tail).filter(|_| length(tail) == Some(tail.len()))?;
        let [batch] = fields.u64s()?;
        let replay = Replay { batch, segment: SegmentId(fields.u32()?), offset: fields.u32()? };
        let [attested, entries, devices, clock_ms] = fields.u64s()?;
        let clock = (clock_ms, SegmentId(fields.u32()?));
        let newest = SegmentId(fields.u32()?);
        let end = Self { replay, attested, entries, devices, clock, newest };
        // Zero: no batch yet.
        let sane = is_batch_number(attested.max(1))
            && (1..=attested + 1).contains(&replay.batch)
            && replay.offset.is_multiple_of(BLOCK_BYTES);
        (head.kind == END && sane).then_some((head.stamp, head.number, end))
    }
}

pub(super) const ITEMS: u8 = 1;
const END: u8 = 2;
pub(super) const QUEUE: u8 = 1;
pub(super) const DEVICE: u8 = 2;
pub(super) const SEGMENT: u8 = 3;
pub(crate) const END_BYTES: usize = 128;
const MAGIC: u32 = u32::from_le_bytes(*b"RPC1");
const CHUNK_HEAD_BYTES: usize = 40;
/// A longer one cannot have been written: a chunk is closed by the item that takes it to its limit.
const CHUNK_BYTES_MAX: usize = 2 * CHECKPOINT_CHUNK_BYTES_MAX as usize;
