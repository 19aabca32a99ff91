//! Whole gateways with their clients, each from one seed. A failure names its seed; replay it with
//! `RINGPOST_SIM_SEED=N cargo test -p ringpost-tests --test sim -- --nocapture`,
//! with `RINGPOST_SIM_TRACE=1` line by line.
#![allow(clippy::unwrap_used, reason = "tests")]

use ringpost_tests::sim::keys::Keys;
use ringpost_tests::sim::trace::Trace;
use ringpost_tests::sim::world::{Crash, Options, Report, World};

/// Seeds that once failed, each with what it found. A seed names a world only as long as worlds
/// are made the same way: what older ones found is among the deliberate bugs of the binary
/// `mutants`.
#[rustfmt::skip]
const REGRESSION_SEEDS: &[u64] = &[
    // A receipt for an expired message, when the Hello of the next connection acknowledged its gap.
    2, 7,
    // Reclaim reckoned with fewer bytes in the log than were live, while batches wait for the disk.
    121, 134,
    // The client spun while a retry was due and its window was full.
    705,
    // Connections that crossed: the newer one by the gateway was the older one by the client.
    6479,
    // A mailbox that is full was drained by a few messages in two round trips of a slow link.
    6812, 7013,
    // A receipt was awaited of a device that the sender was told is skipped.
    118,
    // A record that became unreadable between its delivery and its acknowledgement: no receipt.
    412,
    // A re-sharding met a full disk after the last operation of the ring had met it.
    1008, 3904,
    // Reclaim that begins too early copies the same records for ever.
    302,
    // A write went astray in a store that was home to nobody.
    9446,
    // What came behind an expired message was acknowledged before its gap was durable: after a power
    // failure the message was there again, and was taken for delivered.
    1972, 9925,
    // A receipt became unreadable.
    6680,
    // A Send that was refused for its roster was forgotten, and accepted when it came again, behind
    // later ones.
    1230,
    // A client in the background had used up what it may send over QUIC, and did not notice for twelve
    // minutes that the gateway had started anew.
    7402,
    // Receipts of groups stand beside those of messages between two.
    7058,
    // A device that was taken off the list and put on it again published keys once more, and they were
    // handed out once more.
    454,
    // Sends waited for a device list; the first was refused, and those behind it were stored.
    692,
    // More Sends waited for a device list than are kept, so that one was not held against it.
    8356,
];

/// Names the seed also when production code panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {0} failed; replay it with RINGPOST_SIM_SEED={0}", self.0);
        }
    }
}

fn keys() -> Keys {
    let directory = tempfile::tempdir().unwrap();
    Keys::new(directory.path()).unwrap()
}

fn trace() -> Trace {
    match std::env::var_os("RINGPOST_SIM_TRACE") {
        Some(_) => Trace::printing(),
        None => Trace::off(),
    }
}

fn run(keys: &Keys, seed: u64) -> Report {
    let _named = Seed(seed);
    match World::run_traced(seed, keys, Options::default(), trace()) {
        Ok(report) => report,
        Err(violation) => panic!("seed {seed}: {violation}"),
    }
}

/// The seeds that were asked for: one, or `RINGPOST_SIM_SEEDS=A..B`.
fn chosen_seeds() -> Option<Vec<u64>> {
    if let Ok(seed) = std::env::var("RINGPOST_SIM_SEED") {
        return Some(vec![seed.parse().unwrap()]);
    }
    let range = std::env::var("RINGPOST_SIM_SEEDS").ok()?;
    let (first, end) = range.split_once("..").unwrap();
    Some((first.parse().unwrap()..end.parse().unwrap()).collect())
}

#[test]
fn every_promise_is_kept() {
    let keys = keys();
    let seeds = chosen_seeds()
        .unwrap_or_else(|| REGRESSION_SEEDS.iter().copied().chain(0..SEED_COUNT).collect());
    for seed in seeds {
        let started = std::time::Instant::now();
        let report = run(&keys, seed);
        println!("seed {seed}, {} ms: {report:?}", started.elapsed().as_millis());
    }
}

#[test]
fn a_seed_gives_the_same_world_twice() {
    let keys = keys();
    for seed in 2..4 {
        assert_eq!(run(&keys, seed), run(&keys, seed));
    }
}

/// The disk says that it has synced, and has not: an accepted message is lost, and that shows.
#[test]
fn without_fdatasync_the_oracle_fails() {
    let keys = keys();
    let options = Options { lie_about_sync: true, ..Options::default() };
    let caught = (0..MUTANT_SEED_COUNT)
        .find_map(|seed| World::run(seed, &keys, options).err().map(|violation| (seed, violation)));
    let (seed, violation) = caught.unwrap();
    println!("seed {seed}: {violation}");
}

/// Mailboxes fill up while processes end: the outcome of a Send is lost, its replay refused, and its
/// retry must carry the number by which the recipient knows it.
#[test]
fn a_retry_under_a_new_number_is_told_once() {
    let keys = keys();
    let options = Options { tight_mailboxes: true, ..Options::default() };
    for seed in chosen_seeds().unwrap_or_else(|| (0..TIGHT_SEED_COUNT).collect()) {
        if let Err(violation) = World::run_traced(seed, &keys, options, trace()) {
            panic!("seed {seed}: {violation}");
        }
    }
}

/// The process ends at each completion in turn, alone or with its machine: nothing is lost.
#[test]
fn the_process_may_end_at_every_completion() {
    end_at_every_completion(false, COMPLETION_STEP);
}

#[test]
fn the_process_may_end_at_every_completion_with_quic() {
    end_at_every_completion(true, 10 * COMPLETION_STEP);
}

fn end_at_every_completion(quic: bool, step: usize) {
    let keys = keys();
    let small = Options { small: true, quic, ..Options::default() };
    let whole = World::run(SMALL_SEED, &keys, small).unwrap();
    assert!(whole.accepted > 10 && whole.completions > 200, "{whole:?}");
    for completion in (1..whole.completions).step_by(step) {
        for loses_power in [false, true] {
            let crash = Some(Crash { completion, loses_power });
            if let Err(violation) = World::run(SMALL_SEED, &keys, Options { crash, ..small }) {
                panic!("completion {completion}, power lost: {loses_power}: {violation}");
            }
        }
    }
}

const SEED_COUNT: u64 = 24;
const TIGHT_SEED_COUNT: u64 = 12;
const MUTANT_SEED_COUNT: u64 = 40;
const SMALL_SEED: u64 = 1;
/// Debug builds look at every third completion, release builds at each.
const COMPLETION_STEP: usize = if cfg!(debug_assertions) { 3 } else { 1 };
