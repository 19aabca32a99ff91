//! The server's session and send memory: a Send in and its answer out, a Deliver out and its Ack in.

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion};
use ringpost_bench::session::FRAMES_PER_BATCH;
use ringpost_bench::{fixture, session};
use ringpost_protocol::id::{SendSeq, Seq};
use ringpost_protocol::message::{Outcome, Request, put_outcome};
use ringpost_protocol::window::{Admission, SendMemory};

fn main() {
    let mut criterion = ringpost_bench::criterion("session");
    for payload in [64, 200, 4096] {
        let envelope = Bytes::from(fixture::envelope(payload));
        send_to_accepted(&mut criterion, &envelope);
        deliver_to_ack(&mut criterion, &envelope);
    }
    criterion.final_summary();
}

/// Frame off the stream, checked by the session, admitted, settled, answered. No storage.
fn send_to_accepted(criterion: &mut Criterion, envelope: &Bytes) {
    let mut session = session::open();
    let mut memory = SendMemory::new(fixture::INSTALL);
    let mut sent = 0;
    let mut out = Vec::new();
    let outcome = Outcome::Accepted { server_time_ms: fixture::UNIX_MS, skipped: Vec::new() };
    let name = format!("session/send_to_accepted/payload={}", envelope.len());
    criterion.bench_function(&name, |bencher| {
        bencher.iter_batched(
            || {
                sent += 1;
                BytesMut::from(&fixture::send_frame(SendSeq(sent), envelope)[..])
            },
            |mut stream| {
                let Some(Request::Send(send)) =
                    session::handle(&mut session, &mut stream, &mut out)
                else {
                    unreachable!("the client sends only this")
                };
                let admission = memory.admit(send.send_seq, &send.to, send.after_reject);
                assert_eq!(admission, Ok(Admission::New));
                out.clear();
                if memory.settle(fixture::INSTALL, send.send_seq, &outcome) {
                    put_outcome(&mut out, send.send_seq, &outcome);
                }
                send
            },
            BatchSize::NumIterations(FRAMES_PER_BATCH),
        );
    });
}

/// Deliver encoded, and the Ack of it taken off the stream and checked.
fn deliver_to_ack(criterion: &mut Criterion, envelope: &Bytes) {
    let mut session = session::open();
    let from = fixture::device(1);
    let (mut acked, mut delivered) = (0, 0);
    let mut out = Vec::new();
    let name = format!("session/deliver_to_ack/payload={}", envelope.len());
    criterion.bench_function(&name, |bencher| {
        bencher.iter_batched(
            || {
                acked += 1;
                BytesMut::from(&fixture::ack_frame(Seq::new(1, acked))[..])
            },
            |mut stream| {
                delivered += 1;
                out.clear();
                session.deliver(&mut out, &fixture::deliver_head(&from, delivered), envelope);
                session::handle(&mut session, &mut stream, &mut out)
            },
            BatchSize::NumIterations(FRAMES_PER_BATCH),
        );
    });
}
