//! First packets of QUIC connections that nobody means to make, each from a connection id of its own
//! and from one of many addresses; answers are not read. What a flood from spoofed addresses looks
//! like to the gateway.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::random;
use rustls::crypto::aws_lc_rs::cipher_suite;
use rustls::pki_types::ServerName;
use rustls::quic::{ClientConnection, Suite, Version};
use rustls::{Side, SupportedCipherSuite};

use super::{AttackCounts, Target};

/// All of them, evenly over the time.
pub(super) fn initials(target: &Target, stop: &AtomicBool) -> Result<AttackCounts> {
    ensure!(target.address.ip().is_loopback(), "--kind initials is for a gateway on loopback");
    let sources = sources(target.address)?;
    let forge = Forge::new(Arc::clone(&target.classic_tls), target.server_name.clone())?;
    let started = Instant::now();
    let mut counts = AttackCounts::default();
    for number in 0..target.count {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // In trains, because no thread sleeps for some microseconds.
        let due = target.duration.mul_f64(f64::from(number) / f64::from(target.count));
        if let Some(early) = due.checked_sub(started.elapsed()).filter(|early| *early > TRAIN) {
            thread::sleep(early);
        }
        let source = &sources[number as usize % sources.len()];
        // The kernel refuses when the gateway does not listen any more, or is behind: a flood goes on.
        counts.opened += u64::from(source.send(&forge.datagram()?).is_ok());
    }
    Ok(counts)
}

/// Sockets on addresses of 127.0.0.0/8, or on the one that IPv6 has.
fn sources(target: SocketAddr) -> Result<Vec<UdpSocket>> {
    let address = |number: u8| match target {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(127, 77, number, 1)),
        SocketAddr::V6(_) => target.ip(),
    };
    (0..INITIALS_SOURCES)
        .map(|number| {
            let socket = UdpSocket::bind((address(number), 0)).context("bind a source address")?;
            socket.connect(target).context("name the gateway's address")?;
            Ok(socket)
        })
        .collect()
}

/// Makes first packets (RFC 9000, section 17.2.2) of one ClientHello: sealing it again costs little,
/// so that the gateway is what the flood measures.
struct Forge {
    suite: Suite,
    /// A CRYPTO frame, and padding up to the least size of such a datagram.
    payload: Vec<u8>,
}

impl Forge {
    /// `tls` offers X25519 alone: so short a ClientHello fits into one datagram.
    fn new(tls: Arc<rustls::ClientConfig>, server_name: ServerName<'static>) -> Result<Self> {
        let parameters = transport_parameters();
        let mut hello = Vec::new();
        ClientConnection::new(tls, Version::V1, server_name, parameters)
            .context("make a ClientHello")?
            .write_hs(&mut hello);
        let mut payload = vec![FRAME_CRYPTO, 0];
        payload.extend(varint2(hello.len())?);
        payload.extend(hello);
        ensure!(payload.len() <= PAYLOAD_BYTES, "the ClientHello does not fit into a datagram");
        payload.resize(PAYLOAD_BYTES, FRAME_PADDING);
        let SupportedCipherSuite::Tls13(suite) = cipher_suite::TLS13_AES_128_GCM_SHA256;
        let suite = suite.quic_suite().context("the suite of first packets is built in")?;
        Ok(Self { suite, payload })
    }

    /// The next one. Its keys come from its connection id (RFC 9001, section 5.2).
    fn datagram(&self) -> Result<Vec<u8>> {
        let id: [u8; ID_BYTES] = random();
        let mut datagram = vec![FIRST_BYTE];
        datagram.extend(VERSION_1);
        for id in [id, SOURCE_ID] {
            datagram.push(u8::try_from(id.len())?);
            datagram.extend(id);
        }
        datagram.push(0); // no token
        datagram.extend(varint2(NUMBER_BYTES + PAYLOAD_BYTES + TAG_BYTES)?);
        let number_at = datagram.len();
        datagram.extend([0; NUMBER_BYTES]);
        let keys = self.suite.keys(&id, Side::Client, Version::V1).local;
        let mut payload = self.payload.clone();
        let tag = keys.packet.encrypt_in_place(0, &datagram, &mut payload)?;
        datagram.extend(payload);
        datagram.extend(tag.as_ref());
        let (head, rest) = datagram.split_at_mut(number_at + 4);
        let (first, number) = head.split_at_mut(number_at);
        let sample = &rest[..keys.header.sample_len()];
        keys.header.encrypt_in_place(sample, &mut first[0], number)?;
        Ok(datagram)
    }
}

/// Those without which a server ends the handshake at once (RFC 9000, section 7.3).
fn transport_parameters() -> Vec<u8> {
    [&[PARAMETER_SOURCE_ID, PARAMETER_BYTES][..], &SOURCE_ID].concat()
}

/// A length as a variable-length integer of two bytes (RFC 9000, section 16).
fn varint2(length: usize) -> Result<[u8; 2]> {
    let length = u16::try_from(length)?;
    ensure!(length < 1 << 14, "longer than two bytes say");
    Ok((length | 1 << 14).to_be_bytes())
}

/// A long header, an Initial packet, a packet number of four bytes.
const FIRST_BYTE: u8 = 0b1100_0011;
const VERSION_1: [u8; 4] = [0, 0, 0, 1];
const FRAME_PADDING: u8 = 0;
const FRAME_CRYPTO: u8 = 6;
/// `initial_source_connection_id`.
const PARAMETER_SOURCE_ID: u8 = 0x0f;
const ID_BYTES: usize = 8;
const PARAMETER_BYTES: u8 = 8;
const _: () = assert!(PARAMETER_BYTES as usize == ID_BYTES);
/// All have the same: the ClientHello names it.
const SOURCE_ID: [u8; ID_BYTES] = *b"ringpost";
const NUMBER_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
/// Such that a datagram has 1,200 bytes, the least that is allowed.
const PAYLOAD_BYTES: usize = 1200 - (1 + 4 + 2 * (1 + ID_BYTES) + 1 + 2 + NUMBER_BYTES) - TAG_BYTES;
/// Addresses that they come from.
pub const INITIALS_SOURCES: u8 = 250;
const TRAIN: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use quinn_proto::crypto::rustls::QuicServerConfig;
    use quinn_proto::{DatagramEvent, Endpoint, EndpointConfig, ServerConfig};
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::pki_types::PrivateKeyDer;

    use super::*;
    use crate::tokens::{self, ALPN, KeyExchange};

    /// A server begins a handshake with it: its answer is longer than an address without proof may
    /// be sent (RFC 9000, section 8.1), so it comes in several datagrams.
    #[test]
    fn a_server_begins_a_handshake() {
        let mut server = server();
        let folder = tempfile::tempdir().unwrap();
        tokens::write_credentials(folder.path()).unwrap();
        let tls = tokens::tls_config_of(folder.path(), KeyExchange::Classic, false).unwrap();
        let forge = Forge::new(tls, "localhost".try_into().unwrap()).unwrap();
        for port in 1..4 {
            let datagram = forge.datagram().unwrap();
            assert_eq!(datagram.len(), 1200);
            let from = SocketAddr::from(([127, 0, 0, 1], port));
            let (now, mut buffer) = (Instant::now(), Vec::new());
            let event = server.handle(now, from, None, None, datagram[..].into(), &mut buffer);
            let Some(DatagramEvent::NewConnection(incoming)) = event else {
                panic!("no first packet");
            };
            let (_, mut connection) = server
                .accept(incoming, now, &mut buffer, None)
                .map_err(|fault| fault.cause)
                .unwrap();
            let answer = connection.poll_transmit(now, 3, &mut buffer).unwrap();
            assert!(answer.size > 600, "{answer:?}");
            assert!(connection.is_handshaking() && !connection.is_closed());
        }
    }

    fn server() -> Endpoint {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = key.cert.der().clone();
        let private = PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
        let mut config = rustls::ServerConfig::builder_with_provider(default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], private)
            .unwrap();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let config =
            ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).unwrap()));
        Endpoint::new(Arc::new(EndpointConfig::default()), Some(Arc::new(config)), false, None)
    }
}
