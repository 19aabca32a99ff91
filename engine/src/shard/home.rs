//! What a shard keeps for the slots it owns: devices, and the store while it is open.
//!
//! Devices outlive a store that fails: other shards name them by their index, and a Send that is
//! being stored elsewhere is answered here.

use std::collections::VecDeque;

use hashbrown::HashMap;
use ringpost_protocol::id::{DeviceAddress, DeviceId, MailboxId, UserId};
use ringpost_ring::Ring;
use ringpost_storage::{DeviceRecord, ReadId, RecordNumber, Store, StoreConfig};

use super::Shard;
use super::backlog::Backlog;
use super::blocks::Blocks;
use super::conn::ConnKey;
use super::deposit::Deposited;
use super::disk::{Disk, StoreDirectory};
use super::fanout::{Fanouts, PartReply};
use super::group::Groups;
use super::lists::ListCache;
use super::mailbox::Device;
use super::message::{DeviceIndex, ReceiptRequest, StoreReply};
use super::opening::{Reopening, StoreState};
use super::route::is_forgettable;
use super::stale::{ListVersion, ListWaits};
use crate::limits::{
    Bucket, DEVICE_LISTS_BYTES_MAX, SWEEP_DEVICES_PER_TURN, UNSYNCED_BYTES_MAX,
    UNSYNCED_RECORDS_MAX,
};

pub(super) struct Home {
    pub(super) devices: Vec<Device>,
    pub(super) users: HashMap<UserId, Vec<DeviceIndex>>,
    /// What each user may send, by the number that his devices have.
    pub(super) send_rates: Vec<Bucket>,
    /// Whose keys and device lists each user may read, likewise.
    pub(super) key_rates: Vec<Bucket>,
    /// Versions of the users' device lists, likewise.
    pub(super) list_versions: Vec<ListVersion>,
    /// The devices that have a connection.
    pub(super) attached: HashMap<MailboxId, DeviceIndex>,
    pub(super) state: StoreState,
    pub(super) reopening: Reopening,
    pub(super) lists: ListCache,
    /// Sends that wait for one of them.
    pub(super) list_waits: ListWaits,
    /// What has come while the store is not open.
    pub(super) backlog: Backlog,
    pub(super) blocks: Blocks,
    pub(super) groups: Groups,
    pub(super) fanouts: Fanouts,
    /// Memory of the last deposit, for the next one.
    pub(super) deposited: Deposited,
    /// Where the sweep over send memories goes on.
    sweep_next: usize,
}

/// A store that takes and gives records.
pub(super) struct OpenStore {
    pub(super) store: Store,
    pub(super) disk: Disk,
    /// What waits for records to become durable, in the order of the log.
    pub(super) awaiting: VecDeque<(RecordNumber, Awaiting)>,
    pub(super) reads: HashMap<ReadId, ReadFor>,
    /// Monotonic.
    pub(super) opened_ms: u64,
}

/// What happens when a record is durable.
pub(super) enum Awaiting {
    Stored(StoreReply),
    /// For the home of a group.
    Part {
        home: u16,
        reply: Box<PartReply>,
    },
    /// New entries of a mailbox may be delivered.
    Fresh(DeviceIndex),
    Registered(ConnKey),
    /// The request goes along, because it is carried out again when the store fails before.
    ReceiptStored {
        shard: u16,
        receipt: Box<ReceiptRequest>,
    },
}

/// Why a record is being read.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReadFor {
    Delivery(DeviceIndex),
    Ack(DeviceIndex),
}

impl Home {
    /// Begins to open the store. `hash_seed`: a random number for its hash tables.
    pub(super) fn new(
        config: StoreConfig,
        directory: StoreDirectory,
        hash_seed: u64,
        now_ms: u64,
    ) -> Self {
        let mut reopening = Reopening::new(config, directory);
        Self {
            devices: Vec::new(),
            users: HashMap::new(),
            send_rates: Vec::new(),
            key_rates: Vec::new(),
            list_versions: Vec::new(),
            attached: HashMap::new(),
            state: reopening.begin(hash_seed),
            reopening,
            lists: ListCache::new(DEVICE_LISTS_BYTES_MAX),
            list_waits: ListWaits::default(),
            backlog: Backlog::new(now_ms),
            blocks: Blocks::default(),
            groups: Groups::default(),
            fanouts: Fanouts::default(),
            deposited: Deposited::default(),
            sweep_next: 0,
        }
    }

    /// The store has been opened, for the first time or again. A device whose record the store lost
    /// with its last batch keeps its index and its mailbox: it is recorded again.
    pub(super) fn install(&mut self, mut open: OpenStore, unix_ms: u64) {
        let mut is_known = vec![false; self.devices.len()];
        for DeviceRecord { address, mailbox, .. } in open.store.devices() {
            if let Some(index) = self.find(&address.user, &address.device) {
                is_known[index.0 as usize] = true;
                self.device_mut(index).mailbox = mailbox;
            } else {
                self.insert(address, mailbox);
            }
        }
        for (device, _) in self.devices.iter().zip(is_known).filter(|(_, is_known)| !is_known) {
            open.store.put_device(&DeviceRecord {
                address: device.address.clone(),
                mailbox: device.mailbox,
                created_unix_ms: unix_ms,
            });
        }
        self.state = StoreState::Open(Box::new(open));
    }

    /// When the store wants to be driven though nothing happened.
    pub(super) fn deadline_ms(&self) -> u64 {
        let store_ms = match &self.state {
            StoreState::Open(open) => open.store.poll_timeout().unwrap_or(u64::MAX),
            StoreState::Resting { until_ms } => *until_ms,
            StoreState::Opening(_) | StoreState::Closing(_) => u64::MAX,
        };
        store_ms.min(self.backlog.deadline_ms())
    }

    /// # Panics
    /// While the store is not open. No connection is anybody's then, and requests are held back.
    pub(super) fn store(&self) -> &Store {
        &self.state.open().store
    }

    pub(super) fn device(&self, index: DeviceIndex) -> &Device {
        &self.devices[index.0 as usize]
    }

    pub(super) fn device_mut(&mut self, index: DeviceIndex) -> &mut Device {
        &mut self.devices[index.0 as usize]
    }

    pub(super) fn find(&self, user: &UserId, device: &DeviceId) -> Option<DeviceIndex> {
        let devices = self.users.get(user)?;
        devices.iter().copied().find(|&index| self.device(index).address.device == *device)
    }

    /// Adds a device known to the store.
    pub(super) fn insert(&mut self, address: DeviceAddress, mailbox: MailboxId) -> DeviceIndex {
        let index = DeviceIndex(u32::try_from(self.devices.len()).expect("bounded by the limits"));
        let devices = self.users.entry(address.user.clone()).or_default();
        let user = match devices.first() {
            Some(first) => self.devices[first.0 as usize].user,
            None => {
                self.send_rates.push(Bucket::default());
                self.key_rates.push(Bucket::default());
                self.list_versions.push(ListVersion::default());
                u32::try_from(self.send_rates.len() - 1).expect("no more users than devices")
            }
        };
        devices.push(index);
        self.devices.push(Device {
            address,
            user,
            mailbox,
            is_listed: true,
            attached: None,
            ack: None,
            memory: None,
            last_send_ms: 0,
        });
        index
    }

    /// Whether the log is open, and too far ahead of the disk to take more.
    pub(super) fn is_full(&self) -> bool {
        self.state.is_open()
            && (self.state.open().unsynced_records() >= UNSYNCED_RECORDS_MAX
                || self.store().queued_bytes() as u64 >= UNSYNCED_BYTES_MAX)
    }
}

impl OpenStore {
    pub(super) fn new(store: Store, disk: Disk, now_ms: u64) -> Self {
        let (awaiting, reads) = (VecDeque::new(), HashMap::new());
        Self { store, disk, awaiting, reads, opened_ms: now_ms }
    }

    pub(super) fn unsynced_records(&self) -> u64 {
        self.store.last_assigned().0 - self.store.durable_up_to().0
    }

    pub(super) fn await_durable(&mut self, awaiting: Awaiting) {
        self.awaiting.push_back((self.store.last_assigned(), awaiting));
    }
}

impl<R: Ring> Shard<R> {
    /// A clock hand over the devices: frees send memory that was not used for a while.
    pub(super) fn sweep_send_memory(&mut self) {
        let now_ms = self.time.now_ms;
        let Some(home) = &mut self.home else { return };
        let count = home.devices.len();
        for _ in 0..SWEEP_DEVICES_PER_TURN.min(count) {
            home.sweep_next = (home.sweep_next + 1) % count;
            let device = &mut home.devices[home.sweep_next];
            let idle_ms = now_ms.saturating_sub(device.last_send_ms);
            if device.attached.is_none()
                && device.memory.as_ref().is_some_and(|memory| is_forgettable(memory, idle_ms))
            {
                device.memory = None;
            }
        }
    }
}
