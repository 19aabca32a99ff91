//! What lies on the fragile disk: each file twice, as its readers see it and as the platter has it.
//!
//! A write changes the cached bytes and marks their sectors. A sync makes the marked sectors
//! durable. A power failure keeps or forgets each marked sector by chance, so a write may be torn at
//! any multiple of [`SECTOR_BYTES`]. A directory's entries are kept apart from the files: each
//! change of a name is durable once the directory was synced, and kept or forgotten on its own.
//!
//! A sync that failed does not try again: as on Linux, the pages count as clean although the platter
//! does not have them, so a second sync succeeds and proves nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::ops::Range;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub type Inode = u64;

pub struct Image {
    nodes: HashMap<Inode, Node>,
    next_inode: Inode,
    random: StdRng,
    /// Bytes that files may have together.
    capacity_bytes: u64,
}

pub struct Node {
    pub mode: u16,
    pub content: Content,
    /// Handles on it; a file without a name lives as long as it has one.
    handles: u32,
}

pub enum Content {
    File(FileContent),
    Directory(Directory),
}

#[derive(Default)]
pub struct FileContent {
    pub cached: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: BTreeSet<usize>,
    /// Sectors that a failed sync has given up.
    abandoned: BTreeSet<usize>,
    /// Sectors that cannot be read until they are written again.
    unreadable: BTreeSet<usize>,
}

#[derive(Default)]
pub struct Directory {
    pub cached: BTreeMap<OsString, Inode>,
    durable: BTreeMap<OsString, Inode>,
    /// Since the last sync, oldest first.
    changes: Vec<Change>,
}

/// The names that one call changed, and what they stand for after it. Whole or not at all.
type Change = Vec<(OsString, Option<Inode>)>;

/// Why a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotFound,
    Exists,
    NotEmpty,
    IsDirectory,
    NotDirectory,
    NoSpace,
    AcrossDirectories,
}

/// What a power failure did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    pub sectors_kept: usize,
    pub sectors_lost: usize,
    pub names_kept: usize,
    pub names_lost: usize,
}

impl Image {
    pub fn new(seed: u64) -> Self {
        let content = Content::Directory(Directory::default());
        let root = Node { mode: 0o700, content, handles: 0 };
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            next_inode: ROOT + 1,
            random: StdRng::seed_from_u64(seed),
            capacity_bytes: u64::MAX,
        }
    }

    pub fn node(&self, inode: Inode) -> Result<&Node, Refusal> {
        self.nodes.get(&inode).ok_or(Refusal::NotFound)
    }

    pub fn directory(&self, inode: Inode) -> Result<&Directory, Refusal> {
        match &self.node(inode)?.content {
            Content::Directory(directory) => Ok(directory),
            Content::File(_) => Err(Refusal::NotDirectory),
        }
    }

    pub fn file(&self, inode: Inode) -> Result<&FileContent, Refusal> {
        match &self.node(inode)?.content {
            Content::File(file) => Ok(file),
            Content::Directory(_) => Err(Refusal::IsDirectory),
        }
    }

    pub fn lookup(&self, parent: Inode, name: &OsStr) -> Result<Inode, Refusal> {
        self.directory(parent)?.cached.get(name).copied().ok_or(Refusal::NotFound)
    }

    pub fn create(
        &mut self,
        parent: Inode,
        name: &OsStr,
        mode: u16,
        content: Content,
    ) -> Result<Inode, Refusal> {
        if self.directory(parent)?.cached.contains_key(name) {
            return Err(Refusal::Exists);
        }
        let inode = self.next_inode;
        self.next_inode += 1;
        self.nodes.insert(inode, Node { mode, content, handles: 0 });
        self.change(parent, vec![(name.to_owned(), Some(inode))])?;
        Ok(inode)
    }

    pub fn remove(&mut self, parent: Inode, name: &OsStr) -> Result<(), Refusal> {
        let inode = self.lookup(parent, name)?;
        if let Ok(directory) = self.directory(inode)
            && !directory.cached.is_empty()
        {
            return Err(Refusal::NotEmpty);
        }
        self.change(parent, vec![(name.to_owned(), None)])
    }

    pub fn rename(
        &mut self,
        (from, old): (Inode, &OsStr),
        (to, new): (Inode, &OsStr),
    ) -> Result<(), Refusal> {
        let inode = self.lookup(from, old)?;
        if from != to {
            return Err(Refusal::AcrossDirectories);
        }
        if self.lookup(to, new).is_ok_and(|target| self.directory(target).is_ok()) {
            return Err(Refusal::IsDirectory);
        }
        self.change(from, vec![(old.to_owned(), None), (new.to_owned(), Some(inode))])
    }

    fn change(&mut self, parent: Inode, change: Change) -> Result<(), Refusal> {
        let directory = self.directory_mut(parent)?;
        apply(&mut directory.cached, &change);
        directory.changes.push(change);
        Ok(())
    }

    pub fn write(&mut self, inode: Inode, offset: usize, data: &[u8]) -> Result<(), Refusal> {
        let end = offset + data.len();
        if end > self.file(inode)?.cached.len() {
            self.resize(inode, end)?;
        }
        let file = self.file_mut(inode)?;
        file.cached[offset..end].copy_from_slice(data);
        file.touch(offset..end);
        Ok(())
    }

    pub fn resize(&mut self, inode: Inode, bytes: usize) -> Result<(), Refusal> {
        let before = self.file(inode)?.cached.len();
        let grows_by = bytes.saturating_sub(before) as u64;
        if grows_by > 0 && self.used_bytes() + grows_by > self.capacity_bytes {
            return Err(Refusal::NoSpace);
        }
        let file = self.file_mut(inode)?;
        file.cached.resize(bytes, 0);
        file.touch(before.min(bytes)..before.max(bytes));
        Ok(())
    }

    pub fn used_bytes(&self) -> u64 {
        let bytes = |node: &Node| match &node.content {
            Content::File(file) => file.cached.len() as u64,
            Content::Directory(_) => 0,
        };
        self.nodes.values().map(bytes).sum()
    }

    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    pub fn set_capacity_bytes(&mut self, bytes: u64) {
        self.capacity_bytes = bytes;
    }

    /// The sectors that a sync which begins now makes durable.
    pub fn dirty_sectors(&self, inode: Inode) -> Result<BTreeSet<usize>, Refusal> {
        Ok(self.file(inode)?.dirty.clone())
    }

    /// Ends a sync of `sectors`.
    pub fn sync(&mut self, inode: Inode, sectors: &BTreeSet<usize>) -> Result<(), Refusal> {
        let file = self.file_mut(inode)?;
        file.durable.resize(file.cached.len(), 0);
        for sector in sectors {
            file.keep(*sector);
            file.dirty.remove(sector);
        }
        Ok(())
    }

    /// A sync of `sectors` failed.
    pub fn abandon(&mut self, inode: Inode, sectors: &BTreeSet<usize>) -> Result<(), Refusal> {
        let file = self.file_mut(inode)?;
        for sector in sectors {
            file.dirty.remove(sector);
            file.abandoned.insert(*sector);
        }
        Ok(())
    }

    pub fn sync_directory(&mut self, inode: Inode) -> Result<(), Refusal> {
        let directory = self.directory_mut(inode)?;
        directory.changes.clear();
        directory.durable = directory.cached.clone();
        self.forget_unreachable();
        Ok(())
    }

    /// The sectors that hold `text` cannot be read any more; gives how often it was found.
    pub fn spoil(&mut self, text: &[u8]) -> usize {
        let files = self.nodes.values_mut().filter_map(|node| match &mut node.content {
            Content::File(file) => Some(file),
            Content::Directory(_) => None,
        });
        files.map(|file| file.spoil(text)).sum()
    }

    pub fn opened(&mut self, inode: Inode) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.handles += 1;
        }
    }

    pub fn released(&mut self, inode: Inode) {
        if let Some(node) = self.nodes.get_mut(&inode) {
            node.handles = node.handles.saturating_sub(1);
        }
    }

    /// Everything that is not durable survives by chance, sector by sector and name by name.
    pub fn lose_power(&mut self) -> Loss {
        let mut loss = Loss::default();
        let mut inodes: Vec<Inode> = self.nodes.keys().copied().collect();
        inodes.sort_unstable();
        for inode in inodes {
            let node = self.nodes.get_mut(&inode).expect("it was listed");
            node.handles = 0;
            match &mut node.content {
                Content::File(file) => file.lose_power(&mut self.random, &mut loss),
                Content::Directory(directory) => directory.lose_power(&mut self.random, &mut loss),
            }
        }
        self.forget_unreachable();
        loss
    }

    fn forget_unreachable(&mut self) {
        let mut reached = BTreeSet::new();
        let open = self.nodes.iter().filter(|(_, node)| node.handles > 0);
        let mut waiting: Vec<Inode> = open.map(|(inode, _)| *inode).chain([ROOT]).collect();
        while let Some(inode) = waiting.pop() {
            if reached.insert(inode)
                && let Ok(directory) = self.directory(inode)
            {
                waiting.extend(directory.cached.values().chain(directory.durable.values()));
                let changed = directory.changes.iter().flatten();
                waiting.extend(changed.filter_map(|(_, inode)| *inode));
            }
        }
        self.nodes.retain(|inode, _| reached.contains(inode));
    }

    fn file_mut(&mut self, inode: Inode) -> Result<&mut FileContent, Refusal> {
        match self.nodes.get_mut(&inode).map(|node| &mut node.content) {
            Some(Content::File(file)) => Ok(file),
            Some(Content::Directory(_)) => Err(Refusal::IsDirectory),
            None => Err(Refusal::NotFound),
        }
    }

    fn directory_mut(&mut self, inode: Inode) -> Result<&mut Directory, Refusal> {
        match self.nodes.get_mut(&inode).map(|node| &mut node.content) {
            Some(Content::Directory(directory)) => Ok(directory),
            Some(Content::File(_)) => Err(Refusal::NotDirectory),
            None => Err(Refusal::NotFound),
        }
    }
}

impl FileContent {
    pub fn is_readable(&self, bytes: Range<usize>) -> bool {
        let sectors = bytes.start / SECTOR_BYTES..bytes.end.div_ceil(SECTOR_BYTES);
        self.unreadable.range(sectors).next().is_none()
    }

    /// Spoils the sectors in which `text` stands; gives how often it stands there.
    fn spoil(&mut self, text: &[u8]) -> usize {
        let places = self.cached.windows(text.len()).enumerate();
        let found: Vec<usize> =
            places.filter_map(|(place, bytes)| (bytes == text).then_some(place)).collect();
        for place in &found {
            let end = (place + text.len()).div_ceil(SECTOR_BYTES);
            self.unreadable.extend(place / SECTOR_BYTES..end);
        }
        found.len()
    }

    fn touch(&mut self, bytes: Range<usize>) {
        for sector in bytes.start / SECTOR_BYTES..bytes.end.div_ceil(SECTOR_BYTES) {
            self.abandoned.remove(&sector);
            self.unreadable.remove(&sector);
            self.dirty.insert(sector);
        }
    }

    /// Copies one sector to the platter, as far as the file reaches there.
    fn keep(&mut self, sector: usize) {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.cached.len()).min(self.durable.len());
        if start < end {
            self.durable[start..end].copy_from_slice(&self.cached[start..end]);
        }
    }

    fn lose_power(&mut self, random: &mut StdRng, loss: &mut Loss) {
        if self.cached.len() != self.durable.len() && random.random() {
            self.durable.resize(self.cached.len(), 0);
        }
        let dirty = std::mem::take(&mut self.dirty);
        for sector in dirty.into_iter().chain(std::mem::take(&mut self.abandoned)) {
            if random.random() {
                self.keep(sector);
                loss.sectors_kept += 1;
            } else {
                loss.sectors_lost += 1;
            }
        }
        self.cached = self.durable.clone();
    }
}

impl Directory {
    fn lose_power(&mut self, random: &mut StdRng, loss: &mut Loss) {
        for change in self.changes.drain(..) {
            if random.random() {
                apply(&mut self.durable, &change);
                loss.names_kept += 1;
            } else {
                loss.names_lost += 1;
            }
        }
        self.cached = self.durable.clone();
    }
}

fn apply(names: &mut BTreeMap<OsString, Inode>, change: &Change) {
    for (name, inode) in change {
        match inode {
            Some(inode) => names.insert(name.clone(), *inode),
            None => names.remove(name),
        };
    }
}

pub const ROOT: Inode = 1;
/// What a disk writes whole or not at all.
pub const SECTOR_BYTES: usize = 512;
