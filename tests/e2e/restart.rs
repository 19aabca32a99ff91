//! A gateway whose parent has its sockets is restarted: nobody is refused, who comes meanwhile waits.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ringpost_client::{PathConfig, Status, Transports};
use ringpost_protocol::wire::{ErrorCode, client_frame};
use rustls::HandshakeKind;
use tokio::task::block_in_place;

use crate::support::frames;
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::{Peer, Place, Way};
use crate::support::raw::{Raw, send_frame, tls_config};
use crate::support::wait_until;

fn held() -> Gateway {
    Gateway::start(Settings { held: true, ..Settings::default() })
}

/// Acceptance test 12: the sockets are handed over. Those who connect while no gateway serves wait and
/// are served by the next one, with the ticket that the one before gave them; nobody is refused.
#[test]
fn who_connects_during_a_restart_waits_and_is_served() {
    let gateway = held();
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    Raw::open(&gateway, &bob, "phone");
    let mut first = Raw::open(&gateway, &alice, "phone");
    first.send(client_frame::Frame::Send(send_frame(1, &bob, "before")));
    first.expect_answer().1.unwrap();
    // Each has a ticket of its own: it is good for one connection, which brings the next one.
    let clients: Vec<_> = (0..16).map(|_| tls_config(&gateway, &[b"ringpost/1"])).collect();
    for config in &clients {
        assert_eq!(connect(&gateway, config), HandshakeKind::Full);
    }

    for signal in ["TERM", "KILL"] {
        let began = Instant::now();
        gateway.end_held(signal);
        let ended = began.elapsed();
        let waits: Vec<Duration> = thread::scope(|scope| {
            let wait = |config| {
                let began = Instant::now();
                let kind = connect(&gateway, config);
                assert_eq!(kind, HandshakeKind::Resumed, "its ticket is good");
                began.elapsed()
            };
            let late: Vec<_> =
                clients.iter().map(|config| scope.spawn(move || wait(config))).collect();
            late.into_iter().map(|late| late.join().unwrap()).collect()
        });
        let longest = waits.iter().max().unwrap();
        println!("SIG{signal}: ended after {ended:?}, 16 clients then waited at most {longest:?}");
    }
    let mut bob = Raw::open(&gateway, &bob, "phone");
    assert_eq!(bob.expect(frames::message).envelope, &b"before"[..]);
}

/// Connects and says something, after which there is a ticket.
fn connect(gateway: &Gateway, config: &Arc<rustls::ClientConfig>) -> HandshakeKind {
    let mut raw = Raw::connect_with(gateway, config).expect("nobody is refused");
    raw.hello("no token", "phone");
    raw.expect_end(ErrorCode::TokenInvalid);
    raw.tls().handshake_kind().expect("it is over")
}

/// The client library over both transports, through a drain and through a death: what was sent
/// meanwhile arrives, once and in order. Over QUIC a reset tells the client at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_back_after_a_moment() {
    let gateway = held();
    let place = Place::new();
    for (round, transports) in [Transports::TlsOnly, Transports::QuicOnly].into_iter().enumerate() {
        let (alice, bob) =
            (user_at(0, 2, &format!("alice-{round}")), user_at(1, 2, &format!("bob-{round}")));
        let open = async |user: &str| {
            let path = PathConfig { transports, ..PathConfig::default() };
            let way = Way { address: gateway.address(), path, stable_ms: 1_000 };
            let peer = Peer::open_by(way, &gateway, user, "phone", &place.file(user)).await;
            peer.wait("connected", |seen| seen.count(&Status::Connected) > 0).await;
            peer
        };
        let (bob, alice) = (open(&bob).await, open(&alice).await);
        let mut count = 0;
        for signal in ["TERM", "KILL"] {
            count += 1;
            alice.send(&bob.user, &format!("{count}")).await;
            bob.wait_messages(count).await;
            let began = Instant::now();
            block_in_place(|| gateway.end_held(signal));
            let ended = began.elapsed();
            count += 1;
            alice.send(&bob.user, &format!("{count}")).await;
            bob.wait_messages(count).await;
            let silence = began.elapsed();
            println!("{transports:?}, SIG{signal}: silent for {silence:?}, the end took {ended:?}");
        }
        let expected: Vec<_> = (1..=count).map(|number| number.to_string()).collect();
        assert_eq!(bob.seen().texts(), expected);
        alice.wait_sent(count).await;
    }
}

/// Acceptance test 11, as far as it goes: a shard that panics is not started again by itself (see
/// `ringpost_engine::launch`). The process ends at once, with its exit code and what to do; the next
/// one serves, and what was accepted arrives, once and in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_one_shard_ends_the_process_and_loses_nothing() {
    let mut gateway = Gateway::start(Settings { is_fragile: true, ..Settings::default() });
    let place = Place::new();
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let bob = Peer::connect(&gateway, &bob, "phone", &place.file("bob")).await;
    let alice = Peer::connect(&gateway, &alice, "phone", &place.file("alice")).await;
    for round in 0..4 {
        for number in 0..50 {
            alice.send(&bob.user, &format!("{}", round * 50 + number)).await;
        }
        bob.wait_messages(round * 50 + 10).await;
        block_in_place(|| {
            let mut stranger = Raw::connect(&gateway);
            stranger.hello("no token", "phone");
            let status = gateway.wait();
            assert_eq!(status.code(), Some(1), "{}", gateway.log());
            gateway.restart();
        });
        let log = gateway.log();
        for told in ["its thread ended unexpectedly", "nothing accepted is lost"] {
            assert_eq!(log.matches(told).count(), round + 1, "{log}");
        }
    }
    alice.wait_sent(200).await;
    let seen = bob.wait_messages(200).await;
    assert_eq!(seen.texts(), (0..200).map(|number| number.to_string()).collect::<Vec<_>>());
}

/// One socket for two shards is refused, with the fix.
#[test]
fn sockets_that_do_not_fit_are_refused() {
    let mut gateway = held();
    gateway.settings.shards = 3;
    gateway.end_held("TERM");
    let told = || gateway.log().contains("2 sockets for TCP").then_some(());
    wait_until("it is refused", told);
    assert!(gateway.log().contains("set shards to 2"), "{}", gateway.log());
}
