//! Sockets before they belong to a ring: listeners, datagram sockets, addresses, and the socket of a
//! connect.

mod inherited;
mod udp;

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use crate::{Errno, Listener, Socket};

pub use inherited::{Handed, InheritFault, Inherited};
pub use udp::{UdpGroup, UdpOptions};

/// Why listeners could not be made, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum ListenFault {
    #[error(
        "{protocol} {address} is in use by another process: find it with \
         `ss -l{}np 'sport = :{port}'` and stop it, or configure another address",
        .protocol.letter(),
        port = .address.port()
    )]
    InUse { protocol: Protocol, address: SocketAddr },
    #[error(
        "port {port} is privileged: use a port from 1024 on, or grant CAP_NET_BIND_SERVICE, or set \
         net.ipv4.ip_unprivileged_port_start={port}"
    )]
    Privileged { port: u16 },
    #[error(
        "{ip} is no address of this host: see `ip address`, or use 0.0.0.0 or [::]",
        ip = .address.ip()
    )]
    NotLocal { address: SocketAddr },
    #[error("no descriptor left for a socket: raise the open file limit (LimitNOFILE=, ulimit -n)")]
    OpenFiles,
    #[error("cannot listen on {protocol} {address}: {errno}")]
    Other { protocol: Protocol, address: SocketAddr, errno: Errno },
}

impl ListenFault {
    fn new(protocol: Protocol, address: SocketAddr, errno: Errno) -> Self {
        match errno.0 {
            libc::EADDRINUSE => Self::InUse { protocol, address },
            libc::EACCES => Self::Privileged { port: address.port() },
            libc::EADDRNOTAVAIL => Self::NotLocal { address },
            libc::EMFILE | libc::ENFILE => Self::OpenFiles,
            _ => Self::Other { protocol, address, errno },
        }
    }
}

/// What a port belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// Its option of `ss`.
    fn letter(self) -> char {
        match self {
            Self::Tcp => 't',
            Self::Udp => 'u',
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// What listeners and the sockets that they accept have.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// Connections that the kernel holds until they are accepted.
    pub backlog: u32,
    /// Memory of the kernel for what one socket sends, and for what it receives. The kernel doubles
    /// both, to have room for its own bookkeeping.
    pub send_buffer_bytes: u32,
    pub receive_buffer_bytes: u32,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { backlog: 128, send_buffer_bytes: 64 << 10, receive_buffer_bytes: 64 << 10 }
    }
}

/// One listener per shard on the same address; the kernel spreads connections over them.
///
/// Bound in shard order by one thread, and kept open by this value whatever becomes of a shard:
/// the kernel numbers the listeners of an address, and one that closes renumbers the rest.
#[derive(Debug)]
pub struct ListenerGroup {
    address: SocketAddr,
    listeners: Vec<OwnedFd>,
}

impl ListenerGroup {
    /// Binds `count` listeners to `address`. With port 0 all of them share the port that the kernel
    /// chose. Accepted sockets inherit the options: no Nagle, a small unsent backlog, and buffers
    /// that the kernel does not grow.
    pub fn bind(
        address: SocketAddr,
        count: u16,
        options: &ListenOptions,
    ) -> Result<Self, ListenFault> {
        assert!(count > 0, "a group has listeners");
        let fault = |error: io::Error| ListenFault::new(Protocol::Tcp, address, Errno::of(&error));
        if address.port() != 0 {
            // Every process of this user could join the group, and would silently take a part of
            // the connections. A socket that does not share finds out.
            bound_socket(address, false).map_err(fault)?;
        }
        let first = listener(address, options).map_err(fault)?;
        let address = name_of(first.as_raw_fd(), libc::getsockname).map_err(fault)?;
        let mut listeners = vec![first];
        for _ in 1..count {
            listeners.push(listener(address, options).map_err(fault)?);
        }
        Ok(Self { address, listeners })
    }

    /// Makes a group of listeners that were handed over, one for each of `count` shards in their
    /// order. `address` is where they listen; with port 0, on any port. The port's connections of
    /// before are as they came; later ones have the options.
    pub fn adopt(
        sockets: Vec<Handed>,
        address: SocketAddr,
        count: u16,
        options: &ListenOptions,
    ) -> Result<Self, InheritFault> {
        let prepare = |socket: &OwnedFd| {
            set_options(socket, options)?;
            listen(socket, options)
        };
        let (address, listeners) =
            Handed::into_group(sockets, Protocol::Tcp, address, count, prepare)?;
        Ok(Self { address, listeners })
    }

    /// The address, with the port that was chosen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The listener of a shard.
    #[must_use]
    pub fn listener(&self, shard: u16) -> Listener {
        Listener(self.listeners[usize::from(shard)].as_raw_fd())
    }
}

/// The address of the other end.
pub fn peer_address(socket: Socket) -> io::Result<SocketAddr> {
    name_of(socket.0, libc::getpeername)
}

/// The address of this end.
pub fn local_address(socket: Socket) -> io::Result<SocketAddr> {
    name_of(socket.0, libc::getsockname)
}

/// A stream socket to connect to `remote`, bound to `local` if given.
pub(crate) fn stream_socket(local: Option<SocketAddr>, remote: SocketAddr) -> io::Result<Socket> {
    let socket = new_socket(remote, libc::SOCK_STREAM)?;
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    if let Some(local) = local {
        if local.port() == 0 {
            // The port is chosen at connect, so that it may be shared between destinations.
            set_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        } else {
            set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        }
        bind(&socket, local)?;
    }
    Ok(Socket(socket.into_raw_fd()))
}

/// Closes a descriptor that the ring owns and nobody will ask for.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: the caller owns the descriptor; it came from the kernel and went nowhere else.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

/// An address as the kernel reads it.
pub(crate) enum RawAddress {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl RawAddress {
    pub(crate) fn as_raw(&self) -> (*const libc::sockaddr, libc::socklen_t) {
        match self {
            Self::V4(address) => ((&raw const *address).cast(), socklen_of(address)),
            Self::V6(address) => ((&raw const *address).cast(), socklen_of(address)),
        }
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Self::V4(libc::sockaddr_in {
                sin_family: AF_INET,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                sin_zero: [0; 8],
            }),
            SocketAddr::V6(address) => Self::V6(libc::sockaddr_in6 {
                sin6_family: AF_INET6,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            }),
        }
    }
}

fn listener(address: SocketAddr, options: &ListenOptions) -> io::Result<OwnedFd> {
    let socket = bound_socket(address, true)?;
    set_options(&socket, options)?;
    listen(&socket, options)?;
    Ok(socket)
}

fn set_options(socket: &OwnedFd, options: &ListenOptions) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)?;
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, UNSENT_BYTES)?;
    let (send, receive) = (options.send_buffer_bytes, options.receive_buffer_bytes);
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, as_option(send))?;
    // Before listening: it decides what window a connection can have.
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, as_option(receive))
}

/// On a socket that listens already it sets the length of its queue.
fn listen(socket: &OwnedFd, options: &ListenOptions) -> io::Result<()> {
    // SAFETY: no memory is involved.
    check(unsafe { libc::listen(socket.as_raw_fd(), as_option(options.backlog)) })?;
    Ok(())
}

fn as_option(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn bound_socket(address: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let socket = new_socket(address, libc::SOCK_STREAM)?;
    // Connections of an earlier process in TIME_WAIT must not delay a restart.
    set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    if shared {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    bind(&socket, address)?;
    Ok(socket)
}

/// Blocking, as the ring wants it: on a non-blocking one it would answer EAGAIN instead of waiting.
fn new_socket(address: SocketAddr, kind: i32) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option(socket: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and the size are those of `value`.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            socklen_of(&value),
        )
    })?;
    Ok(())
}

fn option_of(socket: &OwnedFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value = 0i32;
    let mut bytes = socklen_of(&value);
    // SAFETY: the pointers are to `value` and to its size.
    check(unsafe {
        let value = (&raw mut value).cast();
        libc::getsockopt(socket.as_raw_fd(), level, name, value, &raw mut bytes)
    })?;
    Ok(value)
}

fn bind(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let address = RawAddress::from(address);
    let (start, bytes) = address.as_raw();
    // SAFETY: `start` and `bytes` describe `address`, which lives through the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), start, bytes) })?;
    Ok(())
}

type NameCall = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

fn name_of(fd: RawFd, call: NameCall) -> io::Result<SocketAddr> {
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut bytes: libc::socklen_t = socklen_of(&storage);
    // SAFETY: getsockname or getpeername, with the pointer and the size of `storage`.
    check(unsafe { call(fd, storage.as_mut_ptr().cast(), &raw mut bytes) })?;
    // SAFETY: zeroed, then filled by the kernel; every bit pattern is valid.
    let storage = unsafe { storage.assume_init() };
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: of this family, so a sockaddr_in; storage is large and aligned enough for it.
            let raw = unsafe { &*(&raw const storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr));
            Ok(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: of this family, so a sockaddr_in6; as above.
            let raw = unsafe { &*(&raw const storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            let port = u16::from_be(raw.sin6_port);
            Ok(SocketAddrV6::new(ip, port, raw.sin6_flowinfo, raw.sin6_scope_id).into())
        }
        _ => Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
    }
}

fn socklen_of<T>(value: &T) -> libc::socklen_t {
    libc::socklen_t::try_from(size_of_val(value)).expect("an address or an option is small")
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The families in the width that an address has room for.
#[expect(clippy::cast_possible_truncation, reason = "2 and 10")]
const AF_INET: libc::sa_family_t = libc::AF_INET as _;
#[expect(clippy::cast_possible_truncation, reason = "2 and 10")]
const AF_INET6: libc::sa_family_t = libc::AF_INET6 as _;

/// More than this unsent, and a socket counts as full: the backlog belongs into the mailbox.
const UNSENT_BYTES: i32 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_shares_one_port_and_no_stranger_joins_it() {
        let group =
            ListenerGroup::bind("127.0.0.1:0".parse().unwrap(), 3, &ListenOptions::default())
                .unwrap();
        assert_ne!(group.address().port(), 0);
        assert_ne!(group.listener(0), group.listener(2));
        let fault = ListenerGroup::bind(group.address(), 1, &ListenOptions::default()).unwrap_err();
        assert!(matches!(fault, ListenFault::InUse { .. }), "{fault}");
        assert!(fault.to_string().contains("ss -ltnp"), "{fault}");
    }

    #[test]
    fn faults_say_the_fix() {
        let address = "127.0.0.1:443".parse().unwrap();
        let text = ListenFault::new(Protocol::Tcp, address, Errno(libc::EACCES)).to_string();
        assert!(text.contains("ip_unprivileged_port_start=443"), "{text}");
        let text = ListenFault::new(Protocol::Tcp, address, Errno(libc::EADDRNOTAVAIL)).to_string();
        assert!(text.contains("127.0.0.1 is no address of this host"), "{text}");
        let elsewhere = "192.0.2.1:0".parse().unwrap();
        let fault = ListenerGroup::bind(elsewhere, 1, &ListenOptions::default()).unwrap_err();
        assert!(matches!(fault, ListenFault::NotLocal { .. }), "{fault}");
    }

    #[test]
    fn addresses_survive_the_kernel() {
        for text in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(group) =
                ListenerGroup::bind(text.parse().unwrap(), 1, &ListenOptions::default())
            else {
                continue; // a host without IPv6
            };
            let stream = std::net::TcpStream::connect(group.address()).unwrap();
            let socket = Socket(stream.as_raw_fd());
            assert_eq!(peer_address(socket).unwrap(), group.address());
            assert_eq!(local_address(socket).unwrap(), stream.local_addr().unwrap());
        }
    }
}
