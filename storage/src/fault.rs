//! What can go wrong, by who is at fault: the disk, the bytes on it, or the caller's pace.

use crate::disk::{DiskError, SegmentId};

/// A command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreFull {
    #[error("too many records wait for the disk")]
    Queue,
    /// For messages only. What frees room goes on, and the store recovers by itself.
    #[error("the disk is full")]
    Disk,
    #[error("the store has failed")]
    Failed,
}

/// A read or the store itself failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Only that record is lost.
    #[error("record at {segment} offset {offset} is damaged")]
    Corrupt { segment: SegmentId, offset: u32 },
    /// ENOSPC while writing or syncing: the store is closed.
    #[error("disk full: {step} of {segment}: {error}")]
    Full { step: &'static str, segment: SegmentId, error: DiskError },
    /// EIO: nothing that was not yet synced can be trusted, so the store is closed.
    #[error("disk error: {step} of {segment}: {error}")]
    Io { step: &'static str, segment: SegmentId, error: DiskError },
    /// 2^40 records in one open: the store must be opened again.
    #[error("record numbers of this open are used up; open the store again")]
    NumbersUsedUp,
}

/// The store cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenFault {
    #[error("configuration: {0}")]
    Config(&'static str),
    #[error("{step} of the store's directory or {segment:?}: {error}")]
    Disk { step: &'static str, segment: Option<SegmentId>, error: DiskError },
    #[error("the end of the log, {segment} from byte {offset}, cannot be read: {error}")]
    EndUnreadable { segment: SegmentId, offset: u64, error: DiskError },
    #[error("{segment} belongs to store {found:016x}, this is store {expected:016x}")]
    OtherStore { segment: SegmentId, found: u64, expected: u64 },
    #[error("{segment} belongs to shard {found}, this is shard {expected}")]
    OtherShard { segment: SegmentId, found: u16, expected: u16 },
    #[error("{segment} has format version {found}; this program reads {supported}")]
    Version { segment: SegmentId, found: u16, supported: u16 },
    #[error("{segment} offset {offset}: record type {kind} ({name}) version {version} is unknown")]
    UnknownRecord { segment: SegmentId, offset: u32, kind: u8, name: &'static str, version: u8 },
    /// Seqs are never given twice, so what is stored must not be above what will be given.
    #[error("{segment} offset {offset}: a record with a seq of open {found}, later than its batch")]
    LaterOpen { segment: SegmentId, offset: u32, found: u32 },
    #[error("{segment} has {bytes} bytes, more than any segment")]
    TooLong { segment: SegmentId, bytes: u64 },
    #[error("{first} and {last} are not of one log: it has fewer than 2^20 segments")]
    SegmentsApart { first: SegmentId, last: SegmentId },
    #[error("the store was opened 2^24 times")]
    OpensUsedUp,
}
