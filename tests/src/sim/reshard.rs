//! A start with another number of storage shards: the production code rewrites the stores on the
//! simulated disk, and may be cut off at any operation.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ringpost_ring::{Errno, File, OpenMode};
use ringpost_storage::{
    BlockingDisk, Current, DataDisk, DiskError, DiskErrorKind, DiskOp, DiskOutcome, FileId,
    StoreConfig, generation,
};

use super::disk::{FileDone, FileOp};
use super::ring::Host;

/// How a re-sharding ended.
#[derive(Debug)]
pub enum Ended {
    Done(Current),
    /// The process or its machine went down in the middle; the disk says what holds now.
    CutOff,
    Failed(String),
}

/// Rewrites the stores of the host's disk. `operations_max`: the process ends after so many.
pub fn reshard(
    host: &Rc<RefCell<Host>>,
    current: Current,
    storage_shards: u16,
    config: &StoreConfig,
    operations_max: u64,
) -> Ended {
    let mut disk = SimData { host: Rc::clone(host), left: Rc::new(Cell::new(operations_max)) };
    let left = Rc::clone(&disk.left);
    let hash_seed = host.borrow_mut().faults.crash.next_u64();
    let resharded = generation::remove_leftovers(&mut disk, &current).and_then(|_| {
        generation::reshard(&mut disk, current, storage_shards, config, hash_seed, &mut |_| {})
    });
    match resharded {
        Ok(resharded) => Ended::Done(resharded.current),
        Err(_) if left.get() == 0 => Ended::CutOff,
        Err(fault) => Ended::Failed(fault.to_string()),
    }
}

/// Where the stores of a generation lie.
pub fn store_path(generation: u64, shard: u16) -> String {
    format!("/gen-{generation}/shard-{shard}")
}

struct SimData {
    host: Rc<RefCell<Host>>,
    /// Operations until the process ends.
    left: Rc<Cell<u64>>,
}

struct SimShard {
    host: Rc<RefCell<Host>>,
    left: Rc<Cell<u64>>,
    path: String,
    open: BTreeMap<FileId, File>,
}

impl SimData {
    fn step(&self) -> Result<(), DiskError> {
        step(&self.left)
    }
}

/// One more operation, if the process is still there.
fn step(left: &Cell<u64>) -> Result<(), DiskError> {
    if left.get() == 0 {
        return Err(DiskError { kind: DiskErrorKind::Io, text: "the process has ended".into() });
    }
    left.set(left.get() - 1);
    Ok(())
}

impl DataDisk for SimData {
    type Shard = SimShard;

    fn generations(&mut self) -> Result<Vec<u64>, DiskError> {
        self.step()?;
        let host = self.host.borrow();
        let numbers: BTreeSet<u64> = host
            .disk
            .paths()
            .filter_map(|path| path.strip_prefix("/gen-")?.split('/').next()?.parse().ok())
            .collect();
        Ok(numbers.into_iter().collect())
    }

    fn create_generation(&mut self, _: u64, _: u16) -> Result<(), DiskError> {
        self.step() // the simulated disk needs no directories
    }

    fn shard(&mut self, generation: u64, shard: u16) -> Result<SimShard, DiskError> {
        Ok(SimShard {
            host: Rc::clone(&self.host),
            left: Rc::clone(&self.left),
            path: store_path(generation, shard),
            open: BTreeMap::new(),
        })
    }

    fn write_current(&mut self, content: &[u8]) -> Result<(), DiskError> {
        let stepped = self.step();
        let host = &mut *self.host.borrow_mut();
        // The rename may have become durable though nobody heard of it.
        if stepped.is_ok() || host.faults.crash.chance(500) {
            host.current = content.to_vec();
        }
        stepped
    }

    fn remove_generation(&mut self, generation: u64) -> Result<(), DiskError> {
        self.step()?;
        let prefix = format!("/gen-{generation}/");
        let host = &mut *self.host.borrow_mut();
        let paths: Vec<String> =
            host.disk.paths().filter(|path| path.starts_with(&prefix)).map(str::to_owned).collect();
        for path in paths {
            host.disk.execute(&FileOp::Unlink { path }).map_err(disk_error)?;
        }
        Ok(())
    }

    fn free_bytes(&mut self) -> Result<u64, DiskError> {
        Ok(u64::MAX)
    }
}

impl SimShard {
    fn file(&mut self, id: FileId, mode: OpenMode) -> Result<File, DiskError> {
        if let Some(file) = self.open.get(&id) {
            return Ok(*file);
        }
        let path = format!("{}/{}", self.path, id.file_name());
        let file = self.open_path(path, mode)?;
        self.open.insert(id, file);
        Ok(file)
    }

    fn open_path(&self, path: String, mode: OpenMode) -> Result<File, DiskError> {
        let opened = self.host.borrow_mut().disk.execute(&FileOp::Open { path, mode });
        match opened.map_err(disk_error)? {
            FileDone::Opened(file) => Ok(file),
            other => unreachable!("an open gives a file, not {other:?}"),
        }
    }

    fn sync(&self, file: File, data_only: bool) -> Result<DiskOutcome, DiskError> {
        let host = &mut *self.host.borrow_mut();
        let before = host.disk.changes();
        let op = FileOp::Sync { file, before, data_only };
        host.disk.execute(&op).map_err(disk_error)?;
        Ok(DiskOutcome::Done)
    }
}

impl BlockingDisk for SimShard {
    fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError> {
        step(&self.left)?;
        let file_op = match op {
            DiskOp::List => {
                let listed = self.host.borrow().disk.list(&self.path);
                let files =
                    listed.iter().filter_map(|(name, size)| Some((FileId::parse(name)?, *size)));
                return Ok(DiskOutcome::Listed(files.collect()));
            }
            DiskOp::Create { file } => {
                self.file(file, OpenMode::CreateNew)?;
                return Ok(DiskOutcome::Done);
            }
            DiskOp::SyncData { file } => {
                let file = self.file(file, OpenMode::ReadWrite)?;
                return self.sync(file, true);
            }
            DiskOp::SyncAll { file } => {
                let file = self.file(file, OpenMode::ReadWrite)?;
                return self.sync(file, false);
            }
            DiskOp::SyncDir => {
                let directory = self.open_path(self.path.clone(), OpenMode::Directory)?;
                let synced = self.sync(directory, false);
                self.host.borrow_mut().disk.close(directory);
                return synced;
            }
            DiskOp::Write { file, offset, data } => {
                FileOp::Write { file: self.file(file, OpenMode::ReadWrite)?, offset, data }
            }
            DiskOp::Read { file, offset, length_bytes } => {
                FileOp::Read { file: self.file(file, OpenMode::ReadWrite)?, offset, length_bytes }
            }
            DiskOp::Unlink { file } => {
                if let Some(open) = self.open.remove(&file) {
                    self.host.borrow_mut().disk.close(open);
                }
                FileOp::Unlink { path: format!("{}/{}", self.path, file.file_name()) }
            }
        };
        match self.host.borrow_mut().disk.execute(&file_op).map_err(disk_error)? {
            FileDone::Read(data) => Ok(DiskOutcome::Read(data)),
            FileDone::Opened(_) | FileDone::Done => Ok(DiskOutcome::Done),
        }
    }
}

impl Drop for SimShard {
    fn drop(&mut self) {
        for file in self.open.values() {
            self.host.borrow_mut().disk.close(*file);
        }
    }
}

fn disk_error(errno: Errno) -> DiskError {
    let kind = if errno == Errno::NOSPC { DiskErrorKind::Full } else { DiskErrorKind::Io };
    DiskError { kind, text: errno.to_string() }
}
