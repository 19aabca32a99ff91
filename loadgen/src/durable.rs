//! Apps that are killed: processes of their own, each with a few users on the client library and its
//! database. What an app was told, and what it sent, stands in [`journal`]s, written before it goes
//! on; from those of all users [`verify`] finds what was lost, doubled or swapped.
//!
//! Users form a ring through all processes: each sends to the user of the same place in the next
//! process, so that every conversation lives through the death of one of its ends.

pub mod app;
pub mod journal;
pub mod processes;
pub mod verify;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// All processes, as each of them needs to know them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurablePlan {
    pub processes: u32,
    pub users_per_process: u32,
    /// Between two messages of one user.
    pub interval: Duration,
    pub payload_bytes: usize,
    /// Distinguishes runs against one server.
    pub run: u32,
    /// Databases and journals, a directory per user.
    pub directory: PathBuf,
    /// The gateway's `ca.pem`, `token-key.pem` and `jwks.json`.
    pub data: PathBuf,
    pub target: SocketAddr,
    pub server_name: String,
}

impl DurablePlan {
    pub fn users(&self) -> u32 {
        self.processes * self.users_per_process
    }

    /// Whom this user sends to.
    pub fn peer(&self, user: u32) -> u32 {
        (user + self.users_per_process) % self.users()
    }

    pub fn user_name(&self, user: u32) -> String {
        format!("loadgen-{:08x}-durable-{user}", self.run)
    }

    pub fn user_directory(&self, user: u32) -> PathBuf {
        self.directory.join(format!("user-{user}"))
    }

    /// Exists when this user has been welcome, and so can be sent to.
    pub fn known_file(&self, user: u32) -> PathBuf {
        self.user_directory(user).join("known")
    }

    /// Exists when all users can be sent to.
    pub fn start_file(&self) -> PathBuf {
        self.directory.join("start")
    }

    /// Exists when nothing more is to be sent.
    pub fn stop_file(&self) -> PathBuf {
        self.directory.join("stop")
    }

    /// Exists when the apps are to close.
    pub fn finish_file(&self) -> PathBuf {
        self.directory.join("finish")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_sends_to_another_process_and_hears_from_one() {
        let plan = DurablePlan {
            processes: 3,
            users_per_process: 4,
            interval: Duration::from_millis(10),
            payload_bytes: 100,
            run: 1,
            directory: PathBuf::new(),
            data: PathBuf::new(),
            target: "127.0.0.1:1".parse().unwrap(),
            server_name: String::new(),
        };
        let mut peers: Vec<u32> = (0..plan.users()).map(|user| plan.peer(user)).collect();
        assert!((0..plan.users()).all(|user| plan.peer(user) / 4 != user / 4));
        peers.sort_unstable();
        assert_eq!(peers, (0..12).collect::<Vec<u32>>());
    }
}
