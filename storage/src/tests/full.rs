//! A disk without room: refused messages, the reserve, and recovery by itself.

use ringpost_protocol::id::{MailboxId, Seq};

use super::disk::{Disk, Rng};
use super::world::{MAILBOXES, World, small_config};
use crate::{NewMessage, RecordNumber, StoreFull};

const SEGMENT: usize = 128 << 10;

fn refusal(world: &mut World) -> Option<StoreFull> {
    let from = super::world::address(1);
    let message = NewMessage {
        from: &from,
        install_id: Default::default(),
        send_seq: Default::default(),
        message_number: Default::default(),
        sent_at_ms: 11,
        expires_at_ms: u64::MAX,
        urgent: false,
        group: None,
        mailboxes: &[MailboxId(99)],
        envelope: &[],
    };
    world.store.append_message(&message).err()
}

/// Messages for mailbox 1, each made durable, until one is refused.
fn fill(world: &mut World, rng: &mut Rng) -> Vec<Seq> {
    let append = || {
        let seq = world.message(1, &[1], 9000)?;
        while world.step(rng) {}
        Some(seq)
    };
    std::iter::from_fn(append).collect()
}

fn with_capacity(segments: usize) -> World {
    let mut disk = Disk::default();
    disk.capacity_bytes = Some(segments * SEGMENT);
    World::with_disk(small_config(), disk)
}

#[test]
fn messages_are_refused_and_all_else_goes_on_in_the_reserve() {
    let mut rng = Rng(1);
    let mut world = with_capacity(5);
    world.settle(&mut rng);
    let queued = fill(&mut world, &mut rng);
    world.settle(&mut rng);
    assert_eq!(refusal(&mut world), Some(StoreFull::Disk));
    assert!(world.store.stats().disk_full && world.store.disk_full_since_ms().is_some());
    assert_eq!(world.queued(1), queued);
    assert!(queued.len() > 3 * SEGMENT / 12_288, "{}", queued.len());
    // 2,000 batches of a block would not fit; nearly a segment of them does.
    for round in 0..20 {
        world.receipt(2, 1, round);
        world.gap(3);
        world.device(usize::try_from(round).unwrap());
        while world.step(&mut rng) {}
        assert!(world.store.is_idle(), "round {round} is durable");
    }
    assert!(world.read(1, queued[0], &mut rng).is_some());
    // Acks free the oldest segments, so the spare is completed and messages are taken again.
    world.ack(1, queued[queued.len() - 2]);
    world.settle(&mut rng);
    assert!(!world.store.stats().disk_full && !world.failed);
    assert!(world.message(1, &[1], 9000).is_some());
    world.reopen_finds_the_same(&mut rng);
}

#[test]
fn an_attempt_that_takes_long_asks_for_no_turn_meanwhile() {
    let mut rng = Rng(1);
    let mut world = with_capacity(5);
    world.settle(&mut rng);
    fill(&mut world, &mut rng);
    world.settle(&mut rng);
    let retry_ms = world.store.disk_room_timeout().expect("the disk is full");
    // Nothing of it is answered.
    let ops = std::iter::from_fn(|| world.store.poll_disk(retry_ms)).count();
    assert!(ops > 0);
    assert_eq!(world.store.disk_room_timeout(), None);
}

#[test]
fn a_used_up_reserve_makes_commits_wait_and_nothing_fails() {
    let mut rng = Rng(1);
    let mut world = with_capacity(3);
    world.settle(&mut rng);
    let queued = fill(&mut world, &mut rng);
    let mut last = RecordNumber::default();
    for n in 0..200 {
        last = RecordNumber::of(world.receipt(2, 1, n));
        world.settle(&mut rng);
    }
    assert!(!world.store.is_idle() && !world.failed && world.store.durable_up_to() < last);
    assert!(world.read(1, queued[0], &mut rng).is_some());
    world.ack(1, queued[0]);
    assert_eq!(world.store.next(MailboxId(1), Seq(0)), Some(queued[1]));
    // A file of somebody else is removed.
    world.disk.capacity_bytes = Some(6 * SEGMENT);
    world.settle(&mut rng);
    assert!(world.store.is_idle() && !world.store.stats().disk_full);
    assert!(world.message(1, &[1], 10).is_some());
    world.reopen_finds_the_same(&mut rng);
}

#[test]
fn a_store_opens_without_room_and_serves_what_it_has() {
    let mut rng = Rng(1);
    let mut world = with_capacity(4);
    world.settle(&mut rng);
    let queued = fill(&mut world, &mut rng);
    world.disk.capacity_bytes = Some(world.disk.used_bytes());
    world.reopen(Some(&mut rng));
    world.disk.capacity_bytes = Some(world.disk.used_bytes());
    world.settle(&mut rng);
    assert_eq!(refusal(&mut world), Some(StoreFull::Disk));
    assert_eq!(world.queued(1), queued);
    assert!(queued.iter().all(|seq| world.read(1, *seq, &mut rng).is_some()));
    let number = world.store.ack(MailboxId(1), queued[2]);
    world.settle(&mut rng);
    assert!(number > world.store.durable_up_to(), "it waits");
    world.disk.capacity_bytes = None;
    world.settle(&mut rng);
    assert!(number <= world.store.durable_up_to() && refusal(&mut world).is_none());
}

#[test]
fn reclaim_frees_a_full_disk_by_copying_into_the_reserve() {
    let mut rng = Rng(1);
    let mut world = with_capacity(4);
    world.settle(&mut rng);
    // One of ten stays in the mailbox; reclaim alone would leave two segments of slack.
    let mut round = 0;
    while refusal(&mut world) != Some(StoreFull::Disk) {
        let kept = if round % 10 == 0 { 2 } else { 1 };
        let seq = world.message(1, &[kept], 9000);
        while world.step(&mut rng) {}
        if let Some(seq) = seq.filter(|_| kept == 1) {
            world.ack(1, seq);
        }
        world.now_ms += 1;
        round += 1;
        if round == 4000 {
            assert!(world.store.stats().reclaimed_segments > 100);
            return;
        }
    }
    world.settle(&mut rng);
    assert!(!world.store.stats().disk_full, "{:?}", world.store.stats());
}

/// Room comes and goes under a workload, with crashes.
fn comes_and_goes(seed: u64) {
    let mut rng = Rng(seed);
    let mut world = with_capacity(4);
    let (mut refused, mut recovered) = (0, 0);
    for life in 0..4 {
        for _ in 0..400 {
            let mailbox = rng.next() % MAILBOXES;
            let bytes = rng.below(9000);
            let was_full = world.store.stats().disk_full;
            refused += u32::from(world.message(1, &[mailbox], bytes).is_none() && was_full);
            if rng.chance(40) {
                let queued = world.queued(mailbox);
                let up_to = queued.get(queued.len() / 2).copied();
                world.ack(mailbox, up_to.unwrap_or(Seq(0)));
                world.receipt(mailbox, rng.below(3), 7);
            }
            for _ in 0..rng.below(10) {
                world.step(&mut rng);
            }
            if rng.chance(3) {
                world.disk.capacity_bytes = Some((2 + rng.below(6)) * SEGMENT);
            }
            world.now_ms += rng.next() % 200;
            assert!(!world.failed, "seed {seed}");
            recovered += u32::from(was_full && !world.store.stats().disk_full);
        }
        let durable = world.store.durable_up_to();
        let power = life % 2 == 0;
        world.reopen(power.then_some(&mut rng));
        assert_eq!(world.report.damaged, []);
        world.check(durable, &mut rng).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
    }
    assert!(refused > 0 && recovered > 0, "seed {seed}: {refused} {recovered}");
    world.disk.capacity_bytes = None;
    world.settle(&mut rng);
    assert!(!world.store.stats().disk_full && world.store.is_idle());
    world.reopen_finds_the_same(&mut rng);
}

#[test]
fn a_full_disk_loses_nothing_and_recovers() {
    for seed in 0..12 {
        comes_and_goes(seed);
    }
}
