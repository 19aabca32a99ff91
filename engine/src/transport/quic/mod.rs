//! The QUIC side of a shard: datagrams in, streams and datagrams out, no IO. With
//! [`tls`](super::tls), whose keys it uses, the only place that knows quinn-proto.
//!
//! Every shard has one [`QuicEndpoint`]. A connection belongs to the shard that its connection ids
//! name; the steering program brings its datagrams there from whatever address they come, and
//! [`QuicEndpoint::poll_foreign`] gives those that landed elsewhere. Each connection has one
//! bidirectional stream, opened by the client, that carries what a TLS connection would.
//!
//! # How to call it
//!
//! - `handle_datagrams`, `handle_foreign`, `handle_timeout` take input, `read`, `write`, `finish`
//!   and `close` are the owner's wishes. Time is monotonic nanoseconds and never goes back.
//! - After any of them: `poll_event` until `None`, `poll_foreign` until `None`, `poll_transmit`
//!   until `None` or until no more can be sent; what is not polled stays. Then `poll_timeout` says
//!   when `handle_timeout` is due. It is right only once `poll_transmit` has given `None`.
//! - Events are hints and come once: after [`QuicEvent::Readable`] read until [`Read::Nothing`] or
//!   an end; after a `write` that left something, wait for [`QuicEvent::Writable`].
//! - A key lives from [`QuicEvent::Opened`] to [`QuicEvent::Ended`] or `close`, whichever is first;
//!   calls with an older one do nothing, and nothing is told about it.
//! - `close` after `finish` waits until the client has everything, for a bounded time; without
//!   `finish` it drops what was not sent.
//!
//! A bug in QUIC's state machine must not end the shard: a panic in one connection ends that
//! connection, and is counted and logged.

mod admission;
mod cid;
mod clock;
mod config;
mod connection;
mod counters;
mod endpoint;
mod keys;
mod parameters;
mod path;
#[cfg(feature = "plain-transport")]
pub mod plain;
mod timers;
mod transmit;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use quinn_proto::ConnectionError;

pub use ringpost_ring::steering::CidNaming;

pub use config::{QuicConfig, QuicLimits};
pub use counters::QuicCounters;
pub use endpoint::QuicEndpoint;
pub use keys::{QuicKeys, SECRET_BYTES};
pub(super) use parameters::with_fewer_ids;

/// Names one QUIC connection, and with it its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamKey {
    /// Whose endpoint has it.
    pub shard: u16,
    pub index: u32,
    /// Tells it from earlier connections at its place.
    pub generation: u32,
}

/// What the owner of the streams is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuicEvent {
    /// A client has done its handshake and opened its stream.
    Opened { key: StreamKey, from: IpAddr },
    /// Something has arrived, or the client's direction has ended.
    Readable(StreamKey),
    /// A write was refused, and may succeed now.
    Writable(StreamKey),
    /// The client is at another address, and has proven it.
    Moved { key: StreamKey, from: SocketAddr },
    /// The connection is gone, with what was not read or not sent.
    Ended { key: StreamKey, reason: EndReason },
}

/// Why a connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The client closed it.
    Closed { code: u64 },
    /// The client broke QUIC's rules, or says that we did.
    Fault { code: u64 },
    /// It was silent for too long.
    TimedOut,
    /// The client forgot it, or its stream.
    Reset,
    /// A bug of ours.
    Panicked,
}

/// What [`QuicEndpoint::read`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    Data(Bytes),
    /// Nothing yet.
    Nothing,
    /// The client sends no more.
    End,
    /// The client gave its direction up, or the connection is gone.
    Reset,
}

/// A datagram that landed on a shard to which its connection does not belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignDatagram {
    /// As the socket gave it.
    pub from: SocketAddr,
    pub local: Option<IpAddr>,
    pub ecn: u8,
    pub data: Bytes,
}

impl From<&ConnectionError> for EndReason {
    fn from(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                Self::Closed { code: close.error_code.into_inner() }
            }
            ConnectionError::ConnectionClosed(close) => {
                Self::Fault { code: close.error_code.into() }
            }
            ConnectionError::TransportError(error) => Self::Fault { code: error.code.into() },
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::Reset => Self::Reset,
            ConnectionError::LocallyClosed
            | ConnectionError::VersionMismatch
            | ConnectionError::CidsExhausted => Self::Fault { code: 0 },
        }
    }
}
