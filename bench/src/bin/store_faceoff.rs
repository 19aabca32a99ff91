//! Durable queue work on our store, beside what the disk can do (`fio`) and beside general stores.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use ringpost_bench::stores::{BYTES_MAX, QUEUES, System, Work, fio};
use ringpost_bench::{load_average, median};
use ringpost_loadgen::host::Host;
use serde::Serialize;

/// Durable messages per second of our store, of the bare disk, of fjall and of redb.
#[derive(Parser)]
struct Cli {
    /// Messages per batch
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1024])]
    batch: Vec<u32>,
    /// Bytes of each envelope
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// Batches of one turn, fewer where they would fill more than 48 MiB
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(2..))]
    batches: u32,
    /// Times that each system has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Where to put the files; removed afterwards [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Also write the result here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One turn of one system.
#[derive(Clone, Copy, Serialize)]
struct Turn {
    messages_per_second: f64,
    /// With the zeros that are written ahead of the log.
    messages_per_second_all_in: f64,
    batches_per_second: f64,
    batch_us_p50: f64,
    batch_us_p99: f64,
    /// To fio in the same round; to the plain file where fio is missing.
    ratio: f64,
}

#[derive(Serialize)]
struct Figures {
    system: &'static str,
    messages_per_batch: u32,
    bytes_per_batch: usize,
    /// The middle one of each figure.
    median: Turn,
    turns: Vec<Turn>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    let parent = cli.directory.clone().unwrap_or_else(std::env::temp_dir);
    let load = load_average();
    println!("{}", ringpost_bench::host_facts("store_faceoff", Some(&parent)));
    println!("# load average when it began: {load}");
    let fio = fio::version();
    let yardstick = fio.as_deref().unwrap_or("the plain file: fio is not installed");
    println!("# ratio: to {yardstick}, in the same round; {} rounds", cli.rounds);
    println!("# {} bytes a message, {QUEUES} queues", cli.payload);
    let skipped = |system: &System| *system == System::Fio && fio.is_none();
    let systems: Vec<_> =
        System::value_variants().iter().copied().filter(|system| !skipped(system)).collect();
    let mut figures = Vec::new();
    for &messages_per_batch in &cli.batch {
        let work = work(&cli, messages_per_batch);
        let rounds: Result<Vec<_>, _> = (0..cli.rounds as usize)
            .map(|number| round(&systems, &work, &parent, number))
            .collect();
        let of_batch = summarise(&systems, &work, &rounds?);
        print_table(&work, &of_batch);
        figures.extend(of_batch);
    }
    if let Some(path) = &cli.json {
        let result = serde_json::json!({
            "host": Host::read(Some(&parent)), "load_average": load, "fio": fio,
            "payload_bytes": cli.payload, "queues": QUEUES, "rounds": cli.rounds,
            "systems": figures,
        });
        fs::write(path, format!("{result:#}\n"))?;
    }
    Ok(())
}

fn work(cli: &Cli, messages_per_batch: u32) -> Work {
    let bytes_per_batch = Work::bytes_per_batch(messages_per_batch, cli.payload);
    let batches_max = u32::try_from(BYTES_MAX / bytes_per_batch).expect("at most 48 MiB / 4096");
    Work {
        batches: cli.batches.min(batches_max).max(2),
        messages_per_batch,
        envelope_bytes: cli.payload,
        bytes_per_batch,
    }
}

/// Every system once, beginning with another one each time. Turns in the order of `systems`, whose
/// first one is the yardstick.
fn round(
    systems: &[System],
    work: &Work,
    parent: &Path,
    number: usize,
) -> Result<Vec<Turn>, Box<dyn Error>> {
    let mut turns = vec![None; systems.len()];
    for step in 0..systems.len() {
        let index = (number + step) % systems.len();
        let directory = tempfile::tempdir_in(parent)?;
        let outcome = systems[index].run(work, directory.path())?;
        let messages = f64::from(work.batches) * f64::from(work.messages_per_batch);
        let seconds = outcome.time.as_secs_f64();
        turns[index] = Some(Turn {
            messages_per_second: messages / seconds,
            messages_per_second_all_in: messages / outcome.time_all_in.as_secs_f64(),
            batches_per_second: f64::from(work.batches) / seconds,
            batch_us_p50: outcome.percentile(50).as_secs_f64() * 1e6,
            batch_us_p99: outcome.percentile(99).as_secs_f64() * 1e6,
            ratio: 1.0,
        });
    }
    let mut turns: Vec<Turn> = turns.into_iter().flatten().collect();
    let of_yardstick = turns[0].messages_per_second;
    turns.iter_mut().for_each(|turn| turn.ratio = turn.messages_per_second / of_yardstick);
    Ok(turns)
}

fn summarise(systems: &[System], work: &Work, rounds: &[Vec<Turn>]) -> Vec<Figures> {
    let of_system = |(index, system): (usize, &System)| {
        let turns: Vec<_> = rounds.iter().map(|round| round[index]).collect();
        let of = |get: fn(&Turn) -> f64| median(turns.iter().map(get).collect());
        let median = Turn {
            messages_per_second: of(|turn| turn.messages_per_second),
            messages_per_second_all_in: of(|turn| turn.messages_per_second_all_in),
            batches_per_second: of(|turn| turn.batches_per_second),
            batch_us_p50: of(|turn| turn.batch_us_p50),
            batch_us_p99: of(|turn| turn.batch_us_p99),
            ratio: of(|turn| turn.ratio),
        };
        Figures {
            system: system.name(),
            messages_per_batch: work.messages_per_batch,
            bytes_per_batch: work.bytes_per_batch,
            median,
            turns,
        }
    };
    systems.iter().enumerate().map(of_system).collect()
}

fn print_table(work: &Work, figures: &[Figures]) {
    println!(
        "\n{} messages per batch, {} bytes as our store writes them; {} batches a turn",
        work.messages_per_batch, work.bytes_per_batch, work.batches
    );
    println!(
        "{:<18} {:>11} {:>9} {:>8} {:>6} {:>9} {:>9} {:>12}",
        "system", "messages/s", "batches/s", "MB/s", "ratio", "p50 us", "p99 us", "all in, /s"
    );
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let bytes_per_batch = work.bytes_per_batch as f64;
    for Figures { system, median, .. } in figures {
        println!(
            "{system:<18} {:>11.0} {:>9.0} {:>8.1} {:>6.2} {:>9.0} {:>9.0} {:>12.0}",
            median.messages_per_second,
            median.batches_per_second,
            median.batches_per_second * bytes_per_batch / 1e6,
            median.ratio,
            median.batch_us_p50,
            median.batch_us_p99,
            median.messages_per_second_all_in,
        );
    }
    println!(
        "medians of the rounds; MB/s: of our store's bytes; all in: with the zeros ahead, of ours two segments"
    );
}
