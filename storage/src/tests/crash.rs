//! Crashes at every operation, under a seeded workload.

use super::disk::Rng;
use super::world::{MAILBOXES, World, small_config};
use ringpost_protocol::id::Seq;

/// A few commands, then some operations.
pub(super) fn work(world: &mut World, rng: &mut Rng) {
    for _ in 0..rng.below(6) {
        let mailbox = rng.next() % MAILBOXES;
        match rng.below(20) {
            0 => {
                world.gap(mailbox);
            }
            1..=3 => {
                let up_to = rng.next() % 1000;
                world.receipt(mailbox, rng.below(3), up_to);
            }
            4 => world.device(rng.below(12)),
            5 => {
                let queued = world.queued(mailbox);
                if !queued.is_empty() {
                    let group = rng.chance(50).then_some("group");
                    world.expire(mailbox, queued[rng.below(queued.len())], group);
                }
            }
            6..=10 => {
                let queued = world.queued(mailbox);
                if !queued.is_empty() {
                    let upper = queued.len().saturating_sub(2).max(rng.below(queued.len()));
                    world.ack(mailbox, queued[upper]);
                }
            }
            11..=13 => {
                let others = [mailbox, (mailbox + 1) % MAILBOXES, (mailbox + 3) % MAILBOXES];
                let bytes = rng.below(6000);
                world.message(rng.below(5), &others, bytes);
            }
            _ => {
                let bytes = rng.below(9000);
                world.message(rng.below(5), &[mailbox], bytes);
            }
        }
    }
    for _ in 0..rng.below(8) {
        world.step(rng);
    }
    if rng.chance(5) {
        world.now_ms += 1500;
    }
    if rng.chance(20) {
        let mailbox = rng.next() % MAILBOXES;
        if let Some(seq) = world.queued(mailbox).first() {
            world.read(mailbox, *seq, rng);
        }
    }
}

/// Several lives of one store; `lives` gives the operations of each before its crash.
fn run(seed: u64, lives: &[usize], broken: bool) -> Result<World, String> {
    let mut rng = Rng(seed);
    let mut faults = Rng(seed ^ 0xfa17);
    let mut world = World::new(small_config());
    world.disk.ignores_sync_data = broken;
    for operations in lives {
        let stop = world.disk.executed + operations;
        while world.disk.executed < stop {
            work(&mut world, &mut rng);
        }
        let durable = world.store.durable_up_to();
        let power = faults.chance(80);
        world.reopen(power.then_some(&mut faults));
        if !world.report.damaged.is_empty() {
            return Err(format!("a crash was taken for corruption: {:?}", world.report.damaged));
        }
        world.check(durable, &mut rng)?;
    }
    if !broken {
        world.reopen_finds_the_same(&mut rng);
    }
    Ok(world)
}

#[test]
fn what_was_durable_survives_a_crash_at_every_operation() {
    for operations in 0..250 {
        run(1, &[operations], false).unwrap_or_else(|text| panic!("after {operations}: {text}"));
    }
}

#[test]
fn many_lives_of_many_seeds() {
    let mut reclaimed = 0;
    for seed in 0..SEEDS {
        let mut rng = Rng(seed);
        let lives: Vec<_> = (0..8).map(|_| rng.below(700)).collect();
        let world = run(seed, &lives, false).unwrap_or_else(|text| panic!("seed {seed}: {text}"));
        reclaimed += usize::from(world.report.segments < 40);
    }
    assert!(reclaimed > 25, "reclaim kept the stores small");
}

#[test]
fn a_disk_that_ignores_the_sync_is_caught() {
    let caught = (0..20).filter(|seed| run(*seed, &[300, 300], true).is_err()).count();
    assert!(caught > 15, "{caught} of 20 seeds");
}

#[test]
fn more_may_be_live_than_is_in_files() {
    let mut rng = Rng(1);
    let mut world = World::new(small_config());
    world.message(1, &[1], 5000).unwrap();
    world.settle(&mut rng);
    // As after a crash before the zeros ahead of the log were written.
    world.disk.segment(1).content.truncate(4 * 4096);
    world.reopen(None);
    world.message(2, &[1], 20_000).unwrap();
    world.settle(&mut rng);
    assert_eq!(world.queued(1).len(), 2);
}

#[test]
fn reclaim_keeps_the_log_near_what_is_live() {
    let mut rng = Rng(9);
    let mut world = World::new(small_config());
    let mut kept = Vec::new();
    for round in 0..6000_u64 {
        let mailbox = round % MAILBOXES;
        world.message(1, &[mailbox], 700);
        if round % 4 == 0 {
            while world.step(&mut rng) {}
        }
        // Nine of ten are acknowledged soon; the rest stays in mailboxes of its own.
        if round % 10 == 0
            && let Some(seq) = world.message(1, &[100 + round], 700)
        {
            kept.push((100 + round, seq));
        }
        if round % 32 == 0 {
            for mailbox in 0..MAILBOXES {
                let up_to = world.queued(mailbox).last().copied();
                world.ack(mailbox, up_to.unwrap_or(Seq(0)));
            }
        }
        world.now_ms += 1;
    }
    world.settle(&mut rng);
    let stats = world.store.stats();
    let slack = 3 * u64::from(world.config.segment_bytes);
    assert!(stats.reclaimed_segments > 20, "{stats:?}");
    assert!(stats.file_bytes <= stats.live_bytes * 3 / 2 + slack, "{stats:?}");
    world.reopen(None);
    for (mailbox, seq) in kept {
        assert_eq!(world.queued(mailbox), [seq]);
        assert!(world.read(mailbox, seq, &mut rng).is_some());
    }
}

const SEEDS: u64 = 30;
