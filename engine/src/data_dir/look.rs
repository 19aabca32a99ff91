//! A look at a data directory that opens nothing: a gateway may be running on it.

use std::fs::{File, TryLockError};
use std::path::Path;

use ringpost_storage::Current;

use super::{
    DataDirFault, Lock, current_path, generation_dir, io_fault, list_generations, read_current,
    store_dir,
};

/// What a start would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataDirState {
    /// A start makes it.
    Absent,
    /// It is there, and no gateway ran on it yet.
    Empty,
    Used {
        current: Current,
        /// A gateway runs on it now.
        in_use: bool,
    },
}

/// Says what is there, or why a start would refuse it. Writes and removes one empty file.
pub fn look_at(path: &Path) -> Result<DataDirState, DataDirFault> {
    let there = path.exists();
    let nearest = path.ancestors().find(|path| path.as_os_str().is_empty() || path.exists());
    let directory = match nearest {
        Some(nearest) if !nearest.as_os_str().is_empty() => nearest,
        _ => Path::new("."),
    };
    try_to_write(directory).map_err(io_fault("write to", directory))?;
    let store = store_dir(path);
    match read_current(path)? {
        None if store.exists() => {
            Err(DataDirFault::CurrentLost { current: current_path(path), store })
        }
        None if there => Ok(DataDirState::Empty),
        None => Ok(DataDirState::Absent),
        Some(current) => {
            let generation = current.generation;
            let found = list_generations(path).map_err(io_fault("list", &store))?;
            if !found.is_empty() && !found.contains(&generation) {
                let current = current_path(path);
                return Err(DataDirFault::GenerationLost { current, generation });
            }
            let stores = generation_dir(path, generation);
            if stores.exists() {
                stores.read_dir().map_err(io_fault("list", &stores))?;
            }
            Ok(DataDirState::Used { current, in_use: is_locked(path)? })
        }
    }
}

/// A name of its own, so that it meets no file of a gateway nor of another look.
fn try_to_write(directory: &Path) -> std::io::Result<()> {
    let probe = directory.join(format!(".ringpost-check-{:016x}", rand::random::<u64>()));
    File::create_new(&probe)?;
    std::fs::remove_file(&probe)
}

/// The lock is given back at once.
fn is_locked(path: &Path) -> Result<bool, DataDirFault> {
    let lock_path = path.join("LOCK");
    let Ok(file) = File::open(&lock_path) else { return Ok(false) };
    match file.try_lock_shared() {
        Ok(()) => {
            drop(Lock(file));
            Ok(false)
        }
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(io_fault("lock", &lock_path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data_dir::DataDir;

    #[test]
    fn a_look_changes_nothing() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("data/inner");
        assert_eq!(look_at(&path).unwrap(), DataDirState::Absent);
        assert!(place.path().read_dir().unwrap().next().is_none(), "nothing was made");
        std::fs::create_dir_all(&path).unwrap();
        assert_eq!(look_at(&path).unwrap(), DataDirState::Empty);

        let open = DataDir::open(&path, 3).unwrap();
        let current = *open.current();
        assert_eq!(look_at(&path).unwrap(), DataDirState::Used { current, in_use: true });
        drop(open);
        assert_eq!(look_at(&path).unwrap(), DataDirState::Used { current, in_use: false });
        DataDir::open(&path, 3).unwrap();

        std::fs::remove_file(path.join("CURRENT")).unwrap();
        assert!(matches!(look_at(&path), Err(DataDirFault::CurrentLost { .. })));
        let file = place.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(look_at(&file), Err(DataDirFault::Io { .. })));
        assert!(matches!(look_at(&file.join("below")), Err(DataDirFault::Io { .. })));
    }
}
