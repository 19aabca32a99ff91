//! Connections that do nothing cost nothing.

use std::process::Command;

use super::super::EndReason;
use super::world::{SECOND, World};
use ringpost_protocol::limits::QUIC_IDLE_MS;

/// No keep-alive, no probe, no rotation of ids: an idle phone sleeps, and so does the gateway.
#[test]
fn an_idle_connection_sends_nothing_for_an_hour() {
    let mut world = World::new(1);
    let clients: Vec<usize> = (0..20).map(|_| world.connected()).collect();
    world.run_for(10 * SECOND);
    let sent = world.count(|counters| counters.datagrams_sent);
    let received = world.count(|counters| counters.datagrams_received);
    world.run_for(3_600 * SECOND);
    assert_eq!(world.count(|counters| counters.datagrams_sent), sent);
    assert_eq!(world.count(|counters| counters.datagrams_received), received);
    for client in clients {
        world.clients[client].received.clear();
        world.clients[client].send(&b"still there"[..]);
        world.run_until(SECOND, |world| world.clients[client].received == b"still there");
    }
    world.run_for((QUIC_IDLE_MS / 1_000 + 60) * SECOND);
    assert_eq!(world.shards[0].endpoint.connections(), 0);
    assert!(world.shards[0].ended.iter().all(|(_, reason)| *reason == EndReason::TimedOut));
}

/// Trap: an entry of a lazy timer that is linked anew must come nearer again. With it broken, what
/// is lost after a quiet time is never sent again.
#[test]
fn what_is_lost_after_a_quiet_time_is_sent_again() {
    let mut world = World::new(1);
    let client = world.connected();
    for round in 0..30_u8 {
        world.run_for(u64::from(round) * 7 * SECOND);
        let key = world.any_stream();
        world.clients[client].received.clear();
        world.network.loss_percent = 100;
        world.shards[0].endpoint.write(key, &mut vec![vec![round; 3_000].into()]);
        world.run_for(SECOND / 20);
        world.network.loss_percent = 0;
        world.run_until(5 * SECOND, |world| world.clients[client].received == [round; 3_000]);
    }
}

/// Acceptance test 21, its first half: what an idle connection holds, allocator and all. In a
/// process of its own, where nobody else takes memory meanwhile.
#[test]
fn an_idle_connection_is_small() {
    if std::env::var_os(ALONE).is_some() {
        return measure_idle_connections();
    }
    let name = "transport::quic::tests::idle::an_idle_connection_is_small";
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("per idle connection"), "{output:?}");
    println!("{said}");
}

const ALONE: &str = "RINGPOST_TEST_ALONE";

/// Clients come and go, so that their memory is used again; the gateway's connections stay.
fn measure_idle_connections() {
    let mut world = World::new(1);
    let connect = |world: &mut World, count: usize| {
        for _ in 0..count {
            world.connected();
            world.run_for(SECOND);
            world.clients.clear();
        }
    };
    connect(&mut world, 200);
    let (before_bytes, count) = (resident_bytes(), 1_000);
    connect(&mut world, count);
    assert_eq!(world.shards[0].endpoint.connections(), 200 + count);
    let each_bytes = (resident_bytes() - before_bytes) / count;
    println!("{each_bytes} bytes per idle connection");
    assert!(each_bytes < 14_500, "{each_bytes} bytes per idle connection");
}

/// Of this process.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4_096
}
