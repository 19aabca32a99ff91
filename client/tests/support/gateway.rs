//! The server in miniature on real sockets: TLS over TCP and QUIC, on one port number.

use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ringpost_client::ledger::LedgerConfig;
use ringpost_client::protocol::id::{DeviceId, SendSeq};
use ringpost_client::protocol::message::{ErrorCode, GoAwayReason, Mode, put_error, put_go_away};
use ringpost_client::reconnect::ReconnectConfig;
use ringpost_client::{ClientConfig, PathConfig};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::support::udp_relay::UdpRelay;
use crate::support::{Entry, FakeServer, ServerConn, device};

/// What the server does beside serving.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Order {
    Serve,
    Drop,
    Refuse(ErrorCode),
    GoAway(u64),
}

pub(crate) struct Gateway {
    /// Of both transports; QUIC passes through the relay.
    pub(crate) address: String,
    pub(crate) roots_pem: Vec<u8>,
    pub(crate) state: Arc<Mutex<FakeServer>>,
    pub(crate) orders: watch::Sender<Order>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) udp: UdpRelay,
    tcp: JoinHandle<()>,
}

/// Since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) tls_handshakes: AtomicU64,
    pub(crate) quic_handshakes: AtomicU64,
    /// Of both, those that a ticket shortened.
    pub(crate) resumed: AtomicU64,
    /// Connections that brought data before the end of their handshake.
    pub(crate) early: AtomicU64,
}

/// What the tasks of the connections share.
#[derive(Clone)]
struct Service {
    state: Arc<Mutex<FakeServer>>,
    order: watch::Receiver<Order>,
    /// The connection with the newest Hello.
    owner: watch::Sender<u64>,
    counts: Arc<Counts>,
}

impl Gateway {
    pub(crate) async fn start(alpn: &[u8]) -> Self {
        let counts = Arc::new(Counts::default());
        let (roots_pem, config) = tls_config(alpn, &counts);
        let (orders, order) = watch::channel(Order::Serve);
        let service = Service {
            state: Arc::new(Mutex::new(FakeServer::new())),
            order,
            owner: watch::Sender::new(0),
            counts: Arc::clone(&counts),
        };

        let mut quic = config.clone();
        quic.max_early_data_size = u32::MAX;
        let quic = QuicServerConfig::try_from(quic).unwrap();
        let mut quic = quinn::ServerConfig::with_crypto(Arc::new(quic));
        let mut transport = quinn::TransportConfig::default();
        transport.max_concurrent_bidi_streams(1_u8.into()).max_concurrent_uni_streams(0_u8.into());
        quic.transport_config(Arc::new(transport));
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = quinn::Endpoint::server(quic, any).unwrap();
        let server = endpoint.local_addr().unwrap();
        tokio::spawn(service.clone().accept_quic(endpoint));

        let (listener, udp) = one_port(server);
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let tcp = tokio::spawn(service.clone().accept_tls(listener, acceptor));
        let address = udp.address().to_string();
        Self { address, roots_pem, state: service.state, orders, counts, udp, tcp }
    }

    /// Of a client that comes back at once. Every connection counts as stable, so that many cuts do
    /// not add up to long waits.
    pub(crate) fn client_config(&self, store: &Path, path: PathConfig) -> ClientConfig {
        ClientConfig {
            addresses: vec![self.address.clone()],
            server_name: "127.0.0.1".into(),
            roots_pem: self.roots_pem.clone(),
            database_path: store.join("client.redb"),
            token_source: Arc::new(|| std::future::ready(Ok("token".to_owned()))),
            device: DeviceId::new("d").unwrap(),
            mode: Mode::Foreground,
            path,
            reconnect: ReconnectConfig { first_ms: 20, ceiling_ms: 200, stable_ms: 0 },
            ledger: LedgerConfig::default(),
        }
    }

    pub(crate) fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
    }

    pub(crate) fn push(&self, send_seq: u64, text: &str) {
        let send_seq = SendSeq(send_seq);
        let entry = Entry::Message { from: device("bob"), send_seq, text: text.into() };
        self.state.lock().unwrap().push(entry);
        // Wakes the connection.
        self.order(Order::Serve);
    }

    /// Nobody listens on TCP any more.
    pub(crate) fn close_tcp(&self) {
        self.tcp.abort();
    }

    pub(crate) fn hellos(&self) -> usize {
        self.state.lock().unwrap().hellos.len()
    }
}

impl Service {
    async fn accept_tls(self, listener: TcpListener, acceptor: TlsAcceptor) {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, service) = (acceptor.clone(), self.clone());
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(tcp).await {
                    service.serve_tls(stream).await;
                }
            });
        }
    }

    async fn serve_tls(self, mut stream: tokio_rustls::server::TlsStream<TcpStream>) {
        self.counts.tls_handshakes.fetch_add(1, Ordering::Relaxed);
        let is_early = stream.get_mut().1.early_data().is_some();
        self.counts.early.fetch_add(is_early.into(), Ordering::Relaxed);
        self.serve(&mut stream).await;
    }

    async fn accept_quic(self, endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let service = self.clone();
            tokio::spawn(async move {
                // Early data is accepted here, so that it would be seen.
                let Ok(connecting) = incoming.accept() else { return };
                let Ok((connection, _)) = connecting.into_0rtt() else { return };
                service.serve_quic(connection).await;
            });
        }
    }

    async fn serve_quic(self, connection: quinn::Connection) {
        let Ok((send, receive)) = connection.accept_bi().await else { return };
        self.counts.quic_handshakes.fetch_add(1, Ordering::Relaxed);
        self.counts.early.fetch_add(receive.is_0rtt().into(), Ordering::Relaxed);
        let is_told = self.serve(&mut tokio::io::join(receive, send)).await;
        if is_told {
            // What was written is lost if the connection ends before it arrived.
            let _ = timeout(Duration::from_secs(5), connection.closed()).await;
        }
    }

    /// True: the client was told why it ends.
    async fn serve(mut self, stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> bool {
        let mut conn = ServerConn::new();
        let mut data = [0; 4096];
        let (mut owner, mut number) = (self.owner.subscribe(), None);
        self.order.mark_unchanged();
        loop {
            let mut out = Vec::new();
            let now = *self.order.borrow();
            let mut is_told = false;
            tokio::select! {
                read = stream.read(&mut data) => {
                    let Ok(count @ 1..) = read else { return false };
                    if let Order::Refuse(code) = now {
                        put_error(&mut out, code, "refused", true, 0);
                    } else {
                        let mut state = self.state.lock().unwrap();
                        let hello_count = state.hellos.len();
                        state.handle(&mut conn, &data[..count], &mut out).unwrap();
                        if state.hellos.len() > hello_count {
                            number = Some(state.hellos.len() as u64);
                            self.owner.send_replace(state.hellos.len() as u64);
                            owner.mark_unchanged();
                        }
                    }
                }
                _ = owner.changed(), if number.is_some() => {
                    is_told = number.is_some_and(|number| number < *owner.borrow());
                    if is_told {
                        put_error(&mut out, ErrorCode::Replaced, "replaced", true, 0);
                    }
                }
                _ = self.order.changed() => match *self.order.borrow() {
                    Order::Serve => self.state.lock().unwrap().deliver(&mut conn, &mut out),
                    Order::Drop => return false,
                    Order::Refuse(code) => put_error(&mut out, code, "refused", true, 0),
                    Order::GoAway(wait_ms) => {
                        put_go_away(&mut out, GoAwayReason::Drain, wait_ms, None);
                    }
                }
            }
            if stream.write_all(&out).await.is_err() || stream.flush().await.is_err() {
                return false;
            }
            if is_told || matches!(*self.order.borrow(), Order::Refuse(_) | Order::GoAway(_)) {
                let _ = stream.shutdown().await;
                return true;
            }
        }
    }
}

/// A TCP port, and a relay to the QUIC server at the UDP port of the same number.
fn one_port(server: SocketAddr) -> (TcpListener, UdpRelay) {
    loop {
        let listener = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        // Another process may have it.
        if let Ok(relay) = UdpRelay::start_at(address, server) {
            listener.set_nonblocking(true).unwrap();
            return (TcpListener::from_std(listener).unwrap(), relay);
        }
    }
}

fn tls_config(alpn: &[u8], counts: &Arc<Counts>) -> (Vec<u8>, ServerConfig) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.max_early_data_size = 16 * 1024;
    let cache = ServerSessionMemoryCache::new(1_024);
    config.session_storage = Arc::new(CountingStore { cache, counts: Arc::clone(counts) });
    (issuer.pem().into_bytes(), config)
}

/// Counts the tickets that came back.
#[derive(Debug)]
struct CountingStore {
    cache: Arc<ServerSessionMemoryCache>,
    counts: Arc<Counts>,
}

impl StoresServerSessions for CountingStore {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.cache.put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.cache.get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        let found = self.cache.take(key);
        self.counts.resumed.fetch_add(found.is_some().into(), Ordering::Relaxed);
        found
    }

    fn can_cache(&self) -> bool {
        true
    }
}
