//! A bug in one connection's state machine ends that connection.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, CubicConfig};

use super::super::{EndReason, Read};
use super::world::{SECOND, World};

/// A congestion controller with a bug that shows when it is wanted: it is called from deep inside.
struct Faulty {
    inner: Box<dyn Controller>,
    is_armed: Arc<AtomicBool>,
}

/// The second one shows when a connection is made.
struct FaultyConfig(Arc<AtomicBool>, Arc<AtomicBool>);

impl ControllerFactory for FaultyConfig {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        assert!(!self.1.swap(false, Ordering::Relaxed), "the bug that the test put here");
        let inner = Arc::new(CubicConfig::default()).build(now, mtu);
        Box::new(Faulty { inner, is_armed: Arc::clone(&self.0) })
    }
}

impl Controller for Faulty {
    fn on_ack(
        &mut self,
        now: Instant,
        sent: Instant,
        bytes: u64,
        limited: bool,
        rtt: &RttEstimator,
    ) {
        assert!(!self.is_armed.swap(false, Ordering::Relaxed), "the bug that the test put here");
        self.inner.on_ack(now, sent, bytes, limited, rtt);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        self.inner.on_congestion_event(now, sent, persistent, lost);
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.inner.on_mtu_update(mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), is_armed: Arc::clone(&self.is_armed) })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

fn faulty_world() -> (World, Arc<AtomicBool>, Arc<AtomicBool>) {
    let is_armed = Arc::new(AtomicBool::new(false));
    let is_armed_early = Arc::new(AtomicBool::new(false));
    let factory = FaultyConfig(Arc::clone(&is_armed), Arc::clone(&is_armed_early));
    let world = World::with_config(1, |config| {
        config.with_transport(|transport| {
            transport.congestion_controller_factory(Arc::new(factory));
        })
    });
    (world, is_armed, is_armed_early)
}

#[test]
fn a_panic_ends_one_connection() {
    let (mut world, is_armed, _) = faulty_world();
    let others: Vec<usize> = (0..3).map(|_| world.connected()).collect();
    let client = world.connected();
    world.run_for(SECOND);
    world.clients[client].send(&b"to be echoed, and the echo acknowledged"[..]);
    is_armed.store(true, Ordering::Relaxed);
    world.run_for(SECOND);
    assert!(!is_armed.load(Ordering::Relaxed), "it has panicked");
    assert_eq!(world.count(|counters| counters.panics), 1);
    let [(key, EndReason::Panicked)] = world.shards[0].ended[..] else {
        panic!("{:?}", world.shards[0].ended);
    };
    assert_eq!(world.shards[0].endpoint.read(key, 1), Read::Reset);
    assert_eq!(world.shards[0].endpoint.connections(), 3);
    for &other in &others {
        world.clients[other].received.clear();
        world.clients[other].send(&b"unharmed"[..]);
        world.run_until(5 * SECOND, |world| world.clients[other].received == b"unharmed");
    }
    // Its place is free, and its client is told that it is gone.
    world.connected();
    assert!(world.shards[0].streams.keys().any(|newer| newer.index == key.index));
    assert_eq!(world.shards[0].endpoint.connections(), 4);
    world.clients[client].connection.ping();
    world.run_until(5 * SECOND, |world| world.clients[client].lost.is_some());
}

/// A connection that panics before its owner knows of it leaves nothing behind either.
#[test]
fn a_panic_during_the_handshake_leaves_nothing() {
    let (mut world, is_armed, _) = faulty_world();
    let other = world.connected();
    world.run_for(SECOND);
    is_armed.store(true, Ordering::Relaxed);
    let client = world.connect();
    world.clients[client].send(&b"hello"[..]);
    world.run_for(SECOND);
    assert_eq!(world.count(|counters| counters.panics), 1);
    world.run_for(30 * SECOND);
    assert_eq!(world.shards[0].endpoint.connections(), 1);
    assert_eq!(world.shards[0].endpoint.handshakes_pending(), 0);
    assert!(world.shards[0].ended.is_empty());
    world.clients[other].send(&b"unharmed"[..]);
    world.run_until(5 * SECOND, |world| world.clients[other].received.len() == 13);
}

/// A connection that panics while it is made was never there.
#[test]
fn a_panic_in_a_first_packet_ends_nothing() {
    let (mut world, _, is_armed) = faulty_world();
    let other = world.connected();
    is_armed.store(true, Ordering::Relaxed);
    let client = world.connect();
    world.run_for(20 * SECOND);
    assert!(world.count(|counters| counters.panics) >= 1);
    assert!(!world.clients[client].is_connected());
    world.clients[other].send(&b"unharmed"[..]);
    world.run_until(5 * SECOND, |world| world.clients[other].received.len() == 13);
    let panics = world.count(|counters| counters.panics);
    for _ in 0..10 {
        world.connected();
    }
    assert_eq!(world.count(|counters| counters.panics), panics);
    assert_eq!(world.shards[0].endpoint.connections(), 11);
}

/// What quinn-proto still routes to a connection that is not there makes it forget it.
#[test]
fn a_connection_that_was_lost_is_forgotten_everywhere() {
    let mut world = World::new(1);
    let client = world.connected();
    let key = world.any_stream();
    world.shards[0].endpoint.lose(key);
    world.run_for(SECOND);
    for _ in 0..3 {
        world.clients[client].connection.ping();
        world.run_for(SECOND);
    }
    assert!(world.clients[client].lost.is_some(), "it was told");
    assert_eq!(world.count(|counters| counters.resets), 1);
}
