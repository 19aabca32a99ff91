//! Reads: one record of one mailbox, from memory or from the disk.

use bytes::Bytes;
use ringpost_protocol::id::{MailboxId, Seq};
use ringpost_protocol::mutant::{Mutant, is_active};

use crate::commit::Task;
use crate::disk::DiskOp;
use crate::entry::Place;
use crate::fault::Fault;
use crate::limits::READS_IN_FLIGHT_MAX;
use crate::record;
use crate::store::{ReadId, ReadStart, Store, StoreEvent};

/// A read that needs the disk. Its place stays valid: the segment counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadTask {
    id: ReadId,
    mailbox: u64,
    seq: u64,
    pub(crate) place: Place,
    length: u32,
    /// How often this place was read in vain.
    failures: u8,
}

impl Store {
    /// Begins to read an entry that [`Self::next`] named.
    pub fn read(&mut self, mailbox: MailboxId, seq: Seq) -> ReadStart {
        let queue = self.mailboxes.get(&mailbox.0);
        let entry = queue.and_then(|queue| queue.find(seq.0)).copied();
        let is_durable = seq.0 <= self.durable_seq() || is_active(Mutant::DeliverBeforeSync);
        let Some(entry) = entry.filter(|_| !self.failed && is_durable) else {
            return ReadStart::Gone;
        };
        let (place, length) = (self.log.place(&entry), entry.length());
        if let Some(bytes) = self.cache.get(place, length)
            && let Some(record) = record::read_own(&bytes, mailbox.0, seq.0)
        {
            self.stats.reads_from_cache += 1;
            return ReadStart::Ready(record);
        }
        self.stats.reads_from_disk += 1;
        self.last_read += 1;
        let id = ReadId(self.last_read);
        let (mailbox, seq) = (mailbox.0, seq.0);
        self.queue_read(ReadTask { id, mailbox, seq, place, length, failures: 0 });
        ReadStart::Pending(id)
    }

    /// Reads begin in the order in which they were asked for, a bounded number at once.
    pub(crate) fn poll_read(&mut self) -> Option<(Task, DiskOp)> {
        if self.reads_in_flight == READS_IN_FLIGHT_MAX {
            return None;
        }
        let task = self.reads.pop_front()?;
        self.reads_in_flight += 1;
        let Place { segment, offset } = task.place;
        let (file, offset) = (segment.into(), u64::from(offset));
        let op = DiskOp::Read { file, offset, length_bytes: task.length };
        Some((Task::Read(task), op))
    }

    pub(crate) fn finish_read(&mut self, task: ReadTask, read: Result<Bytes, Fault>) {
        let ReadTask { id, mailbox, seq, place, .. } = task;
        self.reads_in_flight -= 1;
        self.log.get_mut(place.segment).reads -= 1;
        let Place { segment, offset } = place;
        let record = read.and_then(|bytes| {
            record::read_entry(&bytes, mailbox, seq).ok_or(Fault::Corrupt { segment, offset })
        });
        if record.is_err()
            && let Some(entry) = self.mailboxes.get(&mailbox).and_then(|queue| queue.find(seq))
        {
            // Reclaim may have copied it meanwhile.
            let failures = if entry.is_at(place) { task.failures + 1 } else { 0 };
            if failures < READ_ATTEMPTS {
                let (place, length) = (self.log.place(entry), entry.length());
                return self.queue_read(ReadTask { place, length, failures, ..task });
            }
            self.give_up_entry(mailbox, seq);
        }
        self.events.push_back(StoreEvent::ReadDone { id, result: record });
    }

    fn queue_read(&mut self, task: ReadTask) {
        self.log.get_mut(task.place.segment).reads += 1;
        self.reads.push_back(task);
    }
}

/// A place that could not be read so often is lost.
pub(crate) const READ_ATTEMPTS: u8 = 3;
