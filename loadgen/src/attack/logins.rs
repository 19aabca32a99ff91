//! One login after the other on a blocking socket.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use ringpost_protocol::message::ClientEvent;
use ringpost_ring::host::monotonic_ns;

use super::{AttackCounts, Target};
use crate::client::{Client, Identity};

/// What the server said to a Hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Welcome,
    Refused,
    /// Closed without a word.
    Closed,
}

/// All of them, evenly over the time; those that are left when it is over are not made.
pub(super) fn wrong_token(target: &Target, stop: &AtomicBool) -> Result<AttackCounts> {
    let next = AtomicU32::new(0);
    let [refused, closed, welcomed] = [const { AtomicU64::new(0) }; 3];
    let started = Instant::now();
    // Not to the very end: the last ones are to be answered within the phase.
    let interval = target.duration.mul_f64(0.9) / target.count;
    thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= target.count || stop.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        let due = interval * number;
                        thread::sleep(due.saturating_sub(started.elapsed()));
                        let answer = log_in(target, target.identity(number, false)?)?.0;
                        let count = match answer {
                            Answer::Welcome => &welcomed,
                            Answer::Refused => &refused,
                            Answer::Closed => &closed,
                        };
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    let [refused, closed, welcomed] = [refused, closed, welcomed].map(AtomicU64::into_inner);
    Ok(AttackCounts {
        opened: refused + closed + welcomed,
        ended_by_server: refused + closed,
        refused,
        wrongly_welcomed: welcomed,
    })
}

/// Connects, says Hello and waits for the answer. The socket blocks, with a time limit.
pub(super) fn log_in(target: &Target, identity: Identity) -> Result<(Answer, TcpStream, Client)> {
    let mut socket = TcpStream::connect(target.address).context("connect")?;
    socket.set_nodelay(true).context("set TCP_NODELAY")?;
    socket.set_read_timeout(Some(ANSWER_TIME_MAX)).context("set a time limit")?;
    let mut client = Client::new(identity);
    client.connect(now_ms(), &target.tls, target.server_name.clone())?;
    let mut scratch = BytesMut::new();
    let (mut plaintext, mut ciphertext) = (Vec::new(), Vec::new());
    let mut received = [0; 16 * 1024];
    loop {
        ciphertext.clear();
        client.poll_transmit(now_ms(), &mut plaintext, &mut ciphertext);
        if socket.write_all(&ciphertext).is_err() {
            return Ok((Answer::Closed, socket, client));
        }
        let length = match socket.read(&mut received) {
            Ok(0) | Err(_) => return Ok((Answer::Closed, socket, client)),
            Ok(length) => length,
        };
        let handled = client.handle_received(now_ms(), &received[..length], &mut scratch);
        while let Some(event) = client.poll_event() {
            match event {
                ClientEvent::Welcome(_) => return Ok((Answer::Welcome, socket, client)),
                ClientEvent::Error { .. } => return Ok((Answer::Refused, socket, client)),
                _ => {}
            }
        }
        if let Err(error) = handled {
            bail!("the server broke the protocol at a login: {error:#}");
        }
    }
}

fn now_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

/// Enough for a thousand a second at some milliseconds each.
const WORKERS: usize = 8;
const ANSWER_TIME_MAX: Duration = Duration::from_secs(20);
