//! Replays batches into the index, in log order. Knows no disk.

use ringpost_protocol::id::{DeviceAddress, MailboxId};
use ringpost_protocol::mutant::{Mutant, is_active};
use std::collections::VecDeque;

use crate::batch::{BATCH_HEAD_BYTES, BatchHead, padded};
use crate::cache::Cache;
use crate::checkpoint::{Checkpoints, Found};
use crate::clock::ExpiryClock;
use crate::commit::{Commit, next_segment};
use crate::disk::SegmentId;
use crate::entry::{ENTRY_BYTES, Entry, Kind, Place};
use crate::fault::OpenFault;
use crate::forming::Forming;
use crate::gap::group_hash;
use crate::limits::{BLOCK_BYTES, StoreConfig};
use crate::prepare::DiskRoom;
use crate::queue::Mailboxes;
use crate::reclaim::Reclaim;
use crate::record::{DeviceRecord, RawRecord, RecordFault, View};
use crate::segment::Log;
use crate::store::{DeviceSlot, Devices, Store, StoreStats};
use crate::sweep::Sweep;
use crate::table::{HashSeed, Table};

/// The index as far as the log was read.
#[derive(Debug)]
pub(crate) struct Rebuild {
    seed: HashSeed,
    /// Emptied ones stay until the end. `acked` is the highest ack seen: by the order of the log
    /// nothing at or below it can follow; a log that breaks this rule still resurrects nothing.
    mailboxes: Mailboxes,
    devices: Devices,
    /// What is needed of each segment is counted at the end, once.
    log: Log,
    /// The highest of all batches.
    pub(crate) open_count: u32,
    /// The highest expiry clock, and where it stands.
    pub(crate) clock: (u64, SegmentId),
    /// What a checkpoint says of the messages in each segment.
    expiries: Vec<(SegmentId, u64)>,
    /// Bytes of the batches replayed.
    pub(crate) log_bytes: u64,
    /// End of the last good batch of the segment at hand.
    end: (SegmentId, u32),
    /// Segments that hold nothing were never pushed to the log.
    is_pushed: bool,
}

/// What a checkpoint knew in segments that are gone.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    /// Entries that were deleted since.
    pub(crate) outdated: u64,
    /// Seq and mailbox of those that cannot have been: each leaves a gap.
    pub(crate) lost: Vec<(u64, u64)>,
    /// Written again.
    devices: Vec<DeviceRecord>,
}

impl Rebuild {
    pub(crate) fn new(hash_seed: u64) -> Self {
        let seed = HashSeed(hash_seed);
        Self {
            seed,
            mailboxes: Mailboxes::new(seed),
            devices: Table::new(seed),
            log: Log::default(),
            open_count: 0,
            clock: (0, SegmentId(0)),
            expiries: Vec::new(),
            log_bytes: 0,
            end: (SegmentId(0), BLOCK_BYTES),
            is_pushed: false,
        }
    }

    pub(crate) fn begin_segment(&mut self, segment: SegmentId) {
        self.end = (segment, BLOCK_BYTES);
        self.is_pushed = false;
    }

    /// Where the good batches of `segment` end, if it is the one at hand.
    pub(crate) fn log_end(&self, segment: SegmentId) -> u32 {
        if self.end.0 == segment { self.end.1 } else { BLOCK_BYTES }
    }

    /// The file ends at `bytes`: all of it counts as space taken.
    pub(crate) fn end_segment(&mut self, bytes: u32) {
        let (segment, end) = self.end;
        self.push_segment();
        self.log.extend(segment, bytes.max(end));
    }

    /// Nothing was found in `segment`, and its file goes.
    pub(crate) fn drop_segment(&mut self, segment: SegmentId) {
        self.log.forget(segment);
    }

    fn push_segment(&mut self) {
        if !self.is_pushed {
            self.log.push(self.end.0, BLOCK_BYTES);
            self.is_pushed = true;
        }
    }

    /// Applies a verified batch that stands at `offset` of `segment`.
    pub(crate) fn batch(
        &mut self,
        segment: SegmentId,
        offset: u32,
        head: &BatchHead,
        records: &[u8],
    ) -> Result<(), OpenFault> {
        self.push_segment();
        self.open_count = self.open_count.max(head.open_count);
        let mut rest = records;
        while !rest.is_empty() {
            let at = BATCH_HEAD_BYTES + records.len() - rest.len();
            let at = u32::try_from(at).expect("a batch has at most LENGTH_MAX bytes");
            let place = Place { segment, offset: offset + at };
            let (raw, next) = RawRecord::split(rest).map_err(|_| malformed(place, rest))?;
            if next.is_empty() && is_active(Mutant::RecoverySkipsLastRecord) {
                break;
            }
            let view = raw.parse().map_err(|fault| refuse(place, raw, fault))?;
            let found = view.highest_seq().open_count();
            if found > head.open_count {
                return Err(OpenFault::LaterOpen { segment, offset: place.offset, found });
            }
            self.record(view, raw, place);
            rest = next;
        }
        self.end = (segment, offset + padded(head.length));
        self.log_bytes += u64::from(padded(head.length));
        Ok(())
    }

    fn record(&mut self, view: View<'_>, raw: RawRecord<'_>, place: Place) {
        let length = u32::try_from(raw.length()).expect("within a batch");
        match view {
            View::Message(view) => {
                self.log.get_mut(place.segment).note_expiry(view.expires_at_ms);
                let mailboxes = view.mailboxes();
                let count = u32::try_from(mailboxes.len()).expect("a u16 on disk");
                let kind = Kind::Message { sender: view.sender, mailboxes: count };
                for mailbox in mailboxes {
                    self.entry(mailbox, Entry::new(view.seq, place, length, kind));
                }
            }
            View::Receipt(view) => {
                let kind = Kind::Receipt { slot: view.slot };
                self.replace(view.mailbox, Entry::new(view.seq, place, length, kind), kind);
            }
            View::Gap(view) => {
                let kind = Kind::Gap { reason: view.reason, group: group_hash(view.group) };
                // Even if a later gap is known already: what this one replaced was before it.
                self.remove(view.mailbox, view.replaces);
                self.replace(view.mailbox, Entry::new(view.seq, place, length, kind), kind);
            }
            View::Device(view) => {
                if let Some(DeviceRecord { address, mailbox, created_unix_ms }) = view.to_record() {
                    let slot = DeviceSlot { mailbox: mailbox.0, created_unix_ms, place, length };
                    self.devices.insert(address, slot);
                }
            }
            View::Ack { .. } if is_active(Mutant::RecoveryForgetsAcks) => {}
            View::Ack { mailbox, up_to } => self.ack(mailbox, up_to),
            View::Clock { unix_ms } => self.clock = self.clock.max((unix_ms, place.segment)),
        }
    }

    /// A message, or a copy of one that is already known: the later place counts.
    fn entry(&mut self, mailbox: u64, entry: Entry) {
        let mut queue = self.mailboxes.get_or_default(mailbox);
        if entry.seq() > queue.acked {
            queue.remove(entry.seq());
            queue.insert(entry);
        }
    }

    fn replace(&mut self, mailbox: u64, entry: Entry, kind: Kind) {
        if let Some(mut queue) = self.mailboxes.get_mut(&mailbox)
            && let Some(old) = queue.replaceable(kind)
        {
            if old.seq() > entry.seq() {
                return;
            }
            queue.remove(old.seq());
        }
        self.entry(mailbox, entry);
    }

    fn remove(&mut self, mailbox: u64, seq: u64) {
        if let Some(mut queue) = self.mailboxes.get_mut(&mailbox) {
            queue.remove(seq);
        }
    }

    fn ack(&mut self, mailbox: u64, up_to: u64) {
        let mut queue = self.mailboxes.get_or_default(mailbox);
        queue.acked = up_to.max(queue.acked);
        while queue.pop(up_to).is_some() {}
    }

    /// Entries of a checkpoint, in seq order: `None` when they are not.
    pub(crate) fn restore_queue(
        &mut self,
        mailbox: u64,
        acked: u64,
        entries: &[[u8; ENTRY_BYTES]],
    ) -> Option<()> {
        let mut queue = self.mailboxes.get_or_default(mailbox);
        queue.acked = queue.acked.max(acked);
        queue.entries.reserve_exact(entries.len());
        for bytes in entries {
            let entry = Entry::from_bytes(bytes)?;
            if queue.entries.back().is_some_and(|last| last.seq() >= entry.seq()) {
                return None;
            }
            queue.insert(entry);
        }
        Some(())
    }

    pub(crate) fn restore_device(&mut self, address: DeviceAddress, slot: DeviceSlot) {
        self.devices.insert(address, slot);
    }

    pub(crate) fn restore_expiry(&mut self, segment: SegmentId, earliest_expiry_ms: u64) {
        self.expiries.push((segment, earliest_expiry_ms));
    }

    /// Counts what is needed of each segment, and drops what a checkpoint knew in a segment that is
    /// gone: it was deleted since, or is lost. `newest`: the last segment that was ever named. A
    /// device is never deleted: one whose newer record is missing can be written again.
    fn count(&mut self, newest: SegmentId) -> Dropped {
        let mut tally = self.log.tally();
        let mut dropped = Dropped::default();
        let mut is_outdated = false;
        for (mailbox, queue) in self.mailboxes.iter() {
            for entry in &queue.entries {
                if !tally.add_entry(entry) {
                    is_outdated = true;
                    if tally.has_lost(entry, newest) {
                        dropped.lost.push((entry.seq(), mailbox));
                    }
                }
            }
        }
        for (address, slot) in self.devices.iter() {
            if !tally.add(slot.place.segment.0, slot.length) {
                dropped.devices.push(DeviceRecord {
                    address: address.clone(),
                    mailbox: MailboxId(slot.mailbox),
                    created_unix_ms: slot.created_unix_ms,
                });
            }
        }
        // The order of a hash table must not decide.
        dropped.lost.sort_unstable();
        dropped.devices.sort_unstable_by(|a, b| a.address.cmp(&b.address));
        for device in &dropped.devices {
            self.devices.remove(&device.address);
        }
        self.log.set_live(&tally);
        if is_outdated {
            let gone = self.mailboxes.retain_entries(|entry| tally.knows(entry));
            dropped.outdated = gone - dropped.lost.len() as u64;
        }
        dropped
    }

    /// The store, about to begin a segment behind all that are there and all up to `named`, and what
    /// a checkpoint knew in vain.
    pub(crate) fn finish(
        mut self,
        config: StoreConfig,
        open_count: u32,
        next_batch: u64,
        named: SegmentId,
        checkpoints: Found,
    ) -> (Store, Dropped) {
        let last = self.log.newest().map_or(named, |newest| newest.max(named));
        let dropped = self.count(last);
        for (segment, earliest_expiry_ms) in &self.expiries {
            self.log.note_expiry(*segment, *earliest_expiry_ms);
        }
        self.mailboxes.tidy();
        let entries = self.mailboxes.iter().map(|(_, queue)| queue.entries.len() as u64).sum();
        let Self { seed, mailboxes, devices, log, clock, .. } = self;
        let mut store = Store {
            open_count,
            last_assigned: 0,
            last_gap_in_place: 0,
            durable_record: 0,
            durable_batch: next_batch - 1,
            mailboxes,
            entries,
            devices,
            log,
            forming: Forming::new(next_batch, next_segment(last), seed),
            commit: Commit::Idle,
            preparations: VecDeque::new(),
            cache: Cache::new(config.cache_bytes),
            tasks: hashbrown::HashMap::with_hasher(seed),
            last_op: 0,
            reads: VecDeque::new(),
            reads_in_flight: 0,
            last_read: 0,
            reclaim: Reclaim::default(),
            scan: None,
            next_scan_read_ms: 0,
            sweep: Sweep::default(),
            room: DiskRoom::default(),
            clock: ExpiryClock::recovered(clock.0, clock.1),
            checkpoints: Checkpoints::new(checkpoints),
            // At once: the last batch of the previous open gets its attestation, and the new
            // segment is ready before the first command.
            attest_at_ms: Some(0),
            events: VecDeque::new(),
            failed: false,
            stats: StoreStats::default(),
            config,
        };
        store.start_segment();
        for device in &dropped.devices {
            store.put_device(device);
        }
        for (seq, mailbox) in &dropped.lost {
            store.give_up_entry(*mailbox, *seq);
        }
        (store, dropped)
    }
}

fn refuse(place: Place, raw: RawRecord<'_>, fault: RecordFault) -> OpenFault {
    let name = if fault == RecordFault::Malformed { "malformed" } else { raw.name() };
    let Place { segment, offset } = place;
    OpenFault::UnknownRecord { segment, offset, kind: raw.kind, name, version: raw.version }
}

fn malformed(place: Place, rest: &[u8]) -> OpenFault {
    let Place { segment, offset } = place;
    let kind = rest.first().copied().unwrap_or_default();
    let version = rest.get(1).copied().unwrap_or_default();
    OpenFault::UnknownRecord { segment, offset, kind, name: "malformed", version }
}
