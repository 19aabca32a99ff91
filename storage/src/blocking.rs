//! Runs the opening of a store to its end on a disk that answers at once: for tools, for
//! re-sharding and for tests. A gateway drives the same [`Opening`] on its ring.

use crate::disk::{DiskError, DiskOp, DiskOutcome};
use crate::fault::OpenFault;
use crate::limits::StoreConfig;
use crate::recovery::{Opening, Progress, RecoveryReport};
use crate::store::Store;

/// The directory of one storage shard. Each operation has ended when `execute` returns.
pub trait BlockingDisk {
    fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError>;
}

impl<D: BlockingDisk + ?Sized> BlockingDisk for &mut D {
    fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError> {
        (**self).execute(op)
    }
}

/// Opens the store of `disk`. `hash_seed`: a random number for the hash tables of this run.
pub fn open(
    disk: &mut impl BlockingDisk,
    config: StoreConfig,
    hash_seed: u64,
    mut on_progress: impl FnMut(Progress),
) -> Result<(Store, RecoveryReport), OpenFault> {
    let mut opening = Opening::new(config, hash_seed);
    while let Some((id, op)) = opening.poll_disk() {
        let result = disk.execute(op);
        opening.handle_disk(id, result);
        on_progress(opening.progress());
    }
    opening.finish()
}
