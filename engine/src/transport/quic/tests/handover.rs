//! A client that is somewhere else from one packet to the next.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use quinn_proto::ConnectionError;

use super::super::QuicLimits;
use super::world::{MS, SECOND, Steering, World, address, pattern};

/// Sends, moves to another port or address, and so on; whether everything came back.
fn moves(world: &mut World, client: usize, times: u16, patience_ns: u64) -> bool {
    world.clients[client].received.clear();
    let mut expected = Vec::new();
    for step in 0..times {
        let message = pattern(200, u64::from(step));
        expected.extend_from_slice(&message);
        world.rebind(client, u8::try_from(step / 3).unwrap(), 41_000 + step * 7);
        world.clients[client].send(message);
        let (end_ns, length) = (world.now_ns + patience_ns, expected.len());
        if !world.runs_until(end_ns, |world| world.clients[client].received.len() >= length) {
            return false;
        }
    }
    world.clients[client].received == expected
}

fn shards_used(world: &World) -> usize {
    world.shards.iter().filter(|shard| !shard.streams.is_empty()).count()
}

/// Acceptance test 1: 40 moves between ports and addresses, four shards; every byte, one handshake,
/// no datagram on a wrong shard.
#[test]
fn forty_moves_lose_nothing() {
    let mut world = World::new(4);
    // The shard of a client is chance: eight are on two shards once in forty times.
    let mut clients = Vec::new();
    while clients.len() < 8 || shards_used(&world) < 3 {
        assert!(clients.len() < 64, "they are on {} shards", shards_used(&world));
        clients.push(world.connected());
    }
    for &client in &clients {
        assert!(moves(&mut world, client, 40, 5 * SECOND));
    }
    world.run_for(SECOND);
    let count = clients.len() as u64;
    assert_eq!(world.count(|counters| counters.handshakes), count);
    assert_eq!(world.count(|counters| counters.foreign), 0);
    assert_eq!(world.count(|counters| counters.path_changes), count * 40);
    assert_eq!(world.count(|counters| counters.path_validations), count * 40);
    assert_eq!(world.count(|counters| counters.path_failures), 0);
}

/// Acceptance test 2: without the steering program the first move to another shard ends it, and
/// nobody resets the connection; with forwarding it goes on.
#[test]
fn without_steering_only_forwarding_helps() {
    let mut world = World::new(4);
    world.steering = Steering::Hash;
    world.forwards = true;
    let client = world.connected();
    world.forwards = false;
    assert!(!moves(&mut world, client, 40, 20 * SECOND));
    assert!(world.count(|counters| counters.foreign) > 0);
    assert_eq!(world.count(|counters| counters.resets), 0);
    assert!(world.clients[client].lost.is_none());

    let mut world = World::new(4);
    world.steering = Steering::Hash;
    world.forwards = true;
    let client = world.connected();
    assert!(moves(&mut world, client, 40, 5 * SECOND));
    assert_eq!(world.count(|counters| counters.handshakes), 1);
    let foreign = world.count(|counters| counters.foreign);
    assert_eq!(world.count(|counters| counters.forwarded), foreign);
    assert!(foreign >= 30, "{foreign} forwarded");
    assert_eq!(world.count(|counters| counters.misrouted), 0);
}

/// A shard that was held up sees the move and a loss timer of the old path in one turn.
#[test]
fn a_timer_of_the_old_path_that_comes_late_does_no_harm() {
    let mut world = World::new(2);
    let client = world.connected();
    // An acknowledgement that came with the move would be taken for a long round trip.
    world.run_for(SECOND);
    let key = world.any_stream();
    let shard = usize::from(key.shard);
    world.clients[client].received.clear();
    world.clients[client].address = address(client, 99);
    let mut data = vec![Bytes::from_static(b"pushed")];
    world.shards[shard].endpoint.write(key, &mut data);
    world.run_for(MS);
    world.clients[client].connection.ping();
    world.run_for(0);
    world.now_ns += SECOND;
    world.run_until(2 * SECOND, |world| world.clients[client].received == b"pushed");
    assert_eq!(world.count(|counters| counters.panics), 0);
    assert_eq!(world.count(|counters| counters.handshakes), 1);
}

/// Acceptance test 6: what the gateway sent to the old address arrives at the new one.
#[test]
fn a_push_that_was_lost_arrives_after_the_move() {
    let mut world = World::new(2);
    let client = world.connected();
    let key = world.any_stream();
    let shard = usize::from(key.shard);
    world.clients[client].received.clear();
    world.clients[client].address = address(client, 99);
    let mut data = vec![Bytes::from_static(b"pushed")];
    world.shards[shard].endpoint.write(key, &mut data);
    world.run_for(60 * MS);
    assert!(world.clients[client].received.is_empty(), "nobody is at the old address");
    world.clients[client].connection.ping();
    world.run_until(2 * SECOND, |world| world.clients[client].received == b"pushed");
    assert_eq!(world.shards[shard].moved, [address(client, 99)]);
}

/// Acceptance test 7: a client whose address changes while it shakes hands. The transport knows no
/// migration before the handshake is done: the attempt is lost, nothing else is, and the next one
/// succeeds.
#[test]
fn an_address_that_changes_during_the_handshake_costs_that_handshake() {
    for (retry, after_ns) in [(false, 5 * MS), (false, 15 * MS), (true, 5 * MS), (true, 25 * MS)] {
        let limits = QuicLimits { retry_pending: if retry { 0 } else { 1_000 }, ..limits() };
        let mut world = World::with_config(4, |config| config.with_limits(limits.clone()));
        let other = world.connected();
        let client = world.connect();
        world.run_for(after_ns);
        world.rebind(client, 7, 50_001);
        world.run_for(60 * SECOND);
        let first = &world.clients[client];
        assert!(!first.is_connected() || first.lost.is_none());
        if retry && after_ns == 25 * MS {
            // The proof was of the old address.
            assert!(
                matches!(first.lost, Some(ConnectionError::ConnectionClosed(_))),
                "{:?}",
                first.lost
            );
        }
        let again = world.connect();
        world.clients[again].send(&b"again"[..]);
        world.run_until(5 * SECOND, |world| world.clients[again].received == b"again");
        assert!(moves(&mut world, other, 2, 5 * SECOND));
        let open: usize = world.shards.iter().map(|shard| shard.streams.len()).sum();
        assert_eq!(open, 2);
        let pending: usize =
            world.shards.iter().map(|shard| shard.endpoint.handshakes_pending()).sum();
        assert_eq!(pending, 0);
        assert_eq!(world.count(|counters| counters.panics), 0);
    }
}

fn limits() -> QuicLimits {
    QuicLimits { accepts_per_turn: 1_000, handshake_ms_max: 10_000, ..QuicLimits::default() }
}

/// Acceptance test 8: somebody on the way gives a packet another source. The one who is there is
/// not flooded, the old address is taken again although the client is silent, and traffic goes on.
#[test]
fn a_spoofed_source_gets_little_and_is_forgotten() {
    let mut world = World::new(1);
    let client = world.connected();
    let key = world.any_stream();
    let (home, victim) = (world.clients[client].address, address(200, 200));
    world.record = Some(Vec::new());
    world.clients[client].received.clear();
    world.clients[client].address = victim;
    world.clients[client].send(pattern(1_000, 1));
    world.run_for(1);
    world.clients[client].address = home;
    world.shards[0].is_asleep = true;
    world.network.loss_percent = 100;
    world.run_for(11 * MS);
    // The gateway has much to say, and believes that the client is where the victim is.
    let mut data = vec![pattern(60_000, 2)];
    world.shards[0].endpoint.write(key, &mut data);
    // Until shortly before the validation fails, when the client repeats itself only rarely: else
    // its next packet would put things right.
    world.run_for(2_850 * MS);
    world.network.loss_percent = 0;
    world.run_until(20 * SECOND, |world| world.clients[client].received.len() == 60_000);
    let record = world.record.take().unwrap();
    let spoofed = record.iter().filter(|packet| packet.from == victim);
    let (spoofed_bytes, sent_bytes) =
        (spoofed.map(|packet| packet.data.len()).sum::<usize>(), world.sent_to[&victim]);
    // Three times what came, rounded up to a datagram by quinn-proto: the challenge is a whole one.
    let allowed_bytes = (3 * spoofed_bytes).next_multiple_of(1_200);
    assert!(sent_bytes <= allowed_bytes, "{sent_bytes} bytes to the victim for {spoofed_bytes}");
    assert_eq!(world.count(|counters| counters.path_changes), 1);
    assert_eq!(world.count(|counters| counters.path_failures), 1);
    assert_eq!(world.count(|counters| counters.path_validations), 0);
    assert!(world.shards[0].moved.is_empty(), "nobody is told of an address that was not proven");
}

/// Trap: the old path comes back with the timers of the other one, which find nothing under way and
/// repeat nothing.
#[test]
fn an_old_path_that_comes_back_is_tried_at_once() {
    let mut world = World::new(1);
    let client = world.connected();
    world.run_for(SECOND);
    let (home, victim) = (world.clients[client].address, address(200, 200));
    world.shards[0].is_asleep = true;
    world.clients[client].address = victim;
    world.clients[client].send(pattern(1_000, 1));
    world.run_for(11 * MS);
    world.clients.clear();
    world.run_for(2_000 * MS);
    assert!(world.sent_to[&victim] > 1_200);
    while world.count(|counters| counters.path_failures) == 0 {
        world.sent_to.clear();
        world.run_for(10 * MS);
    }
    assert!(world.sent_to.contains_key(&home), "the client is asked");
    world.run_for(30 * SECOND);
    assert_eq!(world.count(|counters| counters.path_failures), 1);
    assert_eq!(world.count(|counters| counters.panics), 0);
}

/// The same, and the client sends on: its next packet is enough.
#[test]
fn a_client_that_sends_on_takes_its_path_back() {
    let mut world = World::new(1);
    let client = world.connected();
    let (home, victim) = (world.clients[client].address, address(200, 200));
    world.clients[client].received.clear();
    world.clients[client].address = victim;
    world.clients[client].send(pattern(1_000, 1));
    world.run_for(1);
    world.clients[client].address = home;
    world.run_for(30 * MS);
    world.clients[client].send(pattern(1_000, 2));
    world.run_until(2 * SECOND, |world| world.clients[client].received.len() == 2_000);
    assert!(world.shards[0].moved.is_empty());
    world.run_for(20 * SECOND);
    assert!(world.clients[client].lost.is_none());
}

/// A gateway with several addresses answers from the one that was asked, on each path.
#[test]
fn answers_come_from_where_the_client_sends_to() {
    let mut world = World::new(1);
    let client = world.connected();
    world.run_for(SECOND);
    let (old, old_local) = (world.clients[client].address, world.local);
    world.local = "198.51.100.9".parse().unwrap();
    world.rebind(client, 1, 41_000);
    world.sent_from.clear();
    world.clients[client].received.clear();
    world.clients[client].send(&b"over there"[..]);
    world.run_until(SECOND, |world| world.clients[client].received == b"over there");
    assert_eq!(world.sent_from[&world.clients[client].address], world.local);
    assert_eq!(world.sent_from[&old], old_local, "the challenge to the old path");
}

/// Acceptance test 9, first half.
#[test]
fn a_client_returns_to_its_first_address() {
    let mut world = World::new(4);
    let client = world.connected();
    let home = world.clients[client].address;
    for round in 0..5_u16 {
        world.rebind(client, 9, 52_000 + round);
        world.clients[client].received.clear();
        world.clients[client].send(&b"away"[..]);
        // Back before the other path is proven, and after.
        let stay_ns = if round % 2 == 0 { 12 * MS } else { SECOND };
        world.run_for(stay_ns);
        world.clients[client].address = home;
        world.clients[client].send(&b"home"[..]);
        world.run_until(5 * SECOND, |world| world.clients[client].received == b"awayhome");
    }
    assert_eq!(world.count(|counters| counters.handshakes), 1);
    world.run_for(20 * SECOND);
    let moved = world.shards.iter().find_map(|shard| shard.moved.last());
    assert_eq!(moved, Some(&home), "the last that was told is where it is");
}

/// Acceptance test 9, second half: two addresses in turn every 50 ms for five seconds, on a way
/// that loses some.
#[test]
fn a_client_that_flaps_between_two_addresses_loses_nothing() {
    let mut world = World::new(4);
    let client = world.connected();
    world.network.loss_percent = 2;
    world.clients[client].received.clear();
    let mut expected = Vec::new();
    for step in 0..100_u16 {
        world.rebind(client, u8::try_from(step % 2).unwrap(), 40_000 + step % 2);
        let message = pattern(300, u64::from(step));
        expected.extend_from_slice(&message);
        world.clients[client].send(message);
        world.run_for(50 * MS);
    }
    let length = expected.len();
    world.run_until(60 * SECOND, |world| world.clients[client].received.len() >= length);
    assert!(world.clients[client].received == expected);
    assert_eq!(world.count(|counters| counters.handshakes), 1);
    assert_eq!(world.count(|counters| counters.foreign), 0);
}

/// Acceptance test 10, first part: more moves than the client has connection ids for, while nothing
/// arrives that could bring it new ones.
#[test]
fn a_client_without_spare_ids_moves_too() {
    let mut world = World::new(4);
    let client = world.connected();
    world.network.loss_percent = 100;
    for step in 0..20 {
        world.rebind(client, 3, 45_000 + step);
        world.clients[client].connection.local_address_changed();
        world.run_for(5 * MS);
    }
    world.network.loss_percent = 0;
    assert!(moves(&mut world, client, 10, 10 * SECOND));
    assert_eq!(world.count(|counters| counters.handshakes), 1);
    assert_eq!(world.count(|counters| counters.foreign), 0);
}

/// Acceptance test 10, second part: both sides change their keys while the client moves.
#[test]
fn keys_change_across_moves() {
    let mut world = World::new(4);
    let client = world.connected();
    let key = world.any_stream();
    let shard = usize::from(key.shard);
    for round in 0..6 {
        if round % 2 == 0 {
            world.clients[client].connection.force_key_update();
        } else {
            world.shards[shard].endpoint.inner(key).force_key_update();
        }
        assert!(moves(&mut world, client, 3, 5 * SECOND), "round {round}");
        world.run_for(2 * SECOND);
    }
    assert_eq!(world.count(|counters| counters.handshakes), 1);
}

/// Acceptance test 10, third part: connection ids are replaced when they are old, and the client
/// moves meanwhile.
#[test]
fn ids_are_replaced_across_moves() {
    let lifetime = Duration::from_secs(2);
    let mut world = World::with_config(4, |config| config.with_cid_lifetime(lifetime));
    let client = world.connected();
    world.record = Some(Vec::new());
    for _ in 0..10 {
        assert!(moves(&mut world, client, 3, 5 * SECOND));
        world.run_for(SECOND);
    }
    let record = world.record.take().unwrap();
    let short = record.iter().filter(|packet| packet.data[0] & 0x80 == 0);
    let ids: HashSet<&[u8]> = short.map(|packet| &packet.data[1..9]).collect();
    assert!(ids.len() >= 5, "{} ids", ids.len());
    assert_eq!(world.count(|counters| counters.handshakes), 1);
    assert_eq!(world.count(|counters| counters.foreign), 0);
    assert_eq!(world.count(|counters| counters.resets), 0);
}

/// Acceptance test 22: a NAT has forgotten an idle client; its next packet comes from another port,
/// and both directions work again.
#[test]
fn an_idle_client_behind_a_new_port_is_found_again() {
    let mut world = World::new(4);
    let client = world.connected();
    world.run_for(1_500 * SECOND);
    world.rebind(client, 0, 60_123);
    assert!(moves(&mut world, client, 1, 2 * SECOND));
    let key = world.any_stream();
    let shard = usize::from(key.shard);
    world.clients[client].received.clear();
    let mut data = vec![Bytes::from_static(b"pushed")];
    world.shards[shard].endpoint.write(key, &mut data);
    world.run_until(SECOND, |world| world.clients[client].received == b"pushed");
}
