//! `ringpost-loadgen`: flags -> plan -> run -> report.
//!
//! Exit status: 0 when every message did what it should, 1 when one did not or the run failed, 2
//! when the flags make no sense.
#![forbid(unsafe_code)]

mod flags;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use ringpost_loadgen::durable;
use ringpost_loadgen::gateway::Stop;
use ringpost_loadgen::measure::Measure;
use ringpost_loadgen::plan::pressure::PressurePlan;
use ringpost_loadgen::scenario::{
    chat, churn, group, handover, handshake, keys, offline, pressure,
};

use flags::app::DurableAppFlags;
use flags::group::GroupFlags;
use flags::handover::HandoverFlags;
use flags::keys::KeysFlags;
use flags::{
    AbuseFlags, ChatFlags, ChurnFlags, CommonFlags, HandshakeFlags, OfflineFlags, SlowFlags,
};

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
    /// A share of the users returns to full mailboxes and stops reading, or reads slowly.
    Slow(SlowFlags),
    /// Users vanish without FIN and return; gateway and clients are killed; nothing may be lost.
    Churn(ChurnFlags),
    /// Users change their network: QUIC moves along, TCP breaks within a frame and resumes.
    ///
    /// The same load twice. Over QUIC each change takes a client to another port and, on loopback, to
    /// another address; what it was saying and what was under way to the old one is lost. Over TCP each
    /// change cuts the connection at a random byte of what the client sends. A change is over with the
    /// first frame that comes after it.
    Handover(HandoverFlags),
    /// Random members of one group send; all others get everything, in one order.
    Group(GroupFlags),
    /// Users publish keys, others take them; stocks run low, are refilled, and run out.
    ///
    /// Every one-time key is looked at: none may go to two, none may be lost, and an empty stock gives
    /// the signed prekey alone. A gateway of one's own needs user_key_reads_per_hour and
    /// device_one_time_keys_per_hour to be 0, as the one that is started has them.
    Keys(KeysFlags),
    /// Nothing but logins: full and resumed handshakes, with and without ML-KEM.
    Handshake(HandshakeFlags),
    /// Well-behaved users beside others that abuse the gateway.
    Abuse(AbuseFlags),
    #[command(hide = true)]
    DurableApp(DurableAppFlags),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ran = match &cli.scenario {
        Scenario::Chat(flags) => run_chat(flags),
        Scenario::Offline(flags) => run_offline(flags),
        Scenario::Slow(flags) => run_pressure(&flags.plan(), &flags.common),
        Scenario::Churn(flags) => run_churn(flags),
        Scenario::DurableApp(flags) => {
            durable::app::run(&flags.plan(), flags.process).map(|()| ExitCode::SUCCESS)
        }
        Scenario::Handover(flags) => run_handover(flags),
        Scenario::Group(flags) => run_group(flags),
        Scenario::Keys(flags) => run_keys(flags),
        Scenario::Handshake(flags) => run_handshake(flags),
        Scenario::Abuse(flags) => run_pressure(&flags.plan(), &flags.common),
    };
    ran.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(FAILED)
    })
}

fn run_chat(flags: &ChatFlags) -> Result<ExitCode> {
    let (plan, options) = (flags.plan(), flags.common.options());
    if let Err(error) = plan.check().and_then(|()| options.check()) {
        return Ok(usage(&error));
    }
    let result = chat::run(&plan, flags.pauses(), &options)?;
    println!("{:<34} {:.2} s", "ramp", result.ramp.as_secs_f64());
    flags.common.publish(&result.story(), &result.report)?;
    if result.unsent > 0 {
        eprintln!("warning: {} planned messages were not sent: overload", result.unsent);
    }
    explain(&result.measure, result.unanswered);
    Ok(verdict(result.is_clean()))
}

fn run_offline(flags: &OfflineFlags) -> Result<ExitCode> {
    let (plan, options) = (flags.plan(), flags.common.options());
    if let Err(error) = plan.check().and_then(|()| options.check()) {
        return Ok(usage(&error));
    }
    let how = if flags.kill { Stop::Kill } else { Stop::Drain };
    let result = offline::run(&plan, how, &options)?;
    flags.common.publish(&result.story(), &result.report)?;
    explain(&result.measure, result.unanswered);
    Ok(verdict(result.is_clean() && result.measure.sent == plan.messages))
}

fn run_churn(flags: &ChurnFlags) -> Result<ExitCode> {
    let (plan, options) = (flags.plan(), flags.common.options());
    let checked = plan.and_then(|plan| plan.check().map(|()| plan));
    let plan = match checked.and_then(|plan| options.check().map(|()| plan)) {
        Ok(plan) => plan,
        Err(error) => return Ok(usage(&error)),
    };
    let executable = std::env::current_exe().context("find this executable")?;
    let result = churn::run(&plan, executable, &options)?;
    flags.common.publish(&result.story(), &result.report)?;
    explain(&result.measure, result.unanswered);
    Ok(verdict(result.is_clean()))
}

fn run_handover(flags: &HandoverFlags) -> Result<ExitCode> {
    let (plan, options) = (flags.plan(), flags.common.options());
    if let Err(error) = plan.check().and_then(|()| options.check()) {
        return Ok(usage(&error));
    }
    let result = handover::run(&plan, &options)?;
    flags.common.publish(&result.story(), &result.report)?;
    explain(&result.measure, result.unanswered);
    Ok(verdict(result.is_clean()))
}

fn run_group(flags: &GroupFlags) -> Result<ExitCode> {
    let (plan, options) = (flags.plan(), flags.common.options());
    if let Err(error) = plan.check().and_then(|()| options.check()) {
        return Ok(usage(&error));
    }
    let result = group::run(&plan, &options)?;
    flags.common.publish(&result.story(), &result.report)?;
    Ok(verdict(result.is_clean()))
}

fn run_keys(flags: &KeysFlags) -> Result<ExitCode> {
    let (plan, options) = (flags.plan(), flags.common.options());
    if let Err(error) = plan.check().and_then(|()| options.check()) {
        return Ok(usage(&error));
    }
    let result = keys::run(&plan, &options)?;
    flags.common.publish(&result.story(), &result.report)?;
    Ok(verdict(result.is_clean()))
}

fn run_handshake(flags: &HandshakeFlags) -> Result<ExitCode> {
    let (plan, options) = (flags.plan(), flags.common.options());
    if let Err(error) = plan.check().and_then(|()| options.check()) {
        return Ok(usage(&error));
    }
    let result = handshake::run(&plan, &options)?;
    flags.common.publish(&result.story(), &result.report)?;
    Ok(verdict(result.is_clean()))
}

fn run_pressure(plan: &PressurePlan, common: &CommonFlags) -> Result<ExitCode> {
    let options = common.options();
    if let Err(error) = plan.check().and_then(|()| options.check()) {
        return Ok(usage(&error));
    }
    let result = pressure::run(plan, &options)?;
    common.publish(&result.story(), &result.report)?;
    explain(&result.measure, 0);
    Ok(verdict(result.is_clean()))
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

const FAILED: u8 = 1;
const USAGE: u8 = 2;
