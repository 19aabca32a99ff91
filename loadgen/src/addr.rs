//! Where connections come from. One source address has some 28,000 ephemeral ports to one target;
//! beyond that, connections to loopback are spread over 127.0.0.0/8 with explicit ports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Hands out disjoint (address, port) pairs.
#[derive(Debug)]
pub enum SourceAddresses {
    /// Few enough connections: the kernel chooses.
    Kernel,
    /// Each connection its own pair, this thread's share of them.
    Explicit { next: u64, step: u64 },
}

impl SourceAddresses {
    /// The share of `thread` when `threads` open `connections` to `target` together.
    pub fn new(target: SocketAddr, connections: u32, thread: usize, threads: usize) -> Self {
        if connections <= KERNEL_PORTS || !target.ip().is_loopback() || target.is_ipv6() {
            return Self::Kernel;
        }
        Self::Explicit { next: thread as u64, step: threads as u64 }
    }

    /// The next pair to bind to; `None` leaves the choice to the kernel. A pair that turns out to
    /// be taken is simply skipped by asking again.
    pub fn take(&mut self) -> Option<SocketAddr> {
        let Self::Explicit { next, step } = self else { return None };
        let number = *next;
        *next += *step;
        let host = u32::try_from(number / PORTS_PER_ADDRESS % HOSTS).expect("below HOSTS");
        let port =
            PORT_MIN + u16::try_from(number % PORTS_PER_ADDRESS).expect("below PORTS_PER_ADDRESS");
        // From 127.0.1.1 on: other programs use 127.0.0.1.
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(127, 0, 1, 1).to_bits() + host);
        Some(SocketAddr::new(IpAddr::V4(address), port))
    }
}

/// Most connections to one target that are left to the kernel's default port range.
const KERNEL_PORTS: u32 = 28_000;
const PORT_MIN: u16 = 1_024;
const PORTS_PER_ADDRESS: u64 = 64_512;
/// 16 million hosts are more than any run needs; wrapping around reuses pairs of closed sockets.
const HOSTS: u64 = 65_536;

const _: () = assert!(PORT_MIN as u64 + PORTS_PER_ADDRESS == 65_536);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn few_connections_are_left_to_the_kernel() {
        let target = "127.0.0.1:7443".parse().unwrap();
        assert!(SourceAddresses::new(target, 28_000, 0, 1).take().is_none());
    }

    #[test]
    fn many_connections_get_pairs_of_their_own() {
        let target = "127.0.0.1:7443".parse().unwrap();
        let mut seen = HashSet::new();
        for thread in 0..3 {
            let mut sources = SourceAddresses::new(target, 200_000, thread, 3);
            for _ in 0..50_000 {
                let source = sources.take().unwrap();
                assert!(source.ip().is_loopback() && source.port() >= 1_024);
                assert!(seen.insert(source));
            }
        }
        assert!(seen.iter().map(SocketAddr::ip).collect::<HashSet<_>>().len() >= 3);
    }

    #[test]
    fn remote_targets_are_left_to_the_kernel() {
        let target = "192.0.2.1:7443".parse().unwrap();
        assert!(SourceAddresses::new(target, 200_000, 0, 1).take().is_none());
    }
}
