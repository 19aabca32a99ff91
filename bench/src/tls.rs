//! The gateway's transport against a rustls client, in memory.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use ringpost_engine::transport::{Acceptor, Transport, tls};
use ringpost_loadgen::tokens;
use rustls::client::Resumption;
use rustls::crypto::{SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};

/// A server certificate (P-256) and the authority that clients trust.
pub struct Endpoints {
    acceptor: Acceptor,
    roots: Arc<RootCertStore>,
}

/// Key exchange of a client that offers no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyExchange {
    X25519,
    X25519MlKem768,
}

/// Two ends of one connection after their handshake.
pub struct Pair {
    pub server: Transport,
    pub client: ClientConnection,
    /// Time spent in the server's calls, until its last flight is sealed.
    pub server_time: Duration,
}

impl KeyExchange {
    pub const ALL: [Self; 2] = [Self::X25519, Self::X25519MlKem768];

    pub fn name(self) -> &'static str {
        match self {
            Self::X25519 => "x25519",
            Self::X25519MlKem768 => "x25519mlkem768",
        }
    }

    fn group(self) -> &'static dyn SupportedKxGroup {
        match self {
            Self::X25519 => aws_lc_rs::kx_group::X25519,
            Self::X25519MlKem768 => aws_lc_rs::kx_group::X25519MLKEM768,
        }
    }
}

impl Endpoints {
    /// Makes keys and certificates, as the load generator does for its own gateway.
    pub fn new() -> Result<Self, Box<dyn Error>> {
        let directory = tempfile::tempdir()?;
        let data = directory.path();
        tokens::write_credentials(data)?;
        let certificates = CertificateDer::pem_file_iter(data.join("cert.pem"))?;
        let certificates = certificates.collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_file(data.join("key.pem"))?;
        let acceptor = Acceptor::Tls(tls::ServerConfig::new(certificates, key)?);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(data.join("ca.pem"))?)?;
        Ok(Self { acceptor, roots: Arc::new(roots) })
    }

    /// A client configuration; with `resumption`, connections made with it resume each other.
    pub fn client(&self, exchange: KeyExchange, resumption: bool) -> Arc<ClientConfig> {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![exchange.group()];
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = vec![tls::ALPN.to_vec()];
        config.resumption =
            if resumption { Resumption::in_memory_sessions(4) } else { Resumption::disabled() };
        Arc::new(config)
    }

    /// One whole handshake, and the ticket behind it.
    ///
    /// # Panics
    /// When the handshake is of another kind than `expected`: the figure would be a lie.
    pub fn handshake(&self, client: &Arc<ClientConfig>, expected: HandshakeKind) -> Pair {
        let name = ServerName::try_from("localhost").expect("a DNS name");
        let mut client = ClientConnection::new(Arc::clone(client), name).expect("a valid name");
        client.set_buffer_limit(None);
        let started = Instant::now();
        let mut server = self.acceptor.accept().expect("the configuration is valid");
        let mut server_time = started.elapsed();
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        let mut plaintext = BytesMut::new();
        while client.is_handshaking() || server.is_handshaking() || client.wants_write() {
            to_server.clear();
            write_tls(&mut client, &mut to_server);
            to_client.clear();
            let started = Instant::now();
            server.handle_ciphertext(&to_server, &mut plaintext).expect("both ends are ours");
            server.seal(&[], &mut to_client);
            server_time += started.elapsed();
            read_tls(&mut client, &to_client);
        }
        assert_eq!(client.handshake_kind(), Some(expected), "kind of handshake");
        Pair { server, client, server_time }
    }
}

/// What the client sends when it says `plaintext`.
pub fn client_seal(client: &mut ClientConnection, plaintext: &[u8]) -> Vec<u8> {
    client.writer().write_all(plaintext).expect("the buffer has no limit");
    let mut ciphertext = Vec::with_capacity(plaintext.len() + RECORD_OVERHEAD_BYTES);
    write_tls(client, &mut ciphertext);
    ciphertext
}

fn write_tls(client: &mut ClientConnection, ciphertext: &mut Vec<u8>) {
    while client.wants_write() {
        client.write_tls(ciphertext).expect("a vector grows");
    }
}

fn read_tls(client: &mut ClientConnection, mut ciphertext: &[u8]) {
    while !ciphertext.is_empty() {
        client.read_tls(&mut ciphertext).expect("a slice does not fail");
        client.process_new_packets().expect("both ends are ours");
    }
}

/// Header, content type and tag of a record of TLS 1.3.
const RECORD_OVERHEAD_BYTES: usize = 22;
