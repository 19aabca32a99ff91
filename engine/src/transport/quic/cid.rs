//! Connection ids that name their shard, so that a datagram finds its connection from whatever
//! address it comes: [`ringpost_ring::steering`] reads them, in the kernel and here.

use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringpost_ring::steering::{CID_BYTES, Program, keyed_last_byte, keyed_shard};

/// How an id names its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CidNaming {
    /// By a keyed function of all of its bytes: nobody without the key can tell that two ids belong
    /// to one connection, or to one shard.
    Keyed,
    /// By its first two bytes, in clear.
    Plain,
}

impl CidNaming {
    /// The program that reads such ids.
    pub(super) fn program(self, shards: u16, key: &[u8; 16]) -> Program {
        match self {
            Self::Keyed => Program::keyed(shards, key),
            Self::Plain => Program::plain(shards),
        }
    }
}

/// Makes the ids of one shard.
pub(super) struct ShardCids {
    naming: CidNaming,
    key: [u8; 16],
    shard: u16,
    shards: u16,
    lifetime: Option<Duration>,
    random: StdRng,
}

impl ShardCids {
    /// `seed` is for tests and the simulator: who knows it knows the ids.
    pub(super) fn new(
        naming: CidNaming,
        key: [u8; 16],
        (shard, shards): (u16, u16),
        lifetime: Option<Duration>,
        seed: Option<[u8; 32]>,
    ) -> Self {
        assert!(shard < shards, "shard {shard} of {shards}");
        let random = seed.map_or_else(|| StdRng::from_rng(&mut rand::rng()), StdRng::from_seed);
        Self { naming, key, shard, shards, lifetime, random }
    }

    fn shard_of(&self, id: &[u8; CID_BYTES]) -> u16 {
        match self.naming {
            CidNaming::Keyed => keyed_shard(id, &self.key, self.shards),
            CidNaming::Plain => u16::from_be_bytes([id[0], id[1]]) % self.shards,
        }
    }
}

impl ConnectionIdGenerator for ShardCids {
    /// As random as an id of the shard can be.
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CID_BYTES];
        self.random.fill_bytes(&mut id);
        match self.naming {
            CidNaming::Keyed => {
                let [head @ .., last] = &mut id;
                *last = keyed_last_byte(head, &self.key, (self.shard, self.shards), *last);
            }
            CidNaming::Plain => {
                let random = u16::from_be_bytes([id[0], id[1]]);
                let multiple = random - random % self.shards;
                let start = multiple.checked_add(self.shard).unwrap_or(self.shard).to_be_bytes();
                id[..2].copy_from_slice(&start);
            }
        }
        ConnectionId::new(&id)
    }

    /// Refuses the ids of other shards: this one knows nothing of their connections, and must not
    /// reset them.
    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        let id: &[u8; CID_BYTES] = cid[..].try_into().map_err(|_| InvalidCid)?;
        if self.shard_of(id) == self.shard { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        self.lifetime
    }
}
