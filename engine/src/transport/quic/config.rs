//! What all QUIC endpoints of a gateway share, and how lean their connections are.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::{EndpointConfig, ServerConfig, TransportConfig, VarInt};
use ringpost_protocol::limits::{HELLO_MS_MAX, QUIC_IDLE_MS, QUIC_SERVER_WINDOW_BYTES};

use super::cid::ShardCids;
use super::keys::QuicKeys;
use ringpost_ring::steering::{CidNaming, Program};

use crate::limits::{
    QUIC_ACCEPTS_PER_TURN, QUIC_HANDSHAKES_PENDING_MAX, QUIC_INCOMING_BYTES_MAX, QUIC_INCOMING_MAX,
    QUIC_RETRIES, QUIC_RETRY_PENDING, QUIC_SEND_WINDOW_BYTES, Rate,
};
use crate::transport::tls;

/// Shared by the endpoints of all shards; a clone is cheap.
#[derive(Clone)]
pub struct QuicConfig {
    server: Arc<ServerConfig>,
    keys: QuicKeys,
    pub(super) naming: CidNaming,
    pub(super) limits: QuicLimits,
    /// Connection ids are replaced when they are so old. `None`: only by migrations, so that no
    /// phone is woken for it.
    cid_lifetime: Option<Duration>,
    seed: Option<[u8; 32]>,
}

/// Bounds of one endpoint. The defaults are those of [`crate::limits`]; an operator lowers them.
#[derive(Clone, Debug)]
pub struct QuicLimits {
    /// Connections, those under way included. More are turned away.
    pub connections_max: usize,
    /// Time from a client's first packet to the first bytes on its stream.
    pub handshake_ms_max: u64,
    /// Handshakes under way beyond which a client must prove its address first.
    pub retry_pending: usize,
    /// New handshakes of one turn beyond which the same holds, and twice which one turn begins at most.
    pub accepts_per_turn: u32,
    /// Handshakes under way beyond which new clients are turned away.
    pub handshakes_pending_max: usize,
    /// Address proofs demanded; what comes beyond that is not answered.
    pub retries: Rate,
}

impl Default for QuicLimits {
    fn default() -> Self {
        Self {
            connections_max: 1_000_000,
            handshake_ms_max: HELLO_MS_MAX,
            retry_pending: QUIC_RETRY_PENDING,
            accepts_per_turn: QUIC_ACCEPTS_PER_TURN,
            handshakes_pending_max: QUIC_HANDSHAKES_PENDING_MAX,
            retries: QUIC_RETRIES,
        }
    }
}

impl QuicConfig {
    /// With the certificate, the tickets and the ALPN of `tls`.
    pub fn new(
        tls: &tls::ServerConfig,
        keys: QuicKeys,
        naming: CidNaming,
        limits: QuicLimits,
    ) -> Self {
        let server = Arc::new(server_config(tls.for_quic(), &keys, Arc::new(transport())));
        Self { server, keys, naming, limits, cid_lifetime: None, seed: None }
    }

    /// Without TLS, and with a clock that stands still for the age of address proofs: for the
    /// simulator.
    #[cfg(feature = "plain-transport")]
    pub fn plain(keys: QuicKeys, naming: CidNaming, limits: QuicLimits) -> Self {
        let crypto = Arc::new(super::plain::PlainQuic);
        let mut server = server_config(crypto, &keys, Arc::new(transport()));
        server.time_source(Arc::new(super::plain::Standstill));
        Self { server: Arc::new(server), keys, naming, limits, cid_lifetime: None, seed: None }
    }

    /// The same with another certificate, for connections that begin from now on.
    #[must_use]
    pub fn with_tls(&self, tls: &tls::ServerConfig) -> Self {
        let transport = Arc::clone(&self.server.transport);
        let server = Arc::new(server_config(tls.for_quic(), &self.keys, transport));
        Self { server, ..self.clone() }
    }

    /// The same with other bounds.
    #[must_use]
    pub fn with_limits(&self, limits: QuicLimits) -> Self {
        Self { limits, ..self.clone() }
    }

    /// The same with connection ids that are replaced at this age.
    #[must_use]
    pub fn with_cid_lifetime(&self, lifetime: Duration) -> Self {
        Self { cid_lifetime: Some(lifetime), ..self.clone() }
    }

    /// The same with ids and packet numbers that come from `seed`: for the simulator, never for a
    /// gateway.
    #[must_use]
    pub fn with_seed(&self, seed: [u8; 32]) -> Self {
        Self { seed: Some(seed), ..self.clone() }
    }

    #[cfg(test)]
    pub(super) fn with_transport(&self, change: impl FnOnce(&mut TransportConfig)) -> Self {
        let (mut changed, mut server) = (transport(), ServerConfig::clone(&self.server));
        change(&mut changed);
        server.transport = Arc::new(changed);
        Self { server: Arc::new(server), ..self.clone() }
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// The steering program for the ids that the endpoints of `shards` shards give out.
    pub fn program(&self, shards: u16) -> Program {
        Program::new(self.naming, shards, &self.keys.cid)
    }

    /// The same for a flood: first packets, whose ids are the sender's choice, go by the kernel's
    /// hash. `None` where ids are plain, and everybody can aim at a shard anyway.
    pub fn flood_program(&self, shards: u16) -> Option<Program> {
        (self.naming == CidNaming::Keyed).then(|| self.program(shards).hash_initial())
    }

    /// Seeds of different shards must differ: they would give out the same ids.
    pub(super) fn shard_seed(&self, shard: u16) -> Option<[u8; 32]> {
        let mut seed = self.seed?;
        for (byte, own) in seed.iter_mut().zip(shard.to_le_bytes()) {
            *byte ^= own;
        }
        Some(seed)
    }

    pub(super) fn endpoint(&self, shard: u16, shards: u16) -> EndpointConfig {
        let mut config = EndpointConfig::new(Arc::clone(&self.keys.reset));
        let (program, lifetime) = (self.program(shards), self.cid_lifetime);
        let seed = self.shard_seed(shard);
        config.cid_generator(move || {
            Box::new(ShardCids::new(program.clone(), shard, lifetime, seed))
        });
        config.supported_versions(vec![QUIC_VERSION_1]);
        config.rng_seed(seed);
        config
    }
}

fn server_config(
    crypto: Arc<dyn quinn_proto::crypto::ServerConfig>,
    keys: &QuicKeys,
    transport: Arc<TransportConfig>,
) -> ServerConfig {
    let mut config = ServerConfig::new(crypto, Arc::clone(&keys.token));
    config
        .transport_config(transport)
        .migration(true)
        .max_incoming(QUIC_INCOMING_MAX)
        .incoming_buffer_size(QUIC_INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(QUIC_INCOMING_BYTES_MAX);
    config
}

/// Everything that a connection could hold is small: stream limits are tables that are made in
/// advance, windows are memory that a client may claim.
fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = VarInt::from_u64(QUIC_IDLE_MS).expect("an hour fits");
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .stream_receive_window(VarInt::from_u32(QUIC_SERVER_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(QUIC_SERVER_WINDOW_BYTES))
        .send_window(QUIC_SEND_WINDOW_BYTES)
        .max_idle_timeout(Some(idle.into()))
        // Heartbeats are frames of the protocol, and the client's business.
        .keep_alive_interval(None)
        // Probes for a larger MTU cost each idle phone packets after every move.
        .mtu_discovery_config(None);
    transport
}

const QUIC_VERSION_1: u32 = 1;
