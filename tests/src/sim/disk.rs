//! A file system that forgets.
//!
//! A write reaches the page cache; only a sync makes its sectors durable, and only a sync of the
//! directory makes names durable. At a power failure each un-synced sector and each un-synced name
//! survives or not, one by one.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_ring::{Errno, File, OpenMode};

use super::clock::Stream;

/// What an operation does when its time has come.
#[derive(Debug)]
pub enum FileOp {
    Open {
        path: String,
        mode: OpenMode,
    },
    Read {
        file: File,
        offset: u64,
        length_bytes: u32,
    },
    Write {
        file: File,
        offset: u64,
        data: Bytes,
    },
    /// Makes durable what was written before `before`; `data_only` as of `fdatasync`.
    Sync {
        file: File,
        before: u64,
        data_only: bool,
    },
    Unlink {
        path: String,
    },
}

#[derive(Debug)]
pub enum FileDone {
    Opened(File),
    Read(Bytes),
    Done,
}

/// The disk of one host; it outlives the processes.
#[derive(Debug, Default)]
pub struct Disk {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    open: BTreeMap<i32, Target>,
    last_inode: u64,
    last_file: i32,
    /// Counts changes; a sync covers those before it was submitted.
    changes: u64,
    /// Files do not grow before that.
    pub full_until_ns: u64,
    pub now_ns: u64,
    /// The mutant: `fdatasync` reports success and does nothing.
    pub lie_about_sync: bool,
}

#[derive(Debug, Default)]
struct Inode {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that differ, and the change that made them do so last.
    dirty: BTreeMap<usize, u64>,
}

#[derive(Clone, Debug)]
enum Target {
    Inode(u64),
    Directory(String),
}

impl Disk {
    /// For the submission of a sync.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// File names in `directory` with their sizes.
    pub fn list(&self, directory: &str) -> Vec<(String, u64)> {
        let entries = self.names.iter().filter_map(|(path, inode)| {
            let (parent, name) = path.rsplit_once('/')?;
            let size = self.inodes[inode].cached.len() as u64;
            (parent == directory).then(|| (name.to_owned(), size))
        });
        entries.collect()
    }

    /// Names of all files.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    pub fn open_files(&self) -> usize {
        self.open.len()
    }

    pub fn close(&mut self, file: File) {
        assert!(self.open.remove(&file.0).is_some(), "a file is closed once");
        self.forget_unnamed();
    }

    pub fn execute(&mut self, op: &FileOp) -> Result<FileDone, Errno> {
        match op {
            FileOp::Open { path, mode } => self.open(path, *mode).map(FileDone::Opened),
            FileOp::Read { file, offset, length_bytes } => {
                let cached = &self.inode(*file).cached;
                let start = index(*offset).min(cached.len());
                let end = (start + *length_bytes as usize).min(cached.len());
                Ok(FileDone::Read(Bytes::copy_from_slice(&cached[start..end])))
            }
            FileOp::Write { file, offset, data } => {
                let is_full = self.is_full();
                let end = index(*offset) + data.len();
                if is_full && end > self.inode(*file).cached.len() {
                    return Err(Errno::NOSPC);
                }
                self.changes += 1;
                let change = self.changes;
                self.inode(*file).write(index(*offset), data, change);
                Ok(FileDone::Done)
            }
            FileOp::Sync { file, before, data_only } => {
                self.sync(*file, *before, *data_only);
                Ok(FileDone::Done)
            }
            FileOp::Unlink { path } => {
                self.names.remove(path).ok_or(Errno::NOENT)?;
                self.forget_unnamed();
                Ok(FileDone::Done)
            }
        }
    }

    fn open(&mut self, path: &str, mode: OpenMode) -> Result<File, Errno> {
        let target = match (mode, self.names.get(path)) {
            (OpenMode::Directory, _) => Target::Directory(path.to_owned()),
            (OpenMode::CreateNew, Some(_)) => return Err(Errno::EXIST),
            (OpenMode::CreateNew, None) if self.is_full() => return Err(Errno::NOSPC),
            (OpenMode::CreateNew, None) => {
                self.last_inode += 1;
                self.inodes.insert(self.last_inode, Inode::default());
                self.names.insert(path.to_owned(), self.last_inode);
                Target::Inode(self.last_inode)
            }
            (OpenMode::ReadWrite | OpenMode::ReadOnly, Some(&inode)) => Target::Inode(inode),
            (OpenMode::ReadWrite | OpenMode::ReadOnly, None) => return Err(Errno::NOENT),
        };
        self.last_file += 1;
        self.open.insert(self.last_file, target);
        Ok(File(self.last_file))
    }

    /// Whether it takes nothing new at the last operation's time.
    pub fn is_full(&self) -> bool {
        self.now_ns < self.full_until_ns
    }

    /// As Linux does it: what could not be written counts as clean from then on. `stays`: the page
    /// cache still holds it, until somebody reads it from the disk again.
    pub fn fail_sync(&mut self, file: File, stays: bool) {
        if let Some(Target::Inode(_)) = self.open.get(&file.0) {
            let inode = self.inode(file);
            inode.dirty.clear();
            if !stays {
                inode.cached.clone_from(&inode.durable);
            }
        }
    }

    pub fn inode_of(&self, file: File) -> Option<u64> {
        match self.open.get(&file.0) {
            Some(Target::Inode(inode)) => Some(*inode),
            _ => None,
        }
    }

    pub fn path_of(&self, file: File) -> Option<String> {
        let inode = self.inode_of(file)?;
        let named = self.names.iter().find(|(_, named)| **named == inode);
        named.map(|(path, _)| path.clone())
    }

    /// Whole blocks of a file.
    pub fn blocks(&self, file: File) -> Option<u64> {
        Some(self.inodes[&self.inode_of(file)?].cached.len() as u64 / BLOCK_BYTES)
    }

    /// Changes one bit of a segment that is not one of the two newest of its directory, or of a
    /// checkpoint; gives its name.
    pub fn rot(&mut self, random: &mut Stream) -> Option<String> {
        let mut candidates: Vec<String> =
            self.names.keys().filter(|path| path.ends_with(".ckp")).cloned().collect();
        let directories: BTreeSet<&str> =
            self.names.keys().filter_map(|path| Some(path.rsplit_once('/')?.0)).collect();
        for directory in directories {
            let segments: Vec<&String> = self
                .names
                .keys()
                .filter(|path| path.starts_with(directory) && path.ends_with(".seg"))
                .collect();
            let attested = segments.len().saturating_sub(2);
            candidates.extend(segments[..attested].iter().map(|path| (*path).clone()));
        }
        if candidates.is_empty() {
            return None;
        }
        let path = candidates.swap_remove(random.index(candidates.len()));
        let inode = self.inodes.get_mut(&self.names[&path])?;
        let first = index(BLOCK_BYTES);
        let written: Vec<usize> = (first..inode.durable.len())
            .step_by(SECTOR_BYTES)
            .filter(|&start| {
                let end = (start + SECTOR_BYTES).min(inode.durable.len());
                inode.durable[start..end].iter().any(|&byte| byte != 0)
                    && !inode.dirty.contains_key(&(start / SECTOR_BYTES))
            })
            .collect();
        if written.is_empty() {
            return None;
        }
        let sector = written[random.index(written.len())];
        let position = sector + random.index(SECTOR_BYTES.min(inode.durable.len() - sector));
        let bit = 1 << random.below(8);
        inode.durable[position] ^= bit;
        inode.cached[position] ^= bit;
        Some(path)
    }

    fn sync(&mut self, file: File, before: u64, data_only: bool) {
        match self.open.get(&file.0).expect("the file is open").clone() {
            Target::Inode(_) if data_only && self.lie_about_sync => {}
            Target::Inode(_) => self.inode(file).sync(before),
            Target::Directory(directory) => {
                let inside = |path: &String| {
                    path.rsplit_once('/').is_some_and(|(parent, _)| parent == directory)
                };
                self.durable_names.retain(|path, _| !inside(path));
                let names = self.names.iter().filter(|(path, _)| inside(path));
                self.durable_names.extend(names.map(|(path, inode)| (path.clone(), *inode)));
                self.forget_unnamed();
            }
        }
    }

    fn inode(&mut self, file: File) -> &mut Inode {
        match self.open.get(&file.0) {
            Some(Target::Inode(inode)) => {
                self.inodes.get_mut(inode).expect("an open file keeps its inode")
            }
            other => panic!("an operation on {other:?}"),
        }
    }

    /// The process is gone; what it wrote is not.
    pub fn close_all(&mut self) {
        self.open.clear();
        self.forget_unnamed();
    }

    /// Power failure: of everything un-synced, a random part survives.
    pub fn lose_power(&mut self, random: &mut Stream) {
        self.open.clear();
        let paths: BTreeSet<String> =
            self.names.keys().chain(self.durable_names.keys()).cloned().collect();
        for path in paths {
            let (cached, durable) = (self.names.get(&path), self.durable_names.get(&path));
            if cached == durable {
                continue;
            }
            match if random.chance(500) { cached } else { durable }.copied() {
                Some(inode) => self.names.insert(path, inode),
                None => self.names.remove(&path),
            };
        }
        self.durable_names = self.names.clone();
        self.forget_unnamed();
        for inode in self.inodes.values_mut() {
            inode.lose_power(random);
        }
    }

    fn forget_unnamed(&mut self) {
        let mut named: BTreeSet<u64> = self.names.values().copied().collect();
        named.extend(self.durable_names.values());
        named.extend(self.open.values().filter_map(|target| match target {
            Target::Inode(inode) => Some(*inode),
            Target::Directory(_) => None,
        }));
        self.inodes.retain(|inode, _| named.contains(inode));
    }
}

impl Inode {
    fn write(&mut self, start: usize, data: &[u8], change: u64) {
        let end = start + data.len();
        if self.cached.len() < end {
            self.cached.resize(end, 0);
        }
        self.cached[start..end].copy_from_slice(data);
        for sector in start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            self.dirty.insert(sector, change);
        }
    }

    fn sync(&mut self, before: u64) {
        let dirty = std::mem::take(&mut self.dirty);
        for (sector, change) in dirty {
            if change <= before {
                self.keep(sector);
            } else {
                self.dirty.insert(sector, change);
            }
        }
    }

    fn lose_power(&mut self, random: &mut Stream) {
        for (sector, _) in std::mem::take(&mut self.dirty) {
            if random.chance(500) {
                self.keep(sector);
            }
        }
        self.cached.clone_from(&self.durable);
    }

    fn keep(&mut self, sector: usize) {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.cached.len());
        if self.durable.len() < end {
            self.durable.resize(end, 0);
        }
        self.durable[start..end].copy_from_slice(&self.cached[start..end]);
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("64-bit platform")
}

/// What a disk writes as a whole.
pub const SECTOR_BYTES: usize = 512;
/// What the store writes at least.
pub const BLOCK_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn file(disk: &mut Disk, path: &str, mode: OpenMode) -> File {
        match disk.execute(&FileOp::Open { path: path.into(), mode }) {
            Ok(FileDone::Opened(file)) => file,
            other => panic!("{other:?}"),
        }
    }

    fn sync(disk: &mut Disk, file: File) {
        let before = disk.changes();
        let done = disk.execute(&FileOp::Sync { file, before, data_only: true });
        assert!(done.is_ok());
    }

    #[test]
    fn only_what_was_synced_is_sure_to_survive() {
        let (mut lost_data, mut lost_name) = (false, false);
        for seed in 0..40 {
            let mut disk = Disk::default();
            let segment = file(&mut disk, "/d/1", OpenMode::CreateNew);
            let directory = file(&mut disk, "/d", OpenMode::Directory);
            sync(&mut disk, directory);
            let write = |data: &'static [u8], offset| FileOp::Write {
                file: segment,
                offset,
                data: Bytes::from_static(data),
            };
            disk.execute(&write(b"kept", 0)).expect("a write");
            sync(&mut disk, segment);
            disk.execute(&write(b"lost", 512)).expect("a write");
            file(&mut disk, "/d/2", OpenMode::CreateNew);
            disk.lose_power(&mut Stream::new(seed, "disk"));
            let names = disk.list("/d");
            assert_eq!(names[0].0, "1");
            lost_data |= names[0].1 == 4;
            lost_name |= names.len() == 1;
            let segment = file(&mut disk, "/d/1", OpenMode::ReadWrite);
            let read = FileOp::Read { file: segment, offset: 0, length_bytes: 4 };
            assert!(
                matches!(disk.execute(&read), Ok(FileDone::Read(data)) if &data[..] == b"kept")
            );
        }
        assert!(lost_data && lost_name);
    }
}
