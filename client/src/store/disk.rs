//! A disk in memory that loses what was not synced, for tests and the simulator.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// Handle of a disk. Give [`Self::backend`] to redb, [`Self::crash`] it, and open it again.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    current: Vec<u8>,
    synced: Vec<u8>,
    /// Where the two differ, so that a sync copies that alone.
    dirty: Vec<Range<usize>>,
    /// Backends of before the last crash no longer reach the disk.
    power_cycle: u64,
}

#[derive(Debug)]
struct Backend {
    disk: MemoryDisk,
    power_cycle: u64,
}

impl MemoryDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// One open of the disk; it ends with the next crash.
    pub fn backend(&self) -> impl StorageBackend + use<> {
        Backend { disk: self.clone(), power_cycle: self.lock().power_cycle }
    }

    /// Forgets every write since the last sync. A database that is still open gets errors from
    /// now on, so dropping it changes nothing.
    pub fn crash(&self) {
        let mut state = self.lock();
        state.current = state.synced.clone();
        state.dirty.clear();
        state.power_cycle += 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the lock")
    }
}

impl Backend {
    fn lock(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.lock();
        if state.power_cycle != self.power_cycle {
            return Err(io::Error::other("the disk lost power"));
        }
        Ok(state)
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.lock()?;
        let data =
            state.current.get(range(offset, out.len())?).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let Range { start: len, .. } = range(len, 0)?;
        let state = &mut *self.lock()?;
        let before = state.current.len();
        state.current.resize(len, 0);
        state.dirty.push(before.min(len)..len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let state = &mut *self.lock()?;
        state.synced.resize(state.current.len(), 0);
        for Range { start, end } in state.dirty.drain(..) {
            let end = end.min(state.current.len()); // cut off meanwhile
            if start < end {
                state.synced[start..end].copy_from_slice(&state.current[start..end]);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let state = &mut *self.lock()?;
        let written = range(offset, data.len())?;
        let target = state.current.get_mut(written.clone());
        target.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        state.dirty.push(written);
        Ok(())
    }
}

fn range(offset: u64, length: usize) -> io::Result<Range<usize>> {
    let start = usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let end = start.checked_add(length).ok_or(io::ErrorKind::FileTooLarge)?;
    Ok(start..end)
}
