//! The client of all servers: connections on one ring, one message under way on each.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringpost_ring::{Completion, Errno, Group, Op, Outcome, Ring, Socket, Uring, UringConfig};

use super::MESSAGE_BYTES;
use crate::fixture;

/// Connections to one server.
pub struct EchoClient {
    ring: Uring,
    links: Vec<Link>,
    completions: Vec<Completion>,
    /// Echoes that came back, whole and unchanged.
    answered: u64,
}

struct Link {
    socket: Socket,
    /// No two links send the same.
    message: Bytes,
    /// Bytes of the echo that are here.
    received: usize,
}

impl EchoClient {
    /// Opens `connections`, a few at a time, so that no backlog overflows.
    pub fn connect(server: SocketAddr, connections: u32) -> io::Result<Self> {
        let group = Group::new(1)?;
        let sizes = UringConfig { receive_buffer_count: 2048, ..UringConfig::default() };
        let mut ring = Uring::new(&group, 0, sizes).map_err(io::Error::other)?;
        let mut completions = Vec::new();
        let (mut asked, mut links) = (0, Vec::new());
        while links.len() < connections as usize {
            while asked < connections && asked as usize - links.len() < CONNECTING_MAX {
                ring.submit(0, Op::Connect { local: None, remote: server });
                asked += 1;
            }
            ring.enter(u64::MAX, &mut completions);
            for completion in completions.drain(..) {
                let Outcome::Connected(socket) = completion.result.map_err(io::Error::from)? else {
                    unreachable!("nothing else was asked for")
                };
                links.push(Link { socket, message: message(links.len()), received: 0 });
            }
        }
        let mut client = Self { ring, links, completions, answered: 0 };
        for index in 0..client.links.len() {
            client.receive(index as u64);
            client.send(index as u64);
        }
        Ok(client)
    }

    /// Sends and receives for so long; whole echoes in this time, and the time that it really was.
    pub fn run(&mut self, duration: Duration) -> io::Result<(u64, Duration)> {
        let (started, before) = (Instant::now(), self.answered);
        while started.elapsed() < duration {
            let mut completions = std::mem::take(&mut self.completions);
            self.ring.enter(WAIT_NS, &mut completions);
            for completion in completions.drain(..) {
                self.handle(completion)?;
            }
            self.completions = completions;
        }
        Ok((self.answered - before, started.elapsed()))
    }

    /// Closes the connections: a ring that is dropped leaves that to the end of the process.
    pub fn leave(mut self) -> io::Result<()> {
        let sockets: Vec<Socket> = self.links.iter().map(|link| link.socket).collect();
        for &socket in &sockets {
            self.ring.submit(0, Op::Shutdown { socket });
        }
        self.finish()?;
        for socket in sockets {
            self.ring.submit(0, Op::CloseSocket { socket });
        }
        self.finish()
    }

    /// Waits for all that was asked.
    fn finish(&mut self) -> io::Result<()> {
        let started = Instant::now();
        let mut completions = std::mem::take(&mut self.completions);
        while self.ring.in_flight() > 0 {
            if started.elapsed() > LEAVE_TIME_MAX {
                return Err(io::Error::other("connections do not end"));
            }
            self.ring.enter(WAIT_NS, &mut completions);
            for completion in completions.drain(..) {
                if let Ok(Outcome::Received(Some(lease))) = completion.result {
                    self.ring.release(lease);
                }
            }
        }
        self.completions = completions;
        Ok(())
    }

    fn handle(&mut self, completion: Completion) -> io::Result<()> {
        let Completion { token, more, result, .. } = completion;
        match result {
            Ok(Outcome::Received(Some(lease))) => {
                let link = self.link(token);
                let (message, received) = (link.message.clone(), link.received);
                let bytes = self.ring.bytes(&lease);
                let expected = message.get(received..received + bytes.len());
                if expected != Some(bytes) {
                    return Err(io::Error::other("the echo is not what was said"));
                }
                let received = (received + bytes.len()) % MESSAGE_BYTES;
                self.ring.release(lease);
                self.link(token).received = received;
                if !more {
                    self.receive(token);
                }
                if received == 0 {
                    self.answered += 1;
                    self.send(token);
                }
                Ok(())
            }
            Ok(Outcome::Sent { sent_bytes: MESSAGE_BYTES, .. }) => Ok(()),
            Err(Errno::NOBUFS) => {
                self.receive(token);
                Ok(())
            }
            Ok(other) => Err(io::Error::other(format!("the server left: {other:?}"))),
            Err(errno) => Err(errno.into()),
        }
    }

    fn receive(&mut self, token: u64) {
        let socket = self.link(token).socket;
        self.ring.submit(token, Op::Recv { socket, multishot: true });
    }

    fn send(&mut self, token: u64) {
        let link = self.link(token);
        let (socket, data) = (link.socket, vec![link.message.clone()]);
        self.ring.submit(token, Op::Send { socket, data });
    }

    /// A token is the index of a link.
    fn link(&mut self, token: u64) -> &mut Link {
        let index = usize::try_from(token).expect("an index");
        &mut self.links[index]
    }
}

fn message(link: usize) -> Bytes {
    let mut bytes = fixture::envelope(MESSAGE_BYTES);
    bytes[..8].copy_from_slice(&(link as u64).to_le_bytes());
    bytes.into()
}

const CONNECTING_MAX: usize = 64;
const LEAVE_TIME_MAX: Duration = Duration::from_secs(10);
/// A turn waits no longer, so that a run ends on time.
const WAIT_NS: u64 = 10_000_000;
