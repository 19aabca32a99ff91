//! How long a store takes to open, with a checkpoint of its index and without one, and what the
//! index of a queued record costs. Fills a store on a real directory, then opens it in processes
//! of their own, so that each begins with empty memory.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Parser;
use ringpost_bench::disk::{self, BackgroundDisk};
use ringpost_bench::load_average;
use ringpost_bench::store::OpenStore;
use ringpost_engine::data_dir::ShardDisk;
use ringpost_loadgen::host::Host;
use ringpost_storage::{BlockingDisk, Opening, RecoveryReport, Store, StoreConfig};
use serde_json::{Value, json};

/// Seconds and MB/s of a restart, and index bytes per queued record.
#[derive(Parser)]
struct Cli {
    /// Messages to queue
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// Mailboxes that they are spread over
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    mailboxes: u64,
    /// Bytes of each envelope
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// Messages per batch
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    batch: u64,
    /// Where to put the files; removed afterwards [default: a temporary directory]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Also write the result here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Open what this directory holds, print figures, end: what this program starts itself for
    #[arg(long, hide = true, value_name = "DIR")]
    open: Option<PathBuf>,
    /// With --open: writes a checkpoint
    #[arg(long, hide = true)]
    checkpoint: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let cli = Cli::parse();
    if let Some(directory) = &cli.open {
        println!("{}", open_once(directory, cli.checkpoint)?);
        return Ok(());
    }
    let parent = cli.directory.clone().unwrap_or_else(std::env::temp_dir);
    let directory = tempfile::tempdir_in(parent)?;
    let path = directory.path();
    println!("{}", ringpost_bench::host_facts("restart", Some(path)));
    println!("# load average when it began: {}", load_average());
    println!(
        "# {} messages of {} bytes in {} mailboxes, {} per batch; segments of 64 MiB",
        cli.records, cli.payload, cli.mailboxes, cli.batch
    );
    let began = Instant::now();
    let log_bytes = fill(&cli, path);
    println!("filled in {:.1} s", began.elapsed().as_secs_f64());

    println!("\n{}", header());
    let mut runs = Vec::new();
    for (name, is_cold) in [("whole log, cold", true), ("whole log, warm", false)] {
        runs.push(measure(name, path, is_cold, false, log_bytes)?);
    }
    let written = measure("(writes the checkpoint)", path, false, true, log_bytes)?;
    for (name, is_cold) in [("checkpoint, cold", true), ("checkpoint, warm", false)] {
        runs.push(measure(name, path, is_cold, false, log_bytes)?);
    }
    summary(&written, &runs);
    if let Some(file) = &cli.json {
        let result = json!({
            "host": Host::read(Some(path)), "records": cli.records, "mailboxes": cli.mailboxes,
            "payload_bytes": cli.payload, "records_per_batch": cli.batch,
            "log_bytes": log_bytes, "load_average": load_average(),
            "checkpoint": written, "opened": runs,
        });
        fs::write(file, format!("{result:#}\n"))?;
    }
    Ok(())
}

fn config() -> StoreConfig {
    // Only on request.
    StoreConfig { checkpoint_log_bytes: u64::MAX, ..StoreConfig::new(0, STORE_ID) }
}

/// Returns the length of the log.
fn fill(cli: &Cli, directory: &Path) -> u64 {
    let (store, disk, _) = open(directory);
    let mut store = OpenStore::with(store, disk, cli.payload, cli.mailboxes);
    let mut left = cli.records;
    while left > 0 {
        let batch = left.min(cli.batch);
        (0..batch).for_each(|_| store.append());
        store.commit();
        left -= batch;
    }
    store.prepare();
    store.file_bytes()
}

/// Opens the store as the gateway does: reads are under way while others are replayed.
fn open(directory: &Path) -> (Store, ShardDisk, RecoveryReport) {
    let disk = BackgroundDisk::new(disk::files_in(directory));
    let mut opening = Opening::new(config(), HASH_SEED);
    loop {
        while let Some((id, op)) = opening.poll_disk() {
            disk.start(id, op);
        }
        if opening.is_done() {
            break;
        }
        let (id, result) = disk.wait();
        opening.handle_disk(id, result);
    }
    let (store, report) = opening.finish().expect("the directory is this program's own");
    (store, disk::files_in(directory), report)
}

/// In a process of its own.
fn open_once(directory: &Path, writes_checkpoint: bool) -> Result<Value, Box<dyn Error>> {
    let rss_bytes_before = rss_bytes()?;
    let began = Instant::now();
    let (mut store, mut disk, report) = open(directory);
    let seconds = began.elapsed().as_secs_f64();
    let rss_bytes_after = rss_bytes()?;
    let stats = store.stats();
    let mut result = json!({
        "seconds": seconds, "entries": report.entries, "mailboxes": report.mailboxes,
        "log_bytes_read": report.bytes_read,
        "checkpoint_bytes_read": report.checkpoint_bytes_read,
        "index_bytes": stats.index_bytes,
        "rss_bytes_gained": rss_bytes_after.saturating_sub(rss_bytes_before),
        "used_checkpoint": report.checkpoint.is_some(), "damaged": report.damaged.len(),
    });
    if writes_checkpoint {
        let began = Instant::now();
        store.request_checkpoint();
        while let Some((id, op)) = store.poll_disk(NOW_MS) {
            let result = disk.execute(op);
            store.handle_disk(NOW_MS, id, result);
        }
        result["written_bytes"] = store.stats().checkpoint_bytes_written.into();
        result["written_seconds"] = began.elapsed().as_secs_f64().into();
    }
    Ok(result)
}

fn measure(
    name: &str,
    directory: &Path,
    is_cold: bool,
    writes_checkpoint: bool,
    log_bytes: u64,
) -> Result<Value, Box<dyn Error>> {
    if is_cold {
        disk::drop_page_cache(directory)?;
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--open").arg(directory);
    if writes_checkpoint {
        command.arg("--checkpoint");
    }
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into());
    }
    let mut run: Value = serde_json::from_slice(&output.stdout)?;
    run["name"] = name.into();
    row(name, &run, log_bytes);
    Ok(run)
}

fn header() -> String {
    format!(
        "{:<24} {:>8} {:>10} {:>13} {:>13} {:>14} {:>12}",
        "opened from",
        "seconds",
        "MB/s",
        "log read",
        "image read",
        "index B/record",
        "RSS B/record"
    )
}

/// MB/s: of the whole log, whether it was read or not.
fn row(name: &str, run: &Value, log_bytes: u64) {
    let figure = |key: &str| run[key].as_f64().unwrap_or_default();
    let entries = figure("entries").max(1.0);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let log_bytes = log_bytes as f64;
    println!(
        "{name:<24} {:>8.2} {:>10.0} {:>13} {:>13} {:>14.2} {:>12.2}",
        figure("seconds"),
        log_bytes / 1e6 / figure("seconds"),
        run["log_bytes_read"].to_string(),
        run["checkpoint_bytes_read"].to_string(),
        figure("index_bytes") / entries,
        figure("rss_bytes_gained") / entries,
    );
}

fn summary(written: &Value, runs: &[Value]) {
    let first = &runs[0];
    println!(
        "\n{} queued records in {} mailboxes; the checkpoint has {} bytes and took {:.2} s to write",
        first["entries"],
        first["mailboxes"],
        written["written_bytes"],
        written["written_seconds"].as_f64().unwrap_or_default()
    );
    println!(
        "MB/s: length of the whole log by the time. RSS: with the read buffers of the opening"
    );
}

fn rss_bytes() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no VmRSS")?;
    Ok(kib.trim().parse::<u64>()? << 10)
}

const STORE_ID: u64 = 0x5eed;
const HASH_SEED: u64 = 7;
/// The clock stands still: a requested checkpoint is not paced.
const NOW_MS: u64 = 1;
