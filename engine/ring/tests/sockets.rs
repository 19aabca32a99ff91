//! Sockets on a real ring: receive, send, cancel, accept, connect.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

mod support;

use std::io::{Read as _, Write as _};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use ringpost_ring::net::{ListenOptions, ListenerGroup, peer_address};
use ringpost_ring::{Errno, Op, Outcome, Ring, Socket};
use support::{completion_of, pair, ring, ring_with, run_until, small};

const RECV: u64 = 1;
const SEND: u64 = 2;

/// Pseudo-random, the same in every run.
fn xorshift(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 33).unwrap()
}

#[test]
fn an_echo_keeps_every_byte_whatever_the_splits() {
    let (socket, mut peer) = pair();
    let data: Vec<u8> = (0..1_000_000u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
    let sent = data.clone();
    let mut reader = peer.try_clone().unwrap();
    let writer = thread::spawn(move || {
        let mut rest = &sent[..];
        let mut seed = 0x9E37_79B9_7F4A_7C15;
        while !rest.is_empty() {
            let split = (xorshift(&mut seed) % 9000 + 1).min(rest.len());
            peer.write_all(&rest[..split]).unwrap();
            rest = &rest[split..];
        }
        peer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let echoed = thread::spawn(move || {
        let mut echoed = Vec::new();
        reader.read_to_end(&mut echoed).unwrap();
        echoed
    });

    let mut ring = ring();
    let mut unsent: Vec<Bytes> = Vec::new();
    let (mut sending, mut closed) = (false, false);
    ring.submit(RECV, Op::Recv { socket, multishot: true });
    run_until(&mut ring, |ring, completion| {
        match completion.result {
            Ok(Outcome::Received(Some(lease))) => {
                unsent.push(Bytes::copy_from_slice(ring.bytes(&lease)));
                ring.release(lease);
                if !completion.more {
                    ring.submit(RECV, Op::Recv { socket, multishot: true });
                }
            }
            Ok(Outcome::Received(None)) => closed = true,
            Err(Errno::NOBUFS) => _ = ring.submit(RECV, Op::Recv { socket, multishot: true }),
            Ok(Outcome::Sent { sent_bytes, data }) => {
                sending = false;
                let mut rest = sent_bytes;
                let mut left = Vec::new();
                for mut chunk in data {
                    let gone = rest.min(chunk.len());
                    rest -= gone;
                    bytes::Buf::advance(&mut chunk, gone);
                    if !chunk.is_empty() {
                        left.push(chunk);
                    }
                }
                left.append(&mut unsent);
                unsent = left;
            }
            other => panic!("{other:?}"),
        }
        if !sending && !unsent.is_empty() {
            sending = true;
            ring.submit(SEND, Op::Send { socket, data: std::mem::take(&mut unsent) });
        }
        closed && !sending && unsent.is_empty()
    });
    let shutdown = ring.submit(3, Op::Shutdown { socket });
    assert!(completion_of(&mut ring, shutdown).result.is_ok());
    let close = ring.submit(4, Op::CloseSocket { socket });
    assert!(completion_of(&mut ring, close).result.is_ok());
    writer.join().unwrap();
    assert!(echoed.join().unwrap() == data);
    assert_eq!(ring.in_flight(), 0);
    assert_eq!(ring.counters().leases_out, 0);
}

#[test]
fn an_empty_pool_ends_the_receive_and_a_release_lets_it_go_on() {
    let (socket, mut peer) = pair();
    peer.write_all(&[7; 1000]).unwrap();
    let mut ring = ring_with(small());
    ring.submit(RECV, Op::Recv { socket, multishot: true });
    let (mut leases, mut received_bytes) = (Vec::new(), 0);
    run_until(&mut ring, |_, completion| match completion.result {
        Ok(Outcome::Received(Some(lease))) => {
            leases.push(lease);
            false
        }
        Err(Errno::NOBUFS) => {
            assert!(!completion.more);
            true
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(leases.len(), 4);
    assert_eq!(ring.counters().leases_out, 4);
    assert_eq!(ring.counters().receive_pool_empty, 1);
    assert_eq!(ring.in_flight(), 0);

    for lease in leases.drain(..) {
        assert_eq!(ring.bytes(&lease), [7; 64]);
        received_bytes += ring.bytes(&lease).len();
        ring.release(lease);
    }
    ring.submit(RECV, Op::Recv { socket, multishot: true });
    run_until(&mut ring, |ring, completion| {
        match completion.result {
            Ok(Outcome::Received(Some(lease))) => {
                received_bytes += ring.bytes(&lease).len();
                ring.release(lease);
            }
            Err(Errno::NOBUFS) => {}
            other => panic!("{other:?}"),
        }
        if !completion.more {
            ring.submit(RECV, Op::Recv { socket, multishot: true });
        }
        received_bytes == 1000
    });
    assert_eq!(ring.counters().leases_out, 0);
}

#[test]
fn a_single_receive_takes_one_buffer() {
    let (socket, mut peer) = pair();
    let mut ring = ring();
    let op = ring.submit(RECV, Op::Recv { socket, multishot: false });
    peer.write_all(b"one").unwrap();
    let completion = completion_of(&mut ring, op);
    assert!(!completion.more);
    let Ok(Outcome::Received(Some(lease))) = completion.result else { panic!() };
    assert_eq!(ring.bytes(&lease), b"one");
    ring.release(lease);
}

#[test]
fn a_cancelled_receive_still_has_its_final_completion() {
    let (socket, _peer) = pair();
    let mut ring = ring();
    let recv = ring.submit(RECV, Op::Recv { socket, multishot: true });
    ring.enter(0, &mut Vec::new());
    let cancel = ring.submit(3, Op::Cancel { target: recv });
    assert_eq!(ring.in_flight(), 2);
    let (mut recv_ended, mut cancel_ended) = (false, false);
    run_until(&mut ring, |_, completion| {
        assert!(!completion.more);
        match completion.token {
            RECV => {
                assert_eq!(completion.op, recv);
                assert!(matches!(completion.result, Err(Errno::CANCELED)));
                recv_ended = true;
            }
            _ => {
                assert_eq!(completion.op, cancel);
                assert!(matches!(completion.result, Ok(Outcome::Done)));
                cancel_ended = true;
            }
        }
        recv_ended && cancel_ended
    });
    assert_eq!(ring.in_flight(), 0);

    // The slot is used again; the old id names nothing, and cancelling it harms nobody.
    let next = ring.submit(RECV, Op::Recv { socket, multishot: true });
    assert!([recv.slot, cancel.slot].contains(&next.slot) && next != recv && next != cancel);
    let late = ring.submit(3, Op::Cancel { target: recv });
    assert_eq!(ring.in_flight(), 2);
    assert!(matches!(completion_of(&mut ring, late).result, Err(Errno::NOENT)));
    assert_eq!(ring.in_flight(), 1);
}

#[test]
fn a_receive_ends_when_the_peer_closes_or_we_shut_down() {
    let (socket, peer) = pair();
    let mut ring = ring();
    let op = ring.submit(RECV, Op::Recv { socket, multishot: true });
    drop(peer);
    let completion = completion_of(&mut ring, op);
    assert!(!completion.more && matches!(completion.result, Ok(Outcome::Received(None))));

    let (socket, _peer) = pair();
    ring.submit(RECV, Op::Recv { socket, multishot: true });
    ring.submit(3, Op::Shutdown { socket });
    let mut ended = 0;
    run_until(&mut ring, |_, completion| {
        ended += u32::from(!completion.more);
        ended == 2
    });
}

#[test]
fn after_shutting_down_our_direction_the_peer_may_still_send() {
    let (socket, mut peer) = pair();
    let mut ring = ring();
    let end = ring.submit(3, Op::ShutdownWrite { socket });
    assert!(completion_of(&mut ring, end).result.is_ok());
    assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
    peer.write_all(b"still here").unwrap();
    let recv = ring.submit(RECV, Op::Recv { socket, multishot: false });
    let Ok(Outcome::Received(Some(lease))) = completion_of(&mut ring, recv).result else {
        panic!()
    };
    assert_eq!(ring.bytes(&lease), b"still here");
    ring.release(lease);
}

#[test]
fn a_send_to_a_full_socket_waits_for_the_reader() {
    let (socket, mut peer) = pair();
    let mut ring = ring();
    let chunk = Bytes::from(vec![5u8; 256 * 1024]);
    let mut total_bytes = 0;
    let waiting = 'fill: loop {
        let op = ring.submit(SEND, Op::Send { socket, data: vec![chunk.clone(); 4] });
        let mut completions = Vec::new();
        for _ in 0..3 {
            ring.enter(50_000_000, &mut completions);
            if let Some(completion) = completions.pop() {
                let Ok(Outcome::Sent { sent_bytes, data }) = completion.result else { panic!() };
                assert!(sent_bytes > 0 && data.len() == 4);
                total_bytes += sent_bytes;
                continue 'fill;
            }
        }
        break op;
    };
    let reader = thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        let mut read_bytes = 0;
        peer.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        while let Ok(bytes) = peer.read(&mut buffer) {
            read_bytes += bytes;
        }
        read_bytes
    });
    let completion = completion_of(&mut ring, waiting);
    let Ok(Outcome::Sent { sent_bytes, .. }) = completion.result else { panic!() };
    assert!(sent_bytes > 0);
    assert_eq!(reader.join().unwrap(), total_bytes + sent_bytes);
}

#[test]
fn a_send_to_a_gone_peer_is_an_error_and_no_signal() {
    let (socket, peer) = pair();
    drop(peer);
    let mut ring = ring();
    let send = || Op::Send { socket, data: vec![Bytes::from_static(b"x")] };
    ring.submit(SEND, send());
    run_until(&mut ring, |ring, completion| match completion.result {
        Err(Errno::PIPE | Errno::CONNRESET) => true,
        Ok(Outcome::Sent { .. }) => {
            ring.submit(SEND, send());
            false
        }
        other => panic!("{other:?}"),
    });
}

#[test]
fn accept_and_connect_meet() {
    const CONNECTIONS: usize = 50;
    let group =
        ListenerGroup::bind("127.0.0.1:0".parse().unwrap(), 2, &ListenOptions::default()).unwrap();
    let mut ring = ring();
    for shard in 0..2 {
        ring.submit(10, Op::Accept { listener: group.listener(shard) });
    }
    let local = Some("127.0.0.9:0".parse().unwrap());
    for _ in 0..CONNECTIONS {
        ring.submit(11, Op::Connect { local, remote: group.address() });
    }
    let (mut accepted, mut connected): (Vec<Socket>, Vec<Socket>) = (Vec::new(), Vec::new());
    run_until(&mut ring, |_, completion| {
        match completion.result {
            Ok(Outcome::Accepted(socket)) => {
                assert!(completion.more);
                assert!(peer_address(socket).unwrap().ip().to_string() == "127.0.0.9");
                accepted.push(socket);
            }
            Ok(Outcome::Connected(socket)) => {
                assert!(!completion.more);
                connected.push(socket);
            }
            other => panic!("{other:?}"),
        }
        accepted.len() == CONNECTIONS && connected.len() == CONNECTIONS
    });
    for socket in accepted.drain(..).chain(connected.drain(..)) {
        ring.submit(12, Op::CloseSocket { socket });
    }
    let mut closed = 0;
    run_until(&mut ring, |_, completion| {
        assert!(completion.result.is_ok());
        closed += 1;
        closed == 2 * CONNECTIONS
    });
    assert_eq!(ring.in_flight(), 2, "the two accepts");
}

#[test]
fn a_refused_or_impossible_connect_fails() {
    let group = ListenerGroup::bind(
        "127.0.0.1:0".parse().unwrap(),
        1,
        &ListenOptions { backlog: 1, ..ListenOptions::default() },
    )
    .unwrap();
    let remote = group.address();
    drop(group);
    let mut ring = ring();
    let op = ring.submit(1, Op::Connect { local: None, remote });
    assert!(matches!(completion_of(&mut ring, op).result, Err(Errno::CONNREFUSED)));
    let local = Some("192.0.2.1:0".parse().unwrap());
    let op = ring.submit(1, Op::Connect { local, remote });
    assert_eq!(ring.in_flight(), 1);
    assert!(matches!(completion_of(&mut ring, op).result, Err(Errno::ADDRNOTAVAIL)));
    assert_eq!(ring.in_flight(), 0);
}
