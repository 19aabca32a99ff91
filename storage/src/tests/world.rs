//! A store, its disk and a model of what it promised.

use std::collections::BTreeMap;

use ringpost_protocol::id::{DeviceAddress, DeviceId, InstallId, MailboxId, SendSeq, Seq, UserId};

use super::disk::{Disk, Rng};
use crate::{
    DeviceRecord, DiskOp, DiskOpId, GapReason, NewMessage, OpenFault, Opening, ReadId, ReadStart,
    ReceiptRecord, RecordNumber, RecoveryReport, Store, StoreConfig, StoreEvent, StoredRecord,
};

pub(super) struct World {
    pub(super) config: StoreConfig,
    pub(super) disk: Disk,
    pub(super) store: Store,
    pub(super) report: RecoveryReport,
    pub(super) now_ms: u64,
    pending: Vec<(DiskOpId, DiskOp)>,
    pub(super) read: BTreeMap<ReadId, Result<StoredRecord, crate::Fault>>,
    pub(super) failed: bool,
    /// Of the messages to come.
    pub(super) expires_at_ms: u64,
    /// What reclaim could not copy.
    pub(super) damaged_entries: u64,
    /// What each mailbox must hold: seq, and a fingerprint of the record.
    pub(super) model: BTreeMap<(u64, u64), Promise>,
    pub(super) devices: BTreeMap<u64, RecordNumber>,
    /// The highest seq that was ever durable: new ones are above.
    highest: u64,
}

/// One entry as the callers know it.
#[derive(Clone, Debug)]
pub(super) struct Promise {
    content: u64,
    number: RecordNumber,
    /// Deleted by this command: gone once that is durable, open until then.
    deleted_by: Option<RecordNumber>,
}

pub(super) fn small_config() -> StoreConfig {
    StoreConfig {
        segment_bytes: 128 << 10,
        fill_chunk_bytes: 32 << 10,
        batch_bytes_max: 32 << 10,
        cache_bytes: 24 << 10,
        reclaim_bytes_per_second: u32::MAX,
        ..StoreConfig::new(3, 0x5eed)
    }
}

pub(super) fn address(n: usize) -> DeviceAddress {
    let user = UserId::new(&format!("user{n}")).unwrap();
    DeviceAddress { user, device: DeviceId::new("phone").unwrap() }
}

pub(super) fn open(
    config: &StoreConfig,
    disk: &mut Disk,
) -> Result<(Store, RecoveryReport), OpenFault> {
    let mut opening = Opening::new(config.clone(), 7);
    while let Some((id, op)) = opening.poll_disk() {
        let result = disk.execute(op);
        opening.handle_disk(id, result);
    }
    opening.finish()
}

impl World {
    pub(super) fn new(config: StoreConfig) -> Self {
        Self::with_disk(config, Disk::default())
    }

    pub(super) fn with_disk(config: StoreConfig, mut disk: Disk) -> Self {
        let (store, report) = open(&config, &mut disk).unwrap();
        Self {
            config,
            disk,
            store,
            report,
            now_ms: 1,
            pending: Vec::new(),
            read: BTreeMap::new(),
            failed: false,
            expires_at_ms: u64::MAX,
            damaged_entries: 0,
            model: BTreeMap::new(),
            devices: BTreeMap::new(),
            highest: 0,
        }
    }

    /// Power failure, or kill -9 when nothing is forgotten; then open again.
    pub(super) fn reopen(&mut self, crash: Option<&mut Rng>) {
        self.pending.clear();
        if let Some(rng) = crash {
            self.disk.crash(rng);
        }
        self.disk.fail_in = None;
        let (store, report) = open(&self.config, &mut self.disk).unwrap();
        (self.store, self.report) = (store, report);
        self.read.clear();
        self.failed = false;
    }

    pub(super) fn message(&mut self, from: usize, to: &[u64], bytes: usize) -> Option<Seq> {
        let mailboxes: Vec<_> = to.iter().map(|id| MailboxId(*id)).collect();
        let number = self.store.last_assigned().0 + 1;
        let fill = u8::try_from(number % 251).unwrap();
        let envelope = vec![fill; bytes];
        let seq = self.store.append_message(&NewMessage {
            from: &address(from),
            install_id: InstallId(5),
            send_seq: SendSeq(number),
            message_number: ringpost_protocol::id::MessageNumber(SendSeq(number).0),
            sent_at_ms: 11,
            expires_at_ms: self.expires_at_ms,
            urgent: from.is_multiple_of(2),
            group: from.is_multiple_of(3).then_some("group"),
            mailboxes: &mailboxes,
            envelope: &envelope,
        });
        let seq = seq.ok()?;
        for mailbox in to {
            let fill = if bytes == 0 { 0 } else { fill };
            let content = number << 32 | u64::from(fill) << 24 | bytes as u64;
            self.promise(*mailbox, seq, content);
        }
        Some(seq)
    }

    pub(super) fn receipt(&mut self, mailbox: u64, peer: usize, up_to: u64) -> Seq {
        let seq = self.store.put_receipt(
            MailboxId(mailbox),
            &ReceiptRecord {
                peer: address(peer),
                group: None,
                install_id: InstallId(1),
                up_to_send_seq: SendSeq(up_to),
            },
        );
        let content = RECEIPT | u64::from(address(peer).hash32() % 1000) << 40;
        self.replace(mailbox, content, RECEIPT | 0xfff << 40, seq);
        self.promise(mailbox, seq, content | up_to);
        seq
    }

    pub(super) fn gap(&mut self, mailbox: u64) -> Seq {
        let seq = self.store.append_gap(MailboxId(mailbox), GapReason::Full, None);
        if !self.model.contains_key(&(mailbox, seq.0)) {
            self.gap_appeared(mailbox, seq, GapReason::Full);
        }
        seq
    }

    pub(super) fn expire(&mut self, mailbox: u64, seq: Seq, group: Option<&str>) -> Option<Seq> {
        let gap = self.store.expire(MailboxId(mailbox), seq, group)?;
        let replaced = self.model.get_mut(&(mailbox, seq.0)).unwrap();
        if replaced.deleted_by.is_none() {
            replaced.deleted_by = Some(RecordNumber::of(gap));
        }
        self.gap_appeared(mailbox, gap, GapReason::Expired);
        Some(gap)
    }

    fn gap_appeared(&mut self, mailbox: u64, seq: Seq, reason: GapReason) {
        let content = GAP | u64::from(reason.code());
        self.replace(mailbox, content, u64::MAX, seq);
        self.promise(mailbox, seq, content);
    }

    pub(super) fn device(&mut self, n: usize) {
        let mailbox = MailboxId(n as u64);
        let record = DeviceRecord { address: address(n), mailbox, created_unix_ms: 9 };
        let number = self.store.put_device(&record);
        self.devices.entry(n as u64).or_insert(number);
    }

    pub(super) fn ack(&mut self, mailbox: u64, up_to: Seq) {
        let number = self.store.ack(MailboxId(mailbox), up_to);
        let covered = self.model.range_mut((mailbox, 0)..=(mailbox, up_to.0));
        for (_, promise) in covered.filter(|(_, promise)| promise.deleted_by.is_none()) {
            promise.deleted_by = Some(number);
        }
    }

    fn replace(&mut self, mailbox: u64, content: u64, mask: u64, by: Seq) {
        let all = self.model.range_mut((mailbox, 0)..(mailbox, by.0));
        let same = all.filter(|(_, old)| {
            old.deleted_by.is_none() && old.content & mask == content && old.content >= GAP
        });
        for (_, old) in same {
            old.deleted_by = Some(RecordNumber::of(by));
        }
    }

    fn promise(&mut self, mailbox: u64, seq: Seq, content: u64) {
        assert!(seq.0 > self.highest, "seq went back");
        let promise = Promise { content, number: RecordNumber::of(seq), deleted_by: None };
        self.model.insert((mailbox, seq.0), promise);
    }

    /// One operation, of those under way a random one. `false`: nothing to do.
    pub(super) fn step(&mut self, rng: &mut Rng) -> bool {
        while let Some(next) = self.store.poll_disk(self.now_ms) {
            self.pending.push(next);
        }
        if self.pending.is_empty() {
            return false;
        }
        let (id, op) = self.pending.swap_remove(rng.below(self.pending.len()));
        let result = self.disk.execute(op);
        self.store.handle_disk(self.now_ms, id, result);
        while let Some(event) = self.store.poll_event() {
            match event {
                StoreEvent::ReadDone { id, result } => {
                    self.read.insert(id, result);
                }
                StoreEvent::Failed(_) => self.failed = true,
                StoreEvent::Damaged { entries, .. } => self.damaged_entries += entries,
                StoreEvent::Durable { .. }
                | StoreEvent::Replaced { .. }
                | StoreEvent::DiskFull { .. }
                | StoreEvent::DiskRecovered => {}
            }
        }
        true
    }

    /// Until nothing is left to do in the next seconds, timers included.
    pub(super) fn settle(&mut self, rng: &mut Rng) {
        let until = self.now_ms + 5000;
        loop {
            while self.step(rng) {}
            let next = self.store.poll_timeout().filter(|at| *at <= until);
            let Some(at) = next else { break };
            self.now_ms = self.now_ms.max(at);
        }
    }

    pub(super) fn read(&mut self, mailbox: u64, seq: Seq, rng: &mut Rng) -> Option<StoredRecord> {
        match self.store.read(MailboxId(mailbox), seq) {
            ReadStart::Ready(record) => Some(record),
            ReadStart::Gone => None,
            ReadStart::Pending(id) => {
                while !self.read.contains_key(&id) && self.step(rng) {}
                self.read.remove(&id)?.ok()
            }
        }
    }

    /// The reason and group of every gap of `mailbox`, in order.
    pub(super) fn gaps(&mut self, mailbox: u64, rng: &mut Rng) -> Vec<(GapReason, Option<String>)> {
        let queued = self.queued(mailbox);
        let records = queued.into_iter().filter_map(|seq| self.read(mailbox, seq, rng));
        let gaps = records.filter_map(|record| match record {
            StoredRecord::Gap { reason, group } => Some((reason, group.map(|g| g.to_string()))),
            _ => None,
        });
        gaps.collect()
    }

    /// All that recovery must find again after every command is durable.
    pub(super) fn snapshot(&self) -> (BTreeMap<u64, String>, u64, u64) {
        let queues = self.store.mailboxes.iter();
        let queues = queues.map(|(mailbox, queue)| {
            let bound = (queue.messages, queue.message_bytes);
            (mailbox, format!("{bound:?} {:?}", queue.entries))
        });
        (queues.collect(), self.store.entries, self.store.log.live_bytes)
    }

    /// What is in memory once all is durable, and what a new open makes of the disk, is the same.
    pub(super) fn reopen_finds_the_same(&mut self, rng: &mut Rng) {
        self.settle(rng);
        let before = self.snapshot();
        self.reopen(None);
        assert_eq!(self.snapshot(), before);
    }

    pub(super) fn queued(&self, mailbox: u64) -> Vec<Seq> {
        let mut after = Seq(0);
        let next = || {
            after = self.store.next(MailboxId(mailbox), after)?;
            Some(after)
        };
        std::iter::from_fn(next).collect()
    }

    /// After a reopen: is everything there that was promised, and nothing else? Then takes what
    /// is there as the new promise. `durable`: what the previous open had reported.
    pub(super) fn check(&mut self, durable: RecordNumber, rng: &mut Rng) -> Result<(), String> {
        let mut found = BTreeMap::new();
        for mailbox in 0..MAILBOXES {
            for seq in self.queued(mailbox) {
                let record = self.read(mailbox, seq, rng).ok_or("unreadable")?;
                found.insert((mailbox, seq.0), fingerprint(&record));
            }
        }
        for (key, promise) in &self.model {
            let deleted = promise.deleted_by;
            match found.get(key) {
                None if promise.number <= durable && deleted.is_none() => {
                    return Err(format!("lost {key:?} {promise:?}"));
                }
                Some(_) if deleted.is_some_and(|by| by <= durable) => {
                    return Err(format!("came back {key:?} {promise:?}"));
                }
                Some(content) if *content != promise.content => {
                    return Err(format!("changed {key:?} {promise:?} {content:x}"));
                }
                _ => {}
            }
        }
        let unknown = found.keys().find(|key| !self.model.contains_key(key));
        if let Some(key) = unknown {
            return Err(format!("never appended or long deleted: {key:?}"));
        }
        let known: Vec<_> = self.store.devices().map(|device| device.mailbox.0).collect();
        let lost = self.devices.iter().find(|(n, by)| **by <= durable && !known.contains(n));
        if let Some(device) = lost {
            return Err(format!("lost device {device:?}"));
        }
        self.devices = known.into_iter().map(|n| (n, RecordNumber(0))).collect();
        let settled =
            |(key, content)| (key, Promise { content, number: RecordNumber(0), deleted_by: None });
        self.model = found.into_iter().map(settled).collect();
        self.highest = self.model.keys().map(|key| key.1).fold(self.highest, u64::max);
        Ok(())
    }
}

fn fingerprint(record: &StoredRecord) -> u64 {
    match record {
        StoredRecord::Message(message) => {
            assert_eq!(message.sent_at_ms, 11);
            assert!(message.from_user.starts_with("user") && &*message.from_device == "phone");
            let fill = message.envelope.first().copied().unwrap_or_default();
            message.send_seq.0 << 32 | u64::from(fill) << 24 | message.envelope.len() as u64
        }
        StoredRecord::Receipt(receipt) => {
            let peer = u64::from(receipt.peer.hash32() % 1000) << 40;
            RECEIPT | peer | receipt.up_to_send_seq.0
        }
        StoredRecord::Gap { reason, .. } => GAP | u64::from(reason.code()),
    }
}

const GAP: u64 = 1 << 62;
const RECEIPT: u64 = 1 << 63;
pub(super) const MAILBOXES: u64 = 8;
