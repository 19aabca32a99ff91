//! Opening a store: read everything, cut the torn tail, quarantine damage, rebuild the index.

use crate::disk::{DiskError, DiskOp, DiskOpId, DiskOutcome, SegmentId};
use crate::fault::OpenFault;
use crate::limits::StoreConfig;
use crate::store::Store;

/// A store being opened. Run `poll_disk` until `None`, execute, `handle_disk`; repeat until
/// `is_done`, then `finish`.
#[derive(Debug)]
pub struct Opening {}

/// How far the opening is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub bytes_read: u64,
    pub bytes_total: u64,
}

/// A range that is damaged though it was attested durable. Its records are not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DamagedRange {
    pub segment: SegmentId,
    pub offset: u64,
    pub end: u64,
    /// Numbers of the batches that are missing.
    pub first_batch: u64,
    pub last_batch: u64,
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
    /// Torn tail: the place where the log was cut, if anything but zeros followed.
    pub cut_at: Option<(SegmentId, u64)>,
    /// Segments that were prepared but never used, and removed.
    pub unused_segments: usize,
}

impl Opening {
    /// `hash_seed`: a random number for the hash tables of this run.
    pub fn new(_config: StoreConfig, _hash_seed: u64) -> Self {
        unimplemented!()
    }

    pub fn poll_disk(&mut self) -> Option<(DiskOpId, DiskOp)> {
        unimplemented!()
    }

    pub fn handle_disk(&mut self, _id: DiskOpId, _result: Result<DiskOutcome, DiskError>) {
        unimplemented!()
    }

    /// Opened, or failed: call `finish`.
    pub fn is_done(&self) -> bool {
        unimplemented!()
    }

    pub fn progress(&self) -> Progress {
        unimplemented!()
    }

    pub fn finish(self) -> Result<(Store, RecoveryReport), OpenFault> {
        unimplemented!()
    }
}
