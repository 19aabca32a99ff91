//! The header that a balancer puts before the first byte of a client: the PROXY protocol, version 2
//! (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>). It names the client's address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The client. `None`: the balancer itself, which looks whether somebody is here.
    pub source: Option<IpAddr>,
    /// What comes behind is the client's.
    pub length_bytes: usize,
}

/// Why a connection does not begin with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyFault {
    #[error("no PROXY header; is proxy_protocol meant for this listener?")]
    Signature,
    #[error("a PROXY header of version 1; the balancer must send version 2")]
    Version1,
    #[error("a PROXY header of version {0}; only 2 is known")]
    Version(u8),
    #[error("PROXY command {0} is unknown")]
    Command(u8),
    #[error("PROXY address family and protocol {0:#04x} are not TCP over IPv4 or IPv6")]
    Family(u8),
    #[error("a PROXY header of {bytes} bytes, at most {HEADER_BYTES_MAX} are allowed")]
    TooLong { bytes: usize },
    #[error("the addresses of the PROXY header have {bytes} bytes, {needed} are needed")]
    AddressesCut { bytes: usize, needed: usize },
    #[error("the connection ended within the PROXY header")]
    Truncated,
}

/// Gathers a header that comes in parts. Holds no more than the longest header and one part.
#[derive(Debug, Default)]
pub struct HeaderReader {
    data: Vec<u8>,
}

impl HeaderReader {
    /// Takes another part; `None`: more is needed.
    pub fn read(&mut self, part: &[u8]) -> Result<Option<ProxyHeader>, ProxyFault> {
        self.data.extend_from_slice(part);
        parse(&self.data)
    }

    /// What came behind the header.
    pub fn behind(&self, header: &ProxyHeader) -> &[u8] {
        &self.data[header.length_bytes..]
    }
}

/// Reads the header at the start of `data`; `None`: more is needed. Decides at the first byte that
/// cannot be right.
pub fn parse(data: &[u8]) -> Result<Option<ProxyHeader>, ProxyFault> {
    let compared = data.len().min(SIGNATURE.len());
    if data[..compared] != SIGNATURE[..compared] {
        // Version 1 begins with other bytes from its first one on.
        let version1 = data.len().min(SIGNATURE_1.len());
        return Err(if data[..version1] == SIGNATURE_1[..version1] {
            ProxyFault::Version1
        } else {
            ProxyFault::Signature
        });
    }
    if let Some(&byte) = data.get(VERSION_AND_COMMAND) {
        if byte >> 4 != 2 {
            return Err(ProxyFault::Version(byte >> 4));
        }
        if byte & 0xf > COMMAND_PROXY {
            return Err(ProxyFault::Command(byte & 0xf));
        }
    }
    let Some(fixed) = data.first_chunk::<FIXED_BYTES>() else { return Ok(None) };
    let (command, family) = (fixed[VERSION_AND_COMMAND] & 0xf, fixed[FAMILY]);
    let rest_bytes = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let length_bytes = FIXED_BYTES + rest_bytes;
    if length_bytes > HEADER_BYTES_MAX {
        return Err(ProxyFault::TooLong { bytes: length_bytes });
    }
    // A balancer's own connection has no client, whatever its addresses say.
    let needed = match (command, family) {
        (COMMAND_PROXY, FAMILY_TCP4) => 12,
        (COMMAND_PROXY, FAMILY_TCP6) => 36,
        (COMMAND_PROXY, FAMILY_UNSPECIFIED) | (COMMAND_LOCAL, _) => 0,
        _ => return Err(ProxyFault::Family(family)),
    };
    if rest_bytes < needed {
        return Err(ProxyFault::AddressesCut { bytes: rest_bytes, needed });
    }
    if data.len() < length_bytes {
        return Ok(None);
    }
    // Behind the addresses stand extensions that nobody asks for.
    let addresses = &data[FIXED_BYTES..length_bytes];
    let source = match needed {
        12 => addresses.first_chunk::<4>().map(|&octets| IpAddr::V4(Ipv4Addr::from(octets))),
        36 => addresses.first_chunk::<16>().map(|&octets| IpAddr::V6(Ipv6Addr::from(octets))),
        _ => None,
    };
    Ok(Some(ProxyHeader { source: source.map(|source| source.to_canonical()), length_bytes }))
}

/// Bytes of a header, extensions included: enough for what balancers say about the client's TLS.
pub const HEADER_BYTES_MAX: usize = 2048;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const SIGNATURE_1: &[u8; 6] = b"PROXY ";
const VERSION_AND_COMMAND: usize = 12;
const FAMILY: usize = 13;
const FIXED_BYTES: usize = 16;
const COMMAND_LOCAL: u8 = 0;
const COMMAND_PROXY: u8 = 1;
const FAMILY_UNSPECIFIED: u8 = 0;
const FAMILY_TCP4: u8 = 0x11;
const FAMILY_TCP6: u8 = 0x21;

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([version_and_command, family]);
        header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        header.extend(rest);
        header
    }

    fn tcp4() -> Vec<u8> {
        header(0x21, 0x11, &[192, 0, 2, 7, 10, 0, 0, 1, 0x1f, 0x90, 0x1d, 0x13])
    }

    #[test]
    fn headers_name_the_client() {
        let mut data = tcp4();
        data.extend(b"ClientHello");
        let source = Some("192.0.2.7".parse().unwrap());
        assert_eq!(parse(&data), Ok(Some(ProxyHeader { source, length_bytes: 28 })));

        let mut rest = "2001:db8::7".parse::<Ipv6Addr>().unwrap().octets().to_vec();
        rest.extend([0; 20]);
        rest.extend([0x04, 0, 3, 1, 2, 3]); // an extension: PP2_TYPE_NOOP
        let source = Some("2001:db8::7".parse().unwrap());
        let length_bytes = 16 + 36 + 6;
        let expected = Ok(Some(ProxyHeader { source, length_bytes }));
        assert_eq!(parse(&header(0x21, 0x21, &rest)), expected);
    }

    #[test]
    fn a_balancer_that_speaks_for_itself_names_nobody() {
        for data in [header(0x20, 0, b""), header(0x20, 0x11, &[1; 12]), header(0x21, 0, b"")] {
            let length_bytes = data.len();
            assert_eq!(parse(&data), Ok(Some(ProxyHeader { source: None, length_bytes })));
        }
    }

    #[test]
    fn every_prefix_of_a_header_needs_more() {
        let data = tcp4();
        let mut reader = HeaderReader::default();
        for (length, byte) in data.iter().enumerate() {
            assert_eq!(parse(&data[..length]), Ok(None), "{length} bytes");
            let read = reader.read(&[*byte]);
            assert_eq!(read.map(|read| read.is_some()), Ok(length + 1 == data.len()));
        }
        let mut reader = HeaderReader::default();
        assert_eq!(reader.read(&data[..20]), Ok(None));
        let header = reader.read(&[&data[20..], b"hello"].concat()).unwrap().unwrap();
        assert_eq!(reader.behind(&header), b"hello");
    }

    #[test]
    fn what_is_wrong_is_said_precisely() {
        let v1 = b"PROXY TCP4 192.0.2.7 10.0.0.1 8080 7443\r\n";
        for length in 1..v1.len() {
            assert_eq!(parse(&v1[..length]), Err(ProxyFault::Version1));
        }
        assert_eq!(parse(&[0x16, 3, 1]), Err(ProxyFault::Signature)); // a ClientHello
        assert_eq!(parse(b"PRIX"), Err(ProxyFault::Signature));
        assert_eq!(parse(&header(0x11, 0x11, &[0; 12])), Err(ProxyFault::Version(1)));
        assert_eq!(parse(&header(0x22, 0x11, &[0; 12])), Err(ProxyFault::Command(2)));
        for family in [0x12, 0x22, 0x31, 0x32, 0x41, 0xff] {
            assert_eq!(parse(&header(0x21, family, &[0; 216])), Err(ProxyFault::Family(family)));
        }
        let fault = ProxyFault::AddressesCut { bytes: 11, needed: 12 };
        assert_eq!(parse(&header(0x21, 0x11, &[0; 11])), Err(fault));
        let fault = ProxyFault::AddressesCut { bytes: 12, needed: 36 };
        assert_eq!(parse(&header(0x21, 0x21, &[0; 12])), Err(fault));
        let long = header(0x21, 0x11, &[0; HEADER_BYTES_MAX]);
        let fault = ProxyFault::TooLong { bytes: HEADER_BYTES_MAX + 16 };
        assert_eq!(parse(&long[..16]), Err(fault), "before any of it is waited for");
    }

    /// splitmix64.
    fn next(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Random bytes, and headers with random bytes in them: no panic, no header longer than its
    /// data, and the answer for a part of the data is never another one than for the whole.
    #[test]
    fn random_bytes_have_one_answer() {
        let mut state = 1;
        let mut headers = 0;
        for round in 0..200_000 {
            let length = 1 + usize::try_from(next(&mut state) % 80).unwrap();
            let mut data = if round % 4 == 0 { Vec::new() } else { tcp4() };
            data.resize(length.max(data.len()), 0);
            let wrong = 1 + next(&mut state) % 6;
            for _ in 0..wrong {
                let place = usize::try_from(next(&mut state)).unwrap() % data.len();
                // Mostly behind the signature, or nothing else would ever be reached.
                let place = if round % 5 == 0 { place } else { place.max(12).min(data.len() - 1) };
                data[place] = next(&mut state).to_le_bytes()[0];
            }
            let whole = parse(&data);
            if let Ok(Some(header)) = whole {
                assert!(header.length_bytes <= data.len());
                headers += 1;
            }
            let part = usize::try_from(next(&mut state)).unwrap() % (data.len() + 1);
            match parse(&data[..part]) {
                Ok(None) => {}
                answer => assert_eq!(answer, whole, "{data:?} cut at {part}"),
            }
        }
        assert!(headers > 1_000, "only {headers} headers were right");
    }
}
