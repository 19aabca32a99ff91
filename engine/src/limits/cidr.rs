//! Ranges of addresses, as in `10.0.0.0/8`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// All addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    prefix_bits: u8,
}

/// Why a text names no range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrFault {
    #[error("not an IP address")]
    Address,
    #[error("the prefix is not a number from 0 to {0}")]
    Prefix(u8),
    #[error("bits behind the prefix are set")]
    HostBits,
}

impl Cidr {
    /// The addresses of this host.
    pub const LOOPBACK: [Self; 2] = [
        Self { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), prefix_bits: 8 },
        Self { address: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix_bits: 128 },
    ];

    /// Whether `address` is one of them. An IPv4 address within IPv6 counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (own, address) = (self.address, address.to_canonical());
        own.is_ipv4() == address.is_ipv4()
            && (bits_of(own) ^ bits_of(address)) & mask(self.prefix_bits) == 0
    }
}

impl FromStr for Cidr {
    type Err = CidrFault;

    /// An address with or without a prefix; without one it stands for itself.
    fn from_str(text: &str) -> Result<Self, CidrFault> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| CidrFault::Address)?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match prefix.map(u8::from_str) {
            None => bits_max,
            Some(Ok(bits)) if bits <= bits_max => bits,
            Some(_) => return Err(CidrFault::Prefix(bits_max)),
        };
        if bits_of(address) & !mask(prefix_bits) != 0 {
            return Err(CidrFault::HostBits);
        }
        Ok(Self { address, prefix_bits })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_bits)
    }
}

/// From the highest bit on; those of an IPv4 address are the first 32.
fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    }
}

fn mask(prefix_bits: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix_bits)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(range: &str, address: &str) -> bool {
        range.parse::<Cidr>().unwrap().contains(address.parse().unwrap())
    }

    #[test]
    fn ranges_hold_what_begins_like_them() {
        assert!(contains("127.0.0.0/8", "127.255.0.1"));
        assert!(!contains("127.0.0.0/8", "128.0.0.1"));
        assert!(contains("127.0.0.0/8", "::ffff:127.0.0.1"));
        assert!(contains("10.1.2.3", "10.1.2.3"));
        assert!(!contains("10.1.2.3", "10.1.2.2"));
        assert!(contains("0.0.0.0/0", "203.0.113.9"));
        assert!(!contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("::/0", "2001:db8::1"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1"));
        assert!(!contains("2001:db8::/32", "2001:db9::1"));
        let [v4, v6] = Cidr::LOOPBACK;
        assert_eq!("127.0.0.0/8".parse(), Ok(v4));
        assert_eq!("::1".parse(), Ok(v6));
        assert_eq!((v4.to_string(), v6.to_string()), ("127.0.0.0/8".into(), "::1/128".into()));
    }

    #[test]
    fn what_is_no_range_is_refused_precisely() {
        let fault = |text: &str| text.parse::<Cidr>().unwrap_err();
        for text in ["", "/8", "localhost", "10.0.0/8", "1.2.3.4.5/8", "10.0.0.0 /8"] {
            assert_eq!(fault(text), CidrFault::Address, "{text}");
        }
        for text in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/8/8", "10.0.0.0/x"] {
            assert_eq!(fault(text), CidrFault::Prefix(32), "{text}");
        }
        assert_eq!(fault("::/129"), CidrFault::Prefix(128));
        assert_eq!(fault("10.0.0.1/8"), CidrFault::HostBits);
        assert_eq!(fault("::1/127"), CidrFault::HostBits);
    }
}
