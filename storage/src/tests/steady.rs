//! Space in the long run.

use ringpost_protocol::id::MailboxId;

use super::disk::Rng;
use super::world::{World, small_config};
use crate::StoreConfig;

/// What the disk holds beyond one and a half times the live bytes, when these are those of many
/// segments: about the spare, and what is in two places while it is copied.
const SLACK_SEGMENTS: u64 = 1;

/// One message per batch, as traffic that trickles in gives: each takes a block of its own however
/// short it is, until reclaim packs what is left of them. Nine of ten are acknowledged soon.
#[test]
fn a_trickle_with_nine_of_ten_deleted_takes_half_more_than_what_is_live() {
    let mut rng = Rng(3);
    let mut world = World::new(StoreConfig { checkpoint_log_bytes: u64::MAX, ..small_config() });
    let mut worst = 0;
    for round in 0..14_000_u64 {
        let is_kept = round % 10 == 0;
        let mailbox = if is_kept { 100 + round % 50 } else { round % 7 };
        let bytes = if is_kept { 2500 } else { rng.below(900) };
        let seq = world.message(1, &[mailbox], bytes);
        world.now_ms += 1;
        while world.step(&mut rng) {}
        if let Some(seq) = seq.filter(|_| !is_kept && round % 3 == 0) {
            world.store.ack(MailboxId(mailbox), seq);
        }
        if round > 7000 && round % 100 == 0 {
            let stats = world.store.stats();
            let slack = SLACK_SEGMENTS * u64::from(world.config.segment_bytes);
            let used = world.disk.used_bytes() as u64;
            assert!(used <= stats.live_bytes * 3 / 2 + slack, "{round}: {used} {stats:?}");
            worst = worst.max(used.saturating_sub(slack) * 100 / stats.live_bytes);
        }
    }
    let stats = world.store.stats();
    let segment_bytes = u64::from(world.config.segment_bytes);
    assert!(stats.live_bytes > 20 * segment_bytes && stats.reclaimed_segments > 100, "{stats:?}");
    assert!(worst > 90, "the bound is near: {worst} %");
    // Packing costs less than the trickle itself.
    assert!(stats.reclaim_copied_bytes < stats.batch_bytes_written, "{stats:?}");
}

/// Segments reclaimed within `ms`, of so many in each of which one message in six is live.
fn reclaimed_within(ms: u64, segments: usize) -> u64 {
    let mut rng = Rng(3);
    let second = 256 << 10;
    let config = StoreConfig { reclaim_bytes_per_second: second, ..small_config() };
    let mut world = World::new(config);
    world.settle(&mut rng);
    // Time stands still meanwhile, and so does reclaim.
    for message in 0..6 * segments {
        let is_kept = message % 6 == 0;
        let mailbox = if is_kept { 2 } else { 1 };
        let seq = world.message(1, &[mailbox], 20_000).unwrap();
        while world.step(&mut rng) {}
        if !is_kept {
            world.store.ack(MailboxId(mailbox), seq);
        }
    }
    let before = world.store.stats().reclaimed_segments;
    for _ in 0..ms {
        world.now_ms += 1;
        while world.step(&mut rng) {}
    }
    world.store.stats().reclaimed_segments - before
}

#[test]
fn reclaim_hurries_while_it_falls_behind() {
    let [slow, fast] = [6, 40].map(|segments| reclaimed_within(1500, segments));
    assert!((1..4).contains(&slow) && fast > 3 * slow, "{slow} {fast}");
}
