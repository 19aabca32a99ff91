//! Configuration: a TOML file in, a checked [`Config`] out.
//!
//! Everything behind this file sees values that are in range. A fault names the file, the line, the
//! key and what is allowed. Limits can only be lowered: the upper ends are the constants that the
//! engine was built and tested with. `engine/reference.toml` documents every key.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use ringpost_ring::steering::CidNaming;

use crate::control::dev;
use crate::limits::{Cidr, QUIC_HANDSHAKES_PENDING_MAX, QUIC_RETRY_PENDING, SHARDS_MAX};

mod changes;
mod key_set_url;
mod limits;
mod read;
mod source;

pub use key_set_url::KeySetUrl;
pub use limits::LimitsConfig;

/// Everything that can be configured, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where clients connect: TLS over TCP, and QUIC over UDP.
    pub listen: SocketAddr,
    /// Connections come through balancers, from these addresses only, and begin with a PROXY
    /// header of version 2. `None`: they come from the clients themselves.
    pub proxy_trusted: Option<Vec<Cidr>>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served: plain HTTP, so keep it private.
    pub admin_listen: SocketAddr,
    /// Where public keys are published and taken over HTTPS. `None`: nowhere.
    pub keys_listen: Option<SocketAddr>,
    /// Holds the store and its lock.
    pub data_dir: PathBuf,
    /// Threads that hold connections.
    pub shards: u16,
    /// Shards that own mailboxes, `0 < storage_shards <= shards`. `None`: as many as recorded in the
    /// data directory, and `shards` at the first start.
    pub storage_shards: Option<u16>,
    /// The operator says that the host's date is right, so that the expiry clock may follow it at
    /// once. Of one start: it has no key in the file.
    pub confirm_clock: bool,
    pub tls: TlsConfig,
    pub auth: AuthConfig,
    pub quic: QuicServing,
    pub limits: LimitsConfig,
    pub storage: StorageConfig,
    pub drain: DrainConfig,
    pub log: LogConfig,
    pub audit: AuditConfig,
}

/// Certificate chain and private key, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    pub certificate_path: PathBuf,
    pub key_path: PathBuf,
}

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthConfig {
    /// Where the JWK set with the public keys that sign tokens comes from.
    pub keys: KeySource,
    /// What a token's `aud` must contain.
    pub audience: String,
}

/// QUIC beside TLS over TCP, on the same address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuicServing {
    /// Without effect behind balancers: a PROXY header belongs to TCP.
    pub enabled: bool,
    /// By what datagrams find the shard of their connection. `None`: by nothing, they are passed on
    /// from shard to shard. For tests; no key of the file says that.
    pub steering: Option<CidNaming>,
    /// Handshakes of one shard under way beyond which a client proves its address first.
    pub retry_pending: usize,
    /// Memory of the kernel for what one shard's socket sends and receives.
    pub send_buffer_bytes: u32,
    pub receive_buffer_bytes: u32,
}

/// Where the keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    File(PathBuf),
    Url(KeySetUrl),
}

/// The segment store of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorageConfig {
    pub segment_bytes: u32,
    /// Memory of one shard for records read back from disk.
    pub cache_bytes: usize,
    /// Disk bandwidth of one shard for moving live records out of old segments.
    pub reclaim_bytes_per_second: u64,
}

/// How the gateway ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DrainConfig {
    /// Time for connections to flush after the signal; what remains is closed.
    pub drain_ms_max: u64,
    /// Clients are told to return after a random time up to this one.
    pub reconnect_jitter_ms: u64,
}

/// What is logged to standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Directives of `tracing-subscriber`, as in `info,ringpost_engine::shard=debug`.
    pub filter: String,
    pub format: LogFormat,
}

/// The security audit log; see `engine/AUDIT.md`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditConfig {
    /// `None`: there is none.
    pub path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// What is wrong with a configuration: at least one fault, in the order of the file.
#[derive(Debug)]
pub struct ConfigFaults(pub Vec<ConfigFault>);

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFault {
    #[error("cannot read configuration {}: {error}", path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    /// Not TOML.
    #[error("{place}: {text}")]
    Syntax { place: Place, text: String },
    #[error("{place}: there is no key {key}")]
    UnknownKey { place: Place, key: String, similar: Option<String> },
    #[error("{place}: {key} = {value} is not allowed; it takes {allowed}")]
    NotAllowed { place: Place, key: String, value: String, allowed: String },
    #[error("{}: {key} is missing", path.display())]
    Missing { path: PathBuf, key: String, meaning: &'static str },
}

/// A position in a file, as editors understand it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
}

impl Config {
    /// Reads and checks the file at `path`. Relative paths in it count from its directory.
    pub fn load(path: &Path) -> Result<Self, ConfigFaults> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigFaults(vec![ConfigFault::Unreadable { path: path.to_owned(), error }])
        })?;
        Self::parse(path, &text)
    }

    /// Checks `text`; `path` is where it came from.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigFaults> {
        read::parse(path, text)
    }

    /// The configuration of a gateway that made its own keys in `data_dir` (see [`dev`]).
    pub fn development(data_dir: &Path) -> Self {
        let files = dev::Files::of(data_dir);
        Self {
            listen: DEFAULT_LISTEN,
            proxy_trusted: None,
            admin_listen: DEFAULT_ADMIN_LISTEN,
            keys_listen: None,
            data_dir: data_dir.to_owned(),
            shards: default_shards(),
            storage_shards: None,
            confirm_clock: false,
            tls: TlsConfig { certificate_path: files.certificate, key_path: files.key },
            auth: AuthConfig {
                keys: KeySource::File(files.jwks),
                audience: DEFAULT_AUDIENCE.to_owned(),
            },
            quic: QuicServing::default(),
            limits: LimitsConfig::default(),
            storage: StorageConfig::default(),
            drain: DrainConfig::default(),
            log: LogConfig::default(),
            audit: AuditConfig::default(),
        }
    }
}

impl ConfigFault {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Unreadable { .. } => {
                "give --config a readable file; engine/reference.toml is a start".to_owned()
            }
            Self::UnknownKey { similar: Some(similar), .. } => {
                format!("perhaps {similar} is meant; engine/reference.toml has every key")
            }
            Self::Syntax { .. } | Self::UnknownKey { similar: None, .. } => {
                "see engine/reference.toml for every key".to_owned()
            }
            Self::NotAllowed { key, allowed, .. } => format!("set {key} to {allowed}"),
            Self::Missing { key, meaning, .. } => format!("set {key} to {meaning}"),
        }
    }

    /// Where it is, if it is at one place of the file.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Syntax { place, .. }
            | Self::UnknownKey { place, .. }
            | Self::NotAllowed { place, .. } => Some(place),
            Self::Unreadable { .. } | Self::Missing { .. } => None,
        }
    }

    /// What is missing comes last.
    fn position(&self) -> (usize, usize) {
        self.place().map_or((usize::MAX, 0), |place| (place.line, place.column))
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            write!(f, "{}{fault}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigFaults {}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path.display(), self.line, self.column)
    }
}

impl Config {
    /// Whether QUIC is served.
    pub fn serves_quic(&self) -> bool {
        self.quic.enabled && self.proxy_trusted.is_none()
    }
}

impl Default for QuicServing {
    fn default() -> Self {
        Self {
            enabled: true,
            steering: Some(CidNaming::Keyed),
            retry_pending: QUIC_RETRY_PENDING,
            send_buffer_bytes: 1 << 20,
            receive_buffer_bytes: 2 << 20,
        }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, cache_bytes: 32 << 20, reclaim_bytes_per_second: 32 << 20 }
    }
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self { drain_ms_max: 10_000, reconnect_jitter_ms: 5_000 }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

/// One shard per core that the process may use.
fn default_shards() -> u16 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u16::try_from(cores).unwrap_or(SHARDS_MAX).min(SHARDS_MAX)
}

/// Where clients connect unless configured otherwise.
pub const DEFAULT_LISTEN: SocketAddr = loopback(7443);
/// Where the admin endpoint listens unless configured otherwise.
pub const DEFAULT_ADMIN_LISTEN: SocketAddr = loopback(7480);
/// The audience of tokens unless configured otherwise.
pub const DEFAULT_AUDIENCE: &str = "ringpost";

const SHARDS: RangeInclusive<u64> = 1..=SHARDS_MAX as u64;
const SEGMENT_BYTES: RangeInclusive<u64> = 4 << 20..=1 << 30;
const CACHE_BYTES: RangeInclusive<u64> = 0..=64 << 30;
const RECLAIM_BYTES_PER_SECOND: RangeInclusive<u64> = 1 << 20..=u32::MAX as u64;
// Beyond the upper end clients are turned away.
const RETRY_PENDING: RangeInclusive<u64> = 0..=QUIC_HANDSHAKES_PENDING_MAX as u64 - 1;
// The kernel doubles it for its own bookkeeping, and has a lower end of its own.
const DATAGRAM_BUFFER_BYTES: RangeInclusive<u64> = 64 << 10..=1 << 30;
const DRAIN_MS: RangeInclusive<u64> = 0..=600_000;
const JITTER_MS: RangeInclusive<u64> = 0..=3_600_000;

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

#[cfg(test)]
mod tests;
