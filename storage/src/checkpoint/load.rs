//! Reads a checkpoint back into the index. Knows no disk.

use bytes::Bytes;
use ringpost_protocol::id::Seq;

use super::encode::{self, DEVICE, END_BYTES, End, ITEMS, QUEUE, SEGMENT, Stamp};
use crate::batch::{Origin, index};
use crate::disk::{CheckpointId, SegmentId};
use crate::entry::{ENTRY_BYTES, Entry, Place, SEGMENT_SPAN_MAX};
use crate::rebuild::Rebuild;
use crate::record::Fields;
use crate::store::DeviceSlot;

/// A checkpoint being read, from its beginning on. Its end was read first.
#[derive(Debug)]
pub(crate) struct Load {
    stamp: Stamp,
    end: End,
    /// Chunks before the end.
    chunks: u32,
    chunks_read: u32,
    entries: u64,
    devices: u64,
    /// Read, but not yet a whole chunk.
    rest: Bytes,
}

/// What the file said besides the index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loaded {
    pub(crate) end: End,
    pub(crate) open_count: u32,
}

impl Load {
    /// `tail`: the last [`END_BYTES`] of the file. `None` when it is no valid end of it.
    pub(crate) fn new(tail: &[u8], origin: Origin, checkpoint: CheckpointId) -> Option<Self> {
        let (stamp, chunks, end) = End::decode(tail)?;
        let ours = stamp.origin == origin && stamp.checkpoint == checkpoint;
        ours.then_some(Self {
            stamp,
            end,
            chunks,
            chunks_read: 0,
            entries: 0,
            devices: 0,
            rest: Bytes::new(),
        })
    }

    /// Whether it is of a log whose oldest segment is `oldest`: entries name segments by their low
    /// bits, and the next one must be above all that they name.
    pub(crate) fn fits(&self, oldest: Option<SegmentId>) -> bool {
        let newest = self.end.last_named().max(self.end.replay.segment).0;
        let oldest = oldest.map_or(newest, |oldest| oldest.0);
        newest < u32::MAX && newest.saturating_sub(oldest) < SEGMENT_SPAN_MAX - 1
    }

    /// Takes the next bytes of the file. `None`: the file is damaged, and `rebuild` useless.
    #[must_use]
    pub(crate) fn feed(&mut self, piece: &Bytes, rebuild: &mut Rebuild) -> Option<()> {
        let mut window = if self.rest.is_empty() {
            piece.clone()
        } else {
            Bytes::from([&self.rest[..], &piece[..]].concat())
        };
        while self.chunks_read < self.chunks && window.len() >= END_BYTES {
            let length = encode::length(&window)?;
            if window.len() < length {
                break;
            }
            self.chunk(&window.split_to(length), rebuild)?;
        }
        self.rest = window;
        Some(())
    }

    /// The whole file was fed. `None`: something is missing.
    pub(crate) fn finish(&self) -> Option<Loaded> {
        let whole = self.chunks_read == self.chunks
            && self.rest.len() == END_BYTES
            && (self.entries, self.devices) == (self.end.entries, self.end.devices);
        whole.then_some(Loaded { end: self.end, open_count: self.stamp.open_count })
    }

    fn chunk(&mut self, chunk: &[u8], rebuild: &mut Rebuild) -> Option<()> {
        let (head, mut fields) = encode::open(chunk)?;
        let expected =
            head.kind == ITEMS && head.number == self.chunks_read && head.stamp == self.stamp;
        if !expected {
            return None;
        }
        while !fields.0.is_empty() {
            match fields.array()? {
                [QUEUE] => self.queue(&mut fields, rebuild)?,
                [DEVICE] => self.device(&mut fields, rebuild)?,
                [SEGMENT] => {
                    let segment = SegmentId(fields.u32()?);
                    let [earliest_expiry_ms] = fields.u64s()?;
                    rebuild.restore_expiry(segment, earliest_expiry_ms);
                }
                _ => return None,
            }
        }
        self.chunks_read += 1;
        Some(())
    }

    fn queue(&mut self, fields: &mut Fields<'_>, rebuild: &mut Rebuild) -> Option<()> {
        let [mailbox, acked] = fields.u64s()?;
        let count = fields.u32()?;
        let (entries, _) = fields.take(index(count).checked_mul(ENTRY_BYTES)?)?.as_chunks();
        self.entries += u64::from(count);
        // They rise. No later open can have given them.
        let last = entries.last().and_then(Entry::from_bytes).map_or(0, |entry| entry.seq());
        if Seq(last.max(acked)).open_count() > self.stamp.open_count {
            return None;
        }
        rebuild.restore_queue(mailbox, acked, entries)
    }

    fn device(&mut self, fields: &mut Fields<'_>, rebuild: &mut Rebuild) -> Option<()> {
        let [mailbox, created_unix_ms] = fields.u64s()?;
        let place = Place { segment: SegmentId(fields.u32()?), offset: fields.u32()? };
        let length = fields.u32()?;
        let [user, device] = fields.texts()?;
        let address = crate::record::address(user, device)?;
        self.devices += 1;
        rebuild.restore_device(address, DeviceSlot { mailbox, created_unix_ms, place, length });
        Some(())
    }
}
