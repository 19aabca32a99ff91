//! The gateway's TLS: records of 200 bytes, and handshakes. Of a handshake only the server's calls
//! are timed.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput};
use ringpost_bench::fixture;
use ringpost_bench::tls::{Endpoints, KeyExchange, Pair, client_seal};
use rustls::{ClientConfig, HandshakeKind};

fn main() {
    let mut criterion = ringpost_bench::criterion("tls_record");
    let endpoints = Endpoints::new().expect("a temporary directory for keys");
    let client = endpoints.client(KeyExchange::X25519MlKem768, false);
    let mut pair = endpoints.handshake(&client, HandshakeKind::Full);
    for bytes in [200, 4096] {
        seal(&mut criterion, &mut pair, bytes);
        open(&mut criterion, &mut pair, bytes);
    }
    for exchange in KeyExchange::ALL {
        handshakes(&mut criterion, &endpoints, exchange);
    }
    criterion.final_summary();
}

/// The client never reads these; the directions of a connection are independent.
fn seal(criterion: &mut Criterion, pair: &mut Pair, bytes: usize) {
    let plaintext = fixture::envelope(bytes);
    let mut ciphertext = Vec::new();
    let mut group = criterion.benchmark_group("tls_record/seal");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(format!("bytes={bytes}"), |bencher| {
        bencher.iter(|| {
            ciphertext.clear();
            pair.server.seal(black_box(&plaintext), black_box(&mut ciphertext));
        });
    });
    group.finish();
}

fn open(criterion: &mut Criterion, pair: &mut Pair, bytes: usize) {
    let said = fixture::envelope(bytes);
    let mut plaintext = BytesMut::new();
    let Pair { server, client, .. } = pair;
    let mut group = criterion.benchmark_group("tls_record/open");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.bench_function(format!("bytes={bytes}"), |bencher| {
        bencher.iter_batched(
            || client_seal(client, &said),
            |ciphertext| {
                plaintext.clear();
                server.handle_ciphertext(&ciphertext, &mut plaintext).expect("in order");
                assert_eq!(plaintext.len(), bytes);
                ciphertext
            },
            BatchSize::NumIterations(RECORDS_PER_BATCH),
        );
    });
    group.finish();
}

fn handshakes(criterion: &mut Criterion, endpoints: &Endpoints, exchange: KeyExchange) {
    let full = endpoints.client(exchange, false);
    handshake(criterion, endpoints, &full, HandshakeKind::Full, exchange);
    let resuming = endpoints.client(exchange, true);
    // The first connection brings the ticket; each one brings the next.
    endpoints.handshake(&resuming, HandshakeKind::Full);
    handshake(criterion, endpoints, &resuming, HandshakeKind::Resumed, exchange);
}

fn handshake(
    criterion: &mut Criterion,
    endpoints: &Endpoints,
    client: &Arc<ClientConfig>,
    kind: HandshakeKind,
    exchange: KeyExchange,
) {
    let operation = if kind == HandshakeKind::Full { "full" } else { "resumed" };
    let name = format!("tls_record/handshake_{operation}/exchange={}", exchange.name());
    criterion.bench_function(&name, |bencher| {
        bencher.iter_custom(|iterations| {
            let timed = |_| endpoints.handshake(client, kind).server_time;
            (0..iterations).map(timed).sum::<Duration>()
        });
    });
}

/// Records sealed by the client, untimed, before as many are opened.
const RECORDS_PER_BATCH: u64 = 64;
