//! Full mailboxes: senders are refused and retry in order, absent devices learn of a gap.

use ringpost_client::Status;
use ringpost_protocol::message::{GapReason, RejectCode, SkipReason};
use ringpost_protocol::wire::{self, client_frame, server_frame};

use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::{Peer, Place};
use crate::support::raw::{Raw, send_frame};
use crate::support::wait_until;

/// A mailbox of eight records: two for each sender.
fn small_mailboxes() -> Gateway {
    Gateway::start(Settings { mailbox_records_max: 8, ..Settings::default() })
}

#[test]
fn a_refused_send_blocks_the_later_ones_on_one_shard() {
    refused_sends_keep_the_order(1);
}

#[test]
fn a_refused_send_blocks_the_later_ones_across_shards() {
    refused_sends_keep_the_order(0);
}

fn refused_sends_keep_the_order(sender_shard: u16) {
    let gateway = small_mailboxes();
    let (alice, bob) = (user_at(sender_shard, 2, "alice"), user_at(1, 2, "bob"));
    drop(Raw::open(&gateway, &bob, "phone"));
    let mut alice = Raw::open(&gateway, &alice, "phone");
    for send_seq in 1..=4 {
        alice.send(client_frame::Frame::Send(send_frame(send_seq, &bob, &send_seq.to_string())));
    }
    let share = Some(RejectCode::SenderShare);
    assert_eq!(answers(&mut alice, 4), [(1, None), (2, None), (3, share), (4, share)]);

    // There is room again, but number 3 has not been retried.
    let mut phone = Raw::open(&gateway, &bob, "phone");
    assert_eq!(take_and_ack(&mut phone, 2), ["1", "2"]);
    // Only the receipt for alice is left; it is durable before the room is given back.
    wait_until("room in the mailbox", || {
        (gateway.metric("ringpost_queued_records") == 1.0).then_some(())
    });
    alice.send(client_frame::Frame::Send(send_frame(5, &bob, "5")));
    assert_eq!(answers(&mut alice, 1), [(5, share)]);
    let retry = wire::Send { after_reject: true, ..send_frame(6, &bob, "3") };
    alice.send(client_frame::Frame::Send(retry));
    alice.send(client_frame::Frame::Send(send_frame(7, &bob, "4")));
    assert_eq!(answers(&mut alice, 2), [(6, None), (7, None)]);
    assert_eq!(take_and_ack(&mut phone, 2), ["3", "4"]);
}

#[test]
fn several_senders_fill_a_mailbox() {
    let gateway = small_mailboxes();
    drop(Raw::open(&gateway, "bob", "phone"));
    for number in 0..4 {
        let mut sender = Raw::open(&gateway, &format!("sender-{number}"), "phone");
        for send_seq in 1..=2 {
            sender.send(client_frame::Frame::Send(send_frame(send_seq, "bob", "text")));
            assert!(sender.expect_answer().1.is_ok());
        }
    }
    let mut late = Raw::open(&gateway, "late", "phone");
    late.send(client_frame::Frame::Send(send_frame(1, "bob", "text")));
    let rejected = late.expect_answer().1.unwrap_err();
    assert_eq!(rejected.code(), RejectCode::MailboxFull);
    assert!(gateway.metric("ringpost_messages_rejected_total") >= 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_retries_in_order() {
    let gateway = small_mailboxes();
    let place = Place::new();
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    Peer::connect(&gateway, &bob, "phone", &place.file("bob")).await.close().await;
    let alice = Peer::connect(&gateway, &alice, "phone", &place.file("alice")).await;
    for number in 0..4 {
        alice.send(&bob, &number.to_string()).await;
    }
    alice.wait_sent(2).await;
    let bob = Peer::connect(&gateway, &bob, "phone", &place.file("bob")).await;
    let expected: Vec<String> = (0..4).map(|number| number.to_string()).collect();
    assert_eq!(bob.wait_messages(4).await.texts(), expected);
    assert_eq!(alice.wait_sent(4).await.refused, []);
    assert_eq!(bob.close().await.gaps, [], "what was refused is no gap");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_device_is_skipped_and_learns_of_it() {
    let gateway = small_mailboxes();
    let place = Place::new();
    let (alice, carol) = (user_at(0, 2, "alice"), user_at(1, 2, "carol"));
    let open =
        async |device: &str| Peer::connect(&gateway, &carol, device, &place.file(device)).await;
    open("tablet").await.close().await;
    let phone = open("phone").await;
    let alice = Peer::connect(&gateway, &alice, "phone", &place.file("alice")).await;
    // The phone acknowledges each one; the tablet is away and full for alice after two.
    for number in 0..5 {
        alice.send(&carol, &number.to_string()).await;
        phone.wait_messages(number + 1).await;
        let covered = |seen: &crate::support::peer::Seen| {
            let last = seen.sent.get(number).map(|sent| sent.send_seq);
            last.is_some() && seen.receipts.last().map(|receipt| receipt.up_to_send_seq) >= last
        };
        alice.wait("its receipt", covered).await;
    }
    let sent = alice.wait_sent(5).await.sent;
    for (number, sent) in sent.iter().enumerate() {
        let skipped: Vec<_> =
            sent.skipped.iter().map(|(_, device, reason)| (device.as_str(), *reason)).collect();
        let expected = if number < 2 { vec![] } else { vec![("tablet", SkipReason::Full)] };
        assert_eq!(skipped, expected, "message {number}");
    }

    let tablet = open("tablet").await;
    tablet.wait("caught up", |seen| seen.count(&Status::CaughtUp) > 0).await;
    let seen = tablet.wait("the gap", |seen| !seen.gaps.is_empty()).await;
    assert_eq!(seen.texts(), ["0", "1"]);
    assert_eq!(seen.gaps.iter().map(|gap| gap.reason).collect::<Vec<_>>(), [GapReason::Full]);
    // The app was told, but the acknowledgements may still be on their way.
    wait_until("room in the mailbox", || {
        (gateway.metric("ringpost_queued_records") == 0.0).then_some(())
    });
    alice.send(&carol, "room again").await;
    assert_eq!(tablet.wait_messages(3).await.texts()[2], "room again");
    assert_eq!(tablet.close().await.gaps.len(), 1);
}

/// The next answers by number, with why they were refused. A refusal need not wait for the disk.
fn answers(sender: &mut Raw, count: usize) -> Vec<(u64, Option<RejectCode>)> {
    let answer = |(send_seq, answer): (u64, Result<wire::Accepted, wire::Rejected>)| {
        let code = answer.err().map(|rejected| {
            assert!(rejected.code().is_retryable() && rejected.retry_after_ms > Some(0));
            rejected.code()
        });
        (send_seq, code)
    };
    let mut answers: Vec<_> = (0..count).map(|_| answer(sender.expect_answer())).collect();
    answers.sort_unstable_by_key(|(send_seq, _)| *send_seq);
    answers
}

/// The texts of the next messages, which are acknowledged.
fn take_and_ack(device: &mut Raw, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let deliver = device.expect(|frame| match frame {
            server_frame::Frame::Deliver(deliver) => Some(deliver),
            _ => None,
        });
        texts.push(String::from_utf8(deliver.envelope.to_vec()).unwrap());
        device.send(client_frame::Frame::Ack(wire::Ack { up_to_seq: deliver.seq }));
    }
    texts
}
