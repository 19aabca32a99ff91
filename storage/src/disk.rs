//! What the store asks of the disk, and what it is told. One directory per storage shard; the
//! driver maps a [`FileId`] to a file of that directory and opens it at first use.

use std::fmt;

use bytes::Bytes;

/// Names one segment file of a store's directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentId(pub u32);

/// Names one checkpoint file of a store's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckpointId(pub u32);

/// Names one file of a store's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileId {
    Segment(SegmentId),
    Checkpoint(CheckpointId),
}

/// Names one operation between [`crate::Store::poll_disk`] and [`crate::Store::handle_disk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DiskOpId(pub u64);

/// One disk operation. Operations handed out may run at once and complete in any order: the
/// store itself waits where order matters.
#[derive(Clone, Debug)]
pub enum DiskOp {
    /// Which files the directory holds, and their lengths in bytes. Answer: `Listed`, in any order.
    List,
    /// Create an empty file; it must not exist yet.
    Create { file: FileId },
    /// Write all of `data`; a short write is the driver's to continue.
    Write { file: FileId, offset: u64, data: Bytes },
    /// Answer: `Read` with `length_bytes` bytes, fewer only at the end of the file.
    Read { file: FileId, offset: u64, length_bytes: u32 },
    /// `fdatasync`.
    SyncData { file: FileId },
    /// `fsync` of the file.
    SyncAll { file: FileId },
    /// `fsync` of the directory.
    SyncDir,
    /// Close and remove the file. No operation on it is in flight.
    Unlink { file: FileId },
}

/// How an operation ended.
#[derive(Clone, Debug)]
pub enum DiskOutcome {
    Listed(Vec<(FileId, u64)>),
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

impl FileId {
    /// Name of the file: eight hexadecimal digits and `.seg` or `.ckp`.
    pub fn file_name(self) -> String {
        self.to_string()
    }

    /// The inverse of [`Self::file_name`]; `None` for any other file.
    pub fn parse(file_name: &str) -> Option<Self> {
        let (digits, kind) = file_name.split_once('.')?;
        let is_canonical =
            digits.len() == 8 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_canonical {
            return None;
        }
        let number = u32::from_str_radix(digits, 16).ok()?;
        match kind {
            "seg" => Some(Self::Segment(SegmentId(number))),
            "ckp" => Some(Self::Checkpoint(CheckpointId(number))),
            _ => None,
        }
    }
}

impl From<SegmentId> for FileId {
    fn from(segment: SegmentId) -> Self {
        Self::Segment(segment)
    }
}

impl From<CheckpointId> for FileId {
    fn from(checkpoint: CheckpointId) -> Self {
        Self::Checkpoint(checkpoint)
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}.seg", self.0)
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}.ckp", self.0)
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(segment) => segment.fmt(f),
            Self::Checkpoint(checkpoint) => checkpoint.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_read_back_and_nothing_else_is() {
        for file in [FileId::from(SegmentId(0x2a)), CheckpointId(u32::MAX).into()] {
            assert_eq!(FileId::parse(&file.file_name()), Some(file));
        }
        for other in ["2a.seg", "0000002A.seg", "0000002a.tmp", "0000002a", "0000002a.seg.ckp", ""]
        {
            assert_eq!(FileId::parse(other), None, "{other}");
        }
    }
}
