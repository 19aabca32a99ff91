//! SIGTERM under load: clients are told to come back, and what was accepted is kept.

use std::time::Duration;

use ringpost_client::Status;

use crate::offline::told_to_leave;
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::{Peer, Place, Stop};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_keeps_everything() {
    let mut gateway = Gateway::start(Settings::default());
    let place = Place::new();
    let (alice, bob) = (user_at(0, 2, "alice"), user_at(1, 2, "bob"));
    let bob = Peer::connect(&gateway, &bob, "phone", &place.file("bob")).await;
    let alice = Peer::connect(&gateway, &alice, "phone", &place.file("alice")).await;
    for round in 1..=3 {
        let stop = Stop::default();
        let load = async {
            let mut count = 0;
            while !stop.is_set() {
                match alice.try_send(&bob.user, &format!("{round} {count}")).await {
                    Ok(_) => count += 1,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
            count
        };
        let restart = async {
            bob.wait_messages(bob.seen().messages.len() + 50).await;
            gateway.terminate();
            let status = tokio::task::block_in_place(|| gateway.wait());
            assert_eq!(status.code(), Some(0), "{}", gateway.log());
            tokio::task::block_in_place(|| gateway.restart());
            stop.set();
        };
        let (count, ()) = tokio::join!(load, restart);
        let before =
            bob.seen().texts().iter().filter(|t| !t.starts_with(&format!("{round} "))).count();
        alice.wait_sent(before + count).await;
        bob.wait_messages(before + count).await;
        let texts = bob.seen().texts();
        let expected: Vec<String> = (0..count).map(|number| format!("{round} {number}")).collect();
        assert_eq!(texts[before..], expected);
        for peer in [&alice, &bob] {
            assert!(told_to_leave(&peer.seen()), "{:?}", peer.seen().statuses);
            peer.wait("back", |seen| seen.count(&Status::Connected) > round).await;
        }
    }
    let seen = alice.close().await;
    assert!(seen.refused.is_empty());
    assert_eq!(seen.sent.len(), bob.close().await.messages.len());
}
