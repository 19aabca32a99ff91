//! The index: one queue per mailbox, in memory, in seq order. Knows places, not bytes.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};

use hashbrown::HashMap;
use hashbrown::hash_map::Entry as Slot;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::disk::SegmentId;
use crate::record::GapReason;

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
}

/// One queued record of one mailbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) seq: u64,
    pub(crate) place: Place,
    /// Message: hash of the sender. Receipt: low half of its slot.
    key: u32,
    /// Kind in the two highest bits. Message: mailboxes of the record, 10 bits, and length, 20.
    /// Receipt and gap: more of the slot, 20 bits, and length, 10.
    packed: u32,
}

/// What tells two entries of one mailbox apart, apart from their seq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The mailboxes that its record names.
    Message { sender: u32, mailboxes: u32 },
    /// A later receipt of the same slot replaces it. 52 bits of a keyed hash.
    Receipt { slot: u64 },
    /// A later gap of the same reason replaces it.
    Gap { reason: GapReason },
}

impl Entry {
    pub(crate) fn new(seq: u64, place: Place, length: u32, kind: Kind) -> Self {
        let (tag, key, upper, length_bits) = match kind {
            Kind::Message { sender, mailboxes } => (0, sender, mailboxes, MESSAGE_LENGTH_BITS),
            Kind::Receipt { slot } => {
                let (upper, key) = split_slot(slot);
                (1, key, upper, SMALL_LENGTH_BITS)
            }
            Kind::Gap { reason } => (2, 0, u32::from(reason.code()), SMALL_LENGTH_BITS),
        };
        assert!(length < 1 << length_bits && upper < 1 << (TAG_SHIFT - length_bits));
        Self { seq, place, key, packed: tag << TAG_SHIFT | upper << length_bits | length }
    }

    pub(crate) fn length(&self) -> u32 {
        self.packed & ((1 << self.length_bits()) - 1)
    }

    /// This entry's part of the record's bytes: zero remains exactly when no entry needs it.
    pub(crate) fn share(&self) -> u32 {
        if self.is_message() { (self.length() / self.upper()).max(1) } else { self.length() }
    }

    pub(crate) fn is_message(&self) -> bool {
        self.packed >> TAG_SHIFT == 0
    }

    fn is_message_of(&self, sender: u32) -> bool {
        self.is_message() && self.key == sender
    }

    /// Whether an entry of `kind` takes this one's place.
    fn is_replaced_by(&self, kind: Kind) -> bool {
        match (self.packed >> TAG_SHIFT, kind) {
            (1, Kind::Receipt { slot }) => split_slot(slot) == (self.upper(), self.key),
            (2, Kind::Gap { reason }) => self.upper() == u32::from(reason.code()),
            _ => false,
        }
    }

    /// The same entry in a copy of its record.
    fn moved(&self, place: Place, length: u32, mailboxes: u32) -> Self {
        let length_bits = self.length_bits();
        let upper = if self.is_message() { mailboxes } else { self.upper() };
        let tag = self.packed >> TAG_SHIFT;
        let packed = tag << TAG_SHIFT | upper << length_bits | length;
        Self { place, packed, ..*self }
    }

    fn upper(&self) -> u32 {
        (self.packed & ((1 << TAG_SHIFT) - 1)) >> self.length_bits()
    }

    fn length_bits(&self) -> u32 {
        if self.is_message() { MESSAGE_LENGTH_BITS } else { SMALL_LENGTH_BITS }
    }
}

/// The queue of one device. Exists only while it holds something.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    /// Rising seq.
    pub(crate) entries: VecDeque<Entry>,
    pub(crate) acked: u64,
    /// Messages only: receipts and gaps are outside the bound.
    pub(crate) messages: u32,
    pub(crate) message_bytes: u32,
}

impl Mailbox {
    pub(crate) fn find(&self, seq: u64) -> Option<&Entry> {
        self.entries.get(self.position(seq)?)
    }

    /// The entry after `after`.
    pub(crate) fn next(&self, after: u64) -> Option<&Entry> {
        self.entries.get(self.entries.partition_point(|entry| entry.seq <= after))
    }

    /// The newest entry at or before `up_to`.
    pub(crate) fn last(&self, up_to: u64) -> Option<&Entry> {
        let end = self.entries.partition_point(|entry| entry.seq <= up_to);
        self.entries.get(end.checked_sub(1)?)
    }

    pub(crate) fn replaceable(&self, kind: Kind) -> Option<Entry> {
        self.entries.iter().find(|entry| entry.is_replaced_by(kind)).copied()
    }

    /// Records and bytes that `sender` holds.
    pub(crate) fn held_by(&self, sender: u32) -> (u32, u32) {
        let held = self.entries.iter().filter(|entry| entry.is_message_of(sender));
        held.fold((0, 0), |(count, bytes), entry| (count + 1, bytes + entry.length()))
    }

    /// Inserts in seq order; nearly always at the end.
    pub(crate) fn insert(&mut self, entry: Entry) {
        self.count(&entry);
        let entries = &mut self.entries;
        if entries.len() == entries.capacity() {
            // Doubling would leave a third of the index unused on average.
            entries.reserve_exact((entries.len() / 4).max(2));
        }
        if entries.back().is_none_or(|last| last.seq < entry.seq) {
            entries.push_back(entry);
        } else {
            let at = entries.partition_point(|other| other.seq < entry.seq);
            entries.insert(at, entry);
        }
    }

    pub(crate) fn remove(&mut self, seq: u64) -> Option<Entry> {
        let entry = self.entries.remove(self.position(seq)?)?;
        self.discount(&entry);
        Some(entry)
    }

    /// The entry's record was copied to `place`; the entry before and after.
    pub(crate) fn relocate(
        &mut self,
        seq: u64,
        place: Place,
        length: u32,
        mailboxes: u32,
    ) -> Option<(Entry, Entry)> {
        let position = self.position(seq)?;
        let old = self.entries[position];
        let new = old.moved(place, length, mailboxes);
        self.entries[position] = new;
        self.discount(&old);
        self.count(&new);
        Some((old, new))
    }

    /// Removes the oldest entry if it is at or before `up_to`.
    pub(crate) fn pop(&mut self, up_to: u64) -> Option<Entry> {
        self.entries.front().filter(|entry| entry.seq <= up_to)?;
        let entry = self.entries.pop_front()?;
        self.discount(&entry);
        Some(entry)
    }

    fn position(&self, seq: u64) -> Option<usize> {
        self.entries.binary_search_by_key(&seq, |entry| entry.seq).ok()
    }

    fn count(&mut self, entry: &Entry) {
        if entry.is_message() {
            self.messages += 1;
            self.message_bytes += entry.length();
        }
    }

    fn discount(&mut self, entry: &Entry) {
        if entry.is_message() {
            self.messages -= 1;
            self.message_bytes -= entry.length();
        }
    }
}

/// All mailboxes that hold something.
pub(crate) type Mailboxes = HashMap<u64, Mailbox, HashSeed>;

pub(crate) fn remove_if_empty(mailboxes: &mut Mailboxes, mailbox: u64) {
    if let Slot::Occupied(slot) = mailboxes.entry(mailbox)
        && slot.get().entries.is_empty()
    {
        slot.remove();
    }
}

/// Hashes with a given seed: entropy would make two runs of one simulation differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HashSeed(pub(crate) u64);

pub(crate) struct SeededHasher(u64);

impl BuildHasher for HashSeed {
    type Hasher = SeededHasher;

    fn build_hasher(&self) -> SeededHasher {
        SeededHasher(self.0)
    }
}

impl Hasher for SeededHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    /// Mailbox ids are random already; one folded multiplication keeps a chosen set of them from
    /// meeting in one bucket.
    fn write_u64(&mut self, value: u64) {
        let product = u128::from(value ^ self.0) * u128::from(MULTIPLIER);
        let [low, high] = [product & u128::from(u64::MAX), product >> 64];
        self.0 = u64::try_from(low ^ high).expect("both halves have 64 bits");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn split_slot(slot: u64) -> (u32, u32) {
    let upper = slot >> 44;
    let key = slot & u64::from(u32::MAX);
    (u32::try_from(upper).expect("20 bits"), u32::try_from(key).expect("32 bits"))
}

const TAG_SHIFT: u32 = 30;
const MESSAGE_LENGTH_BITS: u32 = 20;
const SMALL_LENGTH_BITS: u32 = 10;
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
const _: () = assert!(size_of::<Entry>() <= 24);
const _: () = assert!(crate::limits::RECORD_BYTES_MAX < 1 << MESSAGE_LENGTH_BITS);
const _: () = assert!(crate::limits::MAILBOXES_PER_RECORD_MAX < 1 << (TAG_SHIFT - 20));
