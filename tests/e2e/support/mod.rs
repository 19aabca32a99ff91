//! Gateways as child processes, clients of both kinds, and bounded waits.

use std::time::{Duration, Instant};

pub mod app;
pub mod binaries;
pub mod disk;
pub mod frames;
pub mod gateway;
pub mod key_server;
pub mod keys;
pub mod netns;
pub mod operator;
pub mod load;
pub mod member;
pub mod peer;
pub mod quic;
pub mod raw;
pub mod terminal;
pub mod traces;

/// Bound of every wait. Reached only when something is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until `ready` gives something.
pub fn wait_until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ready() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
