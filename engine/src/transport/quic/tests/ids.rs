//! Connection ids: they name their shard, say nothing else, and a shard that does not know one is
//! silent about it.

use bytes::Bytes;
use quinn_proto::{ConnectionError, ConnectionId, ConnectionIdGenerator};
use ringpost_ring::steering::Program;

use super::super::cid::ShardCids;
use super::super::{CidNaming, QuicEndpoint, QuicKeys};
use super::world::{MS, SECOND, Shard, Steering, World, address, server};

const KEY: [u8; 16] = *b"0123456789abcdef";

fn ids(naming: CidNaming, shard: u16, shards: u16, count: usize) -> Vec<[u8; 8]> {
    let seed = [u8::try_from(shard % 256).unwrap(); 32];
    let program = Program::new(naming, shards, &KEY);
    let mut made = ShardCids::new(program, shard, None, Some(seed));
    (0..count).map(|_| made.generate_cid()[..].try_into().unwrap()).collect()
}

/// A datagram with a short header, as most are.
fn short(id: &[u8]) -> Vec<u8> {
    [&[0x41], id, &[7; 60]].concat()
}

#[test]
fn ids_name_their_shard_and_no_other_shard_takes_them() {
    for naming in [CidNaming::Keyed, CidNaming::Plain] {
        for shards in [1, 2, 3, 7, 64, 256] {
            let program = Program::new(naming, shards, &KEY);
            for shard in [0, shards / 2, shards - 1] {
                let own = ShardCids::new(program.clone(), shard, None, None);
                let next = (shard + 1) % shards;
                let other = ShardCids::new(program.clone(), next, None, None);
                for id in ids(naming, shard, shards, 50) {
                    assert_eq!(program.shard(&short(&id)), Some(shard));
                    assert!(own.validate(&ConnectionId::new(&id)).is_ok());
                    assert_eq!(other.validate(&ConnectionId::new(&id)).is_ok(), shards == 1);
                }
                assert!(own.validate(&ConnectionId::new(&[1; 7])).is_err());
            }
        }
    }
}

/// Acceptance test 16: nobody without the key can tell that two ids are of one shard, let alone of
/// one connection. Each byte, and the exclusive or of each two bytes of ids that follow each other,
/// is distributed as if it were random.
#[test]
fn ids_of_a_connection_cannot_be_linked() {
    let one = ids(CidNaming::Keyed, 3, 4, 60_000);
    let mut deviations = Vec::new();
    for place in 0..8 {
        deviations.push(chi_square(one.iter().map(|id| id[place])));
        deviations.push(chi_square(one.windows(2).map(|pair| pair[0][place] ^ pair[1][place])));
        // The low bits of a shard number would show here first.
        deviations.push(chi_square(one.iter().map(|id| id[place] % 4)));
    }
    // 255 degrees of freedom: above 347 once in ten thousand times.
    assert!(deviations.iter().all(|&deviation| deviation < 360.0), "{deviations:?}");

    // The same test sees at once what plain ids give away.
    let plain = ids(CidNaming::Plain, 3, 4, 60_000);
    assert!(chi_square(plain.iter().map(|id| id[1] % 4)) > 10_000.0);
}

/// Of bytes against an even distribution over the values that occur by their lowest bits.
fn chi_square(bytes: impl Iterator<Item = u8>) -> f64 {
    let mut counts = [0_u32; 256];
    bytes.for_each(|byte| counts[usize::from(byte)] += 1);
    let highest = counts.iter().rposition(|&count| count > 0).unwrap();
    let values = if highest < 4 { 4 } else { 256 };
    let total: u32 = counts.iter().sum();
    let expected = f64::from(total) / f64::from(values);
    counts[..usize::try_from(values).unwrap()]
        .iter()
        .map(|&count| (f64::from(count) - expected).powi(2) / expected)
        .sum()
}

/// Acceptance test 3: datagrams of a live connection that land on other shards are given to the
/// forwarder, and answered by nobody.
#[test]
fn a_foreign_datagram_never_provokes_a_reset() {
    let mut world = World::new(4);
    let client = world.connected();
    world.steering = Steering::Hash;
    for step in 0..40 {
        world.rebind(client, 0, 43_000 + step);
        world.clients[client].connection.ping();
        world.run_for(200 * MS);
    }
    assert!(world.count(|counters| counters.foreign) >= 30);
    assert_eq!(world.count(|counters| counters.resets), 0);
    assert!(world.clients[client].lost.is_none());
}

/// And if the steering program were wrong about it, the ids themselves would be looked at.
#[test]
fn ids_of_another_key_are_not_reset_by_any_shard() {
    let mut world = World::new(4);
    let client = world.connected();
    let other = world.config.clone();
    let keys = QuicKeys::from_secret(&[1; 32]);
    let limits = other.limits.clone();
    let other = super::super::QuicConfig::new(&world.tls, keys, CidNaming::Keyed, limits);
    let mut endpoints: Vec<QuicEndpoint> =
        (0..4).map(|shard| QuicEndpoint::new(&other, shard, 4, world.now_ns)).collect();
    let mut resets = 0;
    for id in ids(CidNaming::Keyed, 0, 4, 64) {
        for endpoint in &mut endpoints {
            let data = Bytes::from(short(&id));
            let length = u32::try_from(data.len()).unwrap();
            // Resets are rare by rate, too.
            world.now_ns += SECOND;
            endpoint.handle_datagrams(world.now_ns, address(1, 1), None, 0, length, &data);
            resets += usize::from(endpoint.poll_transmit(world.now_ns).is_some());
        }
    }
    // Every id is of exactly one shard of the other gateway.
    assert_eq!(resets, 64);
    assert!(world.clients[client].lost.is_none());
}

/// A gateway that has forgotten its connections, but not its secret, tells the clients so.
#[test]
fn a_restarted_gateway_resets_the_connections_it_has_forgotten() {
    for (secret, is_told) in [([9; 32], true), ([8; 32], false)] {
        let mut world = World::new(2);
        let client = world.connected();
        let keys = QuicKeys::from_secret(&secret);
        let (limits, now_ns) = (world.config.limits.clone(), world.now_ns);
        let config = super::super::QuicConfig::new(&world.tls, keys, CidNaming::Keyed, limits);
        world.steering = Steering::Program(config.program(2));
        world.shards = (0..2).map(|shard| Shard::new(&config, shard, 2, now_ns)).collect();
        world.clients[client].send(&b"still there?"[..]);
        world.run_for(5 * SECOND);
        assert_eq!(matches!(world.clients[client].lost, Some(ConnectionError::Reset)), is_told);
    }
}

/// What is forwarded and is not of the shard that gets it goes nowhere else.
#[test]
fn a_misrouted_datagram_is_dropped() {
    let mut world = World::new(4);
    let foreign = super::super::ForeignDatagram {
        from: address(1, 1),
        local: Some(server().ip()),
        ecn: 0,
        data: Bytes::from(short(&ids_of(&world, 2))),
    };
    let now_ns = world.now_ns;
    world.shards[1].endpoint.handle_foreign(now_ns, &foreign);
    assert_eq!(world.count(|counters| counters.misrouted), 1);
    assert!(world.shards[1].endpoint.poll_foreign().is_none());
    assert!(world.shards[1].endpoint.poll_transmit(now_ns).is_none());
}

/// An id of a shard of that world.
fn ids_of(world: &World, shard: u16) -> [u8; 8] {
    let program = world.config.program(4);
    let mut id = [0; 8];
    while program.shard(&short(&id)) != Some(shard) {
        id[7] += 1;
    }
    id
}

/// Acceptance test 15, at this level: 16 connections from one socket, whose datagrams the kernel
/// joins to trains and gives to the shard of the first one.
#[test]
fn trains_of_several_connections_are_taken_apart() {
    let mut world = World::new(4);
    world.forwards = true;
    let clients: Vec<usize> = (0..16).map(|_| world.connected()).collect();
    let socket = world.clients[0].address;
    world.network.joins = true;
    for &client in &clients {
        world.clients[client].address = socket;
        world.clients[client].received.clear();
    }
    for round in 0..20_u8 {
        for &client in &clients {
            world.clients[client].send(vec![round; 500]);
        }
        world.run_for(40 * MS);
    }
    world.run_for(5 * SECOND);
    for &client in &clients {
        assert_eq!(world.clients[client].received.len(), 20 * 500);
    }
    let foreign = world.count(|counters| counters.foreign);
    assert!(foreign > 100, "{foreign} in trains of other shards");
    assert_eq!(world.count(|counters| counters.forwarded), foreign);
    assert_eq!(world.count(|counters| counters.resets), 0);
}

/// Under a flood first packets are handled where the kernel puts them, and everything behind them
/// finds its connection.
#[test]
fn first_packets_may_land_anywhere_under_a_flood() {
    let mut world = World::new(4);
    let early = world.connected();
    let flood = world.config.flood_program(4).unwrap();
    for shard in &mut world.shards {
        shard.endpoint.set_steering(&flood);
    }
    world.steering = Steering::Program(flood);
    let late: Vec<usize> = (0..4).map(|_| world.connected()).collect();
    for client in late.into_iter().chain([early]) {
        world.clients[client].received.clear();
        world.rebind(client, 5, 47_001);
        world.clients[client].send(&b"moved"[..]);
        world.run_until(5 * SECOND, |world| world.clients[client].received == b"moved");
    }
    assert_eq!(world.count(|counters| counters.foreign), 0);
    assert_eq!(world.count(|counters| counters.handshakes), 5);
    // All from one port, so all to one shard.
    let busy = world.shards.iter().filter(|shard| shard.streams.len() >= 4).count();
    assert_eq!(busy, 1);
}
