//! Another number of storage shards at start: what waits for absent devices is rewritten and still
//! delivered in order, once, also when the rewriting is killed again and again.

use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ringpost_client::Status;

use crate::support::gateway::{Gateway, Settings};
use crate::support::peer::{Peer, Place};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_number_of_storage_shards_keeps_what_waits() {
    let settings = Settings { shards: 3, storage_shards: Some(1), ..Settings::default() };
    let mut gateway = Gateway::start(settings);
    let place = Place::new();
    queue_messages(&gateway, &place, 100).await;
    for shards in [3, 2] {
        assert_eq!(gateway.stop().code(), Some(0));
        gateway.settings.storage_shards = Some(shards);
        gateway.restart();
        assert_eq!(stores(&gateway), usize::from(shards));
        let sender = Peer::connect(&gateway, "sender", "phone", &place.file("sender")).await;
        for number in 0..USERS {
            sender.send(&name(number), &format!("of {shards}")).await;
        }
        sender.wait("all sent", |seen| seen.sent.len() == USERS).await;
        sender.close().await;
    }
    // Without the key the recorded number stays.
    assert_eq!(gateway.stop().code(), Some(0));
    gateway.settings.storage_shards = None;
    gateway.restart();
    assert_eq!(stores(&gateway), 2);
    let mut expected = texts(100);
    expected.extend(["of 3".to_owned(), "of 2".to_owned()]);
    all_return(&gateway, &place, &expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_rewriting_begins_anew() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let settings = Settings { shards: 4, storage_shards: Some(2), ..Settings::default() };
    let mut gateway = Gateway::start(settings);
    let place = Place::new();
    queue_messages(&gateway, &place, 200).await;
    assert_eq!(gateway.stop().code(), Some(0));
    let mut shards = 2;
    for round in 1..=12 {
        // Never what is recorded: the one before may have finished or not.
        shards = if stores(&gateway) == shards { shards % 4 + 1 } else { shards };
        gateway.settings.storage_shards = Some(u16::try_from(shards).unwrap());
        // Longer and longer: on a slow machine too, some end before and some after the switch.
        let after = Duration::from_millis(random.random_range(0..100 * round));
        gateway.kill_while_starting("re-sharding: ", after);
    }
    let begun = gateway.log().matches("re-sharding: ").count();
    let finished = gateway.log().matches("re-sharded").count();
    println!("{begun} begun, {finished} finished");
    assert!(begun == 12 && finished < begun, "none was cut off");
    gateway.settings.storage_shards = Some(3);
    gateway.restart();
    assert_eq!(stores(&gateway), 3);
    all_return(&gateway, &place, &texts(200)).await;
}

/// Everybody registers and leaves; then one sender writes to all of them.
async fn queue_messages(gateway: &Gateway, place: &Place, messages_each: usize) {
    for number in 0..USERS {
        let user = name(number);
        Peer::connect(gateway, &user, "phone", &place.file(&user)).await.close().await;
    }
    let sender = Peer::connect(gateway, "sender", "phone", &place.file("sender")).await;
    for (message, text) in texts(messages_each).iter().enumerate() {
        for number in 0..USERS {
            sender.send(&name(number), text).await;
        }
        sender.wait_sent((message + 1) * USERS).await;
    }
    let seen = sender.close().await;
    assert!(seen.refused.is_empty() && seen.gaps.is_empty());
}

async fn all_return(gateway: &Gateway, place: &Place, expected: &[String]) {
    for number in 0..USERS {
        let user = name(number);
        let peer = Peer::connect(gateway, &user, "phone", &place.file(&user)).await;
        peer.wait_messages(expected.len()).await;
        peer.wait("caught up", |seen| seen.count(&Status::CaughtUp) > 0).await;
        let seen = peer.close().await;
        assert_eq!(seen.texts(), expected, "{user}");
        assert!(seen.gaps.is_empty());
    }
}

/// Directories of storage shards in the only generation, if it is the only one.
fn stores(gateway: &Gateway) -> usize {
    let entries = |path: &Path| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    // A killed one leaves a second generation; the larger number is not the current one if it is
    // incomplete, so look at what CURRENT says.
    let store = gateway.path().join("store/store");
    let current = std::fs::read(gateway.path().join("store/CURRENT")).unwrap();
    let generation = u64::from_le_bytes(current[12..20].try_into().unwrap());
    entries(&store.join(format!("gen-{generation}"))).count()
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{number} {}", "x".repeat(500))).collect()
}

fn name(number: usize) -> String {
    format!("absent-{number}")
}

const USERS: usize = 10;
