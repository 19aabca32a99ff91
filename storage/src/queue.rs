//! The index: one queue per mailbox, in memory, in seq order. Knows places, not bytes.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};

use crate::entry::{Entry, Kind, Place};
use crate::table::{HashSeed, Table};

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
        // Nearly always the first: what is before it has been acknowledged.
        let first = self.entries.front()?;
        if first.seq() > after {
            return Some(first);
        }
        self.entries.back().filter(|last| after < last.seq())?;
        self.entries.get(self.entries.partition_point(|entry| entry.seq() <= after))
    }

    /// The newest entry at or before `up_to`.
    pub(crate) fn last(&self, up_to: u64) -> Option<&Entry> {
        let end = self.entries.partition_point(|entry| entry.seq() <= up_to);
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
            entries.reserve_exact((entries.len() / 8).max(1));
        }
        if entries.back().is_none_or(|last| last.seq() < entry.seq()) {
            entries.push_back(entry);
        } else {
            let at = entries.partition_point(|other| other.seq() < entry.seq());
            entries.insert(at, entry);
        }
    }

    pub(crate) fn remove(&mut self, seq: u64) -> Option<Entry> {
        let entry = self.entries.remove(self.position(seq)?)?;
        self.removed(&entry);
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
        self.entries.front().filter(|entry| entry.seq() <= up_to)?;
        let entry = self.entries.pop_front()?;
        self.removed(&entry);
        Some(entry)
    }

    fn position(&self, seq: u64) -> Option<usize> {
        // What is looked for while the log is read is nearly always newer than all.
        self.entries.back().filter(|last| seq <= last.seq())?;
        self.entries.binary_search_by_key(&seq, Entry::seq).ok()
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

    fn removed(&mut self, entry: &Entry) {
        self.discount(entry);
        let len = self.entries.len();
        if self.entries.capacity() > len + len / 4 + SLACK_ENTRIES {
            self.entries.shrink_to(len + len / 16);
        }
    }
}

/// All mailboxes that hold something, and the memory that they take.
#[derive(Debug)]
pub(crate) struct Mailboxes {
    table: Table<u64, Mailbox>,
    /// Places for entries in all queues, in use or not.
    capacity: usize,
}

/// One mailbox that may change; keeps the count of all.
#[derive(Debug)]
pub(crate) struct MailboxMut<'a> {
    mailbox: &'a mut Mailbox,
    before: usize,
    capacity: &'a mut usize,
}

impl Mailboxes {
    pub(crate) fn new(seed: HashSeed) -> Self {
        Self { table: Table::new(seed), capacity: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Bytes of the hash tables and of the queues, with the room that both keep free.
    pub(crate) fn index_bytes(&self) -> u64 {
        (self.table.allocated_bytes() + self.capacity * size_of::<Entry>()) as u64
    }

    pub(crate) fn contains_key(&self, mailbox: &u64) -> bool {
        self.table.get(mailbox).is_some()
    }

    pub(crate) fn get(&self, mailbox: &u64) -> Option<&Mailbox> {
        self.table.get(mailbox)
    }

    pub(crate) fn get_mut(&mut self, mailbox: &u64) -> Option<MailboxMut<'_>> {
        let mailbox = self.table.get_mut(mailbox)?;
        Some(MailboxMut::new(mailbox, &mut self.capacity))
    }

    pub(crate) fn get_or_default(&mut self, mailbox: u64) -> MailboxMut<'_> {
        let mailbox = self.table.get_or_insert_with(mailbox, Mailbox::default);
        MailboxMut::new(mailbox, &mut self.capacity)
    }

    pub(crate) fn remove_if_empty(&mut self, mailbox: u64) {
        if self.get(&mailbox).is_some_and(|queue| queue.entries.is_empty()) {
            let removed = self.table.remove(&mailbox).expect("just seen");
            self.capacity -= removed.entries.capacity();
        }
    }

    /// All mailboxes, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Mailbox)> {
        self.table.iter().map(|(id, mailbox)| (*id, mailbox))
    }

    /// Of one part of the table, sorted; see [`Table::keys_of_part`].
    pub(crate) fn ids_of_part(&self, part: usize) -> Vec<u64> {
        self.table.keys_of_part(part)
    }

    /// Keeps the entries that `is_kept` says; the number of the others.
    pub(crate) fn retain_entries(&mut self, mut is_kept: impl FnMut(&Entry) -> bool) -> u64 {
        let mut dropped = 0;
        for mailbox in self.table.values_mut() {
            let Some(gone) = mailbox.entries.iter().position(|entry| !is_kept(entry)) else {
                continue;
            };
            let kept = mailbox.entries.iter().skip(gone).filter(|entry| is_kept(entry)).copied();
            let kept: Vec<_> = mailbox.entries.iter().take(gone).copied().chain(kept).collect();
            dropped += (mailbox.entries.len() - kept.len()) as u64;
            let empty = Mailbox { acked: mailbox.acked, ..Mailbox::default() };
            *mailbox = kept.into_iter().fold(empty, |mut queue, entry| {
                queue.insert(entry);
                queue
            });
        }
        dropped
    }

    /// Empty ones go, and the memory that only reading the log needed.
    pub(crate) fn tidy(&mut self) {
        self.table.retain(|_, mailbox| !mailbox.entries.is_empty());
        self.capacity = self.table.iter().map(|(_, mailbox)| mailbox.entries.capacity()).sum();
    }
}

impl<'a> MailboxMut<'a> {
    fn new(mailbox: &'a mut Mailbox, capacity: &'a mut usize) -> Self {
        Self { before: mailbox.entries.capacity(), mailbox, capacity }
    }
}

impl Deref for MailboxMut<'_> {
    type Target = Mailbox;

    fn deref(&self) -> &Mailbox {
        self.mailbox
    }
}

impl DerefMut for MailboxMut<'_> {
    fn deref_mut(&mut self) -> &mut Mailbox {
        self.mailbox
    }
}

impl Drop for MailboxMut<'_> {
    fn drop(&mut self) {
        *self.capacity = *self.capacity + self.mailbox.entries.capacity() - self.before;
    }
}

/// Free places that a short queue may keep.
const SLACK_ENTRIES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SegmentId;

    /// The worst moment while mailboxes fill in turn, each up to `records`.
    fn worst_bytes_per_record(mailboxes: u64, records: u64) -> f64 {
        let mut index = Mailboxes::new(HashSeed(5));
        let kind = Kind::Message { sender: 9, mailboxes: 1 };
        let place = Place { segment: SegmentId(1), offset: 4152 };
        let mut worst = 0.0_f64;
        for record in 1..=records {
            for mailbox in 0..mailboxes {
                let seq = record * mailboxes + mailbox;
                index.get_or_default(mailbox).insert(Entry::new(seq, place, 304, kind));
            }
            if record * 2 > records {
                #[expect(clippy::cast_precision_loss, reason = "small counts")]
                let bytes = index.index_bytes() as f64 / (record * mailboxes) as f64;
                worst = worst.max(bytes);
            }
        }
        worst
    }

    #[test]
    fn a_queued_record_takes_at_most_24_bytes() {
        for (mailboxes, records) in [(10_000, 100), (1_000, 1_000)] {
            let worst = worst_bytes_per_record(mailboxes, records);
            assert!(worst <= 24.0, "{worst} bytes with {records} records in each mailbox");
        }
    }

    #[test]
    fn acks_give_the_memory_back() {
        let mut index = Mailboxes::new(HashSeed(5));
        let kind = Kind::Message { sender: 9, mailboxes: 1 };
        let place = Place { segment: SegmentId(1), offset: 4152 };
        for seq in 1..=1000 {
            index.get_or_default(1).insert(Entry::new(seq, place, 304, kind));
        }
        for left in (0..1000).rev() {
            index.get_mut(&1).unwrap().pop(u64::MAX).unwrap();
            let slots = (index.index_bytes() - index.table.allocated_bytes() as u64) / 20;
            assert!(slots <= left + left / 4 + 4, "{slots} places for {left} entries");
        }
        index.remove_if_empty(1);
        assert_eq!((index.len(), index.capacity), (0, 0));
    }
}
