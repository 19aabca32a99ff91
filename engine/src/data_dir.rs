//! The data directory: one process at a time, and what the first start decided.
//!
//! ```text
//! DATA/LOCK                      locked while a gateway runs on it
//! DATA/CURRENT                   generation, storage shards, store id (checksummed)
//! DATA/store/gen-1/shard-000/    the segments of one storage shard
//! DATA/directory.redb            public keys, device lists, rosters of groups
//! DATA/jwks-last-good.json       the last key set from a URL
//! DATA/audit-salt                makes the names of users in the audit log
//! DATA/quic-secret               the keys of QUIC and of TLS tickets come from it
//! ```
//!
//! It makes directories, and touches what is inside a shard's only to re-shard.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ringpost_storage::current::{Current, CurrentFault};
use ringpost_storage::{ReshardFault, ReshardProgress, Resharded, StoreConfig, generation};

mod disk;
mod look;
mod quic_secret;

pub(crate) use disk::list_generations;
pub use disk::{Access, LogOnly, ShardDisk};
pub use look::{DataDirState, look_at};
pub use quic_secret::{QuicSecretFault, existing_quic_secret, quic_secret};

use disk::{Generations, make_generation};

/// An opened data directory; the lock is held until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    current: Current,
    _lock: Lock,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirFault {
    #[error("the data directory {} is in use by another gateway", .0.display())]
    InUse(PathBuf),
    #[error("cannot {action} {}: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },
    #[error("{}: {fault}", path.display())]
    Current { path: PathBuf, fault: CurrentFault },
    #[error("{} is missing but the stores in {} are there", current.display(), store.display())]
    CurrentLost { current: PathBuf, store: PathBuf },
    #[error("{} names generation {generation}, but that one is missing and others are there",
        current.display())]
    GenerationLost { current: PathBuf, generation: u64 },
    #[error("{} is no data directory of a gateway: it has no CURRENT", .0.display())]
    NotOne(PathBuf),
    #[error("rewriting the stores in {}: {fault}", path.display())]
    Reshard { path: PathBuf, fault: ReshardFault },
}

impl DataDir {
    /// Opens `path`, made when it does not exist. `storage_shards` counts at the first start only:
    /// users are spread over that many stores, which [`Self::reshard`] changes.
    pub fn open(path: &Path, storage_shards: u16) -> Result<Self, DataDirFault> {
        make_data_dir(path).map_err(io_fault("create", path))?;
        let lock = lock(path)?;
        let current = match read_current(path)? {
            Some(current) => current,
            None => first_start(path, storage_shards)?,
        };
        Self::begin(path, current, lock)
    }

    /// Opens `path` only if a gateway ran on it.
    pub fn open_existing(path: &Path) -> Result<Self, DataDirFault> {
        if !current_path(path).exists() {
            return Err(DataDirFault::NotOne(path.to_owned()));
        }
        let lock = lock(path)?;
        let current = read_current(path)?.ok_or_else(|| DataDirFault::NotOne(path.to_owned()))?;
        Self::begin(path, current, lock)
    }

    /// Makes sure that the current generation is there, and nothing but it.
    fn begin(path: &Path, current: Current, lock: Lock) -> Result<Self, DataDirFault> {
        let generation = current.generation;
        let found = list_generations(path).map_err(io_fault("list", &store_dir(path)))?;
        // CURRENT may be of an old backup: what is there must not be taken for leftovers then.
        if !found.is_empty() && !found.contains(&generation) {
            return Err(DataDirFault::GenerationLost { current: current_path(path), generation });
        }
        make_generation(path, generation, current.storage_shards)
            .map_err(io_fault("create", &generation_dir(path, generation)))?;
        let directory = Self { path: path.to_owned(), current, _lock: lock };
        let removed = generation::remove_leftovers(&mut directory.generations(), &current);
        let removed = removed.map_err(|fault| directory.reshard_fault(fault))?;
        if removed > 0 {
            tracing::info!(removed, "removed the leftovers of an interrupted re-sharding");
        }
        Ok(directory)
    }

    /// Rewrites the stores into `storage_shards` new ones, which are the current ones when it
    /// returns; the same number compacts. A crash leaves the old ones or the new ones complete.
    /// `config`: as for the stores; its shard and store id do not count.
    pub fn reshard(
        &mut self,
        storage_shards: u16,
        config: &StoreConfig,
        on_progress: &mut dyn FnMut(ReshardProgress),
    ) -> Result<Resharded, DataDirFault> {
        let (current, hash_seed) = (self.current, rand::random());
        let mut disk = self.generations();
        let resharded =
            generation::reshard(&mut disk, current, storage_shards, config, hash_seed, on_progress);
        let resharded = resharded.map_err(|fault| self.reshard_fault(fault))?;
        self.current = resharded.current;
        Ok(resharded)
    }

    pub fn current(&self) -> &Current {
        &self.current
    }

    /// Stores of this directory, and so the least number of shards that can serve it.
    pub fn storage_shards(&self) -> u16 {
        self.current.storage_shards
    }

    /// Random number of this directory, given at its first start.
    pub fn store_id(&self) -> u64 {
        self.current.store_id
    }

    /// The directory of one storage shard's segments.
    pub fn shard_dir(&self, shard: u16) -> PathBuf {
        assert!(shard < self.current.storage_shards, "only storage shards have a directory");
        shard_dir(&self.path, self.current.generation, shard)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn generations(&self) -> Generations {
        Generations { data_dir: self.path.clone() }
    }

    fn reshard_fault(&self, fault: ReshardFault) -> DataDirFault {
        DataDirFault::Reshard { path: store_dir(&self.path), fault }
    }
}

impl DataDirFault {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::InUse(_) => {
                "stop the other process, or give this one a data_dir of its own".to_owned()
            }
            Self::Io { error, .. } if error.kind() == io::ErrorKind::StorageFull => {
                "free disk space".to_owned()
            }
            Self::Io { .. } => {
                "data_dir must be on a local, writable disk and belong to the user that runs the \
                 gateway"
                    .to_owned()
            }
            Self::Current { fault: CurrentFault::Version { .. }, .. } => {
                "start the version of ringpost that wrote it, or a newer one".to_owned()
            }
            Self::NotOne(_) => {
                "give the data_dir of a configuration, as in `ringpost store inspect DIR`"
                    .to_owned()
            }
            Self::Reshard { fault: ReshardFault::NoSpace { needed_bytes, free_bytes }, .. } => {
                let missing_mib = needed_bytes.saturating_sub(*free_bytes).div_ceil(1 << 20);
                format!("free {missing_mib} MiB on the file system of data_dir. {KEEP_SHARDS}")
            }
            Self::Reshard { fault: ReshardFault::Open { .. }, .. } => {
                format!("`ringpost store verify DATA_DIR` says what is damaged. {KEEP_SHARDS}")
            }
            Self::Reshard { .. } => format!("nothing is lost: try it again. {KEEP_SHARDS}"),
            Self::GenerationLost { .. } => {
                "restore the CURRENT that belongs to the stores; the one there is older or newer"
                    .to_owned()
            }
            Self::Current { .. } | Self::CurrentLost { .. } => {
                "restore the file from a backup of this directory; without it the stores cannot \
                 be assigned to users"
                    .to_owned()
            }
        }
    }
}

/// Replaces `path` by `content`, whole or not at all, also after a crash.
pub(crate) fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    // The mode counts only for a new file, and a leftover may have another one.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_directory(parent_of(path))
}

/// Given back when it is dropped. Closing the file would not do: a child that another thread makes
/// meanwhile has the file, too, until it becomes another program.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // What cannot be given back ends with the process.
        let _ = self.0.unlock();
    }
}

fn lock(path: &Path) -> Result<Lock, DataDirFault> {
    let lock_path = path.join("LOCK");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(io_fault("open", &lock_path))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(DataDirFault::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(io_fault("lock", &lock_path)(error)),
    }
}

pub(crate) fn read_current(path: &Path) -> Result<Option<Current>, DataDirFault> {
    let current_path = current_path(path);
    match std::fs::read(&current_path) {
        Ok(content) => Current::decode(&content)
            .map(Some)
            .map_err(|fault| DataDirFault::Current { path: current_path, fault }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_fault("read", &current_path)(error)),
    }
}

fn first_start(path: &Path, storage_shards: u16) -> Result<Current, DataDirFault> {
    // Stores without CURRENT are somebody's mail, not a first start. CURRENT is written before
    // the first store directory, so a crash in between does not look like this.
    let store = store_dir(path);
    if store.exists() {
        return Err(DataDirFault::CurrentLost { current: current_path(path), store });
    }
    let current = Current { generation: 1, storage_shards, store_id: rand::random() };
    write_current(path, &current.encode()).map_err(io_fault("write", &current_path(path)))?;
    Ok(current)
}

fn write_current(data_dir: &Path, content: &[u8]) -> io::Result<()> {
    write_atomically(&current_path(data_dir), content, 0o600)
}

fn current_path(data_dir: &Path) -> PathBuf {
    data_dir.join("CURRENT")
}

fn store_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("store")
}

fn generation_dir(data_dir: &Path, generation: u64) -> PathBuf {
    store_dir(data_dir).join(format!("gen-{generation}"))
}

pub(crate) fn shard_dir(data_dir: &Path, generation: u64, shard: u16) -> PathBuf {
    generation_dir(data_dir, generation).join(format!("shard-{shard:03}"))
}

/// Makes `path` and what is missing above it, each durable in its parent: a data directory that is
/// gone after a power failure looks like a first start.
fn make_data_dir(path: &Path) -> io::Result<()> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<&Path> = path.ancestors().take_while(is_missing).collect();
    make_directory(path)?;
    for made in &missing {
        sync_directory(parent_of(made))?;
    }
    if !missing.is_empty() {
        return Ok(());
    }
    // Made by somebody else, or by a start that ended before the sync; its parent need not be ours.
    match sync_directory(parent_of(path)) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn parent_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or_else(|| Path::new("."))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn io_fault(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirFault {
    let path = path.to_owned();
    move |error| DataDirFault::Io { action, path, error }
}

const KEEP_SHARDS: &str =
    "To keep the recorded number of storage shards, remove storage_shards from the configuration";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_decides() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let first = DataDir::open(&path, 3).unwrap();
        assert_eq!(first.storage_shards(), 3);
        assert!(first.shard_dir(2).ends_with("store/gen-1/shard-002"));
        assert!(first.shard_dir(2).is_dir());
        let store_id = first.store_id();
        drop(first);

        let second = DataDir::open(&path, 8).unwrap();
        assert_eq!((second.storage_shards(), second.store_id()), (3, store_id));
        assert!(!second.path().join("store/gen-1/shard-003").exists());
    }

    #[test]
    fn a_second_gateway_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let first = DataDir::open(directory.path(), 1).unwrap();
        let fault = DataDir::open(directory.path(), 1).unwrap_err();
        assert!(matches!(fault, DataDirFault::InUse(_)), "{fault}");
        assert!(fault.to_string().contains(&directory.path().display().to_string()), "{fault}");
        // As a child has it that is being made.
        let inherited = first._lock.0.try_clone().unwrap();
        drop(first);
        DataDir::open(directory.path(), 1).unwrap();
        drop(inherited);
    }

    #[test]
    fn a_damaged_or_lost_current_stops_the_start() {
        let directory = tempfile::tempdir().unwrap();
        drop(DataDir::open(directory.path(), 1).unwrap());
        let current = current_path(directory.path());
        let mut content = std::fs::read(&current).unwrap();
        let last = content.len() - 1;
        content[last] ^= 1;
        std::fs::write(&current, content).unwrap();
        let fault = DataDir::open(directory.path(), 1).unwrap_err();
        assert!(matches!(fault, DataDirFault::Current { .. }), "{fault}");

        std::fs::remove_file(&current).unwrap();
        let fault = DataDir::open(directory.path(), 1).unwrap_err();
        assert!(matches!(fault, DataDirFault::CurrentLost { .. }), "{fault}");
    }

    #[test]
    fn resharding_switches_generations_and_leftovers_go_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let mut data = DataDir::open(directory.path(), 2).unwrap();
        let store = StoreConfig::new(0, data.store_id());
        let done = data.reshard(3, &store, &mut |_| {}).unwrap();
        assert_eq!((done.current.generation, done.current.storage_shards), (2, 3));
        assert_eq!((data.storage_shards(), done.leftover), (3, None));
        assert!(data.shard_dir(2).join("00000001.seg").is_file());
        drop(data);

        let store = store_dir(directory.path());
        make_generation(directory.path(), 3, 5).unwrap();
        let reopened = DataDir::open(directory.path(), 7).unwrap();
        assert_eq!(reopened.storage_shards(), 3);
        assert_eq!(std::fs::read_dir(&store).unwrap().count(), 1);
        drop(reopened);

        // An old CURRENT must not make an empty generation and take the real one for a leftover.
        let old = Current { generation: 1, storage_shards: 2, store_id: 5 };
        write_current(directory.path(), &old.encode()).unwrap();
        let fault = DataDir::open(directory.path(), 1).unwrap_err();
        assert!(matches!(fault, DataDirFault::GenerationLost { generation: 1, .. }), "{fault}");
        assert!(store.join("gen-2").is_dir());
    }
}
