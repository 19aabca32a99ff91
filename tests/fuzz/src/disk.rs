//! A directory in memory. Everything written stays: what a crash takes is the script's to say.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringpost_storage::{DiskError, DiskErrorKind, DiskOp, DiskOutcome, FileId};

#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) files: BTreeMap<FileId, Vec<u8>>,
    /// Operations so far: nothing may go on for ever.
    pub(crate) executed: usize,
}

impl Disk {
    pub(crate) fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError> {
        self.executed += 1;
        assert!(self.executed < OPERATIONS_MAX, "no end of operations: {op:?}");
        match op {
            DiskOp::List => {
                let list = self.files.iter().map(|(file, content)| (*file, content.len() as u64));
                return Ok(DiskOutcome::Listed(list.collect()));
            }
            DiskOp::Create { file } => {
                assert!(self.files.insert(file, Vec::new()).is_none(), "{file:?} exists already");
            }
            DiskOp::Write { file, offset, data } => {
                let content = self.files.get_mut(&file).ok_or_else(missing)?;
                let start = usize::try_from(offset).expect("a 64-bit host");
                let end = start + data.len();
                assert!(end <= FILE_BYTES_MAX, "{file:?} grows without end");
                content.resize(content.len().max(end), 0);
                content[start..end].copy_from_slice(&data);
            }
            DiskOp::Read { file, offset, length_bytes } => {
                let content = self.files.get(&file).ok_or_else(missing)?;
                let start = usize::try_from(offset).expect("a 64-bit host").min(content.len());
                let end = (start + length_bytes as usize).min(content.len());
                return Ok(DiskOutcome::Read(Bytes::copy_from_slice(&content[start..end])));
            }
            DiskOp::SyncData { file } | DiskOp::SyncAll { file } => {
                assert!(self.files.contains_key(&file), "sync of {file:?}, which is missing");
            }
            DiskOp::SyncDir => {}
            DiskOp::Unlink { file } => {
                assert!(
                    self.files.remove(&file).is_some(),
                    "removal of {file:?}, which is missing"
                );
            }
        }
        Ok(DiskOutcome::Done)
    }
}

fn missing() -> DiskError {
    DiskError { kind: DiskErrorKind::Io, text: "no such file".into() }
}

const OPERATIONS_MAX: usize = 50_000;
const FILE_BYTES_MAX: usize = 1 << 20;
