//! QUIC beside TLS: the same frames, through shards that are not the home of their users, from
//! addresses that change, and against clients that do not keep the rules.

use std::time::Duration;

use ringpost_protocol::wire::{self, ErrorCode, client_frame, server_frame};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{sleep, timeout};

use crate::support::PATIENCE;
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::{Keys, user_at};
use crate::support::quic::{Quic, dial, endpoint};
use crate::support::raw::{Raw, framed, send_frame};
use crate::support::wait_until;

/// Sends so many numbers to `to`, and waits until all are accepted.
async fn send_numbers(quic: &mut Quic, to: &str, numbers: std::ops::Range<u64>) {
    for number in numbers.clone() {
        let send = send_frame(number + 1, to, &number.to_string());
        quic.send(client_frame::Frame::Send(send)).await;
    }
    for _ in numbers {
        let (_, answer) = quic.expect_answer().await;
        answer.unwrap();
    }
}

/// Takes so many messages, acknowledged one by one, and requires that they are the numbers in order.
async fn expect_numbers(quic: &mut Quic, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let deliver = quic.expect_message().await;
        assert_eq!(deliver.envelope, number.to_string().as_bytes());
        quic.send(client_frame::Frame::Ack(wire::Ack { up_to_seq: deliver.seq })).await;
    }
}

fn shards(shards: u16) -> Gateway {
    Gateway::start(Settings { shards, ..Settings::default() })
}

/// Users of every shard, several connections each: some have their home at the edge, most have not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_both_ways_through_whatever_shards() {
    let gateway = shards(4);
    let mut pairs = JoinSet::new();
    for from in 0..4 {
        for to in 0..4 {
            let alice = user_at(from, 4, &format!("alice-{from}-{to}"));
            let bob = user_at(to, 4, &format!("bob-{from}-{to}"));
            let mut receiver = Quic::open(&gateway, &bob, "phone").await;
            let mut sender = Quic::open(&gateway, &alice, "phone").await;
            pairs.spawn(async move {
                tokio::join!(
                    send_numbers(&mut sender, &bob, 0..100),
                    expect_numbers(&mut receiver, 0..100)
                );
                sender.expect_delivered(100).await;
                tokio::join!(
                    send_numbers(&mut receiver, &alice, 0..10),
                    expect_numbers(&mut sender, 0..10)
                );
            });
        }
    }
    while let Some(pair) = timeout(PATIENCE, pairs.join_next()).await.expect("pairs end") {
        pair.unwrap();
    }
    let metrics = block_in_place(|| {
        [
            "ringpost_quic_handshakes_total",
            "ringpost_moves_total",
            "ringpost_datagrams_foreign_total",
        ]
        .map(|name| gateway.metric(name))
    });
    let [handshakes, moves, foreign] = metrics;
    assert_eq!((handshakes, foreign), (32.0, 0.0));
    assert!((1.0..32.0).contains(&moves), "{moves}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_and_tls_talk_to_each_other() {
    let gateway = shards(2);
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let mut quic = Quic::open(&gateway, &alice, "phone").await;
    let mut tls = block_in_place(|| Raw::open(&gateway, &bob, "phone"));
    send_numbers(&mut quic, &bob, 0..20).await;
    block_in_place(|| {
        for number in 0..20 {
            let deliver = tls.expect(|frame| match frame {
                server_frame::Frame::Deliver(deliver) => Some(deliver),
                _ => None,
            });
            assert_eq!(deliver.envelope, number.to_string().as_bytes());
        }
        tls.send(client_frame::Frame::Send(send_frame(1, &alice, "0")));
        tls.expect_answer().1.unwrap();
    });
    expect_numbers(&mut quic, 0..1).await;
    // A newer connection wins, whatever carries it.
    let mut newer = block_in_place(|| Raw::open(&gateway, &alice, "phone"));
    quic.expect_end(ErrorCode::Replaced).await;
    assert_eq!(quic.closed().await, 0);
    let newest = Quic::open(&gateway, &alice, "phone").await;
    block_in_place(|| newer.expect_end(ErrorCode::Replaced));
    drop(newest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_new_addresses_lose_nothing() {
    forty_new_addresses("quic.steering = \"keyed\"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_new_addresses_lose_nothing_with_plain_ids() {
    forty_new_addresses("quic.steering = \"plain\"").await;
}

/// The client's port changes in the middle of the stream, and the kernel finds the shard all the same.
async fn forty_new_addresses(listener: &'static str) {
    let gateway = Gateway::start(Settings { shards: 4, listener, ..Settings::default() });
    let (alice, bob) = (user_at(1, 4, "alice"), user_at(2, 4, "bob"));
    let mut receiver = Quic::open(&gateway, &bob, "phone").await;
    let mut sender = Quic::open(&gateway, &alice, "phone").await;
    for round in 0..40 {
        sender.rebind();
        receiver.rebind();
        let numbers = round * 25..(round + 1) * 25;
        tokio::join!(
            send_numbers(&mut sender, &bob, numbers.clone()),
            expect_numbers(&mut receiver, numbers)
        );
        // So that the mailbox has room for the next ones.
        sender.expect_delivered((round + 1) * 25).await;
    }
    block_in_place(|| {
        assert_eq!(gateway.metric("ringpost_datagrams_foreign_total"), 0.0);
        assert_eq!(gateway.metric("ringpost_quic_handshakes_total"), 2.0);
        assert_eq!(gateway.metric("ringpost_quic_stateless_resets_total"), 0.0);
        assert!(gateway.metric("ringpost_quic_path_changes_total") >= 40.0);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateway_is_forgotten_at_once_and_mail_is_kept() {
    let mut gateway = shards(2);
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    drop(Quic::open(&gateway, &bob, "phone").await);
    let mut sender = Quic::open(&gateway, &alice, "phone").await;
    send_numbers(&mut sender, &bob, 0..50).await;
    block_in_place(|| {
        gateway.kill();
        gateway.restart();
    });
    // The new process has the old one's keys, so it may say that it knows nothing of this.
    sender.send(client_frame::Frame::Ping(wire::Ping {})).await;
    let ended = timeout(PATIENCE, sender.connection.closed()).await.expect("it is told");
    assert_eq!(ended, quinn::ConnectionError::Reset);
    let mut receiver = Quic::open(&gateway, &bob, "phone").await;
    expect_numbers(&mut receiver, 0..50).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_says_go_away() {
    let mut gateway = shards(4);
    let mut clients = Vec::new();
    for shard in 0..4 {
        clients.push(Quic::open(&gateway, &user_at(shard, 4, "user"), "phone").await);
    }
    gateway.terminate();
    for client in &mut clients {
        let away = client.expect(|frame| match frame {
            server_frame::Frame::GoAway(away) => Some(away),
            _ => None,
        });
        away.await;
        assert_eq!(client.read_frame().await, None);
        assert_eq!(client.closed().await, 0);
    }
    assert_eq!(block_in_place(|| gateway.wait()).code(), Some(0), "{}", gateway.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_for_new_connections() {
    let gateway = shards(2);
    let mut before = Quic::open(&gateway, "alice", "phone").await;
    let directory = tempfile::tempdir().unwrap();
    let others = Keys::prepare(directory.path());
    for name in ["cert.pem", "key.pem"] {
        std::fs::copy(directory.path().join(name), gateway.path().join(name)).unwrap();
    }
    assert!(block_in_place(|| gateway.reload(&gateway.config())), "{}", gateway.log());
    // Several, so that every shard is met.
    for _ in 0..8 {
        Quic::connect_to(gateway.address(), &others.roots_pem).await.unwrap();
        assert!(Quic::try_connect(&gateway).await.is_err(), "the old one is still shown");
    }
    before.send(client_frame::Frame::Ping(wire::Ping {})).await;
    before.expect(|frame| matches!(frame, server_frame::Frame::Pong(_)).then_some(())).await;
}

/// One connection sends and does not read; the others notice nothing, and it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_is_bounded() {
    let gateway =
        Gateway::start(Settings { limits: "send_stall_ms_max = 1000", ..Settings::default() });
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let slow = Quic::open(&gateway, &alice, "phone").await;
    let mut quick = Quic::open(&gateway, &bob, "phone").await;
    let body = "x".repeat(8_000);
    for send_seq in 1..=100 {
        quick.send(client_frame::Frame::Send(send_frame(send_seq, &alice, &body))).await;
        quick.expect_answer().await.1.unwrap();
    }
    let stalled = |gateway: &Gateway| gateway.metric("ringpost_slow_consumers_total") >= 1.0;
    block_in_place(|| wait_until("the slow one ends", || stalled(&gateway).then_some(())));
    quick.send(client_frame::Frame::Ping(wire::Ping {})).await;
    quick.expect(|frame| matches!(frame, server_frame::Frame::Pong(_)).then_some(())).await;
    assert_eq!(slow.closed().await, 2);
    // What it did not take is there for the next connection.
    let mut again = Quic::open(&gateway, &alice, "phone").await;
    let deliver = again.expect_message().await;
    assert_eq!(deliver.envelope.len(), body.len());
}

/// Whoever breaks the rules loses his connection, and nobody else notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_costs_one_connection() {
    let gateway = shards(2);
    let mut good = Quic::open(&gateway, "alice", "phone").await;

    let mut garbage = Quic::connect(&gateway).await;
    garbage.send_bytes(&[0xff, 0xff, 0x7f]).await;
    garbage.expect_end(ErrorCode::FrameTooLong).await;

    let mut early = Quic::connect(&gateway).await;
    early.send(client_frame::Frame::Ping(wire::Ping {})).await;
    assert!(early.read_frame().await.is_some());
    assert_eq!(early.closed().await, 0);

    let mut cut = Quic::open(&gateway, "bob", "phone").await;
    let frame = framed(client_frame::Frame::Ping(wire::Ping {}));
    cut.send_bytes(&frame[..1]).await;
    cut.finish();
    cut.expect_end(ErrorCode::FrameTruncated).await;

    // There is room for one stream, and for none of the other kind.
    let more = Quic::open(&gateway, "carol", "phone").await;
    for opened in [
        timeout(Duration::from_millis(300), more.connection.open_bi()).await.is_ok(),
        timeout(Duration::from_millis(300), more.connection.open_uni()).await.is_ok(),
    ] {
        assert!(!opened, "a second stream");
    }

    let h3 = endpoint(&gateway.keys.roots_pem, b"h3");
    assert!(dial(&h3, gateway.address()).await.is_err(), "another protocol");

    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for bytes in [&[][..], &[0x40], &[0xc0; 7], &[0x40; 30], &[0xff; 1200]] {
        stranger.send_to(bytes, gateway.address()).unwrap();
    }
    sleep(Duration::from_millis(50)).await;
    good.send(client_frame::Frame::Ping(wire::Ping {})).await;
    good.expect(|frame| matches!(frame, server_frame::Frame::Pong(_)).then_some(())).await;
    assert_eq!(block_in_place(|| gateway.metric("ringpost_quic_panics_total")), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limits_of_connections_hold_for_quic() {
    let gateway = Gateway::start(Settings {
        limits: "address_exempt = [], address_connections_max = 3, handshake_ms_max = 1000",
        ..Settings::default()
    });
    let mut held = Vec::new();
    for number in 0..3 {
        held.push(Quic::open(&gateway, &format!("user-{number}"), "phone").await);
    }
    // It has to prove its address, and is then refused without a handshake.
    let fourth = Quic::try_connect(&gateway).await.err();
    assert!(matches!(fourth, Some(quinn::ConnectionError::ConnectionClosed(_))), "{fourth:?}");
    block_in_place(|| {
        let refused = "ringpost_connections_refused_total{reason=\"address_connections\"}";
        assert!(gateway.metric(refused) >= 1.0);
        assert!(gateway.metric("ringpost_quic_retries_total") >= 1.0);
        assert_eq!(gateway.metric("ringpost_quic_handshakes_total"), 3.0);
    });
    // One that goes makes room, also at the home shard.
    drop(held.pop());
    block_in_place(|| {
        wait_until("it is gone", || (gateway.metric("ringpost_connections") < 3.0).then_some(()));
    });
    let mut silent = Quic::connect(&gateway).await;
    // It begins a frame, so that the stream is there, and says no more.
    silent.send_bytes(&[0x20]).await;
    silent.expect_end(ErrorCode::HelloTimeout).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_can_be_off() {
    for listener in
        ["quic.enabled = false", "proxy_protocol = true\nproxy_trusted = [\"127.0.0.0/8\"]"]
    {
        let gateway = Gateway::start(Settings { listener, ..Settings::default() });
        let dialled = timeout(Duration::from_millis(500), Quic::try_connect(&gateway)).await;
        assert!(!matches!(dialled, Ok(Ok(_))), "{listener}");
        assert!(gateway.log().contains("no QUIC"), "{}", gateway.log());
    }
}

/// Without steering most of what comes from a new address comes to a wrong shard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unsteered_datagrams_are_passed_on() {
    // Two of the shards own no mailboxes: they are edges and nothing else.
    let (shards, storage_shards) = (4, Some(2));
    let settings = Settings { shards, storage_shards, steers: false, ..Settings::default() };
    let gateway = Gateway::start(settings);
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let mut receiver = Quic::open(&gateway, &bob, "phone").await;
    let mut sender = Quic::open(&gateway, &alice, "phone").await;
    // Where a datagram comes to is chance: of so many about 170 come to a wrong shard.
    for round in 0..20 {
        sender.rebind();
        receiver.rebind();
        let numbers = round * 10..(round + 1) * 10;
        tokio::join!(
            send_numbers(&mut sender, &bob, numbers.clone()),
            expect_numbers(&mut receiver, numbers)
        );
    }
    block_in_place(|| {
        let foreign = gateway.metric("ringpost_datagrams_foreign_total");
        let forwarded = gateway.metric("ringpost_datagrams_forwarded_total");
        let dropped = gateway.metric("ringpost_datagrams_dropped_total");
        assert!(foreign >= 50.0, "{foreign}");
        assert!(forwarded + dropped >= foreign - 4.0, "{foreign} {forwarded} {dropped}");
        assert_eq!(gateway.metric("ringpost_quic_handshakes_total"), 2.0);
    });
}

/// Clients that vanish at any moment: before and behind their Hello, while their connection is on its
/// way home, pushed out by the next one of the same device. Nothing of them stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_vanishes_leaves_nothing_behind() {
    let mut gateway = shards(4);
    let mut clients = JoinSet::new();
    for number in 0..120_u64 {
        // Twelve devices, so that each is replaced often.
        let user = user_at(u16::try_from(number % 4).unwrap(), 4, &format!("user-{}", number % 12));
        let token = gateway.keys.token(&user, "phone");
        let (address, roots_pem) = (gateway.address(), gateway.keys.roots_pem.clone());
        clients.spawn(async move {
            let mut quic = Quic::connect_to(address, &roots_pem).await.unwrap();
            quic.hello(&token, "phone").await;
            match number % 5 {
                0 => {} // dropped without a word
                1 => quic.connection.close(7_u32.into(), b"bye"),
                2 => quic.finish(),
                3 => sleep(Duration::from_millis(number % 9)).await,
                _ => {
                    quic.send_bytes(&framed(client_frame::Frame::Ping(wire::Ping {}))).await;
                    let _ = timeout(Duration::from_millis(number % 50), quic.read_frame()).await;
                    quic.connection.close(0_u32.into(), b"");
                }
            }
            let endpoint = quic.endpoint.clone();
            drop(quic);
            // What is dropped tells the gateway that it is gone.
            endpoint.wait_idle().await;
        });
    }
    while let Some(client) = timeout(PATIENCE, clients.join_next()).await.expect("clients end") {
        client.unwrap();
    }
    block_in_place(|| {
        for name in
            ["ringpost_connections", "ringpost_quic_connections", "ringpost_mesh_unanswered"]
        {
            wait_until(name, || (gateway.metric(name) == 0.0).then_some(()));
        }
    });
    // Once more, into a gateway that drains.
    let mut late = JoinSet::new();
    for number in 0..40 {
        let token = gateway.keys.token(&format!("late-{number}"), "phone");
        let (address, roots_pem) = (gateway.address(), gateway.keys.roots_pem.clone());
        late.spawn(async move {
            if let Ok(mut quic) = Quic::connect_to(address, &roots_pem).await {
                quic.hello(&token, "phone").await;
                let _ = quic.connection.closed().await;
            }
        });
        if number == 20 {
            gateway.terminate();
        }
    }
    assert_eq!(block_in_place(|| gateway.wait()).code(), Some(0), "{}", gateway.log());
    late.abort_all();
}

/// So many handshakes at once that clients have to prove their addresses, and first packets are spread
/// by the kernel. Who is connected notices nothing, and who comes gets in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_is_spread() {
    let gateway = Gateway::start(Settings {
        listener: "quic.retry_handshakes_pending = 0",
        ..Settings::default()
    });
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let mut receiver = Quic::open(&gateway, &bob, "phone").await;
    let mut sender = Quic::open(&gateway, &alice, "phone").await;
    let crowd = endpoint(&gateway.keys.roots_pem, b"ringpost/1");
    let floods = || block_in_place(|| gateway.metric("ringpost_quic_floods_total"));
    let mut dialled = Vec::new();
    let deadline = std::time::Instant::now() + PATIENCE;
    while floods() == 0.0 {
        assert!(std::time::Instant::now() < deadline, "no flood");
        // Dropped at once: a client that begins and does not go on.
        dialled.extend((0..1_000).map(|_| crowd.connect(gateway.address(), "localhost").unwrap()));
        sleep(Duration::from_millis(20)).await;
        dialled.clear();
    }
    assert!(block_in_place(|| gateway.metric("ringpost_quic_retries_total")) >= 256.0);
    for round in 0..5 {
        sender.rebind();
        let numbers = round * 10..(round + 1) * 10;
        tokio::join!(
            send_numbers(&mut sender, &bob, numbers.clone()),
            expect_numbers(&mut receiver, numbers)
        );
    }
    for number in 0..8 {
        drop(Quic::open(&gateway, &format!("late-{number}"), "phone").await);
    }
    block_in_place(|| wait_until("calm", || gateway.log().contains("spreads=false").then_some(())));
    drop(Quic::open(&gateway, "after", "phone").await);
    assert_eq!(block_in_place(|| gateway.metric("ringpost_quic_panics_total")), 0.0);
}
