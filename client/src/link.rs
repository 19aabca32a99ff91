//! One connection: TCP, TLS, and [`ClientSession`] on it. Knows nothing of what is durable.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use ringpost_protocol::fault::ServerFault;
use ringpost_protocol::session::ClientSession;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

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

/// Why a connection was not made, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkFault {
    #[error("network: {0}")]
    Io(#[from] io::Error),
    #[error("the server does not speak ringpost/1")]
    Alpn,
    #[error("the server closed the connection")]
    Closed,
    #[error("server fault: {0}")]
    Server(#[from] ServerFault),
}

/// How to reach the server.
#[derive(Clone)]
pub(crate) struct Tls {
    connector: TlsConnector,
    server_name: ServerName<'static>,
}

pub(crate) struct Link {
    stream: Box<TlsStream<TcpStream>>,
    pub(crate) session: ClientSession,
    inbound: BytesMut,
    outbound: Vec<u8>,
    /// TLS may hold records that the socket has not taken.
    is_flushed: bool,
    scratch: Box<[u8; READ_BYTES]>,
}

impl Tls {
    pub(crate) fn new(roots_pem: &[u8], server_name: &str) -> Result<Self, TlsFault> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(roots_pem) {
            roots.add(certificate?)?;
        }
        if roots.is_empty() {
            return Err(TlsFault::NoRoot);
        }
        // The provider's own order prefers X25519MLKEM768; session tickets are on by default.
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let server_name = ServerName::try_from(server_name)?.to_owned();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server_name })
    }

    /// Tries the addresses that the name resolves to, in the resolver's order.
    pub(crate) async fn connect(&self, address: &str) -> Result<TlsStream<TcpStream>, LinkFault> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let stream = self.connector.connect(self.server_name.clone(), tcp).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(LinkFault::Alpn);
        }
        Ok(stream)
    }
}

impl Link {
    pub(crate) fn new(stream: Box<TlsStream<TcpStream>>, session: ClientSession) -> Self {
        Self {
            stream,
            session,
            inbound: BytesMut::new(),
            outbound: Vec::new(),
            is_flushed: true,
            scratch: Box::new([0; READ_BYTES]),
        }
    }

    /// Moves bytes until some have come in, which the session has then, or all that was queued is
    /// written. Cancelling loses nothing.
    pub(crate) async fn drive(&mut self, now_ms: impl Fn() -> u64) -> Result<(), LinkFault> {
        poll_fn(|cx| -> Poll<Result<(), LinkFault>> {
            let is_writing = !self.outbound.is_empty();
            self.poll_write(cx)?;
            if is_writing && self.outbound.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.poll_read(cx)
        })
        .await?;
        self.session.handle_data(now_ms(), &mut self.inbound)?;
        Ok(())
    }

    /// Writes what is queued; for the end of a connection.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| -> Poll<io::Result<()>> {
            self.poll_write(cx)?;
            let is_done = self.outbound.is_empty() && self.is_flushed;
            if is_done { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    /// Takes from the session what it has to say. Gives the bytes that wait for the socket.
    pub(crate) fn collect(&mut self, now_ms: u64) -> usize {
        while self.session.poll_transmit(now_ms, &mut self.outbound) {}
        self.outbound.len()
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut written_bytes = 0;
        while written_bytes < self.outbound.len() {
            let rest = &self.outbound[written_bytes..];
            match Pin::new(&mut *self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(bytes)) => written_bytes += bytes,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
            self.is_flushed = false;
        }
        self.outbound.drain(..written_bytes);
        if !self.is_flushed && Pin::new(&mut *self.stream).poll_flush(cx)?.is_ready() {
            self.is_flushed = true;
        }
        Ok(())
    }

    /// Ready once something came in.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkFault>> {
        let mut buffer = ReadBuf::new(&mut self.scratch[..]);
        match Pin::new(&mut *self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Poll::Ready(Err(LinkFault::Closed))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                Poll::Ready(Err(LinkFault::Closed))
            }
            Poll::Ready(Ok(())) => {
                self.inbound.extend_from_slice(buffer.filled());
                Poll::Ready(Ok(()))
            }
        }
    }
}

const ALPN: &[u8] = b"ringpost/1";
/// As much as one TLS record holds.
const READ_BYTES: usize = 16 * 1024;
