//! What goes out: one send per train of equally long datagrams.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use quinn_proto::Transmit;
use ringpost_ring::DatagramSend;

/// Addresses as the socket wants them. One for IPv6 names IPv4 addresses by mapped ones; here they
/// are IPv4 ones, so that a new port of the same client looks like what it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Family {
    /// Known from the first datagram on, and nothing is sent before.
    is_ipv6: bool,
}

impl Family {
    /// Takes an address of the socket.
    pub(super) fn take(&mut self, from: SocketAddr) -> SocketAddr {
        self.is_ipv6 = from.is_ipv6();
        SocketAddr::new(from.ip().to_canonical(), from.port())
    }

    fn of_socket(self, ip: IpAddr) -> IpAddr {
        match ip {
            IpAddr::V4(ip) if self.is_ipv6 => IpAddr::V6(ip.to_ipv6_mapped()),
            other => other,
        }
    }

    /// The send for `transmit`, whose bytes are at the start of `buffer`, from the address `from`.
    pub(super) fn send(
        self,
        transmit: &Transmit,
        from: Option<IpAddr>,
        buffer: &[u8],
    ) -> DatagramSend {
        let segment_bytes = transmit
            .segment_size
            .map(|bytes| u16::try_from(bytes).expect("a segment is not longer than a datagram"));
        DatagramSend {
            to: SocketAddr::new(
                self.of_socket(transmit.destination.ip()),
                transmit.destination.port(),
            ),
            from: from.map(|ip| self.of_socket(ip)),
            ecn: transmit.ecn.map_or(0, |mark| mark as u8),
            segment_bytes,
            // A copy of its exact length: the buffer was made for the longest train.
            data: Bytes::copy_from_slice(&buffer[..transmit.size]),
        }
    }
}

#[cfg(test)]
mod tests {
    use quinn_proto::EcnCodepoint;

    use super::*;

    fn transmit(destination: &str) -> Transmit {
        Transmit {
            destination: destination.parse().unwrap(),
            ecn: Some(EcnCodepoint::Ect0),
            size: 5,
            segment_size: Some(2),
            src_ip: None,
        }
    }

    #[test]
    fn addresses_go_back_in_the_form_in_which_they_came() {
        let mut family = Family::default();
        let from = family.take("192.0.2.1:7".parse().unwrap());
        let send = family.send(&transmit("192.0.2.1:7"), Some(from.ip()), b"12345...");
        assert_eq!((send.to, send.from), (from, Some(from.ip())));
        assert_eq!((send.ecn, send.segment_bytes, &send.data[..]), (2, Some(2), &b"12345"[..]));

        let mapped: SocketAddr = "[::ffff:192.0.2.1]:7".parse().unwrap();
        assert_eq!(family.take(mapped), from);
        let send = family.send(&transmit("192.0.2.1:7"), Some(from.ip()), b"12345");
        assert_eq!((send.to, send.from), (mapped, Some(mapped.ip())));
    }
}
