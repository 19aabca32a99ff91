//! The scenario `handover` against a small server: clean runs are clean, and what a server may do
//! wrong with clients that move is found.

#![allow(clippy::unwrap_used, reason = "tests, and a server that exists only for them")]

mod server;

use std::time::Duration;

use ringpost_loadgen::plan::ChatPlan;
use ringpost_loadgen::plan::handover::HandoverPlan;
use ringpost_loadgen::report::Tally;
use ringpost_loadgen::scenario::handover::{self, HandoverResult};

use server::{Fault, options, quic};

fn run(fault: Fault, migration: bool) -> anyhow::Result<HandoverResult> {
    let data = tempfile::tempdir().unwrap();
    let options = options(data.path(), fault);
    let target = options.target.as_ref().unwrap().parse().unwrap();
    quic::start(data.path(), target, migration);
    let plan = HandoverPlan {
        chat: ChatPlan {
            connections: 8,
            rate_per_s: 400,
            duration: Duration::from_secs(1),
            payload_bytes: 100,
            window: 1,
            kill_rounds: 0,
            seed: 3,
        },
        rebinds: 3,
        grace: Duration::from_secs(1),
    };
    handover::run(&plan, &options)
}

#[test]
fn clients_move_or_resume_and_nothing_is_lost() {
    let result = run(Fault::Nothing, true).unwrap();
    let (quic, tcp) = (&result.report.quic, &result.report.reconnect);
    for row in [quic, tcp] {
        assert_eq!((row.handovers, row.handovers_planned), (24, 24));
        let Tally { sent, accepted, delivered, lost, duplicated, reordered, .. } = row.messages;
        assert_eq!((sent, accepted, delivered), (400, 400, 400));
        assert_eq!((lost, duplicated, reordered), (0, 0, 0));
        assert!(row.silence_ms.p50 >= row.recovery_ms.p50 && row.recovery_ms.max > 0.0);
    }
    assert_eq!((quic.handshakes_per_connection, quic.handshakes_resumed), (1.0, 0));
    assert_eq!((tcp.handshakes_per_connection, tcp.handshakes_resumed), (4.0, 24));
    assert_eq!(result.report.foreign_datagrams, None);
    assert!(result.is_clean());
    let page = result.story().html();
    assert!(page.contains("QUIC: silence, ms") && page.contains("TCP resumes"), "{page}");
}

/// (lost, duplicated, reordered)
fn wrong(fault: Fault) -> (u64, u64, u64) {
    let result = run(fault, true).unwrap();
    assert!(!result.is_clean());
    let (quic, tcp) = (result.report.quic.messages, result.report.reconnect.messages);
    (quic.lost + tcp.lost, quic.duplicated + tcp.duplicated, quic.reordered + tcp.reordered)
}

#[test]
fn what_goes_wrong_while_clients_move_is_found() {
    assert_eq!(wrong(Fault::Lose(200)), (1, 0, 0));
    assert_eq!(wrong(Fault::Double(200)), (0, 1, 0));
}

#[test]
fn what_goes_wrong_while_clients_resume_is_found() {
    assert_eq!(wrong(Fault::Swap(600)), (0, 0, 1));
    assert_eq!(wrong(Fault::Double(600)), (0, 1, 0));
}

#[test]
fn a_server_that_lets_nobody_move_is_found() {
    let result = run(Fault::Nothing, false).unwrap();
    assert!(result.report.quic.handshakes_per_connection > 1.0);
    assert!(!result.is_clean());
}
