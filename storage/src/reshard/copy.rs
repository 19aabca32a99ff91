//! Copies what one source still needs into the targets.

use bytes::Bytes;
use hashbrown::HashMap;
use ringpost_protocol::id::{MailboxId, Seq};
use ringpost_protocol::mutant::{Mutant, is_active};

use super::writer::Writer;
use super::{ReshardFault, ReshardReport, orphan_home};
use crate::batch::{BATCH_HEAD_BYTES, Scan, Scanner, padded};
use crate::blocking::BlockingDisk;
use crate::disk::{DiskOp, DiskOutcome, FileId, SegmentId};
use crate::entry::Place;
use crate::record::{self, DeviceRecord, GapReason, NewGap, RawRecord, View};
use crate::store::Store;
use crate::table::HashSeed;

pub(super) struct Copier<'a, D> {
    source: &'a Store,
    disk: &'a mut D,
    targets: &'a mut [Writer<D>],
    report: &'a mut ReshardReport,
    /// Target of each mailbox that has a device.
    homes: HashMap<u64, usize, HashSeed>,
    /// Batches that were read, in log order; those that meet are one range.
    read: Vec<ReadRange>,
    entries: u64,
    /// Live mailboxes of the record at hand, by target; kept to spare allocations.
    live: Vec<(usize, u64)>,
    picked: Vec<u64>,
}

struct ReadRange {
    segment: SegmentId,
    offset: u32,
    end: u32,
}

impl<'a, D: BlockingDisk> Copier<'a, D> {
    pub(super) fn new(
        source: &'a Store,
        disk: &'a mut D,
        targets: &'a mut [Writer<D>],
        report: &'a mut ReshardReport,
    ) -> Self {
        // Looked up only, so its order cannot show.
        let homes = HashMap::with_hasher(HashSeed(source.config.store_id));
        let (read, live, picked) = (Vec::new(), Vec::new(), Vec::new());
        Self { source, disk, targets, report, homes, read, entries: 0, live, picked }
    }

    /// `on_bytes` is told how many bytes of the source have been dealt with.
    pub(super) fn run(&mut self, on_bytes: &mut dyn FnMut(u64)) -> Result<(), ReshardFault> {
        self.copy_devices()?;
        self.copy_clock()?;
        let source = self.source;
        let mut before = 0;
        for segment in source.log.segments() {
            let end = segment.used_bytes;
            self.copy_segment(segment.id, end, &mut |bytes| on_bytes(before + bytes))?;
            before += u64::from(end);
        }
        if self.entries < self.source.entries {
            self.rescue()?;
        }
        Ok(())
    }

    /// From memory, so that no damage can part a mailbox from its device.
    fn copy_devices(&mut self) -> Result<(), ReshardFault> {
        let mut devices: Vec<DeviceRecord> = self.source.devices().collect();
        devices.sort_unstable_by(|a, b| a.address.cmp(&b.address));
        let shards = u16::try_from(self.targets.len()).expect("storage shards are a u16");
        let first = devices.first().map(|device| device.address.user.slot());
        for device in &devices {
            let slot = device.address.user.slot();
            if is_active(Mutant::ReshardLosesSlot) && first == Some(slot) {
                continue;
            }
            let home = usize::from(slot.shard(shards));
            self.homes.insert(device.mailbox.0, home);
            let length = record::device_bytes(device);
            self.targets[home].record(length, |out| record::put_device(device, out))?;
            self.report.devices += 1;
        }
        Ok(())
    }

    /// To each target: recovery takes the highest that the sources knew.
    fn copy_clock(&mut self) -> Result<(), ReshardFault> {
        let clock_ms = self.source.clock.logged_ms;
        if clock_ms > 0 {
            for target in &mut *self.targets {
                let length = record::CLOCK_BYTES;
                target.record(length, |out| record::put_clock(clock_ms, out))?;
            }
        }
        Ok(())
    }

    fn copy_segment(
        &mut self,
        segment: SegmentId,
        end: u32,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<(), ReshardFault> {
        let mut scanner = Scanner::new(self.source.config.origin(), segment, end, READ_BYTES);
        loop {
            match scanner.next() {
                Scan::Batch { head, offset, bytes } => {
                    self.note_read(segment, offset, head.length);
                    self.copy_batch(segment, offset, &bytes)?;
                }
                // What it held is missed at the end.
                Scan::Damage { .. } => {}
                Scan::More { offset, length_bytes } => {
                    on_bytes(u64::from(offset));
                    match self.read(segment, offset, length_bytes) {
                        Some(bytes) => scanner.feed(offset, length_bytes, bytes),
                        // Missed at the end, like what is damaged.
                        None => drop(scanner.unreadable(length_bytes)),
                    }
                }
                Scan::End => return Ok(()),
            }
        }
    }

    /// `None`: unreadable, though tried again.
    fn read(&mut self, segment: SegmentId, offset: u32, length_bytes: u32) -> Option<Bytes> {
        let file = FileId::Segment(segment);
        let op = DiskOp::Read { file, offset: u64::from(offset), length_bytes };
        (0..READ_ATTEMPTS).find_map(|_| match self.disk.execute(op.clone()) {
            Ok(DiskOutcome::Read(bytes)) => Some(bytes),
            _ => None,
        })
    }

    fn note_read(&mut self, segment: SegmentId, offset: u32, length: u32) {
        let end = offset + padded(length);
        match self.read.last_mut() {
            Some(last) if last.segment == segment && last.end == offset => last.end = end,
            _ => self.read.push(ReadRange { segment, offset, end }),
        }
    }

    fn copy_batch(
        &mut self,
        segment: SegmentId,
        offset: u32,
        batch: &[u8],
    ) -> Result<(), ReshardFault> {
        let mut rest = batch.get(BATCH_HEAD_BYTES..).unwrap_or_default();
        while let Ok((raw, next)) = RawRecord::split(rest) {
            let at = u32::try_from(batch.len() - rest.len()).expect("within a segment");
            self.copy_record(raw, Place { segment, offset: offset + at })?;
            rest = next;
        }
        Ok(())
    }

    fn copy_record(&mut self, raw: RawRecord<'_>, place: Place) -> Result<(), ReshardFault> {
        match raw.parse() {
            Ok(View::Message(view)) => {
                let mut live = std::mem::take(&mut self.live);
                live.clear();
                for mailbox in view.mailboxes() {
                    if self.source.is_live(mailbox, view.seq, place) {
                        live.push((self.home(mailbox), mailbox));
                    }
                }
                // Stable: within a target the mailboxes keep their order.
                live.sort_by_key(|(home, _)| *home);
                let all = view.mailboxes().len();
                for group in live.chunk_by(|a, b| a.0 == b.0) {
                    self.entries += group.len() as u64;
                    self.report.entries += group.len() as u64;
                    self.report.records += 1;
                    let target = &mut self.targets[group[0].0];
                    if group.len() == all {
                        target.record(raw.length(), |out| raw.copy_to(out))?;
                        continue;
                    }
                    self.picked.clear();
                    self.picked.extend(group.iter().map(|(_, mailbox)| *mailbox));
                    let length = view.copy_bytes(group.len());
                    target.record(length, |out| view.copy_to(&self.picked, out))?;
                }
                self.live = live;
                Ok(())
            }
            Ok(View::Receipt(view)) => self.copy_small(raw, view.mailbox, view.seq, place),
            Ok(View::Gap(view)) => self.copy_small(raw, view.mailbox, view.seq, place),
            // Devices come from memory; nothing that an ack covers is copied.
            Ok(View::Device(_) | View::Ack { .. } | View::Clock { .. }) | Err(_) => Ok(()),
        }
    }

    fn copy_small(
        &mut self,
        raw: RawRecord<'_>,
        mailbox: u64,
        seq: u64,
        place: Place,
    ) -> Result<(), ReshardFault> {
        if !self.source.is_live(mailbox, seq, place) {
            return Ok(());
        }
        let home = self.home(mailbox);
        self.entries += 1;
        self.report.entries += 1;
        self.report.records += 1;
        self.targets[home].record(raw.length(), |out| raw.copy_to(out))
    }

    fn home(&mut self, mailbox: u64) -> usize {
        match self.homes.get(&mailbox) {
            Some(home) => *home,
            None => {
                self.report.orphaned_entries += 1;
                orphan_home(MailboxId(mailbox), self.targets.len())
            }
        }
    }

    /// Reads one by one the records whose batches could not be read; a record has a checksum of
    /// its own.
    fn rescue(&mut self) -> Result<(), ReshardFault> {
        let missed = self.missed();
        for group in missed.chunk_by(|a, b| a.place == b.place) {
            let Missed { place, length, .. } = group[0];
            let bytes = self.read(place.segment, place.offset, length).unwrap_or_default();
            let before = self.entries;
            if let Ok((raw, rest)) = RawRecord::split(&bytes)
                && rest.is_empty()
                && raw.verify()
            {
                self.copy_record(raw, place)?;
            }
            if self.entries == before {
                for lost in group {
                    self.give_up(lost)?;
                }
            }
        }
        Ok(())
    }

    /// A gap takes the entry's place, with a seq above all that the mailbox ever had.
    fn give_up(&mut self, lost: &Missed) -> Result<(), ReshardFault> {
        self.report.damaged_entries += 1;
        let seq = Seq::new(self.report.plan.open_count, self.report.damaged_entries);
        let gap = NewGap { reason: GapReason::Damaged, replaces: lost.seq, group: "" };
        let home = self.home(lost.mailbox);
        let length = record::gap_bytes("");
        self.targets[home].record(length, |out| record::put_gap(lost.mailbox, seq.0, gap, out))
    }

    /// Entries in no range that was read, in log order.
    fn missed(&self) -> Vec<Missed> {
        let mut missed = Vec::new();
        for (mailbox, queue) in self.source.mailboxes.iter() {
            for entry in &queue.entries {
                let place = self.source.log.place(entry);
                if !self.was_read(place) {
                    let (length, seq) = (entry.length(), entry.seq());
                    missed.push(Missed { place, length, mailbox, seq });
                }
            }
        }
        missed.sort_unstable_by_key(|entry| {
            (entry.place.segment, entry.place.offset, entry.mailbox, entry.seq)
        });
        missed
    }

    fn was_read(&self, place: Place) -> bool {
        let key = (place.segment, place.offset);
        let after = self.read.partition_point(|range| (range.segment, range.offset) <= key);
        let before = after.checked_sub(1).map(|at| &self.read[at]);
        before.is_some_and(|range| range.segment == place.segment && place.offset < range.end)
    }
}

/// An entry whose batch could not be read.
struct Missed {
    place: Place,
    length: u32,
    mailbox: u64,
    seq: u64,
}

const READ_BYTES: u32 = 4 << 20;
/// As a store does when a record cannot be read.
const READ_ATTEMPTS: u32 = 3;
