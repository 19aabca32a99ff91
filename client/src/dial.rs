//! From an address to an encrypted stream: name lookup, and the race of the transports.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig};
use quinn::{ConnectError, ConnectionError, Endpoint, EndpointConfig, TokioRuntime};
use quinn::{IdleTimeout, TransportConfig, VarInt};
use ringpost_protocol::limits::{QUIC_CLIENT_WINDOW_BYTES, QUIC_IDLE_MS};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsConnector;

use crate::link::LinkFault;
use crate::path::Order;
use crate::race::{Attempt, Race};
use crate::stream::{QuicStream, Stream, unbound};

/// Why the TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFault {
    #[error("the roots are not PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the roots hold no certificate")]
    NoRoot,
    #[error("a root, or the TLS settings, cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the server name is not valid: {0}")]
    Name(#[from] InvalidDnsNameError),
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialFault {
    #[error("network: {0}")]
    Io(#[from] io::Error),
    #[error("the name has no address")]
    NoAddress,
    #[error("QUIC: {0}")]
    QuicStart(#[from] ConnectError),
    #[error("QUIC: {0}")]
    Quic(#[from] ConnectionError),
    #[error("the server does not speak ringpost/1")]
    Alpn,
}

/// How to reach the server. Keeps the session tickets of earlier connections.
#[derive(Clone)]
pub(crate) struct Dialler {
    tls: TlsConnector,
    quic: quinn::ClientConfig,
    server_name: ServerName<'static>,
}

impl Dialler {
    pub(crate) fn new(roots_pem: &[u8], server_name: &str) -> Result<Self, TlsFault> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(roots_pem) {
            roots.add(certificate?)?;
        }
        if roots.is_empty() {
            return Err(TlsFault::NoRoot);
        }
        // The provider's own order prefers X25519MLKEM768. Early data stays off, as it is by default.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A ticket of one transport is of no use to the other.
        let mut quic = config.clone();
        quic.resumption = Resumption::in_memory_sessions(TICKET_SERVERS_MAX);
        let quic = QuicClientConfig::try_from(quic).expect("the provider has AES-128-GCM");
        let mut quic = quinn::ClientConfig::new(Arc::new(quic));
        quic.transport_config(Arc::new(transport_config()));
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            quic,
            server_name: ServerName::try_from(server_name)?.to_owned(),
        })
    }

    /// Lets the transports race to `host:port`; the losers are dropped before they say anything.
    pub(crate) async fn race(
        &self,
        address: &str,
        order: Order,
        stagger_ms: u64,
    ) -> Result<Stream, LinkFault> {
        let addresses: Vec<SocketAddr> =
            lookup_host(address).await.map_err(DialFault::from)?.collect();
        if addresses.is_empty() {
            return Err(DialFault::NoAddress.into());
        }
        let mut race = Race::new(order, stagger_ms, &addresses);
        let addresses: Arc<[SocketAddr]> = addresses.into();
        let started = Instant::now();
        let mut attempts = JoinSet::new();
        let mut fault = None;
        while !race.is_over() {
            let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            while let Some(attempt) = race.poll_start(now_ms) {
                attempts.spawn(self.clone().attempt(attempt, Arc::clone(&addresses)));
            }
            let next_ms = race.poll_timeout();
            tokio::select! {
                Some(result) = attempts.join_next() => {
                    match result.expect("an attempt does not panic and is not aborted") {
                        Ok(stream) => return Ok(stream),
                        Err(failed) => {
                            race.handle_failure();
                            fault.get_or_insert(failed);
                        }
                    }
                }
                () = sleep_until(started + Duration::from_millis(next_ms.unwrap_or(0))),
                    if next_ms.is_some() => {}
            }
        }
        Err(fault.expect("a race has an attempt, and each has failed").into())
    }

    async fn attempt(
        self,
        attempt: Attempt,
        addresses: Arc<[SocketAddr]>,
    ) -> Result<Stream, DialFault> {
        let result = match attempt {
            Attempt::Tls => self.connect_tls(&addresses).await,
            Attempt::Quic(address) => self.connect_quic(address).await,
        };
        if let Err(fault) = &result {
            tracing::debug!(?attempt, %fault, "an attempt to connect failed");
        }
        result
    }

    async fn connect_tls(&self, addresses: &[SocketAddr]) -> Result<Stream, DialFault> {
        let tcp = TcpStream::connect(addresses).await?;
        tcp.set_nodelay(true)?;
        let stream = self.tls.connect(self.server_name.clone(), tcp).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(DialFault::Alpn);
        }
        Ok(Stream::Tls(Box::new(stream)))
    }

    async fn connect_quic(&self, address: SocketAddr) -> Result<Stream, DialFault> {
        let socket = unbound(address)?;
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime)?;
        let name = self.server_name.to_str();
        // Awaited to its end: nothing is sent as early data.
        let connection = endpoint.connect_with(self.quic.clone(), address, &name)?.await?;
        let handshake = connection.handshake_data().and_then(|data| data.downcast().ok());
        let protocol = handshake.and_then(|data: Box<HandshakeData>| data.protocol);
        if protocol.as_deref() != Some(ALPN) {
            return Err(DialFault::Alpn);
        }
        let (send, recv) = connection.open_bi().await?;
        Ok(Stream::Quic(Box::new(QuicStream { send, recv, endpoint })))
    }
}

/// One stream, which the client opens; the protocol's own pings keep the path alive.
fn transport_config() -> TransportConfig {
    let idle = Duration::from_millis(QUIC_IDLE_MS);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).expect("an hour is a legal time")))
        .stream_receive_window(VarInt::from_u32(QUIC_CLIENT_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(QUIC_CLIENT_WINDOW_BYTES))
        .datagram_receive_buffer_size(None)
        // The size that every path takes: what was found on one network may be too much for the next.
        .mtu_discovery_config(None);
    config
}

const ALPN: &[u8] = b"ringpost/1";
/// Servers whose tickets are kept: the configured one under its one name.
const TICKET_SERVERS_MAX: usize = 8;
