//! What the fuzz targets do with one input. Each `check` panics when something does not hold; the
//! programs in `fuzz_targets` only hand it what the fuzzer makes up.
//!
//! An input is either the bytes of a peer or a disk as they are, or a [`script`]: a program whose
//! steps make valid data and then damage it, so that the fuzzer gets behind checksums and
//! encryption. Everything that `check` knows about the right answer is written here a second time,
//! the simple way.
#![forbid(unsafe_code)]

pub mod script;
pub mod frame;
mod calls;
mod client_frames;
mod send_model;
mod server_frames;
pub mod session;
pub mod client_session;
pub mod tls;
mod disk;
mod store;
mod image;
mod reopen;
pub mod record;
pub mod recovery;
pub mod e2ee;
pub mod seeds;
