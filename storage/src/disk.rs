//! What the store asks of the disk, and what it is told. One directory per storage shard; the
//! driver maps a [`SegmentId`] to a file of that directory and opens it at first use.

use std::fmt;

use bytes::Bytes;

/// Names one segment file of a store's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u32);

/// Names one operation between [`crate::Store::poll_disk`] and [`crate::Store::handle_disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskOpId(pub u64);

/// One disk operation. Operations handed out may run at once and complete in any order: the
/// store itself waits where order matters.
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// Which segments the directory holds, and their lengths. Answer: `Listed`, in any order.
    List,
    /// Create an empty file; it must not exist yet.
    Create { segment: SegmentId },
    /// Write all of `data`; a short write is the driver's to continue.
    Write { segment: SegmentId, offset: u64, data: Bytes },
    /// Answer: `Read` with `length_bytes` bytes, fewer only at the end of the file.
    Read { segment: SegmentId, offset: u64, length_bytes: u32 },
    /// `fdatasync`.
    SyncData { segment: SegmentId },
    /// `fsync` of the file.
    SyncAll { segment: SegmentId },
    /// `fsync` of the directory.
    SyncDir,
    /// Close and remove the file. No operation on it is in flight.
    Unlink { segment: SegmentId },
}

/// How an operation ended.
#[derive(Clone, Debug)]
pub enum DiskOutcome {
    Listed(Vec<(SegmentId, u64)>),
    Done,
    Read(Bytes),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskErrorKind {
    /// ENOSPC, EDQUOT, EFBIG.
    Full,
    /// Everything else.
    Io,
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct DiskError {
    pub kind: DiskErrorKind,
    pub text: String,
}

impl SegmentId {
    /// Name of the segment's file: eight hexadecimal digits and `.seg`.
    pub fn file_name(self) -> String {
        format!("{self}")
    }

    /// The inverse of [`Self::file_name`]; `None` for any other file.
    pub fn parse(file_name: &str) -> Option<Self> {
        let digits = file_name.strip_suffix(".seg")?;
        let canonical =
            digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if canonical { u32::from_str_radix(digits, 16).ok().map(Self) } else { None }
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}.seg", self.0)
    }
}
