//! The batch that is being formed, in memory, and the closed ones that wait for the disk.

use std::collections::VecDeque;

use hashbrown::HashMap;

use crate::batch::{BATCH_HEAD_BYTES, index, padded};
use crate::disk::SegmentId;
use crate::entry::Place;
use crate::limits::BLOCK_BYTES;
use crate::reclaim::Moved;
use crate::record::{self, ACK_BYTES};
use crate::table::HashSeed;

/// The batch that commands join, and the closed ones before it. Every record knows its place when
/// it is written: a batch is closed before it would leave its segment.
#[derive(Debug)]
pub(crate) struct Forming {
    pub(crate) number: u64,
    pub(crate) segment: SegmentId,
    /// Where the batch begins.
    base: u32,
    buffer: Vec<u8>,
    records: u32,
    /// Number of the last command in it; zero when none has one.
    pub(crate) last_record: u64,
    /// Written at the end of the batch, so once per mailbox and behind every copy that was made
    /// while the messages were still needed.
    acks: HashMap<u64, u64, HashSeed>,
    /// Entries that move when the batch is durable.
    pub(crate) copies: Vec<Moved>,
    closed: VecDeque<Batch>,
    closed_bytes: usize,
    /// Memory of a batch that nobody reads any more, for the next one: fresh memory of that size
    /// would be mapped and cleared page by page.
    spare: Vec<u8>,
}

/// A closed batch, whole but for its head.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) number: u64,
    pub(crate) segment: SegmentId,
    pub(crate) base: u32,
    /// Length without padding.
    pub(crate) length: u32,
    pub(crate) records: u32,
    pub(crate) buffer: Vec<u8>,
    pub(crate) last_record: u64,
    pub(crate) copies: Vec<Moved>,
}

impl Forming {
    pub(crate) fn new(number: u64, segment: SegmentId, seed: HashSeed) -> Self {
        Self {
            number,
            segment,
            base: BLOCK_BYTES,
            buffer: Vec::new(),
            records: 0,
            last_record: 0,
            acks: HashMap::with_hasher(seed),
            copies: Vec::new(),
            closed: VecDeque::new(),
            closed_bytes: 0,
            spare: Vec::new(),
        }
    }

    /// Nothing waits to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.closed.is_empty()
    }

    /// The batch that commands join holds something.
    pub(crate) fn is_begun(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The last batch that something waits for.
    pub(crate) fn last_number(&self) -> u64 {
        if self.is_begun() { self.number } else { self.number - 1 }
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.closed_bytes + self.length()
    }

    /// The oldest segment that a batch still waits for.
    pub(crate) fn oldest_segment(&self) -> SegmentId {
        self.closed.front().map_or(self.segment, |batch| batch.segment)
    }

    /// Where the first batch that is not yet in flight begins; or earlier, if it is still empty.
    pub(crate) fn first_place(&self) -> (SegmentId, u32) {
        let closed = self.closed.front().map(|batch| (batch.segment, batch.base));
        closed.unwrap_or((self.segment, self.base))
    }

    /// Where the first batch that is not yet in flight ends, closed as it is now.
    pub(crate) fn first_end(&self) -> (SegmentId, u32) {
        match self.closed.front() {
            Some(batch) => (batch.segment, batch.base + to_u32(batch.buffer.len())),
            None => (self.segment, self.end()),
        }
    }

    /// One more record, of `length` bytes; the caller has seen that it fits.
    pub(crate) fn add(&mut self, length: usize) -> Place {
        if self.buffer.is_empty() {
            self.buffer.reserve(index(padded(to_u32(BATCH_HEAD_BYTES + length))));
            self.buffer.resize(BATCH_HEAD_BYTES, 0);
        }
        self.records += 1;
        Place { segment: self.segment, offset: self.base + to_u32(self.buffer.len()) }
    }

    /// What room was made for is no record: the batch attests the one before it.
    pub(crate) fn attest_only(&mut self) {
        self.records = 0;
    }

    /// The next batch is the first of this segment.
    pub(crate) fn begin_segment(&mut self, segment: SegmentId) {
        self.segment = segment;
        self.base = BLOCK_BYTES;
    }

    /// Where the current record is to be encoded; after [`Self::add`].
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    pub(crate) fn has_ack(&self, mailbox: u64) -> bool {
        self.acks.contains_key(&mailbox)
    }

    pub(crate) fn put_ack(&mut self, mailbox: u64, up_to: u64) {
        self.acks.insert(mailbox, up_to);
    }

    /// Bytes of the batch with its acks.
    pub(crate) fn length(&self) -> usize {
        self.buffer.len() + self.acks.len() * ACK_BYTES
    }

    pub(crate) fn base(&self) -> u32 {
        self.base
    }

    /// Where the next batch begins.
    pub(crate) fn end(&self) -> u32 {
        self.base + padded(to_u32(self.length()))
    }

    /// Closes the batch; the next one begins behind it.
    pub(crate) fn close(&mut self) {
        for (mailbox, up_to) in self.acks.drain() {
            record::put_ack(mailbox, up_to, &mut self.buffer);
        }
        let length = to_u32(self.buffer.len());
        let whole = padded(length);
        let mut next = std::mem::take(&mut self.spare);
        next.reserve(self.buffer.capacity().min(index(whole)));
        let mut buffer = std::mem::replace(&mut self.buffer, next);
        buffer.resize(index(whole), 0);
        self.closed_bytes += buffer.len();
        self.closed.push_back(Batch {
            number: self.number,
            segment: self.segment,
            base: self.base,
            length,
            records: self.records,
            buffer,
            last_record: self.last_record,
            copies: std::mem::take(&mut self.copies),
        });
        self.number += 1;
        self.base += whole;
        self.records = 0;
        self.last_record = 0;
    }

    /// The oldest closed batch, to be written.
    pub(crate) fn take_closed(&mut self) -> Option<Batch> {
        let batch = self.closed.pop_front()?;
        self.closed_bytes -= batch.buffer.len();
        Some(batch)
    }

    pub(crate) fn put_spare(&mut self, spare: Vec<u8>) {
        self.spare = spare;
    }
}

fn to_u32(length: usize) -> u32 {
    u32::try_from(length).expect("a batch fits its segment")
}
