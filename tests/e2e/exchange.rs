//! Two clients talk: answers, receipts, order, on one shard and across two.

use ringpost_protocol::message::{GapReason, RejectCode, SkipReason};

use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::{Peer, Place, Seen};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_on_one_shard() {
    let gateway = Gateway::start(Settings::default());
    exchange(&gateway, &user_at(1, 2, "alice"), &user_at(1, 2, "bob")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_on_different_shards() {
    let gateway = Gateway::start(Settings::default());
    exchange(&gateway, &user_at(0, 2, "alice"), &user_at(1, 2, "bob")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clients_on_the_only_shard() {
    let gateway = Gateway::start(Settings { shards: 1, ..Settings::default() });
    exchange(&gateway, "alice", "bob").await;
}

async fn exchange(gateway: &Gateway, alice: &str, bob: &str) {
    let place = Place::new();
    let alice = Peer::connect(gateway, alice, "phone", &place.file("alice")).await;
    let bob = Peer::connect(gateway, bob, "phone", &place.file("bob")).await;
    for number in 0..COUNT {
        alice.send(&bob.user, &format!("to bob {number}")).await;
        bob.send(&alice.user, &format!("to alice {number}")).await;
    }
    for (one, other, text) in [(&alice, &bob, "to bob"), (&bob, &alice, "to alice")] {
        let expected: Vec<String> = (0..COUNT).map(|number| format!("{text} {number}")).collect();
        assert_eq!(other.wait_messages(COUNT).await.texts(), expected);
        let sent = one.wait_sent(COUNT).await.sent;
        assert!(sent.is_sorted_by(|a, b| a.id < b.id && a.send_seq < b.send_seq));
        assert!(sent.iter().all(|sent| sent.skipped.is_empty() && sent.server_time_ms > 0));
        let last = sent.last().unwrap().send_seq;
        let covers_all = |seen: &Seen| {
            seen.receipts.last().is_some_and(|receipt| receipt.up_to_send_seq == last)
        };
        let receipts = one.wait("the last receipt", covers_all).await.receipts;
        assert!(receipts.is_sorted_by_key(|receipt| receipt.up_to_send_seq));
        assert!(receipts.iter().all(|receipt| receipt.peer.user.as_str() == other.user));
    }
    for seen in [alice.close().await, bob.close().await] {
        assert_eq!(seen.messages.len(), COUNT, "none comes twice");
        assert!(seen.messages.is_sorted_by_key(|message| message.send_seq));
        assert!(seen.messages.iter().all(|message| message.sent_at_ms > 0));
        assert_eq!((seen.refused, seen.gaps), (vec![], vec![]));
    }
}

/// What the outbox took under the limits of the protocol is told as refused, and holds up nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_above_the_limits_of_the_server() {
    let gateway = Gateway::start(Settings { frame_bytes_max: 16_384, ..Settings::default() });
    let place = Place::new();
    let bob = Peer::connect(&gateway, "bob", "phone", &place.file("bob")).await;
    let alice = Peer::connect(&gateway, "alice", "phone", &place.file("alice")).await;
    alice.send("bob", "before").await;
    let too_large = alice.send("bob", &"x".repeat(20_000)).await;
    alice.send("bob", "after").await;
    assert_eq!(bob.wait_messages(2).await.texts(), ["before", "after"]);
    let seen = alice.wait("the refusal", |seen| !seen.refused.is_empty()).await;
    let refused: Vec<_> = seen.refused.iter().map(|one| (one.id, one.code)).collect();
    assert_eq!(refused, [(too_large, RejectCode::TooLarge)]);
    assert_eq!(gateway.metric("ringpost_peer_faults_total"), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_device_of_a_user_gets_it() {
    let gateway = Gateway::start(Settings::default());
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let place = Place::new();
    let phone = Peer::connect(&gateway, &bob, "phone", &place.file("phone")).await;
    let tablet = Peer::connect(&gateway, &bob, "tablet", &place.file("tablet")).await;
    let alice = Peer::connect(&gateway, &alice, "phone", &place.file("alice")).await;

    alice.send(&bob, "for both").await;
    alice.send_each(&bob, vec![("phone", "for the phone"), ("tablet", "for the tablet")]).await;
    let partly = alice.send_each(&bob, vec![("tablet", "tablet again"), ("watch", "nobody")]).await;
    // To one's own user: every device but the sending one.
    phone.send(&bob, "from my phone").await;

    assert_eq!(phone.wait_messages(2).await.texts(), ["for both", "for the phone"]);
    let expected = ["for both", "for the tablet", "tablet again"];
    let got = tablet.wait_messages(4).await;
    assert_eq!(got.texts_from(&alice.user), expected);
    assert_eq!(got.texts_from(&bob), ["from my phone"]);
    let sent = alice.wait_sent(3).await.sent;
    assert!(sent[..2].iter().all(|sent| sent.skipped.is_empty()));
    assert_eq!(sent[2].id, partly);
    let skipped: Vec<_> =
        sent[2].skipped.iter().map(|(_, device, reason)| (device.as_str(), *reason)).collect();
    assert_eq!(skipped, [("watch", SkipReason::Unknown)]);
    assert_eq!(phone.close().await.messages.len(), 2);
    assert_eq!(tablet.close().await.messages.len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_recipient_is_refused() {
    let gateway = Gateway::start(Settings::default());
    let place = Place::new();
    let alice = Peer::connect(&gateway, "alice", "phone", &place.file("alice")).await;
    let bob = Peer::connect(&gateway, "bob", "phone", &place.file("bob")).await;
    for shard in 0..2 {
        alice.send(&user_at(shard, 2, "nobody"), "hello?").await;
    }
    let only_unknown_devices = alice.send_each("bob", vec![("watch", "nobody")]).await;
    alice.send("bob", "you are there").await;
    let seen = alice.wait("all answers", |seen| seen.refused.len() + seen.sent.len() == 4).await;
    assert_eq!(seen.refused.len(), 3);
    assert!(seen.refused.iter().all(|refused| refused.code == RejectCode::UnknownRecipient));
    assert!(seen.refused.iter().any(|refused| refused.id == only_unknown_devices));
    assert_eq!(bob.wait_messages(1).await.texts(), ["you are there"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_message_leaves_a_gap() {
    let gateway = Gateway::start(Settings::default());
    let place = Place::new();
    let alice = Peer::connect(&gateway, "alice", "phone", &place.file("alice")).await;
    Peer::connect(&gateway, "bob", "phone", &place.file("bob")).await.close().await;
    let options = ringpost_client::SendOptions { ttl_ms: 1, ..Default::default() };
    let to = ringpost_protocol::id::UserId::new("bob").unwrap();
    let body = ringpost_protocol::message::SendBody::Shared("short-lived".into());
    let to = ringpost_protocol::message::Recipient::User(to);
    alice.client.send(to, body, options).await.unwrap();
    alice.send("bob", "lasting").await;
    alice.wait_sent(2).await;
    // Its millisecond has passed: the second answer came after it was stored.
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let bob = Peer::connect(&gateway, "bob", "phone", &place.file("bob")).await;
    let seen = bob.wait("message and gap", |s| s.messages.len() + s.gaps.len() == 2).await;
    assert_eq!(seen.texts(), ["lasting"]);
    assert_eq!(seen.gaps.iter().map(|gap| gap.reason).collect::<Vec<_>>(), [GapReason::Expired]);
}

const COUNT: usize = 100;
