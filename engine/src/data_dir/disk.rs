//! The storage crate's disks on the file system, one operation at a time: for re-sharding and for
//! tools. A serving gateway uses its rings instead.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ringpost_ring::host;
use ringpost_storage::{
    BlockingDisk, DataDisk, DiskError, DiskErrorKind, DiskOp, DiskOutcome, FileId,
};

use super::{generation_dir, make_directory, shard_dir, store_dir, sync_directory, write_current};

/// The directory of one storage shard.
#[derive(Debug)]
pub struct ShardDisk {
    path: PathBuf,
    files: HashMap<FileId, File>,
    access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// What would change a file is skipped and reported done.
    ReadOnly,
    ReadWrite,
}

/// A shard's directory without its checkpoints: a store opened on it reads the whole log.
#[derive(Debug)]
pub struct LogOnly(pub ShardDisk);

/// The generations of one data directory.
#[derive(Debug)]
pub(super) struct Generations {
    pub(super) data_dir: PathBuf,
}

impl ShardDisk {
    pub fn new(path: &Path, access: Access) -> Self {
        Self { path: path.to_owned(), files: HashMap::new(), access }
    }

    /// The store's files and their lengths in bytes, in order; other files are left out.
    pub fn list(&self) -> io::Result<Vec<(FileId, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Some(file) = entry.file_name().to_str().and_then(FileId::parse) {
                found.push((file, entry.metadata()?.len()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Short only at the end of the file.
    pub fn read(&mut self, file: FileId, offset: u64, length_bytes: u32) -> io::Result<Bytes> {
        let file = self.file(file)?;
        let mut bytes = vec![0; length_bytes as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        Ok(bytes.into())
    }

    fn file(&mut self, file: FileId) -> io::Result<&File> {
        if !self.files.contains_key(&file) {
            let mut options = File::options();
            options.read(true).write(self.access == Access::ReadWrite);
            // Files are used one after the other: more than the last few are not worth a descriptor.
            if self.files.len() >= OPEN_FILES_MAX {
                self.files.clear();
            }
            self.files.insert(file, options.open(self.path.join(file.file_name()))?);
        }
        Ok(&self.files[&file])
    }

    fn run(&mut self, op: DiskOp) -> io::Result<DiskOutcome> {
        match op {
            DiskOp::List => return self.list().map(DiskOutcome::Listed),
            DiskOp::Read { file, offset, length_bytes } => {
                return self.read(file, offset, length_bytes).map(DiskOutcome::Read);
            }
            _ if self.access == Access::ReadOnly => {}
            DiskOp::Create { file } => {
                let mut options = File::options();
                options.read(true).write(true).create_new(true);
                let made = options.open(self.path.join(file.file_name()))?;
                self.files.insert(file, made);
            }
            DiskOp::Write { file, offset, data } => self.file(file)?.write_all_at(&data, offset)?,
            DiskOp::SyncData { file } => self.file(file)?.sync_data()?,
            DiskOp::SyncAll { file } => self.file(file)?.sync_all()?,
            DiskOp::SyncDir => sync_directory(&self.path)?,
            DiskOp::Unlink { file } => {
                self.files.remove(&file);
                fs::remove_file(self.path.join(file.file_name()))?;
            }
        }
        Ok(DiskOutcome::Done)
    }
}

impl BlockingDisk for ShardDisk {
    fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError> {
        self.run(op).map_err(|error| disk_error(&error))
    }
}

impl BlockingDisk for LogOnly {
    fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError> {
        match self.0.execute(op)? {
            DiskOutcome::Listed(mut files) => {
                files.retain(|(file, _)| matches!(file, FileId::Segment(_)));
                Ok(DiskOutcome::Listed(files))
            }
            other => Ok(other),
        }
    }
}

impl DataDisk for Generations {
    type Shard = ShardDisk;

    fn generations(&mut self) -> Result<Vec<u64>, DiskError> {
        list_generations(&self.data_dir).map_err(|error| disk_error(&error))
    }

    fn create_generation(&mut self, generation: u64, shards: u16) -> Result<(), DiskError> {
        make_generation(&self.data_dir, generation, shards).map_err(|error| disk_error(&error))
    }

    fn shard(&mut self, generation: u64, shard: u16) -> Result<ShardDisk, DiskError> {
        let path = shard_dir(&self.data_dir, generation, shard);
        Ok(ShardDisk::new(&path, Access::ReadWrite))
    }

    fn write_current(&mut self, content: &[u8]) -> Result<(), DiskError> {
        write_current(&self.data_dir, content).map_err(|error| disk_error(&error))
    }

    fn remove_generation(&mut self, generation: u64) -> Result<(), DiskError> {
        match fs::remove_dir_all(generation_dir(&self.data_dir, generation)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(disk_error(&error)),
            _ => Ok(()),
        }
    }

    fn free_bytes(&mut self) -> Result<u64, DiskError> {
        host::free_bytes(&self.data_dir).map_err(|error| disk_error(&error))
    }
}

/// Numbers of the generations in `data_dir`, in no order. None when there is no store at all.
pub(crate) fn list_generations(data_dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(store_dir(data_dir)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("gen-"));
        found.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(found)
}

/// Children first: a directory's entry is durable once its parent is synced.
pub(super) fn make_generation(data_dir: &Path, generation: u64, shards: u16) -> io::Result<()> {
    let directory = generation_dir(data_dir, generation);
    make_directory(&directory)?;
    for shard in 0..shards {
        make_directory(&shard_dir(data_dir, generation, shard))?;
    }
    sync_directory(&directory)?;
    sync_directory(&store_dir(data_dir))?;
    sync_directory(data_dir)
}

fn disk_error(error: &io::Error) -> DiskError {
    let kind = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            DiskErrorKind::Full
        }
        _ => DiskErrorKind::Io,
    };
    DiskError { kind, text: error.to_string() }
}

const OPEN_FILES_MAX: usize = 16;
