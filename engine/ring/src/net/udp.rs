//! Datagram sockets: one per shard on one address.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{
    Handed, InheritFault, ListenFault, Protocol, as_option, check, name_of, new_socket, option_of,
    set_option, socklen_of,
};
use crate::steering::Program;
use crate::{Errno, UdpSocket};

/// What the sockets of a [`UdpGroup`] have.
#[derive(Clone, Copy, Debug)]
pub struct UdpOptions {
    /// Memory of the kernel for what one socket sends, and for what it receives until its shard
    /// takes it. The kernel doubles both, to have room for its own bookkeeping, and grants at most
    /// net.core.wmem_max and net.core.rmem_max without a word: see
    /// [`UdpGroup::receive_buffer_bytes`].
    pub send_buffer_bytes: u32,
    pub receive_buffer_bytes: u32,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self { send_buffer_bytes: 1 << 20, receive_buffer_bytes: 2 << 20 }
    }
}

/// One datagram socket per shard on the same address. The kernel spreads datagrams over them by the
/// addresses of both ends, until a program steers them.
///
/// Bound in shard order by one thread, and kept open by this value whatever becomes of a shard: a
/// program names the sockets by the order in which they were bound, and one that closes renumbers
/// the rest.
#[derive(Debug)]
pub struct UdpGroup {
    address: SocketAddr,
    pub(super) sockets: Vec<OwnedFd>,
}

impl UdpGroup {
    /// Binds `count` sockets to `address`; with port 0 all of them share the port that the kernel
    /// chose. They tell about each datagram its local address and its congestion bits, receive trains
    /// joined, and never fragment: what is too long for its path fails with [`Errno::MSGSIZE`].
    ///
    /// TCP and UDP ports have nothing to do with each other. To serve both on one that the kernel
    /// chooses, bind [`super::ListenerGroup`] first and this to the address that it got.
    pub fn bind(
        address: SocketAddr,
        count: u16,
        options: &UdpOptions,
    ) -> Result<Self, ListenFault> {
        assert!(count > 0, "a group has sockets");
        let fault = |error: io::Error| ListenFault::new(Protocol::Udp, address, Errno::of(&error));
        if address.port() != 0 {
            // See `ListenerGroup::bind`.
            bound_socket(address, false).map_err(fault)?;
        }
        let first = configured_socket(address, options).map_err(fault)?;
        let address = name_of(first.as_raw_fd(), libc::getsockname).map_err(fault)?;
        let mut sockets = vec![first];
        for _ in 1..count {
            sockets.push(configured_socket(address, options).map_err(fault)?);
        }
        Ok(Self { address, sockets })
    }

    /// Makes a group of sockets that were handed over, one for each of `count` shards, in the order in
    /// which they were bound. `address` is theirs; with port 0, on any port.
    pub fn adopt(
        sockets: Vec<Handed>,
        address: SocketAddr,
        count: u16,
        options: &UdpOptions,
    ) -> Result<Self, InheritFault> {
        let prepare = |socket: &OwnedFd| set_options(socket, address, options);
        let (address, sockets) =
            Handed::into_group(sockets, Protocol::Udp, address, count, prepare)?;
        Ok(Self { address, sockets })
    }

    /// The address, with the port that was chosen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The socket of a shard.
    #[must_use]
    pub fn socket(&self, shard: u16) -> UdpSocket {
        UdpSocket(self.sockets[usize::from(shard)].as_raw_fd())
    }

    /// Bytes that one socket holds until its shard takes them, as granted by the kernel, in its own
    /// bookkeeping: twice what was asked for, unless net.core.rmem_max is smaller.
    pub fn receive_buffer_bytes(&self) -> Result<u64, Errno> {
        let value = option_of(&self.sockets[0], libc::SOL_SOCKET, libc::SO_RCVBUF);
        Ok(u64::from(value.map_err(|error| Errno::of(&error))?.unsigned_abs()))
    }

    /// Lets `program` choose the socket of each datagram from now on. May be called again at any
    /// time, with the sockets in use: the kernel exchanges one program for the other.
    pub fn steer(&self, program: &Program) -> Result<(), Errno> {
        let shards = usize::from(program.shards());
        assert_eq!(shards, self.sockets.len(), "a program for another number of shards");
        let mut code = program.code();
        let length = u16::try_from(code.len()).expect("a program has a few hundred instructions");
        let filter = libc::sock_fprog { len: length, filter: code.as_mut_ptr() };
        // SAFETY: the pointer and the size are those of `filter`, which describes `code`; both live
        // through the call, which copies them.
        let result = unsafe {
            libc::setsockopt(
                self.sockets[0].as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                (&raw const filter).cast(),
                socklen_of(&filter),
            )
        };
        check(result).map_err(|error| Errno::of(&error))?;
        Ok(())
    }
}

fn configured_socket(address: SocketAddr, options: &UdpOptions) -> io::Result<OwnedFd> {
    let socket = bound_socket(address, true)?;
    set_options(&socket, address, options)?;
    Ok(socket)
}

fn set_options(socket: &OwnedFd, address: SocketAddr, options: &UdpOptions) -> io::Result<()> {
    let (send, receive) = (options.send_buffer_bytes, options.receive_buffer_bytes);
    set_option(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, as_option(send))?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, as_option(receive))?;
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, 1)?;
    // A socket for IPv6 may carry IPv4 too, and then it reports the bits of that.
    set_option(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
    set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
    if address.is_ipv4() {
        set_option(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    } else {
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        let probe = libc::IPV6_PMTUDISC_PROBE;
        set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe)?;
    }
    Ok(())
}

/// Without SO_REUSEADDR, which for datagrams would let anybody share the port.
fn bound_socket(address: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let socket = new_socket(address, libc::SOCK_DGRAM)?;
    if shared {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    }
    super::bind(&socket, address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{ListenOptions, ListenerGroup};

    #[test]
    fn a_group_shares_one_port_and_no_stranger_joins_it() {
        let any = "127.0.0.1:0".parse().unwrap();
        let group = UdpGroup::bind(any, 3, &UdpOptions::default()).unwrap();
        assert_ne!(group.address().port(), 0);
        assert_ne!(group.socket(0), group.socket(2));
        let fault = UdpGroup::bind(group.address(), 1, &UdpOptions::default()).unwrap_err();
        assert!(matches!(fault, ListenFault::InUse { .. }), "{fault}");
        assert!(fault.to_string().contains("ss -lunp"), "{fault}");
        let elsewhere = "192.0.2.1:0".parse().unwrap();
        let fault = UdpGroup::bind(elsewhere, 1, &UdpOptions::default()).unwrap_err();
        assert!(matches!(fault, ListenFault::NotLocal { .. }), "{fault}");
    }

    #[test]
    fn both_protocols_share_a_port_number() {
        let any = "127.0.0.1:0".parse().unwrap();
        let tcp = ListenerGroup::bind(any, 2, &ListenOptions::default()).unwrap();
        let udp = UdpGroup::bind(tcp.address(), 2, &UdpOptions::default()).unwrap();
        assert_eq!(udp.address(), tcp.address());
    }

    #[test]
    fn the_granted_buffer_is_told() {
        let any = "127.0.0.1:0".parse().unwrap();
        let options = UdpOptions { receive_buffer_bytes: 40_000, ..UdpOptions::default() };
        let group = UdpGroup::bind(any, 1, &options).unwrap();
        assert_eq!(group.receive_buffer_bytes().unwrap(), 80_000);
    }
}
