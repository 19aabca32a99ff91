//! Proves the prover: turns on one deliberate bug after the other and looks how many seeds the
//! simulator needs to catch it. The tree without bugs must pass the same seeds.
//!
//! `cargo run --release -p ringpost-tests --bin mutants`

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;

use std::thread;
use std::time::Instant;

use clap::Parser;
use ringpost_protocol::mutant::{self, Mutant};
use ringpost_tests::sim::keys::Keys;
use ringpost_tests::sim::world::{Options, World};

/// Shows that the simulated world catches every deliberate bug of the catalogue
/// (ringpost_protocol::mutant), and that the unmodified tree passes the same seeds.
///
/// One line per bug: the first seed that caught it and what it saw, or MISSED. Exit code 1 when a
/// bug is missed or the unmodified tree fails.
#[derive(Parser)]
#[command(name = "mutants")]
struct Arguments {
    /// Seeds that each bug may need.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// Seeds that the unmodified tree is run with.
    #[arg(long, default_value_t = 50)]
    control_seeds: u64,
    /// Only bugs whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Threads; one world runs in one of them.
    #[arg(long, default_value_t = default_threads())]
    threads: usize,
}

/// How one bug was caught.
struct Catch {
    seed: u64,
    text: String,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let directory = tempfile::tempdir()?;
    let keys = Keys::new(directory.path())?;
    // A bug that breaks an assertion is caught too; its message becomes part of the line.
    panic::set_hook(Box::new(|_| {}));
    let started = Instant::now();
    let control = first_failure(&arguments, &keys, None, arguments.control_seeds);
    if let Some(Catch { seed, text }) = control {
        println!("{:28} FAILED at seed {seed}: {text}", "(no bug)");
        return Ok(ExitCode::FAILURE);
    }
    println!("{:28} passed {} seeds", "(no bug)", arguments.control_seeds);
    let chosen: Vec<Mutant> = Mutant::ALL
        .iter()
        .copied()
        .filter(|mutant| format!("{mutant:?}").contains(&arguments.only))
        .collect();
    let mut missed = 0;
    for &mutant in &chosen {
        match first_failure(&arguments, &keys, Some(mutant), arguments.seeds) {
            Some(Catch { seed, text }) => {
                println!("{:28} caught in {} seeds: {text}", format!("{mutant:?}"), seed + 1);
            }
            None => {
                missed += 1;
                println!("{:28} MISSED in {} seeds", format!("{mutant:?}"), arguments.seeds);
            }
        }
    }
    println!(
        "{} of {} bugs caught in {} s",
        chosen.len() - missed,
        chosen.len(),
        started.elapsed().as_secs()
    );
    Ok(if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The lowest seed that fails, run on all threads.
fn first_failure(
    arguments: &Arguments,
    keys: &Keys,
    mutant: Option<Mutant>,
    seeds: u64,
) -> Option<Catch> {
    let next = Mutex::new(0..seeds);
    let found = Mutex::new(None::<Catch>);
    thread::scope(|scope| {
        for _ in 0..arguments.threads {
            scope.spawn(|| {
                mutant::activate(mutant);
                loop {
                    let seed = next.lock().expect("no panic while it is held").next();
                    let Some(seed) = seed else { break };
                    let Some(text) = failure_of(keys, seed) else { continue };
                    let mut found = found.lock().expect("no panic while it is held");
                    if found.as_ref().is_none_or(|known| seed < known.seed) {
                        *found = Some(Catch { seed, text });
                    }
                    next.lock().expect("no panic while it is held").end = 0;
                    break;
                }
            });
        }
    });
    found.into_inner().expect("no panic while it was held")
}

/// What goes wrong in the world of this seed, on one line.
fn failure_of(keys: &Keys, seed: u64) -> Option<String> {
    let run = AssertUnwindSafe(|| World::run(seed, keys, Options::default()));
    let text = match panic::catch_unwind(run) {
        Ok(Ok(_)) => return None,
        Ok(Err(violation)) => violation.to_string(),
        Err(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
            format!("assertion: {}", text.unwrap_or("without a message"))
        }
    };
    let line = text.lines().next().unwrap_or_default();
    Some(line.chars().take(LINE_CHARS_MAX).collect())
}

fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Of one failure.
const LINE_CHARS_MAX: usize = 120;
