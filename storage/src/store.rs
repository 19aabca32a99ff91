//! The store of one shard: commands in, events out. Its disk operations are in `commit` and
//! `reclaim`, its beginning in `recovery`.

use std::collections::VecDeque;

use hashbrown::HashMap;
use ringpost_protocol::id::{DeviceAddress, MailboxId, Seq};
use ringpost_protocol::mutant::{Mutant, is_active};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::cache::Cache;
use crate::checkpoint::Checkpoints;
use crate::clock::ExpiryClock;
use crate::commit::{Commit, Task};
use crate::disk::SegmentId;
use crate::entry::{Entry, Kind, Place};
use crate::fault::{Fault, StoreFull};
use crate::forming::Forming;
use crate::limits::{MAILBOXES_PER_RECORD_MAX, RECORD_BYTES_MAX, StoreConfig};
use crate::prepare::DiskRoom;
use crate::queue::Mailboxes;
use crate::read::ReadTask;
use crate::reclaim::Reclaim;
use crate::record::{self, DeviceRecord, NewMessage, ReceiptRecord, StoredRecord};
use crate::scan::SegmentScan;
use crate::segment::{Log, Preparation};
use crate::sweep::Sweep;
use crate::table::{HashSeed, Table};

/// One shard's store. Made by [`crate::Opening`].
///
/// Four kinds of methods. Commands (`append_message`, `put_receipt`, `ack`, ...) take effect in
/// memory at once, get a [`RecordNumber`], and join the forming batch. Getters see durable entries
/// only. `poll_disk` gives operations until `None`; `handle_disk` takes each result; then
/// `poll_event` until `None`, and `poll_disk` again. `poll_timeout` says when to poll though
/// nothing happened.
#[derive(Debug)]
pub struct Store {
    pub(crate) config: StoreConfig,
    pub(crate) open_count: u32,
    /// Number of the last command.
    pub(crate) last_assigned: u64,
    pub(crate) durable_record: u64,
    /// Seq of the last gap that took the place of another entry, of any mailbox.
    pub(crate) last_gap_in_place: u64,
    pub(crate) durable_batch: u64,
    pub(crate) mailboxes: Mailboxes,
    pub(crate) entries: u64,
    pub(crate) devices: Devices,
    pub(crate) log: Log,
    pub(crate) forming: Forming,
    pub(crate) commit: Commit,
    pub(crate) preparations: VecDeque<Preparation>,
    pub(crate) cache: Cache,
    pub(crate) tasks: HashMap<u64, Task, HashSeed>,
    pub(crate) last_op: u64,
    pub(crate) reads: VecDeque<ReadTask>,
    /// 0 <= reads_in_flight <= READS_IN_FLIGHT_MAX
    pub(crate) reads_in_flight: usize,
    pub(crate) last_read: u64,
    pub(crate) reclaim: Reclaim,
    pub(crate) scan: Option<SegmentScan>,
    /// The byte budget: no read of a scan before this time.
    pub(crate) next_scan_read_ms: u64,
    pub(crate) sweep: Sweep,
    pub(crate) clock: ExpiryClock,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) room: DiskRoom,
    /// When the idle store writes an empty batch that attests the last one.
    pub(crate) attest_at_ms: Option<u64>,
    pub(crate) events: VecDeque<StoreEvent>,
    pub(crate) failed: bool,
    pub(crate) stats: StoreStats,
}

pub(crate) type Devices = Table<DeviceAddress, DeviceSlot>;

/// A device and its record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceSlot {
    pub(crate) mailbox: u64,
    pub(crate) created_unix_ms: u64,
    pub(crate) place: Place,
    pub(crate) length: u32,
}

/// Number of a command within this open, from 1. Zero: before the first. Commands of one batch
/// may share one: it says only which batch must be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RecordNumber(pub u64);

/// Names one read between [`Store::read`] and [`StoreEvent::ReadDone`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReadId(pub u64);

/// How a read begins.
#[derive(Clone, Debug)]
pub enum ReadStart {
    /// The batch is in memory; the record shares its bytes.
    Ready(StoredRecord),
    /// [`StoreEvent::ReadDone`] follows.
    Pending(ReadId),
    /// No such durable entry: acknowledged or replaced meanwhile.
    Gone,
}

/// Whether a mailbox takes one more message of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Free,
    /// The mailbox is at its bound.
    Full,
    /// The sender holds its share of the mailbox.
    SenderShare,
}

#[derive(Clone, Debug)]
pub enum StoreEvent {
    /// Every command up to this number survives a crash.
    Durable { up_to: RecordNumber },
    /// After an error the entry is gone: its mailbox has a gap instead, or was acknowledged.
    ReadDone { id: ReadId, result: Result<StoredRecord, Fault> },
    /// A gap took the place of an entry of this mailbox: show it to the device once it is durable.
    Replaced { mailbox: MailboxId },
    /// Reclaim found records whose bytes on disk are damaged. Their mailboxes got gaps instead.
    Damaged { segment: SegmentId, entries: u64 },
    /// There is no room for the next segment: messages are refused, the rest goes on.
    DiskFull { since_ms: u64 },
    /// Messages are taken again.
    DiskRecovered,
    /// The store takes and gives nothing more.
    Failed(Fault),
}

/// Figures for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    pub segments: u64,
    /// Bytes of the log: whole segments, the newest up to its last batch.
    pub file_bytes: u64,
    /// Bytes of records that are still needed.
    pub live_bytes: u64,
    /// Mailboxes that hold something.
    pub mailboxes: u64,
    pub entries: u64,
    /// Memory of the index: hash tables and queues of the mailboxes, with the room they keep free.
    pub index_bytes: u64,
    pub devices: u64,
    /// Commands that are not durable yet.
    pub queued_records: u64,
    pub queued_bytes: u64,
    pub cache_bytes: u64,
    pub batches_written: u64,
    pub batch_bytes_written: u64,
    pub checkpoints_written: u64,
    /// Bytes of the checkpoints that were completed.
    pub checkpoint_bytes_written: u64,
    /// Checkpoints that the disk refused; the store went on.
    pub checkpoints_failed: u64,
    pub reclaimed_segments: u64,
    pub reclaim_copied_bytes: u64,
    pub reads_from_cache: u64,
    pub reads_from_disk: u64,
    /// Reads that wait until others have ended.
    pub reads_waiting: u64,
    /// Entries that cannot be read any more, each replaced by a gap.
    pub damaged_records: u64,
    /// Batches that were durable and could not be read when the store was opened.
    pub lost_batches: u64,
    /// Messages are refused: see [`StoreFull::Disk`].
    pub disk_full: bool,
    /// Messages that were kept for their whole time, each replaced by a gap.
    pub expired_records: u64,
}

impl RecordNumber {
    /// The number that must be durable for `seq`, a seq of this open, to be durable.
    pub fn of(seq: Seq) -> Self {
        Self(seq.0 & ((1 << Seq::RECORD_BITS) - 1))
    }
}

impl Store {
    /// Appends one record for all of the message's mailboxes. Ask [`Self::room`] before: the
    /// bounds are not enforced here, so that the caller can name the mailboxes it skips.
    pub fn append_message(&mut self, message: &NewMessage<'_>) -> Result<Seq, StoreFull> {
        if self.cannot_number() {
            return Err(StoreFull::Failed);
        }
        if self.forming.queued_bytes() >= self.config.queued_bytes_max || self.log.is_at_its_limit()
        {
            return Err(StoreFull::Queue);
        }
        if self.room.is_full() {
            return Err(StoreFull::Disk);
        }
        let count = message.mailboxes.len();
        assert!((1..=MAILBOXES_PER_RECORD_MAX).contains(&count), "a message has mailboxes");
        let length = record::message_bytes(message);
        assert!(length <= RECORD_BYTES_MAX, "the protocol bounds envelopes and ids");
        if self.outruns_spare(length) {
            return Err(StoreFull::Queue);
        }
        let place = self.reserve(length);
        let seq = self.assign();
        let sender = message.from.hash32();
        record::put_message(message, seq.0, sender, self.forming.buffer());
        let mailboxes = u32::try_from(count).expect("at most MAILBOXES_PER_RECORD_MAX");
        let entry = Entry::new(seq.0, place, to_u32(length), Kind::Message { sender, mailboxes });
        for mailbox in message.mailboxes {
            self.insert(mailbox.0, entry);
        }
        self.note_expiry(place.segment, message.expires_at_ms);
        Ok(seq)
    }

    /// Whether `mailbox` takes one more message from the sender with this
    /// [`DeviceAddress::hash32`]. It may pass its bound in bytes by the head of one record.
    pub fn room(&self, mailbox: MailboxId, sender_hash: u32, envelope_bytes: usize) -> Room {
        let Some(mailbox) = self.mailboxes.get(&mailbox.0) else {
            return Room::Free;
        };
        let bytes = u32::try_from(envelope_bytes).unwrap_or(u32::MAX);
        let full = |records: u32, held: u32, share: u32| {
            records >= (self.config.mailbox_records_max / share).max(1)
                || held.saturating_add(bytes) > self.config.mailbox_bytes_max / share
        };
        let share = self.config.sender_share.max(1);
        // One sender holds at most what all hold: most mailboxes need no count per sender.
        if !full(mailbox.messages, mailbox.message_bytes, share) {
            return Room::Free;
        }
        if full(mailbox.messages, mailbox.message_bytes, 1) {
            return Room::Full;
        }
        let (records, held) = mailbox.held_by(sender_hash);
        if full(records, held, share) { Room::SenderShare } else { Room::Free }
    }

    /// Changes the bounds of all mailboxes. What a mailbox holds beyond a lower one stays.
    pub fn set_mailbox_bounds(&mut self, records_max: u32, bytes_max: u32) {
        self.config.mailbox_records_max = records_max;
        self.config.mailbox_bytes_max = bytes_max;
    }

    /// Records a device, or replaces its record.
    pub fn put_device(&mut self, device: &DeviceRecord) -> RecordNumber {
        if self.cannot_number() {
            return self.last_assigned();
        }
        let length = record::device_bytes(device);
        let place = self.reserve(length);
        record::put_device(device, self.forming.buffer());
        let slot = DeviceSlot {
            mailbox: device.mailbox.0,
            created_unix_ms: device.created_unix_ms,
            place,
            length: to_u32(length),
        };
        self.install_device(device.address.clone(), slot);
        self.number_in_batch()
    }

    /// All devices, in no order.
    pub fn devices(&self) -> impl Iterator<Item = DeviceRecord> + '_ {
        self.devices.iter().map(|(address, slot)| DeviceRecord {
            address: address.clone(),
            mailbox: MailboxId(slot.mailbox),
            created_unix_ms: slot.created_unix_ms,
        })
    }

    /// Queues a receipt. It replaces the queued one of the same peer, group and installation.
    pub fn put_receipt(&mut self, mailbox: MailboxId, receipt: &ReceiptRecord) -> Seq {
        if self.cannot_number() {
            return self.last_seq();
        }
        let slot = self.receipt_slot(receipt);
        let length = record::receipt_bytes(receipt);
        let place = self.reserve(length);
        let seq = self.assign();
        record::put_receipt(mailbox.0, seq.0, slot, receipt, self.forming.buffer());
        let kind = Kind::Receipt { slot };
        self.replace(mailbox.0, Entry::new(seq.0, place, to_u32(length), kind), kind);
        seq
    }

    /// Deletes everything up to `up_to`. The number to wait for when the deletion must be durable.
    pub fn ack(&mut self, mailbox: MailboxId, up_to: Seq) -> RecordNumber {
        if self.failed || !self.mailboxes.contains_key(&mailbox.0) || self.cannot_number() {
            return self.last_assigned();
        }
        // The record holds what was really deleted, never a larger number a client may claim.
        let mut deleted = 0;
        if let Some(mut queue) = self.mailboxes.get_mut(&mailbox.0) {
            while let Some(entry) = queue.pop(up_to.0) {
                self.log.sub_entry(&entry);
                self.entries -= 1;
                deleted = entry.seq();
            }
            queue.acked = deleted.max(queue.acked);
        }
        if deleted == 0 {
            return self.last_assigned();
        }
        self.mailboxes.remove_if_empty(mailbox.0);
        if !self.forming.has_ack(mailbox.0) {
            self.reserve(record::ACK_BYTES);
        }
        self.forming.put_ack(mailbox.0, deleted);
        self.number_in_batch()
    }

    /// The first durable entry after `after`.
    pub fn next(&self, mailbox: MailboxId, after: Seq) -> Option<Seq> {
        let entry = self.mailboxes.get(&mailbox.0)?.next(after.0)?;
        let is_durable = entry.seq() <= self.durable_seq() || is_active(Mutant::DeliverBeforeSync);
        is_durable.then_some(Seq(entry.seq()))
    }

    /// The newest durable entry; zero when there is none.
    pub fn tail(&self, mailbox: MailboxId) -> Seq {
        let queue = self.mailboxes.get(&mailbox.0);
        let last = queue.and_then(|queue| queue.last(self.durable_seq()));
        last.map_or(Seq(0), |entry| Seq(entry.seq()))
    }

    /// Entries queued, durable or not.
    pub fn len(&self, mailbox: MailboxId) -> usize {
        self.mailboxes.get(&mailbox.0).map_or(0, |queue| queue.entries.len())
    }

    /// Whether nothing is queued, durable or not.
    pub fn is_empty(&self, mailbox: MailboxId) -> bool {
        !self.mailboxes.contains_key(&mailbox.0)
    }

    /// The highest acknowledged seq; zero when unknown: an empty mailbox is forgotten.
    pub fn acked(&self, mailbox: MailboxId) -> Seq {
        Seq(self.mailboxes.get(&mailbox.0).map_or(0, |queue| queue.acked))
    }

    pub fn open_count(&self) -> u32 {
        self.open_count
    }

    pub fn last_assigned(&self) -> RecordNumber {
        RecordNumber(self.last_assigned)
    }

    pub fn durable_up_to(&self) -> RecordNumber {
        RecordNumber(self.durable_record)
    }

    pub fn poll_event(&mut self) -> Option<StoreEvent> {
        self.events.pop_front()
    }

    /// Bytes of commands that are not written yet.
    pub fn queued_bytes(&self) -> usize {
        self.forming.queued_bytes()
    }

    pub fn stats(&self) -> StoreStats {
        StoreStats {
            segments: self.log.len() as u64,
            file_bytes: self.log.file_bytes,
            live_bytes: self.log.live_bytes,
            mailboxes: self.mailboxes.len() as u64,
            entries: self.entries,
            index_bytes: self.mailboxes.index_bytes(),
            devices: self.devices.len() as u64,
            queued_records: self.last_assigned - self.durable_record,
            queued_bytes: self.forming.queued_bytes() as u64,
            cache_bytes: self.cache.bytes() as u64,
            reads_waiting: self.reads.len() as u64,
            disk_full: self.room.is_full(),
            ..self.stats
        }
    }

    /// Every command is durable.
    pub fn is_idle(&self) -> bool {
        self.forming.is_empty() && self.commit.is_idle()
    }

    /// The highest seq that getters may show. Older opens and copies are below it.
    pub(crate) fn durable_seq(&self) -> u64 {
        Seq::new(self.open_count, self.durable_record).0
    }

    pub(crate) fn last_seq(&self) -> Seq {
        Seq::new(self.open_count, self.last_assigned)
    }

    /// A number for the record being written; after `reserve`, which may begin a new batch.
    pub(crate) fn assign(&mut self) -> Seq {
        self.last_assigned += 1;
        self.forming.last_record = self.last_assigned;
        self.last_seq()
    }

    /// A number for a command without a seq: any of its batch will do.
    fn number_in_batch(&mut self) -> RecordNumber {
        if self.forming.last_record == 0 {
            self.assign();
        }
        RecordNumber(self.forming.last_record)
    }

    pub(crate) fn cannot_number(&mut self) -> bool {
        if !self.failed && self.last_assigned + 1 >= 1 << Seq::RECORD_BITS {
            self.fail(Fault::NumbersUsedUp);
        }
        self.failed
    }

    fn insert(&mut self, mailbox: u64, entry: Entry) {
        self.log.add_entry(&entry);
        self.entries += 1;
        self.mailboxes.get_or_default(mailbox).insert(entry);
    }

    pub(crate) fn replace(&mut self, mailbox: u64, entry: Entry, kind: Kind) {
        let queue = self.mailboxes.get(&mailbox);
        if let Some(old) = queue.and_then(|queue| queue.replaceable(kind)) {
            self.remove(mailbox, old.seq());
        }
        self.insert(mailbox, entry);
    }

    /// The mailbox stays, even if nothing is left in it: an insertion follows.
    pub(crate) fn remove(&mut self, mailbox: u64, seq: u64) {
        let Some(mut queue) = self.mailboxes.get_mut(&mailbox) else { return };
        let old = queue.remove(seq);
        drop(queue);
        if let Some(old) = old {
            self.log.sub_entry(&old);
            self.entries -= 1;
        }
    }

    pub(crate) fn install_device(&mut self, address: DeviceAddress, slot: DeviceSlot) {
        self.log.add_live(slot.place.segment, slot.length);
        if let Some(old) = self.devices.insert(address, slot) {
            self.log.sub_live(old.place.segment, old.length);
        }
    }

    /// Keyed, so that nobody can make two slots of a stranger's mailbox meet.
    fn receipt_slot(&self, receipt: &ReceiptRecord) -> u64 {
        let user = xxh3_64_with_seed(receipt.peer.user.as_str().as_bytes(), self.config.store_id);
        let device = xxh3_64_with_seed(receipt.peer.device.as_str().as_bytes(), user);
        let group = receipt.group.as_ref().map_or("", |group| group.as_str());
        let group = xxh3_64_with_seed(group.as_bytes(), device);
        xxh3_64_with_seed(&receipt.install_id.0.to_le_bytes(), group)
    }
}

fn to_u32(length: usize) -> u32 {
    u32::try_from(length).expect("at most RECORD_BYTES_MAX")
}
