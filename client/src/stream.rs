//! The ordered bytes of one connection, over TLS or QUIC.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::task::{Context, Poll};

use quinn::{Endpoint, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::path::Transport;

/// Encrypted, its server proven, nothing sent yet.
pub(crate) enum Stream {
    Tls(Box<TlsStream<TcpStream>>),
    Quic(Box<QuicStream>),
}

/// One connection on a UDP socket of its own, with the one stream that the protocol uses. It closes
/// when both halves are dropped.
pub(crate) struct QuicStream {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    pub(crate) endpoint: Endpoint,
}

impl Stream {
    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Tls(_) => Transport::Tls,
            Self::Quic(_) => Transport::Quic,
        }
    }

    /// Whether the connection goes on, from another local address; a TCP connection cannot. Says so
    /// to the server at once.
    pub(crate) fn rebind(&self) -> io::Result<bool> {
        let Self::Quic(quic) = self else { return Ok(false) };
        let socket = unbound(quic.endpoint.local_addr()?)?;
        // The packet that follows carries another connection id, so that nobody on both paths can
        // tell that they belong together.
        quic.endpoint.rebind(socket)?;
        Ok(true)
    }

    /// Ends our direction; over QUIC, waits until the server has everything: unlike that of a TCP
    /// socket, the memory of what was sent ends with the connection.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        self.shutdown().await?;
        if let Self::Quic(quic) = self {
            // Both answers mean that nothing is left to wait for.
            let _ = quic.send.stopped().await;
        }
        Ok(())
    }
}

/// A fresh socket of the same family on any address, which the kernel chooses by the route.
pub(crate) fn unbound(like: SocketAddr) -> io::Result<UdpSocket> {
    match like {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
            Self::Quic(quic) => Pin::new(&mut quic.recv).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(tls) => Pin::new(tls).poll_write(cx, data),
            // The inherent method of the same name has an error of its own.
            Self::Quic(quic) => AsyncWrite::poll_write(Pin::new(&mut quic.send), cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Self::Quic(quic) => Pin::new(&mut quic.send).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Self::Quic(quic) => Pin::new(&mut quic.send).poll_shutdown(cx),
        }
    }
}
