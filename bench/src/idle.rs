//! A client that says Hello over TLS and then nothing, on a blocking socket.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use ringpost_loadgen::client::{Client, Identity};
use ringpost_protocol::message::ClientEvent;
use rustls::pki_types::ServerName;

/// A connection that is open, welcomed and silent until it is dropped.
pub struct IdleConnection {
    /// Held open.
    _stream: TcpStream,
    _client: Client,
}

/// Scratch memory of all connections that are being opened.
#[derive(Debug, Default)]
pub struct Scratch {
    stream: BytesMut,
    plaintext: Vec<u8>,
    ciphertext: Vec<u8>,
}

impl IdleConnection {
    /// Connects and waits until the gateway has said that nothing is left to deliver.
    pub fn open(
        server: SocketAddr,
        config: &Arc<rustls::ClientConfig>,
        identity: Identity,
        scratch: &mut Scratch,
    ) -> Result<Self, Box<dyn Error>> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        let mut client = Client::new(identity);
        client.connect(0, config, ServerName::from(server.ip()))?;
        let mut received = [0; 4096];
        loop {
            scratch.ciphertext.clear();
            client.poll_transmit(0, &mut scratch.plaintext, &mut scratch.ciphertext);
            io::Write::write_all(&mut stream, &scratch.ciphertext)?;
            let length = io::Read::read(&mut stream, &mut received)?;
            if length == 0 {
                return Err("the gateway closed the connection".into());
            }
            client.handle_received(0, &received[..length], &mut scratch.stream)?;
            while let Some(event) = client.poll_event() {
                match event {
                    ClientEvent::Welcome(welcome) => client.handle_welcome(&welcome),
                    ClientEvent::CaughtUp => {
                        return Ok(Self { _stream: stream, _client: client });
                    }
                    ClientEvent::Error { text, .. } => return Err(text.into()),
                    _ => {}
                }
            }
        }
    }
}

const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
