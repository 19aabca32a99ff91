//! Connections that mean no good, on plain blocking sockets: they are few, slow, or both, and share
//! nothing with the clients whose latency is measured.

mod initials;
mod logins;
mod sockets;

pub use initials::INITIALS_SOURCES;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Result;
use rustls::pki_types::ServerName;
use serde::Serialize;

use crate::client::Identity;
use crate::plan::pressure::Pressure;
use crate::scenario::Server;
use crate::tokens::{self, KeyExchange, TokenMint};

/// What they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    HalfOpen,
    Trickle,
    WrongToken,
    Initials,
}

/// Whom, how many, how long.
pub struct Target {
    address: SocketAddr,
    server_name: ServerName<'static>,
    tls: Arc<rustls::ClientConfig>,
    /// The same without ML-KEM.
    classic_tls: Arc<rustls::ClientConfig>,
    /// One that the gateway believes.
    mint: TokenMint,
    /// One that it does not.
    wrong_mint: TokenMint,
    count: u32,
    duration: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AttackCounts {
    /// Connections, or first packets of some.
    pub opened: u64,
    pub ended_by_server: u64,
    /// Logins that were told an error, or shown the door.
    pub refused: u64,
    /// Logins with a wrong token that were welcome.
    pub wrongly_welcomed: u64,
}

impl Attack {
    /// Readers are no attack of this kind.
    pub fn of(pressure: Pressure) -> Self {
        match pressure {
            Pressure::HalfOpen => Self::HalfOpen,
            Pressure::Trickle => Self::Trickle,
            Pressure::WrongToken => Self::WrongToken,
            Pressure::Initials => Self::Initials,
            Pressure::StopReading | Pressure::StopReadingFull | Pressure::ReadSlowly => {
                unreachable!("readers are clients of a swarm")
            }
        }
    }

    /// Until `stop` says so.
    pub fn run(self, target: &Target, stop: &AtomicBool) -> Result<AttackCounts> {
        match self {
            Self::HalfOpen => sockets::half_open(target, stop),
            Self::Trickle => sockets::trickle(target, stop),
            Self::WrongToken => logins::wrong_token(target, stop),
            Self::Initials => initials::initials(target, stop),
        }
    }
}

impl Target {
    pub fn new(server: &Server, count: u32, duration: Duration) -> Result<Self> {
        let elsewhere = tempfile::tempdir()?;
        tokens::write_credentials(elsewhere.path())?;
        Ok(Self {
            address: server.target(),
            server_name: server.server_name(),
            tls: server.tls(),
            classic_tls: server.tls_of(KeyExchange::Classic)?,
            mint: server.mint()?,
            wrong_mint: TokenMint::load(elsewhere.path(), TOKEN_LIFETIME)?,
            count,
            duration,
        })
    }

    fn identity(&self, number: u32, right: bool) -> Result<Identity> {
        let mint = if right { &self.mint } else { &self.wrong_mint };
        Identity::new(&format!("loadgen-attack-{number}"), u64::from(number) + 1, mint)
    }
}

const TOKEN_LIFETIME: Duration = Duration::from_secs(3_600);
