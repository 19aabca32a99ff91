//! Datagrams on a real ring: what is told of them, trains, an empty pool, and how it all ends.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

#[allow(dead_code, reason = "shared with the other tests")]
mod support;

use std::net::{IpAddr, SocketAddr, UdpSocket as Peer};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::Bytes;
use ringpost_ring::net::{UdpGroup, UdpOptions};
use ringpost_ring::{
    DATAGRAM_BYTES_MAX, DatagramSend, Datagrams, Errno, Op, Outcome, Ring, UdpSocket, Uring,
};
use support::{completion_of, ring, ring_with, run_until, small};

const RECEIVE: u64 = 1;
const SEND: u64 = 2;

/// A datagram or a train of them, as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arrived {
    from: SocketAddr,
    local: Option<IpAddr>,
    ecn: u8,
    segment_bytes: u32,
    data: Vec<u8>,
}

fn group(address: &str) -> UdpGroup {
    UdpGroup::bind(address.parse().unwrap(), 1, &UdpOptions::default()).unwrap()
}

/// The address of `ip` with the port of `group`.
fn at(ip: &str, group: &UdpGroup) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), group.address().port())
}

fn send_to(to: SocketAddr, data: &[u8]) -> DatagramSend {
    let data = Bytes::copy_from_slice(data);
    DatagramSend { to, from: None, ecn: 0, segment_bytes: None, data }
}

fn take(ring: &mut Uring, datagrams: Datagrams) -> Arrived {
    let Datagrams { lease, from, local, ecn, segment_bytes } = datagrams;
    let data = ring.bytes(&lease).to_vec();
    ring.release(lease);
    Arrived { from, local, ecn, segment_bytes, data }
}

/// Sends, and receives on `socket` until `enough` bytes have come.
fn exchange(
    ring: &mut Uring,
    (socket, enough): (UdpSocket, usize),
    (from, send): (UdpSocket, DatagramSend),
) -> Vec<Arrived> {
    let receive = ring.submit(RECEIVE, Op::RecvDatagrams { socket });
    ring.submit(SEND, Op::SendDatagrams { socket: from, send: Box::new(send) });
    let (mut arrived, mut sent) = (Vec::new(), false);
    run_until(ring, |ring, completion| {
        match completion.result {
            Ok(Outcome::Datagrams(datagrams)) => {
                assert!(completion.more && completion.token == RECEIVE);
                arrived.push(take(ring, datagrams));
            }
            Ok(Outcome::Done) => sent = true,
            other => panic!("{other:?}"),
        }
        let bytes: usize = arrived.iter().map(|arrived| arrived.data.len()).sum();
        sent && bytes >= enough
    });
    ring.submit(9, Op::Cancel { target: receive });
    run_until(ring, |ring, _| ring.in_flight() == 0);
    arrived
}

fn ring_for_datagrams() -> Uring {
    ring_with(ringpost_ring::UringConfig { datagram_buffer_count: 64, ..Default::default() })
}

#[test]
fn sender_receiver_and_congestion_bits_are_told_and_obeyed() {
    let pairs = [
        ("0.0.0.0:0", "127.0.0.7", "127.0.0.9"),
        ("[::]:0", "::1", "::1"),
        ("[::]:0", "::ffff:127.0.0.7", "::ffff:127.0.0.9"),
    ];
    for (any, server_ip, client_ip) in pairs {
        if std::net::UdpSocket::bind(any).is_err() {
            continue; // a host without IPv6
        }
        let mut ring = ring_for_datagrams();
        let (server, client) = (group(any), group(any));
        for ecn in 0..4 {
            let source: IpAddr = client_ip.parse().unwrap();
            let to = at(server_ip, &server);
            let send = DatagramSend { from: Some(source), ecn, ..send_to(to, b"hello") };
            let (to, from) = ((server.socket(0), 5), (client.socket(0), send));
            let arrived = exchange(&mut ring, to, from).pop().unwrap();
            let expected = Arrived {
                from: at(client_ip, &client),
                local: Some(server_ip.parse().unwrap()),
                ecn,
                segment_bytes: 5,
                data: b"hello".to_vec(),
            };
            assert_eq!(arrived, expected);

            // What was told is what an answer takes.
            let answer = DatagramSend { from: arrived.local, ..send_to(arrived.from, b"you") };
            let (to, from) = ((client.socket(0), 3), (server.socket(0), answer));
            let answered = exchange(&mut ring, to, from).pop().unwrap();
            assert_eq!((answered.from, answered.data), (at(server_ip, &server), b"you".to_vec()));
        }
    }
}

#[test]
fn a_train_travels_as_one_and_arrives_in_its_parts() {
    let mut ring = ring_for_datagrams();
    let (server, client) = (group("127.0.0.1:0"), group("127.0.0.1:0"));
    let data: Vec<u8> = (0..40 * 1200 + 100u32).map(|n| n.to_le_bytes()[0]).collect();
    let train = DatagramSend { segment_bytes: Some(1200), ..send_to(server.address(), &data) };
    let to = (server.socket(0), data.len());
    let arrived = exchange(&mut ring, to, (client.socket(0), train.clone()));
    assert!(arrived.len() < 41, "joined");
    let parts: Vec<&[u8]> = arrived
        .iter()
        .flat_map(|arrived| arrived.data.chunks(arrived.segment_bytes as usize))
        .collect();
    assert_eq!(parts, data.chunks(1200).collect::<Vec<_>>());

    // A socket that takes no trains gets datagrams.
    let plain = Peer::bind("127.0.0.1:0").unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let send = Box::new(DatagramSend { to: plain.local_addr().unwrap(), ..train });
    let op = ring.submit(SEND, Op::SendDatagrams { socket: client.socket(0), send });
    assert!(completion_of(&mut ring, op).result.is_ok());
    for part in data.chunks(1200) {
        let mut buffer = [0; 2000];
        let length = plain.recv(&mut buffer).unwrap();
        assert!(buffer[..length] == *part);
    }
    assert_eq!(ring.counters().segmentations_refused, 0);
}

#[test]
fn nothing_is_too_large_for_a_buffer() {
    let mut ring = ring_for_datagrams();
    let (server, client) = (group("127.0.0.1:0"), group("127.0.0.1:0"));
    let data = vec![7; DATAGRAM_BYTES_MAX];
    for segment_bytes in [None, Some(1200), Some(32_000)] {
        let send = DatagramSend { segment_bytes, ..send_to(server.address(), &data) };
        let to = (server.socket(0), data.len());
        let arrived = exchange(&mut ring, to, (client.socket(0), send));
        let bytes: usize = arrived.iter().map(|arrived| arrived.data.len()).sum();
        assert_eq!(bytes, data.len());
    }
    assert_eq!(ring.counters().datagrams_truncated, 0);
    assert_eq!(ring.counters().datagram_leases_out, 0);

    let send = Box::new(send_to(server.address(), &vec![7; DATAGRAM_BYTES_MAX + 1]));
    let op = ring.submit(SEND, Op::SendDatagrams { socket: client.socket(0), send });
    assert!(matches!(completion_of(&mut ring, op).result, Err(Errno::MSGSIZE)));
}

/// More datagrams than the kernel makes of one call.
#[test]
fn a_train_that_is_refused_goes_one_by_one() {
    let mut ring = ring_for_datagrams();
    let (server, client) = (group("127.0.0.1:0"), group("127.0.0.1:0"));
    let data: Vec<u8> = (0..200).collect();
    let send = DatagramSend { segment_bytes: Some(1), ..send_to(server.address(), &data) };
    let arrived = exchange(&mut ring, (server.socket(0), 200), (client.socket(0), send));
    assert_eq!(arrived.len(), 200);
    assert!(arrived.iter().zip(&data).all(|(arrived, byte)| arrived.data == [*byte]));
    assert_eq!(ring.counters().segmentations_refused, 1);
}

#[test]
fn a_send_that_cannot_be_ends_with_its_error() {
    let mut ring = ring();
    let client = group("127.0.0.1:0");
    let sends = [
        send_to("[2001:db8::1]:9".parse().unwrap(), b"another family"),
        DatagramSend {
            from: Some("192.0.2.1".parse().unwrap()),
            ..send_to(client.address(), b"not our address")
        },
        DatagramSend {
            from: Some("192.0.2.1".parse().unwrap()),
            segment_bytes: Some(3),
            ..send_to(client.address(), b"not our address, in a train")
        },
    ];
    for send in sends {
        let send = Box::new(send);
        let op = ring.submit(SEND, Op::SendDatagrams { socket: client.socket(0), send });
        assert!(completion_of(&mut ring, op).result.is_err());
    }
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn an_empty_datagram_ends_the_receive_and_nothing_else() {
    let mut ring = ring_for_datagrams();
    let server = group("127.0.0.1:0");
    let peer = Peer::bind("127.0.0.1:0").unwrap();
    let mut empty = 0;
    ring.submit(RECEIVE, Op::RecvDatagrams { socket: server.socket(0) });
    for data in [&b""[..], b"", b"a", b"", b"after"] {
        peer.send_to(data, server.address()).unwrap();
    }
    run_until(&mut ring, |ring, completion| {
        let Ok(Outcome::Datagrams(datagrams)) = completion.result else { panic!() };
        let arrived = take(ring, datagrams);
        assert!(arrived.segment_bytes > 0);
        empty += u32::from(arrived.data.is_empty());
        if !completion.more {
            ring.submit(RECEIVE, Op::RecvDatagrams { socket: server.socket(0) });
        }
        arrived.data == b"after"
    });
    assert_eq!(empty, 3);
}

#[test]
fn an_empty_pool_is_said_and_loses_nothing() {
    let mut ring = ring_with(small());
    let server = group("127.0.0.1:0");
    let peer = Peer::bind("127.0.0.1:0").unwrap();
    for n in 0..10u8 {
        peer.send_to(&[n; 3], server.address()).unwrap();
    }
    let receive = Op::RecvDatagrams { socket: server.socket(0) };
    ring.submit(RECEIVE, receive);
    let (mut held, mut seen) = (Vec::new(), Vec::new());
    run_until(&mut ring, |ring, completion| {
        match completion.result {
            Ok(Outcome::Datagrams(datagrams)) => {
                seen.push(ring.bytes(&datagrams.lease)[0]);
                held.push(datagrams.lease);
                assert!(completion.more);
            }
            Err(Errno::NOBUFS) => {
                assert!(!completion.more && held.len() == 4);
                assert_eq!(ring.counters().datagram_leases_out, 4);
                for lease in held.drain(..) {
                    ring.release(lease);
                }
                ring.submit(RECEIVE, Op::RecvDatagrams { socket: server.socket(0) });
            }
            other => panic!("{other:?}"),
        }
        seen.len() == 10
    });
    assert_eq!(seen, (0..10).collect::<Vec<u8>>());
    assert_eq!(ring.counters().datagram_pool_empty, 2);
    assert_eq!(ring.counters().receive_pool_empty, 0, "the other pool");
    for lease in held {
        ring.release(lease);
    }
    assert_eq!(ring.counters().datagram_leases_out, 0);
}

#[test]
fn a_receive_is_cancelled_and_a_ring_dropped_with_datagrams_under_way() {
    let server = group("127.0.0.1:0");
    let peer = Peer::bind("127.0.0.1:0").unwrap();
    for round in 0..6 {
        let mut ring = ring_with(small());
        let op = ring.submit(RECEIVE, Op::RecvDatagrams { socket: server.socket(0) });
        for _ in 0..3 {
            peer.send_to(b"early", server.address()).unwrap();
            let send = Box::new(send_to(peer.local_addr().unwrap(), &[round; 3000]));
            let send = DatagramSend { segment_bytes: Some(1000), ..*send };
            let socket = server.socket(0);
            ring.submit(SEND, Op::SendDatagrams { socket, send: Box::new(send) });
        }
        let mut completions = Vec::new();
        for _ in 0..round / 2 {
            ring.enter(0, &mut completions);
        }
        let mut leases = Vec::new();
        for completion in completions.drain(..) {
            if let Ok(Outcome::Datagrams(datagrams)) = completion.result {
                leases.push(datagrams.lease);
            }
        }
        if round % 2 == 0 {
            ring.submit(3, Op::Cancel { target: op });
            let mut ended = false;
            run_until(&mut ring, |ring, completion| {
                if let Ok(Outcome::Datagrams(datagrams)) = completion.result {
                    ring.release(datagrams.lease);
                } else if completion.token == RECEIVE {
                    ended = true;
                    assert!(matches!(completion.result, Err(Errno::CANCELED | Errno::NOBUFS)));
                }
                ended && ring.in_flight() == 0
            });
            for lease in leases {
                ring.release(lease);
            }
            assert_eq!(ring.counters().datagram_leases_out, 0);
        }
        drop(ring);
        // Receiving is gone with the ring: what comes now stays in the socket.
        peer.send_to(b"later", server.address()).unwrap();
        let mut again = ring_with(small());
        again.submit(RECEIVE, Op::RecvDatagrams { socket: server.socket(0) });
        run_until(&mut again, |ring, completion| {
            let Ok(Outcome::Datagrams(datagrams)) = completion.result else { panic!() };
            take(ring, datagrams).data == b"later"
        });
    }
}

#[test]
fn a_ring_without_datagrams_receives_none() {
    let server = group("127.0.0.1:0");
    let mut ring = ring();
    let submitted = catch_unwind(AssertUnwindSafe(|| {
        ring.submit(RECEIVE, Op::RecvDatagrams { socket: server.socket(0) })
    }));
    let panic = submitted.unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"a ring without datagrams"));
}
