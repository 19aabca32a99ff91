//! A disk that can lose power, fail and fill up on command: a FUSE file system of this process, for
//! the real gateway on the real kernel. kill -9 alone proves nothing about durability, because what
//! was written and not synced survives in the page cache; here it does not.
//!
//! Needs Linux, root and `/dev/fuse`. Mounted in a directory of its own and unmounted when the
//! handle goes, also in a panic; what a killed test run left mounted, the next one unmounts.

mod image;
mod mounts;
mod serve;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use fuser::{BackgroundSession, Config, Errno, MountOption};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;

pub use image::{Loss, SECTOR_BYTES};
pub use mounts::SmallDisk;

use super::PATIENCE;
use image::Image;
use serve::{BegunSync, Served};

/// The mounted disk and its switches.
pub struct FragileDisk {
    shared: Arc<Shared>,
    /// Ends the session when dropped; unmounted before that.
    session: Option<BackgroundSession>,
    mount_point: TempDir,
}

/// What can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Sync,
    SyncDirectory,
}

/// What the disk did since it was mounted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Syncs of files that were done.
    pub syncs: u64,
    pub faults: u64,
}

struct Shared {
    state: Mutex<State>,
    /// A sync is held.
    changed: Condvar,
}

struct State {
    image: Image,
    random: StdRng,
    /// Power failures so far; it is also the handle of every open file.
    epoch: u64,
    /// Everything fails, until the power is back.
    is_off: bool,
    /// The next operations that fail with EIO.
    faults: Vec<Fault>,
    syncs_lie: bool,
    sync_delay_us_max: u64,
    holds_syncs: bool,
    held: Vec<BegunSync>,
    counts: Counts,
}

struct Fault {
    operation: Operation,
    /// Operations that succeed before it.
    skip: u32,
    count: u32,
}

impl State {
    /// Whether this operation fails.
    fn fault(&mut self, operation: Operation) -> Result<(), Errno> {
        let planned = self.faults.iter_mut().find(|fault| fault.operation == operation);
        let Some(fault) = planned else { return Ok(()) };
        if fault.skip > 0 {
            fault.skip -= 1;
            return Ok(());
        }
        fault.count -= 1;
        self.counts.faults += 1;
        self.faults.retain(|fault| fault.count > 0);
        Err(Errno::EIO)
    }
}

impl FragileDisk {
    pub fn mount(seed: u64) -> Self {
        mounts::require("/dev/fuse", "load the kernel module: modprobe fuse");
        let mount_point = mounts::mount_point();
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                image: Image::new(seed),
                random: StdRng::seed_from_u64(!seed),
                epoch: 0,
                is_off: false,
                faults: Vec::new(),
                syncs_lie: false,
                sync_delay_us_max: 0,
                holds_syncs: false,
                held: Vec::new(),
                counts: Counts::default(),
            }),
            changed: Condvar::new(),
        });
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("ringpost-fragile-disk".to_owned()),
            MountOption::NoExec,
            MountOption::NoAtime,
        ];
        let served = Served(Arc::clone(&shared));
        let session = fuser::spawn_mount(served, mount_point.path(), &config)
            .unwrap_or_else(|error| panic!("mounting a FUSE file system needs root: {error}"));
        Self { shared, session: Some(session), mount_point }
    }

    /// A directory on it that does not exist yet.
    pub fn data_dir(&self) -> PathBuf {
        self.path().join("store")
    }

    pub fn path(&self) -> &Path {
        self.mount_point.path()
    }

    /// What the gateway still asks for fails; it should have been killed. Also ends
    /// [`Self::hold_syncs`].
    pub fn lose_power(&self) -> Loss {
        let mut state = self.state();
        state.epoch += 1;
        state.is_off = true;
        state.holds_syncs = false;
        state.faults.clear();
        let loss = state.image.lose_power();
        for sync in std::mem::take(&mut state.held) {
            sync.fail(&mut state);
        }
        loss
    }

    /// Open files are of no use after a power failure, but new ones are.
    pub fn restore_power(&self) {
        self.state().is_off = false;
    }

    /// After `skip` more operations of this kind, `count` fail with EIO.
    pub fn fail(&self, operation: Operation, skip: u32, count: u32) {
        assert!(count > 0, "a fault that never comes");
        self.state().faults.push(Fault { operation, skip, count });
    }

    /// Reads of the sectors that hold `text` fail with EIO until they are written again. It must
    /// stand in one place.
    pub fn spoil(&self, text: &str) {
        let places = self.state().image.spoil(text.as_bytes());
        assert_eq!(places, 1, "{text:?} on the disk");
    }

    /// From now on a sync says that it is done and does nothing.
    pub fn set_syncs_lie(&self, lie: bool) {
        self.state().syncs_lie = lie;
    }

    /// Every sync of a file takes up to this long, by chance.
    pub fn set_sync_delay_us_max(&self, delay_us_max: u64) {
        self.state().sync_delay_us_max = delay_us_max;
    }

    /// From now on no sync of a file that was written to ends until [`Self::release_syncs`], not
    /// even one under way: it would leave nothing to do for those that began after it.
    pub fn hold_syncs(&self) {
        self.state().holds_syncs = true;
    }

    /// Waits until one is held.
    pub fn wait_for_held_sync(&self) {
        let nothing_held = |state: &mut State| state.held.is_empty();
        let waited = self.shared.changed.wait_timeout_while(self.state(), PATIENCE, nothing_held);
        let waited = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.1.timed_out(), "no sync within {PATIENCE:?}");
    }

    pub fn release_syncs(&self) {
        let mut state = self.state();
        state.holds_syncs = false;
        for sync in std::mem::take(&mut state.held) {
            sync.finish(&mut state);
        }
    }

    /// Room for this much more, or none of it.
    pub fn set_free_bytes(&self, free_bytes: Option<u64>) {
        let mut state = self.state();
        let capacity = free_bytes.map(|free_bytes| state.image.used_bytes() + free_bytes);
        state.image.set_capacity_bytes(capacity.unwrap_or(u64::MAX));
    }

    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FragileDisk {
    fn drop(&mut self) {
        // Or the processes that wait for them would never end.
        self.release_syncs();
        mounts::unmount(self.mount_point.path());
        drop(self.session.take());
    }
}
