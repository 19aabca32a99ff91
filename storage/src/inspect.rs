//! What a store's files hold, for tools. Reads only, and sans-IO: the caller reads a file and these
//! types say what the bytes mean. No input makes them panic; damage is a value.
//!
//! The format is described in `FORMAT.md`. A tool that wants to know what is still needed opens the
//! store with [`crate::blocking::open`] on a disk that changes nothing, and asks the functions at
//! the end of this file.

use bytes::Bytes;
use ringpost_protocol::id::MailboxId;

use crate::batch::{BATCH_HEAD_BYTES, BatchHead, Origin, Scan, Scanner, index, padded};
use crate::disk::SegmentId;
use crate::entry::{Entry, Place};
use crate::limits::BLOCK_BYTES;
use crate::record::{GapReason, RawRecord, View};
use crate::segment;
use crate::store::Store;

/// What the first block of a segment file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderFound {
    Valid(SegmentHeader),
    /// Zeros or nothing: the file was prepared and never used.
    Blank,
    Damaged,
}

/// An intact header. Whether it belongs to the file it was found in is the caller's to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub format_version: u16,
    pub shard: u16,
    pub store_id: u64,
    pub segment: SegmentId,
    pub open_count: u32,
    pub first_batch: u64,
}

/// The header in the first [`BLOCK_BYTES`] of a segment file.
pub fn read_header(block: &[u8]) -> HeaderFound {
    segment::read_header(block)
}

/// Walks one segment file from its first batch to its end. [`Self::step`] until
/// [`SegmentStep::End`]; a [`SegmentStep::Read`] is answered with [`Self::feed`].
#[derive(Debug)]
pub struct SegmentScan {
    scanner: Scanner,
}

/// What comes next in a segment file.
#[derive(Debug)]
pub enum SegmentStep {
    /// Read this part of the file; fewer bytes are its end.
    Read {
        offset: u32,
        length_bytes: u32,
    },
    /// A batch that was written for this very place and whose checksum is right.
    Batch(BatchFound),
    /// A block that is neither part of such a batch nor zeros only.
    Damaged {
        offset: u32,
    },
    End,
}

/// A verified batch.
#[derive(Clone, Debug)]
pub struct BatchFound {
    pub segment: SegmentId,
    pub offset: u32,
    /// With the padding to the next block.
    pub padded_bytes: u32,
    pub number: u64,
    /// The last batch known to be synced when this one was written.
    pub durable_up_to: u64,
    pub open_count: u32,
    /// As the head says.
    pub record_count: u32,
    bytes: Bytes,
}

/// A record as it stands in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFound<'a> {
    /// In the file.
    pub offset: u32,
    /// With its padding.
    pub length_bytes: u32,
    pub kind: u8,
    /// Name of the kind.
    pub name: &'static str,
    /// Its own checksum is right.
    pub is_intact: bool,
    /// `None`: of an unknown kind or version, or malformed.
    pub content: Option<RecordContent<'a>>,
}

/// The fields of a record. Of the envelope, which nobody but its reader may see, only its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordContent<'a> {
    Message {
        seq: u64,
        user: &'a str,
        device: &'a str,
        /// Empty: not to a group.
        group: &'a str,
        install_id: u64,
        send_seq: u64,
        message_number: u64,
        sent_at_ms: u64,
        expires_at_ms: u64,
        is_urgent: bool,
        mailboxes: Vec<u64>,
        envelope_bytes: usize,
    },
    Ack {
        mailbox: u64,
        up_to: u64,
    },
    /// The expiry clock, Unix milliseconds.
    Clock {
        unix_ms: u64,
    },
    Receipt {
        mailbox: u64,
        seq: u64,
        slot: u64,
        user: &'a str,
        device: &'a str,
        group: &'a str,
        install_id: u64,
        up_to_send_seq: u64,
    },
    Gap {
        mailbox: u64,
        seq: u64,
        /// Seq of the entry whose place it takes; zero: of none.
        replaces: u64,
        reason: GapReason,
        group: &'a str,
    },
    Device {
        mailbox: u64,
        created_unix_ms: u64,
        user: &'a str,
        device: &'a str,
    },
}

/// The records of a batch, in order. The last item is an `Err` with its offset in the file if what
/// follows there is no record.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    batch: &'a [u8],
    offset: u32,
    rest: &'a [u8],
}

impl SegmentScan {
    /// Of the store `store_id` and storage shard `shard`: batches of others are damage.
    pub fn new(store_id: u64, shard: u16, segment: SegmentId, file_bytes: u32) -> Self {
        let origin = Origin { store_id, shard };
        Self { scanner: Scanner::new(origin, segment, file_bytes, READ_BYTES) }
    }

    pub fn step(&mut self) -> SegmentStep {
        match self.scanner.next() {
            Scan::More { offset, length_bytes } => SegmentStep::Read { offset, length_bytes },
            Scan::Damage { offset } => SegmentStep::Damaged { offset },
            Scan::End => SegmentStep::End,
            Scan::Batch { head, offset, bytes } => {
                let BatchHead { length, records, number, durable_up_to, open_count } = head;
                SegmentStep::Batch(BatchFound {
                    segment: self.scanner.segment,
                    offset,
                    padded_bytes: padded(length),
                    number,
                    durable_up_to,
                    open_count,
                    record_count: records,
                    bytes,
                })
            }
        }
    }

    /// The answer to [`SegmentStep::Read`] when it failed: asks for shorter parts, and gives the
    /// offset of the block that cannot be read once it is found and passed over.
    pub fn unreadable(&mut self, length_bytes: u32) -> Option<u32> {
        self.scanner.unreadable(length_bytes)
    }

    /// The answer to [`SegmentStep::Read`], with what was asked.
    pub fn feed(&mut self, offset: u32, length_bytes: u32, bytes: Bytes) {
        let asked = bytes.len().min(index(length_bytes));
        self.scanner.feed(offset, length_bytes, bytes.slice(..asked));
    }
}

impl BatchFound {
    pub fn records(&self) -> Records<'_> {
        let rest = self.bytes.get(BATCH_HEAD_BYTES..).unwrap_or_default();
        Records { batch: &self.bytes, offset: self.offset, rest }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RecordFound<'a>, u32>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let at = u32::try_from(self.batch.len() - self.rest.len()).unwrap_or(u32::MAX);
        let offset = self.offset.saturating_add(at);
        let Ok((raw, rest)) = RawRecord::split(self.rest) else {
            self.rest = &[];
            return Some(Err(offset));
        };
        self.rest = rest;
        Some(Ok(RecordFound {
            offset,
            length_bytes: u32::try_from(raw.length()).unwrap_or(u32::MAX),
            kind: raw.kind,
            name: raw.name(),
            is_intact: raw.verify(),
            content: raw.parse().ok().map(RecordContent::of),
        }))
    }
}

impl<'a> RecordContent<'a> {
    fn of(view: View<'a>) -> Self {
        match view {
            View::Message(view) => Self::Message {
                seq: view.seq,
                user: view.user,
                device: view.device,
                group: view.group,
                install_id: view.install_id,
                send_seq: view.send_seq,
                message_number: view.message_number,
                sent_at_ms: view.sent_at_ms,
                expires_at_ms: view.expires_at_ms,
                is_urgent: view.urgent,
                mailboxes: view.mailboxes().collect(),
                envelope_bytes: view.envelope.len(),
            },
            View::Ack { mailbox, up_to } => Self::Ack { mailbox, up_to },
            View::Clock { unix_ms } => Self::Clock { unix_ms },
            View::Receipt(view) => Self::Receipt {
                mailbox: view.mailbox,
                seq: view.seq,
                slot: view.slot,
                user: view.user,
                device: view.device,
                group: view.group,
                install_id: view.install_id,
                up_to_send_seq: view.up_to_send_seq,
            },
            View::Gap(view) => Self::Gap {
                mailbox: view.mailbox,
                seq: view.seq,
                replaces: view.replaces,
                reason: view.reason,
                group: view.group,
            },
            View::Device(view) => Self::Device {
                mailbox: view.mailbox,
                created_unix_ms: view.created_unix_ms,
                user: view.user,
                device: view.device,
            },
        }
    }
}

/// A segment of an opened store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentUse {
    pub segment: SegmentId,
    /// Up to the end of its last batch, or of its file.
    pub used_bytes: u32,
    /// Bytes of records that are still needed.
    pub live_bytes: u64,
}

/// A queued entry of a mailbox, and where its record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryUse {
    pub seq: u64,
    /// Name of the kind of its record.
    pub name: &'static str,
    pub segment: SegmentId,
    pub offset: u32,
    pub length_bytes: u32,
}

/// The segments that hold batches, oldest first.
pub fn segments(store: &Store) -> Vec<SegmentUse> {
    let segments = store.log.segments().filter(|segment| segment.used_bytes > BLOCK_BYTES);
    let of = |segment: &segment::Segment| SegmentUse {
        segment: segment.id,
        used_bytes: segment.used_bytes,
        live_bytes: segment.live_bytes,
    };
    segments.map(of).collect()
}

/// The mailboxes that hold something, in rising order.
pub fn mailboxes(store: &Store) -> Vec<MailboxId> {
    let mut found: Vec<_> = store.mailboxes.iter().map(|(mailbox, _)| MailboxId(mailbox)).collect();
    found.sort_unstable();
    found
}

/// What `mailbox` holds, in the order in which it is delivered.
pub fn entries(store: &Store, mailbox: MailboxId) -> Vec<EntryUse> {
    let queue = store.mailboxes.get(&mailbox.0);
    let entries = queue.into_iter().flat_map(|queue| &queue.entries);
    let of = |entry: &Entry| {
        let Place { segment, offset } = store.log.place(entry);
        let (seq, name, length_bytes) = (entry.seq(), entry.name(), entry.length());
        EntryUse { seq, name, segment, offset, length_bytes }
    };
    entries.map(of).collect()
}

/// Whether `mailbox` needs the record of `seq` at this place.
pub fn is_live(
    store: &Store,
    mailbox: MailboxId,
    seq: u64,
    segment: SegmentId,
    offset: u32,
) -> bool {
    store.is_live(mailbox.0, seq, Place { segment, offset })
}

const READ_BYTES: u32 = 4 << 20;
