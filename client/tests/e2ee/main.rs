//! End-to-end encryption against an attacker who owns the server and the network.
#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

mod devices;
mod group;
mod pair;
mod support;
mod verification;
