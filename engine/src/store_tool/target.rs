//! What the DIR of a command is: a data directory or the directory of one storage shard.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use ringpost_storage::inspect::{self, HeaderFound};
use ringpost_storage::limits::BLOCK_BYTES;
use ringpost_storage::{Current, FileId, StoreConfig};

use super::StoreToolFault;
use crate::data_dir::{Access, DataDirFault, ShardDisk, list_generations, read_current, shard_dir};

/// Stores to look at. No gateway runs on them as long as this lives.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) path: PathBuf,
    /// `None`: DIR is one shard's directory.
    pub(super) current: Option<Current>,
    /// Generations that `CURRENT` does not name: the next start removes them.
    pub(super) leftovers: Vec<u64>,
    pub(super) shards: Vec<TargetShard>,
    _lock: Option<File>,
}

/// The directory of one storage shard.
#[derive(Clone, Debug)]
pub(super) struct TargetShard {
    pub(super) path: PathBuf,
    pub(super) shard: u16,
    pub(super) store_id: u64,
}

impl Target {
    pub(super) fn find(path: &Path) -> Result<Self, StoreToolFault> {
        match read_current(path)? {
            Some(current) => Self::data_dir(path, current),
            None => Self::shard_dir(path),
        }
    }

    fn data_dir(path: &Path, current: Current) -> Result<Self, StoreToolFault> {
        let lock = lock(path, path)?;
        let io_fault = |error| StoreToolFault::Io { path: path.to_owned(), error };
        let mut leftovers = list_generations(path).map_err(io_fault)?;
        leftovers.retain(|generation| *generation != current.generation);
        leftovers.sort_unstable();
        let shards = (0..current.storage_shards).map(|shard| TargetShard {
            path: shard_dir(path, current.generation, shard),
            shard,
            store_id: current.store_id,
        });
        Ok(Self {
            path: path.to_owned(),
            current: Some(current),
            leftovers,
            shards: shards.collect(),
            _lock: lock,
        })
    }

    /// What `CURRENT` would say is in every segment's header.
    fn shard_dir(path: &Path) -> Result<Self, StoreToolFault> {
        let io_fault = |error| StoreToolFault::Io { path: path.to_owned(), error };
        let mut disk = ShardDisk::new(path, Access::ReadOnly);
        let mut found = None;
        for (file, _) in disk.list().map_err(io_fault)? {
            if matches!(file, FileId::Segment(_)) {
                let block = disk.read(file, 0, BLOCK_BYTES).map_err(io_fault)?;
                if let HeaderFound::Valid(header) = inspect::read_header(&block) {
                    found = Some(header);
                    break;
                }
            }
        }
        let header = found.ok_or_else(|| StoreToolFault::NotAStore(path.to_owned()))?;
        // DATA/store/gen-N/shard-000
        let data_dir = path.ancestors().nth(3).unwrap_or(path);
        let lock = lock(data_dir, path)?;
        let (shard, store_id) = (header.shard, header.store_id);
        let shards = vec![TargetShard { path: path.to_owned(), shard, store_id }];
        Ok(Self {
            path: path.to_owned(),
            current: None,
            leftovers: Vec::new(),
            shards,
            _lock: lock,
        })
    }
}

impl TargetShard {
    pub(super) fn disk(&self) -> ShardDisk {
        ShardDisk::new(&self.path, Access::ReadOnly)
    }

    pub(super) fn config(&self) -> StoreConfig {
        StoreConfig::new(self.shard, self.store_id)
    }
}

/// Keeps gateways away. A copy need not have the lock's file, and nothing is made here.
fn lock(data_dir: &Path, shown: &Path) -> Result<Option<File>, StoreToolFault> {
    let Ok(file) = File::open(data_dir.join("LOCK")) else {
        return Ok(None);
    };
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Err(DataDirFault::InUse(shown.to_owned()).into()),
        // A file system without locks cannot hold a running gateway either.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(file)),
    }
}
