//! One connection: a stream, and [`ClientSession`] on it. Knows nothing of what is durable.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use ringpost_protocol::fault::ServerFault;
use ringpost_protocol::session::ClientSession;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::dial::DialFault;
use crate::path::Transport;
use crate::stream::Stream;

/// Why a connection was not made, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkFault {
    #[error(transparent)]
    Dial(#[from] DialFault),
    #[error("network: {0}")]
    Io(#[from] io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("server fault: {0}")]
    Server(#[from] ServerFault),
}

pub(crate) struct Link {
    stream: Stream,
    pub(crate) session: ClientSession,
    inbound: BytesMut,
    outbound: Vec<u8>,
    /// The stream may hold bytes that the socket has not taken.
    is_flushed: bool,
    scratch: Box<[u8; READ_BYTES]>,
}

impl Link {
    pub(crate) fn new(stream: Stream, session: ClientSession) -> Self {
        Self {
            stream,
            session,
            inbound: BytesMut::new(),
            outbound: Vec::new(),
            is_flushed: true,
            scratch: Box::new([0; READ_BYTES]),
        }
    }

    pub(crate) fn transport(&self) -> Transport {
        self.stream.transport()
    }

    /// The network has changed. True: the connection goes on from another address, and is gone if
    /// the server does not answer in time.
    pub(crate) fn rebind(&mut self, now_ms: u64, answer_ms_max: u64) -> io::Result<bool> {
        let is_moving = self.stream.rebind()?;
        if is_moving {
            self.session.probe(now_ms, answer_ms_max);
        }
        Ok(is_moving)
    }

    /// Moves bytes until some have come in, which the session has then, or all that was queued is
    /// written. Cancelling loses nothing.
    pub(crate) async fn drive(&mut self, now_ms: impl Fn() -> u64) -> Result<(), LinkFault> {
        let moved = poll_fn(|cx| -> Poll<Result<(), LinkFault>> {
            let is_writing = !self.outbound.is_empty();
            if let Err(error) = self.poll_write(cx) {
                // The server has stopped listening, and may have said why: what is here already has
                // to be heard, as it may forbid to come back.
                for _ in 0..LAST_READS_MAX {
                    if !matches!(self.poll_read(cx), Poll::Ready(Ok(()))) {
                        break;
                    }
                }
                return Poll::Ready(Err(error.into()));
            }
            if is_writing && self.outbound.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.poll_read(cx)
        })
        .await;
        self.session.handle_data(now_ms(), &mut self.inbound)?;
        moved
    }

    /// Writes what is queued and ends the stream.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        poll_fn(|cx| -> Poll<io::Result<()>> {
            self.poll_write(cx)?;
            let is_done = self.outbound.is_empty() && self.is_flushed;
            if is_done { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await?;
        self.stream.finish().await
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
            match Pin::new(&mut self.stream).poll_write(cx, rest) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(bytes)) => written_bytes += bytes,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
            self.is_flushed = false;
        }
        self.outbound.drain(..written_bytes);
        if !self.is_flushed && Pin::new(&mut self.stream).poll_flush(cx)?.is_ready() {
            self.is_flushed = true;
        }
        Ok(())
    }

    /// Ready once something came in.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkFault>> {
        let mut buffer = ReadBuf::new(&mut self.scratch[..]);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
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

/// As much as one TLS record holds.
const READ_BYTES: usize = 16 * 1024;
/// What a server says last is short; behind that, mail that comes again.
const LAST_READS_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use quinn::crypto::rustls::QuicServerConfig;
    use ringpost_protocol::id::{DeviceId, InstallId, MailboxId, Seq};
    use ringpost_protocol::message::{ClientEvent, ErrorCode, Mode, put_error};
    use ringpost_protocol::session::ClientHello;
    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::*;
    use crate::dial::Dialler;
    use crate::path::Order;

    fn server() -> (String, quinn::Endpoint) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)
            .unwrap();
        tls.alpn_protocols = vec![b"ringpost/1".to_vec()];
        let crypto = Arc::new(QuicServerConfig::try_from(tls).unwrap());
        let config = quinn::ServerConfig::with_crypto(crypto);
        let endpoint = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        (certificate.pem(), endpoint)
    }

    fn hello() -> ClientHello {
        ClientHello {
            token: "token".into(),
            device: DeviceId::new("phone").unwrap(),
            install_id: InstallId(1),
            mailbox_id: MailboxId(0),
            acked_up_to: Seq(0),
            mode: Mode::Foreground,
            capabilities: 0,
        }
    }

    /// The server says why it ends and stops listening; the client has something to write just then.
    #[tokio::test]
    async fn what_the_server_said_last_is_heard_when_writing_fails() {
        let (roots_pem, endpoint) = server();
        let address = endpoint.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            let (mut send, mut recv) = connection.accept_bi().await.unwrap();
            recv.read(&mut [0; 1_024]).await.unwrap();
            let mut out = Vec::new();
            put_error(&mut out, ErrorCode::Replaced, "replaced", true, 0);
            send.write_all(&out).await.unwrap();
            recv.stop(0_u8.into()).unwrap();
            connection.closed().await;
        });
        let dialler = Dialler::new(roots_pem.as_bytes(), "127.0.0.1").unwrap();
        let order = Order { first: Transport::Quic, second: None };
        let stream = dialler.race(&address, order, 0).await.unwrap();
        let mut link = Link::new(stream, ClientSession::new(0, hello()));
        link.collect(0);
        link.drive(|| 0).await.unwrap();
        let Stream::Quic(quic) = &link.stream else { panic!("dialled QUIC alone") };
        quic.send.stopped().await.unwrap();

        link.outbound.extend_from_slice(b"more");
        link.drive(|| 0).await.unwrap_err();
        let told = link.session.poll_event();
        let Some(ClientEvent::Error { code, fatal: true, .. }) = told else { panic!("{told:?}") };
        assert_eq!(code, ErrorCode::Replaced);
        drop(link);
        serving.await.unwrap();
    }
}
