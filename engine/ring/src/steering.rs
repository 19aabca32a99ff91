//! Which shard a QUIC datagram is for: the connection id says it, so that a client may change its
//! address, and a classic BPF program on the sockets of a [`crate::net::UdpGroup`] reads it in the
//! kernel.
//!
//! The gateway's connection ids have [`CID_BYTES`] bytes. Those that a client makes up for its first
//! datagrams have eight to twenty, and their first eight are read in the same way, so that all
//! datagrams of a handshake find one shard even if the address changes meanwhile. What cannot carry
//! such an id, because it is too short for one, is left to the kernel's hash over both addresses: a
//! program that read beyond the end would send all of it to shard 0.
//!
//! In the keyed form the shard is `(cid[7] ^ hash(cid[0..7])) mod shards`. The hash is HalfSipHash-1-3
//! with 128 bits of key: its four words of state start as the four words of the key, xored with the
//! constants of the original, which has two words and uses each twice. Who does not know the key can
//! neither aim at a shard nor tell that two ids belong to one connection.

mod code;
#[cfg(test)]
mod tests;

use std::fmt;

/// Bytes of a connection id that names its shard.
pub const CID_BYTES: usize = 8;

/// Shards that a connection id can name.
pub const SHARDS_MAX: u16 = 256;

/// How a connection id names its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CidNaming {
    /// By a keyed function of all of its bytes: nobody without the key can tell that two ids belong
    /// to one connection, or to one shard.
    Keyed,
    /// By its first two bytes, for everybody to see.
    Plain,
}

/// The last byte of a connection id that begins with `head` and names `shard`: one of those that do,
/// picked by `random`. `shards` is at most [`SHARDS_MAX`].
fn keyed_last_byte(
    head: &[u8; CID_BYTES - 1],
    key: &[u8; 16],
    (shard, shards): (u16, u16),
    random: u8,
) -> u8 {
    assert!(shard < shards && shards <= SHARDS_MAX, "a byte can name the shard");
    let hash = keyed_hash(head, key);
    // The last byte reaches every value that differs from the hash only in the lowest byte: 256 in a
    // row, which hold each remainder at least once.
    let lowest = hash & !0xff;
    let (shard, shards) = (u32::from(shard), u32::from(shards));
    let first = (shard + shards - lowest % shards) % shards;
    let choices = (255 - first) / shards + 1;
    let value = first + u32::from(random) % choices * shards;
    (value ^ hash).to_le_bytes()[0]
}

/// A program for the kernel, as data.
#[derive(Clone, PartialEq, Eq)]
pub struct Program {
    shards: u16,
    naming: CidNaming,
    /// Of no use to plain ids.
    key: [u8; 16],
    /// The first flight of a client goes by the kernel's hash.
    hashes_initial: bool,
}

impl Program {
    /// For ids that name one of `shards` shards, at most [`SHARDS_MAX`], in this way.
    #[must_use]
    pub fn new(naming: CidNaming, shards: u16, key: &[u8; 16]) -> Self {
        assert!(shards > 0 && shards <= SHARDS_MAX, "a byte can name the shard");
        Self { shards, naming, key: *key, hashes_initial: false }
    }

    /// The same, but Initial and 0-RTT packets go by the kernel's hash. For a flood of them: their
    /// ids are the attacker's, who by trying out could find those of one shard.
    #[must_use]
    pub fn hash_initial(self) -> Self {
        Self { hashes_initial: true, ..self }
    }

    /// The number of shards among which it chooses.
    #[must_use]
    pub fn shards(&self) -> u16 {
        self.shards
    }

    /// What the program answers for `datagram`: a shard, or `None` for the kernel's hash.
    #[must_use]
    pub fn shard(&self, datagram: &[u8]) -> Option<u16> {
        let is_first_flight = |byte: &u8| byte & LONG_HEADER != 0 && byte & LATER_PACKETS == 0;
        if self.hashes_initial && datagram.first().is_some_and(is_first_flight) {
            return None;
        }
        connection_id(datagram).map(|cid| self.shard_of_cid(cid))
    }

    /// The shard that `cid` names.
    #[must_use]
    pub fn shard_of_cid(&self, cid: &[u8; CID_BYTES]) -> u16 {
        let [head @ .., last] = cid;
        let number = match self.naming {
            CidNaming::Plain => u32::from(u16::from_be_bytes([cid[0], cid[1]])),
            CidNaming::Keyed => u32::from(*last) ^ keyed_hash(head, &self.key),
        };
        below(number, self.shards)
    }

    /// Makes random bytes an id that names `shard`, as random as such an id can be.
    pub fn name_shard(&self, shard: u16, cid: &mut [u8; CID_BYTES]) {
        match self.naming {
            CidNaming::Keyed => {
                let [head @ .., last] = cid;
                *last = keyed_last_byte(head, &self.key, (shard, self.shards), *last);
            }
            CidNaming::Plain => {
                let random = u16::from_be_bytes([cid[0], cid[1]]);
                let multiple = random - random % self.shards;
                let start = multiple.checked_add(shard).unwrap_or(shard);
                cid[..2].copy_from_slice(&start.to_be_bytes());
            }
        }
    }

    /// The instructions.
    pub(crate) fn code(&self) -> Vec<libc::sock_filter> {
        code::assemble(self)
    }
}

/// Without the key.
impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("shards", &self.shards)
            .field("naming", &self.naming)
            .field("hashes_initial", &self.hashes_initial)
            .finish_non_exhaustive()
    }
}

/// The part of a datagram that names its shard; `None`: there is no room for it.
#[must_use]
fn connection_id(datagram: &[u8]) -> Option<&[u8; CID_BYTES]> {
    let start = match datagram.first()? {
        first if first & LONG_HEADER == 0 => SHORT_CID_AT,
        // In every version of QUIC: four bytes of version, one of length.
        _ if usize::from(*datagram.get(LONG_LENGTH_AT)?) < CID_BYTES => return None,
        _ => LONG_CID_AT,
    };
    datagram.get(start..)?.first_chunk()
}

fn below(value: u32, shards: u16) -> u16 {
    u16::try_from(value % u32::from(shards)).expect("less than a u16")
}

fn keyed_hash(head: &[u8; CID_BYTES - 1], key: &[u8; 16]) -> u32 {
    let mut state = initial_state(key);
    let [a, b, c, d, rest @ ..] = *head;
    for word in [u32::from_le_bytes([a, b, c, d]), last_word(rest)] {
        state[3] ^= word;
        round(&mut state);
        state[0] ^= word;
    }
    state[2] ^= FINISH;
    for _ in 0..FINISH_ROUNDS {
        round(&mut state);
    }
    state[1] ^ state[3]
}

fn initial_state(key: &[u8; 16]) -> [u32; 4] {
    let (words, _) = key.as_chunks::<4>();
    let mut state = [0, 0, 0x6c79_6765, 0x7465_6462];
    for (word, key) in state.iter_mut().zip(words) {
        *word ^= u32::from_le_bytes(*key);
    }
    state
}

/// The bytes that fill no word, and the length of all.
fn last_word([a, b, c]: [u8; 3]) -> u32 {
    u32::from_le_bytes([a, b, c, HASHED_BYTES])
}

fn round(state: &mut [u32; 4]) {
    for step in ROUND {
        let Quarter { sum, adds, sum_turns, adds_turns } = step;
        state[sum] = state[sum].wrapping_add(state[adds]);
        state[adds] = state[adds].rotate_left(adds_turns) ^ state[sum];
        state[sum] = state[sum].rotate_left(sum_turns);
    }
}

/// A quarter of a round: `sum += adds; adds = (adds <<< adds_turns) ^ sum; sum <<<= sum_turns`.
#[derive(Clone, Copy)]
struct Quarter {
    sum: usize,
    adds: usize,
    adds_turns: u32,
    /// 0: it stays.
    sum_turns: u32,
}

/// One round of HalfSipHash, for the function above and for the program.
const ROUND: [Quarter; 4] = [
    Quarter { sum: 0, adds: 1, adds_turns: 5, sum_turns: 16 },
    Quarter { sum: 2, adds: 3, adds_turns: 8, sum_turns: 0 },
    Quarter { sum: 0, adds: 3, adds_turns: 7, sum_turns: 0 },
    Quarter { sum: 2, adds: 1, adds_turns: 13, sum_turns: 16 },
];

const FINISH: u32 = 0xff;
const FINISH_ROUNDS: usize = 3;
const HASHED_BYTES: u8 = 7;

/// Bits of the first byte: a long header; and in a long header, neither Initial nor 0-RTT.
const LONG_HEADER: u8 = 0x80;
const LATER_PACKETS: u8 = 0x20;

const SHORT_CID_AT: usize = 1;
const LONG_LENGTH_AT: usize = 5;
const LONG_CID_AT: usize = 6;
