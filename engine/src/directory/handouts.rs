//! How much was handed out of each name lately: one-time keys of a device, to whomever, so that nobody
//! drains them; requests of a user over the REST interface. It is forgotten at a restart.

use hashbrown::HashMap;

use crate::limits::{Bucket, HANDOUTS_SWEEP_MS, HANDOUTS_TRACKED_MAX, PerHour};

/// Keyed by the device's key in the tables, or by a user.
#[derive(Debug, Default)]
pub(crate) struct Handouts {
    buckets: HashMap<Vec<u8>, Bucket>,
    /// When it was last looked through for what can be forgotten; monotonic.
    swept_ms: u64,
}

impl Handouts {
    /// Whether another one may go now.
    pub(crate) fn take(&mut self, name: &[u8], rate: PerHour, now_ms: u64) -> bool {
        if rate == PerHour::UNLIMITED {
            return true;
        }
        if !self.buckets.contains_key(name) && !self.has_room(now_ms) {
            return false; // whoever is not counted could be drained
        }
        let bucket = self.buckets.entry(name.to_vec()).or_default();
        bucket.take_of_hour(rate, now_ms, 1).is_ok()
    }

    /// Whether another name can be counted. Who asks for many names when there is none must not have
    /// the whole table looked through each time.
    fn has_room(&mut self, now_ms: u64) -> bool {
        let is_full = self.buckets.len() >= HANDOUTS_TRACKED_MAX;
        if is_full && now_ms >= self.swept_ms + HANDOUTS_SWEEP_MS {
            self.swept_ms = now_ms;
            self.buckets.retain(|_, bucket| !bucket.is_full(now_ms));
        }
        self.buckets.len() < HANDOUTS_TRACKED_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_so_many_in_an_hour() {
        let (mut handouts, rate) = (Handouts::default(), PerHour(60));
        assert_eq!((0..100).filter(|_| handouts.take(b"a", rate, 1_000)).count(), 60);
        assert!(handouts.take(b"b", rate, 1_000));
        assert!(!handouts.take(b"a", rate, 60_999) && handouts.take(b"a", rate, 61_000));
        assert!((0..100).all(|_| handouts.take(b"a", PerHour::UNLIMITED, 1_000)));
    }

    #[test]
    fn table_is_bounded_and_makes_room_for_who_was_left_alone_for_an_hour() {
        let (mut handouts, rate) = (Handouts::default(), PerHour(1));
        for device in 0..HANDOUTS_TRACKED_MAX {
            assert!(handouts.take(&device.to_le_bytes(), rate, 0));
        }
        assert!(!handouts.take(b"one more", rate, 0));
        assert!(handouts.take(b"one more", rate, 3_600_000));
        assert_eq!(handouts.buckets.len(), 1);
    }

    #[test]
    fn a_full_table_is_looked_through_once_in_a_while() {
        let (mut handouts, rate) = (Handouts::default(), PerHour(60));
        for device in 0..HANDOUTS_TRACKED_MAX {
            assert!(handouts.take(&device.to_le_bytes(), rate, 0));
        }
        // A bucket is full again after a minute.
        let last_ms = 60_000 - 1;
        assert!(!handouts.take(b"one more", rate, last_ms));
        assert!(!handouts.take(b"one more", rate, last_ms + HANDOUTS_SWEEP_MS - 1));
        assert_eq!(handouts.buckets.len(), HANDOUTS_TRACKED_MAX, "not looked through again");
        assert!(handouts.take(b"one more", rate, last_ms + HANDOUTS_SWEEP_MS));
        assert_eq!(handouts.buckets.len(), 1);
    }
}
