//! Virtual time, the order of events, and seeded randomness.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The clock of a world and what is going to happen in it. Events of the same moment come in the
/// order in which they were planned.
#[derive(Debug)]
pub struct Clock<E> {
    now_ns: u64,
    /// The wall clock at `now_ns` 0; it may be set at any time.
    unix_start_ms: u64,
    planned: u64,
    heap: BinaryHeap<Reverse<Planned<E>>>,
    fingerprint: Fingerprint,
}

#[derive(Debug)]
struct Planned<E> {
    at_ns: u64,
    /// Breaks ties, so that the order never depends on the heap's inner layout.
    number: u64,
    event: E,
}

impl<E> Clock<E> {
    pub fn new() -> Self {
        Self {
            now_ns: START_NS,
            unix_start_ms: UNIX_START_MS,
            planned: 0,
            heap: BinaryHeap::new(),
            fingerprint: Fingerprint(0xcbf2_9ce4_8422_2325),
        }
    }

    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    pub fn now_ms(&self) -> u64 {
        self.now_ns / 1_000_000
    }

    pub fn unix_ms(&self) -> u64 {
        self.unix_start_ms + self.now_ms()
    }

    /// Sets the wall clock forward, or back; never before the world began.
    pub fn step_unix(&mut self, step_ms: i64) {
        self.unix_start_ms = self.unix_start_ms.saturating_add_signed(step_ms).max(UNIX_MIN_MS);
    }

    /// Plans `event`; a time in the past means now.
    pub fn plan(&mut self, at_ns: u64, event: E) {
        self.planned += 1;
        let at_ns = at_ns.max(self.now_ns);
        self.heap.push(Reverse(Planned { at_ns, number: self.planned, event }));
    }

    pub fn plan_in(&mut self, delay_ns: u64, event: E) {
        self.plan(self.now_ns.saturating_add(delay_ns), event);
    }

    /// Goes to the next event; `None`: there is none up to `end_ns`.
    pub fn next_until(&mut self, end_ns: u64) -> Option<E> {
        if self.heap.peek()?.0.at_ns > end_ns {
            return None;
        }
        let Reverse(planned) = self.heap.pop()?;
        self.now_ns = planned.at_ns;
        Some(planned.event)
    }

    /// Adds to the fingerprint of this run: two runs of one seed must note the same.
    pub fn note(&mut self, words: &[u64]) {
        self.fingerprint.add(self.now_ns);
        for &word in words {
            self.fingerprint.add(word);
        }
    }

    pub fn fingerprint(&self) -> u64 {
        self.fingerprint.0
    }
}

impl<E> Default for Clock<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> PartialEq for Planned<E> {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<E> Eq for Planned<E> {}

impl<E> PartialOrd for Planned<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Planned<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ns, self.number).cmp(&(other.at_ns, other.number))
    }
}

/// Of everything that happened, in order.
#[derive(Clone, Copy, Debug)]
struct Fingerprint(u64);

impl Fingerprint {
    fn add(&mut self, word: u64) {
        self.0 = mix(self.0 ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
    }
}

/// One stream of random numbers (SplitMix64). Every kind of fault has its own, so that adding one
/// does not change what the others do.
#[derive(Clone, Debug)]
pub struct Stream(u64);

impl Stream {
    pub fn new(seed: u64, name: &str) -> Self {
        let mut state = mix(seed ^ 0x005e_ed0f_0a11);
        for byte in name.bytes() {
            state = mix(state ^ u64::from(byte)).wrapping_add(1);
        }
        Self(state)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Below `bound`, which is above zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a length")
    }

    /// Between `low` and `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `per_mille` of 1,000 cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }

    /// Mostly around `usual`, now and then up to sixteen times that.
    pub fn delay(&mut self, usual: u64) -> u64 {
        let ceiling = if self.chance(50) { 16 * usual } else { usual };
        self.below(ceiling + 1)
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub const MS: u64 = 1_000_000;
/// Not zero, so that a deadline that was never set shows.
const START_NS: u64 = 1_000 * MS;
/// A moment in January 2027.
const UNIX_START_MS: u64 = 1_800_000_000_000;
/// A machine whose clock lost its battery.
const UNIX_MIN_MS: u64 = 1_000_000_000_000;
