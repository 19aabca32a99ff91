//! `ringpost-tuning doctor`: can this host hold N connections, and if not, what to change.
//!
//! Reads only. Exit code 0: it can; 1: something is short; 2: wrong usage.

mod check;
mod readings;
mod report;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use check::{Plan, checks};
use readings::Readings;

/// Checks a host for Ringpost.
#[derive(Parser)]
#[command(name = "ringpost-tuning", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compares kernel, limits and settings with what a number of connections needs.
    Doctor {
        /// Connections that the gateway shall hold at once.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
        connections: u64,
        /// Shards of the gateway; by default one for each core.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=1024))]
        shards: Option<u64>,
        /// Prints JSON instead of a table.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    let Command::Doctor { connections, shards, json } = Arguments::parse().command;
    let readings = Readings::collect();
    let shards = shards.unwrap_or(readings.cores).max(1);
    let plan = Plan { connections, shards };
    let checks = checks(&readings, plan);
    let text = if json { report::json(plan, &checks)? } else { report::table(plan, &checks) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(if check::is_short(&checks) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
