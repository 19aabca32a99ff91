//! `ringpost-loadgen`: flags -> plan -> run -> report.
//!
//! Exit status: 0 when every message did what it should, 1 when one did not or the run failed, 2
//! when the flags make no sense.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use ringpost_loadgen::cores::CoreList;
use ringpost_loadgen::gateway::Stop;
use ringpost_loadgen::measure::Measure;
use ringpost_loadgen::plan::{ChatPlan, OfflinePlan};
use ringpost_loadgen::report::page::Story;
use ringpost_loadgen::scenario::chat::Pauses;
use ringpost_loadgen::scenario::{Options, chat, offline};
use serde::Serialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Loads a Ringpost gateway and verifies every message.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Pairs of connected users send to each other.
    Chat(ChatFlags),
    /// Messages for absent devices: fill, restart the gateway, return, drain.
    Offline(OfflineFlags),
}

#[derive(Args)]
struct ChatFlags {
    /// Connected users; each has one partner.
    #[arg(long, value_name = "N")]
    connections: u32,
    /// Messages a second of all users together; 0: closed loop, see --window.
    #[arg(long, value_name = "R")]
    rate: u64,
    /// Seconds.
    #[arg(long, value_name = "S", value_parser = seconds)]
    duration: Duration,
    /// Bytes of one message.
    #[arg(long, value_name = "B")]
    payload: usize,
    /// Messages of one pair that are on their way at once, in the closed loop.
    #[arg(long, value_name = "W", default_value_t = 1)]
    window: u32,
    /// Seconds between the last login and the first message.
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    settle: Duration,
    /// Seconds to wait for stragglers after the load.
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    grace: Duration,
    /// Kill our own gateway with SIGKILL this often during the load, and start it again.
    #[arg(long, value_name = "K", default_value_t = 0, conflicts_with = "target")]
    kill_rounds: u32,
    #[command(flatten)]
    common: CommonFlags,
}

#[derive(Args)]
struct OfflineFlags {
    /// Absent devices, one per user.
    #[arg(long, value_name = "N")]
    devices: u32,
    /// Messages for all of them together.
    #[arg(long, value_name = "M")]
    messages: u64,
    /// Bytes of one message.
    #[arg(long, value_name = "B")]
    payload: usize,
    /// End our own gateway with SIGKILL instead of SIGTERM.
    #[arg(long, conflicts_with = "target")]
    kill: bool,
    #[command(flatten)]
    common: CommonFlags,
}

#[derive(Args)]
struct CommonFlags {
    /// Gateway to load, host:port. Without it, one is started on a temporary directory (TMPDIR).
    #[arg(long, value_name = "ADDR", requires = "data")]
    target: Option<String>,
    /// The target's development directory: ca.pem, token-key.pem, jwks.json.
    #[arg(long, value_name = "DIR", requires = "target")]
    data: Option<PathBuf>,
    /// The target's metrics, http://host:port/metrics, for its CPU time and memory.
    #[arg(long, value_name = "URL", requires = "target")]
    metrics: Option<String>,
    /// Name in the target's certificate, if it is not the host of --target.
    #[arg(long, value_name = "NAME", requires = "target")]
    server_name: Option<String>,
    /// Binary of the gateway to start.
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    gateway: Option<PathBuf>,
    /// Shards of the gateway to start; one per core if not given.
    #[arg(long, value_name = "N", conflicts_with = "target")]
    shards: Option<u16>,
    /// Cores of the gateway to start, for example 0 or 0,2-3; it gets as many shards.
    #[arg(long, value_name = "LIST", conflicts_with = "target")]
    server_cores: Option<CoreList>,
    /// Cores of the load generator, which starts a thread on each.
    #[arg(long, value_name = "LIST")]
    client_cores: Option<CoreList>,
    /// Where to write the report as one HTML page.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Where to write the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Threads; half of the cores if not given, the gateway has the other half.
    #[arg(long, value_name = "T")]
    threads: Option<usize>,
    /// Decides when each user sends, and the content of payloads.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Logins of one thread at the same time.
    #[arg(long, value_name = "N", default_value_t = 64)]
    connecting_max: u32,
    /// Microseconds between two looks for due messages.
    #[arg(long, value_name = "US", default_value_t = 200)]
    tick_us: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ran = match &cli.scenario {
        Scenario::Chat(flags) => run_chat(flags),
        Scenario::Offline(flags) => run_offline(flags),
    };
    ran.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(FAILED)
    })
}

fn run_chat(flags: &ChatFlags) -> Result<ExitCode> {
    let plan = ChatPlan {
        connections: flags.connections,
        rate_per_s: flags.rate,
        duration: flags.duration,
        payload_bytes: flags.payload,
        window: flags.window,
        kill_rounds: flags.kill_rounds,
        seed: flags.common.seed,
    };
    let options = flags.common.options();
    if let Err(error) = plan.check().and_then(|()| options.check()) {
        return Ok(usage(&error));
    }
    let pauses = Pauses { settle: flags.settle, grace: flags.grace };
    let result = chat::run(&plan, pauses, &options)?;
    println!("{:<30} {:.2} s", "ramp", result.ramp.as_secs_f64());
    flags.common.publish(&result.story(), &result.report)?;
    if result.unsent > 0 {
        eprintln!("warning: {} planned messages were not sent: overload", result.unsent);
    }
    explain(&result.measure, result.unanswered);
    Ok(verdict(result.is_clean()))
}

fn run_offline(flags: &OfflineFlags) -> Result<ExitCode> {
    let plan = OfflinePlan {
        devices: flags.devices,
        messages: flags.messages,
        payload_bytes: flags.payload,
        seed: flags.common.seed,
    };
    let options = flags.common.options();
    if let Err(error) = plan.check().and_then(|()| options.check()) {
        return Ok(usage(&error));
    }
    let how = if flags.kill { Stop::Kill } else { Stop::Drain };
    let result = offline::run(&plan, how, &options)?;
    flags.common.publish(&result.story(), &result.report)?;
    explain(&result.measure, result.unanswered);
    Ok(verdict(result.is_clean() && result.measure.sent == plan.messages))
}

impl CommonFlags {
    fn options(&self) -> Options {
        Options {
            target: self.target.clone(),
            data: self.data.clone(),
            metrics: self.metrics.clone(),
            server_name: self.server_name.clone(),
            gateway: self.gateway.clone(),
            shards: self.shards,
            server_cores: self.server_cores.clone(),
            client_cores: self.client_cores.clone(),
            threads: self.threads,
            seed: self.seed,
            connecting_max: self.connecting_max,
            tick: Duration::from_micros(self.tick_us),
        }
    }
}

impl CommonFlags {
    /// The table to the terminal, the rest where it is wanted.
    fn publish(&self, story: &Story, report: &impl Serialize) -> Result<()> {
        let write = |path: &Path, text: String| {
            std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
        };
        print!("{}", story.rows);
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(report).context("write the report as JSON")?;
            write(path, text + "\n")?;
        }
        if let Some(path) = &self.report {
            write(path, story.html())?;
        }
        Ok(())
    }
}

/// What the table does not show, when there is any.
fn explain(measure: &Measure, unanswered: u64) {
    let faults = [
        (unanswered, "Sends have no answer"),
        (measure.corrupted, "payloads came damaged, or to the wrong device"),
        (measure.gaps, "Gaps: the server dropped messages"),
        (measure.reconnects, "connections were lost and made again"),
        (measure.duplicated_on_wire, "messages came again after a crash and were dropped"),
    ];
    for (count, what) in faults.iter().filter(|(count, _)| *count > 0) {
        eprintln!("warning: {count} {what}");
    }
}

fn verdict(clean: bool) -> ExitCode {
    if clean { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

fn usage(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(USAGE)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;
