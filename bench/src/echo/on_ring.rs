//! Echo on the gateway's own ring.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

use bytes::Bytes;
use ringpost_ring::{
    Completion, Errno, Group, Listener, Op, Outcome, Ring, Socket, Uring, UringConfig,
};

use super::{ANY_PORT, Announce};

/// Sockets are closed by the end of the process, which is the end of the measurement.
pub(super) fn serve(announce: Announce) -> io::Result<()> {
    let listener = TcpListener::bind(ANY_PORT)?;
    announce(listener.local_addr()?);
    let group = Group::new(1)?;
    let sizes = UringConfig { receive_buffer_count: 2048, ..UringConfig::default() };
    let ring = Uring::new(&group, 0, sizes).map_err(io::Error::other)?;
    let mut server = Server { ring, spare: Vec::new() };
    let accept = Listener(listener.as_raw_fd());
    server.ring.submit(ACCEPT, Op::Accept { listener: accept });
    let mut completions = Vec::new();
    loop {
        server.ring.enter(u64::MAX, &mut completions);
        for completion in completions.drain(..) {
            if let Some(op) = server.handle(completion)? {
                server.ring.submit(op.0, op.1);
            }
        }
    }
}

struct Server {
    ring: Uring,
    /// Lists of chunks that sends have given back.
    spare: Vec<Vec<Bytes>>,
}

impl Server {
    /// What follows a completion, if anything. A token is [`ACCEPT`] or the number of a socket.
    fn handle(&mut self, completion: Completion) -> io::Result<Option<(u64, Op)>> {
        let Completion { token, more, result, .. } = completion;
        match result {
            Ok(Outcome::Accepted(socket)) => Ok(Some((token_of(socket), receive(socket)))),
            Ok(Outcome::Received(Some(lease))) => {
                let mut data = self.spare.pop().unwrap_or_default();
                data.push(Bytes::copy_from_slice(self.ring.bytes(&lease)));
                self.ring.release(lease);
                let socket = socket_of(token);
                if !more {
                    self.ring.submit(token, receive(socket));
                }
                Ok(Some((token, Op::Send { socket, data })))
            }
            Ok(Outcome::Sent { mut data, .. }) => {
                data.clear();
                self.spare.push(data);
                Ok(None)
            }
            Err(Errno::NOBUFS) => Ok(Some((token, receive(socket_of(token))))),
            Err(errno) if token == ACCEPT => Err(errno.into()),
            _ => Ok(None),
        }
    }
}

fn receive(socket: Socket) -> Op {
    Op::Recv { socket, multishot: true }
}

fn token_of(socket: Socket) -> u64 {
    u64::from(socket.0.unsigned_abs())
}

fn socket_of(token: u64) -> Socket {
    Socket(i32::try_from(token).expect("made by token_of"))
}

const ACCEPT: u64 = 1 << 32;
