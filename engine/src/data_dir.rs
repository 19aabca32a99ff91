//! The data directory: one process at a time, and what the first start decided.
//!
//! ```text
//! DATA/LOCK                      locked while a gateway runs on it
//! DATA/CURRENT                   generation, storage shards, store id (checksummed)
//! DATA/store/gen-1/shard-000/    the segments of one storage shard
//! ```
//!
//! It makes directories and never touches what is inside a shard's.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ringpost_storage::current::{Current, CurrentFault};

/// An opened data directory; the lock is held until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    current: Current,
    _lock: File,
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
}

impl DataDir {
    /// Opens `path`, made when it does not exist. `storage_shards` counts at the first start only:
    /// users are spread over that many stores, so the recorded number wins.
    pub fn open(path: &Path, storage_shards: u16) -> Result<Self, DataDirFault> {
        make_directory(path)?;
        let lock = lock(path)?;
        let current = match read_current(path)? {
            Some(current) => current,
            None => first_start(path, storage_shards)?,
        };
        let directory = Self { path: path.to_owned(), current, _lock: lock };
        directory.make_shard_dirs()?;
        Ok(directory)
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
        self.generation_dir().join(format!("shard-{shard:03}"))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn generation_dir(&self) -> PathBuf {
        self.path.join(STORE).join(format!("gen-{}", self.current.generation))
    }

    fn make_shard_dirs(&self) -> Result<(), DataDirFault> {
        make_directory(&self.path.join(STORE))?;
        make_directory(&self.generation_dir())?;
        for shard in 0..self.current.storage_shards {
            make_directory(&self.shard_dir(shard))?;
        }
        // Children first: a directory's entry is durable once its parent is synced.
        for directory in [&self.generation_dir(), &self.path.join(STORE), &self.path] {
            sync_directory(directory).map_err(io_fault("sync", directory))?;
        }
        Ok(())
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
                "data_dir must be on a local disk and belong to the user that runs the gateway"
                    .to_owned()
            }
            Self::Current { fault: CurrentFault::Version { .. }, .. } => {
                "start the version of ringpost that wrote it, or a newer one".to_owned()
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
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync_directory(parent.unwrap_or_else(|| Path::new(".")))
}

fn lock(path: &Path) -> Result<File, DataDirFault> {
    let lock_path = path.join("LOCK");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(io_fault("open", &lock_path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(DataDirFault::InUse(path.to_owned())),
        Err(TryLockError::Error(error)) => Err(io_fault("lock", &lock_path)(error)),
    }
}

fn read_current(path: &Path) -> Result<Option<Current>, DataDirFault> {
    let current_path = path.join(CURRENT);
    match std::fs::read(&current_path) {
        Ok(content) => Current::decode(&content)
            .map(Some)
            .map_err(|fault| DataDirFault::Current { path: current_path, fault }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_fault("read", &current_path)(error)),
    }
}

fn first_start(path: &Path, storage_shards: u16) -> Result<Current, DataDirFault> {
    let current_path = path.join(CURRENT);
    // Stores without CURRENT are somebody's mail, not a first start. CURRENT is written before
    // the first store directory, so a crash in between does not look like this.
    let store = path.join(STORE);
    if store.exists() {
        return Err(DataDirFault::CurrentLost { current: current_path, store });
    }
    let current = Current { generation: 1, storage_shards, store_id: rand::random() };
    write_atomically(&current_path, &current.encode(), 0o600)
        .map_err(io_fault("write", &current_path))?;
    Ok(current)
}

fn make_directory(path: &Path) -> Result<(), DataDirFault> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).map_err(io_fault("create", path))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn io_fault(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirFault {
    let path = path.to_owned();
    move |error| DataDirFault::Io { action, path, error }
}

const CURRENT: &str = "CURRENT";
const STORE: &str = "store";

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
        drop(first);
        DataDir::open(directory.path(), 1).unwrap();
    }

    #[test]
    fn a_damaged_or_lost_current_stops_the_start() {
        let directory = tempfile::tempdir().unwrap();
        drop(DataDir::open(directory.path(), 1).unwrap());
        let current = directory.path().join(CURRENT);
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
}
