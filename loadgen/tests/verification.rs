//! The load generator on a real ring against a small server: clean runs are clean, and each fault
//! of the server is found.

#![allow(clippy::unwrap_used, reason = "tests, and a server that exists only for them")]

mod server;

use std::time::Duration;

use ringpost_loadgen::gateway::Stop;
use ringpost_loadgen::plan::{ChatPlan, OfflinePlan};
use ringpost_loadgen::scenario::chat::{self, ChatResult, Pauses};
use ringpost_loadgen::scenario::offline;

use server::{Fault, options};

fn run_chat(rate_per_s: u64, window: u32, fault: Fault) -> ChatResult {
    let data = tempfile::tempdir().unwrap();
    let plan = ChatPlan {
        connections: 8,
        rate_per_s,
        duration: Duration::from_millis(600),
        payload_bytes: 200,
        window,
        kill_rounds: 0,
        seed: 3,
    };
    let pauses = Pauses { settle: Duration::ZERO, grace: Duration::from_secs(1) };
    chat::run(&plan, pauses, &options(data.path(), fault)).unwrap()
}

#[test]
fn a_clean_open_loop_sends_what_was_planned() {
    let result = run_chat(1_000, 1, Fault::Nothing);
    let report = &result.report;
    assert_eq!((report.sent, report.accepted, report.delivered), (600, 600, 600));
    assert_eq!((report.lost, report.duplicated, report.reordered, report.rejected), (0, 0, 0, 0));
    assert!(report.delivered_us.p50 > 0 && report.delivered_us.max < 5_000_000);
    assert!(result.is_clean() && result.unsent == 0 && result.measure.reconnects == 0);
    assert_eq!(report.server_cpu_us_per_message, None);
}

#[test]
fn a_clean_closed_loop_keeps_the_window_busy() {
    let result = run_chat(0, 4, Fault::Nothing);
    // Four pairs with four messages each, and a server that looks at a socket every millisecond.
    assert!(result.report.delivered > 500, "{}", result.report.delivered);
    assert_eq!(result.report.sent, result.report.delivered);
    assert!(result.is_clean());
}

#[test]
fn a_lost_message_is_found() {
    let result = run_chat(1_000, 1, Fault::Lose(100));
    assert_eq!((result.report.lost, result.report.delivered), (1, 599));
    assert!(!result.is_clean());
}

#[test]
fn a_doubled_message_is_found() {
    let result = run_chat(1_000, 1, Fault::Double(100));
    assert_eq!((result.report.duplicated, result.report.lost), (1, 0));
    assert_eq!(result.report.delivered, 600);
    assert!(!result.is_clean());
}

#[test]
fn swapped_messages_are_found() {
    let result = run_chat(1_000, 1, Fault::Swap(100));
    assert_eq!((result.report.reordered, result.report.lost), (1, 0));
    assert!(!result.is_clean());
}

#[test]
fn a_damaged_message_is_found() {
    let result = run_chat(1_000, 1, Fault::Damage(100));
    assert_eq!((result.measure.corrupted, result.report.lost), (1, 1));
    assert!(!result.is_clean());
}

#[test]
fn a_rejected_message_is_neither_lost_nor_clean() {
    let result = run_chat(1_000, 1, Fault::Reject(100));
    assert_eq!((result.report.rejected, result.report.lost), (1, 0));
    assert_eq!(result.report.accepted, 599);
    assert!(!result.is_clean());
}

#[test]
fn a_client_whose_connection_breaks_returns_and_replays() {
    let result = run_chat(1_000, 1, Fault::HangUp(100));
    assert_eq!(result.measure.reconnects, 1);
    assert_eq!((result.report.accepted, result.report.delivered), (600, 600));
    assert!(result.is_clean());
}

#[test]
fn absent_devices_get_their_mail_in_order() {
    let data = tempfile::tempdir().unwrap();
    let plan = OfflinePlan {
        devices: 20,
        messages: 3_000,
        payload_bytes: 100,
        mailbox_records_max: 1_000,
        seed: 3,
    };
    let result = offline::run(&plan, Stop::Drain, &options(data.path(), Fault::Nothing)).unwrap();
    let report = &result.report;
    assert_eq!((report.accepted, report.delivered), (3_000, 3_000));
    assert!(result.is_clean());
    assert_eq!(report.restart_ms, None);
}

#[test]
fn mail_lost_for_an_absent_device_is_found() {
    let data = tempfile::tempdir().unwrap();
    let plan = OfflinePlan {
        devices: 4,
        messages: 40,
        payload_bytes: 100,
        mailbox_records_max: 1_000,
        seed: 3,
    };
    let fault = Fault::Lose(7);
    let result = offline::run(&plan, Stop::Drain, &options(data.path(), fault)).unwrap();
    assert_eq!((result.report.lost, result.report.delivered), (1, 39));
    assert!(!result.is_clean());
}
