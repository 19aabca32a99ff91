//! A data directory from one generation of stores to the next.
//!
//! `CURRENT` names the one generation that counts. The next one is written beside it, complete and
//! synced, before `CURRENT` is replaced; the old one is removed after that is durable. So a crash
//! at any moment leaves `CURRENT` naming a complete generation, and at most one other directory,
//! which [`remove_leftovers`] removes at the next start.

use crate::blocking::BlockingDisk;
use crate::current::Current;
use crate::disk::DiskError;
use crate::limits::StoreConfig;
use crate::reshard::{ReshardFault, ReshardProgress, ReshardReport, Resharding};

/// What re-sharding needs of a data directory. Every method has ended when it returns.
pub trait DataDisk {
    type Shard: BlockingDisk;

    /// Numbers of the generations that have a directory, in any order.
    fn generations(&mut self) -> Result<Vec<u64>, DiskError>;
    /// Makes a generation's directory and those of its storage shards, empty; all durable when it
    /// returns.
    fn create_generation(&mut self, generation: u64, shards: u16) -> Result<(), DiskError>;
    fn shard(&mut self, generation: u64, shard: u16) -> Result<Self::Shard, DiskError>;
    /// Replaces `CURRENT`, whole or not at all, also by a crash; durable when it returns.
    fn write_current(&mut self, content: &[u8]) -> Result<(), DiskError>;
    /// Removes a generation and all it holds; need not be durable.
    fn remove_generation(&mut self, generation: u64) -> Result<(), DiskError>;
    /// Bytes that the next generation may take.
    fn free_bytes(&mut self) -> Result<u64, DiskError>;
}

/// What [`reshard`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resharded {
    /// As `CURRENT` says now.
    pub current: Current,
    pub report: ReshardReport,
    /// The old generation could not be removed; the next start tries again.
    pub leftover: Option<DiskError>,
}

/// Removes what an interrupted re-sharding left: every generation that `CURRENT` does not name.
/// Gives how many.
pub fn remove_leftovers(
    disk: &mut impl DataDisk,
    current: &Current,
) -> Result<usize, ReshardFault> {
    let mut found = disk.generations().map_err(directory_fault("listing of generations"))?;
    found.retain(|generation| *generation != current.generation);
    found.sort_unstable();
    for generation in &found {
        let removed = disk.remove_generation(*generation);
        removed.map_err(directory_fault("removal of a leftover generation"))?;
    }
    Ok(found.len())
}

/// Rewrites the stores of `current` into `storage_shards` new ones and makes these the current
/// ones; the same number compacts. Without [`remove_leftovers`] before it may fail.
///
/// `config`: as for the stores; its shard and store id do not count. When this fails, the old
/// generation still counts and is complete, unless `CURRENT` could not be replaced: then read it.
pub fn reshard(
    disk: &mut impl DataDisk,
    current: Current,
    storage_shards: u16,
    config: &StoreConfig,
    hash_seed: u64,
    on_progress: &mut dyn FnMut(ReshardProgress),
) -> Result<Resharded, ReshardFault> {
    assert!(storage_shards > 0, "the configuration's lower bound is 1");
    let generation = current.generation + 1;
    let next = Current { generation, storage_shards, ..current };
    let config = StoreConfig { store_id: current.store_id, ..config.clone() };
    let sources = shards(disk, &current)?;
    let resharding = Resharding::open(sources, &config, hash_seed, on_progress)?;
    let needed_bytes = resharding.plan().needed_bytes(&config, storage_shards);
    let free_bytes = disk.free_bytes().map_err(directory_fault("reading of the free space"))?;
    if free_bytes < needed_bytes {
        return Err(ReshardFault::NoSpace { needed_bytes, free_bytes });
    }
    let report = match write(disk, &next, resharding, on_progress) {
        Ok(report) => report,
        Err(fault) => {
            // It may fill the disk. If this fails too, the next start does it.
            let _ = disk.remove_generation(generation);
            return Err(fault);
        }
    };
    disk.write_current(&next.encode()).map_err(directory_fault("replacement of CURRENT"))?;
    let leftover = disk.remove_generation(current.generation).err();
    Ok(Resharded { current: next, report, leftover })
}

fn write<K: DataDisk>(
    disk: &mut K,
    next: &Current,
    resharding: Resharding<K::Shard>,
    on_progress: &mut dyn FnMut(ReshardProgress),
) -> Result<ReshardReport, ReshardFault> {
    let created = disk.create_generation(next.generation, next.storage_shards);
    created.map_err(directory_fault("making of the new generation"))?;
    let targets = shards(disk, next)?;
    resharding.write(targets, on_progress)
}

fn shards<K: DataDisk>(disk: &mut K, current: &Current) -> Result<Vec<K::Shard>, ReshardFault> {
    let shards = 0..current.storage_shards;
    let opened = shards.map(|shard| disk.shard(current.generation, shard));
    opened.collect::<Result<_, _>>().map_err(directory_fault("opening of a shard's directory"))
}

fn directory_fault(step: &'static str) -> impl FnOnce(DiskError) -> ReshardFault {
    move |error| ReshardFault::Directory { step, error }
}
