//! QUIC in front of the small server: each stream is piped to a TLS connection of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use ringpost_loadgen::tokens::tls_config;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Serves on the UDP port of the same number until the process ends. `migration`: whether clients may
/// change their address.
pub(crate) fn start(data: &Path, server: SocketAddr, migration: bool) {
    let certificates = CertificateDer::pem_file_iter(data.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(data.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates.collect::<Result<_, _>>().unwrap(), key)
        .unwrap();
    config.alpn_protocols = vec![b"ringpost/1".to_vec()];
    let mut quic =
        quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config).unwrap()));
    quic.migration(migration);
    let connector = TlsConnector::from(tls_config(data).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    thread::spawn(move || {
        runtime.block_on(async move {
            let endpoint = quinn::Endpoint::server(quic, server).unwrap();
            while let Some(incoming) = endpoint.accept().await {
                tokio::spawn(pipe(incoming, connector.clone(), server));
            }
        });
    });
}

async fn pipe(incoming: quinn::Incoming, connector: TlsConnector, server: SocketAddr) {
    let Ok(connection) = incoming.await else { return };
    let Ok((send, receive)) = connection.accept_bi().await else { return };
    let tcp = TcpStream::connect(server).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut tls = connector.connect(name, tcp).await.unwrap();
    let mut stream = tokio::io::join(receive, send);
    // Any error is the end of the connection.
    let _ = copy_bidirectional(&mut stream, &mut tls).await;
    drop(tls);
    let _ = tokio::io::AsyncWriteExt::shutdown(&mut stream).await;
    let _ = timeout(Duration::from_millis(500), connection.closed()).await;
}
