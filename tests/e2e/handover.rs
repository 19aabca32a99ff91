//! Clients of the library while networks change, break, and drop UDP.

#[path = "../../client/tests/support/tcp_relay.rs"]
mod tcp_relay;
#[path = "../../client/tests/support/udp_relay.rs"]
pub(crate) mod udp_relay;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use ringpost_client::{PathConfig, Status, Transport, Transports};
use tokio::task::block_in_place;
use tokio::time::sleep;

use crate::support;
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::{Peer, Place};
use crate::support::wait_until;
use tcp_relay::{TcpRelay, Way};
use udp_relay::{Conditions, UdpRelay};

/// With short waits.
fn path(transports: Transports) -> PathConfig {
    PathConfig {
        transports,
        stagger_ms: 200,
        quic_retry_ms: 200,
        quic_retry_ms_max: 400,
        probe_ms_max: 2_000,
    }
}

/// Alice by way of a relay, and bob, directly and over TLS. Numbered messages pass both ways.
struct Pair {
    alice: Peer,
    bob: Peer,
    count: usize,
}

impl Pair {
    async fn open(gateway: &Gateway, place: &Place, address: SocketAddr, path: PathConfig) -> Self {
        let shards = gateway.settings.shards;
        let (alice, bob) = (user_at(0, shards, "alice"), user_at(shards - 1, shards, "bob"));
        let bob = Peer::connect(gateway, &bob, "phone", &place.file("bob")).await;
        let database = place.file("alice");
        // Many cuts in a row must not add up to long waits.
        let way = support::peer::Way { address, path, stable_ms: 0 };
        let alice = Peer::open_by(way, gateway, &alice, "phone", &database).await;
        alice.wait("caught up", |seen| seen.count(&Status::CaughtUp) > 0).await;
        Self { alice, bob, count: 0 }
    }

    async fn talk(&mut self, count: usize) {
        for _ in 0..count {
            self.alice.send(&self.bob.user, &format!("up {}", self.count)).await;
            self.bob.send(&self.alice.user, &format!("down {}", self.count)).await;
            self.count += 1;
        }
    }

    /// Everything has arrived, both ways, and has its answer.
    async fn settle(&self) {
        for peer in [&self.alice, &self.bob] {
            peer.wait_messages(self.count).await;
            peer.wait_sent(self.count).await;
        }
    }

    /// Once each, in order.
    async fn check(self) {
        self.settle().await;
        let Self { alice, bob, count } = self;
        for (peer, name) in [(alice, "down"), (bob, "up")] {
            let seen = peer.close().await;
            let expected: Vec<String> =
                (0..count).map(|number| format!("{name} {number}")).collect();
            assert_eq!(seen.texts(), expected);
            assert_eq!(seen.sent.len(), count);
            assert_eq!((seen.refused, seen.gaps), (vec![], vec![]));
        }
    }

    fn transport(&self) -> Option<Transport> {
        self.alice.client.transport()
    }

    fn connections(&self) -> usize {
        self.alice.seen().count(&Status::Connected)
    }
}

/// UDP and TCP on one port.
fn relays(gateway: &Gateway) -> (TcpRelay, UdpRelay) {
    let server = gateway.address();
    (0..100)
        .find_map(|_| {
            let tcp = TcpRelay::start(server);
            let udp = UdpRelay::start_at(tcp.address(), server).ok()?;
            Some((tcp, udp))
        })
        .expect("a port is free for both")
}

async fn wait_transport(pair: &Pair, transport: Transport) {
    let is_there = || (pair.transport() == Some(transport)).then_some(());
    block_in_place(|| wait_until(&format!("over {transport}"), is_there));
}

/// The connections land on either shard, so that the user's home is reached from both.
async fn cut_everywhere(way: Way) {
    let gateway = Gateway::start(Settings::default());
    let relay = TcpRelay::start(gateway.address());
    let place = Place::new();
    let mut pair = Pair::open(&gateway, &place, relay.address(), path(Transports::TlsOnly)).await;
    let mut cuts = 0;
    loop {
        relay.cut_after(way, cuts);
        pair.talk(1).await;
        pair.settle().await;
        if relay.disarm() {
            break;
        }
        cuts += 1;
        let is_back = |seen: &support::peer::Seen| seen.count(&Status::CaughtUp) > cuts;
        pair.alice.wait("connected again", is_back).await;
    }
    assert!(cuts > 40, "only {cuts} cuts");
    pair.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_cut_at_every_byte_on_its_way_to_the_gateway_arrives_once() {
    cut_everywhere(Way::ToServer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_cut_at_every_byte_on_its_way_to_the_client_arrives_once() {
    cut_everywhere(Way::ToClient).await;
}

/// Over a path with delay, loss and reordering; what is under way is lost with the old network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quic_client_moves_between_lossy_networks() {
    let gateway = Gateway::start(Settings { shards: 4, ..Settings::default() });
    let relay = UdpRelay::start(gateway.address());
    relay.set(Conditions {
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(5),
        loss_permille: 20,
    });
    let place = Place::new();
    let path = PathConfig { probe_ms_max: 20_000, ..path(Transports::QuicOnly) };
    let mut pair = Pair::open(&gateway, &place, relay.address(), path).await;
    for _ in 0..10 {
        pair.talk(5).await;
        relay.cut_known();
        pair.talk(5).await;
        pair.alice.client.network_changed().await.unwrap();
        pair.talk(5).await;
    }
    pair.settle().await;
    assert_eq!((pair.connections(), pair.transport()), (1, Some(Transport::Quic)));
    let counts = block_in_place(|| {
        ["ringpost_quic_handshakes_total", "ringpost_datagrams_foreign_total"]
            .map(|name| gateway.metric(name))
    });
    assert_eq!(counts, [1.0, 0.0]);
    pair.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_moves_lose_nothing_and_need_no_handshake() {
    let gateway = Gateway::start(Settings { shards: 4, ..Settings::default() });
    let place = Place::new();
    let quic = path(Transports::QuicOnly);
    let mut pair = Pair::open(&gateway, &place, gateway.address(), quic).await;
    for _ in 0..40 {
        pair.talk(5).await;
        pair.alice.client.network_changed().await.unwrap();
    }
    pair.settle().await;
    assert_eq!(pair.connections(), 1);
    let counts = block_in_place(|| {
        ["ringpost_quic_handshakes_total", "ringpost_datagrams_foreign_total"]
            .map(|name| gateway.metric(name))
    });
    assert_eq!(counts, [1.0, 0.0]);
    pair.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_was_lost_on_the_old_path_arrives_after_the_move() {
    let gateway = Gateway::start(Settings::default());
    let relay = UdpRelay::start(gateway.address());
    let place = Place::new();
    let quic = path(Transports::QuicOnly);
    let pair = Pair::open(&gateway, &place, relay.address(), quic).await;
    relay.cut_known();
    let before = relay.counts().dropped;
    pair.bob.send(&pair.alice.user, "lost at first").await;
    let is_lost = || (relay.counts().dropped > before).then_some(());
    block_in_place(|| wait_until("the relay lost it", is_lost));
    pair.alice.client.network_changed().await.unwrap();
    let seen = pair.alice.wait_messages(1).await;
    assert_eq!(seen.texts(), ["lost at first"]);
    assert_eq!(seen.count(&Status::Connected), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_silent_rebinding_of_the_nat_the_next_packet_restores_both_ways() {
    let gateway = Gateway::start(Settings { shards: 4, ..Settings::default() });
    let relay = UdpRelay::start(gateway.address());
    let place = Place::new();
    let quic = path(Transports::QuicOnly);
    let mut pair = Pair::open(&gateway, &place, relay.address(), quic).await;
    for last in 2..=6 {
        sleep(Duration::from_millis(100)).await;
        relay.rebind(Ipv4Addr::new(127, 0, 0, last));
        pair.talk(2).await;
        pair.settle().await;
    }
    assert_eq!(pair.connections(), 1);
    pair.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_udp_is_blocked_tls_serves_and_quic_comes_back_unnoticed() {
    let gateway = Gateway::start(Settings::default());
    let (_tcp, udp) = relays(&gateway);
    udp.block(true);
    let place = Place::new();
    let both = path(Transports::Both);
    let mut pair = Pair::open(&gateway, &place, udp.address(), both).await;
    assert_eq!(pair.transport(), Some(Transport::Tls));
    pair.talk(20).await;

    udp.block(false);
    while pair.transport() != Some(Transport::Quic) {
        pair.talk(1).await;
    }
    pair.talk(20).await;
    pair.settle().await;
    assert_eq!(pair.connections(), 1, "the app did not notice");

    // The next network drops UDP again.
    udp.block(true);
    pair.alice.client.network_changed().await.unwrap();
    pair.talk(20).await;
    wait_transport(&pair, Transport::Tls).await;
    pair.talk(20).await;
    udp.block(false);
    wait_transport(&pair, Transport::Quic).await;
    pair.talk(20).await;
    pair.settle().await;
    assert_eq!(pair.connections(), 2);
    pair.check().await;
}
