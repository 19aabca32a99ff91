//! The store's disk operations on the ring: its names become files, files are opened on first use
//! and closed when they are unlinked.

use std::collections::VecDeque;
use std::ffi::CString;

use hashbrown::HashMap;
use ringpost_ring::{Errno, File, Op, OpenMode, Outcome, Ring};
use ringpost_storage::{DiskError, DiskErrorKind, DiskOp, DiskOpId, DiskOutcome, FileId};
use slab::Slab;

use super::token::Token;

type Finished = (DiskOpId, Result<DiskOutcome, DiskError>);

/// Where the files of a shard's store lie.
pub struct StoreDirectory {
    /// Absolute path, without a trailing slash.
    pub path: String,
    /// Gives the files found there, with their sizes in bytes: a ring lists no directories. Called
    /// from the shard's thread, once for each opening.
    pub list: Box<dyn FnMut() -> Listing>,
}

/// Files and their sizes in bytes, in any order.
pub type Listing = Result<Vec<(FileId, u64)>, DiskError>;

/// Carries out the operations of one store.
pub(super) struct Disk {
    directory: StoreDirectory,
    directory_file: Option<File>,
    files: HashMap<FileId, StoreFile>,
    pending: Slab<Pending>,
    finished: VecDeque<Finished>,
}

enum StoreFile {
    /// Being opened; these wait for it, in order.
    Opening(Vec<(DiskOpId, DiskOp)>),
    Open(File),
}

struct Pending {
    id: Option<DiskOpId>,
    step: Step,
    started_ns: u64,
}

enum Step {
    /// Opens an existing file for the operations that wait on it.
    Open(FileId),
    Create(FileId),
    /// Opens the directory in order to sync it.
    OpenDirectory,
    Sync,
    Other,
}

impl Disk {
    pub(super) fn new(directory: StoreDirectory) -> Self {
        Self {
            directory,
            directory_file: None,
            files: HashMap::new(),
            pending: Slab::new(),
            finished: VecDeque::new(),
        }
    }

    /// Starts `op`. Its result comes out of [`Disk::poll_finished`].
    pub(super) fn start(&mut self, ring: &mut impl Ring, id: DiskOpId, op: DiskOp) {
        match op {
            DiskOp::List => {
                let listed = (self.directory.list)().map(DiskOutcome::Listed);
                self.finished.push_back((id, listed));
            }
            DiskOp::Create { file: name } => {
                let op = Op::Open { path: self.path(name), mode: OpenMode::CreateNew };
                self.submit(ring, Some(id), Step::Create(name), op);
            }
            DiskOp::SyncDir => match self.directory_file {
                Some(file) => self.submit(ring, Some(id), Step::Other, Op::SyncAll { file }),
                None => {
                    let path = path(self.directory.path.clone());
                    let op = Op::Open { path, mode: OpenMode::Directory };
                    self.submit(ring, Some(id), Step::OpenDirectory, op);
                }
            },
            DiskOp::Unlink { file: name } => {
                if let Some(StoreFile::Open(file)) = self.files.remove(&name) {
                    ring.submit(Token::Unowned.pack(), Op::CloseFile { file });
                }
                let op = Op::Unlink { path: self.path(name) };
                self.submit(ring, Some(id), Step::Other, op);
            }
            DiskOp::Write { file: name, .. }
            | DiskOp::Read { file: name, .. }
            | DiskOp::SyncData { file: name }
            | DiskOp::SyncAll { file: name } => self.start_on_file(ring, name, id, op),
        }
    }

    fn start_on_file(&mut self, ring: &mut impl Ring, name: FileId, id: DiskOpId, op: DiskOp) {
        match self.files.get_mut(&name) {
            Some(StoreFile::Open(file)) => {
                let file = *file;
                self.submit_on_file(ring, file, id, op);
            }
            Some(StoreFile::Opening(waiting)) => waiting.push((id, op)),
            None => {
                self.files.insert(name, StoreFile::Opening(vec![(id, op)]));
                let open = Op::Open { path: self.path(name), mode: OpenMode::ReadWrite };
                self.submit(ring, None, Step::Open(name), open);
            }
        }
    }

    fn submit_on_file(&mut self, ring: &mut impl Ring, file: File, id: DiskOpId, op: DiskOp) {
        let (step, op) = match op {
            DiskOp::Write { offset, data, .. } => (Step::Other, Op::Write { file, offset, data }),
            DiskOp::Read { offset, length_bytes, .. } => {
                (Step::Other, Op::Read { file, offset, length_bytes })
            }
            DiskOp::SyncData { .. } => (Step::Sync, Op::SyncData { file }),
            DiskOp::SyncAll { .. } => (Step::Other, Op::SyncAll { file }),
            _ => unreachable!("only operations on an open file come here"),
        };
        self.submit(ring, Some(id), step, op);
    }

    fn submit(&mut self, ring: &mut impl Ring, id: Option<DiskOpId>, step: Step, op: Op) {
        let index = self.pending.insert(Pending { id, step, started_ns: ring.now_ns() });
        let index = u32::try_from(index).expect("the store bounds its operations");
        ring.submit(Token::Disk(index).pack(), op);
    }

    /// Takes the completion of operation `index`. Gives the duration of a data sync, nanoseconds.
    pub(super) fn handle(
        &mut self,
        ring: &mut impl Ring,
        index: u32,
        result: Result<Outcome, Errno>,
    ) -> Option<u64> {
        let Pending { id, step, started_ns } = self.pending.remove(index as usize);
        match step {
            Step::Open(name) => self.opened(ring, name, result),
            Step::Create(name) => {
                let id = id.expect("a create belongs to an operation");
                let created = result.map(|outcome| {
                    let file = expect_file(outcome);
                    self.files.insert(name, StoreFile::Open(file));
                    DiskOutcome::Done
                });
                self.finish(id, created);
            }
            Step::OpenDirectory => {
                let id = id.expect("a directory is opened for an operation");
                match result {
                    Ok(outcome) => {
                        let file = expect_file(outcome);
                        self.directory_file = Some(file);
                        self.submit(ring, Some(id), Step::Other, Op::SyncAll { file });
                    }
                    Err(errno) => self.finish(id, Err(errno)),
                }
            }
            Step::Sync | Step::Other => {
                let id = id.expect("every other step belongs to an operation");
                let outcome = result.map(|outcome| match outcome {
                    Outcome::Read(data) => DiskOutcome::Read(data),
                    _ => DiskOutcome::Done,
                });
                self.finish(id, outcome);
                return matches!(step, Step::Sync)
                    .then(|| ring.now_ns().saturating_sub(started_ns));
            }
        }
        None
    }

    fn opened(&mut self, ring: &mut impl Ring, name: FileId, result: Result<Outcome, Errno>) {
        let Some(StoreFile::Opening(waiting)) = self.files.remove(&name) else {
            unreachable!("a file being opened waits in the table");
        };
        match result {
            Ok(outcome) => {
                let file = expect_file(outcome);
                self.files.insert(name, StoreFile::Open(file));
                for (id, op) in waiting {
                    self.submit_on_file(ring, file, id, op);
                }
            }
            Err(errno) => {
                for (id, _) in waiting {
                    self.finish(id, Err(errno));
                }
            }
        }
    }

    fn finish(&mut self, id: DiskOpId, result: Result<DiskOutcome, Errno>) {
        self.finished.push_back((id, result.map_err(disk_error)));
    }

    pub(super) fn poll_finished(&mut self) -> Option<Finished> {
        self.finished.pop_front()
    }

    /// Operations that the ring has not completed.
    pub(super) fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Gives up what waits for a file to be opened; what the ring already has comes back.
    pub(super) fn stop(&mut self) {
        for file in self.files.values_mut() {
            if let StoreFile::Opening(waiting) = file {
                waiting.clear();
            }
        }
    }

    /// Closes what is open, in the order of the names.
    pub(super) fn close(&mut self, ring: &mut impl Ring) {
        let mut files: Vec<_> = self.files.drain().collect();
        files.sort_unstable_by_key(|&(name, _)| name);
        let open = files.into_iter().filter_map(|(_, file)| match file {
            StoreFile::Open(file) => Some(file),
            StoreFile::Opening(_) => None,
        });
        for file in open.chain(self.directory_file.take()) {
            ring.submit(Token::Unowned.pack(), Op::CloseFile { file });
        }
    }

    pub(super) fn into_directory(self) -> StoreDirectory {
        self.directory
    }

    fn path(&self, name: FileId) -> CString {
        path(format!("{}/{}", self.directory.path, name.file_name()))
    }
}

fn path(text: String) -> CString {
    CString::new(text).expect("the data directory's path was checked for NUL bytes")
}

fn expect_file(outcome: Outcome) -> File {
    match outcome {
        Outcome::Opened(file) => file,
        other => unreachable!("an open gives a file, not {other:?}"),
    }
}

fn disk_error(errno: Errno) -> DiskError {
    const EFBIG: Errno = Errno(27);
    let kind = match errno {
        Errno::NOSPC | Errno::DQUOT | EFBIG => DiskErrorKind::Full,
        _ => DiskErrorKind::Io,
    };
    DiskError { kind, text: errno.to_string() }
}
