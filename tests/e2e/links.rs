//! A phone that leaves one network for another in the middle of what is said. The link goes down, as
//! the radio does; a moment later the app hears of it.

use std::thread;
use std::time::{Duration, Instant};

use ringpost_client::{PathConfig, Status, Transport, Transports};
use tokio::runtime::Builder;
use tokio::sync::Barrier;
use tokio::time::{sleep, timeout};

use crate::support::PATIENCE;
use crate::support::gateway::{Gateway, Settings};
use crate::support::netns::{GATEWAY, Networks};
use crate::support::peer::{Peer, Place, Way};

/// What a phone noticed of its changes of networks.
struct Noticed {
    transport: Option<Transport>,
    connections: usize,
    /// Longest time between two messages.
    silence: Duration,
}

/// Acceptance test 5: in order, nothing lost or doubled, and no new connection.
#[test]
#[ignore = "needs root and ip; run by .ci/run"]
fn a_phone_changes_its_network_over_quic() {
    let (noticed, handshakes) = change_networks(Transports::default());
    println!("QUIC: longest silence {:?}", noticed.silence);
    assert_eq!(noticed.transport, Some(Transport::Quic));
    assert_eq!((noticed.connections, handshakes), (1, 1.0), "the connection has moved");
}

/// The same without UDP: new connections.
#[test]
#[ignore = "needs root and ip; run by .ci/run"]
fn a_phone_changes_its_network_over_tcp() {
    let (noticed, handshakes) = change_networks(Transports::TlsOnly);
    println!("TCP: longest silence {:?}", noticed.silence);
    assert_eq!(noticed.transport, Some(Transport::Tls));
    // A change that comes while she connects makes no connection of its own.
    assert!((2..=1 + CHANGES).contains(&noticed.connections), "{}", noticed.connections);
    assert_eq!(handshakes, 0.0);
}

/// Bob, at the gateway, writes to alice all the time, and she to him, while her links come and go.
/// Gives what she noticed, and QUIC's handshakes.
fn change_networks(transports: Transports) -> (Noticed, f64) {
    let networks = Networks::new();
    let settings = Settings { listen: Some(GATEWAY), shards: 4, ..Settings::default() };
    let gateway = networks.at_gateway(|| Gateway::start(settings));
    let both_are_known = Barrier::new(2);
    let noticed = thread::scope(|scope| {
        let bob = scope.spawn(|| networks.at_gateway(|| bob(&gateway, &both_are_known)));
        let noticed = networks.at_phone(|| alice(&gateway, &networks, transports, &both_are_known));
        bob.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        noticed
    });
    let handshakes = networks.at_gateway(|| gateway.metric("ringpost_quic_handshakes_total"));
    (noticed, handshakes)
}

fn bob(gateway: &Gateway, both_are_known: &Barrier) {
    run(async {
        let place = Place::new();
        let bob = Peer::connect(gateway, "bob", "phone", &place.file("bob")).await;
        timeout(PATIENCE, both_are_known.wait()).await.unwrap();
        for number in 0..MESSAGES {
            bob.send("alice", &number.to_string()).await;
            sleep(PACE).await;
        }
        let seen = bob.wait_messages(MESSAGES).await;
        assert_eq!(seen.texts(), numbers());
        bob.wait_sent(MESSAGES).await;
        bob.close().await;
    });
}

fn alice(
    gateway: &Gateway,
    networks: &Networks,
    transports: Transports,
    both_are_known: &Barrier,
) -> Noticed {
    run(async {
        let place = Place::new();
        let path = PathConfig { transports, ..PathConfig::default() };
        let way = Way { address: gateway.address(), path, stable_ms: 0 };
        let alice = Peer::open_by(way, gateway, "alice", "phone", &place.file("alice")).await;
        alice.wait("caught up", |seen| seen.count(&Status::CaughtUp) > 0).await;
        timeout(PATIENCE, both_are_known.wait()).await.unwrap();
        let mut link = 0;
        let (mut silence, mut told, mut last) = (Duration::ZERO, 0, Instant::now());
        for number in 0..MESSAGES {
            alice.send("bob", &number.to_string()).await;
            if number % (MESSAGES / (CHANGES + 1)) == MESSAGES / (CHANGES + 1) - 1
                && number + 1 < MESSAGES
            {
                networks.restore(1 - link);
                networks.cut(link);
                link = 1 - link;
                sleep(UNTIL_TOLD).await;
                alice.client.network_changed().await.unwrap();
            }
            sleep(PACE).await;
            let now_told = alice.seen().messages.len();
            if now_told > told {
                silence = silence.max(last.elapsed());
                (told, last) = (now_told, Instant::now());
            }
        }
        let seen = alice.wait_messages(MESSAGES).await;
        assert_eq!(seen.texts(), numbers());
        alice.wait_sent(MESSAGES).await;
        let transport = alice.client.transport();
        let connections = alice.seen().count(&Status::Connected);
        alice.close().await;
        Noticed { transport, connections, silence }
    })
}

fn numbers() -> Vec<String> {
    (0..MESSAGES).map(|number| number.to_string()).collect()
}

/// On threads of the namespace that the caller is in.
fn run<T>(work: impl Future<Output = T>) -> T {
    Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

const MESSAGES: usize = 200;
const CHANGES: usize = 3;
const PACE: Duration = Duration::from_millis(10);
/// A phone's system does not tell its apps at once.
const UNTIL_TOLD: Duration = Duration::from_millis(60);
