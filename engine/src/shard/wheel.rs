//! A hashed timer wheel. It holds keys, not callbacks: a key that comes out is only a hint to look
//! at the real deadline, so a deadline that moved later costs nothing until the old one fires.

use crate::limits::{WHEEL_SLOTS, WHEEL_TICK_MS};

/// Timers of one shard, keyed by whatever `K` names.
pub(super) struct Wheel<K> {
    slots: Box<[Vec<(u64, K)>]>,
    /// Tick up to which everything has fired, exclusive.
    next_tick: u64,
    len: usize,
}

impl<K: Copy> Wheel<K> {
    pub(super) fn new(now_ms: u64) -> Self {
        let slots = (0..WHEEL_SLOTS).map(|_| Vec::new()).collect();
        Self { slots, next_tick: now_ms / WHEEL_TICK_MS, len: 0 }
    }

    /// Fires `key` at the first tick at or after `deadline_ms`.
    pub(super) fn insert(&mut self, deadline_ms: u64, key: K) {
        let tick = deadline_ms.div_ceil(WHEEL_TICK_MS).max(self.next_tick);
        self.slots[slot_of(tick)].push((tick, key));
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
            let slot = &mut self.slots[slot_of(tick)];
            let before = slot.len();
            slot.retain(|&(at, key)| {
                if at <= now_tick {
                    due.push(key);
                }
                at > now_tick
            });
            self.len -= before - slot.len();
        }
    }

    /// When [`Wheel::expire`] should be called next, in milliseconds; `None` without timers.
    ///
    /// Looks ahead at most one turn of the wheel.
    pub(super) fn next_deadline_ms(&self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let turn = self.next_tick..self.next_tick + WHEEL_SLOTS as u64;
        let tick = turn
            .clone()
            .find(|&tick| self.slots[slot_of(tick)].iter().any(|&(at, _)| at <= tick))
            .unwrap_or(turn.end);
        Some(tick * WHEEL_TICK_MS)
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

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
