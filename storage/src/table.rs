//! A hash table in many small ones: it grows in steps that no message has to wait for, and it can
//! be walked one part at a time while it changes.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, Hasher};

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Keys and values, spread over [`PARTS`] hash tables.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    parts: Vec<HashTable<(K, V)>>,
    seed: HashSeed,
    len: usize,
    allocated_bytes: usize,
}

impl<K: Hash + Ord + Clone, V> Table<K, V> {
    pub(crate) fn new(seed: HashSeed) -> Self {
        let parts = (0..PARTS).map(|_| HashTable::new()).collect();
        Self { parts, seed, len: 0, allocated_bytes: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that the tables take, without what the values refer to.
    pub(crate) fn allocated_bytes(&self) -> usize {
        self.allocated_bytes
    }

    pub(crate) fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.seed.hash_one(key);
        let found = self.parts[part(hash)].find(hash, |(known, _)| known.borrow() == key);
        found.map(|(_, value)| value)
    }

    pub(crate) fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.seed.hash_one(key);
        let found = self.parts[part(hash)].find_mut(hash, |(known, _)| known.borrow() == key);
        found.map(|(_, value)| value)
    }

    /// The value of `key`, made if there is none.
    pub(crate) fn get_or_insert_with(&mut self, key: K, value: impl FnOnce() -> V) -> &mut V {
        let seed = self.seed;
        let hash = seed.hash_one(&key);
        let table = &mut self.parts[part(hash)];
        let found = table.find_bucket_index(hash, |(known, _)| *known == key);
        let at = found.unwrap_or_else(|| {
            let bytes = table.allocation_size();
            let rehash = |(key, _): &(K, V)| seed.hash_one(key);
            let at = table.insert_unique(hash, (key, value()), rehash).bucket_index();
            self.len += 1;
            self.allocated_bytes += table.allocation_size() - bytes;
            at
        });
        let (_, value) = table.get_bucket_mut(at).expect("found or inserted just now");
        value
    }

    /// The value that was there before.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let mut value = Some(value);
        let slot = self.get_or_insert_with(key, || value.take().expect("made at most once"));
        value.map(|value| std::mem::replace(slot, value))
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let seed = self.seed;
        let hash = seed.hash_one(key);
        let table = &mut self.parts[part(hash)];
        let bytes = table.allocation_size();
        let found = table.find_entry(hash, |(known, _)| known == key).ok()?;
        let ((_, value), _) = found.remove();
        if table.num_buckets() > SHRINK_ABOVE && table.len() < table.num_buckets() / 8 {
            table.shrink_to(table.len() * 2, |(key, _)| seed.hash_one(key));
        }
        self.len -= 1;
        self.allocated_bytes = self.allocated_bytes + table.allocation_size() - bytes;
        Some(value)
    }

    /// Everything, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.parts.iter().flatten().map(|(key, value)| (key, value))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.parts.iter_mut().flatten().map(|(_, value)| value)
    }

    /// Keeps what `is_kept` says, and gives back the memory of the rest.
    pub(crate) fn retain(&mut self, mut is_kept: impl FnMut(&K, &mut V) -> bool) {
        let seed = self.seed;
        for table in &mut self.parts {
            table.retain(|(key, value)| is_kept(key, value));
            if table.len() < table.num_buckets() / 2 {
                table.shrink_to_fit(|(key, _)| seed.hash_one(key));
            }
        }
        self.len = self.parts.iter().map(HashTable::len).sum();
        self.allocated_bytes = self.parts.iter().map(HashTable::allocation_size).sum();
    }

    /// The keys of one of [`PARTS`] parts, sorted. Each key always belongs to the same part.
    pub(crate) fn keys_of_part(&self, part: usize) -> Vec<K> {
        let mut keys: Vec<_> = self.parts[part].iter().map(|(key, _)| key.clone()).collect();
        keys.sort_unstable();
        keys
    }
}

/// Not the bits that a table of up to 2^32 keys looks at.
fn part(hash: u64) -> usize {
    usize::try_from(hash >> 32).map_or(0, |bits| bits % PARTS)
}

/// Hashes with a given seed: entropy would make two runs of one simulation differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HashSeed(pub(crate) u64);

pub(crate) struct SeededHasher(u64);

impl BuildHasher for HashSeed {
    type Hasher = SeededHasher;

    fn build_hasher(&self) -> SeededHasher {
        SeededHasher(self.0)
    }
}

impl Hasher for SeededHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    /// Mailbox ids are random already; one folded multiplication keeps a chosen set of them from
    /// meeting in one bucket.
    fn write_u64(&mut self, value: u64) {
        let product = u128::from(value ^ self.0) * u128::from(MULTIPLIER);
        let [low, high] = [product & u128::from(u64::MAX), product >> 64];
        self.0 = u64::try_from(low ^ high).expect("both halves have 64 bits");
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// With 10 million keys a table grows 10,000 of them at a time.
pub(crate) const PARTS: usize = 1024;
/// Smaller tables are not worth it.
const SHRINK_ABOVE: usize = 32;
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_inserted_and_counts_its_bytes() {
        let mut table = Table::new(HashSeed(3));
        for key in 0..100_000_u64 {
            assert_eq!(table.insert(key, key), None);
        }
        assert_eq!(table.insert(7, 8), Some(7));
        assert_eq!((table.len(), table.get(&7), table.get(&100_000)), (100_000, Some(&8), None));
        let parts: Vec<_> = (0..PARTS).map(|part| table.keys_of_part(part)).collect();
        assert!(parts.iter().all(|keys| keys.is_sorted() && (40..200).contains(&keys.len())));
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 100_000);
        let full_bytes = table.allocated_bytes();
        assert!(full_bytes > 16 * 100_000);
        for key in 100..100_000 {
            assert!(table.remove(&key).is_some());
        }
        assert!(table.allocated_bytes() < full_bytes / 2);
        let counted = table.allocated_bytes();
        table.allocated_bytes = table.parts.iter().map(HashTable::allocation_size).sum();
        assert_eq!((counted, table.len()), (table.allocated_bytes(), 100));
        table.retain(|key, _| *key < 10);
        assert_eq!(table.iter().count(), 10);
    }
}
