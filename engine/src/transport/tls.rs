//! Where rustls is known, and nowhere else; `tls/quic` has what QUIC needs of it.
//!
//! TLS 1.3 alone, with a post-quantum hybrid key exchange preferred (X25519MLKEM768), the ALPN
//! protocol required, and one stateless ticketer shared by all shards, so that a session resumes on
//! whichever shard accepts it. No early data: Hello is never accepted before the handshake is done.

mod packet_keys;
mod quic;
mod tickets;

use std::io::{BufRead, Write};
use std::sync::Arc;

use bytes::BytesMut;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CipherSuite, ServerConnection};

use super::{Peer, TransportFault};
use tickets::Tickets;

/// The application protocol that a client must offer (RFC 7301).
pub const ALPN: &[u8] = b"ringpost/1";

/// Everything the handshakes of all shards share.
#[derive(Clone)]
pub struct ServerConfig(Arc<rustls::ServerConfig>, Arc<CertifiedKey>);

/// Why a certificate and key do not make a server.
#[derive(Debug, thiserror::Error)]
#[error("TLS configuration: {0}")]
pub struct ConfigFault(#[from] rustls::Error);

impl ConfigFault {
    /// What to do about it.
    pub fn fix(&self) -> &'static str {
        "TLS 1.3 needs an ECDSA, Ed25519 or RSA certificate and its key"
    }
}

/// The server's side of one TLS connection.
pub struct Tls {
    connection: ServerConnection,
}

impl ServerConfig {
    pub fn new(
        certificates: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, ConfigFault> {
        let provider = Arc::new(provider());
        let key = Arc::new(CertifiedKey::from_der(certificates, key, &provider)?);
        let resolver = Arc::new(RequireAlpn(Arc::clone(&key)));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        config.send_tls13_tickets = 1;
        // The order of `provider`, not that of whoever asks: many clients put AES-256 first.
        config.ignore_client_order = true;
        config.max_early_data_size = 0;
        Ok(Self(Arc::new(config), key))
    }

    /// The same with tickets that outlive the process, as `secret` does. Otherwise they are good in
    /// this one alone.
    #[must_use]
    pub fn with_tickets_of(&self, secret: &[u8]) -> Self {
        let mut config = rustls::ServerConfig::clone(&self.0);
        config.ticketer = Arc::new(Tickets::from_secret(secret));
        Self(Arc::new(config), Arc::clone(&self.1))
    }

    /// The same with another certificate. Tickets that were given out go on.
    pub fn with_certificate(
        &self,
        certificates: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, ConfigFault> {
        let mut config = rustls::ServerConfig::clone(&self.0);
        let key = Arc::new(CertifiedKey::from_der(certificates, key, config.crypto_provider())?);
        config.cert_resolver = Arc::new(RequireAlpn(Arc::clone(&key)));
        Ok(Self(Arc::new(config), key))
    }
}

impl ServerConfig {
    /// The same handshakes under QUIC: a session that began over TCP resumes there and the other
    /// way round. rustls accepts no early data with a ticketer; zero bytes of it are allowed too.
    pub(super) fn for_quic(&self) -> Arc<dyn quinn_proto::crypto::ServerConfig> {
        Arc::new(quic::Handshakes::new(Arc::clone(&self.0)))
    }

    /// The same certificate for HTTP/1.1, for whoever asks for no other protocol. No tickets: none of
    /// them opens a session of the other kind.
    pub(super) fn for_https(&self) -> Arc<rustls::ServerConfig> {
        let mut config = rustls::ServerConfig::clone(&self.0);
        config.cert_resolver = Arc::new(SingleCertAndKey::from(CertifiedKey::clone(&self.1)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.send_tls13_tickets = 0;
        config.ticketer = Arc::new(NoTickets);
        Arc::new(config)
    }

    /// One that is otherwise than ours, to test against.
    #[cfg(test)]
    pub(super) fn changed(&self, change: impl FnOnce(&mut rustls::ServerConfig)) -> Self {
        let mut config = rustls::ServerConfig::clone(&self.0);
        change(&mut config);
        Self(Arc::new(config), Arc::clone(&self.1))
    }
}

/// AES-128-GCM with SHA-256 first: its key schedule is the cheapest of the three suites of TLS 1.3
/// and every phone built for a decade has the instructions.
fn provider() -> rustls::crypto::CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    for suite in &mut provider.cipher_suites {
        *suite = packet_keys::with_small_keys(*suite);
    }
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// Gives none and takes none.
#[derive(Debug)]
pub(super) struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

/// rustls refuses a client that offers only other protocols; this also refuses one that offers
/// none, before any signature is made.
#[derive(Debug)]
struct RequireAlpn(Arc<CertifiedKey>);

impl ResolvesServerCert for RequireAlpn {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut offered = client_hello.alpn()?;
        offered.any(|protocol| protocol == ALPN).then(|| Arc::clone(&self.0))
    }
}

impl Tls {
    pub(super) fn accept(config: &ServerConfig) -> Result<Self, TransportFault> {
        let mut connection = ServerConnection::new(Arc::clone(&config.0)).map_err(fault)?;
        // Bounded by the caller: at most OUTBOUND_BYTES_MAX and one frame are sealed at a time.
        connection.set_buffer_limit(None);
        Ok(Self { connection })
    }

    pub(super) fn handle_ciphertext(
        &mut self,
        mut data: &[u8],
        plaintext: &mut BytesMut,
    ) -> Result<Peer, TransportFault> {
        while !data.is_empty() {
            let taken = self.connection.read_tls(&mut data).map_err(|error| {
                TransportFault(format!("TLS buffer: {error}")) // a record longer than allowed
            })?;
            let state = self.connection.process_new_packets().map_err(fault)?;
            if state.plaintext_bytes_to_read() > 0 {
                self.take_plaintext(plaintext);
            }
            if state.peer_has_closed() {
                return Ok(Peer::Closed);
            }
            assert!(taken > 0, "rustls takes input while the peer has not closed");
        }
        Ok(Peer::Open)
    }

    fn take_plaintext(&mut self, plaintext: &mut BytesMut) {
        let mut reader = self.connection.reader();
        while let Ok(chunk) = reader.fill_buf() {
            if chunk.is_empty() {
                break;
            }
            plaintext.extend_from_slice(chunk);
            let length = chunk.len();
            reader.consume(length);
        }
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    pub(super) fn seal(&mut self, plaintext: &[u8], ciphertext: &mut Vec<u8>) {
        self.write(plaintext);
        while self.connection.wants_write() {
            let written = self.connection.write_tls(ciphertext);
            assert!(written.is_ok(), "writing into memory");
        }
    }

    pub(super) fn wants_seal(&self) -> bool {
        self.connection.wants_write()
    }

    pub(super) fn close(&mut self, last: &mut Vec<u8>) {
        self.write(last);
        last.clear();
        self.connection.send_close_notify();
    }

    fn write(&mut self, plaintext: &[u8]) {
        if plaintext.is_empty() {
            return;
        }
        match self.connection.writer().write(plaintext) {
            Ok(length) => assert!(
                length == plaintext.len(),
                "the writer of a connection without a buffer limit takes everything"
            ),
            // The peer broke the protocol: of what waited for it nothing goes out behind the alert.
            Err(error) => tracing::debug!(%error, "dropped what was to be sent"),
        }
    }
}

/// Length of one flush as TLS 1.3 records (RFC 8446, section 5.2): each has a header, a type and
/// a tag.
pub(super) fn sealed_bytes(plaintext_bytes: usize) -> usize {
    plaintext_bytes + plaintext_bytes.div_ceil(RECORD_BYTES_MAX) * (5 + 1 + 16)
}

/// Plaintext of one record.
const RECORD_BYTES_MAX: usize = 1 << 14;

fn fault(error: rustls::Error) -> TransportFault {
    TransportFault(error.to_string())
}

/// Of a client that trusts `certificate` alone.
#[cfg(test)]
pub(super) fn test_client_config(
    certificate: &CertificateDer<'static>,
    alpn: &[u8],
) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_a_peer_that_breaks_the_protocol_is_dropped() {
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let certificate = key.cert.der().clone();
        let private = PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
        let config = ServerConfig::new(vec![certificate], private).unwrap();
        let mut tls = Tls::accept(&config).unwrap();
        assert!(tls.handle_ciphertext(&[0x80; 64], &mut BytesMut::new()).is_err());
        let mut last = b"an answer that could not go out earlier".to_vec();
        tls.close(&mut last);
        assert!(last.is_empty());
        let mut ciphertext = Vec::new();
        tls.seal(b"and one that comes later", &mut ciphertext);
        // One alert record, in clear: type 21, two bytes.
        assert_eq!((ciphertext[0], ciphertext.len()), (21, 7));
    }
}
