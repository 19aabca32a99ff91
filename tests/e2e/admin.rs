//! What an operator sees.

use crate::support::gateway::{Gateway, Settings};
use crate::support::peer::{Peer, Place};
use crate::support::wait_until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_move_with_the_messages() {
    let gateway = Gateway::start(Settings::default());
    let (status, body) = gateway.get("/healthz");
    assert_eq!(status, 200);
    assert!(body.contains("\"alive\""), "{body}");
    let (status, body) = gateway.get("/readyz");
    assert_eq!(status, 200);
    assert!(body.contains("\"ready\"") && body.contains("\"shards_ready\":2"), "{body}");
    assert_eq!(gateway.get("/nothing").0, 404);

    let at_rest = [
        ("ringpost_connections", 0.0),
        ("ringpost_messages_accepted_total", 0.0),
        ("ringpost_messages_delivered_total", 0.0),
        ("ringpost_time_to_delivery_seconds_count", 0.0),
        ("ringpost_queued_records", 0.0),
        ("ringpost_shards", 2.0),
        ("ringpost_shards_silent", 0.0),
    ];
    for (name, value) in at_rest {
        assert_eq!(gateway.metric(name), value, "{name}");
    }
    assert!(gateway.metric("process_resident_memory_bytes") > 0.0);

    let place = Place::new();
    let alice = Peer::connect(&gateway, "alice", "phone", &place.file("alice")).await;
    Peer::connect(&gateway, "bob", "phone", &place.file("bob")).await.close().await;
    for number in 0..20 {
        alice.send("bob", &number.to_string()).await;
    }
    alice.wait_sent(20).await;
    assert_eq!(gateway.metric("ringpost_messages_accepted_total"), 20.0);
    assert_eq!(gateway.metric("ringpost_queued_records"), 20.0);
    assert_eq!(gateway.metric("ringpost_mailboxes"), 2.0);
    assert!(gateway.metric("ringpost_store_sync_seconds_count") > 0.0);
    assert!(gateway.metric("ringpost_store_segments") > 0.0);
    wait_until("one socket", || (gateway.metric("ringpost_connections") == 1.0).then_some(()));

    let bob = Peer::connect(&gateway, "bob", "phone", &place.file("bob")).await;
    bob.wait_messages(20).await;
    assert_eq!(gateway.metric("ringpost_connections"), 2.0);
    assert_eq!(gateway.metric("ringpost_messages_delivered_total"), 20.0);
    assert_eq!(gateway.metric("ringpost_time_to_delivery_seconds_count"), 20.0);
    // The receipt stays with alice until she acknowledges it.
    wait_until("nothing queued", || {
        (gateway.metric("ringpost_queued_records") == 0.0).then_some(())
    });
    assert_eq!(gateway.metric("ringpost_hello_accepted_total"), 3.0);
    assert_eq!(gateway.metric("ringpost_peer_faults_total"), 0.0);
}
