//! A client that may send anything: TLS by rustls, frames by hand.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use ringpost_protocol::frame::put_length;
use ringpost_protocol::wire::{self, ErrorCode, client_frame, server_frame};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::PATIENCE;
use super::frames::{self, Inbound};
use super::gateway::Gateway;

pub struct Raw {
    stream: StreamOwned<ClientConnection, TcpStream>,
    inbound: Inbound,
}

/// What rustls needs; its session cache lives here.
pub fn tls_config(gateway: &Gateway, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    tls_config_trusting(&gateway.keys.roots_pem, alpn)
}

pub fn tls_config_trusting(roots_pem: &[u8], alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(roots_pem) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

impl Raw {
    /// Connects and completes the handshake.
    pub fn connect(gateway: &Gateway) -> Self {
        Self::connect_with(gateway, &tls_config(gateway, &[b"ringpost/1"])).unwrap()
    }

    pub fn connect_with(gateway: &Gateway, config: &Arc<ClientConfig>) -> std::io::Result<Self> {
        Self::connect_behind(gateway, config, &[])
    }

    /// Writes `header` before the handshake, as a balancer does.
    pub fn connect_behind(
        gateway: &Gateway,
        config: &Arc<ClientConfig>,
        header: &[u8],
    ) -> std::io::Result<Self> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls = ClientConnection::new(Arc::clone(config), name).unwrap();
        let mut socket = TcpStream::connect_timeout(&gateway.address(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        socket.write_all(header)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket)?;
        }
        tls.complete_io(&mut socket)?;
        Ok(Self { stream: StreamOwned::new(tls, socket), inbound: Inbound::default() })
    }

    /// Connects and is welcomed.
    pub fn open(gateway: &Gateway, user: &str, device: &str) -> Self {
        let mut raw = Self::connect(gateway);
        raw.hello(&gateway.keys.token(user, device), device);
        raw.expect_welcome();
        raw
    }

    pub fn tls(&self) -> &ClientConnection {
        &self.stream.conn
    }

    pub fn hello(&mut self, token: &str, device: &str) {
        self.send(client_frame::Frame::Hello(hello_frame(token, device)));
    }

    pub fn send(&mut self, frame: client_frame::Frame) {
        self.send_bytes(&framed(frame));
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.try_send_bytes(bytes).unwrap();
    }

    /// `Err`: the connection is gone.
    pub fn try_send(&mut self, frame: client_frame::Frame) -> std::io::Result<()> {
        self.try_send_bytes(&framed(frame))
    }

    fn try_send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Ends our direction as a client does that has nothing more to say.
    pub fn send_close_notify(&mut self) {
        self.stream.conn.send_close_notify();
        self.stream.conn.complete_io(&mut self.stream.sock).unwrap();
    }

    /// The next frame; `None` once the server has ended its direction in good order.
    pub fn read_frame(&mut self) -> Option<server_frame::Frame> {
        match self.try_read_frame() {
            Ok(frame) => frame,
            Err(error) => panic!("reading from the gateway: {error}"),
        }
    }

    /// The same; `Err`: the connection is gone.
    pub fn try_read_frame(&mut self) -> std::io::Result<Option<server_frame::Frame>> {
        loop {
            if let Some(frame) = self.inbound.next() {
                return Ok(Some(frame));
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(length) => self.inbound.push(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub fn expect_welcome(&mut self) -> wire::Welcome {
        frames::welcome(self.read_frame())
    }

    /// Skips other frames up to the next one that `wanted` takes.
    pub fn expect<T>(&mut self, mut wanted: impl FnMut(server_frame::Frame) -> Option<T>) -> T {
        loop {
            let frame = self.read_frame().expect("the connection has ended");
            if let Some(found) = wanted(frame) {
                return found;
            }
        }
    }

    /// The answer to the next Send answered.
    pub fn expect_answer(&mut self) -> (u64, Result<wire::Accepted, wire::Rejected>) {
        self.expect(frames::answer)
    }

    /// A fatal Error with this code arrives, and then the end, in good order.
    pub fn expect_end(&mut self, code: ErrorCode) {
        let error = self.expect(frames::error);
        frames::check_fatal(&error, code);
        assert_eq!(self.read_frame(), None, "nothing comes after a fatal Error");
    }
}

pub fn hello_frame(token: &str, device: &str) -> wire::Hello {
    wire::Hello {
        token: token.to_owned(),
        device: device.to_owned(),
        install_id: 7,
        ..wire::Hello::default()
    }
}

pub fn send_frame(send_seq: u64, to: &str, text: &str) -> wire::Send {
    wire::Send {
        send_seq,
        to: Some(wire::send::To::User(to.to_owned())),
        body: Some(wire::send::Body::Shared(Bytes::copy_from_slice(text.as_bytes()))),
        ..wire::Send::default()
    }
}

pub fn framed(frame: client_frame::Frame) -> Vec<u8> {
    let message = wire::ClientFrame { frame: Some(frame) }.encode_to_vec();
    let mut bytes = Vec::new();
    put_length(&mut bytes, message.len());
    bytes.extend(message);
    bytes
}
