//! The scenarios with bad clients against a small server: clean runs are clean, and each fault of the
//! server is found while clients vanish, stop reading, or are killed.

#![allow(clippy::unwrap_used, reason = "tests, and a server that exists only for them")]

mod server;

use std::path::PathBuf;
use std::time::Duration;

use ringpost_loadgen::plan::churn::ChurnPlan;
use ringpost_loadgen::plan::pressure::{Pressure, PressurePlan};
use ringpost_loadgen::plan::{ChatPlan, HandshakePlan};
use ringpost_loadgen::scenario::churn::{self, ChurnResult};
use ringpost_loadgen::scenario::handshake;
use ringpost_loadgen::scenario::pressure::{self, PressureResult};

use server::{Fault, options};

fn chat(rate_per_s: u64, duration: Duration) -> ChatPlan {
    ChatPlan {
        connections: 8,
        rate_per_s,
        duration,
        payload_bytes: 100,
        window: 1,
        kill_rounds: 0,
        seed: 3,
    }
}

/// Clients vanish at this rate; no apps.
fn run_churn(vanish_per_s: f64, fault: Fault) -> ChurnResult {
    let data = tempfile::tempdir().unwrap();
    let plan = ChurnPlan {
        chat: chat(500, Duration::from_secs(2)),
        vanish_per_s,
        absence_max: Duration::from_millis(200),
        grace: Duration::from_secs(2),
        kill_gateway_rounds: 0,
        kill_client_rounds: 0,
        client_processes: 0,
        users_per_process: 0,
        durable_rate_per_s: 0,
    };
    churn::run(&plan, PathBuf::new(), &options(data.path(), fault)).unwrap()
}

/// Apps are killed; nobody else does anything of note.
fn run_apps(fault: Fault) -> ChurnResult {
    let data = tempfile::tempdir().unwrap();
    let plan = ChurnPlan {
        chat: ChatPlan { connections: 2, ..chat(1, Duration::from_secs(5)) },
        vanish_per_s: 0.0,
        absence_max: Duration::ZERO,
        grace: Duration::from_secs(4),
        kill_gateway_rounds: 0,
        kill_client_rounds: 2,
        client_processes: 2,
        users_per_process: 2,
        durable_rate_per_s: 100,
    };
    let executable = PathBuf::from(env!("CARGO_BIN_EXE_ringpost-loadgen"));
    churn::run(&plan, executable, &options(data.path(), fault)).unwrap()
}

fn run_pressure(pressure: Pressure, count: u32) -> PressureResult {
    let data = tempfile::tempdir().unwrap();
    let plan = PressurePlan {
        chat: chat(200, Duration::from_secs(2)),
        pressure,
        count,
        mailbox_messages: 50,
        mailbox_payload_bytes: 1_000,
        pause_ns: 50_000_000,
    };
    pressure::run(&plan, &options(data.path(), Fault::Nothing)).unwrap()
}

#[test]
fn clients_vanish_and_nothing_is_lost() {
    let result = run_churn(20.0, Fault::Nothing);
    let report = &result.report;
    assert!(report.vanished >= 20, "{}", report.vanished);
    assert_eq!((report.sent, report.accepted, report.delivered), (1_000, 1_000, 1_000));
    assert!(result.is_clean());
}

#[test]
fn loss_under_churn_is_found() {
    let result = run_churn(20.0, Fault::Lose(400));
    assert_eq!((result.report.lost, result.report.delivered), (1, 999));
    assert!(!result.is_clean());
}

#[test]
fn doubling_under_churn_is_found() {
    let result = run_churn(20.0, Fault::Double(400));
    assert_eq!((result.report.duplicated, result.report.lost), (1, 0));
    assert!(!result.is_clean());
}

#[test]
fn reordering_under_churn_is_found() {
    let result = run_churn(20.0, Fault::Swap(400));
    assert_eq!((result.report.reordered, result.report.lost), (1, 0));
    assert!(!result.is_clean());
}

#[test]
fn apps_that_are_killed_lose_nothing() {
    let result = run_apps(Fault::Nothing);
    let durable = result.report.durable.unwrap();
    assert_eq!(result.report.client_kills, 2);
    assert!(durable.taken > 100 && durable.delivered >= durable.taken, "{durable:?}");
    assert_eq!(durable.refused, 0);
    assert!(result.is_clean(), "{durable:?}");
}

#[test]
fn a_message_lost_to_an_app_is_found() {
    // Message 50 of all is one between apps: the others send ten in the whole run.
    let result = run_apps(Fault::Lose(50));
    let durable = result.report.durable.unwrap();
    assert_eq!(durable.lost + result.report.lost, 1, "{durable:?}");
    assert!(!result.is_clean());
}

#[test]
fn readers_that_stop_get_their_mail_in_the_end() {
    for pressure in [Pressure::StopReadingFull, Pressure::ReadSlowly] {
        let result = run_pressure(pressure, 6);
        let mail = result.mail.as_ref().unwrap();
        assert_eq!((mail.accepted, mail.delivered), (300, 300));
        assert_eq!(result.report.quiet.sent, 400);
        assert!(result.report.loaded.delivered_us.p99 > 0 && result.is_clean());
    }
}

#[test]
fn a_server_that_believes_every_token_is_found() {
    let result = run_pressure(Pressure::WrongToken, 20);
    assert_eq!((result.report.others.wrongly_welcomed, result.report.others.refused), (20, 0));
    assert!(!result.is_clean());
}

#[test]
fn connections_are_held_open() {
    for pressure in [Pressure::HalfOpen, Pressure::Trickle] {
        let result = run_pressure(pressure, 6);
        assert!(result.report.others.opened >= 6);
        assert!(result.is_clean());
    }
}

#[test]
fn full_and_resumed_logins_are_told_apart() {
    let data = tempfile::tempdir().unwrap();
    let plan = HandshakePlan { connections: 4, duration: Duration::from_secs(1), seed: 3 };
    let result = handshake::run(&plan, &options(data.path(), Fault::Nothing)).unwrap();
    let rows = &result.report.logins;
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row.count > 0 && (row.resumed > 0) == row.resume));
    assert!(result.is_clean());
}
