//! kill -9 under load, at any moment. This proves nothing about durability, because the page cache
//! survives: see `power.rs` for that.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use ringpost_client::Transports;

use crate::support::PATIENCE;
use crate::support::gateway::{Gateway, Settings};
use crate::support::load::Load;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_load_lose_nothing() {
    kill_rounds(5, 1, Transports::TlsOnly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute; run by .ci/run"]
async fn twenty_kills_under_load_lose_nothing() {
    kill_rounds(20, rand::random(), Transports::TlsOnly).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_under_load_over_quic_lose_nothing() {
    kill_rounds(5, 2, Transports::QuicOnly).await;
}

async fn kill_rounds(rounds: usize, seed: u64, transports: Transports) {
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut gateway = Gateway::start(Settings::default());
    let load = Load::start_over(transports, &gateway).await;
    for round in 0..rounds {
        let up = Duration::from_millis(random.random_range(50..600));
        tokio::time::sleep(up).await;
        gateway.kill();
        let down = Duration::from_millis(random.random_range(0..100));
        tokio::time::sleep(down).await;
        gateway.restart();
        println!("round {round}: killed after {up:?}, back after {down:?}");
    }
    let messages =
        load.finish(PATIENCE).await.unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
    println!("{messages} messages");
}
