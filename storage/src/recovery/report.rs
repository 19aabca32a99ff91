//! What opening tells.

use std::fmt;

use crate::disk::{CheckpointId, SegmentId};

/// How far the opening is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub bytes_read: u64,
    pub bytes_total: u64,
}

/// A range that is damaged though it was attested durable. Its records are not served. When a file
/// is missing, the place where the log broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedRange {
    pub segment: SegmentId,
    pub offset: u64,
    pub end: u64,
    /// Numbers of the batches that are missing.
    pub first_batch: u64,
    pub last_batch: u64,
}

impl fmt::Display for DamagedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, offset, end, first_batch, last_batch } = self;
        write!(f, "{segment} from byte {offset} to {end}, batches {first_batch} to {last_batch}")
    }
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    pub open_count: u32,
    pub segments: usize,
    pub batches: u64,
    pub records: u64,
    pub bytes_read: u64,
    pub devices: usize,
    pub mailboxes: usize,
    pub entries: u64,
    /// Corruption: at or below a later attestation.
    pub damaged: Vec<DamagedRange>,
    /// Blocks that the disk refused to read though asked three times.
    pub unreadable_blocks: u64,
    /// Torn tail: the place where the log was cut, if anything but zeros followed.
    pub cut_at: Option<(SegmentId, u64)>,
    /// The checkpoint that was used, and how much of such files was read.
    pub checkpoint: Option<CheckpointId>,
    pub checkpoint_bytes_read: u64,
    /// Entries of the checkpoint that were deleted, and reclaimed with their segment, since.
    pub outdated_entries: u64,
    /// Entries of the checkpoint whose segment is missing though it cannot have been reclaimed. Each
    /// leaves a gap.
    pub lost_entries: u64,
    /// Segments that were prepared but never used, and removed. While anything is damaged none is.
    pub unused_segments: usize,
}

impl RecoveryReport {
    /// Batches that were durable and could not be read.
    pub fn lost_batches(&self) -> u64 {
        self.damaged.iter().map(|range| range.last_batch - range.first_batch + 1).sum()
    }
}
