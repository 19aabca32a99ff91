//! End to end: the real binaries, real sockets, the real client library.
//!
//! Waits are bounded and generous; no test depends on how fast anything is. Tests that need more
//! than the toolchain and a C compiler, or minutes, are ignored here and run by `.ci/run`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unreachable_pub, unnameable_types, reason = "the modules of one binary")]

mod support;

mod messenger;
mod named;
mod linked;
mod tampering;
mod crowd;
mod exchange;
mod groups;
mod offline;
mod kill;
mod power;
mod disk;
mod drain;
mod restart;
mod handover;
mod links;
mod devices;
mod full;
mod limits;
mod proxy;
mod reshard;
mod stale;
mod store_tool;
mod format;
mod faults;
mod tls;
mod quic;
mod sockets;
mod s2n;
mod openssl;
mod refusal;
mod reload;
mod keys;
mod prekeys;
mod rest;
mod audit;
mod admin;
mod chat;
mod tutorial;
mod verify;
mod visibility;
mod check;
