//! The hot paths whose instructions are counted, each as often as asked. Only what runs inside
//! [`measured`] counts: what prepares it, and what plays the other end, does not.

use std::error::Error;
use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use ringpost_engine::shard::{Shard, Turn};
use ringpost_protocol::frame::split_frame;
use ringpost_protocol::id::{SendSeq, Seq};
use ringpost_protocol::limits::FRAME_BYTES_MAX;
use ringpost_protocol::message::{Outcome, Request, parse_client_frame, put_outcome};
use ringpost_protocol::window::SendMemory;
use ringpost_storage::ReadStart;
use rustls::HandshakeKind;

use crate::disk::NullDisk;
use crate::exchange::Exchange;
use crate::fixture;
use crate::memory_ring::ShardRing;
use crate::session::{self, FRAMES_PER_BATCH};
use crate::store::OpenStore;
use crate::tls::{Endpoints, KeyExchange, Pair, client_seal};

/// A path, and how often it is gone for one count.
pub struct Path {
    pub name: &'static str,
    /// In words: what one time is.
    pub about: &'static str,
    pub times: u64,
    run: fn(u64) -> Result<(), Box<dyn Error>>,
}

impl Path {
    /// Goes it `times`, a multiple of [`FRAMES_PER_BATCH`].
    pub fn run(&self, times: u64) -> Result<(), Box<dyn Error>> {
        (self.run)(times)
    }

    pub fn find(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|path| path.name == name)
    }
}

/// In the order of a message's way.
pub const ALL: &[Path] = &[
    Path {
        name: "tls/open",
        about: "one record of 200 bytes opened",
        times: 10 * FRAMES_PER_BATCH,
        run: tls_open,
    },
    Path {
        name: "frame/split_parse_send",
        about: "a Send of 200 bytes off the stream",
        times: 50 * FRAMES_PER_BATCH,
        run: split_parse_send,
    },
    Path {
        name: "session/send_to_accepted",
        about: "a Send off the stream, checked, admitted, settled, answered",
        times: 50 * FRAMES_PER_BATCH,
        run: send_to_accepted,
    },
    Path {
        name: "store/append_read_ack",
        about: "a message appended, committed with 63 others, read from the cache, acknowledged",
        times: 50 * FRAMES_PER_BATCH,
        run: append_read_ack,
    },
    Path {
        name: "session/deliver_to_ack",
        about: "a Deliver written, its Ack off the stream and checked",
        times: 50 * FRAMES_PER_BATCH,
        run: deliver_to_ack,
    },
    Path {
        name: "tls/seal",
        about: "one record of 200 bytes sealed",
        times: 10 * FRAMES_PER_BATCH,
        run: tls_seal,
    },
    Path {
        name: "shard/message_window_1",
        about: "a message of 200 bytes through a shard with TLS, alone: sent, stored, delivered, \
                acknowledged, both answers; no kernel",
        times: 4 * FRAMES_PER_BATCH,
        run: message_window_1,
    },
    Path {
        name: "shard/message_window_16",
        about: "the same, 16 messages of one sender together",
        times: 8 * FRAMES_PER_BATCH,
        run: message_window_16,
    },
];

/// The name of this function is what valgrind is told to count in: one symbol, never inlined.
#[inline(never)]
pub fn measured(work: &mut dyn FnMut()) {
    work();
    // Keeps the call above from becoming a jump: it must return to here.
    black_box(());
}

fn split_parse_send(times: u64) -> Result<(), Box<dyn Error>> {
    let frame = fixture::send_frame(SendSeq(1000), &envelope());
    for _ in 0..times / FRAMES_PER_BATCH {
        let mut streams: Vec<_> =
            (0..FRAMES_PER_BATCH).map(|_| BytesMut::from(&frame[..])).collect();
        measured(&mut || {
            for stream in &mut streams {
                let frame = split_frame(stream, FRAME_BYTES_MAX).expect("legal").expect("whole");
                black_box(parse_client_frame(frame).expect("legal"));
            }
        });
    }
    Ok(())
}

fn send_to_accepted(times: u64) -> Result<(), Box<dyn Error>> {
    let (mut session, mut memory) = (session::open(), SendMemory::new(fixture::INSTALL));
    let outcome = Outcome::Accepted { server_time_ms: fixture::UNIX_MS, skipped: Vec::new() };
    let (envelope, mut sent, mut out) = (envelope(), 0, Vec::new());
    for _ in 0..times / FRAMES_PER_BATCH {
        let mut next = || {
            sent += 1;
            BytesMut::from(&fixture::send_frame(SendSeq(sent), &envelope)[..])
        };
        let mut streams: Vec<_> = (0..FRAMES_PER_BATCH).map(|_| next()).collect();
        measured(&mut || {
            for stream in &mut streams {
                let Some(Request::Send(send)) = session::handle(&mut session, stream, &mut out)
                else {
                    unreachable!("the client sends only this")
                };
                memory.admit(send.send_seq, &send.to, send.after_reject).expect("the next one");
                out.clear();
                if memory.settle(fixture::INSTALL, send.send_seq, &outcome) {
                    put_outcome(&mut out, send.send_seq, &outcome);
                }
            }
        });
    }
    Ok(())
}

fn deliver_to_ack(times: u64) -> Result<(), Box<dyn Error>> {
    let (mut session, from, envelope) = (session::open(), fixture::device(1), envelope());
    let (mut acked, mut delivered, mut out) = (0, 0, Vec::new());
    for _ in 0..times / FRAMES_PER_BATCH {
        let mut next = || {
            acked += 1;
            BytesMut::from(&fixture::ack_frame(Seq::new(1, acked))[..])
        };
        let mut streams: Vec<_> = (0..FRAMES_PER_BATCH).map(|_| next()).collect();
        measured(&mut || {
            for stream in &mut streams {
                delivered += 1;
                out.clear();
                session.deliver(&mut out, &fixture::deliver_head(&from, delivered), &envelope);
                black_box(session::handle(&mut session, stream, &mut out));
            }
        });
    }
    Ok(())
}

fn append_read_ack(times: u64) -> Result<(), Box<dyn Error>> {
    let mut store = OpenStore::new(NullDisk, ENVELOPE_BYTES);
    for _ in 0..times / FRAMES_PER_BATCH {
        measured(&mut || {
            (0..FRAMES_PER_BATCH).for_each(|_| store.append());
            store.commit();
            store.take_all(|read| match read {
                ReadStart::Ready(record) => drop(black_box(record)),
                other => unreachable!("appended a moment ago: {other:?}"),
            });
        });
        // As in the gateway, where it is done while nothing else is: not on the path.
        store.prepare();
    }
    Ok(())
}

fn tls_seal(times: u64) -> Result<(), Box<dyn Error>> {
    let (mut pair, plaintext) = (tls_pair()?, envelope());
    let mut ciphertext = Vec::new();
    for _ in 0..times / FRAMES_PER_BATCH {
        measured(&mut || {
            for _ in 0..FRAMES_PER_BATCH {
                ciphertext.clear();
                pair.server.seal(&plaintext, &mut ciphertext);
            }
        });
    }
    Ok(())
}

fn tls_open(times: u64) -> Result<(), Box<dyn Error>> {
    let Pair { mut server, mut client, .. } = tls_pair()?;
    let (said, mut plaintext) = (envelope(), BytesMut::new());
    for _ in 0..times / FRAMES_PER_BATCH {
        let records: Vec<_> =
            (0..FRAMES_PER_BATCH).map(|_| client_seal(&mut client, &said)).collect();
        measured(&mut || {
            for record in &records {
                plaintext.clear();
                server.handle_ciphertext(record, &mut plaintext).expect("in order");
            }
        });
        assert_eq!(plaintext, said);
    }
    Ok(())
}

fn message_window_1(times: u64) -> Result<(), Box<dyn Error>> {
    let mut exchange = Exchange::new(ENVELOPE_BYTES, measured_turn)?;
    (0..times).try_for_each(|_| exchange.pass(1))
}

fn message_window_16(times: u64) -> Result<(), Box<dyn Error>> {
    let mut exchange = Exchange::new(ENVELOPE_BYTES, measured_turn)?;
    (0..times / 16).try_for_each(|_| exchange.pass(16))
}

fn measured_turn(shard: &mut Shard<ShardRing>) -> Turn {
    let mut turn = Turn::Continue;
    measured(&mut || turn = shard.turn());
    turn
}

fn tls_pair() -> Result<Pair, Box<dyn Error>> {
    let endpoints = Endpoints::new()?;
    let client = endpoints.client(KeyExchange::X25519, false);
    Ok(endpoints.handshake(&client, HandshakeKind::Full))
}

fn envelope() -> Bytes {
    fixture::envelope(ENVELOPE_BYTES).into()
}

const ENVELOPE_BYTES: usize = 200;
