//! A store on a disk in memory: how it is opened and driven.

use std::collections::BTreeMap;

use ringpost_protocol::id::{MailboxId, Seq};
use ringpost_storage::inspect;
use ringpost_storage::{
    DiskOp, DiskOpId, OpenFault, Opening, ReadId, ReadStart, RecoveryReport, Store, StoreConfig,
    StoreEvent, StoredRecord,
};

use crate::disk::Disk;

/// An open store.
pub(crate) struct Driven {
    pub(crate) store: Store,
    pub(crate) report: RecoveryReport,
    pub(crate) now_ms: u64,
    /// Operations handed out and not yet executed.
    pub(crate) pending: Vec<(DiskOpId, DiskOp)>,
    read: BTreeMap<ReadId, Option<StoredRecord>>,
    pub(crate) failed: bool,
}

pub(crate) fn config() -> StoreConfig {
    StoreConfig {
        segment_bytes: 128 << 10,
        fill_chunk_bytes: 8 << 10,
        batch_bytes_max: 16 << 10,
        cache_bytes: 0,
        reclaim_bytes_per_second: u32::MAX,
        checkpoint_log_bytes: 64 << 10,
        checkpoint_chunk_bytes: 512,
        checkpoint_bytes_per_second: u32::MAX,
        ..StoreConfig::new(SHARD, STORE_ID)
    }
}

impl Driven {
    pub(crate) fn open(disk: &mut Disk, hash_seed: u64) -> Result<Self, OpenFault> {
        let mut opening = Opening::new(config(), hash_seed);
        while let Some((id, op)) = opening.poll_disk() {
            let result = disk.execute(op);
            opening.handle_disk(id, result);
            let progress = opening.progress();
            assert!(progress.bytes_read <= READS_OF_A_BYTE_MAX * (progress.bytes_total + 1));
        }
        let (store, report) = opening.finish()?;
        Ok(Self {
            store,
            report,
            now_ms: 1,
            pending: Vec::new(),
            read: BTreeMap::new(),
            failed: false,
        })
    }

    /// Executes one operation of those under way; false: there is none.
    pub(crate) fn step(&mut self, disk: &mut Disk, choice: usize) -> bool {
        while let Some(next) = self.store.poll_disk(self.now_ms) {
            self.pending.push(next);
        }
        let Some(choice) = choice.checked_rem(self.pending.len()) else { return false };
        let (id, op) = self.pending.swap_remove(choice);
        let result = disk.execute(op);
        self.store.handle_disk(self.now_ms, id, result);
        self.take_events();
        true
    }

    fn take_events(&mut self) {
        while let Some(event) = self.store.poll_event() {
            match event {
                StoreEvent::ReadDone { id, result } => drop(self.read.insert(id, result.ok())),
                StoreEvent::Failed(_) => self.failed = true,
                _ => {}
            }
        }
    }

    /// Until there is nothing left to do.
    pub(crate) fn settle(&mut self, disk: &mut Disk) {
        disk.executed = 0;
        for _ in 0..TIMEOUTS_MAX {
            while self.step(disk, 0) {}
            match self.store.poll_timeout() {
                Some(at_ms) => self.now_ms = self.now_ms.max(at_ms),
                None => return,
            }
        }
        assert!(self.store.is_idle() || self.failed, "the store does not come to rest");
    }

    fn read(&mut self, disk: &mut Disk, mailbox: MailboxId, seq: Seq) -> Option<StoredRecord> {
        match self.store.read(mailbox, seq) {
            ReadStart::Ready(record) => Some(record),
            ReadStart::Gone => panic!("{seq:?} of {mailbox:?} is named, and gone"),
            ReadStart::Pending(id) => {
                while !self.read.contains_key(&id) {
                    assert!(self.step(disk, 0), "a read that does not end");
                }
                self.read.remove(&id).expect("just seen")
            }
        }
    }

    /// Reads everything that is shown. What is damaged leaves a gap.
    pub(crate) fn snapshot(&mut self, disk: &mut Disk) {
        for mailbox in inspect::mailboxes(&self.store) {
            let mut after = Seq(0);
            while let Some(seq) = self.store.next(mailbox, after) {
                assert!(seq > after && seq <= self.store.tail(mailbox), "seq does not rise");
                let was_damaged = self.store.stats().damaged_records;
                let record = self.read(disk, mailbox, seq);
                let is_damaged = self.store.stats().damaged_records > was_damaged;
                assert!(record.is_some() || is_damaged || self.failed, "lost in silence");
                after = seq;
            }
        }
    }
}

pub(crate) const SHARD: u16 = 3;
pub(crate) const STORE_ID: u64 = 0x0123_4567_89ab_cdef;
/// Damaged lengths make the same bytes be read again, but not without end.
const READS_OF_A_BYTE_MAX: u64 = 64;
/// The expiry clock is logged each minute, for ever.
const TIMEOUTS_MAX: usize = 8;
