//! What does not speak our protocol, or none at all.

use bytes::Bytes;
use quinn_proto::{Dir, VarInt};

use super::world::{MS, Network, Packet, SECOND, World, address, server};

/// Acceptance test 13: empty datagrams, single bytes, garbage of every length, and packets that are
/// right but for a few bytes: no panic, no connection harmed, little answered.
#[test]
fn garbage_harms_nobody() {
    let mut world = World::new(4);
    world.record = Some(Vec::new());
    let client = world.connected();
    world.clients[client].send(&b"something"[..]);
    world.run_for(SECOND);
    let genuine = world.record.take().unwrap();
    let mut random = Network::new(13);
    let before = world.sent_to.clone();
    let mut received_bytes = 0;
    for round in 0..6_000_u64 {
        let mut data = match round % 4 {
            0 => vec![0; usize::try_from(round / 4 % 40).unwrap()],
            1 => vec![0; usize::try_from(random.random(1_500)).unwrap()],
            _ => {
                genuine[usize::try_from(random.random(genuine.len() as u64)).unwrap()].data.to_vec()
            }
        };
        let length = data.len() as u64;
        if length > 0 {
            let wrong = if round % 4 < 2 { length } else { 1 + random.random(4) };
            for _ in 0..wrong {
                let place = usize::try_from(random.random(length)).unwrap();
                data[place] = random.random(256).to_le_bytes()[0];
            }
        }
        received_bytes += data.len();
        let ecn = u8::try_from(round % 4).unwrap();
        let from = address(201, u8::try_from(round % 7).unwrap());
        world.inject(Packet { from, to: server(), ecn, data: data.into() });
        world.run_for(MS);
    }
    world.run_for(SECOND);
    assert_eq!(world.count(|counters| counters.panics), 0);
    let sent: usize = world.sent_to.values().sum::<usize>() - before.values().sum::<usize>();
    assert!(sent <= 3 * received_bytes, "{sent} bytes for {received_bytes}");
    world.clients[client].received.clear();
    world.clients[client].send(&b"unharmed"[..]);
    world.run_until(5 * SECOND, |world| world.clients[client].received == b"unharmed");
}

/// The same as trains, and with wrong lengths of their segments.
#[test]
fn trains_of_garbage_harm_nobody() {
    let mut world = World::new(2);
    let client = world.connected();
    let now_ns = world.now_ns;
    let endpoint = &mut world.shards[0].endpoint;
    for segment_bytes in [0, 1, 2, 9, 1_200, 65_507, u32::MAX] {
        for length in [0, 1, 8, 9, 1_199, 1_200, 65_507] {
            for byte in [0, 0x40, 0x7f, 0x80, 0xc0, 0xff] {
                let data = vec![byte; length];
                let from = address(202, 1);
                endpoint.handle_datagrams(now_ns, from, None, 3, segment_bytes, &data);
            }
        }
    }
    while endpoint.poll_foreign().is_some() {}
    assert_eq!(endpoint.counters().panics, 0);
    world.clients[client].send(&b"unharmed"[..]);
    world.run_until(5 * SECOND, |world| world.clients[client].received.len() == 13);
}

/// What is short has no id to be steered by: it is left to the kernel, and not all sent to shard 0.
#[test]
fn short_datagrams_are_steered_by_nobody() {
    let program = World::new(4).config.program(4);
    for length in 0..9 {
        assert_eq!(program.shard(&vec![0x40; length]), None, "{length} bytes");
        assert_eq!(program.shard(&vec![0xc0; length]), None, "{length} bytes");
    }
}

/// An HTTP/3 client opens unidirectional streams at once. It is told that it may not; a client that
/// does so nevertheless loses its connection, and nobody else.
#[test]
fn a_client_with_other_streams_loses_its_connection_only() {
    let mut world = World::new(1);
    let polite = world.connected();
    let client = &mut world.clients[polite];
    assert!(client.connection.streams().open(Dir::Uni).is_none());
    assert!(client.connection.streams().open(Dir::Bi).is_none(), "the one stream is open");

    // A gateway that would allow more, to see that it is looked at twice.
    let mut world = World::with_config(1, |config| {
        config.with_transport(|transport| {
            transport
                .max_concurrent_uni_streams(VarInt::from_u32(3))
                .max_concurrent_bidi_streams(VarInt::from_u32(3));
        })
    });
    let other = world.connected();
    for dir in [Dir::Uni, Dir::Bi] {
        let rude = world.connected();
        let client = &mut world.clients[rude];
        for _ in 0..2 {
            let stream = client.connection.streams().open(dir).unwrap();
            client.connection.send_stream(stream).write(b"SETTINGS").unwrap();
        }
        world.run_until(5 * SECOND, |world| world.clients[rude].lost.is_some());
    }
    assert_eq!(world.count(|counters| counters.stream_violations), 2);
    assert_eq!(world.count(|counters| counters.panics), 0);
    world.clients[other].send(&b"unharmed"[..]);
    world.run_until(5 * SECOND, |world| world.clients[other].received.len() == 13);
}

/// A stream has one life: after its end the client may not open another one on the connection.
#[test]
fn there_is_no_second_stream() {
    let mut world = World::new(1);
    let client = world.connected();
    let stream = world.clients[client].stream.unwrap();
    world.clients[client].connection.send_stream(stream).finish().unwrap();
    world.run_until(5 * SECOND, |world| world.clients[client].has_ended);
    world.run_for(5 * SECOND);
    assert!(world.clients[client].connection.streams().open(Dir::Bi).is_none());
}

/// A client that gives its direction up, or wants no more of ours, is gone.
#[test]
fn resets_of_the_stream_are_told() {
    let mut world = World::new(1);
    let client = world.connected();
    let stream = world.clients[client].stream.unwrap();
    world.clients[client].connection.recv_stream(stream).stop(VarInt::from_u32(3)).unwrap();
    world.run_until(5 * SECOND, |world| world.clients[client].lost.is_some());
    assert_eq!(world.shards[0].ended.len(), 1);

    let client = world.connected();
    let stream = world.clients[client].stream.unwrap();
    world.clients[client].connection.send_stream(stream).reset(VarInt::from_u32(3)).unwrap();
    world.shards[0].is_asleep = true;
    world.run_for(SECOND);
    let key = world.any_stream();
    assert_eq!(world.shards[0].endpoint.read(key, 10), super::super::Read::Reset);
    let mut data = vec![Bytes::from_static(b"our direction goes on")];
    assert_eq!(world.shards[0].endpoint.write(key, &mut data), 21);
}

/// quinn-proto sets no timer for a connection that its first packet closes, and would keep it until
/// it has been idle for an hour.
#[test]
fn a_client_that_goes_with_its_first_packet_leaves_nothing() {
    let mut world = World::new(1);
    for _ in 0..20 {
        let client = world.connect();
        let now = world.instant();
        world.clients[client].connection.close(now, VarInt::from_u32(1), Bytes::new());
    }
    world.run_for(SECOND);
    let endpoint = &world.shards[0].endpoint;
    assert_eq!((endpoint.connections(), endpoint.handshakes_pending()), (0, 0));
    assert_eq!(endpoint.counters().handshakes_failed, 20);
}
