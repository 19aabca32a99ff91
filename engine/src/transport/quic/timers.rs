//! When the connections of a shard want to be looked at: a hierarchical wheel with one node per
//! connection, linked by indices.
//!
//! A connection's deadline moves with nearly every packet, mostly further away. So a node stays in
//! its slot when its deadline moves back, and is linked anew when the slot comes due: at most one
//! relink per slot time instead of one per packet. Since a connection has one node, an hour of
//! traffic leaves nothing behind.

/// Deadlines of what is named by small indices. Nothing fires early; late by less than
/// [`TICK_NS`], and by what the caller adds.
pub(super) struct Timers {
    nodes: Vec<Node>,
    /// First node of each slot's list.
    heads: Box<[[u32; SLOTS]; LEVELS]>,
    /// One bit per slot that has nodes.
    occupied: [u64; LEVELS],
    /// Everything up to this tick has fired.
    tick: u64,
}

#[derive(Clone, Copy)]
struct Node {
    deadline_ns: u64,
    next: u32,
    previous: u32,
    /// Where it is linked, `UNLINKED` if nowhere. What counts for firing: a deadline alone does
    /// not, it may have moved since.
    level: u8,
    slot: u8,
}

impl Timers {
    pub(super) fn new(now_ns: u64) -> Self {
        Self {
            nodes: Vec::new(),
            heads: Box::new([[NONE; SLOTS]; LEVELS]),
            occupied: [0; LEVELS],
            tick: now_ns / TICK_NS,
        }
    }

    /// Sets the deadline of `index`, or removes it.
    pub(super) fn set(&mut self, index: u32, deadline_ns: Option<u64>) {
        let place = index as usize;
        if place >= self.nodes.len() {
            if deadline_ns.is_none() {
                return;
            }
            self.nodes.resize(place + 1, Node::UNLINKED);
        }
        let Some(deadline_ns) = deadline_ns else {
            self.unlink(index);
            return;
        };
        self.nodes[place].deadline_ns = deadline_ns;
        let node = self.nodes[place];
        if node.is_linked() {
            if self.due_tick(node.level, node.slot) <= ceil_tick(deadline_ns) {
                return; // the slot comes no later
            }
            self.unlink(index);
        }
        self.link(index);
    }

    /// Appends what is due to `due`, and forgets its deadline.
    pub(super) fn expire(&mut self, now_ns: u64, due: &mut Vec<u32>) {
        let now_tick = now_ns / TICK_NS;
        while let Some((level, slot)) = self.first_slot() {
            let at = self.due_tick(level, slot);
            if at > now_tick {
                break;
            }
            self.tick = self.tick.max(at);
            self.empty(level, slot, due);
        }
        self.tick = self.tick.max(now_tick);
    }

    /// When [`Timers::expire`] should be called next. Not later than the first deadline and a tick;
    /// earlier where nodes wait to be linked anew.
    pub(super) fn next_ns(&self) -> Option<u64> {
        let (level, slot) = self.first_slot()?;
        Some(self.due_tick(level, slot) * TICK_NS)
    }

    /// Fires what is due of one slot and links the rest closer.
    fn empty(&mut self, level: u8, slot: u8, due: &mut Vec<u32>) {
        let head = &mut self.heads[usize::from(level)][usize::from(slot)];
        let mut index = std::mem::replace(head, NONE);
        self.occupied[usize::from(level)] &= !(1 << slot);
        while index != NONE {
            let node = self.nodes[index as usize];
            self.nodes[index as usize].level = LEVEL_NONE;
            if ceil_tick(node.deadline_ns) <= self.tick {
                due.push(index);
            } else {
                self.link(index);
            }
            index = node.next;
        }
    }

    /// The slot that is due first. Slots of a level lie within the current slot of the next one, so
    /// the lowest level that has any holds the first.
    fn first_slot(&self) -> Option<(u8, u8)> {
        let level = self.occupied.iter().position(|&slots| slots != 0)?;
        let slot = self.occupied[level].trailing_zeros();
        Some((narrow(level as u64), narrow(u64::from(slot))))
    }

    /// First tick of a slot that is not behind the current tick.
    fn due_tick(&self, level: u8, slot: u8) -> u64 {
        let shift = u32::from(level) * SLOT_BITS;
        let above = (self.tick >> shift >> SLOT_BITS) << SLOT_BITS;
        (above | u64::from(slot)) << shift
    }

    fn link(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        let tick = ceil_tick(node.deadline_ns).max(self.tick);
        // The highest bit in which it differs from now says how coarse a slot will do.
        let level = (tick ^ self.tick).checked_ilog2().unwrap_or(0) / SLOT_BITS;
        let slot = (tick >> (level * SLOT_BITS)) & (SLOTS as u64 - 1);
        (node.level, node.slot) = (narrow(u64::from(level)), narrow(slot));
        let head = &mut self.heads[level as usize][usize::from(node.slot)];
        (node.previous, node.next) = (NONE, *head);
        *head = index;
        self.occupied[level as usize] |= 1 << slot;
        let next = node.next;
        if next != NONE {
            self.nodes[next as usize].previous = index;
        }
    }

    fn unlink(&mut self, index: u32) {
        let node = self.nodes[index as usize];
        if !node.is_linked() {
            return;
        }
        self.nodes[index as usize].level = LEVEL_NONE;
        if node.next != NONE {
            self.nodes[node.next as usize].previous = node.previous;
        }
        if node.previous != NONE {
            self.nodes[node.previous as usize].next = node.next;
            return;
        }
        let level = usize::from(node.level);
        self.heads[level][usize::from(node.slot)] = node.next;
        if node.next == NONE {
            self.occupied[level] &= !(1 << node.slot);
        }
    }
}

impl Node {
    const UNLINKED: Self =
        Self { deadline_ns: 0, next: NONE, previous: NONE, level: LEVEL_NONE, slot: 0 };

    fn is_linked(&self) -> bool {
        self.level != LEVEL_NONE
    }
}

/// The first tick that is not before `deadline_ns`.
fn ceil_tick(deadline_ns: u64) -> u64 {
    deadline_ns.div_ceil(TICK_NS)
}

/// Levels and slots are small.
fn narrow(number: u64) -> u8 {
    u8::try_from(number).expect("at most 64")
}

/// Resolution: a quarter of a millisecond, below what QUIC itself rounds to.
pub(super) const TICK_NS: u64 = 1 << 18;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Enough for every 64-bit time.
const LEVELS: usize = 8;
const NONE: u32 = u32::MAX;
const LEVEL_NONE: u8 = u8::MAX;

const _: () =
    assert!((u64::BITS - TICK_NS.trailing_zeros()).div_ceil(SLOT_BITS) as usize <= LEVELS);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const MS: u64 = 1_000_000;

    fn expire(timers: &mut Timers, now_ns: u64) -> Vec<u32> {
        let mut due = Vec::new();
        timers.expire(now_ns, &mut due);
        due.sort_unstable();
        due
    }

    /// A deadline that moves away, is linked anew when its old slot comes due, and then moves
    /// nearer than that new slot: the one that fires must be the near one.
    #[test]
    fn a_node_that_was_linked_anew_still_comes_nearer() {
        let mut timers = Timers::new(0);
        timers.set(0, Some(10 * MS));
        timers.set(0, Some(60_000 * MS));
        assert!(expire(&mut timers, 11 * MS).is_empty());
        timers.set(0, Some(30 * MS));
        assert!(timers.next_ns().unwrap() <= 30 * MS + TICK_NS);
        assert_eq!(expire(&mut timers, 31 * MS), [0]);
        assert_eq!(timers.next_ns(), None);
    }

    #[test]
    fn a_removed_deadline_does_not_fire() {
        let mut timers = Timers::new(0);
        for index in 0..10 {
            timers.set(index, Some(u64::from(index) * MS));
        }
        timers.set(4, None);
        timers.set(99, None);
        assert_eq!(expire(&mut timers, 100 * MS), [0, 1, 2, 3, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_deadline_in_the_past_is_due_at_once() {
        let mut timers = Timers::new(1_000 * MS);
        assert!(expire(&mut timers, 2_000 * MS).is_empty());
        timers.set(7, Some(MS));
        assert!(timers.next_ns().unwrap() <= 2_000 * MS);
        assert_eq!(expire(&mut timers, 2_000 * MS), [7]);
    }

    /// Acceptance test 21, its second half: an hour of ping-pong, deadlines that go near and far,
    /// leaves one node per connection and no slot that is not used.
    #[test]
    fn an_hour_of_ping_pong_leaves_nothing_behind() {
        let mut timers = Timers::new(0);
        let mut fired = 0;
        for round in 0..36_000 {
            let now_ns = round * 100 * MS;
            fired += expire(&mut timers, now_ns).len();
            timers.set(3, Some(now_ns + 300 * MS)); // a packet was sent: loss detection
            timers.set(3, Some(now_ns + 3_750_000 * MS)); // it was acknowledged: idle
        }
        assert_eq!(fired, 0);
        assert_eq!(timers.nodes.len(), 4);
        let slots: u32 = timers.occupied.iter().map(|slots| slots.count_ones()).sum();
        assert_eq!(slots, 1);
    }

    /// Against a map of deadlines: everything fires, in its tick, once, and the wheel wakes no
    /// later than it must and not all the time.
    #[test]
    fn agrees_with_a_sorted_map() {
        let mut state = 7_u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut now_ns = 123_456_789;
        let (mut timers, mut model) = (Timers::new(now_ns), BTreeMap::new());
        let mut wakes = 0;
        for _ in 0..200_000 {
            let index = u32::try_from(random(300)).unwrap();
            match random(10) {
                0 => {
                    timers.set(index, None);
                    model.remove(&index);
                }
                1..=6 => {
                    let spans = [MS / 3, 20 * MS, 900 * MS, 100_000 * MS, 4_000_000 * MS];
                    let span = usize::try_from(random(5)).unwrap();
                    let deadline_ns = now_ns + random(spans[span]);
                    timers.set(index, Some(deadline_ns));
                    model.insert(index, deadline_ns);
                }
                _ => {
                    if let Some(&first_ns) = model.values().min() {
                        let next_ns = timers.next_ns().unwrap();
                        assert!(next_ns < first_ns.max(now_ns) + TICK_NS, "sleeps too long");
                        now_ns = now_ns.max(next_ns) + random(5 * MS);
                        wakes += 1;
                    }
                    let expected: Vec<u32> = model
                        .iter()
                        .filter(|&(_, at_ns)| at_ns.div_ceil(TICK_NS) <= now_ns / TICK_NS)
                        .map(|(&index, _)| index)
                        .collect();
                    assert_eq!(expire(&mut timers, now_ns), expected);
                    model.retain(|index, _| !expected.contains(index));
                }
            }
        }
        assert!(wakes > 1_000);
    }
}
