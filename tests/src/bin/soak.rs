//! Hunts the gateway through simulated worlds, seed after seed.
//!
//! `cargo run --release -p ringpost-tests --bin soak -- --seeds 0..10000`

use std::io::{IsTerminal as _, stderr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use ringpost_tests::sim::keys::Keys;
use ringpost_tests::sim::trace::Trace;
use ringpost_tests::sim::world::{Crash, Options, World};
use ringpost_tests::soak::hunt::{self, Ended, Plan};
use ringpost_tests::soak::report::{Totals, failure_text};

/// Runs simulated worlds: production shards, stores and clients on a simulated ring, network, disk
/// and clock, with faults of every kind; an oracle checks every promise after every event.
///
/// Each world follows from its seed alone. On a failure the seed, the commit and the last 200 events
/// are printed and the exit code is 1.
#[derive(Parser)]
#[command(name = "soak")]
struct Arguments {
    /// Seeds to run: the first, and the first that is not run.
    #[arg(long, default_value = "0..1000", value_name = "A..B", value_parser = parse_seeds)]
    seeds: std::ops::Range<u64>,
    /// Run this seed alone.
    #[arg(long, conflicts_with = "seeds", value_name = "S")]
    seed: Option<u64>,
    /// With --seed: print every event.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Begin no world after so many minutes.
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// Threads, one world in each; default: one per core.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Go on to other seeds after a failure.
    #[arg(long)]
    keep_going: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
    /// Worlds whose mailboxes fill up whatever else happens.
    #[arg(long)]
    tight_mailboxes: bool,
    /// Small worlds without other faults, whose process ends at this completion.
    #[arg(long, value_name = "COMPLETION")]
    crash_at: Option<u64>,
    /// With --crash-at: the machine goes down too.
    #[arg(long, requires = "crash_at")]
    loses_power: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let directory = tempfile::tempdir().context("a directory for the token keys")?;
    let keys = Keys::new(directory.path())?;
    let loses_power = arguments.loses_power;
    let options = Options {
        tight_mailboxes: arguments.tight_mailboxes,
        small: arguments.crash_at.is_some(),
        crash: arguments.crash_at.map(|completion| Crash { completion, loses_power }),
        ..Options::default()
    };
    if let (Some(seed), true) = (arguments.seed, arguments.trace) {
        return Ok(replay(seed, &keys, options));
    }
    let threads = arguments.threads.unwrap_or_else(ringpost_loadgen::host::cores);
    let started = Instant::now();
    let plan = Plan {
        seeds: arguments.seed.map_or(arguments.seeds, |seed| seed..seed + 1),
        until: arguments.minutes.map(|minutes| started + Duration::from_secs_f64(60.0 * minutes)),
        threads,
        keep_going: arguments.keep_going,
        options,
        mutant: None,
    };
    let mut totals = Totals::new(threads);
    let minutes = arguments.minutes.map_or(String::new(), |minutes| format!(", {minutes} minutes"));
    let settings = format!("seeds {:?}{minutes}, {options:?}", plan.seeds);
    eprintln!("{}", totals.header(&settings));
    let bar = progress(plan.seeds.end - plan.seeds.start, arguments.json);
    hunt::run(&plan, &keys, |Ended { seed, result }| {
        if let Err(failure) = &result {
            bar.suspend(|| eprintln!("{}", failure_text(seed, &totals.commit, failure)));
        }
        totals.elapsed = started.elapsed();
        totals.add(seed, result);
        bar.set_message(format!("{:.1} seeds/s", totals.seeds_per_second()));
        bar.inc(1);
    });
    bar.finish_and_clear();
    if arguments.json {
        println!("{:#}", totals.json());
    } else {
        println!("{}", totals.summary());
    }
    Ok(if totals.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one world and prints every event as it happens.
fn replay(seed: u64, keys: &Keys, options: Options) -> ExitCode {
    match World::run_traced(seed, keys, options, Trace::printing()) {
        Ok(report) => {
            println!("seed {seed}: no violation; {report:?}");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("seed {seed}: {violation}");
            ExitCode::FAILURE
        }
    }
}

fn progress(seeds: u64, json: bool) -> ProgressBar {
    if json || !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {msg}, {eta} left")
        .expect("the template is right");
    ProgressBar::new(seeds).with_style(style)
}

fn parse_seeds(text: &str) -> Result<std::ops::Range<u64>, String> {
    let parsed =
        text.split_once("..").and_then(|(first, end)| Some(first.parse().ok()?..end.parse().ok()?));
    parsed.filter(|seeds| !seeds.is_empty()).ok_or_else(|| "write it as 0..1000".to_owned())
}
