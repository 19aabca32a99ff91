//! A ring of one shard and socket pairs over loopback.

use std::net::{TcpListener, TcpStream};
use std::os::fd::IntoRawFd;

use ringpost_ring::{Completion, Group, OpId, Ring, Socket, Uring, UringConfig};

pub(crate) fn ring() -> Uring {
    ring_with(UringConfig::default())
}

pub(crate) fn ring_with(config: UringConfig) -> Uring {
    Uring::new(&Group::new(1).unwrap(), 0, config).unwrap()
}

/// Small enough to be exhausted in a test.
pub(crate) fn small() -> UringConfig {
    UringConfig {
        submission_entries: 8,
        completion_entries: 16,
        receive_buffer_count: 4,
        receive_buffer_bytes: 64,
        datagram_buffer_count: 4,
    }
}

/// A socket for the ring and its other end.
pub(crate) fn pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    theirs.set_nodelay(true).unwrap();
    (Socket(ours.into_raw_fd()), theirs)
}

/// Enters until `done` has seen enough; five seconds without it is a hang.
pub(crate) fn run_until(ring: &mut Uring, mut done: impl FnMut(&mut Uring, Completion) -> bool) {
    let deadline = ring.now_ns() + 5_000_000_000;
    let mut completions = Vec::new();
    loop {
        ring.enter(100_000_000, &mut completions);
        assert!(ring.now_ns() < deadline, "nothing happened for five seconds");
        let mut finished = false;
        for completion in completions.drain(..) {
            finished |= done(ring, completion);
        }
        if finished {
            return;
        }
    }
}

/// The next completion of `op`; others must not come.
pub(crate) fn completion_of(ring: &mut Uring, op: OpId) -> Completion {
    let mut found = None;
    run_until(ring, |_, completion| {
        assert_eq!(completion.op, op, "{completion:?}");
        assert!(found.is_none(), "two completions");
        found = Some(completion);
        true
    });
    found.unwrap()
}
