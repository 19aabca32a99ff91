//! Who may begin a handshake.

use std::sync::Arc;

use quinn_proto::ConnectionError;

use super::super::QuicLimits;
use super::world::{MS, Packet, SECOND, World, address, server};
use crate::limits::{AddressTable, Gate, LimitSet, Rate};

/// First flights of clients that never answer, each from another address.
fn flights(world: &mut World, count: usize) -> Vec<Packet> {
    let mut flights = Vec::new();
    for number in 0..count {
        let client = world.connect();
        let mut out = Vec::new();
        let now = world.instant();
        world.clients[client].transmit(now, &mut out);
        for packet in &mut out {
            packet.from = address(1_000 + number, 77);
        }
        world.clients.truncate(client);
        flights.push(out.swap_remove(0));
    }
    flights
}

/// Acceptance test 14, at this level: a flood from made-up addresses. A bounded number of handshakes
/// begins, the others have to prove their address, at a bounded rate; who is connected notices
/// nothing, and a client that proves its address gets in.
#[test]
fn a_flood_has_to_prove_its_addresses() {
    let limits = QuicLimits {
        retry_pending: 16,
        accepts_per_turn: 4,
        retries: Rate { per_second: 1_000, burst: 200 },
        ..QuicLimits::default()
    };
    let mut world = World::with_config(2, |config| config.with_limits(limits));
    let client = world.connected();
    world.run_for(SECOND);
    world.clients[client].received.clear();
    let flood = flights(&mut world, 1_500);
    let before: usize = world.sent_to.values().sum();
    for (number, packet) in flood.into_iter().enumerate() {
        world.inject(packet);
        if number % 15 == 0 {
            world.clients[client].send(vec![7; 100]);
            world.run_for(MS);
        }
    }
    world.run_for(50 * MS);
    assert_eq!(world.clients[client].received.len(), 100 * 100);
    assert_eq!(world.count(|counters| counters.retries + counters.ignored), 1_500 - 2 * 16);
    assert!(world.count(|counters| counters.ignored) >= 500);
    for shard in &world.shards {
        assert!(shard.endpoint.handshakes_pending() <= 16);
        assert!(shard.endpoint.connections() <= 17);
    }
    let answered = world.sent_to.values().sum::<usize>() - before;
    assert!(answered < 3 * 1_500 * 1_200 / 2, "{answered} bytes to made-up addresses");

    let genuine = world.connect();
    world.clients[genuine].send(&b"real"[..]);
    world.run_until(5 * SECOND, |world| world.clients[genuine].received == b"real");
    assert!(world.count(|counters| counters.handshakes) == 2);
    world.run_for(60 * SECOND);
    let connections: usize = world.shards.iter().map(|shard| shard.endpoint.connections()).sum();
    assert_eq!(connections, 2, "what was begun for nobody is gone");
}

/// Whatever came to a draining or full gateway goes to TCP, or elsewhere, at once.
#[test]
fn a_gateway_that_is_full_or_drains_says_so() {
    let limits = QuicLimits { connections_max: 2, ..QuicLimits::default() };
    let mut world = World::with_config(1, |config| config.with_limits(limits));
    let first = world.connected();
    world.connected();
    let third = world.connect();
    world.run_until(SECOND, |world| world.clients[third].lost.is_some());
    assert!(matches!(world.clients[third].lost, Some(ConnectionError::ConnectionClosed(_))));
    // For each of the two datagrams of its hello.
    assert_eq!(world.count(|counters| counters.refused), 2);

    let mut world = World::new(1);
    let client = world.connected();
    let silent = world.connect();
    world.run_until(SECOND, |world| world.clients[silent].is_connected());
    world.shards[0].endpoint.stop_accepting();
    let late = world.connect();
    let has_gone = |world: &World, client: usize| world.clients[client].lost.is_some();
    world.run_until(SECOND, |world| has_gone(world, late) && has_gone(world, silent));
    world.clients[client].send(&b"goes on"[..]);
    world.run_until(SECOND, |world| world.clients[client].received == b"hellogoes on");
    assert_eq!((first, world.shards[0].endpoint.connections()), (0, 2), "one drains");
}

/// The limits of an address are kept for the address of the handshake, also when the stream is opened
/// from one that has proven nothing.
#[test]
fn a_client_is_let_in_under_the_address_that_it_has_proven() {
    let mut world = World::new(1);
    let client = world.connect();
    world.run_until(SECOND, |world| world.clients[client].is_connected());
    world.rebind(client, 9, 50_000);
    world.clients[client].send(&b"hello"[..]);
    world.run_until(SECOND, |world| world.clients[client].received == b"hello");
    assert_eq!(world.shards[0].opened_from, [address(client, 0).ip()]);
}

/// An address that has its connections must prove itself, and is then told no before a key is made;
/// when one is given back it is let in. Others do not notice.
#[test]
fn an_address_at_its_limit_is_refused_before_the_handshake() {
    let mut world = World::new(1);
    let limits = LimitSet { address_connections_max: 2, ..LimitSet::default() };
    let gate = Gate::new(AddressTable::new(100, 1), Arc::new(limits));
    world.shards[0].endpoint.set_gate(gate.clone());
    let host = address(3, 9).ip();
    let held: Vec<_> = (0..2).map(|_| gate.admit(host, 1).unwrap()).collect();

    let from_host = |world: &mut World, port: u16| {
        let client = world.connect();
        world.rebind(client, 0, port);
        world.clients[client].address.set_ip(host);
        world.clients[client].send(&b"hello"[..]);
        client
    };
    let refused = from_host(&mut world, 40_001);
    world.run_until(SECOND, |world| world.clients[refused].lost.is_some());
    let (retries, over) =
        (world.count(|c| c.retries), world.count(|c| c.refused_address_connections));
    assert!(retries >= 1 && over >= 1, "{retries} proofs, {over} refused");
    assert_eq!(world.shards[0].endpoint.connections(), 0);
    assert_eq!(world.count(|counters| counters.handshakes + counters.handshakes_failed), 0);
    world.connected();

    drop(held);
    let client = from_host(&mut world, 40_002);
    world.run_until(SECOND, |world| world.clients[client].received == b"hello");
}

/// With a proven address the connection counts from its first packet, and until it is gone.
#[test]
fn a_handshake_with_a_proven_address_counts() {
    let limits = QuicLimits { retry_pending: 0, ..QuicLimits::default() };
    let mut world = World::with_config(1, |config| config.with_limits(limits));
    let limits = LimitSet { address_connections_max: 1, ..LimitSet::default() };
    let gate = Gate::new(AddressTable::new(100, 1), Arc::new(limits));
    world.shards[0].endpoint.set_gate(gate.clone());
    let client = world.connected();
    let host = world.clients[client].address.ip();
    let now_ms = world.now_ns / MS;
    assert!(gate.would_refuse(host, now_ms));
    let key = world.any_stream();
    assert!(world.shards[0].endpoint.take_admission(key).is_some_and(|it| it.guard.is_some()));
    assert!(world.shards[0].endpoint.take_admission(key).is_none());
    assert!(!gate.would_refuse(host, now_ms), "whoever took it has let it go");
}

/// A token is good on every shard, and after a restart with the same secret.
#[test]
fn a_proof_is_good_on_every_shard() {
    let limits = QuicLimits { retry_pending: 0, ..QuicLimits::default() };
    let mut world = World::with_config(4, |config| config.with_limits(limits));
    // By its hash the second packet stays where the first was; by the id of the Retry it goes where
    // that shard is, and by forwarding too.
    world.steering = super::world::Steering::Hash;
    world.forwards = true;
    for number in 0..4 {
        let client = world.connect();
        world.rebind(client, 0, 40_000 + number);
        world.clients[client].send(&b"hello"[..]);
        world.run_until(5 * SECOND, |world| world.clients[client].received == b"hello");
    }
    // Each of the two datagrams of a hello gets one, of which the client heeds the first.
    assert_eq!(world.count(|counters| counters.retries), 8);
    assert_eq!(world.count(|counters| counters.handshakes), 4);
}

/// Answers that nobody takes do not pile up.
#[test]
fn answers_that_wait_are_bounded() {
    let limits = QuicLimits { retry_pending: 0, retries: Rate::UNLIMITED, ..QuicLimits::default() };
    let mut world = World::with_config(1, |config| config.with_limits(limits));
    let flight = flights(&mut world, 1).swap_remove(0);
    let (now_ns, endpoint) = (world.now_ns, &mut world.shards[0].endpoint);
    let length = u32::try_from(flight.data.len()).unwrap();
    for _ in 0..2_000 {
        endpoint.handle_datagrams(now_ns, flight.from, None, 0, length, &flight.data);
    }
    let mut answers = 0;
    while endpoint.poll_transmit(now_ns).is_some() {
        answers += 1;
    }
    assert_eq!(answers, crate::limits::QUIC_RESPONSES_MAX);
    assert_eq!(endpoint.counters().responses_dropped, 2_000 - answers as u64);
    assert_eq!(flight.to, server());
}
