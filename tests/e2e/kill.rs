//! kill -9 under load: what was accepted is not lost, nothing reaches the app twice, the order of
//! each sender is kept, and clients come back by themselves.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ringpost_client::SendError;

use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::{Peer, Place, Stop};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_load_lose_nothing() {
    kill_rounds(5, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute; run by .ci/run"]
async fn twenty_kills_under_load_lose_nothing() {
    kill_rounds(20, rand::random()).await;
}

async fn kill_rounds(rounds: usize, seed: u64) {
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut gateway = Gateway::start(Settings::default());
    let place = Place::new();
    // Each sends to the next one: both directions of the mesh, and shards by themselves.
    let users: Vec<String> = [0, 0, 1, 1]
        .map(|shard| user_at(shard, 2, &format!("s{shard}")))
        .into_iter()
        .enumerate()
        .map(|(number, user)| unique(&user, number))
        .collect();
    let mut peers = Vec::new();
    for user in &users {
        peers.push(Peer::connect(&gateway, user, "phone", &place.file(user)).await);
    }
    let stop = Stop::default();
    let load: Vec<_> = peers
        .iter()
        .enumerate()
        .map(|(number, peer)| {
            let next = users[(number + 1) % users.len()].clone();
            tokio::spawn(keep_sending(peer.client.clone(), next, stop.clone()))
        })
        .collect();

    for round in 0..rounds {
        let up = Duration::from_millis(random.random_range(50..600));
        tokio::time::sleep(up).await;
        gateway.kill();
        let down = Duration::from_millis(random.random_range(0..100));
        tokio::time::sleep(down).await;
        gateway.restart();
        println!("round {round}: killed after {up:?}, back after {down:?}");
    }

    stop.set();
    let mut counts = Vec::new();
    for task in load {
        counts.push(task.await.unwrap());
    }
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
    for (number, peer) in peers.iter().enumerate() {
        peer.wait_sent(counts[number]).await;
        peer.wait_messages(counts[(number + users.len() - 1) % users.len()]).await;
    }
    for (number, peer) in peers.into_iter().enumerate() {
        let seen = peer.close().await;
        let count = counts[(number + users.len() - 1) % users.len()];
        let expected: Vec<String> = (0..count).map(|number| number.to_string()).collect();
        assert_eq!(seen.texts(), expected, "seed {seed}");
        assert_eq!(seen.sent.len(), counts[number], "each is answered once, seed {seed}");
        assert!(seen.refused.is_empty() && seen.gaps.is_empty(), "seed {seed}");
    }
    println!("{counts:?} messages");
}

/// Numbers to one recipient until told to stop; gives how many.
async fn keep_sending(client: ringpost_client::Client, to: String, stop: Stop) -> usize {
    let to = ringpost_protocol::id::UserId::new(&to).unwrap();
    let mut count = 0;
    while !stop.is_set() {
        let body = ringpost_protocol::message::SendBody::Shared(count.to_string().into());
        let to = ringpost_protocol::message::Recipient::User(to.clone());
        match client.send(to, body, ringpost_client::SendOptions::default()).await {
            Ok(_) => count += 1,
            // Full while the gateway is down.
            Err(SendError::Fault(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(SendError::Closed(closed)) => panic!("{closed}"),
        }
    }
    count
}

/// Another user of the same shard for each number.
fn unique(user: &str, number: usize) -> String {
    let shard = ringpost_protocol::id::UserId::new(user).unwrap().slot().shard(2);
    user_at(shard, 2, &format!("user{number}"))
}
