//! The disks of the benches: that of the tools, one operation at a time on the calling thread, the
//! same on a thread of its own, and none. The gateway runs operations on its ring; for one batch in
//! flight the order is the same.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use ringpost_engine::data_dir::{Access, ShardDisk};
use ringpost_storage::{BlockingDisk, DiskError, DiskOp, DiskOpId, DiskOutcome};

/// Does nothing, at once: what remains is the CPU time of the store. Cannot be read.
#[derive(Debug, Default)]
pub struct NullDisk;

impl BlockingDisk for NullDisk {
    fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError> {
        match op {
            DiskOp::List => Ok(DiskOutcome::Listed(Vec::new())),
            DiskOp::Read { .. } => unreachable!("nothing is read back here"),
            _ => Ok(DiskOutcome::Done),
        }
    }
}

/// The store's files in `directory`.
pub fn files_in(directory: &Path) -> ShardDisk {
    ShardDisk::new(directory, Access::ReadWrite)
}

/// Writes back and forgets what the page cache holds of the directory's files.
pub fn drop_page_cache(directory: &Path) -> io::Result<()> {
    for (name, _) in files_in(directory).list()? {
        let file = File::open(directory.join(name.file_name()))?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// Runs operations on a thread of its own, one after the other, while the caller goes on: as the
/// kernel does for the gateway's ring.
#[derive(Debug)]
pub struct BackgroundDisk {
    asked: Sender<(DiskOpId, DiskOp)>,
    answered: Receiver<(DiskOpId, Result<DiskOutcome, DiskError>)>,
}

impl BackgroundDisk {
    pub fn new(mut disk: ShardDisk) -> Self {
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

    /// The next result, if it is there.
    pub fn poll(&self) -> Option<(DiskOpId, Result<DiskOutcome, DiskError>)> {
        self.answered.try_recv().ok()
    }

    /// The next result; waits for it.
    pub fn wait(&self) -> (DiskOpId, Result<DiskOutcome, DiskError>) {
        self.answered.recv().expect("the thread ends with this")
    }
}
