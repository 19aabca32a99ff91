//! The server in miniature on a TLS socket.

use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use ringpost_client::protocol::id::SendSeq;
use ringpost_client::protocol::message::{ErrorCode, GoAwayReason, put_error, put_go_away};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

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
    pub(crate) address: String,
    pub(crate) roots_pem: Vec<u8>,
    pub(crate) state: Arc<Mutex<FakeServer>>,
    pub(crate) orders: watch::Sender<Order>,
}

impl Gateway {
    pub(crate) async fn start(alpn: &[u8]) -> Self {
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
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (orders, order) = watch::channel(Order::Serve);
        let gateway = Self {
            address: listener.local_addr().unwrap().to_string(),
            roots_pem: issuer.pem().into_bytes(),
            state: Arc::new(Mutex::new(FakeServer::new())),
            orders,
        };
        let (acceptor, state) = (TlsAcceptor::from(Arc::new(config)), gateway.state.clone());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, state, order) = (acceptor.clone(), state.clone(), order.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(tcp).await {
                        serve(stream, state, order).await;
                    }
                });
            }
        });
        gateway
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
}

async fn serve(
    mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    state: Arc<Mutex<FakeServer>>,
    mut order: watch::Receiver<Order>,
) {
    let mut conn = ServerConn::new();
    let mut data = [0; 4096];
    order.mark_unchanged();
    loop {
        let mut out = Vec::new();
        let now = *order.borrow();
        tokio::select! {
            read = stream.read(&mut data) => {
                let Ok(count @ 1..) = read else { return };
                if let Order::Refuse(code) = now {
                    put_error(&mut out, code, "refused", true, 0);
                } else {
                    let mut state = state.lock().unwrap();
                    state.handle(&mut conn, &data[..count], &mut out).unwrap();
                }
            }
            _ = order.changed() => match *order.borrow() {
                Order::Serve => state.lock().unwrap().deliver(&mut conn, &mut out),
                Order::Drop => return,
                Order::Refuse(code) => put_error(&mut out, code, "refused", true, 0),
                Order::GoAway(wait_ms) => put_go_away(&mut out, GoAwayReason::Drain, wait_ms, None),
            }
        }
        if stream.write_all(&out).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        if matches!(*order.borrow(), Order::Refuse(_) | Order::GoAway(_)) {
            let _ = stream.shutdown().await;
            return;
        }
    }
}
