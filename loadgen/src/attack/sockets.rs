//! Connections that are held open and hardly used. One that the server ends is made again at once.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::logins::{Answer, log_in};
use super::{AttackCounts, Target};
use crate::client::Client;

/// One of the connections.
struct Held {
    number: u32,
    socket: TcpStream,
    next: Instant,
    /// What it sends byte by byte.
    bytes: Vec<u8>,
    sent: usize,
    /// Seals the bytes of a client that has logged in.
    client: Option<Client>,
}

/// A third says nothing, a third half of a ClientHello, a third a whole one and then nothing.
pub(super) fn half_open(target: &Target, stop: &AtomicBool) -> Result<AttackCounts> {
    let open = |number: u32| {
        let hello = client_hello(target)?;
        let length = match number % 3 {
            0 => 0,
            1 => hello.len() / 2,
            _ => hello.len(),
        };
        let mut socket = TcpStream::connect(target.address).context("connect")?;
        socket.write_all(&hello[..length]).context("send a part of a ClientHello")?;
        Held::new(number, socket, Vec::new(), None)
    };
    hold(target, stop, open)
}

/// Half send a ClientHello, half a frame after their login, one byte a second.
pub(super) fn trickle(target: &Target, stop: &AtomicBool) -> Result<AttackCounts> {
    let open = |number: u32| {
        if number.is_multiple_of(2) {
            let socket = TcpStream::connect(target.address).context("connect")?;
            return Held::new(number, socket, client_hello(target)?, None);
        }
        let (answer, socket, client) = log_in(target, target.identity(number, true)?)?;
        ensure!(answer == Answer::Welcome, "a login with a right token was refused");
        // The length of a frame, and then as much of it as there is time for.
        let mut frame = Vec::new();
        ringpost_protocol::frame::put_length(&mut frame, TRICKLE_FRAME_BYTES);
        frame.resize(TRICKLE_FRAME_BYTES, b'x');
        Held::new(number, socket, frame, Some(client))
    };
    hold(target, stop, open)
}

fn hold(
    target: &Target,
    stop: &AtomicBool,
    open: impl Fn(u32) -> Result<Held>,
) -> Result<AttackCounts> {
    let mut counts = AttackCounts::default();
    let mut held = Vec::new();
    for number in 0..target.count {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        held.push(open(number)?);
        counts.opened += 1;
    }
    while !stop.load(Ordering::Relaxed) {
        for one in &mut held {
            if !one.turn() {
                counts.ended_by_server += 1;
                *one = open(one.number)?;
                counts.opened += 1;
            }
        }
        thread::sleep(TURN);
    }
    Ok(counts)
}

impl Held {
    fn new(number: u32, socket: TcpStream, bytes: Vec<u8>, client: Option<Client>) -> Result<Self> {
        socket.set_nodelay(true).context("set TCP_NODELAY")?;
        socket.set_nonblocking(true).context("make a socket non-blocking")?;
        // Spread over the second, by a number that no other uses.
        let phase = INTERVAL.mul_f64(f64::from(number % 1_000) / 1_000.0);
        Ok(Self { number, socket, next: Instant::now() + phase, bytes, sent: 0, client })
    }

    /// Sends a byte if it is time; false when the connection is over.
    fn turn(&mut self) -> bool {
        let mut received = [0; 4_096];
        match self.socket.read(&mut received) {
            Ok(0) => return false,
            // Whatever it is: nobody is interested.
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        if Instant::now() < self.next || self.sent == self.bytes.len() {
            return true;
        }
        self.next += INTERVAL;
        let byte = &self.bytes[self.sent..=self.sent];
        self.sent += 1;
        let mut sealed = Vec::new();
        let bytes = match &mut self.client {
            Some(client) => {
                client.seal(byte, &mut sealed);
                &sealed
            }
            None => byte,
        };
        self.socket.write_all(bytes).is_ok()
    }
}

fn client_hello(target: &Target) -> Result<Vec<u8>> {
    let tls = std::sync::Arc::clone(&target.tls);
    let mut client = rustls::ClientConnection::new(tls, target.server_name.clone())
        .context("start a TLS handshake")?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello).context("write to memory")?;
    Ok(hello)
}

const INTERVAL: Duration = Duration::from_secs(1);
const TURN: Duration = Duration::from_millis(20);
const TRICKLE_FRAME_BYTES: usize = 4_096;
