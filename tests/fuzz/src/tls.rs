//! The server's end of a TLS connection, driven as a shard drives it. Either any bytes in any
//! chunks, or a real client whose bytes are damaged, lost, repeated and moved on their way.
//!
//! Whatever happens, the plaintext that comes out is a beginning of what the client wrote.

use std::io::{Read, Write};
use std::sync::{Arc, LazyLock};

use bytes::BytesMut;
use ringpost_engine::transport::{Acceptor, Peer, Transport, tls};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::script::Script;
use crate::seeds::Seed;

/// The first byte chooses plain bytes or a script.
pub fn check(input: &[u8]) {
    let mut script = Script::new(input);
    match script.byte() {
        b'F' => {
            let chunk_bytes = 16 * usize::from(script.byte()).max(1);
            let mut server = Server::new();
            for chunk in script.rest().chunks(chunk_bytes) {
                server.receive(chunk);
            }
            server.say(b"end");
        }
        kind => {
            let config = client_config(kind);
            if kind & 8 != 0 {
                // The connection after it resumes its session.
                Pair::new(&config).run(&mut Script::new(&[]));
            }
            Pair::new(&config).run(&mut script);
        }
    }
}

struct Server {
    transport: Transport,
    plaintext: BytesMut,
    /// The connection is ending: nothing more is read.
    is_ended: bool,
    has_closed: bool,
}

impl Server {
    fn new() -> Self {
        let transport = ACCEPTOR.accept().expect("the configuration is valid");
        Self { transport, plaintext: BytesMut::new(), is_ended: false, has_closed: false }
    }

    fn receive(&mut self, data: &[u8]) {
        if self.is_ended {
            return;
        }
        let before = self.plaintext.len();
        let was_handshaking = self.transport.is_handshaking();
        match self.transport.handle_ciphertext(data, &mut self.plaintext) {
            Ok(Peer::Open) => {}
            Ok(Peer::Closed) => self.is_ended = true,
            Err(fault) => {
                assert!(!fault.to_string().is_empty());
                self.is_ended = true;
            }
        }
        assert!(self.plaintext.len() - before <= data.len() + RECORD_BYTES_MAX);
        assert!(was_handshaking || !self.transport.is_handshaking(), "a second handshake");
        if self.transport.is_handshaking() {
            assert!(self.plaintext.is_empty(), "early data");
        }
    }

    /// Seals what a shard would: the transport's own words, and `plaintext` once it may flow.
    fn say(&mut self, plaintext: &[u8]) -> Vec<u8> {
        let mut ciphertext = Vec::new();
        let may_flow = !self.transport.is_handshaking() && !self.is_ended;
        self.transport.seal(if may_flow { plaintext } else { &[] }, &mut ciphertext);
        assert!(!self.transport.wants_seal(), "everything was sealed");
        if may_flow && !plaintext.is_empty() && !self.has_closed {
            assert!(ciphertext.len() > plaintext.len(), "nothing was said");
        }
        ciphertext
    }

    fn close(&mut self, last: &[u8]) -> Vec<u8> {
        let mut last = if self.transport.is_handshaking() { Vec::new() } else { last.to_vec() };
        let mut ciphertext = Vec::new();
        if !self.has_closed {
            self.transport.close(&mut last);
            assert!(last.is_empty(), "taken");
        }
        self.transport.seal(&[], &mut ciphertext);
        (self.has_closed, self.is_ended) = (true, true);
        ciphertext
    }
}

/// A server and its client.
struct Pair {
    server: Server,
    client: ClientConnection,
    /// Bytes under way to the server.
    wire: Vec<u8>,
    /// All that the client's app wrote.
    written: Vec<u8>,
    /// The client's bytes were changed, or the server's were.
    is_damaged: bool,
    /// It reads nothing any more.
    client_failed: bool,
}

impl Pair {
    fn new(config: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("localhost").expect("a DNS name");
        let mut client = ClientConnection::new(Arc::clone(config), name).expect("a valid name");
        client.set_buffer_limit(None);
        Self {
            server: Server::new(),
            client,
            wire: Vec::new(),
            written: Vec::new(),
            is_damaged: false,
            client_failed: false,
        }
    }

    fn run(&mut self, script: &mut Script<'_>) {
        loop {
            self.step(script);
            if script.is_empty() {
                break;
            }
        }
        self.deliver(usize::MAX);
        self.talk(b"end");
        let plaintext = &self.server.plaintext;
        assert!(self.written.starts_with(plaintext), "plaintext that the client did not write");
        if !self.is_damaged && !self.server.is_ended && !self.client_failed {
            for _ in 0..4 {
                self.deliver(usize::MAX);
                self.talk(&[]);
            }
            assert!(!self.server.transport.is_handshaking(), "an undamaged handshake ends");
            assert_eq!(self.server.plaintext, self.written);
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 16 {
            0 | 1 => {
                self.deliver(usize::MAX);
                self.talk(&[]);
            }
            2 => self.deliver(usize::from(script.u16())),
            3 | 4 => {
                let text = script.bytes();
                if self.client_failed {
                    return;
                }
                self.client.writer().write_all(text).expect("the buffer has no limit");
                self.written.extend_from_slice(text);
            }
            5 => self.talk(script.bytes()),
            6 => drop(self.client.refresh_traffic_keys()),
            7 => {
                // Nothing is read behind it: rustls asserts that no alert follows its last one.
                self.client.send_close_notify();
                self.client_failed = true;
            }
            8 => drop(self.server.close(script.bytes())),
            _ => self.damage(script),
        }
    }

    /// The client's bytes arrive, up to `count` of them.
    fn deliver(&mut self, count: usize) {
        while self.client.wants_write() {
            self.client.write_tls(&mut self.wire).expect("a vector grows");
        }
        let count = count.min(self.wire.len());
        let data: Vec<u8> = self.wire.drain(..count).collect();
        self.server.receive(&data);
    }

    /// The server speaks, and the client hears it.
    fn talk(&mut self, plaintext: &[u8]) {
        let ciphertext = self.server.say(plaintext);
        let had_failed = self.client_failed;
        let mut rest = &ciphertext[..];
        while !rest.is_empty() && !self.client_failed {
            let read = self.client.read_tls(&mut rest);
            let processed = self.client.process_new_packets();
            self.client_failed = !matches!((read, processed), (Ok(1..), Ok(_)));
            let mut heard = [0; 512];
            while matches!(self.client.reader().read(&mut heard), Ok(1..)) {}
        }
        assert!(
            self.client_failed == had_failed || self.is_damaged || self.server.is_ended,
            "both are ours"
        );
    }

    fn damage(&mut self, script: &mut Script<'_>) {
        self.deliver(0);
        let (kind, at) = (script.byte(), usize::from(script.u16()));
        let Some(at) = at.checked_rem(self.wire.len()) else { return };
        let end = (at + usize::from(script.byte()).max(1)).min(self.wire.len());
        self.is_damaged = true;
        match kind % 8 {
            0 | 1 => self.wire[at] ^= script.byte().max(1),
            2 => self.wire[at] = script.byte(),
            3 => drop(self.wire.drain(at..end)),
            4 => {
                let again = self.wire[at..end].to_vec();
                self.wire.splice(at..at, again);
            }
            5 => drop(self.wire.splice(at..at, script.bytes().iter().copied())),
            6 => self.wire[at..].rotate_left(end - at),
            // A length of a record or a handshake message.
            _ => {
                let value = script.u16().to_be_bytes();
                let end = end.min(at + 2);
                self.wire[at..end].copy_from_slice(&value[..end - at]);
            }
        }
    }
}

fn client_config(kind: u8) -> Arc<ClientConfig> {
    let mut provider = aws_lc_rs::default_provider();
    let groups = [aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    provider.kx_groups = match kind & 3 {
        0 => vec![aws_lc_rs::kx_group::X25519MLKEM768],
        // The server prefers another one than the client offers a share for: a second ClientHello.
        1 => vec![aws_lc_rs::kx_group::SECP384R1, groups[0]],
        _ => groups.to_vec(),
    };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has suites of TLS 1.3")
        .with_root_certificates(Arc::clone(&ROOTS))
        .with_no_client_auth();
    config.alpn_protocols = match kind & 0x30 {
        0x10 => vec![b"h2".to_vec(), tls::ALPN.to_vec()],
        _ => vec![tls::ALPN.to_vec()],
    };
    config.resumption = Resumption::in_memory_sessions(2);
    config.max_fragment_size = (kind & 4 != 0).then_some(64);
    Arc::new(config)
}

static ACCEPTOR: LazyLock<Acceptor> = LazyLock::new(|| {
    let key = PrivateKeyDer::from_pem_slice(KEY).expect("a private key");
    let config = tls::ServerConfig::new(vec![certificate(CERTIFICATE)], key);
    Acceptor::Tls(config.expect("the key is the certificate's"))
});

static ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    roots.add(certificate(AUTHORITY)).expect("a certificate");
    Arc::new(roots)
});

fn certificate(pem: &[u8]) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem).expect("a certificate")
}

/// Anybody can read them: they protect nothing. Valid for a hundred years.
const AUTHORITY: &[u8] = include_bytes!("../tls/ca.pem");
const CERTIFICATE: &[u8] = include_bytes!("../tls/cert.pem");
const KEY: &[u8] = include_bytes!("../tls/key.pem");

/// What may have waited inside for the rest of its record.
const RECORD_BYTES_MAX: usize = 16 * 1024 + 256;

/// First flights of clients with different key exchanges, and scripts of whole connections.
pub fn seeds() -> Vec<Seed> {
    let hello = |kind| {
        let mut pair = Pair::new(&client_config(kind));
        pair.client.write_tls(&mut pair.wire).expect("a vector grows");
        [&[b'F', 255], &pair.wire[..]].concat()
    };
    let data: &[u8] = &[0, 0, 3, 5, 0, 1, 2, 3, 4, 5, 0, 5, 3, 0, 7, 7, 7];
    let script = |kind: u8, steps: &[&[u8]]| [&[kind], &steps.concat()[..]].concat();
    vec![
        ("hello-hybrid", hello(0)),
        ("hello-retry", hello(1)),
        ("hello-plain", hello(2)),
        ("hello-fragments", hello(4)),
        ("hello-other-protocol", hello(0x10)),
        ("data", script(2, &[data, data])),
        ("data-hybrid", script(0, &[data])),
        ("retry", script(1, &[data])),
        ("resumed", script(10, &[data])),
        ("fragments", script(6, &[&[2, 100, 0], &[2, 20, 0], data])),
        ("key-update", script(2, &[&[0, 0, 6], data, &[6], data])),
        ("close-notify", script(2, &[data, &[7], data])),
        ("close", script(2, &[data, &[8, 3, 0, 1, 2, 3], data])),
        ("flip", script(2, &[&[0, 0, 3, 2, 0, 1, 1, 9, 0, 7, 0, 1, 1], data])),
        ("repeat", script(2, &[&[0, 0, 3, 2, 0, 1, 1, 9, 4, 0, 0, 200], data])),
        ("hello-flip", script(2, &[&[9, 0, 60, 0, 1, 1], data])),
    ]
}
