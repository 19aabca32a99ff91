//! Commands and getters without faults.

use ringpost_protocol::id::{MailboxId, Seq};

use super::disk::Rng;
use super::world::{World, address, small_config};
use crate::limits::{ATTEST_MS, READS_IN_FLIGHT_MAX};
use crate::{ReadStart, RecordNumber, Room, StoreConfig, StoredRecord};

#[test]
fn only_durable_entries_are_seen_and_read_without_a_disk() {
    let mut rng = Rng(1);
    let mut world = World::new(small_config());
    let first = world.message(1, &[1, 2], 300).unwrap();
    let second = world.message(2, &[1], 300).unwrap();
    assert!(second > first && RecordNumber::of(second) == RecordNumber(2));
    assert_eq!(world.store.next(MailboxId(1), Seq(0)), None);
    assert_eq!(world.store.tail(MailboxId(1)), Seq(0));
    assert_eq!(world.store.len(MailboxId(1)), 2);
    assert!(matches!(world.store.read(MailboxId(1), first), ReadStart::Gone));
    world.settle(&mut rng);
    assert_eq!(world.queued(1), [first, second]);
    assert_eq!(world.store.tail(MailboxId(1)), second);
    let ReadStart::Ready(StoredRecord::Message(message)) = world.store.read(MailboxId(2), first)
    else {
        panic!("the batch is in memory");
    };
    assert_eq!((&*message.from_user, message.envelope.len()), ("user1", 300));
    let number = world.store.ack(MailboxId(1), first);
    assert!(!world.store.is_idle() && number > world.store.durable_up_to());
    assert_eq!(world.store.acked(MailboxId(1)), first);
    world.settle(&mut rng);
    assert!(world.store.is_idle() && number == world.store.durable_up_to());
    // What is deleted already, or was never there, writes nothing.
    assert_eq!(world.store.ack(MailboxId(1), first), number);
    assert_eq!(world.store.ack(MailboxId(77), second), number);
    assert!(world.store.is_idle());
}

#[test]
fn one_sender_fills_a_quarter_and_receipts_stay_outside() {
    let mut rng = Rng(1);
    let config = StoreConfig { mailbox_records_max: 8, ..small_config() };
    let mut world = World::new(config);
    let room =
        |world: &World, from: usize| world.store.room(MailboxId(1), address(from).hash32(), 100);
    for sender in 0..4 {
        for _ in 0..2 {
            assert_eq!(room(&world, sender), Room::Free);
            world.message(sender, &[1], 100);
        }
        let wanted = if sender == 3 { Room::Full } else { Room::SenderShare };
        assert_eq!(room(&world, sender), wanted);
    }
    world.receipt(1, 1, 5);
    world.gap(1);
    assert_eq!(room(&world, 9), Room::Full);
    let first = {
        world.settle(&mut rng);
        world.queued(1)[0]
    };
    world.ack(1, first);
    assert_eq!(room(&world, 0), Room::Free);
    assert_eq!(world.store.room(MailboxId(1), 9, usize::MAX), Room::Full);
}

#[test]
fn later_receipts_and_gaps_replace_earlier_ones() {
    let mut rng = Rng(1);
    let mut world = World::new(small_config());
    world.receipt(1, 1, 5);
    let other = world.receipt(1, 2, 5);
    let newer = world.receipt(1, 1, 9);
    world.settle(&mut rng);
    assert_eq!(world.queued(1), [other, newer]);
    let gap = world.gap(1);
    assert_eq!(world.gap(1), gap, "still the newest and not durable");
    world.settle(&mut rng);
    let again = world.gap(1);
    assert!(again > gap, "the first may have been delivered");
    world.settle(&mut rng);
    assert_eq!(world.queued(1), [other, newer, again]);
    world.reopen(None);
    assert_eq!(world.queued(1), [other, newer, again]);
}

#[test]
fn an_idle_store_attests_once() {
    let mut rng = Rng(1);
    let mut world = World::new(small_config());
    world.settle(&mut rng);
    let before = world.store.stats().batches_written;
    world.message(1, &[1], 10);
    while world.step(&mut rng) {}
    assert_eq!(world.store.poll_timeout(), Some(world.now_ms + ATTEST_MS));
    assert_eq!(world.store.stats().batches_written, before + 1);
    world.now_ms += ATTEST_MS;
    while world.step(&mut rng) {}
    assert_eq!(world.store.stats().batches_written, before + 2);
    assert_eq!(world.store.poll_timeout(), None);
}

#[test]
fn appends_wait_for_one_batch_at_a_time_and_within_a_bound() {
    let config =
        StoreConfig { queued_bytes_max: 200_000, segment_bytes: 512 << 10, ..small_config() };
    let mut world = World::new(config);
    let taken = (0..100).filter(|_| world.message(1, &[1], 10_000).is_some()).count();
    assert!((18..=24).contains(&taken), "{taken}");
    let mut rng = Rng(1);
    world.settle(&mut rng);
    assert_eq!(world.queued(1).len(), taken);
    assert!(world.store.stats().cache_bytes <= 24 << 10);
}

#[test]
fn each_open_numbers_above_the_last() {
    let mut rng = Rng(1);
    let mut world = World::new(small_config());
    let mut last = Seq(0);
    for open in 1..6 {
        assert_eq!(world.store.open_count(), open);
        let seq = world.message(1, &[1], 10).unwrap();
        assert!(seq > last);
        last = seq;
        world.settle(&mut rng);
        world.reopen(None);
    }
    assert_eq!(world.queued(1).len(), 5);
}

#[test]
fn a_bounded_number_of_reads_is_under_way_and_the_rest_follows() {
    let mut rng = Rng(1);
    let mut world = World::new(small_config());
    let count = 3 * READS_IN_FLIGHT_MAX;
    let seqs: Vec<(u64, Seq)> = (1..=count as u64)
        .map(|mailbox| (mailbox, world.message(1, &[mailbox], 100).unwrap()))
        .collect();
    world.settle(&mut rng);
    world.reopen(None); // nothing is in memory
    world.settle(&mut rng);
    for (mailbox, seq) in seqs {
        let started = world.store.read(MailboxId(mailbox), seq);
        assert!(matches!(started, ReadStart::Pending(_)));
    }
    while world.step(&mut rng) {
        let waiting = usize::try_from(world.store.stats().reads_waiting).unwrap();
        // One has just ended, and its place is free until the next poll.
        let under_way = count - waiting - world.read.len();
        assert!(under_way < READS_IN_FLIGHT_MAX, "{under_way}");
    }
    assert_eq!(world.read.len(), count);
    assert!(world.read.values().all(Result::is_ok));
}

/// The cache is bounded by the memory of its batches, so short ones must not keep the long buffers
/// of a burst before them.
#[test]
fn after_a_burst_the_cache_holds_as_many_short_batches_as_before() {
    let mut rng = Rng(8);
    let mut world = World::new(StoreConfig { cache_bytes: 64 << 10, ..small_config() });
    for _ in 0..12 {
        world.message(1, &[1], 24_000).unwrap();
        while world.step(&mut rng) {}
    }
    let short: Vec<_> = (0..14)
        .map(|_| {
            let seq = world.message(1, &[2], 100).unwrap();
            while world.step(&mut rng) {}
            seq
        })
        .collect();
    // The first ones may still have had a buffer of the burst.
    for &seq in &short[4..] {
        assert!(matches!(world.store.read(MailboxId(2), seq), ReadStart::Ready(_)), "{seq:?}");
    }
}
