//! Frames: taken off the stream and read; written.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput};
use ringpost_bench::fixture;
use ringpost_protocol::frame::split_frame;
use ringpost_protocol::id::SendSeq;
use ringpost_protocol::limits::FRAME_BYTES_MAX;
use ringpost_protocol::message::{Outcome, parse_client_frame, put_deliver, put_outcome};

fn main() {
    let mut criterion = ringpost_bench::criterion("frame");
    for payload in [64, 200, 4096] {
        let envelope = Bytes::from(fixture::envelope(payload));
        split_and_decode(&mut criterion, &envelope);
        encode_deliver(&mut criterion, &envelope);
    }
    encode_accepted(&mut criterion);
    criterion.final_summary();
}

/// A Send of the stream becomes a typed request; its envelope stays where it is.
fn split_and_decode(criterion: &mut Criterion, envelope: &Bytes) {
    let frame = fixture::send_frame(SendSeq(1000), envelope);
    let mut group = criterion.benchmark_group("frame/split_decode_send");
    group.throughput(Throughput::Bytes(frame.len() as u64));
    group.bench_function(format!("payload={}", envelope.len()), |bencher| {
        bencher.iter_batched(
            || BytesMut::from(&frame[..]),
            |mut stream| {
                let frame = split_frame(&mut stream, FRAME_BYTES_MAX).expect("legal");
                parse_client_frame(frame.expect("whole")).expect("legal")
            },
            BatchSize::NumIterations(FRAMES_PER_BATCH),
        );
    });
    group.finish();
}

fn encode_deliver(criterion: &mut Criterion, envelope: &Bytes) {
    let from = fixture::device(1);
    let head = fixture::deliver_head(&from, 1000);
    let mut out = Vec::new();
    put_deliver(&mut out, &head, envelope);
    let mut group = criterion.benchmark_group("frame/encode_deliver");
    group.throughput(Throughput::Bytes(out.len() as u64));
    group.bench_function(format!("payload={}", envelope.len()), |bencher| {
        bencher.iter(|| {
            out.clear();
            put_deliver(black_box(&mut out), black_box(&head), black_box(envelope));
        });
    });
    group.finish();
}

fn encode_accepted(criterion: &mut Criterion) {
    let outcome = Outcome::Accepted { server_time_ms: fixture::UNIX_MS, skipped: Vec::new() };
    let mut out = Vec::new();
    criterion.bench_function("frame/encode_accepted/skipped=0", |bencher| {
        bencher.iter(|| {
            out.clear();
            put_outcome(black_box(&mut out), SendSeq(1000), black_box(&outcome));
        });
    });
}

/// As many as one receive buffer of the ring holds, in order of magnitude.
const FRAMES_PER_BATCH: u64 = 64;
