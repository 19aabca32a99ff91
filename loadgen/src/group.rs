//! The members of one group: a thread for each device, and what all of them must have seen.

mod admin;
mod device;
mod verify;

use std::sync::atomic::AtomicU64;

pub use device::{Device, Seen};
pub use verify::{Findings, verify};

/// What the devices do, together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    Login = 1,
    /// The first device makes the group.
    Create,
    /// The others ask for its roster.
    Read,
    /// Members send; the first device changes the group.
    Talk,
    Leave,
}

impl From<Phase> for u32 {
    fn from(phase: Phase) -> Self {
        phase as Self
    }
}

/// What all devices together have done.
#[derive(Debug, Default)]
pub struct Tally {
    pub accepted: AtomicU64,
    /// Deliveries of what was accepted.
    pub expected: AtomicU64,
}
