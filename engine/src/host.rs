//! What the host must offer, checked before anything is opened: io_uring, open files, memory.

use ringpost_ring::{RingFault, probe};
use tracing::{info, warn};

use crate::config::Config;
use crate::limits::LimitSet;

/// What this host allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Files that the process may have open, raised as far as it may raise it.
    pub open_files_max: u64,
    /// Connections of one shard that the open files leave room for.
    pub connections_room: usize,
    /// What its io_uring lacks and the gateway can do without.
    pub absent_features: Vec<&'static str>,
}

/// Why this host cannot run a gateway.
#[derive(Debug, thiserror::Error)]
pub enum HostFault {
    #[error(transparent)]
    Ring(#[from] RingFault),
    #[error(
        "only {open_files_max} files may be open; {shards} shards need more than {reserved} before \
         the first client connects"
    )]
    OpenFiles { open_files_max: u64, shards: u16, reserved: u64 },
    #[error("cannot read the limit of open files: {0}")]
    OpenFilesUnknown(std::io::Error),
}

impl HostFault {
    /// What to do about it.
    pub fn fix(&self) -> String {
        match self {
            Self::Ring(fault) => fault.fix(),
            Self::OpenFiles { .. } | Self::OpenFilesUnknown(_) => RAISE_OPEN_FILES.to_owned(),
        }
    }
}

/// Raises the limit of open files of this process as far as it may, and refuses one that is too low
/// for `shards` shards. Before anything is opened: what fails for want of a file does not say so.
pub fn raise_open_files(shards: u16) -> Result<u64, HostFault> {
    let open_files_max =
        ringpost_ring::host::raise_open_files().map_err(HostFault::OpenFilesUnknown)?;
    connections_room(open_files_max, shards)?;
    Ok(open_files_max)
}

/// Checks the host for `shards` shards and logs what it found.
pub fn check(config: &Config, shards: u16) -> Result<Host, HostFault> {
    let host = Host::look(shards)?;
    if let Some(shortage) = host.shortage(&config.limits.live) {
        warn!("{shortage}; {RAISE_OPEN_FILES}");
    }
    let connections_per_shard_max = config.limits.live.connections_max.min(host.connections_room);
    let connections = connections_per_shard_max as u64 * u64::from(shards);
    info!(
        shards,
        open_files_max = host.open_files_max,
        connections_per_shard_max,
        ring_features_absent = ?host.absent_features,
        "memory for {connections} connections: about {} MiB; this host has {} MiB",
        mib(memory_bytes(config, shards, connections)),
        memory_total_bytes().map_or_else(|| "unknown".to_owned(), |bytes| mib(bytes).to_string()),
    );
    Ok(host)
}

impl Host {
    /// Finds out what this host allows `shards` shards, and raises the limit of open files of this
    /// process as far as it may.
    pub fn look(shards: u16) -> Result<Self, HostFault> {
        let features = probe::probe()?;
        probe::require(&features)?;
        let absent = features.iter().filter(|feature| !feature.present);
        let open_files_max = raise_open_files(shards)?;
        Ok(Self {
            open_files_max,
            connections_room: connections_room(open_files_max, shards)?,
            absent_features: absent.map(|feature| feature.name).collect(),
        })
    }

    /// What the limits ask for and do not get. The default asks for more than most hosts give; only a
    /// chosen number is missed.
    pub fn shortage(&self, limits: &LimitSet) -> Option<String> {
        let Self { open_files_max, connections_room, .. } = self;
        let wanted = limits.connections_max;
        let chosen = wanted != LimitSet::default().connections_max;
        (chosen && *connections_room < wanted).then(|| {
            format!(
                "open files: {open_files_max} leave room for {connections_room} connections per \
                 shard, not for {wanted}"
            )
        })
    }
}

/// Each connection is one open file; the limit counts for the process.
fn connections_room(open_files_max: u64, shards: u16) -> Result<usize, HostFault> {
    let reserved = FILES_PER_PROCESS + FILES_PER_SHARD * u64::from(shards);
    let room = open_files_max.saturating_sub(reserved) / u64::from(shards);
    if room == 0 {
        return Err(HostFault::OpenFiles { open_files_max, shards, reserved });
    }
    Ok(usize::try_from(room).unwrap_or(usize::MAX))
}

fn memory_bytes(config: &Config, shards: u16, connections: u64) -> u64 {
    let per_connection = CONNECTION_USER_BYTES + CONNECTION_KERNEL_BYTES;
    let caches = config.storage.cache_bytes as u64 * u64::from(shards);
    connections.saturating_mul(per_connection).saturating_add(caches)
}

fn memory_total_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// What to do about too few open files.
pub const RAISE_OPEN_FILES: &str =
    "raise the hard limit: LimitNOFILE= in the service, or `ulimit -Hn` before the start";

/// A connection in user space: the TLS state of rustls, most of it, and the session.
const CONNECTION_USER_BYTES: u64 = 9 * 1024;
/// A connection in the kernel: socket, inode, file, dentry and an armed receive, in slab pages.
const CONNECTION_KERNEL_BYTES: u64 = 4_800;
/// Standard streams, lock, logs, admin connections.
const FILES_PER_PROCESS: u64 = 128;
/// Ring, listener, segments.
const FILES_PER_SHARD: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_bound_the_connections() {
        assert_eq!(connections_room(20_000, 2).unwrap(), 9_872);
        let fault = connections_room(256, 2).unwrap_err();
        assert!(fault.to_string().contains("256"), "{fault}");
        assert!(fault.fix().contains("LimitNOFILE"));
    }

    #[test]
    fn this_host_is_described() {
        assert!(memory_total_bytes() > Some(1 << 20));
    }
}
