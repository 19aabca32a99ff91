//! Power failures under the real gateway: what was written and not synced is forgotten, sector by
//! sector at random, and still nothing accepted is lost. The same rounds on a disk whose syncs lie
//! must find losses, or they would prove nothing.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ringpost_protocol::wire::{self, client_frame, server_frame};

use crate::support::PATIENCE;
use crate::support::disk::FragileDisk;
use crate::support::gateway::{Gateway, Settings};
use crate::support::load::Load;
use crate::support::raw::{Raw, framed, send_frame};

fn gateway_on(disk: &FragileDisk, shards: u16) -> Gateway {
    let data_dir = Some(disk.data_dir());
    Gateway::start(Settings { shards, data_dir, ..Settings::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_failures_under_load_lose_nothing() {
    for seed in 1..=2 {
        power_rounds(seed, 4, false, PATIENCE)
            .await
            .unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes; run by .ci/run"]
async fn many_power_failures_under_load_lose_nothing() {
    let seed = rand::random();
    power_rounds(seed, 25, false, PATIENCE)
        .await
        .unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
}

/// The control experiment. Everybody is online, so what is lost may all have been delivered: the first
/// rounds need not find anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rounds_find_what_a_disk_loses_whose_syncs_lie() {
    for seed in 1..=10 {
        if let Err(fault) = power_rounds(seed, 2, true, Duration::from_secs(5)).await {
            return println!("found: {fault}");
        }
    }
    panic!("nothing was lost that anybody missed");
}

/// Rounds of load, each ended by kill -9 and a power failure: at any moment, or while syncs do not
/// come back, so that much is written and nothing of it is durable.
async fn power_rounds(
    seed: u64,
    rounds: usize,
    syncs_lie: bool,
    patience: Duration,
) -> Result<usize, String> {
    let mut random = StdRng::seed_from_u64(seed);
    let disk = FragileDisk::mount(seed);
    disk.set_sync_delay_us_max(5_000);
    let mut gateway = gateway_on(&disk, 2);
    let load = Load::start(&gateway).await;
    disk.set_syncs_lie(syncs_lie);
    for round in 0..rounds {
        load.wait_for_progress(1).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
        let in_a_sync = round % 2 == 0;
        if in_a_sync {
            disk.hold_syncs();
            disk.wait_for_held_sync();
        }
        let loss = gateway.kill_and(|| disk.lose_power());
        println!("seed {seed}, round {round}: {loss:?}");
        assert!(!in_a_sync || loss.sectors_kept + loss.sectors_lost > 0, "what was to be synced?");
        disk.restore_power();
        gateway.try_restart()?;
    }
    disk.set_syncs_lie(false);
    let messages = load.finish(patience).await?;
    println!("seed {seed}: {messages} messages, {:?}", disk.counts());
    Ok(messages)
}

#[test]
fn what_was_accepted_survives_a_power_failure() {
    assert_eq!(accepted_and_lost(7, false), 0);
}

/// The control experiment.
#[test]
fn a_disk_whose_syncs_lie_loses_what_was_accepted() {
    let lost = accepted_and_lost(7, true);
    println!("{lost} of {ACCEPTED} lost");
    assert!(lost > 0);
}

/// Messages to an absent device that were accepted and not delivered after a power failure.
fn accepted_and_lost(seed: u64, syncs_lie: bool) -> u64 {
    let disk = FragileDisk::mount(seed);
    let mut gateway = gateway_on(&disk, 1);
    drop(Raw::open(&gateway, "bob", "phone"));
    let mut alice = Raw::open(&gateway, "alice", "phone");
    disk.set_syncs_lie(syncs_lie);
    for send_seq in 1..=ACCEPTED {
        alice.send(client_frame::Frame::Send(send_frame(send_seq, "bob", &send_seq.to_string())));
        assert!(alice.expect_answer().1.is_ok());
    }
    println!("{:?}", gateway.kill_and(|| disk.lose_power()));
    disk.restore_power();
    disk.set_syncs_lie(false);
    if let Err(log) = gateway.try_restart() {
        println!("it does not start: {log}");
        return ACCEPTED;
    }
    let mut bob = Raw::open(&gateway, "bob", "phone");
    let mut delivered = Vec::new();
    loop {
        match bob.read_frame().expect("the connection has ended") {
            server_frame::Frame::Deliver(deliver) => delivered.push(deliver.send_seq),
            server_frame::Frame::CaughtUp(_) => break,
            _ => {}
        }
    }
    let expected = (1..=ACCEPTED).filter(|send_seq| delivered.contains(send_seq));
    assert!(expected.clone().eq(delivered.iter().copied()), "in order, each once: {delivered:?}");
    ACCEPTED - expected.count() as u64
}

/// While a sync does not come back, nobody is told of what it shall make durable: neither the
/// sender nor the recipient; and the shard goes on serving.
#[test]
fn nothing_is_said_before_its_sync_has_returned() {
    let disk = FragileDisk::mount(3);
    let gateway = gateway_on(&disk, 1);
    let mut bob = Raw::open(&gateway, "bob", "phone");
    let mut alice = Raw::open(&gateway, "alice", "phone");
    disk.hold_syncs();
    alice.send(client_frame::Frame::Send(send_frame(1, "bob", "text")));
    disk.wait_for_held_sync();
    for device in [&mut alice, &mut bob] {
        device.send_bytes(&framed(client_frame::Frame::Ping(wire::Ping {})));
        // A frame on its way would come before the answer.
        device.expect(|frame| match frame {
            server_frame::Frame::Pong(_) => Some(()),
            server_frame::Frame::Accepted(_) | server_frame::Frame::Deliver(_) => {
                panic!("said before it was durable: {frame:?}")
            }
            _ => None,
        });
    }
    disk.release_syncs();
    assert!(alice.expect_answer().1.is_ok());
    bob.expect(|frame| matches!(frame, server_frame::Frame::Deliver(_)).then_some(()));
}

const ACCEPTED: u64 = 60;
