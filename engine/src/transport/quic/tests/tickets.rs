//! Sessions that resume, and data that comes too early.

use std::sync::Arc;

use quinn_proto::Dir;
use rustls::server::ServerSessionMemoryCache;

use super::super::{QuicConfig, QuicEndpoint};
use super::client::client_tls;
use super::world::{SECOND, World, certificate};
use crate::transport::tls;

/// A handshake that resumes has no certificate in it: what the gateway sends is much less.
fn handshake_bytes(world: &mut World, tls: &Arc<rustls::ClientConfig>) -> Option<u64> {
    let client = world.connect_with(Arc::clone(tls));
    world.clients[client].send(&b"hello"[..]);
    let end_ns = world.now_ns + 5 * SECOND;
    let done = world.runs_until(end_ns, |world| world.clients[client].received == b"hello");
    done.then(|| world.clients[client].connection.stats().frame_rx.crypto)?;
    // A full handshake ends with the certificate of the gateway.
    let identity = world.clients[client].connection.crypto_session().peer_identity();
    identity.map(|_| world.clients[client].connection.stats().udp_rx.bytes)
}

/// Acceptance test 20, at this level: the certificate is swapped under connections that go on; new
/// ones get the new certificate, and a ticket from before resumes, on whichever shard.
#[test]
fn a_certificate_is_swapped_and_tickets_stay_good() {
    let mut world = World::new(4);
    let early = world.connected();
    let old = Arc::new(client_tls(&world.certificate, tls::ALPN));
    assert!(handshake_bytes(&mut world, &old).is_some());

    let (new_certificate, key) = certificate();
    let tls = world.tls.with_certificate(vec![new_certificate.clone()], key).unwrap();
    let config = world.config.with_tls(&tls);
    for shard in &mut world.shards {
        shard.endpoint.set_config(&config);
    }
    world.clients[early].received.clear();
    world.clients[early].send(&b"goes on"[..]);
    world.run_until(SECOND, |world| world.clients[early].received == b"goes on");

    let new = Arc::new(client_tls(&new_certificate, tls::ALPN));
    assert!(handshake_bytes(&mut world, &new).is_some(), "the new certificate is shown");
    let stranger = Arc::new(client_tls(&world.certificate, tls::ALPN));
    assert!(handshake_bytes(&mut world, &stranger).is_none(), "and the old one is not");
    assert!(handshake_bytes(&mut world, &old).is_some(), "a ticket needs no certificate");
    assert_eq!(world.count(|counters| counters.handshakes), 4);
}

/// Acceptance test 19: data in the first flight is dropped, also when that flight is replayed. The
/// gateway gives out no ticket that allows it, so the client brings one of another gateway.
#[test]
fn early_data_does_nothing() {
    let mut world = World::new(2);
    let eager = world.tls.changed(|config| {
        config.max_early_data_size = u32::MAX;
        config.ticketer = Arc::new(NoTicketer);
        config.session_storage = ServerSessionMemoryCache::new(8);
    });
    let (tls, config) = (Arc::new(client_tls(&world.certificate, tls::ALPN)), world.config.clone());
    swap(&mut world, &config.with_tls(&eager));
    assert!(handshake_bytes(&mut world, &tls).is_some());

    swap(&mut world, &config);
    world.record = Some(Vec::new());
    let client = world.connect_with(Arc::clone(&tls));
    let early = &mut world.clients[client].connection;
    assert!(early.has_0rtt(), "the client may send early");
    let stream = early.streams().open(Dir::Bi).unwrap();
    early.send_stream(stream).write(b"EARLY").unwrap();
    world.run_until(5 * SECOND, |world| world.clients[client].is_connected());
    world.run_for(SECOND);
    assert!(!world.clients[client].connection.accepted_0rtt());
    let flight = world.record.take().unwrap();
    let is_early = |data: &[u8]| data[0] & 0xb0 == 0x90;
    let holds_early = flight.iter().any(|packet| {
        // Coalesced behind the Initial, or on its own.
        is_early(&packet.data) || packet.data.len() >= 1_200
    });
    assert!(holds_early);
    for _ in 0..3 {
        for packet in flight.iter().take(3) {
            world.inject(packet.clone());
        }
        world.run_for(SECOND);
    }
    let read_bytes: usize = world.shards.iter().map(|shard| shard.read_bytes).sum();
    assert_eq!(read_bytes, b"hello".len(), "of the handshake before");
    let streams: usize = world.shards.iter().map(|shard| shard.streams.len()).sum();
    assert_eq!(streams, 1);
    assert_eq!(world.count(|counters| counters.panics), 0);
    world.clients[client].send(&b"late"[..]);
    world.run_until(5 * SECOND, |world| world.clients[client].received == b"late");
}

fn swap(world: &mut World, config: &QuicConfig) {
    for shard in &mut world.shards {
        QuicEndpoint::set_config(&mut shard.endpoint, config);
    }
}

/// rustls takes early data only without tickets that the client keeps.
#[derive(Debug)]
struct NoTicketer;

impl rustls::server::ProducesTickets for NoTicketer {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}
