//! Clients that vanish without a word and return on another connection while the server still holds
//! the old one: what a phone does that leaves one network for another. The old socket stays open
//! for a while, unread, so that the kernel sends neither FIN nor reset for it.

use ringpost_ring::{Op, Ring, Socket};

use super::{CANCEL, GHOST, LinkState, NO_SOCKET, Swarm, token};
use crate::plan::mix;

/// When which client vanishes, and for how long. Pure and seeded.
#[derive(Debug)]
pub struct Churn {
    seed: u64,
    start_ns: u64,
    end_ns: u64,
    interval_ns: u64,
    absence_ns_max: u64,
    count: u64,
}

impl Churn {
    /// `interval_ns`: between two clients of this thread that vanish.
    pub fn new(
        seed: u64,
        start_ns: u64,
        duration_ns: u64,
        interval_ns: u64,
        absence_ns_max: u64,
    ) -> Self {
        let end_ns = start_ns + duration_ns;
        Self { seed, start_ns, end_ns, interval_ns, absence_ns_max, count: 0 }
    }

    /// When the next one vanishes; `u64::MAX` when none does any more.
    pub fn next_ns(&self) -> u64 {
        let at_ns = self.start_ns + (self.count + 1) * self.interval_ns;
        if at_ns < self.end_ns { at_ns } else { u64::MAX }
    }

    /// A number to choose the client by, and how long it stays away, if one is due.
    fn poll_due(&mut self, now_ns: u64) -> Option<(u64, u64)> {
        if now_ns < self.next_ns() {
            return None;
        }
        self.count += 1;
        let choice = mix(self.seed ^ mix(self.count));
        Some((choice, mix(choice) % self.absence_ns_max.max(1)))
    }
}

impl Swarm {
    pub fn set_churn(&mut self, churn: Option<Churn>) {
        self.churn = churn;
    }

    /// Clients whose time has come, and old sockets that are closed at last.
    pub(super) fn vanish_due(&mut self, now_ns: u64) {
        while let Some((choice, absence_ns)) =
            self.churn.as_mut().and_then(|churn| churn.poll_due(now_ns))
        {
            let count = self.slots.len() as u64;
            let found = (0..count)
                .map(|step| usize::try_from((choice + step) % count).expect("below a length"))
                .find(|&index| self.slots[index].state == LinkState::Open);
            if let Some(index) = found {
                self.vanish(u32::try_from(index).expect("clients are counted in u32"), absence_ns);
            }
        }
        self.close_ghosts(now_ns);
    }

    fn vanish(&mut self, client: u32, absence_ns: u64) {
        let slot = &mut self.slots[client as usize];
        slot.state = LinkState::Vanishing;
        slot.return_ns = self.ring.now_ns() + absence_ns;
        slot.client.disconnect();
        self.open -= 1;
        self.traffic.count_vanished();
        if let (true, Some(target)) = (slot.receiving, slot.receive_op) {
            slot.in_flight += 1;
            self.ring.submit(token(CANCEL, client), Op::Cancel { target });
        }
        self.close_when_quiet(client);
    }

    /// The last completion is here: nobody looks at the socket any more.
    pub(super) fn leave_ghost(&mut self, client: u32) {
        let slot = &mut self.slots[client as usize];
        let socket = std::mem::replace(&mut slot.socket, NO_SOCKET);
        slot.state = LinkState::Down;
        slot.sending = false;
        self.ghosts.push_back((self.ring.now_ns() + GHOST_NS, socket));
        if slot.wanted {
            self.retries.push((slot.return_ns, client));
        }
    }

    pub(super) fn close_ghosts(&mut self, now_ns: u64) {
        while self.ghosts.front().is_some_and(|&(at_ns, _)| at_ns <= now_ns) {
            if let Some((_, socket)) = self.ghosts.pop_front() {
                self.close_ghost(socket);
            }
        }
    }

    fn close_ghost(&mut self, socket: Socket) {
        // No client has this number, and nobody waits for the completion.
        self.ring.submit(token(GHOST, u32::MAX), Op::CloseSocket { socket });
    }
}

/// How long an old socket stays open.
pub const GHOST_NS: u64 = 10_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vanishing_is_spread_over_the_time_and_seeded() {
        let drain = |seed| {
            let mut churn = Churn::new(seed, 1_000, 1_000, 100, 50);
            assert_eq!(churn.poll_due(1_099), None);
            let due: Vec<(u64, u64)> =
                std::iter::from_fn(|| churn.poll_due(u64::MAX - 1)).collect();
            assert_eq!(churn.next_ns(), u64::MAX);
            due
        };
        assert_eq!(drain(1).len(), 9);
        assert!(drain(1).iter().all(|&(_, absence_ns)| absence_ns < 50));
        assert_eq!(drain(1), drain(1));
        assert_ne!(drain(1), drain(2));
    }
}
