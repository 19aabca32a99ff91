//! What each address of clients has and may have. One table for all shards: connections of an
//! address come to any of them, and their sum counts. It is locked when a connection is accepted and
//! when one ends, never on the path of a message, and in stripes, so that shards rarely meet.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashTable;

use super::bucket::Bucket;
use super::live::LimitSet;

/// Buckets and connections of the addresses that are not idle, in bounded number.
pub struct AddressTable {
    stripes: Box<[Mutex<Stripe>]>,
    /// Random, so that nobody chooses addresses for one stripe.
    seed: u64,
}

/// One connection of an address; dropped, it is none any more.
pub struct AddressGuard {
    table: Arc<AddressTable>,
    stripe: u16,
    slot: u32,
}

/// What becomes of a new connection.
#[derive(Debug)]
pub enum Admitted {
    /// It counts.
    Counted(AddressGuard),
    /// Its address has no limits.
    Free,
    /// There is no room for another address: it does not count.
    TableFull,
}

/// Why an address may not have another connection now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressRefusal {
    /// It opens them too fast.
    Rate,
    /// It has as many as allowed.
    Connections,
}

struct Stripe {
    entries: Vec<Entry>,
    /// Slots of `entries`, by their keys.
    index: HashTable<u32>,
    /// Slots that are nobody's.
    vacant: Vec<u32>,
    entries_max: usize,
    /// Where the clock hand looks for idle ones next.
    hand: usize,
}

struct Entry {
    key: u64,
    bucket: Bucket,
    connections: u32,
    is_vacant: bool,
}

impl AddressTable {
    /// Counts for at most about `addresses_max` addresses.
    pub fn new(addresses_max: u32, seed: u64) -> Arc<Self> {
        let addresses_max = addresses_max as usize;
        let count = addresses_max.div_ceil(STRIPE_ENTRIES_MIN).clamp(1, STRIPES_MAX);
        let entries_max = addresses_max.div_ceil(count);
        let stripes = (0..count).map(|_| Mutex::new(Stripe::new(entries_max))).collect();
        Arc::new(Self { stripes, seed })
    }

    /// A connection from `address` wants in.
    pub fn admit(
        self: &Arc<Self>,
        address: IpAddr,
        now_ms: u64,
        limits: &LimitSet,
    ) -> Result<Admitted, AddressRefusal> {
        let connections_max = limits.address_connections_max;
        if connections_max == 0 && limits.address_accepts.per_second == 0 {
            return Ok(Admitted::Free);
        }
        let key = key_of(address);
        let hash = self.hash(key);
        let stripe_index = usize::from(stripe_bits(hash)) % self.stripes.len();
        let mut stripe = self.stripe(stripe_index);
        let Some(slot) = stripe.find_or_insert(key, now_ms, |key| self.hash(key)) else {
            return Ok(Admitted::TableFull);
        };
        let entry = &mut stripe.entries[slot as usize];
        if connections_max > 0 && entry.connections >= connections_max {
            return Err(AddressRefusal::Connections);
        }
        if entry.bucket.take(limits.address_accepts, now_ms, 1).is_err() {
            return Err(AddressRefusal::Rate);
        }
        entry.connections += 1;
        let stripe = u16::try_from(stripe_index).expect("few stripes");
        Ok(Admitted::Counted(AddressGuard { table: Arc::clone(self), stripe, slot }))
    }

    /// Whether [`AddressTable::admit`] would refuse `address`, without counting it.
    pub fn would_refuse(&self, address: IpAddr, now_ms: u64, limits: &LimitSet) -> bool {
        let key = key_of(address);
        let hash = self.hash(key);
        let stripe = self.stripe(usize::from(stripe_bits(hash)) % self.stripes.len());
        let found = stripe.index.find(hash, |&slot| stripe.entries[slot as usize].key == key);
        let Some(entry) = found.map(|&slot| &stripe.entries[slot as usize]) else { return false };
        let connections_max = limits.address_connections_max;
        let mut bucket = entry.bucket;
        (connections_max > 0 && entry.connections >= connections_max)
            || bucket.take(limits.address_accepts, now_ms, 1).is_err()
    }

    /// Addresses that are counted now, idle ones included.
    pub fn len(&self) -> usize {
        (0..self.stripes.len()).map(|stripe| self.stripe(stripe).index.len()).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn hash(&self, key: u64) -> u64 {
        // No two keys have the same hash (splitmix64), and who does not know the seed cannot choose
        // keys that fall together.
        let z = key ^ self.seed;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A shard that panicked in here has left nothing half done.
    fn stripe(&self, index: usize) -> MutexGuard<'_, Stripe> {
        self.stripes[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stripe {
    fn new(entries_max: usize) -> Self {
        Self {
            entries: Vec::new(),
            index: HashTable::new(),
            vacant: Vec::new(),
            entries_max,
            hand: 0,
        }
    }

    /// `None`: as many as allowed are there, and none was found idle.
    fn find_or_insert(&mut self, key: u64, now_ms: u64, hash: impl Fn(u64) -> u64) -> Option<u32> {
        let found = self.index.find(hash(key), |&slot| self.entries[slot as usize].key == key);
        if let Some(&slot) = found {
            return Some(slot);
        }
        self.evict(now_ms, &hash);
        let entry = Entry { key, bucket: Bucket::default(), connections: 0, is_vacant: false };
        let slot = if let Some(slot) = self.vacant.pop() {
            self.entries[slot as usize] = entry;
            slot
        } else if self.entries.len() < self.entries_max {
            self.entries.push(entry);
            u32::try_from(self.entries.len() - 1).expect("bounded by the configuration")
        } else {
            return None;
        };
        self.index.insert_unique(hash(key), slot, |&slot| hash(self.entries[slot as usize].key));
        Some(slot)
    }

    /// A clock hand over the entries: those that are as good as new ones go. A few each time, which
    /// is more than come.
    fn evict(&mut self, now_ms: u64, hash: &impl Fn(u64) -> u64) {
        for _ in 0..EVICTIONS_PER_INSERT.min(self.entries.len()) {
            self.hand = (self.hand + 1) % self.entries.len();
            let entry = &mut self.entries[self.hand];
            if entry.is_vacant || entry.connections > 0 || !entry.bucket.is_full(now_ms) {
                continue;
            }
            entry.is_vacant = true;
            let slot = u32::try_from(self.hand).expect("bounded by the configuration");
            let place = self.index.find_entry(hash(entry.key), |&other| other == slot);
            place.expect("every entry that is not vacant is indexed").remove();
            self.vacant.push(slot);
        }
    }
}

impl Drop for AddressGuard {
    fn drop(&mut self) {
        // Found idle, it goes when another address comes.
        self.table.stripe(usize::from(self.stripe)).entries[self.slot as usize].connections -= 1;
    }
}

impl fmt::Debug for AddressGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressGuard").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// An IPv4 address, or the network of an IPv6 address: one customer has all 2^64 addresses of it.
/// The two do not meet: no network begins with 32 zero bits (RFC 4291, section 2.4).
fn key_of(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            [a, b, c, d].into_iter().fold(0, |key, part| key << 16 | u64::from(part))
        }
    }
}

/// Not the bits by which a stripe finds its entries.
fn stripe_bits(hash: u64) -> u8 {
    hash.to_le_bytes()[3]
}

const STRIPES_MAX: usize = 64;
const STRIPE_ENTRIES_MIN: usize = 1024;
const EVICTIONS_PER_INSERT: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Rate;

    fn limits(per_second: u32, burst: u32, address_connections_max: u32) -> LimitSet {
        let address_accepts = Rate { per_second, burst };
        LimitSet { address_accepts, address_connections_max, ..LimitSet::default() }
    }

    fn counted(admitted: Result<Admitted, AddressRefusal>) -> AddressGuard {
        match admitted {
            Ok(Admitted::Counted(guard)) => guard,
            other => panic!("{other:?}"),
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_so_many_connections_and_others_have_theirs() {
        let table = AddressTable::new(100, 1);
        let limits = limits(0, 1, 2);
        let one = counted(table.admit(address("192.0.2.1"), 0, &limits));
        let _two = counted(table.admit(address("::ffff:192.0.2.1"), 0, &limits));
        let refused = table.admit(address("192.0.2.1"), 0, &limits).unwrap_err();
        assert_eq!(refused, AddressRefusal::Connections);
        assert!(table.would_refuse(address("192.0.2.1"), 0, &limits));
        assert!(!table.would_refuse(address("192.0.2.2"), 0, &limits));
        let _other = counted(table.admit(address("192.0.2.2"), 0, &limits));
        drop(one);
        counted(table.admit(address("192.0.2.1"), 0, &limits));
    }

    #[test]
    fn an_ipv6_network_counts_as_one() {
        let table = AddressTable::new(100, 1);
        let limits = limits(1, 1, 0);
        counted(table.admit(address("2001:db8:1:2::1"), 0, &limits));
        assert!(table.would_refuse(address("2001:db8:1:2:ffff::9"), 0, &limits));
        assert!(!table.would_refuse(address("2001:db8:1:2:ffff::9"), 1_000, &limits));
        let refused = table.admit(address("2001:db8:1:2:ffff::9"), 0, &limits).unwrap_err();
        assert_eq!(refused, AddressRefusal::Rate);
        counted(table.admit(address("2001:db8:1:3::1"), 0, &limits));
        counted(table.admit(address("2001:db8:1:2::1"), 1_000, &limits));
    }

    #[test]
    fn no_limits_cost_nothing() {
        let table = AddressTable::new(100, 1);
        let admitted = table.admit(address("192.0.2.1"), 0, &limits(0, 1, 0));
        assert!(matches!(admitted, Ok(Admitted::Free)));
        assert!(table.is_empty());
    }

    #[test]
    fn idle_addresses_make_room_and_busy_ones_do_not() {
        let full = u32::try_from(STRIPE_ENTRIES_MIN).unwrap();
        let table = AddressTable::new(full, 7);
        let limits = limits(1, 1, 0);
        let numbered = |number: u32| IpAddr::V4(number.into());
        let guards: Vec<_> =
            (0..full).map(|n| counted(table.admit(numbered(n), 0, &limits))).collect();
        assert_eq!(table.len(), STRIPE_ENTRIES_MIN);
        for at_ms in [0, 1_000_000] {
            let admitted = table.admit(numbered(full), at_ms, &limits);
            assert!(matches!(admitted, Ok(Admitted::TableFull)), "connections are open");
        }
        drop(guards);
        // Their buckets are full again: all of them are idle.
        for number in full..3 * full {
            counted(table.admit(numbered(number), 2_000, &limits));
            assert!(table.len() <= STRIPE_ENTRIES_MIN);
            if number == 2 * full - 1 {
                break;
            }
        }
        // These have spent theirs just now.
        let admitted = table.admit(numbered(9 * full), 2_000, &limits);
        assert!(matches!(admitted, Ok(Admitted::TableFull)));
        counted(table.admit(numbered(9 * full), 3_000, &limits));
    }

    #[test]
    fn the_same_calls_have_the_same_outcome() {
        let run = || {
            let table = AddressTable::new(2_000, 42);
            let limits = limits(2, 3, 4);
            let mut held = Vec::new();
            let mut outcomes = Vec::new();
            for step in 0..20_000_u32 {
                // A few busy ones among many.
                let number = match step % 4 {
                    0 => step % 40,
                    _ => step.wrapping_mul(2_654_435_761) % 5_000,
                };
                let admitted = table.admit(IpAddr::V4(number.into()), u64::from(step), &limits);
                outcomes.push(match admitted {
                    Ok(Admitted::Counted(guard)) => {
                        held.push(guard);
                        0
                    }
                    Ok(_) => 1,
                    Err(refusal) => 2 + refusal as u8,
                });
                if step % 3 == 0 && !held.is_empty() {
                    held.swap_remove(step as usize % held.len());
                }
            }
            outcomes
        };
        let outcomes = run();
        assert!((0..4).all(|kind| outcomes.contains(&kind)), "every outcome occurs");
        assert_eq!(outcomes, run());
    }
}
