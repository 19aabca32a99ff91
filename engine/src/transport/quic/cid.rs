//! The connection ids that a shard gives out: they name it, so that a datagram finds its connection
//! from whatever address it comes. [`ringpost_ring::steering`] reads them, in the kernel and here.

use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use ringpost_ring::steering::{CID_BYTES, Program};

/// Makes the ids of one shard.
pub(super) struct ShardCids {
    program: Program,
    shard: u16,
    lifetime: Option<Duration>,
    random: StdRng,
}

impl ShardCids {
    /// `seed` is for tests and the simulator: who knows it knows the ids.
    pub(super) fn new(
        program: Program,
        shard: u16,
        lifetime: Option<Duration>,
        seed: Option<[u8; 32]>,
    ) -> Self {
        assert!(shard < program.shards(), "shard {shard} of {}", program.shards());
        let random = seed.map_or_else(|| StdRng::from_rng(&mut rand::rng()), StdRng::from_seed);
        Self { program, shard, lifetime, random }
    }
}

impl ConnectionIdGenerator for ShardCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CID_BYTES];
        self.random.fill_bytes(&mut id);
        self.program.name_shard(self.shard, &mut id);
        ConnectionId::new(&id)
    }

    /// Refuses the ids of other shards: this one knows nothing of their connections, and must not
    /// reset them.
    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        let id: &[u8; CID_BYTES] = cid[..].try_into().map_err(|_| InvalidCid)?;
        if self.program.shard_of_cid(id) == self.shard { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        self.lifetime
    }
}
