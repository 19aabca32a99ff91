//! The image as a FUSE file system. Nothing is cached by the kernel: files are opened for direct
//! IO, names and attributes are valid for no time, so that a power failure is seen at once.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rand::RngExt;

use super::image::{Content, Directory, FileContent, Image, Inode, Refusal, SECTOR_BYTES};
use super::{Operation, Shared, State};

pub struct Served(pub Arc<Shared>);

/// A sync that has begun.
pub struct BegunSync {
    inode: Inode,
    sectors: BTreeSet<usize>,
    /// Power failures so far when it began.
    epoch: u64,
    reply: ReplyEmpty,
}

impl BegunSync {
    pub fn finish(self, state: &mut State) {
        let result = self.outcome(state);
        answer(self.reply, result);
    }

    pub fn fail(self, state: &mut State) {
        if self.epoch == state.epoch {
            // Of a file that is gone there is nothing to abandon.
            let _ = state.image.abandon(self.inode, &self.sectors);
        }
        self.reply.error(Errno::EIO);
    }

    fn outcome(&self, state: &mut State) -> Result<(), Errno> {
        if self.epoch != state.epoch {
            return Err(Errno::EIO);
        }
        if state.syncs_lie {
            return Ok(());
        }
        state.counts.syncs += 1;
        Ok(state.image.sync(self.inode, &self.sectors)?)
    }
}

impl Shared {
    /// Ends `sync`, or holds it; one with nothing to do is not worth holding.
    fn end(&self, sync: BegunSync, state: &mut State) {
        if state.holds_syncs && !sync.sectors.is_empty() {
            state.held.push(sync);
            self.changed.notify_all();
        } else {
            sync.finish(state);
        }
    }
}

impl Served {
    /// Runs `call` on the state; for a handle from before a power failure everything fails.
    fn with<T>(
        &self,
        handle: Option<FileHandle>,
        call: impl FnOnce(&mut State) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_off || handle.is_some_and(|handle| handle.0 != state.epoch) {
            return Err(Errno::EIO);
        }
        call(&mut state)
    }

    fn create_node(
        &self,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        content: Content,
    ) -> Result<(FileAttr, u64), Errno> {
        self.with(None, |state| {
            let mode = u16::try_from(mode & 0o7777).expect("12 bits");
            let inode = state.image.create(parent.0, name, mode, content)?;
            Ok((attributes(&state.image, inode)?, state.epoch))
        })
    }

    fn open_node(&self, inode: INodeNo) -> Result<FileHandle, Errno> {
        self.with(None, |state| {
            state.image.node(inode.0)?;
            state.image.opened(inode.0);
            Ok(FileHandle(state.epoch))
        })
    }

    fn release_node(&self, inode: INodeNo, handle: FileHandle, reply: ReplyEmpty) {
        // A power failure has released it already.
        let _ = self.with(Some(handle), |state| {
            state.image.released(inode.0);
            Ok(())
        });
        reply.ok();
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.with(None, |state| {
            let inode = state.image.lookup(parent.0, name)?;
            Ok(attributes(&state.image, inode)?)
        });
        match found {
            Ok(attributes) => reply.entry(&VALID_FOR, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.with(None, |state| Ok(attributes(&state.image, inode.0)?)) {
            Ok(attributes) => reply.attr(&VALID_FOR, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = self.with(handle, |state| {
            if let Some(bytes) = size {
                state.image.resize(inode.0, to_index(bytes))?;
            }
            Ok(attributes(&state.image, inode.0)?)
        });
        match set {
            Ok(attributes) => reply.attr(&VALID_FOR, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let content = Content::Directory(Directory::default());
        match self.create_node(parent, name, mode & !umask, content) {
            Ok((attributes, _)) => reply.entry(&VALID_FOR, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let content = Content::File(FileContent::default());
        match self.create_node(parent, name, mode & !umask, content) {
            Ok((attributes, epoch)) => {
                let opened = self.open_node(attributes.ino).map(|handle| handle.0 == epoch);
                assert!(opened.is_ok(), "created a moment ago");
                let flags = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&VALID_FOR, &attributes, Generation(0), FileHandle(epoch), flags);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.with(None, |state| Ok(state.image.remove(parent.0, name)?)));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.with(None, |state| Ok(state.image.remove(parent.0, name)?)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let renamed = self.with(None, |state| {
            Ok(state.image.rename((parent.0, name), (new_parent.0, new_name))?)
        });
        answer(reply, renamed);
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_node(inode) {
            Ok(handle) => reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO),
            Err(errno) => reply.error(errno),
        }
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_node(inode) {
            Ok(handle) => reply.opened(handle, FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let data = self.with(Some(handle), |state| {
            state.fault(Operation::Read)?;
            let file = state.image.file(inode.0)?;
            let start = to_index(offset).min(file.cached.len());
            let end = start.saturating_add(size as usize).min(file.cached.len());
            if !file.is_readable(start..end) {
                state.counts.faults += 1;
                return Err(Errno::EIO);
            }
            Ok(file.cached[start..end].to_vec())
        });
        match data {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.with(Some(handle), |state| {
            // The kernel may pass a long write on in parts, the later ones from where the caller's
            // page ended. One of those that fails makes a short write, and is asked for again.
            if offset.is_multiple_of(SECTOR_BYTES as u64) {
                state.fault(Operation::Write)?;
            }
            Ok(state.image.write(inode.0, to_index(offset), data)?)
        });
        match written {
            Ok(()) => reply.written(u32::try_from(data.len()).expect("a request is small")),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let sectors = state.image.dirty_sectors(inode.0);
        let (epoch, Ok(sectors)) = (handle.0, sectors) else { return reply.error(Errno::ENOENT) };
        let sync = BegunSync { inode: inode.0, sectors, epoch, reply };
        if state.is_off || state.fault(Operation::Sync).is_err() {
            return sync.fail(&mut state);
        }
        let delay_us_max = state.sync_delay_us_max;
        if delay_us_max == 0 {
            return self.0.end(sync, &mut state);
        }
        let delay = Duration::from_micros(state.random.random_range(0..=delay_us_max));
        drop(state);
        let shared = Arc::clone(&self.0);
        thread::spawn(move || {
            thread::sleep(delay);
            let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            shared.end(sync, &mut state);
        });
    }

    fn fsyncdir(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let synced = self.with(Some(handle), |state| {
            state.fault(Operation::SyncDirectory)?;
            if !state.syncs_lie {
                state.image.sync_directory(inode.0)?;
            }
            Ok(())
        });
        answer(reply, synced);
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.with(None, |state| {
            let names = &state.image.directory(inode.0)?.cached;
            let entry = |(name, inode): (&std::ffi::OsString, &Inode)| {
                let kind = state.image.node(*inode).map(|node| kind(&node.content));
                (name.clone(), *inode, kind.unwrap_or(FileType::RegularFile))
            };
            Ok(names.iter().map(entry).collect::<Vec<_>>())
        });
        let entries = match listed {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        for (next, (name, inode, kind)) in (1..).zip(entries).skip(to_index(offset)) {
            if reply.add(INodeNo(inode), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.release_node(inode, handle, reply);
    }

    fn releasedir(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.release_node(inode, handle, reply);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let space = self.with(None, |state| {
            let used = state.image.used_bytes();
            let total = state.image.capacity_bytes().min(used + ROOMY_BYTES);
            Ok((total / BLOCK_BYTES, total.saturating_sub(used) / BLOCK_BYTES))
        });
        match space {
            Ok((total, free)) => {
                let block_bytes = u32::try_from(BLOCK_BYTES).expect("small");
                reply.statfs(total, free, free, 1 << 20, 1 << 20, block_bytes, 255, block_bytes);
            }
            Err(errno) => reply.error(errno),
        }
    }
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound => Self::ENOENT,
            Refusal::Exists => Self::EEXIST,
            Refusal::NotEmpty => Self::ENOTEMPTY,
            Refusal::IsDirectory => Self::EISDIR,
            Refusal::NotDirectory => Self::ENOTDIR,
            Refusal::NoSpace => Self::ENOSPC,
            Refusal::AcrossDirectories => Self::EXDEV,
        }
    }
}

fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn attributes(image: &Image, inode: Inode) -> Result<FileAttr, Refusal> {
    let node = image.node(inode)?;
    let size = match &node.content {
        Content::File(file) => file.cached.len() as u64,
        Content::Directory(_) => 0,
    };
    let kind = kind(&node.content);
    Ok(FileAttr {
        ino: INodeNo(inode),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: node.mode,
        nlink: if kind == FileType::Directory { 2 } else { 1 },
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: u32::try_from(BLOCK_BYTES).expect("small"),
        flags: 0,
    })
}

fn kind(content: &Content) -> FileType {
    match content {
        Content::File(_) => FileType::RegularFile,
        Content::Directory(_) => FileType::Directory,
    }
}

fn to_index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("64 bits")
}

/// How long the kernel may keep a name or an attribute.
const VALID_FOR: Duration = Duration::ZERO;
const BLOCK_BYTES: u64 = 4096;
/// Free space reported while nothing limits it.
const ROOMY_BYTES: u64 = 1 << 30;
