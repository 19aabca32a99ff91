//! A QUIC client that may send anything: quinn below, frames by hand.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use bytes::BytesMut;
use prost::Message;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt};
use ringpost_protocol::frame::split_frame;
use ringpost_protocol::limits::FRAME_BYTES_MAX;
use ringpost_protocol::wire::{self, ErrorCode, ServerFrame, client_frame, server_frame};
use tokio::time::timeout;

use super::PATIENCE;
use super::gateway::Gateway;
use super::raw::{framed, hello_frame, tls_config_trusting};

pub struct Quic {
    pub endpoint: Endpoint,
    pub connection: Connection,
    send: SendStream,
    recv: RecvStream,
    inbound: BytesMut,
    /// What it sent has reached its recipient up to here.
    delivered: u64,
}

/// A socket on loopback with a port of its own.
pub fn socket() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// A client's endpoint that trusts `roots_pem` and offers `alpn`.
pub fn endpoint(roots_pem: &[u8], alpn: &[u8]) -> Endpoint {
    let tls = rustls::ClientConfig::clone(&tls_config_trusting(roots_pem, &[alpn]));
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    let idle = VarInt::from_u32(3_750_000);
    transport.max_idle_timeout(Some(idle.into()));
    // So that who does not read holds little.
    transport.stream_receive_window(VarInt::from_u32(64 << 10));
    config.transport_config(Arc::new(transport));
    let runtime = Arc::new(quinn::TokioRuntime);
    let mut endpoint =
        Endpoint::new(quinn::EndpointConfig::default(), None, socket(), runtime).unwrap();
    endpoint.set_default_client_config(config);
    endpoint
}

/// Connects, and no more.
pub async fn dial(endpoint: &Endpoint, address: SocketAddr) -> Result<Connection, ConnectionError> {
    let connecting = endpoint.connect(address, "localhost").unwrap();
    timeout(PATIENCE, connecting).await.expect("a handshake ends")
}

impl Quic {
    /// Connects and opens the stream; the gateway hears of it with the first frame.
    pub async fn connect(gateway: &Gateway) -> Self {
        Self::try_connect(gateway).await.unwrap()
    }

    pub async fn try_connect(gateway: &Gateway) -> Result<Self, ConnectionError> {
        Self::connect_to(gateway.address(), &gateway.keys.roots_pem).await
    }

    pub async fn connect_to(
        address: SocketAddr,
        roots_pem: &[u8],
    ) -> Result<Self, ConnectionError> {
        let endpoint = endpoint(roots_pem, b"ringpost/1");
        let connection = dial(&endpoint, address).await?;
        let (send, recv) = connection.open_bi().await?;
        Ok(Self { endpoint, connection, send, recv, inbound: BytesMut::new(), delivered: 0 })
    }

    /// Connects and is welcomed.
    pub async fn open(gateway: &Gateway, user: &str, device: &str) -> Self {
        let mut quic = Self::connect(gateway).await;
        quic.hello(&gateway.keys.token(user, device), device).await;
        quic.expect_welcome().await;
        quic
    }

    /// Sends from a new socket from now on.
    pub fn rebind(&self) {
        self.endpoint.rebind(socket()).unwrap();
    }

    pub async fn hello(&mut self, token: &str, device: &str) {
        self.send(client_frame::Frame::Hello(hello_frame(token, device))).await;
    }

    pub async fn send(&mut self, frame: client_frame::Frame) {
        self.send_bytes(&framed(frame)).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.send.write_all(bytes)).await.expect("it is taken").unwrap();
    }

    /// Ends our direction.
    pub fn finish(&mut self) {
        self.send.finish().unwrap();
    }

    /// The next frame; `None` once the gateway has ended its direction in good order.
    pub async fn read_frame(&mut self) -> Option<server_frame::Frame> {
        loop {
            if let Some(frame) = split_frame(&mut self.inbound, FRAME_BYTES_MAX).unwrap() {
                let frame = ServerFrame::decode(frame).unwrap().frame;
                if let Some(server_frame::Frame::Delivered(receipt)) = &frame {
                    self.delivered = receipt.up_to_send_seq;
                }
                return Some(frame.expect("a frame that this client knows"));
            }
            let chunk = timeout(PATIENCE, self.recv.read_chunk(64 << 10, true));
            match chunk.await.expect("something comes").unwrap() {
                Some(chunk) => self.inbound.extend_from_slice(&chunk.bytes),
                None => return None,
            }
        }
    }

    pub async fn expect_welcome(&mut self) -> wire::Welcome {
        match self.read_frame().await {
            Some(server_frame::Frame::Welcome(welcome)) => welcome,
            other => panic!("no Welcome, but {other:?}"),
        }
    }

    /// Skips other frames up to the next one that `wanted` takes.
    pub async fn expect<T>(
        &mut self,
        mut wanted: impl FnMut(server_frame::Frame) -> Option<T>,
    ) -> T {
        loop {
            let frame = self.read_frame().await.expect("the connection has ended");
            if let Some(found) = wanted(frame) {
                return found;
            }
        }
    }

    /// The answer to the next Send answered.
    pub async fn expect_answer(&mut self) -> (u64, Result<wire::Accepted, wire::Rejected>) {
        self.expect(|frame| match frame {
            server_frame::Frame::Accepted(accepted) => Some((accepted.send_seq, Ok(accepted))),
            server_frame::Frame::Rejected(rejected) => Some((rejected.send_seq, Err(rejected))),
            _ => None,
        })
        .await
    }

    /// The receipt for what it has sent up to `send_seq` has come, or comes.
    pub async fn expect_delivered(&mut self, send_seq: u64) {
        while self.delivered < send_seq {
            self.read_frame().await.expect("the connection has ended");
        }
    }

    pub async fn expect_message(&mut self) -> wire::Deliver {
        self.expect(|frame| match frame {
            server_frame::Frame::Deliver(deliver) => Some(deliver),
            _ => None,
        })
        .await
    }

    /// A fatal Error with this code arrives, and then the end, in good order.
    pub async fn expect_end(&mut self, code: ErrorCode) {
        let error = self
            .expect(|frame| match frame {
                server_frame::Frame::Error(error) => Some(error),
                _ => None,
            })
            .await;
        assert_eq!(error.code(), code, "{error:?}");
        assert!(error.fatal, "{error:?}");
        assert_eq!(self.read_frame().await, None, "nothing comes after a fatal Error");
    }

    /// The code with which the gateway closes the connection.
    pub async fn closed(&self) -> u64 {
        match timeout(PATIENCE, self.connection.closed()).await.expect("it is closed") {
            ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
            other => panic!("not closed by the gateway, but {other}"),
        }
    }
}
