//! A client: quinn-proto as it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, Endpoint,
    EndpointConfig, Event, StreamEvent, StreamId, TransportConfig,
};
use rustls::pki_types::CertificateDer;

use super::world::Packet;
use crate::transport::tls;

pub(super) struct Client {
    pub(super) address: SocketAddr,
    pub(super) endpoint: Endpoint,
    pub(super) handle: ConnectionHandle,
    pub(super) connection: Connection,
    server: SocketAddr,
    pub(super) stream: Option<StreamId>,
    /// Not written yet.
    pub(super) unsent: Vec<Bytes>,
    /// No more is read than this.
    pub(super) read_max: usize,
    pub(super) received: Vec<u8>,
    pub(super) has_ended: bool,
    pub(super) lost: Option<ConnectionError>,
    /// Times at which something was received.
    pub(super) last_received_ns: u64,
}

/// A client of a gateway with this certificate, which offers `alpn`.
/// Like [`tls::test_client_config`], and tries early data.
pub(super) fn client_tls(
    certificate: &CertificateDer<'static>,
    alpn: &[u8],
) -> rustls::ClientConfig {
    let mut config = tls::test_client_config(certificate, alpn);
    config.enable_early_data = true;
    config
}

pub(super) fn client_config(tls: Arc<rustls::ClientConfig>) -> ClientConfig {
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = TransportConfig::default();
    transport.max_idle_timeout(Some(Duration::from_secs(3_750).try_into().unwrap()));
    transport.mtu_discovery_config(None);
    config.transport_config(Arc::new(transport));
    config
}

impl Client {
    pub(super) fn new(
        now: Instant,
        address: SocketAddr,
        server: SocketAddr,
        config: ClientConfig,
        seed: u8,
    ) -> Self {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &[seed; 32]);
        let mut endpoint = EndpointConfig::new(Arc::new(key));
        endpoint.rng_seed(Some([seed; 32]));
        let mut endpoint = Endpoint::new(Arc::new(endpoint), None, false, None);
        let (handle, connection) = endpoint.connect(now, config, server, "localhost").unwrap();
        Self {
            address,
            endpoint,
            handle,
            connection,
            server,
            stream: None,
            unsent: Vec::new(),
            read_max: usize::MAX,
            received: Vec::new(),
            has_ended: false,
            lost: None,
            last_received_ns: 0,
        }
    }

    /// Queues `data` for its stream, which is opened as soon as it can be.
    pub(super) fn send(&mut self, data: impl Into<Bytes>) {
        self.unsent.push(data.into());
    }

    pub(super) fn is_connected(&self) -> bool {
        !self.connection.is_handshaking() && !self.connection.is_closed()
    }

    pub(super) fn handle(&mut self, now: Instant, now_ns: u64, packet: &Packet) {
        let (mut buffer, data) = (Vec::new(), BytesMut::from(&packet.data[..]));
        let ecn = quinn_proto::EcnCodepoint::from_bits(packet.ecn);
        // It sends to one address alone, whatever its own is.
        let event = self.endpoint.handle(now, packet.from, None, ecn, data, &mut buffer);
        if let Some(DatagramEvent::ConnectionEvent(_, event)) = event {
            self.connection.handle_event(event);
        }
        self.settle(now_ns);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, now_ns: u64) {
        self.connection.handle_timeout(now);
        self.settle(now_ns);
    }

    pub(super) fn settle(&mut self, now_ns: u64) {
        while let Some(event) = self.connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.connection.handle_event(event);
            }
        }
        while let Some(event) = self.connection.poll() {
            match event {
                Event::ConnectionLost { reason } => self.lost = Some(reason),
                Event::Stream(StreamEvent::Readable { .. }) => self.last_received_ns = now_ns,
                _ => {}
            }
        }
        self.write();
        self.read();
    }

    pub(super) fn write(&mut self) {
        if self.connection.is_handshaking() || self.unsent.is_empty() {
            return;
        }
        if self.stream.is_none() {
            self.stream = self.connection.streams().open(Dir::Bi);
        }
        let Some(stream) = self.stream else { return };
        while !self.unsent.is_empty() {
            match self.connection.send_stream(stream).write_chunks(&mut self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written.chunks)),
                Err(_) => break,
            }
        }
    }

    pub(super) fn read(&mut self) {
        let Some(stream) = self.stream else { return };
        let mut stream = self.connection.recv_stream(stream);
        let Ok(mut chunks) = stream.read(true) else { return };
        while self.received.len() < self.read_max {
            match chunks.next(self.read_max - self.received.len()) {
                Ok(Some(chunk)) => self.received.extend_from_slice(&chunk.bytes),
                Ok(None) => {
                    self.has_ended = true;
                    break;
                }
                Err(_) => break,
            }
        }
        let _ = chunks.finalize();
    }

    pub(super) fn transmit(&mut self, now: Instant, out: &mut Vec<Packet>) {
        let mut buffer = Vec::new();
        while let Some(transmit) = self.connection.poll_transmit(now, 10, &mut buffer) {
            let segment_bytes = transmit.segment_size.unwrap_or(transmit.size);
            for data in buffer[..transmit.size].chunks(segment_bytes) {
                out.push(Packet {
                    from: self.address,
                    to: self.server,
                    ecn: transmit.ecn.map_or(0, |ecn| ecn as u8),
                    data: Bytes::copy_from_slice(data),
                });
            }
            buffer.clear();
        }
    }
}
