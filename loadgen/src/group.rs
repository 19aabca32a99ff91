//! The members of one group: a thread for each device, and what all of them must have seen.

mod device;

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

pub use device::{Device, Door, Seen};

/// What the devices of a group and the one who waits for them know of each other.
#[derive(Debug, Default)]
pub struct Stage {
    phase: AtomicU32,
    /// Devices that are through with this phase.
    through: AtomicU32,
    pub delivered: AtomicU64,
    failed: AtomicBool,
}

/// What the devices do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Phase {
    Login,
    /// The first device makes the group.
    Create,
    Talk,
    Leave,
}

impl Stage {
    /// For the one who waits: everybody is through with the last one.
    pub fn begin(&self, phase: Phase) {
        self.through.store(0, Ordering::Release);
        self.phase.store(phase as u32, Ordering::Release);
    }

    fn has_begun(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Acquire) >= phase as u32
    }

    pub fn through(&self) -> u32 {
        self.through.load(Ordering::Acquire)
    }

    fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

/// Pairs of messages, next to each other at one device, that another device has seen the other way
/// round. The order of all is that of the devices together: each lacks only what it sent itself.
pub fn reordered(orders: &[&[u64]], messages: u64) -> u64 {
    let index = |number: u64| usize::try_from(number).expect("they are in memory");
    let mut count = 0;
    for (first, reference) in orders.iter().enumerate().take(REFERENCES) {
        let mut places = vec![usize::MAX; index(messages)];
        for (place, &number) in reference.iter().enumerate() {
            places[index(number)] = place;
        }
        for other in orders.iter().skip(first + 1) {
            let known = other.iter().map(|&number| places[index(number)]);
            let known: Vec<usize> = known.filter(|&place| place != usize::MAX).collect();
            count += known.windows(2).filter(|pair| pair[0] > pair[1]).count() as u64;
        }
    }
    count
}

/// Devices that all others are compared with. Each lacks its own messages; of any pair of messages
/// one among three lacks neither.
const REFERENCES: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_order_is_found_to_be_one_and_two_are_not() {
        // 0 and 3 were sent by the first, 1 by the second.
        assert_eq!(reordered(&[&[1, 2], &[0, 2, 3], &[0, 1, 2, 3]], 4), 0);
        assert_eq!(reordered(&[&[1, 2], &[0, 2, 3], &[0, 2, 1, 3]], 4), 1);
        assert_eq!(reordered(&[&[1, 2], &[0, 2, 3], &[3, 1, 2, 0]], 4), 2);
    }

    /// Neither of those who sent them has both.
    #[test]
    fn messages_of_the_first_two_devices_are_compared_as_well() {
        assert_eq!(reordered(&[&[1], &[0], &[0, 1], &[0, 1]], 2), 0);
        assert_eq!(reordered(&[&[1], &[0], &[0, 1], &[1, 0]], 2), 1);
    }
}
