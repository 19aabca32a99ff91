//! Proves the prover: turns on one deliberate bug after the other and looks how many seeds the
//! simulator needs to catch it. The tree without bugs must pass the same seeds.
//!
//! `cargo run --release -p ringpost-tests --bin mutants`

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use ringpost_protocol::mutant::{self, Mutant};
use ringpost_tests::sim::keys::Keys;
use ringpost_tests::sim::world::{Crash, Options};
use ringpost_tests::soak::hunt::{self, Plan};
use ringpost_tests::soak::report::Totals;

/// Shows that the simulated world catches every deliberate bug of the catalogue
/// (ringpost_protocol::mutant), and that the unmodified tree passes the same seeds.
///
/// One line per bug: how many seeds it survived and what was seen, or MISSED. Exit code 1 when a
/// bug is missed or the unmodified tree fails.
#[derive(Parser)]
#[command(name = "mutants")]
struct Arguments {
    /// Seeds that each bug may need, and again with tight mailboxes.
    #[arg(long, default_value_t = 100, value_name = "N")]
    seeds: u64,
    /// Only bugs whose name contains this.
    #[arg(long, default_value = "", value_name = "NAME")]
    only: String,
    /// Threads, one world in each; default: one per core.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

/// How one bug was caught.
struct Catch {
    seed: u64,
    text: String,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let directory = tempfile::tempdir().context("a directory for the token keys")?;
    let keys = Keys::new(directory.path())?;
    let threads = arguments.threads.unwrap_or_else(ringpost_loadgen::host::cores);
    let plan_of = |mutant, tight_mailboxes, seeds| Plan {
        seeds,
        until: None,
        threads,
        keep_going: false,
        options: Options { tight_mailboxes, ..Options::default() },
        mutant,
    };
    let plan = |mutant, tight_mailboxes, seeds| plan_of(mutant, tight_mailboxes, 0..seeds);
    let only = |mutant, seed| plan_of(mutant, false, seed..seed + 1);
    let settings = format!("at most {} seeds per bug", arguments.seeds);
    eprintln!("{}", Totals::new(threads).header(&settings));
    let started = Instant::now();
    let name_of = |mutant: &Mutant| format!("{mutant:?}");
    let chosen = Mutant::ALL.iter().filter(|mutant| name_of(mutant).contains(&arguments.only));
    let (mut caught, mut missed) = (0, 0);
    for mutant in chosen {
        let name = name_of(mutant);
        caught += 1;
        let rare = RARE.iter().find(|(rare, _)| rare == mutant);
        if let Some(Catch { seed, text }) =
            rare.and_then(|(_, seed)| first_failure(&only(Some(*mutant), *seed), &keys))
        {
            println!("{name:28} caught by its seed {seed}: {text}");
        } else if let Some(Catch { seed, text }) =
            first_failure(&plan(Some(*mutant), false, arguments.seeds), &keys)
        {
            println!("{name:28} caught in {} seeds: {text}", seed + 1);
        } else if let Some(Catch { seed, text }) =
            first_failure(&plan(Some(*mutant), true, arguments.seeds), &keys)
        {
            println!("{name:28} caught in {} seeds with tight mailboxes: {text}", seed + 1);
        } else if let Some(Catch { seed, text }) = first_bad_crash(Some(*mutant), &keys) {
            println!("{name:28} caught by a crash at completion {seed}: {text}");
        } else {
            println!("{name:28} MISSED in {} seeds", arguments.seeds);
            (caught, missed) = (caught - 1, missed + 1);
        }
    }
    // A seed proves something only if it passes without the bug.
    let control = first_failure(&plan(None, false, arguments.seeds), &keys)
        .or_else(|| first_failure(&plan(None, true, arguments.seeds), &keys))
        .or_else(|| RARE.iter().find_map(|(_, seed)| first_failure(&only(None, *seed), &keys)))
        .or_else(|| first_bad_crash(None, &keys));
    match &control {
        Some(Catch { seed, text }) => println!("{:28} FAILED at seed {seed}: {text}", "no bug"),
        None => println!(
            "{:28} passed all {} seeds, as many with tight mailboxes, and every crash",
            "no bug", arguments.seeds
        ),
    }
    println!("{caught} of {} bugs caught in {} s", caught + missed, started.elapsed().as_secs());
    let proven = missed == 0 && control.is_none();
    Ok(if proven { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The lowest seed that is seen to fail.
fn first_failure(plan: &Plan, keys: &Keys) -> Option<Catch> {
    let mut first: Option<Catch> = None;
    hunt::run(plan, keys, |ended| {
        if let Err(failure) = ended.result
            && first.as_ref().is_none_or(|known| ended.seed < known.seed)
        {
            first = Some(Catch { seed: ended.seed, text: one_line(&failure.text) });
        }
    });
    first
}

/// A small world whose machine goes down at each completion in turn; gives the first that fails.
fn first_bad_crash(bug: Option<Mutant>, keys: &Keys) -> Option<Catch> {
    mutant::activate(bug);
    let run = |crash| {
        let options = Options { small: true, crash, ..Options::default() };
        hunt::run_seed(SMALL_SEED, keys, options).map_err(|failure| one_line(&failure.text))
    };
    let found = match run(None) {
        Err(text) => Some(Catch { seed: 0, text }),
        Ok(whole) => (1..whole.completions).find_map(|completion| {
            let crash = Crash { completion, loses_power: true };
            run(Some(crash)).err().map(|text| Catch { seed: completion, text })
        }),
    };
    mutant::activate(None);
    found
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(LINE_CHARS_MAX).collect()
}

/// Bugs that show only where two rare things meet, each with a seed that has it. It names a world as
/// long as worlds are made the same way; then the bug is looked for in more seeds.
const RARE: &[(Mutant, u64)] = &[
    // A store fails while Sends wait for a device list.
    (Mutant::ListWaitsOutliveStore, 1168),
];
/// Of the small world.
const SMALL_SEED: u64 = 1;
/// Of one failure.
const LINE_CHARS_MAX: usize = 140;
