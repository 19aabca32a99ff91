//! Storage of Ringpost: the segment store of one shard.
//!
//! Sans-IO: a [`Store`] takes commands, time and the results of disk operations, and gives disk
//! operations and events. It knows no file system, no clock and no entropy. One writer per
//! directory; the caller holds the directory's lock. [`Opening`] makes a store from what the
//! directory holds.
//!
//! # On disk, on one page
//!
//! `storage/FORMAT.md` has every offset and rule, enough to write a reader from; this is the summary.
//! A directory of segments `00000001.seg`, `00000002.seg`, ... (hexadecimal, rising, never used
//! twice), and of a checkpoint of the index, `00000007.ckp`, which may be missing: it only spares a
//! restart the log before it, and has its own page in `checkpoint/encode.rs`. All numbers are
//! little-endian, all checksums CRC32C.
//!
//! ```text
//! segment  [header, 4096 bytes][batch][batch]...[zeros, written ahead of the log]
//! header   "RINGPOST" | crc u32 | format version u16 | shard u16 | store_id u64 | segment u32
//!          | open_count u32 | first_batch u64
//! batch    starts at a multiple of 4096 and is padded with zeros to the next
//!          "RPB1" | crc u32 | length u32 | records u32 | number u64 | durable_up_to u64
//!          | store_id u64 | segment u32 | offset u32 | open_count u32 | shard u16 | 0 u16 | records
//! record   type u8 | version u8 | flags u16 | length u32 | crc u32 | fields
//!   1 message  seq, install_id, send_seq, message_number, sent_at_ms, expires_at_ms u64 | sender hash u32
//!              | count u16 | count x mailbox u64 | lengths of user, device, group u8 x 3
//!              | user | device | group | envelope            flags bit 0: urgent
//!   2 ack      mailbox, up_to u64                            all seq <= up_to are deleted
//!   3 receipt  mailbox, seq, slot, install_id, up_to_send_seq u64 | lengths u8 x 3
//!              | user | device | group                       replaces the one of the same slot
//!   4 gap      mailbox, seq, replaces u64 | reason u8 | length u8 | group
//!              reason: 1 full, 2 expired, 3 damaged; replaces the one of the same reason, and the
//!              entry whose seq is `replaces`, unless that is zero
//!   5 device   mailbox, created_unix_ms u64 | lengths u8 x 2 | user | device
//!   6          reserved: roster or device-list version; refused by name
//!   7 clock    unix_ms u64                                      the expiry clock; the highest counts
//! ```
//!
//! A length counts its whole batch or record; zeros behind a record fill it up to a multiple of 8
//! and count only for the batch. A crc covers all that follows it, a record's also
//! the eight bytes before it. Batch checksums cover their place, so a misplaced or stale block is
//! none. Record checksums do not: a read verifies one record without its batch, and knows the
//! right one by its mailbox and seq; reading the whole batch for each would cost up to a
//! thousand times the bytes. `seq` is open_count << 40 | record number, and copies keep it.
//!
//! # What is promised
//!
//! - **Durable** ([`StoreEvent::Durable`]): survives kill -9 and power failure. A batch is written
//!   and `fdatasync`ed before the next one is written; each attests its predecessor in
//!   `durable_up_to`, and an idle store writes one empty batch after a second.
//! - **Torn or corrupt**: batch numbers have no holes. A batch that is missing though a later one
//!   or a later header attests it is corruption: reported as a [`DamagedRange`], the rest serves.
//!   What is damaged behind that is the torn tail and was never reported durable. Not promised:
//!   rot in the last batch, which nothing attests yet, looks like a torn tail.
//! - **Every open begins a new segment** with the next open_count. Its `first_batch` ends what
//!   earlier opens wrote for ever, even if a torn batch turns up again. The header is written
//!   once everything before `first_batch` is durable, and is durable before the first batch.
//! - **Acknowledged stays acknowledged**, through reclaim and crashes: the argument is in
//!   `reclaim.rs`.
//! - **A record that cannot be read** any more, or not without damage, leaves a gap in its
//!   mailboxes: nothing that was accepted vanishes silently.
//! - **A checkpoint changes nothing** but how much is read at a restart: `checkpoint/mod.rs` has the
//!   argument. One that the disk refuses is given up, and the store goes on.
//! - **A full disk** refuses messages and nothing else: acks, receipts, gaps, devices and reclaim
//!   go on in the segments that were zero-filled ahead, and the store recovers by itself
//!   (`prepare.rs`).
//! - **Expiry** follows a clock of the store's own, which no wrong date of the host can hurry
//!   (`clock.rs`); an expired message leaves a gap.
//! - **A failed write or sync** of the log closes the store: [`StoreEvent::Failed`], and nothing
//!   after it.
//! - **Re-sharding and compaction** write a new generation beside the old one; a crash at any moment
//!   leaves one that is complete: [`generation`].
//!
//! The modules below follow a command's path to the disk and back.
#![forbid(unsafe_code)]

pub mod limits;
pub mod disk;
pub mod fault;
pub mod record;
mod batch;
mod segment;
mod entry;
mod table;
mod queue;
pub mod store;
mod forming;
mod commit;
mod cache;
mod gap;
mod clock;
mod read;
mod prepare;
mod scan;
mod reclaim;
mod sweep;
pub mod recovery;
mod rebuild;
mod readahead;
mod checkpoint;
pub mod current;
pub mod blocking;
pub mod reshard;
pub mod generation;
pub mod inspect;

pub use blocking::BlockingDisk;
pub use clock::ClockStart;
pub use current::{Current, CurrentFault};
pub use disk::{
    CheckpointId, DiskError, DiskErrorKind, DiskOp, DiskOpId, DiskOutcome, FileId, SegmentId,
};
pub use fault::{Fault, OpenFault, StoreFull};
pub use generation::{DataDisk, Resharded};
pub use limits::{MAILBOXES_PER_RECORD_MAX, StoreConfig};
pub use record::{
    DeviceRecord, GapReason, NewMessage, ReceiptRecord, StoredMessage, StoredRecord, Text,
};
pub use recovery::{DamagedRange, Opening, Progress, RecoveryReport};
pub use reshard::{ReshardFault, ReshardPlan, ReshardProgress, ReshardReport, Resharding};
pub use store::{ReadId, ReadStart, RecordNumber, Room, Store, StoreEvent, StoreStats};

#[cfg(test)]
mod tests;
