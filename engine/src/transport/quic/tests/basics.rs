//! One stream: everything arrives, nobody is overrun, and the end comes after the last byte.

use bytes::Bytes;
use quinn_proto::{ConnectionError, VarInt};

use super::super::{EndReason, QuicLimits, Read};
use super::client::client_tls;
use super::world::{MS, SECOND, World, pattern};
use ringpost_protocol::limits::QUIC_SERVER_WINDOW_BYTES;

use crate::limits::QUIC_SEND_WINDOW_BYTES;

/// The key exchange is post-quantum, and so the ClientHello does not fit into one datagram.
#[test]
fn a_client_whose_hello_takes_two_datagrams_is_echoed() {
    let mut world = World::new(4);
    world.record = Some(Vec::new());
    let client = world.connect();
    world.run_for(1);
    world.run_for(15 * MS);
    assert_eq!(world.record.as_ref().unwrap().len(), 2, "first flight");
    world.clients[client].send(&b"hello"[..]);
    world.run_until(SECOND, |world| world.clients[client].received == b"hello");
    assert_eq!(world.count(|counters| counters.handshakes), 1);
    assert_eq!(world.count(|counters| counters.foreign), 0);
    assert_eq!(
        world.shards.iter().map(|shard| shard.endpoint.handshakes_pending()).sum::<usize>(),
        0
    );
}

#[test]
fn a_megabyte_survives_loss_and_reordering() {
    let mut world = World::new(2);
    let client = world.connected();
    world.network.loss_percent = 5;
    world.network.jitter_ns = 15 * MS;
    world.network.joins = true;
    let data = pattern(1 << 20, 1);
    world.clients[client].received.clear();
    world.clients[client].send(data.clone());
    let length = data.len();
    world.run_until(300 * SECOND, |world| world.clients[client].received.len() >= length);
    assert!(world.clients[client].received == data);
}

/// What the owner does not read stays with the client, but for the window.
#[test]
fn a_client_is_stopped_while_nothing_is_read() {
    let mut world = World::new(1);
    let client = world.connected();
    world.shards[0].is_asleep = true;
    let data = pattern(1 << 20, 2);
    world.clients[client].received.clear();
    world.clients[client].send(data.clone());
    world.run_for(10 * SECOND);
    let sent = world.clients[client].connection.stats().udp_tx.bytes;
    let window = u64::from(QUIC_SERVER_WINDOW_BYTES);
    assert!((window..2 * window).contains(&sent), "{sent} bytes sent");

    world.shards[0].is_asleep = false;
    let key = world.any_stream();
    world.shards[0].echo(key);
    world.run_until(60 * SECOND, |world| world.clients[client].received.len() >= 1 << 20);
    assert!(world.clients[client].received == data);
}

/// A client that waits for room is told as soon as there is some, if by nothing else.
#[test]
fn reading_makes_room_for_more() {
    let mut world = World::new(1);
    let client = world.connected();
    world.shards[0].is_asleep = true;
    world.clients[client].send(pattern(1 << 20, 2));
    let key = world.any_stream();
    let mut read_bytes = 0;
    for _ in 0..10 {
        world.run_for(5 * SECOND);
        let before = read_bytes;
        while let Read::Data(data) = world.shards[0].endpoint.read(key, 1 << 14) {
            read_bytes += data.len();
        }
        assert!(read_bytes - before > 32_000, "{} bytes", read_bytes - before);
    }
}

/// What the client does not read stays with the owner, but for the window.
#[test]
fn a_write_takes_no_more_than_the_window() {
    let mut world = World::new(1);
    let client = world.connected();
    world.run_for(SECOND);
    // Its own window is larger than ours; it takes nothing at all, as if it were out of reach.
    world.network.loss_percent = 100;
    let key = world.any_stream();
    let data = pattern(1 << 20, 3);
    let mut unsent = vec![data.slice(..300), data.slice(300..)];
    let written_bytes = world.shards[0].endpoint.write(key, &mut unsent);
    assert_eq!(written_bytes as u64, QUIC_SEND_WINDOW_BYTES);
    assert_eq!(unsent, [data.slice(written_bytes..)]);
    assert_eq!(world.shards[0].endpoint.write(key, &mut unsent), 0);
    world.run_for(SECOND);

    world.network.loss_percent = 0;
    world.clients[client].received.clear();
    world.shards[0].streams.insert(key, unsent);
    world.run_until(60 * SECOND, |world| world.clients[client].received.len() >= 1 << 20);
    assert!(world.clients[client].received == data);
}

#[test]
fn reads_are_as_short_as_wanted() {
    let mut world = World::new(1);
    let client = world.connected();
    world.shards[0].is_asleep = true;
    world.clients[client].send(&b"0123456789"[..]);
    world.run_for(SECOND);
    let key = world.any_stream();
    let endpoint = &mut world.shards[0].endpoint;
    assert_eq!(endpoint.read(key, 4), Read::Data(Bytes::from_static(b"0123")));
    assert_eq!(endpoint.read(key, 100), Read::Data(Bytes::from_static(b"456789")));
    assert_eq!(endpoint.read(key, 100), Read::Nothing);
    let client = &mut world.clients[client];
    client.connection.send_stream(client.stream.unwrap()).finish().unwrap();
    world.run_for(SECOND);
    assert_eq!(world.shards[0].endpoint.read(key, 100), Read::End);
    assert_eq!(world.shards[0].endpoint.read(key, 100), Read::End, "and nothing else");
}

/// A close behind a finish waits for the last byte, however lossy the way.
#[test]
fn what_was_finished_arrives_before_the_close() {
    let mut world = World::new(1);
    let client = world.connected();
    let key = world.any_stream();
    world.network.loss_percent = 20;
    let data = pattern(50_000, 4);
    let endpoint = &mut world.shards[0].endpoint;
    let mut unsent = vec![data.clone()];
    assert_eq!(endpoint.write(key, &mut unsent), data.len());
    endpoint.finish(key);
    endpoint.close(key, 7, Bytes::from_static(b"go"));
    assert_eq!(endpoint.read(key, 1), Read::Reset, "the key is of nothing");
    world.clients[client].received.clear();
    world.run_until(60 * SECOND, |world| world.clients[client].lost.is_some());
    assert!(world.clients[client].received == data);
    assert!(world.clients[client].has_ended);
    let Some(ConnectionError::ApplicationClosed(close)) = &world.clients[client].lost else {
        panic!("{:?}", world.clients[client].lost);
    };
    assert_eq!((close.error_code, &close.reason[..]), (VarInt::from_u32(7), &b"go"[..]));
    world.network.loss_percent = 0;
    world.run_for(60 * SECOND);
    assert_eq!(world.shards[0].endpoint.connections(), 0);
    assert!(world.shards[0].ended.is_empty(), "nothing is told about a key that was closed");
}

/// Nobody waits longer than allowed for a client that is gone.
#[test]
fn a_client_that_takes_nothing_does_not_hold_its_connection() {
    let mut world = World::new(1);
    world.connected();
    let key = world.any_stream();
    world.network.loss_percent = 100;
    let endpoint = &mut world.shards[0].endpoint;
    endpoint.write(key, &mut vec![pattern(1_000, 5)]);
    endpoint.finish(key);
    endpoint.close(key, 0, Bytes::new());
    world.run_for(4 * SECOND);
    assert_eq!(world.shards[0].endpoint.connections(), 1);
    world.run_for(60 * SECOND);
    assert_eq!(world.shards[0].endpoint.connections(), 0);
}

#[test]
fn a_client_that_leaves_is_told_of_once() {
    let mut world = World::new(1);
    let client = world.connected();
    let (now, client) = (world.instant(), &mut world.clients[client]);
    client.connection.close(now, VarInt::from_u32(42), Bytes::new());
    world.run_for(SECOND);
    let ended = &world.shards[0].ended;
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].1, EndReason::Closed { code: 42 });
    let key = ended[0].0;
    let endpoint = &mut world.shards[0].endpoint;
    assert_eq!(endpoint.read(key, 1), Read::Reset);
    assert_eq!(endpoint.write(key, &mut vec![pattern(1, 0)]), 0);
    endpoint.finish(key);
    endpoint.close(key, 0, Bytes::new());
    world.run_for(10 * SECOND);
    assert_eq!(world.shards[0].endpoint.connections(), 0);
    // Its place is taken by another one, which the old key does not name.
    world.connected();
    let newer = world.any_stream();
    assert_eq!(newer.index, key.index);
    assert_eq!(world.shards[0].endpoint.read(key, 1), Read::Reset);
}

/// The application protocol is not optional.
#[test]
fn a_client_of_another_protocol_is_turned_away() {
    for alpn in [&b"h3"[..], b""] {
        let mut world = World::new(1);
        let mut tls = client_tls(&world.certificate, alpn);
        if alpn.is_empty() {
            tls.alpn_protocols.clear();
        }
        let client = world.connect_with(tls.into());
        world.run_until(SECOND, |world| world.clients[client].lost.is_some());
        world.run_for(30 * SECOND);
        assert_eq!(world.count(|counters| counters.handshakes), 0);
        assert_eq!(world.count(|counters| counters.handshakes_failed), 1);
        assert_eq!(world.shards[0].endpoint.connections(), 0);
        assert!(world.shards[0].ended.is_empty());
    }
}

/// A handshake that stops, and one after which no stream comes, are ended.
#[test]
fn who_opens_no_stream_in_time_is_sent_away() {
    let limits = QuicLimits { handshake_ms_max: 3_000, ..QuicLimits::default() };
    let mut world = World::with_config(1, |config| config.with_limits(limits));
    let idle = world.connect();
    world.run_until(SECOND, |world| world.clients[idle].is_connected());
    let gone = world.connect();
    world.run_for(1);
    world.run_for(5 * MS);
    world.clients.truncate(gone);
    world.run_for(2 * SECOND);
    assert_eq!(world.shards[0].endpoint.handshakes_pending(), 2);
    assert!(world.clients[idle].lost.is_none());
    world.run_for(60 * SECOND);
    assert!(matches!(world.clients[idle].lost, Some(ConnectionError::ApplicationClosed(_))));
    assert_eq!(world.count(|counters| counters.handshakes_late), 2);
    assert_eq!(world.shards[0].endpoint.connections(), 0);
    assert_eq!(world.shards[0].endpoint.handshakes_pending(), 0);
    assert_eq!(world.shards[0].endpoint.poll_timeout(), None);
}

/// A congestion mark of the network goes through to where it is acted upon.
#[test]
fn congestion_marks_are_seen_and_given() {
    let mut world = World::new(1);
    world.record = Some(Vec::new());
    let client = world.connected();
    assert!(world.record.as_ref().unwrap().iter().any(|packet| packet.ecn == 2), "client marks");
    // quinn-proto checks the counts that come back against what it sent, and stops marking if they
    // are wrong.
    world.clients[client].send(pattern(100_000, 6));
    world.record = Some(Vec::new());
    world.run_for(5 * SECOND);
    let marked = world.record.as_ref().unwrap().iter().filter(|packet| packet.ecn == 2).count();
    assert!(marked > 50, "{marked} marked");
}
