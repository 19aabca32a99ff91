//! Gaps: what a mailbox is told instead of messages that it does not get.
//!
//! A gap may take the place of an entry that expired or was lost. It has a seq of its own, so it
//! is delivered in the normal way, and names the one it replaces, so that recovery removes that
//! one too. Such a record lives as long as an ack (`reclaim.rs`): all records of the replaced
//! entry stand before it in the log, so it is dead once its segment is the oldest.
//!
//! A mailbox has at most one gap per reason, outside its bound: a later one replaces the earlier,
//! so that it comes after all messages that were stored before. What the earlier one replaced
//! stays replaced, since its record is still in the log. A gap names a group only when all that
//! is missing was sent to that group.

use ringpost_protocol::id::{MailboxId, Seq};
use ringpost_protocol::mutant::{Mutant, is_active};
use xxhash_rust::xxh3::xxh3_64;

use crate::entry::{Entry, Kind};
use crate::record::{self, GapReason, NewGap};
use crate::store::{Store, StoreEvent};

impl Store {
    /// Tells the mailbox that something is missing here. A gap that is still the newest entry
    /// and not yet durable serves for both.
    pub fn append_gap(
        &mut self,
        mailbox: MailboxId,
        reason: GapReason,
        group: Option<&str>,
    ) -> Seq {
        let group = group.unwrap_or_default();
        if let Some(queue) = self.mailboxes.get(&mailbox.0)
            && let Some(gap) = queue.replaceable(Kind::Gap { reason, group: 0 })
            && [0, group_hash(group)].contains(&gap.gap_group())
            && queue.entries.back().is_some_and(|last| last.seq() == gap.seq())
            && gap.seq() > self.durable_seq()
        {
            return Seq(gap.seq());
        }
        self.put_gap(mailbox.0, NewGap { reason, replaces: 0, group })
    }

    /// A queued message was kept for its whole time and is not to be delivered any more: a gap
    /// takes its place at the end of the mailbox. `group`: that of the message. `None` when no
    /// such message is queued; it may be gone by now.
    pub fn expire(&mut self, mailbox: MailboxId, seq: Seq, group: Option<&str>) -> Option<Seq> {
        let entry = self.mailboxes.get(&mailbox.0)?.find(seq.0)?;
        if !entry.is_message() || self.cannot_number() {
            return None;
        }
        self.stats.expired_records += 1;
        if is_active(Mutant::ExpiredWithoutGap) {
            self.remove(mailbox.0, seq.0);
            return None;
        }
        let (reason, group) = (GapReason::Expired, group.unwrap_or_default());
        Some(self.put_gap(mailbox.0, NewGap { reason, replaces: seq.0, group }))
    }

    /// Whether a gap that takes the place of another entry is not durable yet.
    pub fn awaits_gap(&self, mailbox: MailboxId) -> bool {
        let durable = self.durable_seq();
        if self.last_gap_in_place <= durable {
            return false; // nearly always
        }
        let Some(queue) = self.mailboxes.get(&mailbox.0) else { return false };
        queue.entries.iter().rev().take_while(|entry| entry.seq() > durable).any(Entry::is_in_place)
    }

    /// The record of a queued entry cannot be read any more.
    pub(crate) fn give_up_entry(&mut self, mailbox: u64, seq: u64) {
        self.stats.damaged_records += 1;
        // What it was, and of which group, is lost too.
        let gap = NewGap { reason: GapReason::Damaged, replaces: seq, group: "" };
        self.put_gap(mailbox, gap);
    }

    fn put_gap(&mut self, mailbox: u64, mut gap: NewGap<'_>) -> Seq {
        if self.cannot_number() {
            return self.last_seq();
        }
        self.remove(mailbox, gap.replaces);
        if gap.replaces != 0 {
            self.events.push_back(StoreEvent::Replaced { mailbox: MailboxId(mailbox) });
        }
        let kind = |group: &str| Kind::Gap { reason: gap.reason, group: group_hash(group) };
        let queue = self.mailboxes.get(&mailbox);
        if let Some(old) = queue.and_then(|queue| queue.replaceable(kind("")))
            && old.gap_group() != group_hash(gap.group)
        {
            gap.group = "";
        }
        let kind = kind(gap.group);
        let length = record::gap_bytes(gap.group);
        let place = self.reserve(length);
        let seq = self.assign();
        if gap.replaces != 0 {
            self.last_gap_in_place = seq.0;
        }
        record::put_gap(mailbox, seq.0, gap, self.forming.buffer());
        let length = u32::try_from(length).expect("ids have at most 128 bytes");
        self.replace(mailbox, Entry::new(seq.0, place, length, kind), kind);
        seq
    }
}

/// Tells groups apart in the index; zero is no group. Two groups of one hash would hide that two
/// are concerned.
pub(crate) fn group_hash(group: &str) -> u32 {
    if group.is_empty() {
        return 0;
    }
    u32::try_from(xxh3_64(group.as_bytes()) >> 32).expect("32 bits remain").max(1)
}
