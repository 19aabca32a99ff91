//! What a shard keeps in memory of the directory for the users and groups whose home it is: bounded
//! in bytes, and what was not used for the longest time goes first, roughly.

use std::collections::VecDeque;

use hashbrown::HashMap;
use ringpost_protocol::id::UserId;

/// Values by user or group.
pub(super) struct Cache<V> {
    entries: HashMap<UserId, Entry<V>>,
    /// The hand of a clock goes over them; each name stands here once.
    order: VecDeque<UserId>,
    bytes: usize,
    bytes_max: usize,
}

struct Entry<V> {
    value: V,
    bytes: usize,
    /// Since the hand was here.
    was_used: bool,
}

impl<V> Cache<V> {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), bytes: 0, bytes_max }
    }

    pub(super) fn get(&mut self, id: &UserId) -> Option<&V> {
        let entry = self.entries.get_mut(id)?;
        entry.was_used = true;
        Some(&entry.value)
    }

    /// Keeps `value`, which takes `bytes` beside the id, in place of what was there. Gives how many
    /// others had to go.
    pub(super) fn put(&mut self, id: &UserId, value: V, bytes: usize) -> usize {
        let bytes = bytes + id.as_str().len() + ENTRY_BYTES;
        let entry = Entry { value, bytes, was_used: true };
        self.bytes += bytes;
        match self.entries.insert(id.clone(), entry) {
            Some(before) => self.bytes -= before.bytes,
            None => self.order.push_back(id.clone()),
        }
        let mut evicted = 0;
        while self.bytes > self.bytes_max && self.entries.len() > 1 {
            evicted += usize::from(self.turn_hand(id));
        }
        evicted
    }

    /// Forgets what is kept of `id`.
    pub(super) fn remove(&mut self, id: &UserId) {
        if let Some(entry) = self.entries.remove(id) {
            self.bytes -= entry.bytes;
            self.order.retain(|other| other != id);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Looks at the next entry; true: it went. `kept` stays.
    fn turn_hand(&mut self, kept: &UserId) -> bool {
        let Some(id) = self.order.pop_front() else { return false };
        let entry = self.entries.get_mut(&id).expect("what stands in the order is kept");
        if id == *kept || std::mem::take(&mut entry.was_used) {
            self.order.push_back(id);
            return false;
        }
        self.bytes -= entry.bytes;
        self.entries.remove(&id);
        true
    }
}

/// Of the tables, for one entry.
const ENTRY_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> UserId {
        UserId::new(name).unwrap()
    }

    fn got<V: Copy>(cache: &mut Cache<V>, name: &str) -> Option<V> {
        cache.get(&id(name)).copied()
    }

    #[test]
    fn what_was_not_used_goes_first_and_the_bound_holds() {
        let mut cache = Cache::new(3 * (ENTRY_BYTES + 101));
        for name in ["a", "b", "c"] {
            assert_eq!(cache.put(&id(name), name, 100), 0);
        }
        // All were used when they came: the hand goes around once.
        assert_eq!(cache.put(&id("d"), "d", 100), 1);
        assert_eq!((got(&mut cache, "a"), cache.len()), (None, 3));
        assert_eq!(got(&mut cache, "b"), Some("b"));
        assert_eq!(cache.put(&id("e"), "e", 100), 1);
        assert_eq!((got(&mut cache, "c"), got(&mut cache, "b")), (None, Some("b")));
        assert!(cache.bytes <= cache.bytes_max);
    }

    #[test]
    fn newer_value_takes_the_place_and_removed_ones_are_gone() {
        let mut cache = Cache::new(1_000);
        cache.put(&id("a"), 1, 100);
        cache.put(&id("a"), 2, 50);
        assert_eq!((got(&mut cache, "a"), cache.len(), cache.order.len()), (Some(2), 1, 1));
        cache.remove(&id("a"));
        cache.remove(&id("a"));
        assert_eq!((got(&mut cache, "a"), cache.bytes, cache.order.len()), (None, 0, 0));
        // One that is too large alone stays until the next one comes.
        cache.put(&id("a"), 1, 5_000);
        cache.put(&id("b"), 2, 50);
        assert_eq!((got(&mut cache, "a"), got(&mut cache, "b")), (None, Some(2)));
    }
}
