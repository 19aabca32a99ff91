//! Clients that change their network: those on QUIC leave their address and port and go on, those on
//! TCP lose their connection in the middle of what they say, and resume on another one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hdrhistogram::Histogram;
use ringpost_ring::Ring;

use super::{LinkState, Slot, Swarm};
use crate::plan::mix;

/// What one thread's clients went through.
#[derive(Clone, Debug)]
pub struct Handovers {
    /// Those that came to an end.
    pub count: u64,
    /// That came to an end, of all connections, from the first one on.
    pub handshakes: u64,
    /// Of these, those that a ticket shortened.
    pub resumed: u64,
    /// From the last frame before to the first one after, in microseconds.
    pub silence_us: Histogram<u64>,
    /// From the change of the network to the first frame after it, in microseconds.
    pub recovery_us: Histogram<u64>,
}

/// When which client's network changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// (nanoseconds, client), the earliest first.
    due: BinaryHeap<Reverse<(u64, u32)>>,
    seed: u64,
    cuts: u64,
}

/// The end of a client's network, in the middle of what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    No,
    /// In the next bytes that are sent.
    Due,
    /// The bytes before it are under way; over TCP alone.
    Sending,
}

/// A change that is not over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    heard_ns: u64,
    at_ns: u64,
}

impl Handovers {
    pub fn new() -> Self {
        let bounds =
            || Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("constant and legal bounds");
        Self { count: 0, handshakes: 0, resumed: 0, silence_us: bounds(), recovery_us: bounds() }
    }

    pub fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.handshakes += other.handshakes;
        self.resumed += other.resumed;
        self.silence_us += &other.silence_us;
        self.recovery_us += &other.recovery_us;
    }
}

impl Default for Handovers {
    fn default() -> Self {
        Self::new()
    }
}

impl Changes {
    pub(super) fn next_ns(&self) -> u64 {
        self.due.peek().map_or(u64::MAX, |Reverse((at_ns, _))| *at_ns)
    }

    /// Shortens what a client sends whose connection is to be cut.
    pub(super) fn shorten(&mut self, slot: &mut Slot, bytes: &mut Vec<u8>) {
        if slot.cut == Cut::Due && slot.state == LinkState::Open {
            slot.cut = Cut::Sending;
            self.cuts += 1;
            let random = mix(self.seed ^ mix(self.cuts));
            let left = random % (bytes.len() as u64 + 1);
            bytes.truncate(usize::try_from(left).expect("at most a length"));
        }
    }
}

impl Swarm {
    /// `changes`: (nanoseconds from now, client).
    pub fn set_changes(&mut self, seed: u64, changes: impl IntoIterator<Item = (u64, u32)>) {
        let now_ns = self.now_ns();
        let due = changes.into_iter().map(|(at_ns, client)| Reverse((now_ns + at_ns, client)));
        self.changes = Changes { due: due.collect(), seed, cuts: 0 };
    }

    pub fn handovers(&self) -> &Handovers {
        &self.handovers
    }

    /// No change of a network is to come, and none is under way.
    pub fn is_settled(&self) -> bool {
        let is_quiet = |slot: &Slot| slot.change.is_none() && slot.cut == Cut::No;
        self.changes.due.is_empty() && self.slots.iter().all(is_quiet)
    }

    /// Each change waits until the client says something, and happens in the middle of it.
    pub(super) fn change_due(&mut self, now_ns: u64) {
        while let Some(Reverse((at_ns, client))) = self.changes.due.peek().copied()
            && at_ns <= now_ns
        {
            self.changes.due.pop();
            let slot = &mut self.slots[client as usize];
            if slot.state != LinkState::Open || slot.change.is_some() || slot.cut != Cut::No {
                // Its last change is not over: one at a time, but none is left out.
                self.changes.due.push(Reverse((now_ns + AGAIN_NS, client)));
            } else {
                slot.cut = Cut::Due;
                if self.traffic.next_ns().is_none() {
                    self.speak(client);
                }
            }
        }
    }

    /// Changes that still wait for something to be said need not any more: the load is over.
    pub fn hurry_changes(&mut self) {
        for client in self.clients() {
            if self.slots[client as usize].cut == Cut::Due {
                self.speak(client);
            }
        }
    }

    fn speak(&mut self, client: u32) {
        let now_ms = self.ring.now_ns() / 1_000_000;
        self.slots[client as usize].client.probe(now_ms);
        self.mark_dirty(client);
    }

    /// A client has no network any more.
    pub(super) fn begin_change(&mut self, client: u32) {
        let now_ns = self.ring.now_ns();
        let slot = &mut self.slots[client as usize];
        slot.cut = Cut::No;
        slot.change = Some(Change { heard_ns: slot.heard_ns, at_ns: now_ns });
    }

    /// The bytes before the cut of a TCP connection are out.
    pub(super) fn cut(&mut self, client: u32) {
        self.begin_change(client);
        self.slots[client as usize].returns_at_once = true;
        self.lose(client, "cut");
    }

    /// A frame came.
    pub(super) fn note_heard(&mut self, client: u32) {
        let now_ns = self.ring.now_ns();
        let slot = &mut self.slots[client as usize];
        slot.heard_ns = now_ns;
        let Some(change) = slot.change.take() else { return };
        self.handovers.count += 1;
        let us = |from_ns: u64| now_ns.saturating_sub(from_ns) / 1_000;
        self.handovers.silence_us.saturating_record(us(change.heard_ns));
        self.handovers.recovery_us.saturating_record(us(change.at_ns));
    }
}

/// Before a change is tried again that came too soon.
const AGAIN_NS: u64 = 20_000_000;
const LATENCY_US_MAX: u64 = 600_000_000;
