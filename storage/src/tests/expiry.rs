//! The expiry clock, and the sweeps that it sets off.

use ringpost_protocol::id::{MailboxId, Seq};

use super::disk::Rng;
use super::world::{World, small_config};
use crate::limits::CLOCK_LOG_MS;
use crate::{ClockStart, GapReason, StoreConfig, StoredRecord};

const HOUR_MS: u64 = 3_600_000;
const YEAR_MS: u64 = 365 * 24 * HOUR_MS;
const START_MS: u64 = 50 * YEAR_MS;
const EXPIRED: (GapReason, Option<String>) = (GapReason::Expired, None);

fn sweeping(interval_ms: u64) -> World {
    let mut world =
        World::new(StoreConfig { expiry_scan_interval_ms: interval_ms, ..small_config() });
    world.store.begin_clock(world.now_ms, START_MS, false);
    world
}

#[test]
fn the_clock_advances_an_hour_per_start_unless_confirmed_and_never_goes_back() {
    let mut rng = Rng(1);
    let mut world = World::new(small_config());
    let mut begin = |unix_ms, confirmed| {
        let start = world.store.begin_clock(world.now_ms, unix_ms, confirmed);
        assert_eq!(world.store.expiry_clock_ms(world.now_ms), start.clock_ms);
        assert_eq!(world.store.expiry_clock_ms(world.now_ms + 77), start.clock_ms + 77);
        world.settle(&mut rng);
        world.reopen(None);
        start
    };
    let start = |clock_ms, lag_ms| ClockStart { clock_ms, lag_ms };
    assert_eq!(begin(START_MS, false), start(START_MS, 0));
    assert_eq!(begin(START_MS + 1000, false), start(START_MS + 1000, 0));
    let (known, far) = (START_MS + 1000, START_MS + 10 * YEAR_MS);
    assert_eq!(begin(far, false), start(known + HOUR_MS, 10 * YEAR_MS - HOUR_MS - 1000));
    assert_eq!(begin(5, false), start(known + HOUR_MS, 0));
    assert_eq!(begin(5, true), start(known + HOUR_MS, 0));
    assert_eq!(begin(far, true), start(far, 0));
    assert_eq!(begin(far + HOUR_MS + 5, false), start(far + HOUR_MS, 5));
}

#[test]
fn the_log_knows_the_clock_to_the_minute_while_something_is_queued() {
    let mut rng = Rng(1);
    let mut world = sweeping(HOUR_MS);
    world.settle(&mut rng);
    assert_eq!(world.store.poll_timeout(), None, "nothing is queued");
    world.message(1, &[1], 10);
    for _ in 0..600 {
        world.settle(&mut rng);
        world.now_ms += 1000;
    }
    let shown = world.store.expiry_clock_ms(world.now_ms);
    world.reopen(None);
    let known = world.store.expiry_clock_ms(world.now_ms);
    assert!(known + CLOCK_LOG_MS + 6000 >= shown && known <= shown, "{known} {shown}");
}

#[test]
fn a_gap_in_the_place_of_a_message_is_awaited_until_it_is_durable() {
    let mut rng = Rng(1);
    let mut world = sweeping(HOUR_MS);
    let first = world.message(1, &[1, 2], 10).unwrap();
    world.settle(&mut rng);
    assert!(!world.store.awaits_gap(MailboxId(1)));
    world.store.expire(MailboxId(1), first, None).unwrap();
    assert!(world.store.awaits_gap(MailboxId(1)) && !world.store.awaits_gap(MailboxId(2)));
    world.message(1, &[1], 10).unwrap();
    assert!(world.store.awaits_gap(MailboxId(1)), "not only at the end");
    world.settle(&mut rng);
    assert!(!world.store.awaits_gap(MailboxId(1)));
    // It replaces nothing: who waits for it waits for as long as the mailbox is full.
    world.store.append_gap(MailboxId(1), GapReason::Full, None);
    assert!(!world.store.awaits_gap(MailboxId(1)));
}

#[test]
fn reclaim_carries_the_clock_forward() {
    let mut rng = Rng(1);
    let mut world = sweeping(HOUR_MS);
    while world.store.stats().reclaimed_segments < 3 {
        let seq = world.message(1, &[9], 9000).unwrap();
        while world.step(&mut rng) {}
        world.ack(9, seq);
    }
    world.settle(&mut rng);
    world.reopen(None);
    assert_eq!(world.store.expiry_clock_ms(0), START_MS);
}

#[test]
fn mailboxes_of_absent_devices_shrink() {
    let mut rng = Rng(1);
    let interval_ms = 10_000;
    let mut world = sweeping(interval_ms);
    world.expires_at_ms = START_MS + 1000;
    let first: Vec<_> = (0..30).map(|_| world.message(1, &[1, 2], 3000).unwrap()).collect();
    world.expires_at_ms = START_MS + 4000;
    let second = world.message(1, &[1], 100).unwrap();
    world.expires_at_ms = START_MS + YEAR_MS;
    let kept = world.message(1, &[1, 2], 3000).unwrap();
    let live_bytes = world.store.stats().live_bytes;
    world.settle(&mut rng);
    // The first sweep found the 30; it saw the other when it was not yet due.
    assert_eq!(world.store.stats().expired_records, 60);
    for mailbox in [1, 2] {
        assert_eq!(world.gaps(mailbox, &mut rng), [EXPIRED]);
        assert!(world.queued(mailbox).contains(&kept));
        assert!(!world.queued(mailbox).iter().any(|seq| first.contains(seq)));
    }
    assert!(world.queued(1).contains(&second));
    assert!(world.store.stats().live_bytes < live_bytes / 10);
    world.now_ms += interval_ms;
    world.settle(&mut rng);
    assert_eq!(world.store.stats().expired_records, 61);
    assert_eq!(world.queued(1).len(), 2);
    world.reopen_finds_the_same(&mut rng);
    // Nothing is due for a year: the next timer is the clock's.
    world.store.begin_clock(world.now_ms, START_MS + HOUR_MS, false);
    let began_ms = world.now_ms;
    world.settle(&mut rng);
    assert_eq!(world.store.poll_timeout(), Some(began_ms + CLOCK_LOG_MS));
    assert_eq!(world.store.stats().expired_records, 0);
}

#[test]
fn reclaim_does_not_copy_what_has_expired() {
    let mut rng = Rng(1);
    // Never swept.
    let mut world = sweeping(u64::MAX);
    world.store.log.get_mut(crate::SegmentId(1)).sweep_again_ms = u64::MAX;
    world.expires_at_ms = START_MS + 1;
    for _ in 0..8 {
        world.message(1, &[1], 9000).unwrap();
    }
    world.expires_at_ms = u64::MAX;
    while world.store.stats().reclaimed_segments < 2 {
        world.now_ms += 1;
        let seq = world.message(1, &[9], 9000).unwrap();
        while world.step(&mut rng) {}
        world.ack(9, seq);
    }
    assert_eq!(world.store.stats().expired_records, 8);
    world.settle(&mut rng);
    assert_eq!(world.gaps(1, &mut rng), [EXPIRED]);
    assert!(world.store.stats().reclaim_copied_bytes < 9000);
    world.reopen_finds_the_same(&mut rng);
}

/// Messages that expire and others, swept and reclaimed, with a crash after `stop` operations.
fn sweep_and_crash(seed: u64, stop: usize) {
    let mut rng = Rng(seed);
    let mut world = sweeping(500);
    let mut queued: Vec<(u64, Seq, u64)> = Vec::new();
    let stop = world.disk.executed + stop;
    while world.disk.executed < stop {
        let lives_ms = if rng.chance(70) { rng.next() % 2000 } else { YEAR_MS };
        world.expires_at_ms = world.store.expiry_clock_ms(world.now_ms) + lives_ms;
        let mailbox = rng.next() % 4;
        let bytes = rng.below(9000);
        if let Some(seq) = world.message(1, &[mailbox, mailbox + 1], bytes) {
            queued.extend([mailbox, mailbox + 1].map(|id| (id, seq, world.expires_at_ms)));
        }
        for _ in 0..rng.below(12) {
            world.step(&mut rng);
        }
        world.now_ms += rng.next() % 60;
    }
    let durable = world.store.durable_up_to();
    let mut clock_ms = world.store.expiry_clock_ms(world.now_ms);
    world.reopen(Some(&mut rng));
    assert_eq!(world.report.damaged, []);
    for reopened in [false, true] {
        for (mailbox, seq, expires_at_ms) in &queued {
            let is_durable = crate::RecordNumber::of(*seq) <= durable;
            match world.read(*mailbox, *seq, &mut rng) {
                Some(record) => assert!(matches!(record, StoredRecord::Message(_))),
                None if !is_durable => {}
                None => {
                    assert!(*expires_at_ms <= clock_ms, "lost {mailbox} {seq:?}");
                    assert_eq!(world.gaps(*mailbox, &mut rng), [EXPIRED]);
                }
            }
        }
        if !reopened {
            // What goes on after the crash ends where another recovery begins.
            let known = world.store.expiry_clock_ms(0);
            world.store.begin_clock(world.now_ms, known, false);
            world.settle(&mut rng);
            clock_ms = clock_ms.max(world.store.expiry_clock_ms(world.now_ms + 6000));
            world.reopen_finds_the_same(&mut rng);
        }
    }
}

#[test]
fn sweeps_survive_crashes() {
    for stop in (0..250).step_by(3) {
        sweep_and_crash(1, stop);
    }
    for seed in 2..8 {
        sweep_and_crash(seed, 900);
    }
}
