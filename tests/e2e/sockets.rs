//! QUIC over sockets that are otherwise than one client's own on 127.0.0.1: shared by several
//! connections, and of IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ringpost_protocol::wire::{self, client_frame};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::timeout;

use crate::support::PATIENCE;
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::quic::{Quic, endpoint_with};
use crate::support::raw::send_frame;

/// Sends so many messages to a connection and takes them there, in order.
async fn talk(sender: &mut Quic, receiver: &mut Quic, to: &str, numbers: std::ops::Range<u64>) {
    // Long enough for several datagrams at once.
    let body = |number: u64| format!("{number:0>700}");
    for number in numbers.clone() {
        let send = send_frame(number + 1, to, &body(number));
        sender.send(client_frame::Frame::Send(send)).await;
    }
    for number in numbers.clone() {
        let deliver = receiver.expect_message().await;
        assert_eq!(deliver.envelope, body(number).as_bytes());
        receiver.send(client_frame::Frame::Ack(wire::Ack { up_to_seq: deliver.seq })).await;
    }
    for _ in numbers {
        sender.expect_answer().await.1.unwrap();
    }
}

/// Acceptance test 15: 16 connections from one socket, on all shards, with trains and without. Steered
/// they find their shards; without, everything comes to the shard of the socket's address, and what
/// is not its own is passed on.
async fn sixteen_connections_share_one_socket(steers: bool, sends_trains: bool) {
    let gateway = Gateway::start(Settings { shards: 4, steers, ..Settings::default() });
    let roots = &gateway.keys.roots_pem;
    let endpoint = endpoint_with(roots, b"ringpost/1", Ipv4Addr::LOCALHOST.into(), sends_trains);
    let mut pairs = JoinSet::new();
    for pair in 0..8_u16 {
        let (alice, bob) = (
            user_at(pair % 4, 4, &format!("alice-{pair}")),
            user_at((pair + pair / 4) % 4, 4, &format!("bob-{pair}")),
        );
        let connect = || Quic::connect_on(endpoint.clone(), gateway.address());
        let mut sender = connect().await.unwrap().welcomed(&gateway, &alice, "phone").await;
        let mut receiver = connect().await.unwrap().welcomed(&gateway, &bob, "phone").await;
        pairs.spawn(async move { talk(&mut sender, &mut receiver, &bob, 0..100).await });
    }
    while let Some(pair) = timeout(PATIENCE, pairs.join_next()).await.expect("pairs end") {
        pair.unwrap();
    }
    let metrics = block_in_place(|| {
        ["handshakes", "stateless_resets"]
            .map(|name| gateway.metric(&format!("ringpost_quic_{name}_total")))
    });
    assert_eq!(metrics, [16.0, 0.0]);
    let [foreign, forwarded, dropped] = block_in_place(|| {
        ["foreign", "forwarded", "dropped"]
            .map(|name| gateway.metric(&format!("ringpost_datagrams_{name}_total")))
    });
    assert_eq!((forwarded, dropped), (foreign, 0.0));
    // Steered, only what the kernel joined behind a datagram of another connection.
    assert!(steers || foreign > 100.0, "{foreign}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_socket_carries_sixteen_connections_in_trains() {
    sixteen_connections_share_one_socket(true, true).await;
    sixteen_connections_share_one_socket(false, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_socket_carries_sixteen_connections_without_trains() {
    sixteen_connections_share_one_socket(true, false).await;
    sixteen_connections_share_one_socket(false, false).await;
}

/// A gateway that listens on IPv6 alone, and one on all addresses, whose socket has IPv4 too: clients
/// of both kinds connect, talk to each other, and move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_is_served_over_ipv6_and_over_both() {
    let (v4, v6) = (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    for (listen, homes) in [(v6, [v6, v6]), (Ipv6Addr::UNSPECIFIED.into(), [v4, v6])] {
        let settings = Settings { shards: 4, listen: Some(listen), ..Settings::default() };
        let gateway = Gateway::start(settings);
        let (alice, bob) = (user_at(1, 4, "alice"), user_at(2, 4, "bob"));
        let open = async |home: IpAddr, user: &str| {
            let endpoint = endpoint_with(&gateway.keys.roots_pem, b"ringpost/1", home, true);
            let address = SocketAddr::new(home, gateway.address().port());
            let quic = Quic::connect_on(endpoint, address).await.unwrap();
            quic.welcomed(&gateway, user, "phone").await
        };
        let mut one = open(homes[0], &alice).await;
        let mut other = open(homes[1], &bob).await;
        for round in 0..5 {
            talk(&mut one, &mut other, &bob, round * 20..(round + 1) * 20).await;
            talk(&mut other, &mut one, &alice, round * 20..(round + 1) * 20).await;
            one.rebind();
            other.rebind();
        }
        let [handshakes, changes, foreign] = block_in_place(|| {
            ["quic_handshakes", "quic_path_changes", "datagrams_foreign"]
                .map(|name| gateway.metric(&format!("ringpost_{name}_total")))
        });
        assert_eq!((handshakes, foreign), (2.0, 0.0));
        assert!(changes >= 8.0, "{changes}");
    }
}
