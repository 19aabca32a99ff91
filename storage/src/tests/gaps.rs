//! Entries that are replaced by gaps: expired ones, and what the disk lost.

use ringpost_protocol::id::{MailboxId, Seq};

use super::disk::Rng;
use super::world::{World, small_config};
use crate::{DiskOp, Fault, GapReason, ReadStart, SegmentId};

const DAMAGED: (GapReason, Option<String>) = (GapReason::Damaged, None);

/// Two messages of 5,000 bytes to mailboxes 1 and 2, read by nobody; the cache is empty.
fn two_messages(rng: &mut Rng) -> (World, [Seq; 2]) {
    let mut world = World::new(small_config());
    world.settle(rng);
    let mut append = |to: &[u64]| {
        let seq = world.message(1, to, 5000).unwrap();
        while world.step(rng) {}
        seq
    };
    let seqs = [append(&[1, 2]), append(&[1])];
    world.reopen(None);
    (world, seqs)
}

/// Appends and acknowledges until the oldest segments are gone.
fn churn(world: &mut World, rng: &mut Rng) {
    while world.store.stats().reclaimed_segments < 2 {
        let seq = world.message(1, &[9], 9000).unwrap();
        while world.step(rng) {}
        world.ack(9, seq);
        world.now_ms += 1;
    }
    world.settle(rng);
}

#[test]
fn a_damaged_record_becomes_a_gap_of_each_mailbox_that_reads_it() {
    let mut rng = Rng(1);
    let (mut world, [first, second]) = two_messages(&mut rng);
    world.disk.segment(1).flip(4096 * 2 + 800);
    let ReadStart::Pending(id) = world.store.read(MailboxId(1), first) else { panic!("cached") };
    while world.step(&mut rng) {}
    assert!(matches!(world.read.remove(&id), Some(Err(Fault::Corrupt { .. }))));
    world.settle(&mut rng);
    assert_eq!(world.queued(1)[0], second);
    assert_eq!(world.gaps(1, &mut rng), [DAMAGED]);
    assert_eq!((world.queued(2), world.store.stats().damaged_records), (vec![first], 1));
    // Intact again, it still does not come back, and the other mailbox has lost nothing.
    world.disk.segment(1).flip(4096 * 2 + 800);
    world.reopen_finds_the_same(&mut rng);
    assert_eq!((world.queued(1).len(), world.queued(1)[0]), (2, second));
    assert!(world.read(2, first, &mut rng).is_some());
}

#[test]
fn an_unreadable_record_is_given_up_at_the_third_attempt() {
    let mut rng = Rng(1);
    for (failures, gaps) in [(2, vec![]), (3, vec![DAMAGED])] {
        let (mut world, [first, second]) = two_messages(&mut rng);
        world.disk.failing_reads = failures;
        assert_eq!(world.read(1, first, &mut rng).is_some(), gaps.is_empty());
        world.settle(&mut rng);
        assert_eq!(world.gaps(1, &mut rng), gaps);
        assert!(world.read(1, second, &mut rng).is_some());
        world.reopen_finds_the_same(&mut rng);
    }
}

#[test]
fn a_record_that_moved_while_it_was_read_is_read_again() {
    let mut rng = Rng(1);
    let (mut world, [first, _]) = two_messages(&mut rng);
    let ReadStart::Pending(read) = world.store.read(MailboxId(1), first) else { panic!("cached") };
    let (id, op) = world.store.poll_disk(1).unwrap();
    assert!(matches!(op, DiskOp::Read { .. }));
    churn_without_removal(&mut world, &mut rng);
    let text = "unreadable".to_owned();
    let error = crate::DiskError { kind: crate::DiskErrorKind::Io, text };
    world.store.handle_disk(world.now_ms, id, Err(error));
    while world.step(&mut rng) {}
    assert!(matches!(world.read.remove(&read), Some(Ok(_))));
    assert_eq!(world.store.stats().damaged_records, 0);
}

/// Until the first segment was copied; the read under way keeps its file.
fn churn_without_removal(world: &mut World, rng: &mut Rng) {
    while world.store.stats().reclaim_copied_bytes < 10_000 {
        let seq = world.message(1, &[9], 9000).unwrap();
        while world.step(rng) {}
        world.ack(9, seq);
        world.now_ms += 1;
    }
    world.settle(rng);
    assert_eq!(world.store.stats().reclaimed_segments, 0);
}

#[test]
fn what_reclaim_cannot_copy_leaves_gaps() {
    for is_readable in [true, false] {
        let mut rng = Rng(1);
        let (mut world, [first, second]) = two_messages(&mut rng);
        world.device(4);
        world.settle(&mut rng);
        if is_readable {
            world.disk.segment(1).flip(4096 * 2 + 800);
        } else {
            world.disk.bad_blocks.insert((SegmentId(1).into(), 3));
        }
        churn(&mut world, &mut rng);
        for (mailbox, left) in [(1, vec![second]), (2, vec![])] {
            assert_eq!(world.gaps(mailbox, &mut rng), [DAMAGED]);
            assert_eq!(world.queued(mailbox)[..left.len()], left);
        }
        assert_eq!(world.damaged_entries, 2);
        assert!(
            world.read(1, second, &mut rng).is_some() && world.read(1, first, &mut rng).is_none()
        );
        world.reopen_finds_the_same(&mut rng);
        assert_eq!(world.store.devices().count(), 1);
    }
}

#[test]
fn an_expired_message_leaves_one_gap_however_many_there_are() {
    let mut rng = Rng(1);
    let mut world = World::new(small_config());
    let expired: Vec<_> = (0..50).map(|_| world.message(1, &[1, 2], 100).unwrap()).collect();
    let kept = world.message(1, &[1], 100).unwrap();
    world.settle(&mut rng);
    for seq in &expired {
        world.expire(1, *seq, None).unwrap();
        assert_eq!(world.store.expire(MailboxId(1), *seq, None), None, "gone already");
    }
    assert_eq!(world.queued(1), [kept], "the gap is not durable yet");
    world.settle(&mut rng);
    assert_eq!(world.queued(1).len(), 2);
    assert_eq!(world.gaps(1, &mut rng), [(GapReason::Expired, None)]);
    assert_eq!((world.queued(2), world.store.stats().expired_records), (expired, 50));
    assert_eq!(world.store.expire(MailboxId(1), world.queued(1)[1], None), None, "no message");
    world.reopen_finds_the_same(&mut rng);
}

#[test]
fn a_gap_names_a_group_only_when_it_is_of_no_other() {
    let mut rng = Rng(1);
    let mut world = World::new(small_config());
    let seqs: Vec<_> = (0..4).map(|_| world.message(1, &[1], 100).unwrap()).collect();
    let groups = [Some("a"), Some("a"), Some("b"), Some("b")];
    let named = [Some("a"), Some("a"), None, None];
    for ((seq, group), named) in seqs.into_iter().zip(groups).zip(named) {
        world.expire(1, seq, group);
        world.settle(&mut rng);
        let named = named.map(str::to_owned);
        assert_eq!(world.gaps(1, &mut rng), [(GapReason::Expired, named)]);
    }
    // One that is not durable yet serves only for its own group, or for all.
    let full =
        |world: &mut World, group| world.store.append_gap(MailboxId(2), GapReason::Full, group);
    let first = full(&mut world, Some("a"));
    assert_eq!(full(&mut world, Some("a")), first);
    let both = full(&mut world, Some("b"));
    assert!(both > first && full(&mut world, Some("a")) == both);
    world.settle(&mut rng);
    assert_eq!(world.gaps(2, &mut rng), [(GapReason::Full, None)]);
    world.reopen_finds_the_same(&mut rng);
}

#[test]
fn a_copy_under_way_does_not_bring_an_expired_message_back() {
    let mut rng = Rng(2);
    for stop in (0..400).step_by(5) {
        let (mut world, [first, second]) = two_messages(&mut rng);
        let mut operations = 0;
        while world.store.stats().reclaimed_segments < 2 || operations <= stop {
            if operations == stop {
                assert!(world.expire(1, first, None).is_some());
            }
            if !world.step(&mut rng) {
                let seq = world.message(1, &[9], 9000).unwrap();
                world.ack(9, seq);
                world.now_ms += 1;
            }
            operations += 1;
        }
        world.settle(&mut rng);
        assert_eq!((world.queued(1).len(), world.queued(1)[0]), (2, second), "{stop}");
        assert_eq!(world.queued(2), [first]);
        world.reopen_finds_the_same(&mut rng);
    }
}
