//! The store of a home shard: opening it, feeding it, and what follows when records are durable.

use ringpost_ring::{Errno, Outcome, Ring};
use ringpost_storage::{Opening, StoreConfig, StoreEvent};

use super::Shard;
use super::disk::{Disk, StoreDirectory};
use super::mailbox::{Awaiting, Home};
use super::message::{DeviceIndex, ShardEvent};
use super::route::is_forgettable;
use crate::limits::SWEEP_DEVICES_PER_TURN;

/// A store that is being opened.
pub(super) struct Opener {
    opening: Opening,
    disk: Disk,
}

impl Opener {
    pub(super) fn new(config: StoreConfig, directory: StoreDirectory, hash_seed: u64) -> Self {
        Self { opening: Opening::new(config, hash_seed), disk: Disk::new(directory) }
    }
}

impl Home {
    /// When the store wants to be driven though nothing happened.
    pub(super) fn deadline_ms(&self) -> u64 {
        self.store.poll_timeout().unwrap_or(u64::MAX)
    }
}

impl<R: Ring> Shard<R> {
    pub(super) fn handle_disk(&mut self, index: u32, result: Result<Outcome, Errno>) {
        let disk = match (&mut self.opener, &mut self.home) {
            (Some(opener), _) => &mut opener.disk,
            (None, Some(home)) => &mut home.disk,
            (None, None) => unreachable!("disk operations belong to a store"),
        };
        if let Some(sync_ns) = disk.handle(&mut self.ring, index, result) {
            self.metrics.store_sync.observe(sync_ns);
        }
    }

    /// Gives the store its completions, takes its events, starts its operations.
    pub(super) fn drive_store(&mut self) {
        if self.opener.is_some() {
            self.drive_opening();
        }
        let now_ms = self.time.now_ms;
        let Some(home) = &mut self.home else {
            self.become_ready();
            return;
        };
        while let Some((id, result)) = home.disk.poll_finished() {
            home.store.handle_disk(now_ms, id, result);
        }
        loop {
            let home = self.home.as_mut().expect("checked above");
            let Some(event) = home.store.poll_event() else { break };
            self.handle_store_event(event);
        }
        let home = self.home.as_mut().expect("checked above");
        while let Some((id, op)) = home.store.poll_disk(now_ms) {
            home.disk.start(&mut self.ring, id, op);
        }
    }

    fn drive_opening(&mut self) {
        let opener = self.opener.as_mut().expect("checked by the caller");
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
        let Opener { opening, disk } = self.opener.take().expect("checked by the caller");
        match opening.finish() {
            Ok((store, report)) => {
                tracing::info!(shard = self.id, ?report, "store opened");
                self.home = Some(Home::new(store, disk));
                self.become_ready();
                self.handle_early();
            }
            Err(fault) => self.fail_store(fault.to_string()),
        }
    }

    fn become_ready(&mut self) {
        if !self.ready && self.opener.is_none() && !self.failed {
            self.ready = true;
            (self.events)(ShardEvent::Ready { shard: self.id });
        }
    }

    fn handle_store_event(&mut self, event: StoreEvent) {
        match event {
            StoreEvent::Durable { up_to } => loop {
                let home = self.home.as_mut().expect("its store spoke");
                if home.awaiting.front().is_none_or(|&(record, _)| record > up_to) {
                    break;
                }
                let Some((_, awaiting)) = home.awaiting.pop_front() else { break };
                self.durable(awaiting);
            },
            StoreEvent::ReadDone { id, result } => self.handle_read(id, result),
            StoreEvent::Damaged { segment, entries } => {
                tracing::error!(%segment, entries, "stored records are damaged and lost");
                self.metrics.read_faults += entries;
            }
            StoreEvent::Failed(fault) => self.fail_store(fault.to_string()),
        }
    }

    fn durable(&mut self, awaiting: Awaiting) {
        match awaiting {
            Awaiting::Stored(reply) => self.reply(reply),
            Awaiting::Fresh(device) => self.deliver(device),
            Awaiting::Registered(key) => self.welcome(key),
            Awaiting::ReceiptStored { shard, device } => self.receipt_stored(shard, device),
        }
    }

    /// Nothing that was not durable may be spoken of any more; the process ends.
    pub(super) fn fail_store(&mut self, reason: String) {
        tracing::error!(shard = self.id, %reason, "store failed");
        if !self.failed {
            self.failed = true;
            (self.events)(ShardEvent::Failed { shard: self.id, reason });
        }
    }

    /// A clock hand over the devices: frees send memory that was not used for a while.
    pub(super) fn sweep_send_memory(&mut self) {
        let now_ms = self.time.now_ms;
        let Some(home) = &mut self.home else { return };
        let count = home.devices.len();
        for _ in 0..SWEEP_DEVICES_PER_TURN.min(count) {
            home.sweep_next = (home.sweep_next + 1) % count;
            let index = DeviceIndex(u32::try_from(home.sweep_next).expect("bounded by the limits"));
            let device = home.device_mut(index);
            let idle_ms = now_ms.saturating_sub(device.last_send_ms);
            if device.attached.is_none()
                && device.memory.as_ref().is_some_and(|memory| is_forgettable(memory, idle_ms))
            {
                device.memory = None;
            }
        }
    }
}
