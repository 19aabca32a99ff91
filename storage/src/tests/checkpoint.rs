//! Checkpoints all the time: what is found with one is what the whole log says.

use std::collections::BTreeMap;

use super::crash::work;
use super::disk::{Disk, Rng};
use super::world::{MAILBOXES, World, open, small_config};
use crate::entry::Entry;
use crate::{DeviceRecord, FileId, Store, StoreConfig};

/// Everything that an index says, but for `acked`, which is forgotten with an empty mailbox.
#[derive(Debug, PartialEq)]
struct Image {
    queues: BTreeMap<u64, (Vec<Entry>, u32, u32)>,
    devices: BTreeMap<String, (DeviceRecord, u32, u32)>,
    /// Number and needed bytes of each segment.
    segments: Vec<(u32, u64)>,
    clock: (u64, crate::SegmentId),
    entries: u64,
    open_count: u32,
    durable_batch: u64,
}

fn image(store: &Store) -> Image {
    let queue = |queue: &crate::queue::Mailbox| {
        (queue.entries.iter().copied().collect(), queue.messages, queue.message_bytes)
    };
    let places = |device: DeviceRecord| {
        let slot = store.devices.get(&device.address).unwrap();
        let key = format!("{:?}", device.address);
        (key, (device, slot.place.segment.0, slot.place.offset))
    };
    Image {
        queues: store.mailboxes.iter().map(|(id, found)| (id, queue(found))).collect(),
        devices: store.devices().map(places).collect(),
        segments: store.log.segments().map(|one| (one.id.0, one.live_bytes)).collect(),
        clock: store.clock.logged(),
        entries: store.stats().entries,
        open_count: store.open_count(),
        durable_batch: store.durable_batch,
    }
}

fn busy_config() -> StoreConfig {
    StoreConfig {
        checkpoint_log_bytes: 48 << 10,
        checkpoint_chunk_bytes: 512,
        checkpoint_bytes_per_second: 256 << 10,
        ..small_config()
    }
}

fn without_checkpoints(disk: &Disk) -> Disk {
    let mut plain = disk.clone();
    plain.files.retain(|file, _| matches!(file, FileId::Segment(_)));
    plain
}

/// Opens the world's disk and a copy without checkpoints; both must find the same.
fn reopen(world: &mut World, crash: Option<&mut Rng>) -> Result<(), String> {
    if let Some(rng) = crash {
        world.disk.crash(rng);
    }
    let mut plain = without_checkpoints(&world.disk);
    plain.fail_in = None;
    let (store, report) = open(&world.config, &mut plain).unwrap();
    world.reopen(None);
    let left = world.disk.checkpoints();
    if left.len() > 1 && world.disk.checkpoint_fault_every.is_none() {
        return Err(format!("left over: {left:?}"));
    }
    let (with, without) = (image(&world.store), image(&store));
    if with != without {
        return Err(format!(
            "with {:?}:\n{with:?}\nwithout: {report:?}\n{without:?}",
            world.report
        ));
    }
    if !world.report.damaged.is_empty() {
        return Err(format!("a crash was taken for corruption: {:?}", world.report));
    }
    Ok(())
}

#[derive(Default)]
struct Seen {
    opened: usize,
    with_checkpoint: usize,
    written: u64,
    failed: u64,
}

/// Several lives of one store; `lives` gives the operations of each before its crash.
fn run(seed: u64, lives: &[usize], fault_every: Option<usize>) -> Result<Seen, String> {
    let mut rng = Rng(seed);
    let mut faults = Rng(seed ^ 0xfa17);
    let mut world = World::new(busy_config());
    let mut seen = Seen::default();
    for operations in lives {
        world.disk.checkpoint_fault_every = fault_every;
        let stop = world.disk.executed + operations;
        while world.disk.executed < stop {
            work(&mut world, &mut rng);
            world.now_ms += u64::from(rng.chance(60));
        }
        assert!(!world.failed, "a checkpoint never closes the store");
        let (durable, stats) = (world.store.durable_up_to(), world.store.stats());
        let power = faults.chance(80);
        world.disk.checkpoint_fault_every = fault_every.filter(|_| faults.chance(50));
        reopen(&mut world, power.then_some(&mut faults))?;
        world.disk.checkpoint_fault_every = None;
        world.check(durable, &mut rng)?;
        seen.opened += 1;
        seen.with_checkpoint += usize::from(world.report.checkpoint.is_some());
        seen.written += stats.checkpoints_written;
        seen.failed += stats.checkpoints_failed;
    }
    Ok(seen)
}

#[test]
fn a_crash_at_every_operation_finds_what_the_log_says() {
    for operations in 50..250 {
        run(1, &[operations], None).unwrap_or_else(|text| panic!("after {operations}: {text}"));
    }
}

#[test]
fn many_lives_of_many_seeds_with_and_without_checkpoints() {
    let mut all = Seen::default();
    for seed in 0..SEEDS {
        let mut rng = Rng(seed);
        let lives: Vec<_> = (0..8).map(|_| rng.below(900)).collect();
        let seen = run(seed, &lives, None).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
        all.opened += seen.opened;
        all.with_checkpoint += seen.with_checkpoint;
        all.written += seen.written;
    }
    assert!(all.with_checkpoint * 4 > all.opened * 3, "{} {}", all.with_checkpoint, all.opened);
    assert!(all.written > all.opened as u64, "{} {}", all.written, all.opened);
}

#[test]
fn a_disk_that_refuses_checkpoints_harms_nothing() {
    let mut failed = 0;
    for seed in 0..SEEDS / 2 {
        let lives = [500, 300, 700, 200];
        let every = 3 + usize::try_from(seed % 9).unwrap();
        let seen = run(seed, &lives, Some(every));
        failed += seen.unwrap_or_else(|text| panic!("seed {seed}: {text}")).failed;
    }
    assert!(failed > SEEDS, "{failed}");
}

/// A store with a finished checkpoint and some log behind it.
fn with_checkpoint(rng: &mut Rng) -> World {
    let mut world = World::new(busy_config());
    world.config.checkpoint_log_bytes = u64::MAX;
    world.reopen(None);
    for _ in 0..60 {
        work(&mut world, rng);
    }
    world.store.request_checkpoint();
    assert!(world.store.is_checkpointing());
    world.settle(rng);
    assert!(!world.store.is_checkpointing());
    for _ in 0..20 {
        work(&mut world, rng);
    }
    world.settle(rng);
    assert_eq!(world.disk.checkpoints().len(), 1);
    world
}

#[test]
fn only_the_log_behind_a_checkpoint_is_read() {
    let mut rng = Rng(4);
    let mut world = with_checkpoint(&mut rng);
    let before = image(&world.store);
    let mut plain = without_checkpoints(&world.disk);
    let (_, whole) = open(&world.config, &mut plain).unwrap();
    world.reopen(None);
    assert!(world.report.checkpoint.is_some());
    assert!(world.report.batches * 2 < whole.batches, "{:?} {whole:?}", world.report);
    assert!(world.report.bytes_read < whole.bytes_read, "{:?} {whole:?}", world.report);
    let after = image(&world.store);
    assert_eq!((&after.queues, &after.devices), (&before.queues, &before.devices));
}

#[test]
fn a_flipped_bit_anywhere_or_a_missing_end_falls_back_to_the_log() {
    let mut rng = Rng(6);
    let whole = with_checkpoint(&mut rng);
    let [file] = whole.disk.checkpoints()[..] else { panic!("one checkpoint") };
    let length = whole.disk.files[&file].content.len();
    let mut plain = without_checkpoints(&whole.disk);
    let (store, _) = open(&whole.config, &mut plain).unwrap();
    let wanted = image(&store);
    let fallback = |disk: &mut Disk| {
        let (store, report) = open(&whole.config, disk).unwrap();
        assert_eq!((report.checkpoint, report.damaged), (None, vec![]));
        assert_eq!(image(&store), wanted);
        assert_eq!(disk.checkpoints(), []);
    };
    for byte in (0..length).step_by(7).chain(length - 128..length) {
        let mut disk = whole.disk.clone();
        disk.files.get_mut(&file).unwrap().flip(byte);
        fallback(&mut disk);
    }
    for missing in [1, 40, 128, 700, length] {
        let mut disk = whole.disk.clone();
        disk.files.get_mut(&file).unwrap().content.truncate(length - missing);
        fallback(&mut disk);
    }
    // A hole where a chunk was not written.
    let mut disk = whole.disk.clone();
    disk.files.get_mut(&file).unwrap().content[512..1024].fill(0);
    fallback(&mut disk);
}

#[test]
fn a_checkpoint_of_another_store_or_number_is_none() {
    let mut rng = Rng(8);
    let world = with_checkpoint(&mut rng);
    let [file] = world.disk.checkpoints()[..] else { panic!("one checkpoint") };
    let mut disk = world.disk.clone();
    let moved = disk.files.remove(&file).unwrap();
    disk.files.insert(FileId::Checkpoint(crate::CheckpointId(77)), moved);
    let (store, report) = open(&world.config, &mut disk).unwrap();
    assert_eq!(report.checkpoint, None);
    assert_eq!(store.stats().entries, world.store.stats().entries);
    let mut other = World::new(StoreConfig { store_id: 1, ..busy_config() });
    other.disk.files.insert(file, world.disk.files[&file].clone());
    other.reopen(None);
    assert_eq!((other.report.checkpoint, other.report.entries), (None, 0));
}

#[test]
fn a_checkpoint_attests_the_last_batch() {
    let mut rng = Rng(9);
    let mut world = with_checkpoint(&mut rng);
    world.message(1, &[1], 3000);
    // No timers: nothing but the checkpoint attests that batch.
    world.store.request_checkpoint();
    while world.step(&mut rng) {}
    assert!(!world.store.is_checkpointing());
    let newest = world.store.log.segments().last().unwrap();
    let (segment, end) = (newest.id, newest.used_bytes as usize);
    world.disk.segment(segment.0).flip(end - 4096);
    world.reopen(None);
    assert_eq!(world.report.damaged.len(), 1, "{:?}", world.report);
    assert_eq!(world.report.damaged[0].segment, segment);
}

#[test]
fn a_checkpoint_is_paced_and_one_chunk_at_a_time() {
    let mut rng = Rng(10);
    let mut world = with_checkpoint(&mut rng);
    world.config = StoreConfig { checkpoint_bytes_per_second: 51_200, ..busy_config() };
    world.config.checkpoint_log_bytes = 1;
    world.reopen(None);
    for mailbox in 0..MAILBOXES {
        for _ in 0..100 {
            world.message(1, &[mailbox], 10);
        }
    }
    let began_ms = world.now_ms;
    while world.store.stats().checkpoints_written == 0 {
        while world.step(&mut rng) {}
        world.now_ms = world.store.poll_timeout().unwrap();
    }
    let stats = world.store.stats();
    assert!(stats.checkpoint_bytes_written > 800 * 20);
    let least_ms = stats.checkpoint_bytes_written * 1000 / 51_200 * 9 / 10;
    assert!(world.now_ms - began_ms >= least_ms, "{} ms", world.now_ms - began_ms);
}

const SEEDS: u64 = 20;
