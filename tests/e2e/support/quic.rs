//! A QUIC client that may send anything: quinn below, frames by hand.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt};
use ringpost_protocol::limits::QUIC_IDLE_MS;
use ringpost_protocol::wire::{self, ErrorCode, client_frame, server_frame};
use tokio::time::timeout;

use super::PATIENCE;
use super::frames::{self, Inbound};
use super::gateway::Gateway;
use super::raw::{framed, hello_frame, tls_config_trusting};

pub struct Quic {
    pub endpoint: Endpoint,
    pub connection: Connection,
    send: SendStream,
    recv: RecvStream,
    inbound: Inbound,
    /// What it sent has reached its recipient up to here.
    delivered: u64,
}

/// A client's endpoint on loopback that trusts `roots_pem` and offers `alpn`.
pub fn endpoint(roots_pem: &[u8], alpn: &[u8]) -> Endpoint {
    endpoint_with(roots_pem, alpn, Ipv4Addr::LOCALHOST.into(), true)
}

/// One at an address. `sends_trains`: the kernel cuts up what it sends.
pub fn endpoint_with(
    roots_pem: &[u8],
    alpn: &[u8],
    address: IpAddr,
    sends_trains: bool,
) -> Endpoint {
    let tls = rustls::ClientConfig::clone(&tls_config_trusting(roots_pem, &[alpn]));
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    let idle = VarInt::from_u64(QUIC_IDLE_MS).unwrap();
    transport.max_idle_timeout(Some(idle.into()));
    transport.enable_segmentation_offload(sends_trains);
    // So that who does not read holds little.
    transport.stream_receive_window(VarInt::from_u32(64 << 10));
    config.transport_config(Arc::new(transport));
    let runtime = Arc::new(quinn::TokioRuntime);
    let socket = UdpSocket::bind((address, 0)).unwrap();
    let mut endpoint =
        Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime).unwrap();
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
        Self::connect_on(endpoint(roots_pem, b"ringpost/1"), address).await
    }

    /// Connects from an endpoint that others may use too.
    pub async fn connect_on(
        endpoint: Endpoint,
        address: SocketAddr,
    ) -> Result<Self, ConnectionError> {
        let connection = dial(&endpoint, address).await?;
        let (send, recv) = connection.open_bi().await?;
        Ok(Self { endpoint, connection, send, recv, inbound: Inbound::default(), delivered: 0 })
    }

    /// Connects and is welcomed.
    pub async fn open(gateway: &Gateway, user: &str, device: &str) -> Self {
        Self::connect(gateway).await.welcomed(gateway, user, device).await
    }

    /// Says Hello, and is welcomed.
    pub async fn welcomed(mut self, gateway: &Gateway, user: &str, device: &str) -> Self {
        self.hello(&gateway.keys.token(user, device), device).await;
        self.expect_welcome().await;
        self
    }

    /// Sends from a new socket from now on, which has another port.
    pub fn rebind(&self) {
        let address = self.endpoint.local_addr().unwrap().ip();
        self.endpoint.rebind(UdpSocket::bind((address, 0)).unwrap()).unwrap();
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
            if let Some(frame) = self.inbound.next() {
                if let server_frame::Frame::Delivered(receipt) = &frame {
                    self.delivered = receipt.up_to_send_seq;
                }
                return Some(frame);
            }
            let chunk = timeout(PATIENCE, self.recv.read_chunk(64 << 10, true));
            match chunk.await.expect("something comes").unwrap() {
                Some(chunk) => self.inbound.push(&chunk.bytes),
                None => return None,
            }
        }
    }

    pub async fn expect_welcome(&mut self) -> wire::Welcome {
        frames::welcome(self.read_frame().await)
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
        self.expect(frames::answer).await
    }

    /// The receipt for what it has sent up to `send_seq` has come, or comes.
    pub async fn expect_delivered(&mut self, send_seq: u64) {
        while self.delivered < send_seq {
            self.read_frame().await.expect("the connection has ended");
        }
    }

    pub async fn expect_message(&mut self) -> wire::Deliver {
        self.expect(frames::message).await
    }

    /// A fatal Error with this code arrives, and then the end, in good order.
    pub async fn expect_end(&mut self, code: ErrorCode) {
        let error = self.expect(frames::error).await;
        frames::check_fatal(&error, code);
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
