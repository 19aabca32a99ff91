//! The seam between the shard's logic and the machine.
//!
//! A [`Ring`] takes operations and gives completions. Two implementations stand behind it: the
//! io_uring of this crate ([`Uring`]), and the simulator's in the crate `ringpost-tests`, on which
//! a whole cluster of shards runs in one thread from one seed.
//!
//! This crate is the only one that sees a file descriptor or holds `unsafe`. It knows nothing of
//! frames, sessions or stores.
//!
//! Rules that both implementations keep:
//!
//! - An operation owns its buffers until its *final* completion: the one whose
//!   [`Completion::more`] is false. Cancelling is a request; the final completion still comes.
//! - [`Ring::submit`] never blocks and never fails: what does not fit into the kernel's queue waits
//!   in user space. Errors come as completions.
//! - Operations of one batch complete in any order. Whoever needs an order submits the second
//!   after the first has completed.
//! - A multishot operation may end at any completion (`more` false, with or without an error). The
//!   caller arms it again, in one place.
//! - Every operation but [`Op::Wake`] has exactly one completion with `more` false. A wake has none
//!   at its sender: a shard that is gone needs no wake, and nothing could be done about it.

//!
//! Datagrams arrive on one [`UdpSocket`] per shard ([`net::UdpGroup`]); a [`steering::Program`] in
//! the kernel picks the shard by the QUIC connection id. They have a pool of their own, because its
//! buffers must hold the largest train of datagrams that the kernel joins; a ring without QUIC has
//! none ([`UringConfig::datagram_buffer_count`]).

#![deny(unsafe_op_in_unsafe_fn)]

mod datagram;
mod errno;
pub mod host;
mod inbox;
mod lease;
pub mod net;
mod op;
pub mod probe;
mod queue;
pub mod steering;
mod uring;
pub mod wake;

use std::ffi::CString;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;

pub use errno::Errno;
pub use inbox::{InboxFull, Inboxes};
pub use probe::RingFault;
pub use uring::{Uring, UringConfig};
pub use wake::{Group, WakeHandle};

/// Takes operations, gives completions; owns every buffer in flight and the two clocks.
pub trait Ring {
    /// Queues `op`. `token` comes back in each of its completions and is not interpreted.
    fn submit(&mut self, token: u64, op: Op) -> OpId;

    /// Enters the kernel once: submits what is queued, waits at most `wait_ns` (0: not at all,
    /// `u64::MAX`: until something happens) for a first completion, and appends completions to
    /// `out`, at most [`COMPLETIONS_PER_ENTER_MAX`]. May return early with nothing: a signal, or a
    /// completion that concerned only the ring (the first part of a long write).
    fn enter(&mut self, wait_ns: u64, out: &mut Vec<Completion>);

    /// The bytes that a lease names: of a datagram its payload alone.
    fn bytes(&self, lease: &Lease) -> &[u8];

    /// Gives a receive buffer back. Every lease is given back exactly once.
    fn release(&mut self, lease: Lease);

    /// Monotonic time in nanoseconds, as of the last [`Ring::enter`].
    fn now_ns(&self) -> u64;

    /// Wall-clock time in Unix milliseconds, as of the last [`Ring::enter`].
    fn unix_ms(&self) -> u64;

    /// The address of the other end; `None` when it is gone already.
    fn peer_address(&self, socket: Socket) -> Option<IpAddr>;

    /// Operations that have not had their final completion. Wakes are not counted.
    fn in_flight(&self) -> usize;

    /// What happened since the ring was made.
    fn counters(&self) -> RingCounters;
}

/// An operation. Sockets and files are plain numbers here: closing them is an operation too, and
/// the shard that owns one is the only one to name it.
#[derive(Debug)]
pub enum Op {
    /// Multishot accept. Completes with [`Outcome::Accepted`] until `more` is false. Without
    /// descriptors it ends with [`Errno::MFILE`]: arm again after one was closed, not at once.
    Accept { listener: Listener },
    /// Receives into a buffer of the ring's pool; completes with [`Outcome::Received`]. Fails with
    /// [`Errno::NOBUFS`] when the pool is empty: arm again after a lease was released.
    Recv { socket: Socket, multishot: bool },
    /// Sends `data`, several chunks with one vectored call; completes with [`Outcome::Sent`], which
    /// may be short, and hands the chunks back (not with an error). Waits while the socket is full.
    Send { socket: Socket, data: Vec<Bytes> },
    /// Asks that the target ends early. The target's own final completion still comes, before or
    /// after this one's: [`Outcome::Done`], or [`Errno::NOENT`] when the target had already ended,
    /// or [`Errno::ALREADY`] when it runs and cannot be stopped (a file operation).
    Cancel { target: OpId },
    /// Ends both directions; a pending receive then completes with zero bytes.
    Shutdown { socket: Socket },
    /// Ends our direction alone: the peer sees the end after the last byte sent, and a receive goes
    /// on.
    ShutdownWrite { socket: Socket },
    /// Closes the socket. Submitted only when no other operation on it is in flight.
    CloseSocket { socket: Socket },
    /// Makes a stream socket, binds it to `local` (port 0: chosen by the kernel per connection) and
    /// connects it; completes with [`Outcome::Connected`]. A failed connect leaves no socket.
    Connect { local: Option<SocketAddr>, remote: SocketAddr },

    /// Multishot receive of datagrams into the ring's datagram pool. Completes with
    /// [`Outcome::Datagrams`] until `more` is false: an empty datagram ends it, for example. Fails
    /// with [`Errno::NOBUFS`] when the pool is empty: arm again after a lease was released; what
    /// arrives meanwhile waits in the socket. Only for a ring that was made with a datagram pool.
    RecvDatagrams { socket: UdpSocket },
    /// Sends what `send` says with one call; completes once, with [`Outcome::Done`] or an error,
    /// and waits while the socket is full. A train that the kernel refuses to cut up
    /// ([`Errno::INVAL`] or [`Errno::IO`], from a device without the offload) is repeated by the
    /// ring, one datagram at a time, and counted; after several in a row on one socket the next few
    /// thousand trains are not tried as one. An error says that the datagrams from there on were lost, as datagrams may be, and nothing about the
    /// socket.
    SendDatagrams { socket: UdpSocket, send: Box<DatagramSend> },

    /// Opens a file; completes with [`Outcome::Opened`].
    Open { path: CString, mode: OpenMode },
    /// Reads up to `length_bytes`; completes with [`Outcome::Read`], short only at the end of file.
    Read { file: File, offset: u64, length_bytes: u32 },
    /// Writes all of `data`; completes with [`Outcome::Done`] or an error, never short.
    Write { file: File, offset: u64, data: Bytes },
    /// `fdatasync`.
    SyncData { file: File },
    /// `fsync`, for new files and directories.
    SyncAll { file: File },
    /// Closes the file.
    CloseFile { file: File },
    /// Removes a name from its directory.
    Unlink { path: CString },

    /// Wakes another shard's ring, which completes with [`WOKEN_TOKEN`] and [`Outcome::Woken`],
    /// once for several wakes that arrive together. No completion here, whether or not the other
    /// ring is up; its own shard may be named. Goes out with the next [`Ring::enter`].
    Wake { shard: u16 },
}

/// How [`Op::Open`] opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Read and write an existing file.
    ReadWrite,
    /// Read an existing file.
    ReadOnly,
    /// Create a file that must not exist yet, for reading and writing; mode 0600.
    CreateNew,
    /// A directory, to be synced.
    Directory,
}

/// One datagram to send, or a train of equally long ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatagramSend {
    /// In the family of the socket; a socket for IPv6 reaches IPv4 by mapped addresses.
    pub to: SocketAddr,
    /// The address to send from, as [`Datagrams::local`] gave it; `None`: the kernel's choice.
    pub from: Option<IpAddr>,
    /// The two bits of explicit congestion notification, 0 to 3.
    pub ecn: u8,
    /// `data` is cut into datagrams of this many bytes, the last one may be shorter; `None`: it is
    /// one. At most [`SEGMENTS_MAX`] of them.
    pub segment_bytes: Option<u16>,
    /// Together at most [`DATAGRAM_BYTES_MAX`].
    pub data: Bytes,
}

/// Datagrams that arrived from one address: one, or a train that the kernel joined.
#[derive(Debug)]
pub struct Datagrams {
    /// Their bytes, one after the other. To be released.
    pub lease: Lease,
    /// The sender; an IPv4 one is mapped where the socket is for IPv6.
    pub from: SocketAddr,
    /// The address that they were sent to; that of the answer.
    pub local: Option<IpAddr>,
    /// The two bits of explicit congestion notification, 0 to 3.
    pub ecn: u8,
    /// Bytes of each but the last, which may be shorter. Never zero, so that it may be divided by:
    /// 1 for an empty datagram.
    pub segment_bytes: u32,
}

/// One completion.
#[derive(Debug)]
pub struct Completion {
    /// The word given to [`Ring::submit`], or [`WOKEN_TOKEN`].
    pub token: u64,
    /// The operation that completed; unused for a wake.
    pub op: OpId,
    /// Whether more completions of this operation follow. Always true for a wake.
    pub more: bool,
    pub result: Result<Outcome, Errno>,
}

/// What an operation gave.
#[derive(Debug)]
pub enum Outcome {
    Accepted(Socket),
    /// The connected socket of [`Op::Connect`].
    Connected(Socket),
    /// `None`: the peer closed its side.
    Received(Option<Lease>),
    /// Bytes sent, and the chunks of the operation, so that a short send can go on.
    Sent {
        sent_bytes: usize,
        data: Vec<Bytes>,
    },
    Datagrams(Datagrams),
    Opened(File),
    Read(Bytes),
    Woken,
    /// Everything that gives nothing back.
    Done,
}

/// A bounded region of one of the ring's receive pools, lent to the shard. Neither cloneable nor
/// constructible by accident: it is returned through [`Ring::release`].
#[derive(Debug)]
#[must_use = "a lease that is not released starves the receive pool"]
pub struct Lease {
    pub pool: Pool,
    pub buffer_index: u16,
    pub length_bytes: u32,
}

/// The receive pool that a [`Lease`] is from; of no interest to its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// Of [`Op::Recv`].
    Stream,
    /// Of [`Op::RecvDatagrams`].
    Datagram,
}

/// Slot and generation of an operation in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpId {
    pub slot: u32,
    pub generation: u32,
}

/// A connected stream socket.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
pub struct Socket(pub i32);

/// A bound datagram socket. It belongs to its [`net::UdpGroup`] and is not closed by the ring.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
pub struct UdpSocket(pub i32);

/// An open file or directory.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
pub struct File(pub i32);

/// A listening socket. Its address is known to whoever bound it.
#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
pub struct Listener(pub i32);

/// Counted since the ring was made; exported as metrics by the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingCounters {
    pub enters: u64,
    pub submitted: u64,
    pub completions: u64,
    /// Operations that waited in user space because the submission queue was full.
    pub spilled: u64,
    /// Turns in which the kernel reported a completion queue overflow.
    pub overflows: u64,
    /// Receives that found the buffer pool empty.
    pub receive_pool_empty: u64,
    /// Receive buffers on loan now.
    pub leases_out: u64,
    /// Receives that found the datagram pool empty.
    pub datagram_pool_empty: u64,
    /// Datagram buffers on loan now.
    pub datagram_leases_out: u64,
    /// Datagrams that did not fit into their buffer, and so are of no use. IP carries none so large
    /// but as a jumbogram.
    pub datagrams_truncated: u64,
    /// Trains that the kernel refused to cut up; the ring sent their datagrams one by one.
    pub segmentations_refused: u64,
    /// Trains that the ring did not try as one, because the kernel had refused several before.
    pub trains_split: u64,
}

/// Token of a wake from another shard or thread; not for operations.
pub const WOKEN_TOKEN: u64 = u64::MAX;

/// Bytes of the largest datagram or train of datagrams, without its headers.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;

/// Datagrams of one train ([`DatagramSend::segment_bytes`]).
pub const SEGMENTS_MAX: usize = 64;

/// Completions that one [`Ring::enter`] appends at most, so that a turn stays short.
pub const COMPLETIONS_PER_ENTER_MAX: usize = 1024;
