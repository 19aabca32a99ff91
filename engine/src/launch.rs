//! Starts the shards: one pinned thread each, with its own ring, listener, store and mesh end.
//!
//! A shard that panics ends the process, with exit code 1, and is not started again by itself:
//!
//! - The other shards have asked it what it will never answer. Their credits, the Sends that wait for it
//!   and the streams that it carried for them would have to be settled as failed, and the answers to its
//!   own requests would come to a shard that has not asked: every message of the mesh would need to say
//!   of which life it is.
//! - What it gave to the kernel last may be written after its store was opened again.
//! - It panicked because something was not as it must be. What it has told others since is unknown;
//!   what is on disk is not, because every start checks it.
//!
//! Nothing accepted is lost, as nothing is said before it is on disk. With sockets that a parent keeps
//! ([`crate::doors`]) nobody is refused until the next process serves, a moment later, and each shard
//! has its index again. A panic inside of one QUIC connection ends that connection alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::{self, JoinHandle};

use ringpost_ring::{Group, Uring, UringConfig, host};
use ringpost_storage::{DiskError, DiskErrorKind, FileId, StoreConfig};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::audit::AuditLog;
use crate::config::Config;
use crate::control::{DirectoryReporter, DrainPlan, ShardPort, ShardReporter};
use crate::directory::{self, Embedded, ShardQueue};
use crate::doors::Doors;
use crate::limits::AddressTable;
use crate::mesh::{Mesh, Queues};
use crate::metrics::ShardMetrics;
use crate::shard::message::{ControlRequest, KeysLowNews, ShardEvent};
use crate::shard::{Shard, ShardConfig, ShardParts, ShardSettings, StoreDirectory, Turn};
use crate::start::{ShardPlan, ShardStartFault, Shards};

/// Starts `plan.shards` threads and returns at once: each opens its store on its own time and
/// reports itself ready.
pub fn start_shards(
    plan: ShardPlan,
    directory: Embedded,
    reporters: Vec<ShardReporter>,
) -> Result<Shards, ShardStartFault> {
    let group = Group::new(plan.shards).map_err(ShardStartFault::Thread)?;
    let queues = Queues::new(group.clone());
    let doors = Arc::new(Doors::open(&plan)?);
    let addresses = AddressTable::new(plan.config.limits.addresses_max, rand::random());
    let quiet = Arc::new(AtomicU16::new(0));
    let cores = host::usable_cores().map_err(ShardStartFault::Thread)?;
    let first = reporters.first().expect("there is a shard");
    let beside = DirectoryReporter::beside(first);
    let directory = directory::start(Box::new(directory), queues.clone(), beside)?;
    let mut threads: Vec<_> = reporters
        .into_iter()
        .map(|reporter| {
            let seat = Seat {
                shard: reporter.shard(),
                core: cores[usize::from(reporter.shard()) % cores.len()],
                group: group.clone(),
                queues: queues.clone(),
                doors: Arc::clone(&doors),
                addresses: Arc::clone(&addresses),
                directory: directory.shard_port(reporter.shard()),
                voice: Voice {
                    audit: plan.audit.clone(),
                    reporter: Some(reporter),
                    queues: queues.clone(),
                    quiet: Arc::clone(&quiet),
                    doors: Arc::clone(&doors),
                },
            };
            seat.start(&plan)
        })
        .collect::<Result<_, _>>()?;
    let directory_port = directory.control_port();
    threads.push(directory.into_thread());
    let ports = (0..plan.shards)
        .map(|shard| Box::new(Port { shard, queues: queues.clone() }) as Box<dyn ShardPort>)
        .collect();
    Ok(Shards { listen: doors.address(), ports, threads, directory: directory_port, addresses })
}

/// What one shard's thread is made from.
struct Seat {
    shard: u16,
    core: usize,
    group: Group,
    queues: Queues,
    doors: Arc<Doors>,
    addresses: Arc<AddressTable>,
    directory: ShardQueue,
    voice: Voice,
}

impl Seat {
    fn start(self, plan: &ShardPlan) -> Result<JoinHandle<()>, ShardStartFault> {
        let shard_config = shard_config(self.shard, plan);
        let store = plan
            .store_dirs
            .get(usize::from(self.shard))
            .map(|directory| {
                let path = check_store(directory).map_err(|error| ShardStartFault::Store {
                    directory: directory.clone(),
                    error,
                })?;
                Ok::<_, ShardStartFault>((
                    store_config(self.shard, plan.store_id, &plan.config),
                    path,
                ))
            })
            .transpose()?;
        let settings = plan.settings.clone();
        let name = format!("shard-{}", self.shard);
        let run = move || {
            let Self { shard, core, group, queues, doors, addresses, directory, mut voice } = self;
            if let Err(error) = host::pin_to_core(core) {
                tracing::warn!(shard, core, %error, "cannot pin the shard to its core");
            }
            let ring = match Uring::new(&group, shard, ring_config(&doors)) {
                Ok(ring) => ring,
                Err(fault) => {
                    let reason = format!("{fault}: {}", fault.fix());
                    return voice.tell(ShardEvent::Failed { shard, reason });
                }
            };
            let mut shard = Shard::new(
                shard_config,
                ShardParts {
                    ring,
                    listener: Some(doors.listener(shard)),
                    datagrams: doors.datagram_socket(shard),
                    mesh: Mesh::new(shard, queues),
                    settings,
                    addresses,
                    directory: Some(Box::new(directory)),
                    store: store.map(|(config, path)| (config, store_directory(path))),
                    events: Box::new(move |event| voice.tell(event)),
                },
            );
            while shard.turn() == Turn::Continue {}
        };
        thread::Builder::new().name(name).spawn(run).map_err(ShardStartFault::Thread)
    }
}

/// Tells the control thread of a shard's milestones, and all shards when the last one is quiet.
struct Voice {
    audit: AuditLog,
    reporter: Option<ShardReporter>,
    queues: Queues,
    /// Shards that have no connection left.
    quiet: Arc<AtomicU16>,
    doors: Arc<Doors>,
}

impl Voice {
    fn tell(&mut self, event: ShardEvent) {
        match event {
            ShardEvent::Ready { .. } => {
                if let Some(reporter) = &self.reporter {
                    reporter.ready();
                }
            }
            // The shard has logged the reason.
            ShardEvent::Reopening { .. } => {
                if let Some(reporter) = &self.reporter {
                    reporter.set_reopening(true);
                }
            }
            ShardEvent::Reopened { .. } => {
                if let Some(reporter) = &self.reporter {
                    reporter.set_reopening(false);
                }
            }
            ShardEvent::Audit(event) => self.audit.record(*event),
            ShardEvent::UnknownKey { .. } => {
                if let Some(reporter) = &self.reporter {
                    reporter.unknown_key();
                }
            }
            ShardEvent::Flood { shard, is_on } => {
                self.doors.set_flood(shard, is_on, |program| {
                    for shard in 0..self.queues.shards() {
                        self.queues.push_control(shard, ControlRequest::Steered(program.clone()));
                    }
                });
            }
            ShardEvent::Quiet { .. } => {
                let before = self.quiet.fetch_add(1, Ordering::AcqRel);
                // Until then a quiet shard still answers the others.
                if before + 1 == self.queues.shards() {
                    for shard in 0..self.queues.shards() {
                        self.queues.push_control(shard, ControlRequest::Stop);
                    }
                }
            }
            ShardEvent::Finished { .. } => {
                if let Some(reporter) = self.reporter.take() {
                    reporter.drained();
                }
            }
            ShardEvent::Failed { reason, .. } => {
                if let Some(reporter) = self.reporter.take() {
                    reporter.failed(reason);
                }
            }
        }
    }
}

/// The control thread's way to one shard.
struct Port {
    shard: u16,
    queues: Queues,
}

impl ShardPort for Port {
    fn request_metrics(&self, reply: oneshot::Sender<ShardMetrics>) {
        let answer = Box::new(move |metrics| {
            let _ = reply.send(metrics); // nobody waits any more
        });
        // A full queue drops the request, and the sender with it: control sees that.
        self.queues.push_control(self.shard, ControlRequest::Metrics(answer));
    }

    fn apply(&self, settings: ShardSettings, applied: oneshot::Sender<()>) {
        let applied = Box::new(move || {
            let _ = applied.send(()); // nobody waits any more
        });
        let request = ControlRequest::Apply { settings: Box::new(settings), applied };
        self.queues.push_control(self.shard, request);
    }

    fn drain(&self, plan: DrainPlan) {
        let DrainPlan { drain_ms_max, reconnect_jitter_ms } = plan;
        let request =
            ControlRequest::Drain { within_ms: drain_ms_max, jitter_ms: reconnect_jitter_ms };
        self.queues.push_control(self.shard, request);
    }

    fn tell_keys_low(&self, news: KeysLowNews, told: OwnedSemaphorePermit) {
        let told = Box::new(move || drop(told));
        self.queues
            .push_control(self.shard, ControlRequest::KeysLow { news: Box::new(news), told });
    }
}

fn ring_config(doors: &Doors) -> UringConfig {
    let datagram_buffer_count = if doors.serves_quic() { DATAGRAM_BUFFERS } else { 0 };
    UringConfig { datagram_buffer_count, ..UringConfig::default() }
}

fn shard_config(shard: u16, plan: &ShardPlan) -> ShardConfig {
    ShardConfig {
        shard,
        storage_shards: plan.storage_shards,
        confirm_clock: plan.config.confirm_clock,
        random_seed: rand::random(),
        proxy_trusted: plan.config.proxy_trusted.clone(),
    }
}

/// What the store of `shard` is opened with.
pub(crate) fn store_config(shard: u16, store_id: u64, config: &Config) -> StoreConfig {
    let reclaim = config.storage.reclaim_bytes_per_second;
    StoreConfig {
        segment_bytes: config.storage.segment_bytes,
        cache_bytes: config.storage.cache_bytes,
        reclaim_bytes_per_second: u32::try_from(reclaim).unwrap_or(u32::MAX),
        mailbox_records_max: config.limits.live.mailbox_records_max,
        mailbox_bytes_max: config.limits.live.mailbox_bytes_max,
        ..StoreConfig::new(shard, store_id)
    }
}

/// The absolute path of a store's directory, which can be read.
fn check_store(directory: &Path) -> io::Result<String> {
    let path = directory.canonicalize()?;
    list_store(&path)?;
    path.into_os_string().into_string().map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, "the data directory's path must be UTF-8")
    })
}

/// Listing blocks the shard, but only while its store is not open.
fn store_directory(path: String) -> StoreDirectory {
    let directory = PathBuf::from(&path);
    let list = move || {
        list_store(&directory)
            .map_err(|error| DiskError { kind: DiskErrorKind::Io, text: error.to_string() })
    };
    StoreDirectory { path, list: Box::new(list) }
}

/// The store's files in a shard's directory; what else lies there is left alone.
fn list_store(directory: &Path) -> io::Result<Vec<(FileId, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if let Some(file) = entry.file_name().to_str().and_then(FileId::parse) {
            files.push((file, entry.metadata()?.len()));
        }
    }
    Ok(files)
}

/// Receive buffers for datagrams of one shard. Each takes a train of datagrams of one client; they are
/// given back in the turn in which they came.
const DATAGRAM_BUFFERS: u16 = 256;
