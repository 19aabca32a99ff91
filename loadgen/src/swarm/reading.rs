//! How fast clients take what is sent to them. A client that stops is the worst reader there is: its
//! socket stays open and fills up.

use std::ops::Range;

use ringpost_ring::Ring;

use super::{LinkState, Swarm};

/// From its Welcome on; until then everybody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    Eager,
    /// One receive, at most 16 KiB or so, then nothing for `pause_ns`.
    Slow {
        pause_ns: u64,
    },
    Stopped,
}

impl Swarm {
    /// How these clients read from now on. Those that read eagerly now go on until their next
    /// connection.
    pub fn set_reading(&mut self, clients: Range<u32>, reading: Reading) {
        for client in clients {
            self.slots[client as usize].reading = reading;
            self.mark_dirty(client);
        }
    }

    pub(super) fn read_eagerly(&mut self, client: u32) {
        self.slots[client as usize].reading = Reading::Eager;
        self.mark_dirty(client);
    }

    /// Whether a receive may be armed now.
    pub(super) fn is_due_to_read(&self, client: u32) -> bool {
        let slot = &self.slots[client as usize];
        match slot.reading {
            _ if slot.state == LinkState::Connecting => true,
            Reading::Eager => true,
            Reading::Stopped => false,
            Reading::Slow { .. } => !slot.resting,
        }
    }

    /// After a completion: a slow reader looks again after its pause.
    pub(super) fn rest(&mut self, client: u32) {
        let slot = &mut self.slots[client as usize];
        if slot.resting || slot.receiving || slot.state != LinkState::Open {
            return;
        }
        if let Reading::Slow { pause_ns } = slot.reading {
            slot.resting = true;
            self.resting.push_back((self.ring.now_ns() + pause_ns, client));
        }
    }

    pub(super) fn read_due(&mut self, now_ns: u64) {
        while self.resting.front().is_some_and(|&(at_ns, _)| at_ns <= now_ns) {
            if let Some((_, client)) = self.resting.pop_front() {
                self.slots[client as usize].resting = false;
                self.mark_dirty(client);
            }
        }
    }
}
