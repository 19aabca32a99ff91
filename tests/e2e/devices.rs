//! One device, two connections.

use ringpost_client::Status;
use ringpost_protocol::wire::ErrorCode;

use crate::support::gateway::{Gateway, Settings};
use crate::support::peer::{Peer, Place};
use crate::support::raw::Raw;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_connection_of_a_device_wins() {
    let gateway = Gateway::start(Settings::default());
    let place = Place::new();
    let alice = Peer::connect(&gateway, "alice", "phone", &place.file("alice")).await;
    let older = Peer::connect(&gateway, "bob", "phone", &place.file("older")).await;
    alice.send("bob", "to the older").await;
    older.wait_messages(1).await;
    alice.wait("the receipt", |seen| seen.receipts.len() == 1).await;

    let newer = Peer::connect(&gateway, "bob", "phone", &place.file("newer")).await;
    older.wait("replaced", |seen| seen.count(&Status::Replaced) == 1).await;
    for number in 0..20 {
        alice.send("bob", &number.to_string()).await;
    }
    let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    assert_eq!(newer.wait_messages(20).await.texts(), expected);
    // It does not fight back by itself, only when the user asks.
    assert_eq!(older.seen().texts(), ["to the older"]);
    older.client.reconnect().await.unwrap();
    newer.wait("replaced in turn", |seen| seen.count(&Status::Replaced) == 1).await;
    older.wait("connected again", |seen| seen.count(&Status::Connected) == 2).await;
    alice.send("bob", "to the older again").await;
    let last = "to the older again".to_owned();
    let seen = older.wait("the last", |seen| seen.texts().last() == Some(&last)).await;
    // With what the newer one had not acknowledged in time, which is another installation.
    assert!([expected, vec![last]].concat().ends_with(&seen.texts()[1..]), "{seen:?}");
    assert_eq!(newer.close().await.messages.len(), 20);
}

#[test]
fn the_older_connection_is_told_why() {
    let gateway = Gateway::start(Settings::default());
    let mut older = Raw::open(&gateway, "bob", "phone");
    let mut newer = Raw::open(&gateway, "bob", "phone");
    older.expect_end(ErrorCode::Replaced);
    let mut newest = Raw::open(&gateway, "bob", "phone");
    newer.expect_end(ErrorCode::Replaced);
    // Another device of the user is not concerned.
    Raw::open(&gateway, "bob", "tablet");
    newest.send(ringpost_protocol::wire::client_frame::Frame::Ping(Default::default()));
    newest.expect(|frame| {
        matches!(frame, ringpost_protocol::wire::server_frame::Frame::Pong(_)).then_some(())
    });
}
