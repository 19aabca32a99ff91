//! Reclaim: strictly the oldest segment first, copy what is still needed to the head, wait until
//! the copies are durable, remove the file, sync the directory.
//!
//! Why acknowledged messages cannot come back:
//! - An ack says "every seq of this mailbox up to U". The messages it covers were written before
//!   it. A copy keeps its seq, is made only of an entry that is still queued, and names only
//!   mailboxes where it is; and acks are written behind all copies of their batch. So at every
//!   moment each record with seq <= U stands before the ack in the log.
//! - Segments vanish from the old end only, each removal durable before the next is asked for. So
//!   when the ack's segment is the oldest, all it covers stands in that segment too, and goes
//!   with it: the ack need not be copied.
//! - A segment is removed only when everything is durable that made its records unneeded (an ack,
//!   a newer receipt, a copy): the barrier is the last batch that was forming at the decision.
//! - A crash between the copy and the removal leaves two records of one seq: recovery keeps the
//!   later place, and an ack in the log covers both.

use std::collections::BinaryHeap;

use ringpost_protocol::id::DeviceAddress;
use ringpost_protocol::mutant::{Mutant, is_active};

use crate::batch::BATCH_HEAD_BYTES;
use crate::commit::Task;
use crate::disk::{DiskOp, SegmentId};
use crate::entry::Place;
use crate::limits::DISK_RETRY_MS;
use crate::record::{DeviceRecord, RawRecord, View};
use crate::scan::Purpose;
use crate::store::{Store, StoreEvent};

#[derive(Debug, Default)]
pub(crate) struct Reclaim {
    state: State,
    /// While the disk is full: the copies did not fit.
    rests_until_ms: u64,
    /// Live mailboxes of the record at hand; kept to spare an allocation for each.
    live: Vec<u64>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Scanning,
    /// Waits until batch `barrier` is durable and no read uses the file.
    Draining {
        segment: SegmentId,
        barrier: u64,
    },
    Unlinking,
    Unlinked,
    SyncingDir,
}

/// A record that was copied; its entry moves once the copy is durable, unless it is gone by then.
#[derive(Debug)]
pub(crate) enum Moved {
    Entry { mailbox: u64, seq: u64, from: Place, place: Place, length: u32, mailboxes: u32 },
    Device { address: DeviceAddress, from: Place, place: Place },
}

impl Reclaim {
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }
}

impl Store {
    pub(crate) fn poll_removal(&mut self) -> Option<(Task, DiskOp)> {
        match self.reclaim.state {
            State::Draining { segment, barrier } => self.drain(segment, barrier),
            State::Unlinked => {
                self.reclaim.state = State::SyncingDir;
                Some((Task::UnlinkSync, DiskOp::SyncDir))
            }
            _ => None,
        }
    }

    pub(crate) fn begin_reclaim(&mut self, now_ms: u64) {
        let in_use = self.commit.segment().unwrap_or_else(|| self.forming.oldest_segment());
        let Some(oldest) = self.log.oldest().filter(|oldest| oldest.id < in_use) else {
            return;
        };
        let (segment, end) = (oldest.id, oldest.used_bytes);
        if oldest.live_bytes == 0 {
            self.scanned(segment);
            return;
        }
        if self.room.is_full() {
            // Eager, but the copies must not use up the reserve.
            let frees = oldest.live_bytes < u64::from(end) && now_ms >= self.reclaim.rests_until_ms;
            if frees && self.reserve_takes(oldest.live_bytes) {
                self.reclaim.state = State::Scanning;
                self.begin_scan(Purpose::Reclaim, segment, end);
            }
            return;
        }
        if self.dead_bytes() > self.dead_bytes_max() {
            self.reclaim.state = State::Scanning;
            self.begin_scan(Purpose::Reclaim, segment, end);
        }
    }

    /// What is live in the forming batch counts for no file yet: there may be more of it than of
    /// files, when the old ones are short.
    fn dead_bytes(&self) -> u64 {
        self.log.file_bytes.saturating_sub(self.log.live_bytes)
    }

    /// Beyond it the oldest segment is reclaimed.
    fn dead_bytes_max(&self) -> u64 {
        let slack = SLACK_SEGMENTS * u64::from(self.config.segment_bytes);
        (self.log.live_bytes / 25 * 9).max(slack)
    }

    /// The byte budget per second; more of it when what comes in outruns it.
    pub(crate) fn reclaim_rate(&self) -> u64 {
        let urgency = (self.dead_bytes() / self.dead_bytes_max()).clamp(1, URGENCY_MAX);
        u64::from(self.config.reclaim_bytes_per_second).max(1) * urgency
    }

    /// A record of many mailboxes may be larger than what the segment counts of it, so the copies
    /// do not fit the reserve. What was copied so far is not copied again.
    pub(crate) fn rest_reclaim(&mut self, now_ms: u64) {
        self.reclaim.state = State::Idle;
        self.reclaim.rests_until_ms = now_ms.saturating_add(DISK_RETRY_MS);
    }

    /// All that the segment still had is in the forming batch, or durable already.
    pub(crate) fn scanned(&mut self, segment: SegmentId) {
        self.carry_clock(segment);
        self.reclaim.state = State::Draining { segment, barrier: self.forming.last_number() };
    }

    pub(crate) fn copy_live(&mut self, now_ms: u64, segment: SegmentId, offset: u32, batch: &[u8]) {
        let mut rest = &batch[BATCH_HEAD_BYTES..];
        while let Ok((raw, next)) = RawRecord::split(rest) {
            let at = batch.len() - rest.len();
            let at = offset + u32::try_from(at).expect("within a segment");
            self.copy_record(now_ms, raw, Place { segment, offset: at });
            rest = next;
        }
    }

    fn copy_record(&mut self, now_ms: u64, raw: RawRecord<'_>, from: Place) {
        match raw.parse() {
            Ok(View::Message(view)) => {
                if self.expire_message(now_ms, &view, from) {
                    return;
                }
                let mut live = std::mem::take(&mut self.reclaim.live);
                live.extend(view.mailboxes().filter(|id| self.is_live(*id, view.seq, from)));
                if is_active(Mutant::ReclaimDropsLive) {
                    live.clear();
                }
                if is_active(Mutant::ReclaimResurrectsAcked) && !live.is_empty() {
                    live.clear();
                    live.extend(view.mailboxes());
                }
                if !live.is_empty() {
                    let length = view.copy_bytes(live.len());
                    let place = self.reserve(length);
                    view.copy_to(&live, self.forming.buffer());
                    self.moves(&live, view.seq, from, place, length);
                    self.note_expiry(place.segment, view.expires_at_ms);
                }
                live.clear();
                self.reclaim.live = live;
            }
            Ok(View::Receipt(view)) => self.copy_small(raw, view.mailbox, view.seq, from),
            Ok(View::Gap(view)) => self.copy_small(raw, view.mailbox, view.seq, from),
            Ok(View::Device(view)) => {
                let Some(DeviceRecord { address, .. }) = view.to_record() else { return };
                if self.devices.get(&address).is_some_and(|slot| slot.place == from) {
                    let place = self.reserve(raw.length());
                    raw.copy_to(self.forming.buffer());
                    self.stats.reclaim_copied_bytes += raw.length() as u64;
                    self.forming.copies.push(Moved::Device { address, from, place });
                }
            }
            // All that an ack of the oldest segment covers goes with it.
            Ok(View::Ack { .. } | View::Clock { .. }) | Err(_) => {}
        }
    }

    fn copy_small(&mut self, raw: RawRecord<'_>, mailbox: u64, seq: u64, from: Place) {
        if self.is_live(mailbox, seq, from) {
            let place = self.reserve(raw.length());
            raw.copy_to(self.forming.buffer());
            self.moves(&[mailbox], seq, from, place, raw.length());
        }
    }

    /// Whether the entry is queued and its record is the one at `place`.
    pub(crate) fn is_live(&self, mailbox: u64, seq: u64, place: Place) -> bool {
        let entry = self.mailboxes.get(&mailbox).and_then(|queue| queue.find(seq));
        entry.is_some_and(|entry| entry.is_at(place))
    }

    fn moves(&mut self, live: &[u64], seq: u64, from: Place, place: Place, length: usize) {
        self.stats.reclaim_copied_bytes += length as u64;
        let length = u32::try_from(length).expect("at most RECORD_BYTES_MAX");
        let mailboxes = u32::try_from(live.len()).expect("at most MAILBOXES_PER_RECORD_MAX");
        let moved = live.iter().map(|id| {
            let mailbox = *id;
            Moved::Entry { mailbox, seq, from, place, length, mailboxes }
        });
        self.forming.copies.extend(moved);
    }

    /// The copy is durable: from now on the entry is read from there.
    pub(crate) fn move_entry(&mut self, moved: Moved) {
        match moved {
            Moved::Entry { mailbox, seq, from, place, length, mailboxes } => {
                let Some(mut queue) = self.mailboxes.get_mut(&mailbox) else { return };
                if queue.find(seq).is_none_or(|entry| !entry.is_at(from)) {
                    return;
                }
                let Some((old, new)) = queue.relocate(seq, place, length, mailboxes) else {
                    return;
                };
                self.log.sub_entry(&old);
                self.log.add_entry(&new);
            }
            Moved::Device { address, from, place } => {
                if let Some(slot) = self.devices.get(&address)
                    && slot.place == from
                {
                    self.install_device(address, crate::store::DeviceSlot { place, ..*slot });
                }
            }
        }
    }

    fn drain(&mut self, segment: SegmentId, barrier: u64) -> Option<(Task, DiskOp)> {
        if self.durable_batch < barrier && !is_active(Mutant::ReclaimBeforeCopiesDurable) {
            return None;
        }
        let oldest = self.log.get_mut(segment);
        if oldest.reads > 0 {
            return None;
        }
        if oldest.live_bytes > 0 {
            self.give_up(segment);
            return None;
        }
        self.reclaim.state = State::Unlinking;
        Some((Task::Unlink, DiskOp::Unlink { file: segment.into() }))
    }

    /// Live records that the scan did not find are damaged. Devices are written anew from memory;
    /// mailboxes get gaps. So many at a time that their records need little memory; what is left
    /// is found when these are durable.
    fn give_up(&mut self, segment: SegmentId) {
        // The lowest, by seq: the order of a hash table must not decide.
        let mut lost = BinaryHeap::new();
        for (mailbox, queue) in self.mailboxes.iter() {
            for entry in queue.entries.iter().filter(|entry| entry.is_in(segment)) {
                lost.push((entry.seq(), mailbox));
                if lost.len() > GIVE_UP_ENTRIES_MAX {
                    lost.pop();
                }
            }
        }
        let lost = lost.into_sorted_vec();
        for (seq, mailbox) in &lost {
            self.give_up_entry(*mailbox, *seq);
        }
        let devices = self.devices();
        let mut devices: Vec<_> = devices
            .filter(|device| {
                let slot = self.devices.get(&device.address);
                slot.is_some_and(|slot| slot.place.segment == segment)
            })
            .collect();
        devices.sort_unstable_by(|a, b| a.address.cmp(&b.address));
        for device in &devices {
            self.put_device(device);
        }
        if !lost.is_empty() {
            let entries = lost.len() as u64;
            self.events.push_back(StoreEvent::Damaged { segment, entries });
        }
        self.scanned(segment);
    }

    pub(crate) fn unlinked(&mut self) {
        self.reclaim.state = State::Unlinked;
    }

    /// Only now may the next segment go: an unlink that a crash undoes must not be of an older one.
    pub(crate) fn unlink_durable(&mut self) {
        self.log.pop_oldest();
        self.stats.reclaimed_segments += 1;
        self.sweep.goes_first = true;
        self.reclaim.state = State::Idle;
    }
}

/// Dead bytes that are left alone however little is live.
const SLACK_SEGMENTS: u64 = 2;
/// So many times the byte budget, at most, while the dead bytes are so many times their limit.
const URGENCY_MAX: u64 = 8;
/// Lost entries that become gaps in one go: 2.5 MiB of records.
const GIVE_UP_ENTRIES_MAX: usize = 1 << 16;
