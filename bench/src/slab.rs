//! Kernel memory by slab cache, from `/proc/slabinfo` (root only).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::thread::sleep;
use std::time::Duration;

/// Objects in use and bytes of one object, by cache.
#[derive(Clone, Debug, Default)]
pub struct Slab(BTreeMap<String, (u64, u64)>);

/// What one cache gained per connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Growth {
    pub cache: String,
    pub objects: f64,
    pub bytes: f64,
}

impl Slab {
    pub fn read() -> io::Result<Self> {
        fs::read_to_string("/proc/slabinfo").map(|text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        // Two lines of headings, then: name, objects in use, objects, bytes of one, ...
        let caches = text.lines().skip(2).filter_map(|line| {
            let mut fields = line.split_whitespace();
            let name = fields.next()?.to_owned();
            let active = fields.next()?.parse().ok()?;
            let bytes = fields.nth(1)?.parse().ok()?;
            Some((name, (active, bytes)))
        });
        Self(caches.collect())
    }

    /// Caches that gained at least half an object per connection since `before`; what gained less
    /// is the rest of the machine.
    pub fn growth(&self, before: &Self, connections: u32) -> Vec<Growth> {
        let grown = self.0.iter().filter_map(|(cache, &(active, bytes))| {
            let earlier = before.0.get(cache).map_or(0, |&(active, _)| active);
            let gained = u32::try_from(active.saturating_sub(earlier)).ok()?;
            let objects = f64::from(gained) / f64::from(connections);
            let bytes = objects * f64::from(u32::try_from(bytes).ok()?);
            (objects >= 0.5).then(|| Growth { cache: cache.clone(), objects, bytes })
        });
        grown.collect()
    }
}

/// Bytes that all caches together gained per connection.
pub fn total(growth: &[Growth]) -> f64 {
    growth.iter().map(|cache| cache.bytes).sum()
}

/// Slab bytes of one end of an idle TCP connection between blocking sockets: to be taken off where
/// the client's end is on the same host. Zero without root. `settle`: until the kernel has freed
/// what the connecting needed.
pub fn plain_end_bytes(pairs: u32, settle: Duration) -> io::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let Ok(before) = Slab::read() else { return Ok(0.0) };
    let mut ends = Vec::new();
    for _ in 0..pairs {
        ends.push((TcpStream::connect(address)?, listener.accept()?));
    }
    sleep(settle);
    let growth = Slab::read()?.growth(&before, pairs);
    Ok(total(&growth) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_per_connection_and_ignores_the_rest_of_the_machine() {
        let head = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize>\n";
        let slab = |tcp: u32, filp: u32, dentry: u32| {
            Slab::parse(&format!(
                "{head}TCP {tcp} 40 2304 14 8 : tunables 0 0 0\nfilp {filp} 90 192 21 1 : t\n\
                 dentry {dentry} 9 192 21 1 : t\n"
            ))
        };
        let growth = slab(210, 110, 40).growth(&slab(10, 10, 1), 100);
        let expected = [("TCP", 2.0, 4608.0), ("filp", 1.0, 192.0)];
        let expected =
            expected.map(|(cache, objects, bytes)| Growth { cache: cache.into(), objects, bytes });
        assert_eq!(growth, expected);
    }
}
