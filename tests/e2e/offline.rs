//! What waits for absent devices survives the gateway's end.

use ringpost_client::Status;
use ringpost_protocol::limits::DELIVERS_UNACKED_MAX;
use ringpost_protocol::wire::Ack;
use ringpost_protocol::wire::client_frame::Frame;

use crate::support::frames;
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::{Peer, Place, Seen};
use crate::support::raw::{Raw, framed, send_frame};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_wait_through_a_restart() {
    let mut gateway = Gateway::start(Settings::default());
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let place = Place::new();
    Peer::connect(&gateway, &bob, "phone", &place.file("bob")).await.close().await;
    let alice = Peer::connect(&gateway, &alice, "phone", &place.file("alice")).await;
    // No more than a quarter of the mailbox.
    for number in 0..250 {
        alice.send(&bob, &number.to_string()).await;
    }
    let last = alice.wait_sent(250).await.sent.last().unwrap().send_seq;

    assert_eq!(gateway.stop().code(), Some(0));
    alice.wait("the GoAway", told_to_leave).await;
    gateway.restart();
    alice.wait("connected again", |seen| seen.count(&Status::Connected) == 2).await;

    let phone = Peer::connect(&gateway, &bob, "phone", &place.file("bob")).await;
    phone.wait_messages(250).await;
    phone.wait("caught up", |seen| seen.count(&Status::CaughtUp) > 0).await;
    let expected: Vec<String> = (0..250).map(|number| number.to_string()).collect();
    assert_eq!(phone.close().await.texts(), expected);

    // What was acknowledged does not come again, with the same database or without. It may have been
    // acknowledged in several parts.
    let covers_all =
        |seen: &Seen| seen.receipts.last().is_some_and(|receipt| receipt.up_to_send_seq == last);
    alice.wait("the last receipt", covers_all).await;
    let phone = Peer::connect(&gateway, &bob, "phone", &place.file("another")).await;
    phone.wait("caught up", |seen| seen.count(&Status::CaughtUp) > 0).await;
    assert_eq!(phone.close().await.texts(), Vec::<String>::new());
}

/// The second acknowledgement comes while the receipt of the first is under way: the window opens
/// when that is stored, and by then the device has nothing left to acknowledge.
#[test]
fn delivery_goes_on_when_a_receipt_holds_up_what_was_acknowledged() {
    const EACH: u32 = 200;
    let gateway = Gateway::start(Settings::default());
    drop(Raw::open(&gateway, "bob", "phone"));
    for user in ["alice", "carol"] {
        let mut sender = Raw::open(&gateway, user, "phone");
        for number in 1..=EACH {
            sender.send(Frame::Send(send_frame(number.into(), "bob", "waits")));
        }
        for _ in 1..=EACH {
            sender.expect_answer().1.unwrap();
        }
    }
    let mut bob = Raw::open(&gateway, "bob", "phone");
    let seqs: Vec<u64> =
        (0..DELIVERS_UNACKED_MAX).map(|_| bob.expect(frames::message).seq).collect();
    let (first, last) = (seqs[0], seqs[DELIVERS_UNACKED_MAX - 1]);
    let acks = [first, last].map(|up_to_seq| framed(Frame::Ack(Ack { up_to_seq })));
    bob.send_bytes(&acks.concat());
    for _ in DELIVERS_UNACKED_MAX..2 * EACH as usize {
        bob.expect(frames::message);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_devices_return_after_a_restart() {
    absent_devices(50, 20).await;
}

/// Registers them, sends while they are away, restarts, and lets them return.
async fn absent_devices(device_count: usize, messages_each: usize) {
    let mut gateway = Gateway::start(Settings::default());
    let place = Place::new();
    let name = |number: usize| format!("absent-{number}");
    for_each_device(device_count, async |number| {
        let user = name(number);
        Peer::connect(&gateway, &user, "phone", &place.file(&user)).await.close().await;
    })
    .await;

    let sender = Peer::connect(&gateway, "sender", "phone", &place.file("sender")).await;
    for message in 0..messages_each {
        for number in 0..device_count {
            sender.send(&name(number), &message.to_string()).await;
        }
        // The outbox is bounded.
        sender.wait_sent((message + 1) * device_count).await;
    }
    let seen = sender.close().await;
    assert!(seen.refused.is_empty() && seen.sent.len() == device_count * messages_each);
    assert_eq!(gateway.stop().code(), Some(0));
    gateway.restart();

    let expected: Vec<String> = (0..messages_each).map(|message| message.to_string()).collect();
    for_each_device(device_count, async |number| {
        let user = name(number);
        let peer = Peer::connect(&gateway, &user, "phone", &place.file(&user)).await;
        peer.wait_messages(messages_each).await;
        peer.wait("caught up", |seen| seen.count(&Status::CaughtUp) > 0).await;
        assert_eq!(peer.close().await.texts(), expected, "{user}");
    })
    .await;
}

/// Some at a time: each has a database open.
async fn for_each_device(count: usize, act: impl AsyncFn(usize)) {
    let lanes = (0..LANES).map(async |lane| {
        for number in (lane..count).step_by(LANES) {
            act(number).await;
        }
    });
    futures_join(lanes).await;
}

/// Runs futures together on this task.
async fn futures_join(futures: impl Iterator<Item: Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.map(|future| Some(Box::pin(future))).collect();
    std::future::poll_fn(|context| {
        for slot in &mut futures {
            if slot.as_mut().is_some_and(|future| future.as_mut().poll(context).is_ready()) {
                *slot = None;
            }
        }
        match futures.iter().any(Option::is_some) {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        }
    })
    .await;
}

pub fn told_to_leave(seen: &Seen) -> bool {
    seen.statuses.iter().any(|status| {
        matches!(status, Status::Disconnected { reason, .. } if reason.contains("asked to leave"))
    })
}

const LANES: usize = 16;
