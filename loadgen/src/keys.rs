//! Devices that publish keys, and others that take them: each one-time key goes to one of them.

mod owner;
mod taker;

pub use owner::{Owner, Published};
pub use taker::{Taken, Taker};

use bytes::Bytes;
use ringpost_protocol::limits::{KEY_BYTES_MAX, SIGNATURE_BYTES};
use ringpost_protocol::message::PublicKey;

use crate::plan::mix;

/// What all of them do, together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Phase {
    Login = 1,
    /// Owners fill their stocks.
    Publish,
    /// Takers take; owners whose stock is low publish more. Ends by time.
    Fetch,
    /// What is under way is answered, and nobody publishes any more.
    Settle,
    /// Takers go on until every owner's stock is empty.
    Exhaust,
    /// Owners ask what is left.
    Count,
    Leave,
}

impl From<Phase> for u32 {
    fn from(phase: Phase) -> Self {
        phase as Self
    }
}

/// The bytes of the keys of one owner: anybody can tell whether they are those that it published.
#[derive(Clone, Copy, Debug)]
struct KeyBytes {
    seed: u64,
}

impl KeyBytes {
    fn of(run_seed: u64, owner: u32) -> Self {
        Self { seed: mix(run_seed ^ mix(u64::from(owner))) }
    }

    fn identity(self) -> Bytes {
        self.bytes(1, KEY_BYTES)
    }

    fn signed_prekey(self) -> PublicKey {
        let (key, signature) = (self.bytes(2, KEY_BYTES), self.bytes(3, SIGNATURE_BYTES));
        PublicKey { key_id: SIGNED_PREKEY_ID, key, signature }
    }

    fn one_time_key(self, key_id: u32) -> PublicKey {
        let key = self.bytes(u64::from(key_id) << 2, KEY_BYTES);
        PublicKey { key_id, key, signature: Bytes::new() }
    }

    fn bytes(self, kind: u64, length: usize) -> Bytes {
        let mut state = mix(self.seed ^ mix(kind));
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(state.to_le_bytes());
            state = mix(state);
        }
        bytes.truncate(length);
        bytes.into()
    }
}

/// Handed-out keys that another taker, or the same one, has got too. Sorts them.
pub fn duplicates(handed_out: &mut [(u32, u32)]) -> u64 {
    handed_out.sort_unstable();
    handed_out.windows(2).filter(|pair| pair[0] == pair[1]).count() as u64
}

/// Of an X25519 or Ed25519 key, as apps publish them.
const KEY_BYTES: usize = 32;
const _: () = assert!(KEY_BYTES <= KEY_BYTES_MAX);
const SIGNED_PREKEY_ID: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_two_have_is_found() {
        assert_eq!(duplicates(&mut [(1, 1), (1, 2), (2, 1)]), 0);
        assert_eq!(duplicates(&mut [(1, 2), (2, 1), (1, 2), (3, 0), (1, 2)]), 2);
    }

    #[test]
    fn keys_of_an_owner_are_all_different() {
        let of = |owner| KeyBytes::of(7, owner);
        let mut keys: Vec<Bytes> = (0..100).map(|id| of(1).one_time_key(id).key).collect();
        keys.extend([of(1).identity(), of(1).signed_prekey().key, of(2).one_time_key(5).key]);
        keys.sort_unstable();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1] && pair[0].len() == KEY_BYTES));
    }
}
