//! Clients that have said Hello and then say nothing, on a thread of the load generator.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use ringpost_loadgen::addr::SourceAddresses;
use ringpost_loadgen::client::Identity;
use ringpost_loadgen::fleet::{Fleet, Part};
use ringpost_loadgen::gateway::Gateway;
use ringpost_loadgen::measure::{PAYLOAD_BYTES_MIN, PayloadPattern};
use ringpost_loadgen::swarm::{SwarmConfig, quic_config};
use ringpost_loadgen::tokens::{TokenMint, tls_config};
use ringpost_loadgen::traffic::Traffic;
use rustls::pki_types::ServerName;

/// What carries a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    Tls,
    Quic,
}

/// Connections that are open, welcomed and silent until this is dropped.
pub struct Idle(Fleet);

impl Idle {
    /// Connects one device of each of the users `name-0`, `name-1` and so on.
    pub fn open(
        gateway: &Gateway,
        transport: Transport,
        name: &str,
        count: u32,
    ) -> Result<Self, Box<dyn Error>> {
        let mint = TokenMint::load(gateway.data(), TOKEN_LIFETIME)?;
        let tls = tls_config(gateway.data())?;
        let quic = match transport {
            Transport::Tls => None,
            Transport::Quic => Some(quic_config(Arc::clone(&tls))?),
        };
        let config = SwarmConfig {
            target: gateway.target(),
            server_name: ServerName::from(gateway.target().ip()),
            tls,
            own_tickets: false,
            quic,
            connecting_max: CONNECTING_MAX,
            tick_ns: TICK_NS,
        };
        let identity =
            |index| Identity::new(&format!("{name}-{index}"), u64::from(index) + 1, &mint);
        let identities = (0..count).map(identity).collect::<Result<Vec<_>, _>>()?;
        let silent = PayloadPattern::new(PAYLOAD_BYTES_MIN, 0);
        let part = Part {
            traffic: Traffic::new(identities.len(), Vec::new(), silent, 0),
            identities,
            sources: SourceAddresses::new(gateway.target(), count, 0, 1),
        };
        let fleet = Fleet::start(&Arc::new(config), None, vec![part])?;
        fleet.run(|_, swarm| swarm.connect_all(), |_| ())?;
        Ok(Self(fleet))
    }

    /// Lets time pass, in which the clients acknowledge and answer what they must.
    pub fn rest(&self, time: Duration) -> Result<(), Box<dyn Error>> {
        let time_ns = u64::try_from(time.as_nanos())?;
        let rest = move |_: usize, swarm: &mut ringpost_loadgen::swarm::Swarm| {
            swarm.run_until(swarm.now_ns() + time_ns, |_| false)
        };
        self.0.run(rest, |_| ())?;
        Ok(())
    }

    /// Says goodbye: QUIC has no kernel that does it for clients that are gone.
    pub fn leave(self) -> Result<(), Box<dyn Error>> {
        self.0.run(|_, swarm| swarm.disconnect(), |_| ())?;
        Ok(())
    }
}

/// Longer than the run.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
const CONNECTING_MAX: u32 = 64;
const TICK_NS: u64 = 1_000_000;
