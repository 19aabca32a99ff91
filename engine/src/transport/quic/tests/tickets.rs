//! Sessions that resume, and data that comes too early.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quinn_proto::Dir;
use rustls::crypto::GetRandomFailed;
use rustls::server::{ProducesTickets, ServerSessionMemoryCache};
use rustls::ticketer::TicketRotator;

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

/// Acceptance test 20, its other half: the key of the tickets changes under a connection that goes on.
/// A ticket is good under the next key too; two keys later its client does a full handshake, and is
/// not refused. The clock is the real one, so the keys last a second.
#[test]
fn tickets_are_good_across_one_change_of_their_key() {
    let mut world = World::new(2);
    let early = world.connected();
    let rotator = TicketRotator::new(1, ticket_key).unwrap();
    let tickets = Arc::new(Tickets { rotator, opened: AtomicUsize::new(0) });
    let tls = world.tls.changed(|config| config.ticketer = Arc::clone(&tickets) as Arc<_>);
    let config = world.config.with_tls(&tls);
    swap(&mut world, &config);
    let change_key = || std::thread::sleep(Duration::from_millis(2_100));
    let [one, other] = [(); 2].map(|()| Arc::new(client_tls(&world.certificate, tls::ALPN)));
    let resumes = |world: &mut World, tls: &Arc<rustls::ClientConfig>| {
        let before = tickets.opened.load(Ordering::Relaxed);
        assert!(handshake_bytes(world, tls).is_some(), "it is let in");
        world.clients[early].received.clear();
        world.clients[early].send(&b"goes on"[..]);
        world.run_until(SECOND, |world| world.clients[early].received == b"goes on");
        tickets.opened.load(Ordering::Relaxed) > before
    };
    assert!(!resumes(&mut world, &one), "it has no ticket yet");
    change_key(); // by whoever comes next
    assert!(resumes(&mut world, &one), "one change later");
    assert!(!resumes(&mut world, &other));
    change_key();
    assert!(resumes(&mut world, &one));
    change_key();
    assert!(!resumes(&mut world, &other), "two changes later");
    assert!(resumes(&mut world, &other), "with the ticket of that handshake");
    assert_eq!(world.count(|counters| counters.handshakes_failed), 0);
}

/// What the gateway uses, with keys that last as long as is wanted.
#[derive(Debug)]
struct Tickets {
    rotator: TicketRotator,
    opened: AtomicUsize,
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    /// So that no client gives a ticket up before the gateway does.
    fn lifetime(&self) -> u32 {
        3_600
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.rotator.encrypt(plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let opened = self.rotator.decrypt(ticket)?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        Some(opened)
    }
}

fn ticket_key() -> Result<Box<dyn ProducesTickets>, GetRandomFailed> {
    let key = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|_| GetRandomFailed)?;
    Ok(Box::new(Key(key)))
}

#[derive(Debug)]
struct Key(Arc<dyn ProducesTickets>);

impl ProducesTickets for Key {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(ticket)
    }
}

/// Acceptance test 19: data in the first flight is dropped, also when that flight is replayed. The
/// gateway gives out no ticket that allows it, so the client brings one of another gateway.
#[test]
fn early_data_does_nothing() {
    let mut world = World::new(2);
    let eager = world.tls.changed(|config| {
        config.max_early_data_size = u32::MAX;
        config.ticketer = Arc::new(tls::NoTickets);
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
