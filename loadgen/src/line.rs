//! A client on a blocking socket, for scenarios with a thread for each device.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use ringpost_ring::host::monotonic_ns;
use rustls::pki_types::ServerName;

use crate::client::{Client, Identity};

/// What a device needs to know of the server.
pub struct Door {
    pub target: SocketAddr,
    pub tls: Arc<rustls::ClientConfig>,
    pub name: ServerName<'static>,
}

/// A client and its connection.
pub struct Line {
    pub client: Client,
    socket: TcpStream,
    plaintext: Vec<u8>,
    ciphertext: Vec<u8>,
    scratch: BytesMut,
    received: Vec<u8>,
}

impl Line {
    /// Connects; the handshake and the login follow with the turns.
    pub fn connect(identity: Identity, door: &Door) -> Result<Self> {
        let socket = TcpStream::connect_timeout(&door.target, CONNECT_TIME_MAX)
            .context("connect to the server")?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LOOK_INTERVAL))?;
        let mut client = Client::new(identity);
        client.connect(now_ms(), &door.tls, door.name.clone())?;
        Ok(Self {
            client,
            socket,
            plaintext: Vec::new(),
            ciphertext: Vec::new(),
            scratch: BytesMut::new(),
            received: vec![0; RECEIVE_BYTES],
        })
    }

    /// Writes what is to be sent and reads what comes, or waits for that a moment; events are then
    /// polled.
    pub fn turn(&mut self) -> Result<()> {
        self.write()?;
        match self.socket.read(&mut self.received) {
            Ok(0) => bail!("the server has closed a connection"),
            Ok(length) => {
                let received = &self.received[..length];
                self.client.handle_received(now_ms(), received, &mut self.scratch)?;
            }
            Err(error) if is_idle(&error) => {}
            Err(error) => return Err(error).context("read from the server"),
        }
        self.client.handle_timeout(now_ms()).map(drop)
    }

    /// Says goodbye.
    pub fn finish(&mut self) -> Result<()> {
        self.client.bye();
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        self.ciphertext.clear();
        self.client.poll_transmit(now_ms(), &mut self.plaintext, &mut self.ciphertext);
        self.socket.write_all(&self.ciphertext).context("write to the server")
    }
}

fn is_idle(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn now_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

/// How long a device looks at its socket before it looks at what the others do.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
const RECEIVE_BYTES: usize = 64 * 1024;
