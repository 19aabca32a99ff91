//! Re-sharding: what N stores still hold, written into M new ones. M == N compacts.
//!
//! The sources are opened as at a start and then read in the order of their log; a record that the
//! index still needs goes to the stores of its users. What makes the result right:
//!
//! - Nothing acknowledged, replaced or expired is copied, so it cannot come back, and no ack
//!   record is needed.
//! - Copies keep their seq. The open count of the new stores is above that of every source, so a
//!   seq given later is above all of them. Two mailboxes of one store may hold equal seqs: mailbox
//!   and seq together name an entry.
//! - A message of several mailboxes stays one record in each store that owns some of them.
//! - The sources are not changed, and the targets are nothing until `CURRENT` names them
//!   ([`crate::generation`]): they are synced at the end, and a batch that attests its predecessor
//!   tells the truth by then.
//!
//! Memory: the indices of all sources, one read and one batch per target.

use ringpost_protocol::id::MailboxId;

use crate::blocking::{self, BlockingDisk};
use crate::disk::{DiskError, DiskOp, DiskOutcome, FileId};
use crate::fault::OpenFault;
use crate::limits::{BLOCK_BYTES, StoreConfig};
use crate::recovery::DamagedRange;
use crate::store::Store;

mod copy;
mod writer;

use copy::Copier;
use writer::Writer;

/// Stores that were opened to be rewritten.
#[derive(Debug)]
pub struct Resharding<D> {
    config: StoreConfig,
    sources: Vec<(Store, D)>,
    plan: ReshardPlan,
    bytes_done: u64,
    bytes_total: u64,
}

/// What the sources hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReshardPlan {
    /// Bytes of the sources' files.
    pub file_bytes: u64,
    /// Bytes of records that are still needed.
    pub live_bytes: u64,
    pub mailboxes: u64,
    pub entries: u64,
    pub devices: u64,
    /// Of the new stores; above that of every source.
    pub open_count: u32,
    /// Corruption that opening found, by storage shard. What these ranges held is not copied.
    pub damaged: Vec<(u16, DamagedRange)>,
}

/// How far it is, for a bar or a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReshardProgress {
    /// Bytes read; every byte of the sources is read at most twice.
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReshardReport {
    pub plan: ReshardPlan,
    /// Bytes of the new files.
    pub file_bytes: u64,
    /// Message, receipt and gap records written.
    pub records: u64,
    pub entries: u64,
    pub devices: u64,
    /// Entries of mailboxes that no device record names; kept, though nobody can ask for them.
    pub orphaned_entries: u64,
    /// Entries whose record could not be read; each mailbox gets a gap.
    pub damaged_entries: u64,
}

/// Why stores were not rewritten. The old ones still count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReshardFault {
    #[error("listing of storage shard {shard}: {error}")]
    List { shard: u16, error: DiskError },
    #[error("storage shard {shard}: {fault}")]
    Open { shard: u16, fault: OpenFault },
    #[error("{step} of {file:?} of new storage shard {shard}: {error}")]
    Write { step: &'static str, shard: u16, file: Option<FileId>, error: DiskError },
    #[error("{step}: {error}")]
    Directory { step: &'static str, error: DiskError },
    #[error("{needed_bytes} bytes are needed and {free_bytes} are free")]
    NoSpace { needed_bytes: u64, free_bytes: u64 },
    #[error("the stores were opened 2^24 times")]
    OpensUsedUp,
}

impl ReshardPlan {
    /// About the bytes that `shards` new stores take: what is live, padding and headers. It can be
    /// more when groups are split that shared their records.
    pub fn needed_bytes(&self, config: &StoreConfig, shards: u16) -> u64 {
        let segments = self.live_bytes / u64::from(config.segment_bytes) + u64::from(shards);
        self.live_bytes + self.live_bytes / 32 + segments * 4 * u64::from(BLOCK_BYTES)
    }
}

impl<D: BlockingDisk> Resharding<D> {
    /// Opens the sources, in the order of their shards. `config`: its store id is theirs, its
    /// shard does not count.
    pub fn open(
        disks: Vec<D>,
        config: &StoreConfig,
        hash_seed: u64,
        on_progress: &mut dyn FnMut(ReshardProgress),
    ) -> Result<Self, ReshardFault> {
        let mut disks = disks;
        let mut plan = ReshardPlan::default();
        for (disk, shard) in disks.iter_mut().zip(0..) {
            plan.file_bytes +=
                file_bytes(disk).map_err(|error| ReshardFault::List { shard, error })?;
        }
        let bytes_total = 2 * plan.file_bytes;
        let mut sources = Vec::with_capacity(disks.len());
        let mut bytes_done = 0;
        for (mut disk, shard) in disks.into_iter().zip(0..) {
            let config = StoreConfig { shard, ..config.clone() };
            let mut read = 0;
            let opened = blocking::open(&mut disk, config, hash_seed, |progress| {
                read = progress.bytes_total;
                let bytes_done = bytes_done + progress.bytes_read;
                on_progress(ReshardProgress { bytes_done, bytes_total });
            });
            let (store, report) = opened.map_err(|fault| ReshardFault::Open { shard, fault })?;
            bytes_done += read;
            let stats = store.stats();
            plan.live_bytes += stats.live_bytes;
            plan.mailboxes += stats.mailboxes;
            plan.entries += stats.entries;
            plan.devices += stats.devices;
            plan.open_count = plan.open_count.max(store.open_count());
            plan.damaged.extend(report.damaged.into_iter().map(|range| (shard, range)));
            sources.push((store, disk));
        }
        // The stores are opened once more before they serve.
        if plan.open_count + 1 >= 1 << 24 {
            return Err(ReshardFault::OpensUsedUp);
        }
        Ok(Self { config: config.clone(), sources, plan, bytes_done, bytes_total })
    }

    pub fn plan(&self) -> &ReshardPlan {
        &self.plan
    }

    /// Writes everything into `targets`, empty directories in the order of their shards. They are
    /// complete and synced when this returns.
    pub fn write(
        self,
        targets: Vec<D>,
        on_progress: &mut dyn FnMut(ReshardProgress),
    ) -> Result<ReshardReport, ReshardFault> {
        let Self { config, sources, plan, bytes_done, bytes_total } = self;
        let writers = targets.into_iter().zip(0..).map(|(disk, shard)| {
            let config = StoreConfig { shard, ..config.clone() };
            Writer::begin(disk, shard, &config, plan.open_count)
        });
        let mut writers = writers.collect::<Result<Vec<_>, _>>()?;
        let mut report = ReshardReport { plan, ..ReshardReport::default() };
        let mut read_before = bytes_done;
        for (store, mut disk) in sources {
            let mut copier = Copier::new(&store, &mut disk, &mut writers, &mut report);
            copier.run(&mut |bytes| {
                let bytes_done = (read_before + bytes).min(bytes_total);
                on_progress(ReshardProgress { bytes_done, bytes_total });
            })?;
            read_before += store.stats().file_bytes;
        }
        for writer in writers {
            report.file_bytes += writer.finish()?;
        }
        on_progress(ReshardProgress { bytes_done: bytes_total, bytes_total });
        Ok(report)
    }
}

/// Where a mailbox without a device goes: somewhere, but always to the same store.
fn orphan_home(mailbox: MailboxId, shards: usize) -> usize {
    let shards = shards as u64;
    usize::try_from(mailbox.0 % shards).expect("below the number of shards")
}

fn file_bytes(disk: &mut impl BlockingDisk) -> Result<u64, DiskError> {
    match disk.execute(DiskOp::List)? {
        DiskOutcome::Listed(files) => Ok(files.iter().map(|(_, bytes)| bytes).sum()),
        _ => unreachable!("the answer to a listing is a list"),
    }
}
