//! Sockets that were open before this process: those that its parent hands over by their number, as
//! systemd and everybody who speaks its protocol does.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{check, name_of, option_of};
use crate::Errno;

/// The sockets that the parent opened: the first is descriptor 3, the others follow. They stay open
/// there when this process ends, so that the kernel keeps whoever comes until the next one serves.
#[derive(Debug)]
pub struct Inherited {
    /// Listening, for TCP.
    pub listeners: Vec<Handed>,
    /// For UDP.
    pub datagrams: Vec<Handed>,
}

/// One socket, with the address that it is bound to.
#[derive(Debug)]
pub struct Handed {
    pub(super) socket: OwnedFd,
    /// Its number, as the parent passed it.
    number: RawFd,
    address: SocketAddr,
    is_shared: bool,
}

/// Why sockets that were handed over cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritFault {
    #[error("LISTEN_FDS={text:?} is no number of sockets from 1 to {HANDED_MAX}")]
    Count { text: String },
    #[error("descriptor {number}, handed over by LISTEN_FDS, is no socket: {errno}")]
    NoSocket { number: RawFd, errno: Errno },
    #[error(
        "descriptor {number}, handed over by LISTEN_FDS, is neither a listening TCP socket nor one for UDP"
    )]
    Kind { number: RawFd },
    #[error(
        "descriptor {number}, handed over by LISTEN_FDS, listens on {address}, not on {expected}"
    )]
    Address { number: RawFd, address: SocketAddr, expected: SocketAddr },
    #[error(
        "{count} sockets for {protocol} were handed over by LISTEN_FDS; there are {shards} shards, and each needs one"
    )]
    Shards { protocol: super::Protocol, count: usize, shards: u16 },
    #[error(
        "descriptor {number}, handed over by LISTEN_FDS, does not share its address (SO_REUSEPORT)"
    )]
    Unshared { number: RawFd },
    #[error("cannot prepare descriptor {number}, handed over by LISTEN_FDS: {errno}")]
    Options { number: RawFd, errno: Errno },
}

impl InheritFault {
    /// What to do about it.
    #[must_use]
    pub fn fix(&self) -> String {
        match self {
            Self::Count { .. } | Self::NoSocket { .. } => {
                "pass open sockets from descriptor 3 on, and their number in LISTEN_FDS".to_owned()
            }
            Self::Kind { .. } => {
                "pass sockets of ListenStream= and ListenDatagram= alone, with Accept=no".to_owned()
            }
            Self::Address { address, .. } => {
                format!("set listen to {address:?}, or have the parent open the other address")
            }
            Self::Shards { count, .. } => format!(
                "write the line of the address once for each shard, with ReusePort=yes, or set shards \
                 to {count}"
            ),
            Self::Unshared { .. } => "have the parent set ReusePort=yes".to_owned(),
            Self::Options { .. } => "pass sockets as the parent opened them".to_owned(),
        }
    }
}

impl Inherited {
    /// Takes what the parent of this process has handed over; `None`: nothing, or to another process,
    /// or it was taken before.
    pub fn take() -> Result<Option<Self>, InheritFault> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let variable = |name| std::env::var(name).ok();
        let Some(count) = count(variable("LISTEN_PID"), variable("LISTEN_FDS"))? else {
            return Ok(None);
        };
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Ok(None);
        }
        let mut inherited = Self { listeners: Vec::new(), datagrams: Vec::new() };
        for number in (FIRST..).take(count) {
            // SAFETY: no memory is involved; a number that is not open is told.
            let flags = check(unsafe { libc::fcntl(number, libc::F_GETFD) });
            flags.map_err(|error| no_socket(number, &error))?;
            // SAFETY: open, passed to this process for its own use, and taken only once.
            inherited.add(number, unsafe { OwnedFd::from_raw_fd(number) })?;
        }
        Ok(Some(inherited))
    }

    fn add(&mut self, number: RawFd, socket: OwnedFd) -> Result<(), InheritFault> {
        let kind = option_of(&socket, libc::SOL_SOCKET, libc::SO_TYPE);
        let kind = kind.map_err(|error| no_socket(number, &error))?;
        let option = |name| {
            let value = option_of(&socket, libc::SOL_SOCKET, name);
            value.map_err(|error| no_socket(number, &error))
        };
        let listens = option(libc::SO_ACCEPTCONN)? != 0;
        let is_shared = option(libc::SO_REUSEPORT)? != 0;
        let address = name_of(socket.as_raw_fd(), libc::getsockname);
        let Ok(address) = address else { return Err(InheritFault::Kind { number }) };
        let handed = Handed { socket, number, address, is_shared };
        match (kind, listens) {
            (libc::SOCK_STREAM, true) => self.listeners.push(handed),
            (libc::SOCK_DGRAM, _) => self.datagrams.push(handed),
            _ => return Err(InheritFault::Kind { number }),
        }
        Ok(())
    }
}

impl Handed {
    /// Makes of sockets for one protocol what a group has: one for each of `shards`, of `address`, whose
    /// port may be 0 for that of the first one, and of nobody but this process's own.
    pub(super) fn into_group(
        sockets: Vec<Self>,
        protocol: super::Protocol,
        address: SocketAddr,
        shards: u16,
        prepare: impl Fn(&OwnedFd) -> io::Result<()>,
    ) -> Result<(SocketAddr, Vec<OwnedFd>), InheritFault> {
        let count = sockets.len();
        if count != usize::from(shards) {
            return Err(InheritFault::Shards { protocol, count, shards });
        }
        let mut expected = address;
        let mut group = Vec::with_capacity(count);
        for Self { socket, number, address, is_shared } in sockets {
            if expected.port() == 0 {
                expected.set_port(address.port());
            }
            if address != expected {
                return Err(InheritFault::Address { number, address, expected });
            }
            if count > 1 && !is_shared {
                return Err(InheritFault::Unshared { number });
            }
            let prepared = keep_to_this_process(&socket).and_then(|()| prepare(&socket));
            prepared.map_err(|error| InheritFault::Options { number, errno: Errno::of(&error) })?;
            group.push(socket);
        }
        Ok((expected, group))
    }
}

/// Not for programs that this one starts, and blocking, as the ring wants it.
fn keep_to_this_process(socket: &OwnedFd) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    // SAFETY: no memory is involved, here and below.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: as above.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_NONBLOCK) })?;
    Ok(())
}

/// How many sockets are for this process.
fn count(pid: Option<String>, sockets: Option<String>) -> Result<Option<usize>, InheritFault> {
    let Some((pid, text)) = pid.zip(sockets) else { return Ok(None) };
    if pid.parse() != Ok(std::process::id()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(0) => Ok(None),
        Ok(count) if count <= HANDED_MAX => Ok(Some(count)),
        _ => Err(InheritFault::Count { text }),
    }
}

fn no_socket(number: RawFd, error: &io::Error) -> InheritFault {
    InheritFault::NoSocket { number, errno: Errno::of(error) }
}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} listeners, {} for datagrams", self.listeners.len(), self.datagrams.len())
    }
}

/// The number of the first socket.
const FIRST: RawFd = 3;
/// Two for each of the most shards that there can be.
const HANDED_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::net::{ListenOptions, ListenerGroup, Protocol, UdpGroup, UdpOptions};

    fn handed(sockets: Vec<OwnedFd>) -> Result<Inherited, InheritFault> {
        let mut inherited = Inherited { listeners: Vec::new(), datagrams: Vec::new() };
        for socket in sockets {
            inherited.add(socket.as_raw_fd(), socket)?;
        }
        Ok(inherited)
    }

    /// The sockets of a group as another process has them.
    fn duplicates(group: &[OwnedFd]) -> Vec<OwnedFd> {
        group.iter().map(|socket| socket.try_clone().unwrap()).collect()
    }

    #[test]
    fn only_what_is_for_this_process_is_taken() {
        let own = Some(std::process::id().to_string());
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(count(None, some("2")).unwrap(), None);
        assert_eq!(count(own.clone(), None).unwrap(), None);
        assert_eq!(count(some("1"), some("2")).unwrap(), None);
        assert_eq!(count(own.clone(), some("0")).unwrap(), None);
        assert_eq!(count(own.clone(), some("2")).unwrap(), Some(2));
        for text in ["-1", "two", "513"] {
            let fault = count(own.clone(), some(text)).unwrap_err();
            assert!(fault.to_string().contains(text), "{fault}");
        }
    }

    #[test]
    fn the_sockets_of_a_group_make_one_again_in_their_order() {
        let any = "127.0.0.1:0".parse().unwrap();
        let tcp = ListenerGroup::bind(any, 3, &ListenOptions::default()).unwrap();
        let udp = UdpGroup::bind(tcp.address(), 3, &UdpOptions::default()).unwrap();
        let mut sockets = duplicates(&tcp.listeners);
        sockets.extend(duplicates(&udp.sockets));
        let Inherited { listeners, datagrams } = handed(sockets).unwrap();
        let options = ListenOptions::default();
        let again = ListenerGroup::adopt(listeners, any, 3, &options).unwrap();
        assert_eq!(again.address(), tcp.address());
        let options = UdpOptions { receive_buffer_bytes: 40_000, ..UdpOptions::default() };
        let again = UdpGroup::adopt(datagrams, again.address(), 3, &options).unwrap();
        assert_eq!(again.receive_buffer_bytes().unwrap(), 80_000);
        let name = |socket: crate::UdpSocket| name_of(socket.0, libc::getsockname).unwrap();
        assert_eq!(name(again.socket(2)), udp.address());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_fix() {
        let any = "127.0.0.1:0".parse().unwrap();
        let group = ListenerGroup::bind(any, 2, &ListenOptions::default()).unwrap();
        let adopt = |address, shards, sockets| {
            let Inherited { listeners, .. } = handed(sockets).unwrap();
            ListenerGroup::adopt(listeners, address, shards, &ListenOptions::default()).unwrap_err()
        };
        let fault = adopt(any, 3, duplicates(&group.listeners));
        assert!(fault.to_string().contains("2 sockets for TCP"), "{fault}");
        assert!(fault.fix().contains("set shards to 2"), "{}", fault.fix());
        let elsewhere = "127.0.0.1:1".parse().unwrap();
        let fault = adopt(elsewhere, 2, duplicates(&group.listeners));
        assert!(fault.fix().contains(&format!("set listen to {}", group.address())), "{fault}");
        let single = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let one = single();
        let two = vec![one.try_clone().unwrap(), one];
        let fault = adopt(any, 2, two);
        assert!(matches!(fault, InheritFault::Unshared { .. }), "{fault}");
        let unshared = handed(vec![single()]).unwrap();
        ListenerGroup::adopt(unshared.listeners, any, 1, &ListenOptions::default()).unwrap();
    }

    #[test]
    fn what_is_no_such_socket_is_told() {
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let fault = handed(vec![file]).unwrap_err();
        assert!(matches!(fault, InheritFault::NoSocket { .. }), "{fault}");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let fault = handed(vec![stream.into()]).unwrap_err();
        assert!(matches!(fault, InheritFault::Kind { .. }), "{fault}");
        let datagrams = handed(vec![UdpSocket::bind("127.0.0.1:0").unwrap().into()]).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let options = UdpOptions::default();
        let fault = UdpGroup::adopt(datagrams.datagrams, any, 2, &options).unwrap_err();
        let InheritFault::Shards { protocol: Protocol::Udp, count: 1, shards: 2 } = fault else {
            panic!("{fault}");
        };
    }
}
