//! From a checked configuration to serving shards, and back down. What can fail is tried in the
//! order that costs least: keys, the data directory, the host, ports, shards.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use ringpost_ring::net::{InheritFault, ListenFault};
use ringpost_ring::{Errno, RingFault};
use ringpost_storage::Resharded;
use tracing::{info, warn};

use crate::audit::{AuditEvent, AuditFault, AuditFile, AuditLog, Pseudonyms};
use crate::config::{Config, QuicServing};
use crate::control::auth::Verifier;
use crate::control::keys::{self, KeysFault, Obtained};
use crate::control::reload::{Reloader, SetLogFilter};
use crate::control::tls_files::{self, TlsFilesFault};
use crate::control::{
    Control, ControlFault, DrainPlan, ExitReason, KeysInterface, ShardPort, ShardReporter,
    shard_reports,
};
use crate::data_dir::{self, DataDir, DataDirFault, QuicSecretFault};
use crate::directory::{ControlPort, DirectoryFault, Embedded};
use crate::host::{self, HostFault};
use crate::launch;
use crate::limits::{AddressTable, LimitSet, QUIC_HANDSHAKES_PENDING_MAX};
use crate::progress::WorkProgress;
use crate::shard::ShardSettings;
use crate::transport::Acceptor;
use crate::transport::quic::{CidNaming, QuicConfig, QuicKeys, QuicLimits, SECRET_BYTES};
use crate::transport::tls::{self, ServerConfig};

/// Where the configuration came from, so that it can be read again while the gateway runs.
pub struct Reloading {
    pub path: PathBuf,
    pub set_log_filter: SetLogFilter,
}

/// Everything that the shards are made from.
pub struct ShardPlan {
    pub config: Config,
    /// Shards to start. It may be more than configured: see [`ShardPlan::storage_shards`].
    pub shards: u16,
    /// The first so many own mailboxes, as recorded in the data directory; never above `shards`.
    pub storage_shards: u16,
    /// The store directory of each storage shard; it exists and is durable.
    pub store_dirs: Vec<PathBuf>,
    pub store_id: u64,
    /// What the shards begin with.
    pub settings: ShardSettings,
    pub audit: AuditLog,
}

/// Running shards.
pub struct Shards {
    /// Where they listen; the port is known even when the configured one was 0.
    pub listen: SocketAddr,
    /// In the order of the shards.
    pub ports: Vec<Box<dyn ShardPort>>,
    /// Each drops its reporter, at the latest, when it ends. The directory's is the last one, as it
    /// outlives the shards.
    pub threads: Vec<JoinHandle<()>>,
    pub directory: ControlPort,
    /// Connections of an address count wherever they come to.
    pub addresses: Arc<AddressTable>,
}

/// Where a serving gateway is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serving {
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
}

/// Why shards could not be started. Faults of a started one come through its [`ShardReporter`].
#[derive(Debug, thiserror::Error)]
pub enum ShardStartFault {
    #[error("cannot listen for clients: {0}")]
    Listen(#[from] ListenFault),
    #[error(transparent)]
    Inherit(#[from] InheritFault),
    #[error("{count} sockets for UDP were handed over by LISTEN_FDS, and QUIC is not served")]
    DatagramsUnused { count: usize },
    #[error("cannot steer datagrams to their shards: {0}")]
    Steering(Errno),
    #[error(transparent)]
    Ring(#[from] RingFault),
    #[error("cannot read the store directory {directory}: {error}", directory = directory.display())]
    Store { directory: PathBuf, error: std::io::Error },
    #[error(transparent)]
    Directory(#[from] DirectoryFault),
    #[error("cannot start a shard's thread: {0}")]
    Thread(std::io::Error),
}

/// Why the gateway did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    TlsFiles(#[from] TlsFilesFault),
    #[error(transparent)]
    Certificate(#[from] tls::ConfigFault),
    #[error(transparent)]
    Keys(#[from] KeysFault),
    #[error(transparent)]
    Audit(#[from] AuditFault),
    #[error(transparent)]
    Host(#[from] HostFault),
    #[error(transparent)]
    DataDir(#[from] DataDirFault),
    #[error(transparent)]
    Directory(#[from] DirectoryFault),
    #[error(transparent)]
    QuicSecret(#[from] QuicSecretFault),
    #[error("cannot listen on {address} (keys.listen): {error}")]
    KeysListen { address: SocketAddr, error: std::io::Error },
    #[error("cannot listen on {address} (admin_listen): {error}")]
    AdminListen { address: SocketAddr, error: std::io::Error },
    #[error(transparent)]
    Shards(#[from] ShardStartFault),
    #[error(transparent)]
    Control(#[from] ControlFault),
}

/// Runs a gateway until it is told to drain. `start_shards` starts `plan.shards` threads, gives one
/// reporter to each in order, and returns at once: shards recover their stores on their own time.
/// `on_serving` is called when all of them serve. Without `reloading` SIGHUP ends it like SIGTERM.
pub fn run(
    config: Config,
    reloading: Option<Reloading>,
    start_shards: impl FnOnce(
        ShardPlan,
        Embedded,
        Vec<ShardReporter>,
    ) -> Result<Shards, ShardStartFault>,
    on_serving: impl FnOnce(Serving),
) -> Result<ExitReason, StartError> {
    host::raise_open_files(config.shards)?;
    let files = tls_files::load(&config.tls.certificate_path, &config.tls.key_path)?;
    tls_files::tell_validity(&config.tls.certificate_path, &files.validity);
    let tls = ServerConfig::new(files.certificates, files.key)?;
    let keys = obtain_keys(&config)?;
    let storage_shards = config.storage_shards.unwrap_or(config.shards);
    let mut data = DataDir::open(&config.data_dir, storage_shards)?;
    keys.keep();
    let Obtained { verifier, fetched_unix_ms: keys_unix_ms, refresher, .. } = keys;
    let storage_shards = config.storage_shards.unwrap_or_else(|| data.storage_shards());
    let shards = shard_count(&config, storage_shards);
    let host = host::check(&config, shards)?;
    if storage_shards != data.storage_shards() {
        reshard(&mut data, storage_shards, &config)?;
    }
    let directory = Embedded::open(data.path())?;
    let audit = open_audit(&config)?;
    let (admin, admin_listen) = listen_admin(config.admin_listen)?;
    let keys_listener = listen_keys(config.keys_listen)?;
    let drain = DrainPlan::from(&config.drain);

    let limits = config.limits.live.within(host.connections_room);
    let settings = first_settings(&config, tls, verifier, limits)?;
    let reloader = reloading.map(|Reloading { path, set_log_filter }| Reloader {
        path,
        started: config.clone(),
        config: config.clone(),
        connections_room: host.connections_room,
        set_log_filter,
    });
    let plan = ShardPlan {
        shards,
        storage_shards: data.storage_shards(),
        store_dirs: (0..data.storage_shards()).map(|shard| data.shard_dir(shard)).collect(),
        store_id: data.store_id(),
        settings: settings.clone(),
        audit: audit.clone(),
        config,
    };
    let confirm_clock = plan.config.confirm_clock;
    let (reporters, reports) = shard_reports(shards);
    let Shards { listen, ports, threads, directory, addresses } =
        start_shards(plan, directory, reporters)?;
    let keys_interface =
        keys_listener.map(|listener| KeysInterface { listener, addresses, storage_shards });
    let control = Control {
        admin,
        ports,
        reports,
        drain,
        certificate: files.validity,
        settings,
        keys_unix_ms,
        refresher,
        reloader,
        audit: audit.clone(),
        directory: Some(directory),
        keys_interface,
    };
    let result = control.run(|| {
        let version = env!("CARGO_PKG_VERSION");
        audit.record(AuditEvent::Started { version, listen, shards, confirm_clock });
        on_serving(Serving { listen, admin_listen });
    });
    let reason = result.inspect_err(|fault| audit_stop(&audit, fault.to_string()))?;
    for thread in threads {
        // It reported itself drained, and an end after that has nothing left to lose.
        let _ = thread.join();
    }
    audit_stop(&audit, "drained".to_owned());
    drop(data); // the lock is held until no shard can write
    Ok(reason)
}

fn first_settings(
    config: &Config,
    tls: ServerConfig,
    verifier: Verifier,
    limits: LimitSet,
) -> Result<ShardSettings, StartError> {
    let secret = data_dir::quic_secret(&config.data_dir)?;
    let tls = tls.with_tickets_of(&secret);
    Ok(ShardSettings {
        quic: serve_quic(config, &tls, &secret, &limits),
        acceptor: Acceptor::Tls(tls),
        verifier: Arc::new(verifier),
        limits: Arc::new(limits),
        reconnect_jitter_ms: config.drain.reconnect_jitter_ms,
        audits: config.audit.path.is_some(),
    })
}

/// `None`: there is no QUIC.
fn serve_quic(
    config: &Config,
    tls: &ServerConfig,
    secret: &[u8; SECRET_BYTES],
    limits: &LimitSet,
) -> Option<QuicConfig> {
    if !config.serves_quic() {
        match config.quic.enabled {
            true => info!("no QUIC: proxy_protocol is set, and its header belongs to TCP"),
            false => info!("no QUIC: quic.enabled is false"),
        }
        return None;
    }
    let keys = QuicKeys::from_secret(secret);
    let naming = config.quic.steering.unwrap_or(CidNaming::Keyed);
    let limits = quic_limits(limits, &config.quic);
    Some(QuicConfig::new(tls, keys, naming, limits))
}

/// What QUIC connections are allowed of what all are.
pub(crate) fn quic_limits(limits: &LimitSet, quic: &QuicServing) -> QuicLimits {
    QuicLimits {
        connections_max: limits.connections_max,
        handshake_ms_max: limits.handshake_ms_max,
        handshakes_pending_max: limits.handshakes_pending_max.min(QUIC_HANDSHAKES_PENDING_MAX),
        retry_pending: quic.retry_pending,
        ..QuicLimits::default()
    }
}

fn obtain_keys(config: &Config) -> Result<Obtained, StartError> {
    let obtained = keys::obtain_now(&config.auth, &config.data_dir);
    let keys = obtained.map_err(ControlFault::Runtime)??;
    if let Some(fault) = &keys.fault {
        warn!(%fault, fix = fault.fix(), "no new keys; those kept from the last fetch are used");
    }
    info!(keys = keys.verifier.key_count(), "key set loaded");
    Ok(keys)
}

fn open_audit(config: &Config) -> Result<AuditLog, AuditFault> {
    let file = AuditFile::open(config.audit.path.as_deref())?;
    AuditLog::start(file, Pseudonyms::of(&config.data_dir)?)
}

fn audit_stop(audit: &AuditLog, reason: String) {
    audit.record(AuditEvent::Stopped { reason });
    audit.flush();
}

/// The stores need a shard each; further shards hold connections only.
fn shard_count(config: &Config, storage_shards: u16) -> u16 {
    let shards = config.shards.max(storage_shards);
    if shards > config.shards {
        warn!(
            storage_shards,
            configured = config.shards,
            shards,
            "the data directory has more storage shards than there are shards; each gets one. Set \
             storage_shards to rewrite it for fewer"
        );
    }
    shards
}

/// Nobody is served meanwhile: it is for the operator who asked for another number of stores.
fn reshard(data: &mut DataDir, storage_shards: u16, config: &Config) -> Result<(), DataDirFault> {
    let recorded = data.storage_shards();
    info!(recorded, storage_shards, "re-sharding: rewriting the stores for another number of them");
    let started = Instant::now();
    let store = launch::store_config(0, data.store_id(), config);
    let mut progress = WorkProgress::begin("re-sharding");
    let resharded = data.reshard(storage_shards, &store, &mut |now| {
        progress.show(now.bytes_done, now.bytes_total);
    })?;
    drop(progress);
    warn_of_damage(&resharded);
    let (plan, report) = (&resharded.report.plan, &resharded.report);
    info!(
        storage_shards,
        generation = resharded.current.generation,
        entries = report.entries,
        devices = report.devices,
        bytes_before = plan.file_bytes,
        bytes_after = report.file_bytes,
        seconds = started.elapsed().as_secs_f32(),
        "re-sharded"
    );
    Ok(())
}

fn warn_of_damage(resharded: &Resharded) {
    let report = &resharded.report;
    for (shard, range) in &report.plan.damaged {
        warn!(shard, %range, "a damaged range of the old stores was left out");
    }
    if report.damaged_entries > 0 {
        warn!(entries = report.damaged_entries, "damaged records could not be copied");
    }
    if report.orphaned_entries > 0 {
        warn!(entries = report.orphaned_entries, "messages of mailboxes that no device names");
    }
    if let Some(error) = &resharded.leftover {
        warn!(%error, "the old stores could not be removed; the next start tries again");
    }
}

fn listen_admin(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let fault = |error| StartError::AdminListen { address, error };
    if !address.ip().is_loopback() {
        warn!(%address, "the admin endpoint is plain HTTP without a password; keep it private");
    }
    let listener = TcpListener::bind(address).map_err(fault)?;
    let bound = listener.local_addr().map_err(fault)?;
    Ok((listener, bound))
}

fn listen_keys(address: Option<SocketAddr>) -> Result<Option<TcpListener>, StartError> {
    let Some(address) = address else { return Ok(None) };
    let listener = TcpListener::bind(address);
    let listener = listener.map_err(|error| StartError::KeysListen { address, error })?;
    info!(%address, "public keys over HTTPS");
    Ok(Some(listener))
}

impl StartError {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::TlsFiles(fault) => return fault.fix(),
            Self::Keys(fault) => return fault.fix(),
            Self::Audit(fault) => return fault.fix(),
            Self::Host(fault) => return fault.fix(),
            Self::DataDir(fault) => return fault.fix(),
            Self::QuicSecret(fault) => return fault.fix(),
            Self::Directory(fault) | Self::Shards(ShardStartFault::Directory(fault)) => fault.fix(),
            Self::Shards(ShardStartFault::Ring(fault)) => return fault.fix(),
            Self::Shards(ShardStartFault::Inherit(fault)) => return fault.fix(),
            Self::Control(fault) => fault.fix(),
            Self::KeysListen { .. } => {
                "stop what listens there, or set keys.listen to another address"
            }
            Self::AdminListen { .. } => {
                "stop what listens there, or set admin_listen to another address"
            }
            Self::Shards(ShardStartFault::Listen(ListenFault::InUse { .. })) => {
                "stop what listens there, or set listen to another address"
            }
            Self::Shards(ShardStartFault::Listen(_)) => {
                "set listen to an address and a port that this process may use"
            }
            Self::Shards(ShardStartFault::DatagramsUnused { .. }) => {
                "remove ListenDatagram= from the socket unit, or serve QUIC"
            }
            Self::Shards(ShardStartFault::Steering(_)) => {
                "allow setsockopt(SO_ATTACH_REUSEPORT_CBPF) to this process, or set quic.enabled to \
                 false"
            }
            Self::Shards(ShardStartFault::Thread(_)) => {
                "raise the limit of threads of this user (TasksMax=, ulimit -u)"
            }
            Self::Shards(ShardStartFault::Store { .. }) => {
                "data_dir must belong to the user that runs the gateway"
            }
            Self::Certificate(fault) => fault.fix(),
        }
        .to_owned()
    }

    /// 2: the configuration is at fault; 1: the host or the storage.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::TlsFiles(_) | Self::Certificate(_) | Self::Keys(_) => 2,
            Self::Shards(ShardStartFault::Inherit(_) | ShardStartFault::DatagramsUnused { .. }) => {
                2
            }
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn recorded_stores_get_a_shard_each() {
        let mut config = Config::development(Path::new("data"));
        config.shards = 4;
        assert_eq!([1, 2, 4, 6].map(|recorded| shard_count(&config, recorded)), [4, 4, 4, 6]);
    }

    #[test]
    fn faults_are_told_apart_by_exit_code() {
        let directory = tempfile::tempdir().unwrap();
        let config = Config::development(directory.path());
        let no_shards = |_: ShardPlan, _: Embedded, _: Vec<ShardReporter>| unreachable!("no keys");
        let fault = run(config, None, no_shards, |_| {}).unwrap_err();
        assert!(matches!(fault, StartError::TlsFiles(_)), "{fault}");
        assert_eq!(fault.exit_code(), 2);

        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let fault = listen_admin(taken.local_addr().unwrap()).unwrap_err();
        assert_eq!(fault.exit_code(), 1);
        assert!(fault.fix().contains("admin_listen"), "{fault}");
    }
}
