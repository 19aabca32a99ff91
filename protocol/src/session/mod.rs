//! The order of frames on one connection, both ends. Sans-IO: the caller moves bytes and gives the
//! time, the sessions say what it means.

pub use client::{CallRefused, ClientHello, ClientSend, ClientSession, SendContent, SendRefused};
pub use server::ServerSession;

mod client;
mod server;
#[cfg(test)]
mod tests;

/// Silence after which the other end is taken for gone: 2.5 heartbeat intervals.
pub(crate) fn silence_ms_max(heartbeat_ms: u64) -> u64 {
    heartbeat_ms.saturating_mul(5) / 2
}
