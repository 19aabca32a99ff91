//! kill -9 under load: what was accepted is not lost, nothing reaches the app twice, the order of
//! each sender is kept, and clients come back by themselves.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ringpost_client::{Client, SendError, SendOptions};
use ringpost_protocol::id::UserId;
use ringpost_protocol::message::{Recipient, SendBody};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::PATIENCE;
use crate::support::gateway::{Gateway, Settings};
use crate::support::keys::user_at;
use crate::support::peer::{Peer, Place, Seen, Stop};

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
    let mut peers = Vec::new();
    for (shard, name) in [(0, "alice"), (0, "bob"), (1, "carol"), (1, "dave")] {
        let user = user_at(shard, 2, name);
        peers.push(Peer::connect(&gateway, &user, "phone", &place.file(name)).await);
    }
    let stop = Stop::default();
    let mut load = Vec::new();
    for from in &peers {
        for to in peers.iter().filter(|to| to.user != from.user) {
            let (client, watcher) = (from.client.clone(), to.watcher());
            let sending =
                keep_sending(client, from.user.clone(), to.user.clone(), watcher, stop.clone());
            load.push((from.user.clone(), to.user.clone(), tokio::spawn(sending)));
        }
    }

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
    for (from, to, task) in load {
        counts.push((from, to, task.await.unwrap()));
    }
    let total = |is_counted: &dyn Fn(&str, &str) -> bool| -> usize {
        let counted = counts.iter().filter(|(from, to, _)| is_counted(from, to));
        counted.map(|(_, _, count)| count).sum()
    };
    for peer in &peers {
        peer.wait_sent(total(&|from, _| from == peer.user)).await;
        peer.wait_messages(total(&|_, to| to == peer.user)).await;
    }
    for peer in peers {
        let user = peer.user.clone();
        let seen = peer.close().await;
        for (from, _, count) in counts.iter().filter(|(_, to, _)| *to == user) {
            assert!(*count > 0, "no load");
            let got = seen.texts_from(from);
            let expected = (0..*count).map(|number| number.to_string());
            let wrong = got.iter().zip(expected).position(|(got, expected)| *got != expected);
            if let Some(index) = wrong {
                let around = &got[index.saturating_sub(5)..got.len().min(index + 5)];
                panic!("{from} to {user}, seed {seed}: wrong at {index}: {around:?}");
            }
            assert_eq!(got.len(), *count, "{from} to {user}, seed {seed}");
        }
        let sent = total(&|from, _| from == user);
        assert_eq!(seen.sent.len(), sent, "each is answered once, seed {seed}");
        assert_eq!((seen.refused, seen.gaps), (vec![], vec![]), "seed {seed}");
    }
    println!("{} messages", total(&|_, _| true));
}

/// Numbers to one recipient until told to stop; gives how many. Waits for the recipient only when it
/// is far ahead: a sender's share of a mailbox shall fill up.
async fn keep_sending(
    client: Client,
    from: String,
    to: String,
    mut watcher: watch::Receiver<Seen>,
    stop: Stop,
) -> usize {
    let to = Recipient::User(UserId::new(&to).unwrap());
    let mut count: usize = 0;
    while !stop.is_set() {
        if count.is_multiple_of(AHEAD_MAX / 2) {
            let reached = |seen: &Seen| seen.count_from(&from) + AHEAD_MAX / 2 >= count;
            let result = timeout(PATIENCE, watcher.wait_for(reached)).await;
            drop(result.expect("the recipient follows").expect("the recipient is there"));
        }
        let body = SendBody::Shared(count.to_string().into());
        match client.send(to.clone(), body, SendOptions::default()).await {
            Ok(_) => count += 1,
            // Full while the gateway is down.
            Err(SendError::Fault(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(SendError::Closed(closed)) => panic!("{closed}"),
        }
    }
    count
}

/// Messages of one sender that its recipient has not seen.
const AHEAD_MAX: usize = 800;
