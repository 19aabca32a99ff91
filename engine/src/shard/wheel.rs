//! A hashed timer wheel. It holds keys, not callbacks: a key that comes out is only a hint to look
//! at the real deadline, so a deadline that moved later costs nothing until the old one fires.

use crate::limits::{WHEEL_SLOTS, WHEEL_TICK_MS};

/// Timers of one shard, keyed by whatever `K` names.
pub(super) struct Wheel<K> {
    slots: Box<[Vec<(u64, K)>]>,
    /// One bit per slot that is not empty: every turn asks for the next deadline.
    occupied: Box<[u64]>,
    /// Tick up to which everything has fired, exclusive.
    next_tick: u64,
    len: usize,
}

impl<K: Copy> Wheel<K> {
    pub(super) fn new(now_ms: u64) -> Self {
        let slots = (0..WHEEL_SLOTS).map(|_| Vec::new()).collect();
        let occupied = vec![0; WHEEL_SLOTS / WORD_BITS].into_boxed_slice();
        Self { slots, occupied, next_tick: now_ms / WHEEL_TICK_MS, len: 0 }
    }

    /// Fires `key` at the first tick at or after `deadline_ms`.
    pub(super) fn insert(&mut self, deadline_ms: u64, key: K) {
        let tick = deadline_ms.div_ceil(WHEEL_TICK_MS).max(self.next_tick);
        let slot = slot_of(tick);
        self.slots[slot].push((tick, key));
        self.occupied[slot / WORD_BITS] |= 1 << (slot % WORD_BITS);
        self.len += 1;
    }

    /// Moves the keys whose time has come into `due`.
    pub(super) fn expire(&mut self, now_ms: u64, due: &mut Vec<K>) {
        let now_tick = now_ms / WHEEL_TICK_MS;
        if now_tick < self.next_tick {
            return;
        }
        // After a long sleep every slot is looked at once, not once per missed tick.
        let first = self.next_tick.max(now_tick.saturating_sub(WHEEL_SLOTS as u64 - 1));
        self.next_tick = now_tick + 1;
        for tick in first..=now_tick {
            let index = slot_of(tick);
            let slot = &mut self.slots[index];
            let before = slot.len();
            slot.retain(|&(at, key)| {
                if at <= now_tick {
                    due.push(key);
                }
                at > now_tick
            });
            self.len -= before - slot.len();
            if slot.is_empty() {
                self.occupied[index / WORD_BITS] &= !(1 << (index % WORD_BITS));
            }
        }
    }

    /// When [`Wheel::expire`] should be called next, in milliseconds; `None` without timers.
    ///
    /// Looks ahead at most one turn of the wheel.
    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let end = self.next_tick + WHEEL_SLOTS as u64;
        let mut tick = self.next_tick;
        while tick < end {
            let slot = slot_of(tick);
            let ahead = self.occupied[slot / WORD_BITS] >> (slot % WORD_BITS);
            if ahead == 0 {
                tick += (WORD_BITS - slot % WORD_BITS) as u64;
                continue;
            }
            tick += u64::from(ahead.trailing_zeros());
            if tick < end && self.slots[slot_of(tick)].iter().any(|&(at, _)| at <= tick) {
                break;
            }
            tick += 1;
        }
        Some(tick.min(end) * WHEEL_TICK_MS)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

const WORD_BITS: usize = u64::BITS as usize;

fn slot_of(tick: u64) -> usize {
    usize::try_from(tick).expect("64-bit platform") & (WHEEL_SLOTS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expire(wheel: &mut Wheel<u32>, now_ms: u64) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.expire(now_ms, &mut due);
        due
    }

    #[test]
    fn fires_at_or_after_the_deadline_never_before() {
        let mut wheel = Wheel::new(1_000);
        wheel.insert(2_000, 1);
        assert!(expire(&mut wheel, 1_999).is_empty());
        let due_ms = wheel.next_deadline_ms().expect("one timer");
        assert!((2_000..2_000 + 2 * WHEEL_TICK_MS).contains(&due_ms));
        assert_eq!(expire(&mut wheel, due_ms), [1]);
        assert_eq!(wheel.len(), 0);
        assert_eq!(wheel.next_deadline_ms(), None);
    }

    #[test]
    fn the_next_deadline_is_the_earliest_wherever_the_wheel_stands() {
        for start in [0, 5, 63, 64, 2_047, 2_048, 99_999] {
            for after in [1, 2, 63, 64, 65, 2_000, WHEEL_SLOTS as u64 - 1] {
                let mut wheel = Wheel::new(start * WHEEL_TICK_MS);
                let due_tick = start + after;
                // One that waits for a later turn of the wheel, in a slot before the earliest.
                wheel.insert((due_tick - 1 + WHEEL_SLOTS as u64) * WHEEL_TICK_MS, 2);
                wheel.insert(due_tick * WHEEL_TICK_MS, 1);
                assert_eq!(wheel.next_deadline_ms(), Some(due_tick * WHEEL_TICK_MS));
                assert_eq!(expire(&mut wheel, due_tick * WHEEL_TICK_MS), [1]);
                assert!(wheel.next_deadline_ms() > Some(due_tick * WHEEL_TICK_MS));
            }
        }
    }

    #[test]
    fn deadlines_beyond_one_turn_wait_their_turns() {
        let turn_ms = WHEEL_TICK_MS * WHEEL_SLOTS as u64;
        let mut wheel = Wheel::new(0);
        wheel.insert(3 * turn_ms, 7);
        for turn in 1..3 {
            assert!(expire(&mut wheel, turn * turn_ms).is_empty(), "turn {turn}");
        }
        assert_eq!(expire(&mut wheel, 3 * turn_ms), [7]);
    }

    #[test]
    fn a_long_sleep_fires_everything_once() {
        let mut wheel = Wheel::new(0);
        for key in 0..100 {
            wheel.insert(u64::from(key) * 1_000, key);
        }
        let mut due = expire(&mut wheel, 1_000_000_000);
        due.sort_unstable();
        assert_eq!(due, (0..100).collect::<Vec<_>>());
        assert!(expire(&mut wheel, 2_000_000_000).is_empty());
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_the_next_tick() {
        let mut wheel = Wheel::new(10_000);
        assert!(expire(&mut wheel, 10_000).is_empty());
        wheel.insert(5, 9);
        assert_eq!(expire(&mut wheel, 10_000 + WHEEL_TICK_MS), [9]);
    }
}
