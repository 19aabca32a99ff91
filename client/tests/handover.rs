//! QUIC and TLS against each other, and changes of the network, on real sockets.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringpost_client::{PathConfig, SendId, Status, Transport, Transports};
use support::app::{App, wait_until};
use support::gateway::{Gateway, Order};
use support::tcp_relay::{TcpRelay, Way};
use support::udp_relay::Conditions;
use tempfile::TempDir;
use tokio::time::sleep;

const TLS_ONLY: PathConfig = only(Transports::TlsOnly);
const QUIC_ONLY: PathConfig = only(Transports::QuicOnly);

const fn only(transports: Transports) -> PathConfig {
    PathConfig { transports, ..both() }
}

/// With short waits.
const fn both() -> PathConfig {
    PathConfig {
        transports: Transports::Both,
        stagger_ms: 100,
        quic_retry_ms: 100,
        quic_retry_ms_max: 200,
        probe_ms_max: 400,
    }
}

async fn start(path: PathConfig) -> (Gateway, TempDir, App) {
    let gateway = Gateway::start(b"ringpost/1").await;
    let store = tempfile::tempdir().unwrap();
    let app = App::open(&gateway, store.path(), path).await;
    app.wait_caught_up(1).await;
    (gateway, store, app)
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// Messages in both directions, numbered from 1.
struct Traffic {
    count: u64,
}

impl Traffic {
    async fn run(&mut self, gateway: &Gateway, app: &App, count: u64) {
        for _ in 0..count {
            self.count += 1;
            let number = self.count;
            app.send(&format!("up {number}")).await;
            gateway.push(number, &format!("down {number}"));
        }
    }

    /// Each message arrived once and in order, both ways, and each Send has one answer.
    async fn check(&self, gateway: &Gateway, app: &App) {
        let count = usize::try_from(self.count).unwrap();
        let enough = "as many messages and answers as were sent";
        let seen =
            app.wait(enough, |seen| seen.messages.len() >= count && seen.sent.len() >= count).await;
        let numbered = |name: &str| -> Vec<String> {
            (1..=self.count).map(|number| format!("{name} {number}")).collect()
        };
        assert_eq!(seen.messages, numbered("down"));
        assert_eq!(seen.sent, (1..=self.count).map(SendId).collect::<Vec<_>>());
        let state = gateway.state.lock().unwrap();
        let stored: Vec<String> = state.stored.iter().map(|row| row.2.clone()).collect();
        assert_eq!(stored, numbered("up"));
    }
}

#[tokio::test]
async fn quic_wins_where_both_work() {
    let (gateway, _store, app) = start(both()).await;
    assert_eq!(app.client.transport(), Some(Transport::Quic));
    assert_eq!(gateway.hellos(), 1);
    let mut traffic = Traffic { count: 0 };
    traffic.run(&gateway, &app, 20).await;
    traffic.check(&gateway, &app).await;
    app.client.close().await;
    assert_eq!(app.client.transport(), None);
}

#[tokio::test]
async fn hello_goes_out_once_when_both_come_through() {
    let gateway = Gateway::start(b"ringpost/1").await;
    for round in 1..=20 {
        let store = tempfile::tempdir().unwrap();
        let app = App::open(&gateway, store.path(), PathConfig { stagger_ms: 0, ..both() }).await;
        app.wait_caught_up(1).await;
        app.client.close().await;
        assert_eq!(gateway.hellos(), round);
    }
    // The losers have been closed, and were never heard.
    sleep(Duration::from_millis(100)).await;
    assert_eq!(gateway.hellos(), 20);
}

#[tokio::test]
async fn without_udp_tls_serves_and_quic_takes_over_later() {
    let gateway = Gateway::start(b"ringpost/1").await;
    gateway.udp.block(true);
    let store = tempfile::tempdir().unwrap();
    let app = App::open(&gateway, store.path(), both()).await;
    app.wait_caught_up(1).await;
    assert_eq!(app.client.transport(), Some(Transport::Tls));
    let mut traffic = Traffic { count: 0 };
    traffic.run(&gateway, &app, 50).await;

    gateway.udp.block(false);
    while app.client.transport() != Some(Transport::Quic) {
        traffic.run(&gateway, &app, 1).await;
    }
    traffic.run(&gateway, &app, 50).await;
    traffic.check(&gateway, &app).await;
    assert_eq!(gateway.hellos(), 2);
    // The app did not notice.
    assert_eq!(app.seen().statuses, [Status::Connected, Status::CaughtUp]);
}

#[tokio::test]
async fn a_transport_that_dies_is_replaced_by_the_other() {
    let gateway = Gateway::start(b"ringpost/1").await;
    gateway.udp.block(true);
    let store = tempfile::tempdir().unwrap();
    // QUIC is not tried again on its own.
    let path = PathConfig { quic_retry_ms: 60_000, quic_retry_ms_max: 60_000, ..both() };
    let app = App::open(&gateway, store.path(), path).await;
    app.wait_caught_up(1).await;
    let mut traffic = Traffic { count: 0 };
    traffic.run(&gateway, &app, 10).await;

    gateway.close_tcp();
    gateway.udp.block(false);
    gateway.order(Order::Drop);
    app.wait_transport(Transport::Quic).await;
    traffic.run(&gateway, &app, 10).await;
    traffic.check(&gateway, &app).await;
}

#[tokio::test]
async fn a_quic_connection_moves_with_the_network_mid_stream() {
    let (gateway, _store, app) = start(PathConfig { probe_ms_max: 10_000, ..both() }).await;
    gateway.udp.set(Conditions {
        delay: Duration::from_millis(3),
        jitter: Duration::from_millis(4),
        loss_permille: 20,
    });
    let mut traffic = Traffic { count: 0 };
    for _ in 0..10 {
        traffic.run(&gateway, &app, 10).await;
        // What is under way is lost with the old network.
        gateway.udp.cut_known();
        traffic.run(&gateway, &app, 10).await;
        app.client.network_changed().await.unwrap();
        traffic.run(&gateway, &app, 10).await;
    }
    traffic.check(&gateway, &app).await;
    assert_eq!(gateway.hellos(), 1);
    assert_eq!(load(&gateway.counts.quic_handshakes), 1);
    assert_eq!(load(&gateway.counts.tls_handshakes), 0);
    assert_eq!(app.disconnections(), 0);
}

#[tokio::test]
async fn a_tls_connection_resumes_on_the_new_network() {
    let (gateway, _store, app) = start(TLS_ONLY).await;
    let mut traffic = Traffic { count: 0 };
    for round in 1..=10 {
        traffic.run(&gateway, &app, 10).await;
        app.client.network_changed().await.unwrap();
        wait_until("the next Hello", || gateway.hellos() > round).await;
    }
    traffic.run(&gateway, &app, 10).await;
    traffic.check(&gateway, &app).await;
    assert_eq!(load(&gateway.counts.tls_handshakes), 11);
    assert_eq!(load(&gateway.counts.resumed), 10);
    assert_eq!(app.disconnections(), 10);
}

#[tokio::test]
async fn where_udp_is_blocked_after_a_move_tls_takes_over_and_quic_comes_back() {
    let (gateway, _store, app) = start(both()).await;
    let mut traffic = Traffic { count: 0 };
    traffic.run(&gateway, &app, 20).await;
    gateway.udp.block(true);
    app.client.network_changed().await.unwrap();
    traffic.run(&gateway, &app, 20).await;
    app.wait_transport(Transport::Tls).await;
    assert_eq!(app.disconnections(), 1);
    traffic.run(&gateway, &app, 20).await;

    gateway.udp.block(false);
    app.wait_transport(Transport::Quic).await;
    traffic.run(&gateway, &app, 20).await;
    traffic.check(&gateway, &app).await;
    assert_eq!(gateway.hellos(), 3);
    assert_eq!(app.disconnections(), 1);
}

#[tokio::test]
async fn a_push_that_was_lost_on_the_old_path_arrives_after_the_move() {
    let (gateway, _store, app) = start(QUIC_ONLY).await;
    gateway.udp.cut_known();
    let before = gateway.udp.counts().dropped;
    gateway.push(1, "lost at first");
    wait_until("the relay lost it", || gateway.udp.counts().dropped > before).await;
    app.client.network_changed().await.unwrap();
    let seen = app.wait("the push", |seen| !seen.messages.is_empty()).await;
    assert_eq!(seen.messages, ["lost at first"]);
    assert_eq!((gateway.hellos(), app.disconnections()), (1, 0));
}

#[tokio::test]
async fn after_a_silent_rebinding_of_the_nat_the_next_packet_restores_both_ways() {
    let (gateway, _store, app) = start(QUIC_ONLY).await;
    let mut traffic = Traffic { count: 0 };
    for last in 2..=6 {
        sleep(Duration::from_millis(100)).await;
        gateway.udp.rebind(Ipv4Addr::new(127, 0, 0, last));
        traffic.run(&gateway, &app, 3).await;
        traffic.check(&gateway, &app).await;
    }
    assert_eq!((gateway.hellos(), app.disconnections()), (1, 0));
    assert_eq!(load(&gateway.counts.quic_handshakes), 1);
}

#[tokio::test]
async fn a_network_change_while_connecting_begins_anew() {
    let gateway = Gateway::start(b"ringpost/1").await;
    gateway.udp.block(true);
    let store = tempfile::tempdir().unwrap();
    let app = App::open(&gateway, store.path(), QUIC_ONLY).await;
    app.client.network_changed().await.unwrap();
    sleep(Duration::from_millis(50)).await;
    gateway.udp.block(false);
    app.client.network_changed().await.unwrap();
    app.wait_caught_up(1).await;
    assert_eq!((gateway.hellos(), app.disconnections()), (1, 0));
}

/// Until a cut falls behind the last byte.
async fn cut_everywhere(way: Way) {
    let gateway = Gateway::start(b"ringpost/1").await;
    let relay = TcpRelay::start(gateway.address.parse().unwrap());
    let store = tempfile::tempdir().unwrap();
    let address = relay.address().to_string();
    let app = App::open_at(&address, &gateway, store.path(), TLS_ONLY).await;
    app.wait_caught_up(1).await;
    let mut traffic = Traffic { count: 0 };
    let mut cuts = 0;
    loop {
        relay.cut_after(way, cuts);
        traffic.run(&gateway, &app, 1).await;
        traffic.check(&gateway, &app).await;
        if relay.disarm() {
            break;
        }
        cuts += 1;
        app.wait_caught_up(cuts + 1).await;
    }
    assert!(cuts > 40, "only {cuts} cuts");
    let handshakes = load(&gateway.counts.tls_handshakes);
    assert_eq!(handshakes, cuts as u64 + 1);
    assert_eq!(load(&gateway.counts.resumed), handshakes - 1);
}

#[tokio::test]
async fn a_frame_cut_at_every_byte_on_its_way_to_the_server_arrives_once() {
    cut_everywhere(Way::ToServer).await;
}

#[tokio::test]
async fn a_frame_cut_at_every_byte_on_its_way_to_the_client_arrives_once() {
    cut_everywhere(Way::ToClient).await;
}

#[tokio::test]
async fn tickets_are_used_and_early_data_never_is() {
    let gateway = Gateway::start(b"ringpost/1").await;
    for path in [QUIC_ONLY, TLS_ONLY] {
        let store = tempfile::tempdir().unwrap();
        let app = App::open(&gateway, store.path(), path).await;
        app.wait_caught_up(1).await;
        let resumed = load(&gateway.counts.resumed);
        for round in 1..=5 {
            gateway.order(Order::Drop);
            app.wait_caught_up(1 + round).await;
            assert_eq!(load(&gateway.counts.resumed), resumed + round as u64);
        }
    }
    assert_eq!(load(&gateway.counts.early), 0);
}
