//! Disks that run one operation at a time, on the calling thread. The gateway runs them on its
//! ring; for one batch in flight the order is the same.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use bytes::Bytes;
use ringpost_storage::{DiskError, DiskErrorKind, DiskOp, DiskOpId, DiskOutcome, FileId};

/// Runs disk operations to their end.
pub trait Disk {
    fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError>;
}

/// Does nothing, at once: what remains is the CPU time of the store. Cannot be read.
#[derive(Debug, Default)]
pub struct NullDisk;

/// The directory of a store.
#[derive(Debug)]
pub struct FileDisk {
    directory: PathBuf,
    files: HashMap<FileId, File>,
}

impl Disk for NullDisk {
    fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError> {
        match op {
            DiskOp::List => Ok(DiskOutcome::Listed(Vec::new())),
            DiskOp::Read { .. } => unreachable!("nothing is read back here"),
            _ => Ok(DiskOutcome::Done),
        }
    }
}

impl FileDisk {
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), files: HashMap::new() }
    }

    /// Writes back and forgets what the page cache holds of the directory's files.
    pub fn drop_page_cache(&self) -> io::Result<()> {
        for (name, _) in self.list()? {
            let file = File::open(self.path(name))?;
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
        Ok(())
    }

    fn path(&self, file: FileId) -> PathBuf {
        self.directory.join(file.file_name())
    }

    fn file(&mut self, file: FileId) -> io::Result<&File> {
        if !self.files.contains_key(&file) {
            let open = File::options().read(true).write(true).open(self.path(file))?;
            self.files.insert(file, open);
        }
        Ok(&self.files[&file])
    }

    fn list(&self) -> io::Result<Vec<(FileId, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if let Some(file) = entry.file_name().to_str().and_then(FileId::parse) {
                found.push((file, entry.metadata()?.len()));
            }
        }
        Ok(found)
    }

    fn run(&mut self, op: DiskOp) -> io::Result<DiskOutcome> {
        match op {
            DiskOp::List => return self.list().map(DiskOutcome::Listed),
            DiskOp::Create { file } => {
                let mut options = File::options();
                options.read(true).write(true).create_new(true);
                self.files.insert(file, options.open(self.path(file))?);
            }
            DiskOp::Write { file, offset, data } => {
                self.file(file)?.write_all_at(&data, offset)?;
            }
            DiskOp::Read { file, offset, length_bytes } => {
                let bytes = read_at(self.file(file)?, offset, length_bytes as usize)?;
                return Ok(DiskOutcome::Read(bytes));
            }
            DiskOp::SyncData { file } => self.file(file)?.sync_data()?,
            DiskOp::SyncAll { file } => self.file(file)?.sync_all()?,
            DiskOp::SyncDir => File::open(&self.directory)?.sync_all()?,
            DiskOp::Unlink { file } => {
                self.files.remove(&file);
                fs::remove_file(self.path(file))?;
            }
        }
        Ok(DiskOutcome::Done)
    }
}

impl Disk for FileDisk {
    fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError> {
        self.run(op).map_err(|error| {
            let kind = match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => DiskErrorKind::Full,
                _ => DiskErrorKind::Io,
            };
            DiskError { kind, text: error.to_string() }
        })
    }
}

/// Runs operations on a thread of its own, one after the other, while the caller goes on: as the
/// kernel does for the gateway's ring.
#[derive(Debug)]
pub struct BackgroundDisk {
    asked: Sender<(DiskOpId, DiskOp)>,
    answered: Receiver<(DiskOpId, Result<DiskOutcome, DiskError>)>,
}

impl BackgroundDisk {
    pub fn new(mut disk: FileDisk) -> Self {
        let (asked, asking) = mpsc::channel();
        let (answering, answered) = mpsc::channel();
        thread::spawn(move || {
            for (id, op) in asking {
                if answering.send((id, disk.execute(op))).is_err() {
                    break;
                }
            }
        });
        Self { asked, answered }
    }

    pub fn start(&self, id: DiskOpId, op: DiskOp) {
        self.asked.send((id, op)).expect("the thread ends with this");
    }

    /// The next result; waits for it.
    pub fn wait(&self) -> (DiskOpId, Result<DiskOutcome, DiskError>) {
        self.answered.recv().expect("the thread ends with this")
    }
}

/// Short only at the end of the file.
fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
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
