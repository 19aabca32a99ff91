//! Batches: the unit of commit. Encodes and verifies their heads, and finds them in a segment.

use bytes::Bytes;
use ringpost_protocol::mutant::{Mutant, is_active};

use crate::disk::SegmentId;
use crate::limits::{BATCH_BYTES_MAX, BLOCK_BYTES, RECORD_BYTES_MAX, StoreConfig};
use crate::record::Fields;

/// What every batch and segment of one store has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) store_id: u64,
    pub(crate) shard: u16,
}

/// Head of a batch, little-endian:
/// magic u32, CRC32C u32 of all that follows, length u32 (head and records, without the padding),
/// records u32, number u64, durable_up_to u64, store_id u64, segment u32, offset u32,
/// open_count u32, shard u16, zero u16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHead {
    pub(crate) length: u32,
    pub(crate) records: u32,
    pub(crate) number: u64,
    /// The last batch known to be synced when this one was written.
    pub(crate) durable_up_to: u64,
    pub(crate) open_count: u32,
}

impl BatchHead {
    /// Fills the head of `batch`, which begins with [`BATCH_HEAD_BYTES`] reserved bytes and may be
    /// padded beyond `length`.
    pub(crate) fn seal(&self, origin: Origin, segment: SegmentId, offset: u32, batch: &mut [u8]) {
        let mut head = Vec::with_capacity(BATCH_HEAD_BYTES);
        head.extend_from_slice(&MAGIC.to_le_bytes());
        head.extend_from_slice(&[0; 4]);
        head.extend_from_slice(&self.length.to_le_bytes());
        head.extend_from_slice(&self.records.to_le_bytes());
        head.extend_from_slice(&self.number.to_le_bytes());
        head.extend_from_slice(&self.durable_up_to.to_le_bytes());
        head.extend_from_slice(&origin.store_id.to_le_bytes());
        head.extend_from_slice(&segment.0.to_le_bytes());
        head.extend_from_slice(&offset.to_le_bytes());
        head.extend_from_slice(&self.open_count.to_le_bytes());
        head.extend_from_slice(&origin.shard.to_le_bytes());
        head.extend_from_slice(&[0; 2]);
        batch[..BATCH_HEAD_BYTES].copy_from_slice(&head);
        let crc = crc32c::crc32c(&batch[8..index(self.length)]);
        batch[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// The head at `offset` of `segment`, its checksum not yet verified. `None` when the bytes are
    /// no batch that was written for this very place.
    pub(crate) fn parse(
        bytes: &[u8],
        origin: Origin,
        segment: SegmentId,
        offset: u32,
    ) -> Option<Self> {
        let mut fields = Fields(bytes);
        let [magic, _crc, length, records] =
            [fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?];
        let [number, durable_up_to, store_id] = fields.u64s()?;
        let [in_segment, at_offset, open_count] = [fields.u32()?, fields.u32()?, fields.u32()?];
        let shard = u16::from_le_bytes(fields.array()?);
        let ours = magic == MAGIC
            && Origin { store_id, shard } == origin
            && SegmentId(in_segment) == segment
            && at_offset == offset;
        // One batch is in flight, so every writer attests the predecessor.
        let attests = is_batch_number(number) && durable_up_to == number - 1;
        let sane = index(length) >= BATCH_HEAD_BYTES && length <= LENGTH_MAX;
        (ours && attests && sane).then_some(Self {
            length,
            records,
            number,
            durable_up_to,
            open_count,
        })
    }
}

/// Whether a store may have given this number; from 1. What is read can be followed by a store's
/// own numbers then.
pub(crate) fn is_batch_number(number: u64) -> bool {
    (1..=BATCH_NUMBER_MAX).contains(&number)
}

/// Walks the batches of one segment in order, asking for reads as it goes.
#[derive(Debug)]
pub(crate) struct Scanner {
    pub(crate) segment: SegmentId,
    /// Everything before it is done with.
    offset: u32,
    /// End of the file as far as known.
    end: u32,
    origin: Origin,
    read_bytes: u32,
    /// A long read failed: reads block by block until the bad one is passed.
    by_block: bool,
    /// File content from `window_offset` on.
    window: Bytes,
    window_offset: u32,
}

/// What [`Scanner::next`] found.
#[derive(Debug)]
pub(crate) enum Scan {
    /// A verified batch and its bytes, without padding.
    Batch {
        head: BatchHead,
        offset: u32,
        bytes: Bytes,
    },
    /// One block that holds neither a batch nor zeros only.
    Damage {
        offset: u32,
    },
    /// Read this and [`Scanner::feed`] it.
    More {
        offset: u32,
        length_bytes: u32,
    },
    End,
}

impl Scanner {
    /// Begins at the batch at `offset`, instead of the first.
    pub(crate) fn starting_at(self, offset: u32) -> Self {
        Self { offset, window_offset: offset, ..self }
    }

    /// `read_bytes`: length of one read, raised for a longer batch.
    pub(crate) fn new(origin: Origin, segment: SegmentId, end: u32, read_bytes: u32) -> Self {
        Self {
            segment,
            offset: BLOCK_BYTES,
            end,
            origin,
            read_bytes,
            by_block: false,
            window: Bytes::new(),
            window_offset: BLOCK_BYTES,
        }
    }

    /// The answer to `More`. A short one is the end of the file.
    pub(crate) fn feed(&mut self, offset: u32, asked_bytes: u32, window: Bytes) {
        if window.len() < index(asked_bytes) {
            let got = u32::try_from(window.len()).expect("shorter than asked_bytes");
            self.end = self.end.min(offset + got);
        }
        self.window = window;
        self.window_offset = offset;
    }

    /// `More` of this length cannot be read: tries shorter reads first, then passes over a block.
    /// Gives the offset of that block.
    pub(crate) fn unreadable(&mut self, length_bytes: u32) -> Option<u32> {
        if length_bytes > BLOCK_BYTES && !self.by_block {
            self.by_block = true;
            return None;
        }
        self.by_block = false;
        let passed = self.offset;
        self.offset = passed.saturating_add(BLOCK_BYTES);
        Some(passed)
    }

    /// Takes the piece of the file that follows those before, whatever was asked for. A short one
    /// is the end of the file.
    pub(crate) fn extend(&mut self, asked_bytes: u32, piece: Bytes) {
        let length = u32::try_from(self.window.len()).expect("at most a piece and a batch");
        let known = self.window_offset + length;
        if piece.len() < index(asked_bytes) {
            let got = u32::try_from(piece.len()).expect("shorter than asked_bytes");
            self.end = self.end.min(known + got);
        }
        let kept = self.window.get(index(self.offset - self.window_offset)..).unwrap_or_default();
        if kept.is_empty() {
            (self.window, self.window_offset) = (piece, known);
        } else {
            let window = Bytes::from([kept, &piece[..]].concat());
            (self.window, self.window_offset) = (window, self.offset);
        }
    }

    pub(crate) fn next(&mut self) -> Scan {
        let read_bytes = if self.by_block { BLOCK_BYTES } else { self.read_bytes };
        while self.offset < self.end {
            let at = self.offset;
            let rest = self.end - at;
            let have = self.window.get(index(at - self.window_offset)..).unwrap_or_default();
            let block_bytes = index(rest.min(BLOCK_BYTES));
            if have.len() < block_bytes {
                return Scan::More { offset: at, length_bytes: read_bytes.min(rest) };
            }
            let head = BatchHead::parse(have, self.origin, self.segment, at);
            if let Some(head) = head.filter(|head| head.length <= rest) {
                let Some(batch) = have.get(..index(head.length)) else {
                    let length_bytes = read_bytes.max(head.length).min(rest);
                    return Scan::More { offset: at, length_bytes };
                };
                let is_whole = batch[4..8] == crc32c::crc32c(&batch[8..]).to_le_bytes();
                if is_whole || is_active(Mutant::TornTailTakenForGood) {
                    self.offset = at.saturating_add(padded(head.length));
                    let bytes = self.window.slice_ref(batch);
                    return Scan::Batch { head, offset: at, bytes };
                }
            }
            // A damaged length cannot be trusted, so the search goes on block by block.
            let blank = is_zero(&have[..block_bytes]);
            self.offset = at.saturating_add(BLOCK_BYTES);
            if !blank {
                return Scan::Damage { offset: at };
            }
        }
        Scan::End
    }
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |all, byte| all | byte) == 0
}

/// Bytes that a batch of `length` occupies: whole blocks.
pub(crate) fn padded(length: u32) -> u32 {
    length.next_multiple_of(BLOCK_BYTES)
}

/// Every platform that Ringpost runs on has at least 32-bit indices.
pub(crate) fn index(value: u32) -> usize {
    value as usize
}

impl StoreConfig {
    pub(crate) fn origin(&self) -> Origin {
        Origin { store_id: self.store_id, shard: self.shard }
    }
}

/// At a batch each microsecond, 2,000 years.
const BATCH_NUMBER_MAX: u64 = 1 << 56;
const MAGIC: u32 = u32::from_le_bytes(*b"RPB1");
pub(crate) const BATCH_HEAD_BYTES: usize = 56;
/// A batch is closed by the record that takes it to its limit.
#[expect(clippy::cast_possible_truncation, reason = "a constant of about 70 KiB")]
const LENGTH_MAX: u32 = BATCH_BYTES_MAX + RECORD_BYTES_MAX as u32 + BLOCK_BYTES;
