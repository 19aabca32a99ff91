//! Where clients come in: listeners for TCP and sockets for QUIC, on one address and port, one of
//! each per shard.
//!
//! Bound in the order of the shards by one thread and kept until the process ends: the kernel numbers
//! the sockets of an address in that order, and the steering program names them by it. A parent that
//! outlives the process may have bound them and handed them over: then the kernel keeps whoever comes
//! while one gateway ends and the next one starts.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hashbrown::HashSet;
use ringpost_ring::net::{
    Handed, Inherited, ListenFault, ListenOptions, ListenerGroup, UdpGroup, UdpOptions,
};
use ringpost_ring::steering::Program;
use ringpost_ring::{Listener, UdpSocket};
use tracing::{error, info, warn};

use crate::config::QuicServing;
use crate::start::{ShardPlan, ShardStartFault};
use crate::transport::quic::QuicConfig;

/// The open doors of a gateway.
pub(crate) struct Doors {
    listeners: ListenerGroup,
    datagrams: Option<DatagramDoor>,
}

/// The sockets for datagrams, and how a datagram finds the one of its connection.
struct DatagramDoor {
    group: UdpGroup,
    /// `None`: nothing steers them.
    usual: Option<Program>,
    /// While there is a flood of handshakes. `None`: it makes no difference.
    flooded: Option<Program>,
    /// The shards that see one.
    floods: Mutex<HashSet<u16>>,
}

impl Doors {
    /// Opens them, or takes those that were handed over. The kernel closes the sockets of a killed
    /// gateway's rings a moment after its process is gone, so a supervisor's restart gets a short second
    /// chance.
    pub(crate) fn open(plan: &ShardPlan) -> Result<Self, ShardStartFault> {
        let started = Instant::now();
        let mut inherited = Inherited::take()?;
        if let Some(inherited) = &inherited {
            info!("sockets were handed over: {inherited}");
        }
        loop {
            match Self::try_open(plan, inherited.take()) {
                Err(ShardStartFault::Listen(ListenFault::InUse { .. }))
                    if started.elapsed() < LISTEN_RETRY_MAX =>
                {
                    thread::sleep(LISTEN_RETRY_PAUSE);
                }
                result => return result,
            }
        }
    }

    /// With port 0 the kernel chooses one for TCP, which somebody else may have for UDP: then another
    /// try finds another one.
    fn try_open(plan: &ShardPlan, inherited: Option<Inherited>) -> Result<Self, ShardStartFault> {
        let limits = &plan.config.limits;
        let options = ListenOptions {
            backlog: LISTEN_BACKLOG,
            send_buffer_bytes: limits.send_buffer_bytes,
            receive_buffer_bytes: limits.receive_buffer_bytes,
        };
        let (handed, datagrams) = inherited
            .map_or_else(Default::default, |inherited| (inherited.listeners, inherited.datagrams));
        let (address, shards) = (plan.config.listen, plan.shards);
        let listeners = match handed.is_empty() {
            true => ListenerGroup::bind(address, shards, &options)?,
            false => ListenerGroup::adopt(handed, address, shards, &options)?,
        };
        let datagrams = match &plan.settings.quic {
            Some(quic) => {
                let group = udp_group(datagrams, listeners.address(), plan)?;
                Some(DatagramDoor::open(group, shards, &plan.config.quic, quic)?)
            }
            None if datagrams.is_empty() => None,
            None => return Err(ShardStartFault::DatagramsUnused { count: datagrams.len() }),
        };
        Ok(Self { listeners, datagrams })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listeners.address()
    }

    pub(crate) fn listener(&self, shard: u16) -> Listener {
        self.listeners.listener(shard)
    }

    pub(crate) fn serves_quic(&self) -> bool {
        self.datagrams.is_some()
    }

    pub(crate) fn datagram_socket(&self, shard: u16) -> Option<UdpSocket> {
        self.datagrams.as_ref().map(|datagrams| datagrams.group.socket(shard))
    }

    /// `shard` sees a flood of handshakes, or none any more. Hands the steering program that holds
    /// now to `tell`, if it has changed; of two changes, the later one is told later.
    pub(crate) fn set_flood(&self, shard: u16, is_on: bool, tell: impl FnOnce(&Program)) {
        if let Some(datagrams) = &self.datagrams {
            datagrams.set_flood(shard, is_on, tell);
        }
    }
}

fn udp_group(
    handed: Vec<Handed>,
    address: SocketAddr,
    plan: &ShardPlan,
) -> Result<UdpGroup, ShardStartFault> {
    let serving = &plan.config.quic;
    let options = UdpOptions {
        send_buffer_bytes: serving.send_buffer_bytes,
        receive_buffer_bytes: serving.receive_buffer_bytes,
    };
    Ok(match handed.is_empty() {
        true => UdpGroup::bind(address, plan.shards, &options)?,
        false => UdpGroup::adopt(handed, address, plan.shards, &options)?,
    })
}

impl DatagramDoor {
    fn open(
        group: UdpGroup,
        shards: u16,
        serving: &QuicServing,
        quic: &QuicConfig,
    ) -> Result<Self, ShardStartFault> {
        let address = group.address();
        let granted = group.receive_buffer_bytes().map_err(ShardStartFault::Steering)?;
        if granted < 2 * u64::from(serving.receive_buffer_bytes) {
            warn!(
                asked_bytes = serving.receive_buffer_bytes,
                granted_bytes = granted / 2,
                "the kernel holds fewer datagrams than configured; raise net.core.rmem_max, or lower \
                 quic.receive_buffer_bytes"
            );
        }
        let (usual, flooded) = match serving.steering {
            Some(_) => (Some(quic.program(shards)), quic.flood_program(shards)),
            None => (None, None),
        };
        if let Some(program) = &usual {
            group.steer(program).map_err(ShardStartFault::Steering)?;
        }
        info!(%address, steering = ?serving.steering, "QUIC is served");
        Ok(Self { group, usual, flooded, floods: Mutex::default() })
    }

    /// On the thread of the shard that noticed. The exchange takes 0.13 ms (median of 400, on a machine
    /// with four times the work that it has cores for), less than one handshake, and comes at most
    /// twice in the ten seconds that a flood lasts at least: not worth a way to another thread, on
    /// which it would come later.
    fn set_flood(&self, shard: u16, is_on: bool, tell: impl FnOnce(&Program)) {
        // Held until it is told: the last change is the one that stays, for the kernel and the shards.
        let mut floods = self.floods.lock().unwrap_or_else(PoisonError::into_inner);
        let before = !floods.is_empty();
        if is_on {
            floods.insert(shard);
        } else {
            floods.remove(&shard);
        }
        let after = !floods.is_empty();
        if before == after {
            return;
        }
        let program = if after { self.flooded.as_ref() } else { self.usual.as_ref() };
        let Some(program) = program.filter(|_| self.flooded.is_some()) else { return };
        if let Err(errno) = self.group.steer(program) {
            error!(%errno, "cannot exchange the steering program");
            return;
        }
        warn!(shard, spreads = after, "QUIC: a flood of handshakes begins or ends");
        tell(program);
    }
}

/// Connections that the kernel holds for a shard that is behind with accepting.
const LISTEN_BACKLOG: u32 = 4096;
/// How long a port that is in use is tried again, and how often.
const LISTEN_RETRY_MAX: Duration = Duration::from_secs(2);
const LISTEN_RETRY_PAUSE: Duration = Duration::from_millis(50);
