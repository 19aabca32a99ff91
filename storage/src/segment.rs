//! Segments: the header of a file, the preparation of a new one, and what the files still hold.

use std::collections::VecDeque;

use bytes::Bytes;
use ringpost_protocol::mutant::{Mutant, is_active};

use crate::batch::{Origin, index, is_batch_number, is_zero};
use crate::disk::{DiskOp, FileId, SegmentId};
use crate::entry::{Entry, Place, SEGMENT_SPAN_MAX};
use crate::fault::OpenFault;
use crate::inspect::{HeaderFound, SegmentHeader};
use crate::limits::{BLOCK_BYTES, FILL_CHUNK_BYTES_MAX, FORMAT_VERSION, StoreConfig};
use crate::record::Fields;

/// First block of a segment, little-endian: magic, CRC32C u32 of all that follows, format version
/// u16, shard u16, store_id u64, segment u32, open_count u32, first_batch u64; then zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) open_count: u32,
    /// Number of the first batch of this segment. What an older segment holds at or above it is
    /// the torn tail of an earlier open and is ignored for ever.
    pub(crate) first_batch: u64,
}

/// What the first block of a file holds.
#[derive(Debug)]
pub(crate) enum HeaderBlock {
    Valid(Header),
    /// Zeros or nothing: prepared, never used.
    Blank,
    Damaged,
}

impl Header {
    pub(crate) fn encode(&self, origin: Origin, segment: SegmentId) -> Bytes {
        let mut out = Vec::with_capacity(index(BLOCK_BYTES));
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&origin.shard.to_le_bytes());
        out.extend_from_slice(&origin.store_id.to_le_bytes());
        out.extend_from_slice(&segment.0.to_le_bytes());
        out.extend_from_slice(&self.open_count.to_le_bytes());
        out.extend_from_slice(&self.first_batch.to_le_bytes());
        let crc = crc32c::crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out.resize(index(BLOCK_BYTES), 0);
        Bytes::from(out)
    }

    /// Refuses what is intact but not ours; damage is the caller's to judge.
    pub(crate) fn decode(
        block: &[u8],
        origin: Origin,
        segment: SegmentId,
    ) -> Result<HeaderBlock, OpenFault> {
        let block = &block[..block.len().min(index(BLOCK_BYTES))];
        if is_zero(block) {
            return Ok(HeaderBlock::Blank);
        }
        let Some(header) = block.get(..HEADER_BYTES) else {
            return Ok(HeaderBlock::Damaged);
        };
        if header[..8] != MAGIC || header[8..12] != crc32c::crc32c(&header[12..]).to_le_bytes() {
            return Ok(HeaderBlock::Damaged);
        }
        Self::parse(Fields(&header[12..]), origin, segment)
    }

    fn parse(
        mut fields: Fields<'_>,
        origin: Origin,
        segment: SegmentId,
    ) -> Result<HeaderBlock, OpenFault> {
        let fixed = "the slice has HEADER_BYTES";
        let version = u16::from_le_bytes(fields.array().expect(fixed));
        let shard = u16::from_le_bytes(fields.array().expect(fixed));
        let [store_id] = fields.u64s().expect(fixed);
        let written_as = SegmentId(fields.u32().expect(fixed));
        let open_count = fields.u32().expect(fixed);
        let [first_batch] = fields.u64s().expect(fixed);
        if version != FORMAT_VERSION {
            return Err(OpenFault::Version { segment, found: version, supported: FORMAT_VERSION });
        }
        if store_id != origin.store_id {
            return Err(OpenFault::OtherStore {
                segment,
                found: store_id,
                expected: origin.store_id,
            });
        }
        if shard != origin.shard {
            return Err(OpenFault::OtherShard { segment, found: shard, expected: origin.shard });
        }
        // Intact, but of another file of this store: a misplaced block. Or no store has written it.
        if written_as != segment || !is_batch_number(first_batch) {
            return Ok(HeaderBlock::Damaged);
        }
        Ok(HeaderBlock::Valid(Self { open_count, first_batch }))
    }
}

/// For tools: the header without an expectation of what it should be.
pub(crate) fn read_header(block: &[u8]) -> HeaderFound {
    let block = &block[..block.len().min(index(BLOCK_BYTES))];
    if is_zero(block) {
        return HeaderFound::Blank;
    }
    let header = block.get(..HEADER_BYTES).filter(|header| header[..8] == MAGIC);
    header.and_then(parse_header).map_or(HeaderFound::Damaged, HeaderFound::Valid)
}

fn parse_header(header: &[u8]) -> Option<SegmentHeader> {
    let mut fields = Fields(&header[8..]);
    let is_intact = fields.u32()? == crc32c::crc32c(fields.0);
    let format_version = u16::from_le_bytes(fields.array()?);
    let shard = u16::from_le_bytes(fields.array()?);
    let [store_id] = fields.u64s()?;
    let segment = SegmentId(fields.u32()?);
    let open_count = fields.u32()?;
    let [first_batch] = fields.u64s()?;
    let header =
        SegmentHeader { format_version, shard, store_id, segment, open_count, first_batch };
    is_intact.then_some(header)
}

/// A segment on its way to being appendable: file made, directory synced, header and the first
/// zeros written and synced. One operation of it is in flight at a time.
#[derive(Debug)]
pub(crate) struct Preparation {
    pub(crate) segment: SegmentId,
    step: Step,
    busy: bool,
    header: HeaderStep,
    /// Its block was there, but a file system that copies on write had no room.
    header_refused: bool,
    /// Zeros are written up to here ...
    filled: u32,
    /// ... and synced up to here. 0 <= ready <= filled <= segment_bytes
    ready: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Absent,
    Created,
    Linked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeaderStep {
    /// A spare: what its first batch will be is not known yet.
    Unknown,
    Wanted(Header),
    Written,
    Durable,
}

/// One operation of a preparation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrepareOp {
    Create,
    Link,
    Header,
    Fill { end: u32 },
    Sync,
}

impl Preparation {
    pub(crate) fn new(segment: SegmentId) -> Self {
        Self {
            segment,
            step: Step::Absent,
            busy: false,
            header: HeaderStep::Unknown,
            header_refused: false,
            filled: 0,
            ready: 0,
        }
    }

    /// The log reached this segment.
    pub(crate) fn start(&mut self, header: Header) {
        if self.header == HeaderStep::Unknown {
            self.header = HeaderStep::Wanted(header);
        }
    }

    /// Whether a batch that ends at `end` may be written.
    pub(crate) fn is_ready(&self, end: u32) -> bool {
        self.header == HeaderStep::Durable && end <= self.ready
    }

    /// The next step towards zeros up to `want`, at most `segment_bytes`; `None`: nothing that
    /// takes room. The zeros include the header's block, so that a spare needs no more. The header
    /// waits until all batches before its first one are durable: it states that they were.
    pub(crate) fn poll(
        &mut self,
        want: Option<u32>,
        durable_batch: u64,
        config: &StoreConfig,
    ) -> Option<(PrepareOp, DiskOp)> {
        if self.busy {
            return None;
        }
        let segment = self.segment;
        let file = FileId::from(segment);
        let next = match (self.step, self.header) {
            (Step::Absent, _) if want.is_none() => return None,
            (Step::Absent, _) => (PrepareOp::Create, DiskOp::Create { file }),
            (Step::Created, _) => (PrepareOp::Link, DiskOp::SyncDir),
            (Step::Linked, HeaderStep::Wanted(header))
                if self.filled > 0
                    && (want.is_some() || !self.header_refused)
                    && (header.first_batch <= durable_batch + 1
                        || is_active(Mutant::HeaderTooEarly)) =>
            {
                let data = header.encode(config.origin(), segment);
                (PrepareOp::Header, DiskOp::Write { file, offset: 0, data })
            }
            (Step::Linked, _)
                if self.filled == self.ready && want.is_some_and(|want| self.filled < want) =>
            {
                // Chunks end on multiples of their length, so that a segment is a whole number.
                let chunk = config.fill_chunk_bytes;
                let end = ((self.filled / chunk + 1) * chunk).min(config.segment_bytes);
                let data = Bytes::from_static(&ZEROS).slice(..index(end - self.filled));
                let offset = u64::from(self.filled);
                (PrepareOp::Fill { end }, DiskOp::Write { file, offset, data })
            }
            (Step::Linked, header) if self.filled > self.ready || header == HeaderStep::Written => {
                (PrepareOp::Sync, DiskOp::SyncAll { file })
            }
            (Step::Linked, _) => return None,
        };
        self.busy = true;
        Some(next)
    }

    /// There was no room for the operation; the same one comes again.
    pub(crate) fn refused(&mut self, op: PrepareOp) {
        self.busy = false;
        self.header_refused |= op == PrepareOp::Header;
    }

    pub(crate) fn is_whole(&self, config: &StoreConfig) -> bool {
        self.ready == config.segment_bytes
    }

    pub(crate) fn ready(&self) -> u32 {
        self.ready
    }

    pub(crate) fn done(&mut self, op: PrepareOp) {
        self.busy = false;
        match op {
            PrepareOp::Create if is_active(Mutant::DirectoryNotSynced) => self.step = Step::Linked,
            PrepareOp::Create => self.step = Step::Created,
            PrepareOp::Link => self.step = Step::Linked,
            PrepareOp::Header => self.header = HeaderStep::Written,
            PrepareOp::Fill { end } => self.filled = end,
            PrepareOp::Sync => {
                self.ready = self.filled;
                if self.header == HeaderStep::Written {
                    self.header = HeaderStep::Durable;
                }
            }
        }
    }
}

/// The segments that hold batches, oldest first, and how much of them is still needed.
#[derive(Debug, Default)]
pub(crate) struct Log {
    segments: VecDeque<Segment>,
    pub(crate) file_bytes: u64,
    pub(crate) live_bytes: u64,
}

#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: SegmentId,
    /// Batches end here; nothing behind it is needed.
    pub(crate) used_bytes: u32,
    /// Bytes of records that are still needed. A record of k mailboxes counts a k-th for each.
    pub(crate) live_bytes: u64,
    /// Reads under way: the file must not go before they end.
    pub(crate) reads: u32,
    /// No message of it that is queued expires before; `u64::MAX`: none does. Unix milliseconds.
    pub(crate) earliest_expiry_ms: u64,
    /// During a sweep: the same for what was seen of the rest so far.
    pub(crate) rest_expiry_ms: u64,
    /// Not to be swept before this monotonic time.
    pub(crate) sweep_again_ms: u64,
}

impl Segment {
    pub(crate) fn note_expiry(&mut self, expires_at_ms: u64) {
        self.earliest_expiry_ms = self.earliest_expiry_ms.min(expires_at_ms);
        self.note_rest_expiry(expires_at_ms);
    }

    pub(crate) fn note_rest_expiry(&mut self, expires_at_ms: u64) {
        self.rest_expiry_ms = self.rest_expiry_ms.min(expires_at_ms);
    }
}

impl Log {
    pub(crate) fn push(&mut self, id: SegmentId, used_bytes: u32) {
        assert!(self.segments.back().is_none_or(|last| last.id < id), "segments only go up");
        assert!(used_bytes >= BLOCK_BYTES, "the header is there");
        self.segments.push_back(Segment {
            id,
            used_bytes,
            live_bytes: 0,
            reads: 0,
            earliest_expiry_ms: u64::MAX,
            rest_expiry_ms: u64::MAX,
            sweep_again_ms: 0,
        });
        self.file_bytes += u64::from(used_bytes);
    }

    pub(crate) fn pop_oldest(&mut self) {
        let oldest = self.segments.pop_front().expect("the active segment is never removed");
        assert!(oldest.live_bytes == 0 && oldest.reads == 0, "nothing needs the segment");
        self.file_bytes -= u64::from(oldest.used_bytes);
    }

    /// A segment that nothing was counted in does not count itself.
    pub(crate) fn forget(&mut self, id: SegmentId) {
        self.file_bytes -= u64::from(self.get_mut(id).used_bytes);
        self.segments.retain(|segment| segment.id != id);
    }

    pub(crate) fn oldest(&self) -> Option<&Segment> {
        self.segments.front()
    }

    pub(crate) fn newest(&self) -> Option<SegmentId> {
        self.segments.back().map(|segment| segment.id)
    }

    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    /// The index can name only so many segments; some are left for acks and reclaim.
    pub(crate) fn is_at_its_limit(&self) -> bool {
        let ends = self.segments.front().zip(self.segments.back());
        ends.is_some_and(|(oldest, newest)| {
            newest.id.0 - oldest.id.0 >= SEGMENT_SPAN_MAX - SEGMENT_SPAN_MAX / 64
        })
    }

    /// All segments, oldest first.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter()
    }

    /// The log of `segment` now ends at `end`.
    pub(crate) fn extend(&mut self, segment: SegmentId, end: u32) {
        let segment = self.get_mut(segment);
        let grown = end - segment.used_bytes;
        segment.used_bytes = end;
        self.file_bytes += u64::from(grown);
    }

    /// A message of `segment`, if it is there, expires at `expires_at_ms`.
    pub(crate) fn note_expiry(&mut self, segment: SegmentId, expires_at_ms: u64) {
        if let Ok(at) = self.segments.binary_search_by_key(&segment, |known| known.id) {
            self.segments[at].note_expiry(expires_at_ms);
        }
    }

    /// Counts from nothing what is needed of each segment.
    pub(crate) fn tally(&self) -> Tally {
        let ids = || self.segments.iter().map(|segment| segment.id.0);
        let oldest = ids().next().unwrap_or_default();
        let span = ids().next_back().map_or(0, |newest| index(newest - oldest) + 1);
        let mut live_bytes = vec![None; span];
        ids().for_each(|id| live_bytes[index(id - oldest)] = Some(0));
        Tally { oldest, live_bytes }
    }

    pub(crate) fn set_live(&mut self, tally: &Tally) {
        for segment in &mut self.segments {
            let counted = tally.live_bytes[index(segment.id.0 - tally.oldest)];
            segment.live_bytes = counted.expect("a segment of the log");
        }
        self.live_bytes = self.segments.iter().map(|segment| segment.live_bytes).sum();
    }

    /// Where the record of `entry` lies.
    pub(crate) fn place(&self, entry: &Entry) -> Place {
        let oldest = self.oldest().expect("entries lie in segments of the log");
        entry.place(oldest.id)
    }

    /// Counts the record of `entry` as needed.
    pub(crate) fn add_entry(&mut self, entry: &Entry) {
        let place = self.place(entry);
        self.add_live(place.segment, entry.share());
    }

    /// The index gave up `entry`.
    pub(crate) fn sub_entry(&mut self, entry: &Entry) {
        let place = self.place(entry);
        self.sub_live(place.segment, entry.share());
    }

    pub(crate) fn add_live(&mut self, segment: SegmentId, bytes: u32) {
        self.get_mut(segment).live_bytes += u64::from(bytes);
        self.live_bytes += u64::from(bytes);
    }

    pub(crate) fn sub_live(&mut self, segment: SegmentId, bytes: u32) {
        let segment = self.get_mut(segment);
        segment.live_bytes = segment
            .live_bytes
            .checked_sub(u64::from(bytes))
            .expect("only what was added is subtracted");
        self.live_bytes -= u64::from(bytes);
    }

    pub(crate) fn get_mut(&mut self, id: SegmentId) -> &mut Segment {
        // Appends and most acks concern the newest segment.
        if self.segments.back().is_some_and(|last| last.id == id) {
            return self.segments.back_mut().expect("just seen");
        }
        let at = self
            .segments
            .binary_search_by_key(&id, |segment| segment.id)
            .expect("entries name segments of the log");
        &mut self.segments[at]
    }
}

/// Bytes needed of each segment, by its distance from the oldest; `None`: there is no such one.
#[derive(Debug)]
pub(crate) struct Tally {
    oldest: u32,
    live_bytes: Vec<Option<u64>>,
}

impl Tally {
    /// Counts the record of `entry`, if its segment is there.
    pub(crate) fn add_entry(&mut self, entry: &Entry) -> bool {
        self.add(entry.segment_low(), entry.share())
    }

    /// `segment_low`: the number of the segment, modulo [`SEGMENT_SPAN_MAX`].
    pub(crate) fn add(&mut self, segment_low: u32, bytes: u32) -> bool {
        let counted = self.find(segment_low);
        if let Some(counted) = counted {
            *counted += u64::from(bytes);
            return true;
        }
        false
    }

    /// Whether `entry`, whose segment is not there, is of a log that goes from the oldest one here
    /// to `newest`: older segments were reclaimed, this one is lost.
    pub(crate) fn has_lost(&self, entry: &Entry, newest: SegmentId) -> bool {
        let ahead = entry.segment_low().wrapping_sub(self.oldest) % SEGMENT_SPAN_MAX;
        self.live_bytes.is_empty() || ahead <= newest.0.saturating_sub(self.oldest)
    }

    pub(crate) fn knows(&mut self, entry: &Entry) -> bool {
        self.find(entry.segment_low()).is_some()
    }

    fn find(&mut self, segment_low: u32) -> Option<&mut u64> {
        let ahead = segment_low.wrapping_sub(self.oldest) % SEGMENT_SPAN_MAX;
        self.live_bytes.get_mut(index(ahead))?.as_mut()
    }
}

const MAGIC: [u8; 8] = *b"RINGPOST";
const HEADER_BYTES: usize = 12 + 2 + 2 + 8 + 4 + 4 + 8;
/// In the zero pages of the program, shared by every fill.
static ZEROS: [u8; FILL_CHUNK_BYTES_MAX as usize] = [0; FILL_CHUNK_BYTES_MAX as usize];
