//! The same echo of 64 bytes over plain TCP on several runtimes: what a message costs before
//! anybody has looked at it.
//!
//! Servers: `on_ring` is the gateway's own ring; `on_monoio`, `on_glommio` and `on_tokio` are
//! written as their authors' examples are, one task per connection. Each runs in a process of its own
//! ([`server`]) and is asked by one [`client`], the same for all.

use std::io;
use std::net::SocketAddr;

use clap::ValueEnum;

pub mod client;
pub mod server;
mod on_glommio;
mod on_monoio;
mod on_ring;
mod on_tokio;

/// What a server runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Runtime {
    /// `ringpost-ring`: multishot accept and receive, buffers provided, one send per message.
    Ring,
    /// Completions; each connection holds a buffer while it waits.
    Monoio,
    /// Likewise.
    Glommio,
    /// epoll on the current thread; one buffer for all, read when there is something to read.
    Tokio,
}

impl Runtime {
    pub const ALL: [Self; 4] = [Self::Ring, Self::Monoio, Self::Glommio, Self::Tokio];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Monoio => "monoio",
            Self::Glommio => "glommio",
            Self::Tokio => "tokio",
        }
    }

    /// Echoes on the calling thread until the process ends.
    fn serve(self, announce: Announce) -> io::Result<()> {
        match self {
            Self::Ring => on_ring::serve(announce),
            Self::Monoio => on_monoio::serve(announce),
            Self::Glommio => on_glommio::serve(announce),
            Self::Tokio => on_tokio::serve(announce),
        }
    }
}

/// Told where a server listens, once it does.
type Announce = fn(SocketAddr);

/// Bytes of one message.
pub const MESSAGE_BYTES: usize = 64;
const ANY_PORT: &str = "127.0.0.1:0";
/// What a server without provided buffers reads into.
const BUFFER_BYTES: usize = 1024;
