//! One queued record of one mailbox, in 20 bytes: the index holds millions of them.

use crate::batch::index;
use crate::disk::SegmentId;
use crate::limits::{MAILBOXES_PER_RECORD_MAX, RECORD_BYTES_MAX, SEGMENT_BYTES_MAX};
use crate::record::{GapReason, RECORD_ALIGN, SMALL_RECORD_BYTES_MAX};

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: SegmentId,
    /// A multiple of [`RECORD_ALIGN`].
    pub(crate) offset: u32,
}

/// One queued record of one mailbox.
///
/// ```text
/// words 0, 1  seq
/// words 2, 3  bits 0..27 offset / 8 | 27..47 segment % 2^20
///             message:      47..61 length / 8
///             receipt, gap: 47..53 length / 8 | 53..62 high bits of the slot, or gap reason
///             62..64 kind
/// word 4      message: sender's hash, 22 bits | 22..32 mailboxes that the record names
///             receipt: low bits of the slot; gap: hash of its group
/// ```
///
/// The log spans fewer than 2^20 segments, so the whole number follows from that of the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry([u32; 5]);

/// What tells two entries of one mailbox apart, apart from their seq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The mailboxes that its record names.
    Message { sender: u32, mailboxes: u32 },
    /// A later receipt of the same slot replaces it. 41 bits of a keyed hash.
    Receipt { slot: u64 },
    /// A later gap of the same reason replaces it. Group: a hash, or zero when not of one.
    Gap { reason: GapReason, group: u32 },
}

impl Entry {
    /// `length`: with the padding, like `place.offset` a multiple of [`RECORD_ALIGN`].
    pub(crate) fn new(seq: u64, place: Place, length: u32, kind: Kind) -> Self {
        let (tag, upper, key) = match kind {
            Kind::Message { sender, mailboxes } => {
                assert!((1..=MAILBOXES_PER_RECORD_MAX).contains(&index(mailboxes)));
                (MESSAGE, 0, mailboxes << SENDER_BITS | sender & SENDER_MASK)
            }
            Kind::Receipt { slot } => (RECEIPT, slot >> 32 & SLOT_UPPER_MASK, low(slot)),
            Kind::Gap { reason, group } => (GAP, u64::from(reason.code()), group),
        };
        let length_max = if tag == MESSAGE { RECORD_BYTES_MAX } else { SMALL_RECORD_BYTES_MAX };
        assert!(index(length) <= length_max.next_multiple_of(RECORD_ALIGN));
        let about = pack(place) | blocks(length) << LENGTH_SHIFT | upper << UPPER_SHIFT;
        let [about_low, about_high] = split(about | tag << TAG_SHIFT);
        let [seq_low, seq_high] = split(seq);
        Self([seq_low, seq_high, about_low, about_high, key])
    }

    pub(crate) fn to_bytes(self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        let (words, _) = bytes.as_chunks_mut();
        for (bytes, word) in words.iter_mut().zip(self.0) {
            *bytes = word.to_le_bytes();
        }
        bytes
    }

    /// The inverse of [`Self::to_bytes`]; `None` for what cannot be an entry.
    pub(crate) fn from_bytes(bytes: &[u8; ENTRY_BYTES]) -> Option<Self> {
        let (words, _) = bytes.as_chunks();
        let mut entry = Self([0; 5]);
        for (word, bytes) in entry.0.iter_mut().zip(words) {
            *word = u32::from_le_bytes(*bytes);
        }
        let sane = match entry.tag() {
            MESSAGE => (1..=MAILBOXES_PER_RECORD_MAX).contains(&index(entry.0[4] >> SENDER_BITS)),
            tag => tag <= GAP,
        };
        (sane && entry.length() > 0).then_some(entry)
    }

    /// The low bits of its segment's number.
    pub(crate) fn segment_low(&self) -> u32 {
        low(self.about() >> OFFSET_BITS) & SEGMENT_MASK
    }

    pub(crate) fn seq(&self) -> u64 {
        join(self.0[0], self.0[1])
    }

    /// In a log whose oldest segment is `oldest`.
    pub(crate) fn place(&self, oldest: SegmentId) -> Place {
        let ahead = self.segment_low().wrapping_sub(oldest.0) & SEGMENT_MASK;
        let segment = SegmentId(oldest.0.saturating_add(ahead));
        Place { segment, offset: low(self.about() & OFFSET_MASK) * ALIGN }
    }

    /// Whether its record is the one at `place`, of the same log.
    pub(crate) fn is_at(&self, place: Place) -> bool {
        self.about() & PLACE_MASK == pack(place)
    }

    /// Whether its record lies in `segment`, of the same log.
    pub(crate) fn is_in(&self, segment: SegmentId) -> bool {
        self.segment_low() == segment.0 & SEGMENT_MASK
    }

    /// Bytes of the record with its padding.
    pub(crate) fn length(&self) -> u32 {
        let mask = if self.is_message() { LENGTH_MASK } else { SMALL_LENGTH_MASK };
        low(self.about() >> LENGTH_SHIFT & mask) * ALIGN
    }

    /// This entry's part of the record's bytes: zero remains exactly when no entry needs it.
    pub(crate) fn share(&self) -> u32 {
        if self.is_message() {
            (self.length() / (self.0[4] >> SENDER_BITS)).max(1)
        } else {
            self.length()
        }
    }

    pub(crate) fn is_message(&self) -> bool {
        self.tag() == MESSAGE
    }

    /// Name of the kind of its record.
    pub(crate) fn name(&self) -> &'static str {
        match self.tag() {
            MESSAGE => "message",
            RECEIPT => "receipt",
            _ => "gap",
        }
    }

    pub(crate) fn is_message_of(&self, sender: u32) -> bool {
        self.is_message() && self.0[4] & SENDER_MASK == sender & SENDER_MASK
    }

    /// Whether this gap takes the place of an entry.
    pub(crate) fn is_in_place(&self) -> bool {
        self.tag() == GAP && self.upper() != u64::from(GapReason::Full.code())
    }

    /// Of a gap: the hash of its group, or zero when it is not of one.
    pub(crate) fn gap_group(&self) -> u32 {
        self.0[4]
    }

    /// Whether an entry of `kind` takes this one's place.
    pub(crate) fn is_replaced_by(&self, kind: Kind) -> bool {
        match (self.tag(), kind) {
            (RECEIPT, Kind::Receipt { slot }) => {
                self.upper() == slot >> 32 & SLOT_UPPER_MASK && self.0[4] == low(slot)
            }
            (GAP, Kind::Gap { reason, .. }) => self.upper() == u64::from(reason.code()),
            _ => false,
        }
    }

    /// The same entry in a copy of its record.
    pub(crate) fn moved(&self, place: Place, length: u32, mailboxes: u32) -> Self {
        let kept = self.about() & !PLACE_MASK;
        let (mask, key) = if self.is_message() {
            (LENGTH_MASK, mailboxes << SENDER_BITS | self.0[4] & SENDER_MASK)
        } else {
            (SMALL_LENGTH_MASK, self.0[4])
        };
        let about = kept & !(mask << LENGTH_SHIFT) | blocks(length) << LENGTH_SHIFT | pack(place);
        let [about_low, about_high] = split(about);
        Self([self.0[0], self.0[1], about_low, about_high, key])
    }

    fn about(&self) -> u64 {
        join(self.0[2], self.0[3])
    }

    fn tag(&self) -> u64 {
        self.about() >> TAG_SHIFT
    }

    /// Of a receipt or a gap.
    fn upper(&self) -> u64 {
        self.about() >> UPPER_SHIFT & SLOT_UPPER_MASK
    }
}

fn pack(place: Place) -> u64 {
    assert!(place.offset < SEGMENT_BYTES_MAX, "records lie within their segment");
    blocks(place.offset) | u64::from(place.segment.0 & SEGMENT_MASK) << OFFSET_BITS
}

/// `bytes` in units of [`RECORD_ALIGN`].
fn blocks(bytes: u32) -> u64 {
    assert!(bytes.is_multiple_of(ALIGN), "records and their lengths are aligned");
    u64::from(bytes / ALIGN)
}

fn low(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("32 bits")
}

fn split(value: u64) -> [u32; 2] {
    [low(value), low(value >> 32)]
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

pub(crate) const ENTRY_BYTES: usize = 20;
/// Segments that a log may span, from its oldest to its newest.
pub(crate) const SEGMENT_SPAN_MAX: u32 = 1 << SEGMENT_BITS;

#[expect(clippy::cast_possible_truncation, reason = "8")]
const ALIGN: u32 = RECORD_ALIGN as u32;
const OFFSET_BITS: u32 = 27;
const SEGMENT_BITS: u32 = 20;
const LENGTH_SHIFT: u32 = OFFSET_BITS + SEGMENT_BITS;
const LENGTH_BITS: u32 = 14;
const SMALL_LENGTH_BITS: u32 = 6;
const UPPER_SHIFT: u32 = LENGTH_SHIFT + SMALL_LENGTH_BITS;
const TAG_SHIFT: u32 = 62;
const SENDER_BITS: u32 = 22;

const OFFSET_MASK: u64 = (1 << OFFSET_BITS) - 1;
const SEGMENT_MASK: u32 = SEGMENT_SPAN_MAX - 1;
const PLACE_MASK: u64 = (1 << LENGTH_SHIFT) - 1;
const LENGTH_MASK: u64 = (1 << LENGTH_BITS) - 1;
const SMALL_LENGTH_MASK: u64 = (1 << SMALL_LENGTH_BITS) - 1;
const SLOT_UPPER_MASK: u64 = (1 << (TAG_SHIFT - UPPER_SHIFT)) - 1;
const SENDER_MASK: u32 = (1 << SENDER_BITS) - 1;

const MESSAGE: u64 = 0;
const RECEIPT: u64 = 1;
const GAP: u64 = 2;

const _: () = assert!(size_of::<Entry>() == ENTRY_BYTES);
const _: () = assert!(SEGMENT_BYTES_MAX / ALIGN <= 1 << OFFSET_BITS);
const _: () = assert!(RECORD_BYTES_MAX.div_ceil(RECORD_ALIGN) < 1 << LENGTH_BITS);
const _: () = assert!(SMALL_RECORD_BYTES_MAX.div_ceil(RECORD_ALIGN) < 1 << SMALL_LENGTH_BITS);
const _: () = assert!(LENGTH_SHIFT + LENGTH_BITS < TAG_SHIFT);
const _: () = assert!(MAILBOXES_PER_RECORD_MAX < 1 << (u32::BITS - SENDER_BITS));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_it_was_made_of() {
        let kinds = [
            Kind::Message { sender: u32::MAX, mailboxes: 1000 },
            Kind::Receipt { slot: u64::MAX },
            Kind::Gap { reason: GapReason::Expired, group: 7 },
        ];
        for kind in kinds {
            for (oldest, segment) in [(1, 1), (5, 5 + SEGMENT_SPAN_MAX - 1), (0xf_fffe, 0x10_0001)]
            {
                let place = Place { segment: SegmentId(segment), offset: SEGMENT_BYTES_MAX - 8 };
                let entry = Entry::new(u64::MAX - 1, place, 440, kind);
                assert_eq!((entry.seq(), entry.length()), (u64::MAX - 1, 440));
                assert_eq!(entry.place(SegmentId(oldest)), place);
                assert!(entry.is_at(place) && entry.is_in(place.segment));
                assert!(!entry.is_at(Place { offset: 8, ..place }));
                assert!(!entry.is_in(SegmentId(segment + 1)));
                let there = Place { segment: SegmentId(segment - 1), offset: 4152 };
                let moved = entry.moved(there, 48, 7);
                assert_eq!((moved.seq(), moved.length()), (u64::MAX - 1, 48));
                assert!(moved.is_at(there) && moved.is_message() == entry.is_message());
                assert_eq!(moved.share(), if moved.is_message() { 6 } else { 48 });
                assert_eq!(moved.is_replaced_by(kind), !moved.is_message());
            }
        }
        let place = Place { segment: SegmentId(1), offset: 4152 };
        let receipt = Entry::new(1, place, 80, Kind::Receipt { slot: 1 << 33 | 5 });
        for slot in [1 << 33 | 5 | 1 << 63, 5, 1 << 33 | 4, 1 << 40 | 1 << 33 | 5] {
            let same = slot & 0x1ff_ffff_ffff == 1 << 33 | 5;
            assert_eq!(receipt.is_replaced_by(Kind::Receipt { slot }), same, "{slot:x}");
        }
        let message = Entry::new(1, place, 80, Kind::Message { sender: 3, mailboxes: 1 });
        assert!(message.is_message_of(3) && !message.is_message_of(4));
    }
}
