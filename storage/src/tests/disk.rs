//! A disk in memory that keeps apart what was written and what was synced.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{DiskError, DiskErrorKind, DiskOp, DiskOutcome, FileId, SegmentId};

/// splitmix64: small, seeded, good enough to choose faults.
#[derive(Clone)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Default)]
pub(super) struct MemoryFile {
    pub(super) content: Vec<u8>,
    synced: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: BTreeSet<usize>,
    is_linked: bool,
}

#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) files: BTreeMap<FileId, MemoryFile>,
    /// Removed, but a crash may bring them back.
    removed: BTreeMap<FileId, MemoryFile>,
    /// The mutant: fdatasync does nothing.
    pub(super) ignores_sync_data: bool,
    /// The operation with this count, from now, fails.
    pub(super) fail_in: Option<(usize, DiskErrorKind)>,
    /// The next fdatasync fails, and what it should have written counts as written from then on, as
    /// Linux does it.
    pub(super) loses_next_sync: bool,
    /// So many reads fail from now on.
    pub(super) failing_reads: usize,
    /// Blocks of 4 KiB that cannot be read.
    pub(super) bad_blocks: BTreeSet<(FileId, usize)>,
    /// All files together; a write that would take more fails.
    pub(super) capacity_bytes: Option<usize>,
    /// One of so many operations on a checkpoint fails.
    pub(super) checkpoint_fault_every: Option<usize>,
    pub(super) executed: usize,
}

impl Disk {
    pub(super) fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError> {
        self.executed += 1;
        if let Some((left, kind)) = &mut self.fail_in {
            if *left == 0 {
                return Err(DiskError { kind: *kind, text: "injected".into() });
            }
            *left -= 1;
        }
        self.check_checkpoint(&op)?;
        match op {
            DiskOp::List => {
                let list = self.files.iter().map(|(id, f)| (*id, f.content.len() as u64));
                return Ok(DiskOutcome::Listed(list.collect()));
            }
            DiskOp::Create { file } => {
                assert!(!self.files.contains_key(&file), "created twice");
                self.files.insert(file, MemoryFile::default());
            }
            DiskOp::Write { file, offset, data } => {
                self.check_room(file, usize::try_from(offset).unwrap() + data.len())?;
                let file = self.files.get_mut(&file).expect("write to a missing file");
                let start = usize::try_from(offset).unwrap();
                let end = start + data.len();
                if file.content.len() < end {
                    file.content.resize(end, 0);
                }
                file.content[start..end].copy_from_slice(&data);
                file.dirty.extend(start / SECTOR..end.div_ceil(SECTOR));
            }
            DiskOp::Read { file: id, offset, length_bytes } => {
                let file = &self.files[&id];
                let start = usize::try_from(offset).unwrap().min(file.content.len());
                let end = (start + length_bytes as usize).min(file.content.len());
                let is_bad = |block| self.bad_blocks.contains(&(id, block));
                if self.failing_reads > 0 || (start / 4096..end.div_ceil(4096)).any(is_bad) {
                    self.failing_reads = self.failing_reads.saturating_sub(1);
                    return Err(DiskError { kind: DiskErrorKind::Io, text: "unreadable".into() });
                }
                return Ok(DiskOutcome::Read(Bytes::copy_from_slice(&file.content[start..end])));
            }
            DiskOp::SyncData { .. } if self.ignores_sync_data => {}
            DiskOp::SyncData { file } if std::mem::take(&mut self.loses_next_sync) => {
                self.files.get_mut(&file).expect("sync of a missing file").dirty.clear();
                return Err(DiskError { kind: DiskErrorKind::Io, text: "injected".into() });
            }
            DiskOp::SyncData { file } | DiskOp::SyncAll { file } => {
                let file = self.files.get_mut(&file).expect("sync of a missing file");
                file.sync();
            }
            DiskOp::SyncDir => {
                self.removed.clear();
                self.files.values_mut().for_each(|file| file.is_linked = true);
            }
            DiskOp::Unlink { file } => {
                let removed = self.files.remove(&file).expect("unlink of a missing file");
                self.removed.insert(file, removed);
            }
        }
        Ok(DiskOutcome::Done)
    }

    fn check_room(&self, file: FileId, end: usize) -> Result<(), DiskError> {
        let grows = end.saturating_sub(self.files[&file].content.len());
        if grows == 0 || self.capacity_bytes.is_none_or(|all| self.used_bytes() + grows <= all) {
            return Ok(());
        }
        Err(DiskError { kind: DiskErrorKind::Full, text: "no space left on device".into() })
    }

    pub(super) fn used_bytes(&self) -> usize {
        self.files.values().map(|file| file.content.len()).sum()
    }

    pub(super) fn segment(&mut self, number: u32) -> &mut MemoryFile {
        self.files.get_mut(&SegmentId(number).into()).expect("the segment exists")
    }

    fn check_checkpoint(&self, op: &DiskOp) -> Result<(), DiskError> {
        let (DiskOp::Create { file: FileId::Checkpoint(_) }
        | DiskOp::Write { file: FileId::Checkpoint(_), .. }
        | DiskOp::Read { file: FileId::Checkpoint(_), .. }
        | DiskOp::SyncData { file: FileId::Checkpoint(_) }
        | DiskOp::SyncAll { file: FileId::Checkpoint(_) }
        | DiskOp::Unlink { file: FileId::Checkpoint(_) }) = op
        else {
            return Ok(());
        };
        match self.checkpoint_fault_every {
            Some(every) if self.executed.is_multiple_of(every) => {
                let full = self.executed.is_multiple_of(2);
                let kind = if full { DiskErrorKind::Full } else { DiskErrorKind::Io };
                Err(DiskError { kind, text: "injected".into() })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn checkpoints(&self) -> Vec<FileId> {
        let files = self.files.keys().copied();
        files.filter(|file| matches!(file, FileId::Checkpoint(_))).collect()
    }

    /// Power failure: of everything un-synced a random part survives.
    pub(super) fn crash(&mut self, rng: &mut Rng) {
        self.fail_in = None;
        for (id, file) in std::mem::take(&mut self.removed) {
            if file.is_linked && rng.chance(50) {
                self.files.insert(id, file);
            }
        }
        self.files.retain(|_, file| file.is_linked || rng.chance(50));
        for file in self.files.values_mut() {
            for sector in std::mem::take(&mut file.dirty) {
                if rng.chance(50) {
                    file.keep_sector(sector);
                }
            }
            file.content = file.synced.clone();
            file.is_linked = true;
        }
    }
}

impl MemoryFile {
    fn sync(&mut self) {
        self.synced.resize(self.content.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            self.keep_sector(sector);
        }
    }

    fn keep_sector(&mut self, sector: usize) {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(self.content.len());
        if self.synced.len() < end {
            self.synced.resize(end, 0);
        }
        self.synced[start..end].copy_from_slice(&self.content[start..end]);
    }

    /// Damage at rest.
    pub(super) fn flip(&mut self, byte: usize) {
        self.content[byte] ^= 0x10;
        self.synced = self.content.clone();
    }
}

const SECTOR: usize = 512;
