//! Memory that the kernel uses after it was freed.
//!
//! A sanitizer sees what this process reads and writes, and valgrind what its system calls name; the
//! kernel's own reads and writes on behalf of an operation in flight are invisible to both. Here
//! the allocator of the test shows them: what is freed is filled with a pattern and kept for a
//! while. A kernel that still writes there breaks the pattern, and a kernel that still reads from
//! there puts the pattern into a file or a socket.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

#[allow(dead_code, reason = "shared with the other tests")]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read as _, Write as _};
use std::os::fd::IntoRawFd as _;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use ringpost_ring::net::{UdpGroup, UdpOptions};
use ringpost_ring::{DatagramSend, File, Op, Ring};
use support::{pair, ring_with, small};

#[global_allocator]
static ALLOCATOR: Quarantine =
    Quarantine { kept: Mutex::new(Kept { blocks: [const { None }; KEPT_MAX], next: 0 }) };

/// Blocks whose pattern was broken.
static BROKEN: AtomicUsize = AtomicUsize::new(0);

struct Quarantine {
    kept: Mutex<Kept>,
}

/// The last blocks that were freed, in a ring.
struct Kept {
    blocks: [Option<Block>; KEPT_MAX],
    next: usize,
}

struct Block {
    address: usize,
    layout: Layout,
}

// SAFETY: memory comes from `System` and goes back to it once, with its layout, only later.
unsafe impl GlobalAlloc for Quarantine {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        if layout.size() < WATCHED_BYTES_MIN {
            // SAFETY: the caller keeps the contract of `dealloc`.
            return unsafe { System.dealloc(start, layout) };
        }
        // SAFETY: the block is ours now, and as large as its layout says.
        unsafe { start.write_bytes(PATTERN, layout.size()) };
        let block = Block { address: start.expose_provenance(), layout };
        let oldest = {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            let place = kept.next;
            kept.next = (place + 1) % KEPT_MAX;
            kept.blocks[place].replace(block)
        };
        if let Some(block) = oldest {
            block.look();
            let start = ptr::with_exposed_provenance_mut(block.address);
            // SAFETY: it came to `dealloc` with this layout and is not kept any more.
            unsafe { System.dealloc(start, block.layout) }
        }
    }
}

impl Block {
    fn look(&self) {
        let start = ptr::with_exposed_provenance::<u8>(self.address);
        // SAFETY: the block is not given back yet and was written when it came.
        let bytes = unsafe { std::slice::from_raw_parts(start, self.layout.size()) };
        // Every byte equals the one before it: one memcmp, fast in a debug build too.
        if bytes[0] != PATTERN || bytes[1..] != bytes[..bytes.len() - 1] {
            BROKEN.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Fails if anything wrote to freed memory so far.
fn check_freed() {
    let kept = ALLOCATOR.kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.blocks.iter().flatten().for_each(Block::look);
    drop(kept);
    assert_eq!(BROKEN.load(Ordering::Relaxed), 0, "freed blocks that were written to");
}

/// Reads from pipes and receives from sockets are armed when the ring goes, and bytes keep coming.
#[test]
fn nothing_is_written_to_buffers_of_a_ring_that_is_gone() {
    for _ in 0..ROUNDS {
        let mut ring = ring_with(small());
        let (pipe_out, mut pipe_in) = std::io::pipe().unwrap();
        let file = File(pipe_out.try_clone().unwrap().into_raw_fd());
        for token in 0..4 {
            ring.submit(token, Op::Read { file, offset: 0, length_bytes: 64 * 1024 });
        }
        let (socket, mut peer) = pair();
        ring.submit(9, Op::Recv { socket, multishot: true });
        let any = "127.0.0.1:0".parse().unwrap();
        let group = UdpGroup::bind(any, 1, &UdpOptions::default()).unwrap();
        ring.submit(10, Op::RecvDatagrams { socket: group.socket(0) });
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect(group.address()).unwrap();
        let mut completions = Vec::new();
        ring.enter(0, &mut completions);
        let stop = Arc::new(AtomicBool::new(false));
        let writer = {
            let stop = Arc::clone(&stop);
            peer.set_nonblocking(true).unwrap();
            thread::spawn(move || {
                for _ in 0..8 {
                    // A full pipe would block; the reader below keeps it open.
                    pipe_in.write_all(b"late").unwrap();
                    let _ = peer.write(b"late");
                    let _ = datagrams.send(b"late");
                    thread::yield_now();
                }
                while !stop.load(Ordering::Relaxed) {
                    let _ = peer.write(b"late");
                    let _ = datagrams.send(b"late");
                    thread::yield_now();
                }
            })
        };
        drop(ring);
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        drop(pipe_out);
        check_freed();
    }
}

/// What was handed over for sending and writing stays whole until the kernel is done with it.
#[test]
fn nothing_is_read_from_buffers_that_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..ROUNDS {
        let path = folder.path().join(round.to_string());
        let file = std::fs::File::create_new(&path).unwrap();
        let file = File(file.into_raw_fd());
        let (socket, mut peer) = pair();
        let any = "127.0.0.1:0".parse().unwrap();
        let group = UdpGroup::bind(any, 1, &UdpOptions::default()).unwrap();
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.set_nonblocking(true).unwrap();
        let mut ring = ring_with(small());
        for number in 0..8 {
            let data = || Bytes::from(vec![DATA; 1 << 16]);
            ring.submit(1, Op::Send { socket, data: vec![data(), data()] });
            ring.submit(2, Op::Write { file, offset: number << 16, data: data() });
            let send = DatagramSend {
                to: datagrams.local_addr().unwrap(),
                from: None,
                ecn: 1,
                segment_bytes: Some(1000),
                data: data().slice(..30_000),
            };
            let socket = group.socket(0);
            ring.submit(3, Op::SendDatagrams { socket, send: Box::new(send) });
        }
        let mut completions = Vec::new();
        for _ in 0..round % 4 {
            ring.enter(0, &mut completions);
            completions.clear();
        }
        drop(ring);
        peer.set_nonblocking(true).unwrap();
        let mut received = Vec::new();
        // Ends with WouldBlock: the socket is still open.
        let _ = peer.read_to_end(&mut received);
        assert!(received.iter().all(|byte| *byte == DATA), "sent from freed memory");
        let mut datagram = [0; 2000];
        while let Ok(length) = datagrams.recv(&mut datagram) {
            assert!(datagram[..length].iter().all(|byte| *byte == DATA), "sent from freed memory");
        }
        let written = std::fs::read(&path).unwrap();
        let is_ours = |byte: &u8| *byte == DATA || *byte == 0;
        assert!(written.iter().all(is_ours), "written from freed memory");
        check_freed();
    }
}

/// Large enough to leave the allocator's everyday life alone.
const WATCHED_BYTES_MIN: usize = 1024;
const KEPT_MAX: usize = 256;
const PATTERN: u8 = 0xa5;
const DATA: u8 = 0x11;
const ROUNDS: usize = 20;
