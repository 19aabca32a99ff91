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
