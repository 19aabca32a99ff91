//! The life of a shard's store: opened at start, fed, and opened again in place when it fails.
//!
//! ```text
//! Opening --> Open --failed--> Closing --all operations are back--> Resting --+
//!    ^  |                         ^                                           |
//!    |  +---------failed----------+                                           |
//!    +------------------------------------------------------------------------+
//! ```
//!
//! After a failed write or sync the page cache may hold what the disk does not, so nothing that was
//! not yet durable can be promised or denied. Sends whose outcome is unknown are not answered: their
//! clients are sent away, and replay them (see `route`). Connections of the devices that live here
//! are sent away too. Receipts are stored again. What arrives meanwhile waits in the backlog.
//!
//! What the store had made durable is still on the disk, but is not delivered until it is open again:
//! only recovery can tell which records those are, an acknowledgement could not be kept, and so the
//! same messages would come twice. It takes as long as a recovery, most often milliseconds; devices
//! of other shards do not notice.

use std::collections::VecDeque;

use ringpost_protocol::message::GoAwayReason;
use ringpost_ring::{Errno, Outcome, Ring};
use ringpost_storage::{ClockStart, OpenFault, Opening, RecordNumber, Store, StoreConfig};

use super::Shard;
use super::conn::Phase;
use super::disk::{Disk, StoreDirectory};
use super::home::{Awaiting, Home, OpenStore};
use super::message::{DeviceIndex, ShardEvent};
use crate::limits::{REOPEN_ATTEMPTS_MAX, REOPEN_CALM_MS, REOPEN_PAUSE_MS, REOPEN_PAUSE_MS_MAX};
use crate::metrics::StoreCounts;

pub(super) enum StoreState {
    Opening(Box<Opener>),
    Open(Box<OpenStore>),
    /// Its operations come back first, so that none of them meets a file of the next attempt.
    Closing(Box<Disk>),
    /// The next attempt begins at that time, monotonic milliseconds.
    Resting {
        until_ms: u64,
    },
}

/// A store that is being opened.
pub(super) struct Opener {
    opening: Opening,
    disk: Disk,
}

/// What it takes to open the store again.
pub(super) struct Reopening {
    config: StoreConfig,
    /// While no [`Disk`] has it.
    directory: Option<StoreDirectory>,
    /// Failures in a row: of attempts, and of stores that were not open for long.
    failures: u32,
    /// Since when the store is not open any more; monotonic.
    since_ms: Option<u64>,
    /// The expiry clock when the store failed, and the monotonic time then: it goes on, without the
    /// doubts of a start.
    clock: Option<(u64, u64)>,
    /// What the stores before this one have counted.
    counted: StoreCounts,
}

impl Reopening {
    pub(super) fn new(config: StoreConfig, directory: StoreDirectory) -> Self {
        Self {
            config,
            directory: Some(directory),
            failures: 0,
            since_ms: None,
            clock: None,
            counted: StoreCounts::default(),
        }
    }

    pub(super) fn counted(&self) -> StoreCounts {
        self.counted
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.since_ms.is_some()
    }

    pub(super) fn begin(&mut self, hash_seed: u64) -> StoreState {
        let directory = self.directory.take().expect("no disk has it before the first attempt");
        let opening = Opening::new(self.config.clone(), hash_seed);
        StoreState::Opening(Box::new(Opener { opening, disk: Disk::new(directory) }))
    }

    /// How long to wait before the next attempt: twice as long after each failure.
    fn pause_ms(&self) -> u64 {
        let doublings = self.failures.saturating_sub(1).min(u64::BITS - 1);
        REOPEN_PAUSE_MS.saturating_mul(1 << doublings).min(REOPEN_PAUSE_MS_MAX)
    }
}

impl StoreState {
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    pub(super) fn try_open_mut(&mut self) -> Option<&mut OpenStore> {
        match self {
            Self::Open(open) => Some(open),
            _ => None,
        }
    }

    /// # Panics
    /// While the store is not open. No connection is anybody's then, and requests are held back.
    pub(super) fn open(&self) -> &OpenStore {
        match self {
            Self::Open(open) => Some(open),
            _ => None,
        }
        .expect(NOT_OPEN)
    }

    /// # Panics
    /// As [`StoreState::open`].
    pub(super) fn open_mut(&mut self) -> &mut OpenStore {
        self.try_open_mut().expect(NOT_OPEN)
    }

    fn disk_mut(&mut self) -> Option<&mut Disk> {
        match self {
            Self::Opening(opener) => Some(&mut opener.disk),
            Self::Open(open) => Some(&mut open.disk),
            Self::Closing(disk) => Some(disk),
            Self::Resting { .. } => None,
        }
    }

    /// Whether the shard may end: everything is durable and the checkpoint complete, or there is no
    /// store, and no operation is in flight.
    pub(super) fn is_settled(&self) -> bool {
        match self {
            Self::Open(open) => {
                let checkpointing = open.store.is_checkpointing();
                open.store.is_idle() && !checkpointing && open.disk.in_flight() == 0
            }
            Self::Opening(_) | Self::Closing(_) => false,
            Self::Resting { .. } => true,
        }
    }

    /// Nothing more is wanted of the store but to end. True: it need not be waited for.
    fn is_dispensable(&self, checkpoint_is_late: bool) -> bool {
        match self {
            Self::Opening(_) => true,
            // On a full disk the rest may never be written. None of it was answered, and what is
            // lost of it (acknowledgements, a new device) comes again.
            Self::Open(open) => {
                let full = open.store.disk_full_since_ms().is_some();
                checkpoint_is_late
                    && (full || open.store.is_checkpointing() && open.store.is_idle())
            }
            Self::Closing(_) | Self::Resting { .. } => false,
        }
    }

    /// Ends an attempt or an open store. Gives what waited for its records.
    fn close(&mut self) -> VecDeque<(RecordNumber, Awaiting)> {
        let (mut disk, awaiting) = match std::mem::replace(self, Self::Resting { until_ms: 0 }) {
            Self::Opening(opener) => (opener.disk, VecDeque::new()),
            Self::Open(open) => (open.disk, open.awaiting),
            Self::Closing(disk) => (*disk, VecDeque::new()),
            Self::Resting { until_ms } => {
                *self = Self::Resting { until_ms };
                return VecDeque::new();
            }
        };
        disk.stop();
        *self = Self::Closing(Box::new(disk));
        awaiting
    }
}

impl<R: Ring> Shard<R> {
    pub(super) fn handle_disk(&mut self, index: u32, result: Result<Outcome, Errno>) {
        let home = self.home.as_mut().expect("disk operations belong to a store");
        let disk = home.state.disk_mut().expect("a disk outlives its operations");
        if let Some(sync_ns) = disk.handle(&mut self.ring, index, result) {
            self.metrics.store_sync.observe(sync_ns);
        }
    }

    /// Takes the store as far as it goes now.
    pub(super) fn drive_store(&mut self) {
        let Some(home) = &mut self.home else { return self.become_ready() };
        if let Some(drain) = self.drain.filter(|drain| drain.stopping)
            && home.state.is_dispensable(self.time.now_ms >= drain.checkpoint_until_ms)
        {
            home.state.close();
        }
        if matches!(home.state, StoreState::Resting { .. }) {
            self.begin_attempt();
        }
        self.drive_opening();
        self.drive_open_store();
        self.drive_closing();
        self.expire_backlog();
    }

    fn begin_attempt(&mut self) {
        let home = self.home.as_mut().expect("checked by the caller");
        let stopping = self.drain.is_some_and(|drain| drain.stopping);
        let StoreState::Resting { until_ms } = home.state else { return };
        if self.failed || stopping || self.time.now_ms < until_ms {
            return;
        }
        home.state = home.reopening.begin(self.random.next_u64());
    }

    fn drive_opening(&mut self) {
        let home = self.home.as_mut().expect("checked by the caller");
        let StoreState::Opening(opener) = &mut home.state else { return };
        loop {
            while let Some((id, result)) = opener.disk.poll_finished() {
                opener.opening.handle_disk(id, result);
            }
            let mut started = false;
            while let Some((id, op)) = opener.opening.poll_disk() {
                opener.disk.start(&mut self.ring, id, op);
                started = true;
            }
            // A listing finishes at once; everything else comes back through the ring.
            if !started {
                break;
            }
        }
        if !opener.opening.is_done() {
            return;
        }
        let taken = std::mem::replace(&mut home.state, StoreState::Resting { until_ms: 0 });
        let StoreState::Opening(opener) = taken else { unreachable!("matched above") };
        let Opener { opening, disk } = *opener;
        match opening.finish() {
            Ok((store, report)) => {
                tracing::info!(shard = self.id, ?report, "store opened");
                if !report.damaged.is_empty() || report.lost_entries > 0 {
                    tracing::error!(
                        shard = self.id,
                        damaged = ?report.damaged,
                        lost_entries = report.lost_entries,
                        "parts of the store are damaged or missing; `ringpost store verify` names them"
                    );
                }
                self.store_opened(store, disk);
            }
            Err(fault) => {
                home.state = StoreState::Closing(Box::new(disk));
                // At start somebody is there to read the reason; and what is wrong with the files
                // themselves does not pass.
                let passes =
                    matches!(fault, OpenFault::Disk { .. } | OpenFault::EndUnreadable { .. });
                if home.reopening.is_under_way() && passes {
                    self.attempt_failed(&fault.to_string());
                } else {
                    self.fail_store(fault.to_string());
                }
            }
        }
    }

    fn store_opened(&mut self, store: Store, disk: Disk) {
        let now_ms = self.time.now_ms;
        let home = self.home.as_mut().expect("checked by the caller");
        let mut open = OpenStore::new(store, disk, now_ms);
        if let Some((clock_ms, at_ms)) = home.reopening.clock.take() {
            open.store.begin_clock(now_ms, clock_ms + (now_ms - at_ms), true);
        } else {
            let confirmed = self.config.confirm_clock;
            let started = open.store.begin_clock(now_ms, self.time.unix_ms, confirmed);
            warn_of_lag(self.id, started);
        }
        let limits = &self.limits; // those at the start may be outdated by now
        open.store.set_mailbox_bounds(limits.mailbox_records_max, limits.mailbox_bytes_max);
        home.install(open, self.time.unix_ms);
        if let Some(since_ms) = home.reopening.since_ms.take() {
            let elapsed_ms = now_ms.saturating_sub(since_ms);
            tracing::info!(shard = self.id, elapsed_ms, "store serves again");
            self.metrics.store_reopens += 1;
            self.metrics.store_reopen.observe(elapsed_ms * 1_000_000);
            (self.events)(ShardEvent::Reopened { shard: self.id });
        }
        self.become_ready();
        self.restart_acks();
        self.handle_backlog();
    }

    fn become_ready(&mut self) {
        if !self.ready && !self.failed {
            self.ready = true;
            (self.events)(ShardEvent::Ready { shard: self.id });
        }
    }

    /// Nothing that was not durable may be spoken of any more.
    pub(super) fn store_failed(&mut self, reason: &str) {
        let now_ms = self.time.now_ms;
        let home = self.home.as_mut().expect("its store spoke");
        if now_ms.saturating_sub(home.state.open().opened_ms) >= REOPEN_CALM_MS {
            home.reopening.failures = 0;
        }
        let store = &home.state.open().store;
        home.reopening.clock = Some((store.expiry_clock_ms(now_ms), now_ms));
        home.reopening.counted += StoreCounts::of(&store.stats());
        home.reopening.since_ms = Some(now_ms);
        home.backlog.begin(now_ms);
        let awaiting = home.state.close();
        (self.events)(ShardEvent::Reopening { shard: self.id, reason: reason.to_owned() });
        for (_, awaiting) in awaiting {
            self.never_durable(awaiting);
        }
        self.give_up_list_waits();
        for key in self.conns.keys() {
            let phase = self.conns.get(key).map(|conn| &conn.phase);
            if let Some(Phase::Registering { .. } | Phase::Open { .. }) = phase {
                self.send_away(key, GoAwayReason::Storage);
            }
        }
        self.attempt_failed(reason);
    }

    /// Tries again after a pause, or gives up.
    fn attempt_failed(&mut self, reason: &str) {
        let home = self.home.as_mut().expect("its store failed");
        home.reopening.failures += 1;
        let failures = home.reopening.failures;
        if failures > REOPEN_ATTEMPTS_MAX {
            return self.fail_store(format!("{reason} ({failures} failures in a row)"));
        }
        let pause_ms = home.reopening.pause_ms();
        tracing::error!(
            shard = self.id,
            reason,
            failures,
            pause_ms,
            "store failed; opening it again"
        );
    }

    /// When nothing is in flight any more, closes the files of a store that failed.
    fn drive_closing(&mut self) {
        let home = self.home.as_mut().expect("checked by the caller");
        let StoreState::Closing(disk) = &mut home.state else { return };
        if disk.in_flight() > 0 {
            return;
        }
        disk.close(&mut self.ring);
        let until_ms = self.time.now_ms + home.reopening.pause_ms();
        let closed = std::mem::replace(&mut home.state, StoreState::Resting { until_ms });
        if let StoreState::Closing(disk) = closed {
            home.reopening.directory = Some(disk.into_directory());
        }
    }

    /// The process ends.
    fn fail_store(&mut self, reason: String) {
        tracing::error!(shard = self.id, %reason, "store failed");
        if !self.failed {
            self.failed = true;
            (self.events)(ShardEvent::Failed { shard: self.id, reason });
        }
    }

    /// Acknowledgements in progress go on with what the store has kept.
    fn restart_acks(&mut self) {
        let home = self.home.as_mut().expect("its store was opened");
        let Home { devices, state, .. } = home;
        let store = &state.open().store;
        let mut restarted = Vec::new();
        for (index, device) in devices.iter_mut().enumerate() {
            if let Some(walk) = &mut device.ack {
                walk.restart(store.acked(device.mailbox));
                restarted.push(u32::try_from(index).expect("bounded by the limits"));
            }
        }
        for index in restarted {
            self.drive_ack(DeviceIndex(index));
        }
    }
}

fn warn_of_lag(shard: u16, started: ClockStart) {
    if started.lag_ms > 0 {
        tracing::warn!(
            shard,
            lag_s = started.lag_ms / 1_000,
            "the expiry clock is behind the clock of this host, and messages are kept so much longer; \
             if the host's date is right, start once with --confirm-clock"
        );
    }
}

const NOT_OPEN: &str = "requests are held back while the store is not open";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_all_of_them_are_short() {
        let directory = StoreDirectory { path: "/".into(), list: Box::new(|| Ok(Vec::new())) };
        let mut reopening = Reopening::new(StoreConfig::new(0, 1), directory);
        let pauses: Vec<u64> = (1..=REOPEN_ATTEMPTS_MAX)
            .map(|failures| {
                reopening.failures = failures;
                reopening.pause_ms()
            })
            .collect();
        assert_eq!(pauses[..3], [REOPEN_PAUSE_MS, 2 * REOPEN_PAUSE_MS, 4 * REOPEN_PAUSE_MS]);
        assert!(pauses.iter().sum::<u64>() <= REOPEN_CALM_MS);
        reopening.failures = u32::MAX;
        assert_eq!(reopening.pause_ms(), REOPEN_PAUSE_MS_MAX);
    }
}
