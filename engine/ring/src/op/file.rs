//! Reads and writes of files, which go on until all is done, and opening.

use std::ffi::CString;

use bytes::{Bytes, BytesMut};
use io_uring::opcode;
use io_uring::squeue::Entry;
use io_uring::types::Fd;

use crate::{Errno, File, OpenMode, Outcome};

pub(super) struct FileRead {
    file: File,
    offset: u64,
    length_bytes: usize,
    /// `len() <= length_bytes <= capacity()`; the kernel writes behind `len()`.
    buffer: BytesMut,
}

pub(super) struct FileWrite {
    file: File,
    offset: u64,
    data: Bytes,
    /// `<= data.len()`.
    written_bytes: usize,
}

impl FileRead {
    pub(super) fn new(file: File, offset: u64, length_bytes: usize) -> Self {
        Self { file, offset, length_bytes, buffer: BytesMut::with_capacity(length_bytes) }
    }

    pub(super) fn entry(&mut self) -> Entry {
        let filled_bytes = self.buffer.len();
        let rest = u32::try_from(self.length_bytes - filled_bytes).expect("from a u32");
        let start = self.buffer.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        opcode::Read::new(Fd(self.file.0), start, rest)
            .offset(self.offset + filled_bytes as u64)
            .build()
    }

    /// `None`: go on reading.
    pub(super) fn advance(&mut self, result: i32) -> Option<Result<Outcome, Errno>> {
        if result < 0 {
            return (Errno(-result) != Errno::INTR).then_some(Err(Errno(-result)));
        }
        let filled_bytes = self.buffer.len() + result.unsigned_abs() as usize;
        assert!(filled_bytes <= self.length_bytes, "the kernel read more than was asked for");
        // SAFETY: the kernel has written `result` bytes behind `len()`, so they are initialised,
        // and filled_bytes <= length_bytes <= capacity.
        unsafe { self.buffer.set_len(filled_bytes) };
        let done = result == 0 || filled_bytes == self.length_bytes;
        done.then(|| Ok(Outcome::Read(std::mem::take(&mut self.buffer).freeze())))
    }
}

impl FileWrite {
    pub(super) fn new(file: File, offset: u64, data: Bytes) -> Self {
        Self { file, offset, data, written_bytes: 0 }
    }

    pub(super) fn entry(&mut self) -> Entry {
        let rest = &self.data[self.written_bytes..];
        let rest_bytes = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        opcode::Write::new(Fd(self.file.0), rest.as_ptr(), rest_bytes)
            .offset(self.offset + self.written_bytes as u64)
            .build()
    }

    /// `None`: go on writing.
    pub(super) fn advance(&mut self, result: i32) -> Option<Result<Outcome, Errno>> {
        if result < 0 {
            return (Errno(-result) != Errno::INTR).then_some(Err(Errno(-result)));
        }
        self.written_bytes += result.unsigned_abs() as usize;
        if self.written_bytes >= self.data.len() {
            return Some(Ok(Outcome::Done));
        }
        // A write that makes no progress would be repeated for ever.
        (result == 0).then_some(Err(Errno::IO))
    }
}

pub(super) fn open_entry(path: &CString, mode: OpenMode) -> Entry {
    let (flags, permissions) = match mode {
        OpenMode::ReadWrite => (libc::O_RDWR, 0),
        OpenMode::ReadOnly => (libc::O_RDONLY, 0),
        OpenMode::CreateNew => (libc::O_RDWR | libc::O_CREAT | libc::O_EXCL, 0o600),
        OpenMode::Directory => (libc::O_RDONLY | libc::O_DIRECTORY, 0),
    };
    opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr())
        .flags(flags | libc::O_CLOEXEC)
        .mode(permissions)
        .build()
}
