//! Operating system error numbers, and the names that Ringpost acts on.

use std::fmt;
use std::io;

/// An operating system error number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl Errno {
    pub const PERM: Self = Self(libc::EPERM);
    pub const NOENT: Self = Self(libc::ENOENT);
    pub const INTR: Self = Self(libc::EINTR);
    pub const IO: Self = Self(libc::EIO);
    pub const AGAIN: Self = Self(libc::EAGAIN);
    pub const NOMEM: Self = Self(libc::ENOMEM);
    pub const BUSY: Self = Self(libc::EBUSY);
    pub const EXIST: Self = Self(libc::EEXIST);
    pub const INVAL: Self = Self(libc::EINVAL);
    /// The system is out of descriptors.
    pub const NFILE: Self = Self(libc::ENFILE);
    /// The process is out of descriptors.
    pub const MFILE: Self = Self(libc::EMFILE);
    pub const NOSPC: Self = Self(libc::ENOSPC);
    pub const PIPE: Self = Self(libc::EPIPE);
    pub const NOSYS: Self = Self(libc::ENOSYS);
    pub const TIME: Self = Self(libc::ETIME);
    pub const ADDRINUSE: Self = Self(libc::EADDRINUSE);
    pub const ADDRNOTAVAIL: Self = Self(libc::EADDRNOTAVAIL);
    pub const CONNABORTED: Self = Self(libc::ECONNABORTED);
    pub const CONNRESET: Self = Self(libc::ECONNRESET);
    pub const NOBUFS: Self = Self(libc::ENOBUFS);
    /// A datagram longer than its path takes.
    pub const MSGSIZE: Self = Self(libc::EMSGSIZE);
    pub const NOTCONN: Self = Self(libc::ENOTCONN);
    pub const TIMEDOUT: Self = Self(libc::ETIMEDOUT);
    pub const CONNREFUSED: Self = Self(libc::ECONNREFUSED);
    pub const ALREADY: Self = Self(libc::EALREADY);
    pub const DQUOT: Self = Self(libc::EDQUOT);
    pub const CANCELED: Self = Self(libc::ECANCELED);

    /// The number in `error`, or `EIO` for an error that did not come from the system.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&io::Error::from_raw_os_error(self.0), f)
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}
