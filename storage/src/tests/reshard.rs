//! Re-sharding keeps everything, and a crash at any operation leaves one complete generation.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use ringpost_protocol::id::{MailboxId, Seq};

use super::disk::{Disk, Rng};
use super::world::{World, address, small_config};
use crate::blocking::{self, BlockingDisk};
use crate::generation::{DataDisk, remove_leftovers, reshard};
use crate::inspect;
use crate::{
    Current, DiskError, DiskErrorKind, DiskOp, DiskOutcome, FileId, ReadStart, ReshardFault,
    Resharded, Resharding, Store, StoreConfig, StoreEvent, StoredRecord,
};

/// A data directory that stops after so many operations, as at a power failure.
#[derive(Clone)]
struct Data {
    current: Vec<u8>,
    generations: BTreeMap<u64, Vec<Rc<RefCell<Disk>>>>,
    left: Rc<Cell<usize>>,
    rng: Rng,
    free_bytes: u64,
}

struct Shard {
    disk: Rc<RefCell<Disk>>,
    left: Rc<Cell<usize>>,
}

/// What every mailbox holds, and where.
#[derive(Debug, Default, PartialEq)]
struct Content {
    entries: BTreeMap<(u64, u64), StoredRecord>,
    devices: BTreeMap<u64, u64>,
    /// The highest expiry clock.
    clock_ms: u64,
}

fn take(left: &Cell<usize>) -> Result<(), DiskError> {
    match left.get() {
        0 => Err(DiskError { kind: DiskErrorKind::Io, text: "stopped".into() }),
        more => {
            left.set(more - 1);
            Ok(())
        }
    }
}

impl BlockingDisk for Shard {
    fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError> {
        take(&self.left)?;
        self.disk.borrow_mut().execute(op)
    }
}

impl DataDisk for Data {
    type Shard = Shard;

    fn generations(&mut self) -> Result<Vec<u64>, DiskError> {
        take(&self.left)?;
        Ok(self.generations.keys().copied().collect())
    }

    fn create_generation(&mut self, generation: u64, shards: u16) -> Result<(), DiskError> {
        // Stopped on the way: some of the directories are there.
        let stopped = take(&self.left);
        let made = if stopped.is_ok() { shards } else { shards / 2 };
        let disks = (0..made).map(|_| Rc::default()).collect();
        assert!(self.generations.insert(generation, disks).is_none(), "made twice");
        stopped
    }

    fn shard(&mut self, generation: u64, shard: u16) -> Result<Shard, DiskError> {
        let disk = Rc::clone(&self.generations[&generation][usize::from(shard)]);
        Ok(Shard { disk, left: Rc::clone(&self.left) })
    }

    fn write_current(&mut self, content: &[u8]) -> Result<(), DiskError> {
        let stopped = take(&self.left);
        // Stopped on the way: either of them is there.
        if stopped.is_ok() || self.rng.chance(50) {
            self.current = content.to_vec();
        }
        stopped
    }

    fn remove_generation(&mut self, generation: u64) -> Result<(), DiskError> {
        let stopped = take(&self.left);
        match (&stopped, self.generations.get(&generation)) {
            (Ok(()), _) => drop(self.generations.remove(&generation)),
            (Err(_), Some(disks)) => {
                for disk in disks {
                    disk.borrow_mut().files.retain(|_, _| self.rng.chance(50));
                }
            }
            (Err(_), None) => {}
        }
        stopped
    }

    fn free_bytes(&mut self) -> Result<u64, DiskError> {
        Ok(self.free_bytes)
    }
}

impl Data {
    /// `shards` stores with everything a store can hold, some of it dead.
    fn filled(shards: u16, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let current = Current { generation: 1, storage_shards: shards, store_id: 0x5eed };
        let mut disks = Vec::new();
        for shard in 0..shards {
            let config = StoreConfig { shard, ..config() };
            let mut world = World::new(config);
            let here = |n: &usize| address(*n).user.slot().shard(shards) == shard;
            let users: Vec<u64> = (0..USERS).filter(here).map(|n| n as u64).collect();
            // Stores were opened differently often.
            for _ in 0..shard {
                world.reopen(None);
            }
            fill(&mut world, &users, &mut rng);
            disks.push(Rc::new(RefCell::new(world.disk)));
        }
        let left = Rc::new(Cell::new(usize::MAX));
        Self {
            current: current.encode(),
            generations: [(1, disks)].into(),
            left,
            rng,
            free_bytes: u64::MAX,
        }
    }

    /// The disk as it is now, for one run of its own.
    fn copy(&self, left: usize, seed: u64) -> Self {
        let copy = |disk: &Rc<RefCell<Disk>>| Rc::new(RefCell::new(disk.borrow().clone()));
        let generations = self.generations.iter();
        let generations =
            generations.map(|(number, disks)| (*number, disks.iter().map(copy).collect()));
        Self {
            current: self.current.clone(),
            generations: generations.collect(),
            left: Rc::new(Cell::new(left)),
            rng: Rng(seed),
            free_bytes: self.free_bytes,
        }
    }

    fn current(&self) -> Current {
        Current::decode(&self.current).unwrap()
    }

    /// As a gateway does at its start.
    fn start(&mut self, shards: u16) -> Result<Resharded, ReshardFault> {
        let current = self.current();
        remove_leftovers(self, &current)?;
        reshard(self, current, shards, &config(), 9, &mut |progress| {
            assert!(progress.bytes_done <= progress.bytes_total, "{progress:?}");
        })
    }

    fn lose_power(&mut self) {
        self.left.set(usize::MAX);
        for disk in self.generations.values().flatten() {
            disk.borrow_mut().crash(&mut self.rng);
        }
    }

    /// Opens a copy of every store of the current generation and reads all of it.
    fn content(&self) -> Content {
        let current = self.current();
        let disks = &self.generations[&current.generation];
        assert_eq!(disks.len(), usize::from(current.storage_shards));
        let mut content = Content::default();
        for (disk, shard) in disks.iter().zip(0..) {
            let mut disk = disk.borrow().clone();
            let mut shard_disk = |op| disk.execute(op);
            let config = StoreConfig { shard, ..config() };
            let (mut store, report) =
                blocking::open(&mut Func(&mut shard_disk), config, 7, |_| {}).unwrap();
            assert_eq!(report.damaged, []);
            for device in store.devices() {
                let home = device.address.user.slot().shard(current.storage_shards);
                assert_eq!(home, shard, "at home");
                content.devices.insert(device.mailbox.0, device.created_unix_ms);
            }
            content.clock_ms = content.clock_ms.max(store.expiry_clock_ms(0));
            for n in 0..USERS as u64 {
                content.read(n, &mut store, &mut shard_disk);
            }
        }
        content
    }
}

struct Func<F>(F);

impl<F: FnMut(DiskOp) -> Result<DiskOutcome, DiskError>> BlockingDisk for Func<F> {
    fn execute(&mut self, op: DiskOp) -> Result<DiskOutcome, DiskError> {
        (self.0)(op)
    }
}

impl Content {
    fn read(
        &mut self,
        mailbox: u64,
        store: &mut Store,
        disk: &mut impl FnMut(DiskOp) -> Result<DiskOutcome, DiskError>,
    ) {
        let mut after = Seq(0);
        while let Some(seq) = store.next(MailboxId(mailbox), after) {
            let record = match store.read(MailboxId(mailbox), seq) {
                ReadStart::Ready(record) => record,
                ReadStart::Gone => panic!("{mailbox} {seq:?} is gone"),
                ReadStart::Pending(_) => loop {
                    let (id, op) = store.poll_disk(0).expect("a read is wanted");
                    let result = disk(op);
                    store.handle_disk(0, id, result);
                    if let Some(StoreEvent::ReadDone { result, .. }) = store.poll_event() {
                        break result.unwrap();
                    }
                },
            };
            assert!(self.entries.insert((mailbox, seq.0), record).is_none(), "in one store only");
            after = seq;
        }
    }
}

/// Sources have checkpoints, so that their old segments are read by the copying only.
fn config() -> StoreConfig {
    StoreConfig {
        shard: 0,
        checkpoint_log_bytes: 64 << 10,
        checkpoint_bytes_per_second: u32::MAX,
        ..small_config()
    }
}

fn fill(world: &mut World, users: &[u64], rng: &mut Rng) {
    world.store.begin_clock(world.now_ms, 1_000_000 + users.len() as u64, true);
    for n in users {
        world.device(usize::try_from(*n).unwrap());
    }
    for round in 0..ROUNDS {
        let from = rng.below(USERS);
        let some: Vec<u64> = users.iter().copied().filter(|_| rng.chance(40)).collect();
        if !some.is_empty() {
            world.message(from, &some, rng.below(3000));
        }
        for n in users {
            match rng.below(12) {
                0 => drop(world.receipt(*n, from, round)),
                1 => drop(world.gap(*n)),
                2 => {
                    let queued = world.queued(*n);
                    if !queued.is_empty() {
                        world.ack(*n, queued[rng.below(queued.len())]);
                    }
                }
                _ => {}
            }
        }
        world.settle(rng);
    }
}

#[test]
fn everything_is_kept_whatever_the_numbers_of_shards() {
    for (from, to) in [(1, 3), (3, 1), (2, 3), (3, 2), (2, 2), (1, 1)] {
        let mut data = Data::filled(from, u64::from(from));
        let before = data.content();
        assert!(before.entries.len() > 40 && before.devices.len() == USERS);
        assert!(before.clock_ms > 1_000_000);
        let sources = data.generations[&1].iter();
        let is_image = |file: &FileId| matches!(file, FileId::Checkpoint(_));
        assert!(sources.clone().all(|disk| disk.borrow().files.keys().any(is_image)));
        let done = data.start(to).unwrap();
        assert_eq!(done.leftover, None);
        assert_eq!(data.current(), Current { generation: 2, storage_shards: to, store_id: 0x5eed });
        assert_eq!(data.generations.keys().copied().collect::<Vec<_>>(), [2]);
        assert!(data.content() == before, "{from} to {to}");
        let report = done.report;
        assert_eq!(report.entries, before.entries.len() as u64);
        assert_eq!((report.devices, report.orphaned_entries, report.damaged_entries), (8, 0, 0));
        if from >= to {
            assert!(report.records < report.entries, "shared records stay shared");
        }
        let disks = data.generations[&2].iter();
        let files =
            disks.map(|disk| disk.borrow().files.values().map(|f| f.content.len()).sum::<usize>());
        assert_eq!(files.sum::<usize>() as u64, report.file_bytes);
    }
}

#[test]
fn numbers_given_later_are_above_all_that_were_given() {
    let mut data = Data::filled(3, 5);
    let highest = data.content().entries.keys().map(|key| key.1).max().unwrap();
    data.start(2).unwrap();
    for (disk, shard) in data.generations[&2].iter().zip(0..) {
        let config = StoreConfig { shard, ..config() };
        let mut world = World::with_disk(config, disk.borrow().clone());
        let seq = world.message(1, &[500], 10).unwrap();
        assert!(seq.0 > highest, "{seq:?} {highest:x}");
    }
}

#[test]
fn without_room_nothing_is_begun() {
    let mut data = Data::filled(2, 5);
    let before = data.content();
    data.free_bytes = 1000;
    let fault = data.start(1).unwrap_err();
    let ReshardFault::NoSpace { needed_bytes, free_bytes: 1000 } = fault else {
        panic!("{fault}");
    };
    assert_eq!(data.generations.len(), 1);
    assert!(data.content() == before && data.current().generation == 1);
    data.free_bytes = needed_bytes;
    data.start(1).unwrap();
    assert!(data.content() == before);
}

/// Every number of operations, until it is complete; each time power is lost, and then the start
/// after it finds everything and finishes.
#[test]
fn a_crash_at_any_operation_leaves_one_complete_generation() {
    for (from, to) in [(1, 2), (2, 1), (2, 3), (2, 2)] {
        let data = Data::filled(from, 40 + u64::from(to));
        let before = data.content();
        let (mut old, mut new) = (0, 0);
        for stop_after in 0.. {
            let mut run = data.copy(stop_after, stop_after as u64);
            let result = run.start(to);
            let is_complete = result.is_ok_and(|done| done.leftover.is_none());
            run.lose_power();
            match run.current().generation {
                1 => old += 1,
                _ => new += 1,
            }
            assert!(run.content() == before, "{from} to {to} stopped after {stop_after}");
            run.start(to).unwrap();
            assert!(run.content() == before, "{from} to {to} finished after {stop_after}");
            assert_eq!(run.generations.len(), 1, "nothing is left over");
            if is_complete {
                break;
            }
        }
        assert!(old > 10 && new > 1, "{old} {new}");
    }
}

/// The last moment before `CURRENT` names it: all of the new generation is synced.
#[test]
fn nothing_of_a_complete_generation_is_lost_with_the_power() {
    for seed in 0..20 {
        let mut data = Data::filled(2, 77);
        let before = data.content();
        data.rng = Rng(seed);
        data.start(3).unwrap();
        data.lose_power();
        assert!(data.content() == before, "seed {seed}");
    }
}

/// Rot that appears after the opening costs the one record that it hit.
#[test]
fn of_a_damaged_batch_the_other_records_are_copied() {
    let data = Data::filled(1, 3);
    let content = data.content();
    let disk = Rc::clone(&data.generations[&1][0]);
    let shard = |disk: &Rc<RefCell<Disk>>| Shard {
        disk: Rc::clone(disk),
        left: Rc::new(Cell::new(usize::MAX)),
    };
    let resharding = Resharding::open(vec![shard(&disk)], &config(), 7, &mut |_| {}).unwrap();
    let (store, _) = blocking::open(&mut shard(&disk), config(), 7, |_| {}).unwrap();
    let mut entries = (0..USERS as u64).flat_map(|n| inspect::entries(&store, MailboxId(n)));
    let entry = entries.find(|entry| entry.name == "message" && entry.length_bytes > 500).unwrap();
    let at = usize::try_from(entry.offset + 300).unwrap();
    let file = FileId::Segment(entry.segment);
    disk.borrow_mut().files.get_mut(&file).unwrap().content[at] ^= 0xff;
    let target = Rc::default();
    let report = resharding.write(vec![shard(&target)], &mut |_| {}).unwrap();
    assert!((1..=USERS as u64).contains(&report.damaged_entries), "{report:?}");
    assert_eq!(report.entries + report.damaged_entries, content.entries.len() as u64);
    // One record was lost, so each of its mailboxes has one gap instead.
    let (store, _) = blocking::open(&mut shard(&target), config(), 7, |_| {}).unwrap();
    assert_eq!(store.stats().entries, content.entries.len() as u64);
}

const USERS: usize = 8;
const ROUNDS: u64 = 60;
