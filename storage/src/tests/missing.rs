//! Files that are missing, or that say something only until they are removed: what was durable and
//! is not there any more is told, and its numbers are never given again.

use ringpost_protocol::id::{MailboxId, Seq};

use super::disk::{Disk, Rng};
use super::world::{World, open, small_config};
use crate::batch::{BATCH_HEAD_BYTES, BatchHead};
use crate::segment::Header;
use crate::{FileId, OpenFault, RecoveryReport, SegmentId, StoreConfig};

fn config() -> StoreConfig {
    // Only on request; and nothing is reclaimed.
    StoreConfig { checkpoint_log_bytes: u64::MAX, ..small_config() }
}

/// Messages of 20,000 bytes, one per batch, six per segment.
fn append(world: &mut World, rng: &mut Rng, count: usize) -> Vec<Seq> {
    let mut one = || {
        let seq = world.message(1, &[1], 20_000).unwrap();
        while world.step(rng) {}
        seq
    };
    (0..count).map(|_| one()).collect()
}

/// Segments 1 to 5 and the checkpoint, which begins in the middle of segment 3.
fn with_checkpoint(rng: &mut Rng) -> (World, Vec<Seq>) {
    let mut world = World::new(config());
    world.settle(rng);
    let mut seqs = append(&mut world, rng, 15);
    world.store.request_checkpoint();
    world.settle(rng);
    seqs.extend(append(&mut world, rng, 15));
    world.settle(rng);
    assert_eq!(world.disk.checkpoints().len(), 1);
    (world, seqs)
}

fn remove(disk: &mut Disk, segments: impl IntoIterator<Item = u32>) {
    for segment in segments {
        disk.files.remove(&FileId::Segment(SegmentId(segment)));
    }
}

fn used_segments(world: &World) -> Vec<u32> {
    let segments = world.store.log.segments();
    segments.filter(|one| one.used_bytes > 4096).map(|one| one.id.0).collect()
}

/// Opens twice: the same is found, and told.
fn opened(world: &mut World) -> RecoveryReport {
    world.reopen(None);
    let first = (world.snapshot(), world.report.clone());
    world.reopen(None);
    let settled =
        |report: RecoveryReport| RecoveryReport { unused_segments: 0, bytes_read: 0, ..report };
    assert_eq!(world.snapshot(), first.0);
    assert_eq!(settled(world.report.clone()), settled(first.1));
    world.report.clone()
}

/// What comes after a loss is kept.
fn goes_on(world: &mut World, rng: &mut Rng) {
    let before = world.queued(1);
    let more = append(world, rng, 10);
    world.settle(rng);
    world.reopen(None);
    let queued = world.queued(1);
    assert!(before.iter().chain(&more).all(|seq| queued.contains(seq)), "{:?}", world.report);
    for seq in more {
        assert!(world.read(1, seq, rng).is_some(), "{seq:?}");
    }
}

#[test]
fn the_segment_where_replay_begins_is_missed() {
    let mut rng = Rng(1);
    let (mut world, seqs) = with_checkpoint(&mut rng);
    remove(&mut world.disk, [3]);
    let report = opened(&mut world);
    let [damaged] = report.damaged[..] else { panic!("{report:?}") };
    // The last before the position, the empty one at it, and three messages.
    assert_eq!((damaged.segment, damaged.last_batch - damaged.first_batch), (SegmentId(3), 4));
    // Three were in the image, so their mailbox is told; three were not.
    assert_eq!(report.lost_entries, 3, "{report:?}");
    world.settle(&mut rng);
    let mut left = [&seqs[..12], &seqs[18..]].concat();
    left.push(world.store.tail(MailboxId(1)));
    assert_eq!(world.queued(1), left);
    assert_eq!(world.gaps(1, &mut rng).len(), 1);
    goes_on(&mut world, &mut rng);
}

#[test]
fn all_segments_behind_a_checkpoint_are_missed_and_their_numbers_stay_used() {
    for first in 1..=5 {
        let mut rng = Rng(u64::from(first));
        let (mut world, seqs) = with_checkpoint(&mut rng);
        world.store.request_checkpoint();
        world.settle(&mut rng);
        let newest = *used_segments(&world).last().unwrap();
        let durable_batch = world.store.durable_batch;
        remove(&mut world.disk, first..newest + 9);
        let report = opened(&mut world);
        let [damaged] = report.damaged[..] else { panic!("from {first}: {report:?}") };
        assert_eq!(damaged.last_batch, durable_batch);
        assert!(world.store.durable_batch >= durable_batch, "batch numbers are given twice");
        let kept = seqs.len().min(6 * (first as usize - 1));
        assert_eq!(report.lost_entries, (seqs.len() - kept) as u64);
        world.settle(&mut rng);
        assert_eq!(world.queued(1)[..kept], seqs[..kept]);
        assert!(*used_segments(&world).last().unwrap() > newest, "segment numbers are given twice");
        goes_on(&mut world, &mut rng);
    }
}

/// A header alone attests, but the last batch is never removed before a later one is durable.
#[test]
fn a_log_without_any_batch_is_missed() {
    let mut rng = Rng(1);
    let (mut world, seqs) = with_checkpoint(&mut rng);
    world.store.request_checkpoint();
    world.settle(&mut rng);
    let durable_batch = world.store.durable_batch;
    let next = SegmentId(used_segments(&world).last().unwrap() + 1);
    let header = Header { open_count: 2, first_batch: durable_batch + 1 };
    let mut file = world.disk.segment(1).clone();
    file.content.fill(0);
    file.content[..4096].copy_from_slice(&header.encode(world.config.origin(), next));
    remove(&mut world.disk, 1..9);
    world.disk.files.insert(next.into(), file);
    let report = opened(&mut world);
    let [damaged] = report.damaged[..] else { panic!("{report:?}") };
    assert_eq!((damaged.first_batch, damaged.last_batch), (durable_batch, durable_batch));
    // They may have been reclaimed.
    assert_eq!(report.outdated_entries, seqs.len() as u64);
    goes_on(&mut world, &mut rng);
}

#[test]
fn a_segment_that_a_checkpoint_spares_leaves_gaps() {
    let mut rng = Rng(1);
    let (mut world, seqs) = with_checkpoint(&mut rng);
    remove(&mut world.disk, [2]);
    let report = opened(&mut world);
    assert_eq!((report.lost_entries, report.outdated_entries), (6, 0), "{report:?}");
    world.settle(&mut rng);
    assert_eq!(world.store.stats().damaged_records, 6);
    assert_eq!(world.queued(1)[..24], [&seqs[..6], &seqs[12..]].concat());
    assert_eq!(world.gaps(1, &mut rng).len(), 1);
    goes_on(&mut world, &mut rng);
    assert_eq!(world.report.lost_entries, 0, "told twice: {:?}", world.report);
}

#[test]
fn a_segment_that_was_cut_before_the_place_where_replay_begins_is_damaged() {
    let mut rng = Rng(1);
    let (mut world, _) = with_checkpoint(&mut rng);
    world.disk.segment(3).content.truncate(8192);
    remove(&mut world.disk, 4..9);
    let report = opened(&mut world);
    assert_eq!(report.damaged.len(), 1, "{report:?}");
}

#[test]
fn of_an_oldest_segment_without_a_number_the_batch_before_is_missed() {
    let mut rng = Rng(1);
    let (mut world, seqs) = with_checkpoint(&mut rng);
    world.disk.files.retain(|file, _| matches!(file, FileId::Segment(_)));
    let mut cut = |blocks: std::ops::Range<usize>| {
        world.disk.segment(1).content[4096 * blocks.start..4096 * blocks.end].fill(7);
        opened(&mut world)
    };
    // The header, the empty batch that every open begins with, and the first message.
    let report = cut(0..3);
    let [damaged] = report.damaged[..] else { panic!("{report:?}") };
    assert_eq!((damaged.first_batch, damaged.last_batch), (2, 2));
    // All of it.
    let report = cut(0..32);
    let [damaged] = report.damaged[..] else { panic!("{report:?}") };
    assert_eq!(damaged.first_batch, damaged.last_batch);
    assert_eq!(world.queued(1), seqs[6..]);
}

/// The head of the first batch stands for a damaged header, even if that batch does not count.
#[test]
fn a_segment_that_says_something_is_not_removed_as_unused() {
    let mut rng = Rng(1);
    let mut world = World::new(config());
    world.settle(&mut rng);
    append(&mut world, &mut rng, 4);
    world.settle(&mut rng);
    let origin = world.config.origin();
    let spare = SegmentId(2);
    let later = SegmentId(3);
    let file = &mut world.disk.segment(spare.0).content;
    file[..4096].fill(7);
    let next = world.store.durable_batch + 1;
    // What the segment behind it begins with: torn in an earlier open.
    let head =
        BatchHead { length: 56, records: 0, number: next, durable_up_to: next - 1, open_count: 7 };
    head.seal(origin, spare, 4096, &mut file[4096..8192]);
    let header = Header { open_count: 2, first_batch: next }.encode(origin, later);
    let mut file = world.disk.segment(spare.0).clone();
    file.content.fill(0);
    file.content[..4096].copy_from_slice(&header);
    world.disk.files.insert(later.into(), file);
    let report = opened(&mut world);
    assert_eq!((report.open_count, report.unused_segments), (8, 0), "{report:?}");
    assert!(world.disk.files.contains_key(&spare.into()));
}

/// With a blank file where replay begins the missing batches are told: without it, that segment
/// would pass for reclaimed.
#[test]
fn a_blank_segment_stays_while_anything_is_missing() {
    let mut rng = Rng(1);
    let mut world = World::new(config());
    world.settle(&mut rng);
    // A checkpoint right after the opening: replay begins with the segment in use.
    world.reopen(None);
    world.store.request_checkpoint();
    world.settle(&mut rng);
    let begun = *used_segments(&world).last().unwrap();
    append(&mut world, &mut rng, 9);
    world.settle(&mut rng);
    remove(&mut world.disk, 1..begun);
    world.disk.segment(begun).content.fill(0);
    let files = world.disk.files.len();
    let report = opened(&mut world);
    assert_eq!(report.damaged.len(), 1, "{report:?}");
    assert_eq!(world.disk.files.len(), files);
}

#[test]
fn unused_segments_are_removed_and_their_numbers_used() {
    let mut rng = Rng(1);
    let mut world = World::new(config());
    world.settle(&mut rng);
    append(&mut world, &mut rng, 4);
    world.settle(&mut rng);
    world.reopen(None);
    assert_eq!((world.report.unused_segments, world.disk.files.len()), (1, 1));
    let first = world.store.log.newest();
    world.reopen(None);
    assert_eq!((first, world.store.log.newest()), (Some(SegmentId(2)), Some(SegmentId(2))));
}

/// Seqs are `open_count << 40 | number`: what is stored must be below all that will be given.
#[test]
fn a_seq_of_a_later_open_than_its_batch_is_refused() {
    // Offsets of the seq in a message, an ack, a receipt, and of both in a gap.
    for (kind, field) in [(1, 12), (2, 20), (3, 20), (4, 20), (4, 28)] {
        let mut rng = Rng(1);
        let mut world = World::new(config());
        world.settle(&mut rng);
        let seq = world.message(1, &[1], 10).unwrap();
        world.settle(&mut rng);
        match kind {
            1 => drop(world.message(1, &[1], 10)),
            2 => drop(world.store.ack(MailboxId(1), seq)),
            3 => drop(world.receipt(1, 2, 3)),
            _ => drop(world.gap(1)),
        }
        world.settle(&mut rng);
        let origin = world.config.origin();
        let file = &mut world.disk.segment(1).content;
        let batch = &mut file[4096 * 4..4096 * 5];
        let head = BatchHead::parse(batch, origin, SegmentId(1), 4096 * 4).unwrap();
        let at = BATCH_HEAD_BYTES;
        assert_eq!(batch[at], kind);
        for (open, is_refused) in [(head.open_count, false), (head.open_count + 1, true)] {
            let seq = u64::from(open) << 40 | 0xff;
            let batch = &mut world.disk.segment(1).content[4096 * 4..4096 * 5];
            batch[at + field..at + field + 8].copy_from_slice(&seq.to_le_bytes());
            head.seal(origin, SegmentId(1), 4096 * 4, batch);
            let refused = open_fault(&mut world);
            let expected =
                OpenFault::LaterOpen { segment: SegmentId(1), offset: 4096 * 4 + 56, found: open };
            assert_eq!(refused, is_refused.then_some(expected), "kind {kind} at {field}");
        }
    }
}

fn open_fault(world: &mut World) -> Option<OpenFault> {
    open(&world.config, &mut world.disk).err()
}
