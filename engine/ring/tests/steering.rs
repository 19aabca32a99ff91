//! Steering programs in the real kernel: a datagram arrives where its connection id says.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

#[allow(dead_code, reason = "shared with the other tests")]
mod support;

use std::net::UdpSocket as Peer;

use ringpost_ring::net::{UdpGroup, UdpOptions};
use ringpost_ring::steering::{CidNaming, Program};
use ringpost_ring::{Datagrams, Errno, Op, Outcome, Ring, Uring, UringConfig};
use support::{ring_with, run_until};

const SHARDS: u16 = 4;
const KEY: [u8; 16] = *b"sixteen byte key";

/// A ring that receives for all shards; the token is the shard.
struct Server {
    ring: Uring,
    group: UdpGroup,
}

impl Server {
    fn new() -> Self {
        let config = UringConfig { datagram_buffer_count: 64, ..UringConfig::default() };
        let any = "127.0.0.1:0".parse().unwrap();
        let group = UdpGroup::bind(any, SHARDS, &UdpOptions::default()).unwrap();
        let mut ring = ring_with(config);
        for shard in 0..SHARDS {
            ring.submit(shard.into(), Op::RecvDatagrams { socket: group.socket(shard) });
        }
        Self { ring, group }
    }

    /// The next `count` datagrams with the shards at which they arrived.
    fn arrivals(&mut self, count: usize) -> Vec<(u16, Vec<u8>)> {
        let mut arrivals = Vec::new();
        let group = &self.group;
        run_until(&mut self.ring, |ring, completion| {
            let shard = u16::try_from(completion.token).unwrap();
            let Datagrams { lease, segment_bytes, .. } = match completion.result {
                Ok(Outcome::Datagrams(datagrams)) => datagrams,
                Err(Errno::NOBUFS) => {
                    ring.submit(shard.into(), Op::RecvDatagrams { socket: group.socket(shard) });
                    return false;
                }
                other => panic!("{other:?}"),
            };
            let bytes = ring.bytes(&lease).to_vec();
            ring.release(lease);
            if bytes.is_empty() {
                arrivals.push((shard, bytes));
            } else {
                let parts = bytes.chunks(segment_bytes as usize);
                arrivals.extend(parts.map(|part| (shard, part.to_vec())));
            }
            if !completion.more {
                ring.submit(shard.into(), Op::RecvDatagrams { socket: group.socket(shard) });
            }
            arrivals.len() == count
        });
        arrivals
    }
}

/// Pseudo-random, the same in every run.
fn noise(state: &mut u64) -> u8 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.to_le_bytes()[5]
}

/// A datagram with a random id: short header, Initial or Handshake.
fn crafted(state: &mut u64) -> Vec<u8> {
    let mut datagram: Vec<u8> = (0..60).map(|_| noise(state)).collect();
    match noise(state) % 3 {
        0 => datagram[0] = 0x40,
        1 => (datagram[0], datagram[5]) = (0xc0, 8),
        _ => (datagram[0], datagram[5]) = (0xe0, 20),
    }
    datagram
}

#[test]
fn a_datagram_arrives_where_its_id_says_and_programs_change_at_run_time() {
    let mut server = Server::new();
    let mut state = 0x0dd_ba11;
    let programs = [
        Program::new(CidNaming::Plain, SHARDS, &KEY),
        Program::new(CidNaming::Keyed, SHARDS, &KEY),
        Program::new(CidNaming::Keyed, SHARDS, &KEY).hash_initial(),
        Program::new(CidNaming::Keyed, SHARDS, b"another key, too"),
    ];
    for program in &programs {
        server.group.steer(program).unwrap();
        let mut used = [0; SHARDS as usize];
        for _ in 0..5 {
            // A client that moves: the id decides, whatever the port.
            let peer = Peer::bind("127.0.0.1:0").unwrap();
            for _ in 0..20 {
                peer.send_to(&crafted(&mut state), server.group.address()).unwrap();
            }
            for (shard, datagram) in server.arrivals(20) {
                let named = program.shard(&datagram);
                assert!(named.is_none_or(|named| named == shard), "{program:?} {datagram:02x?}");
                used[usize::from(shard)] += usize::from(named.is_some());
            }
        }
        assert!(used.iter().all(|used| *used > 0), "{used:?}");
    }
}

/// A program that read beyond the end of these would send them all to shard 0.
#[test]
fn what_names_no_shard_spreads_over_all() {
    const PEERS: usize = 64;
    let mut server = Server::new();
    let nameless: [&[u8]; 6] =
        [b"", b"\x40", b"\x80", &[0x40; 8], &[0xff; 13], &[0xc0, 0, 0, 0, 1, 7, 1, 2, 3, 4, 5, 6]];
    for naming in [CidNaming::Plain, CidNaming::Keyed] {
        let program = Program::new(naming, SHARDS, &KEY);
        server.group.steer(&program).unwrap();
        for datagram in nameless {
            for _ in 0..PEERS {
                let peer = Peer::bind("127.0.0.1:0").unwrap();
                peer.send_to(datagram, server.group.address()).unwrap();
            }
            let mut counts = [0; SHARDS as usize];
            for (shard, arrived) in server.arrivals(PEERS) {
                assert_eq!(arrived, datagram);
                counts[usize::from(shard)] += 1;
            }
            assert!(counts.iter().all(|count| (1..PEERS / 2).contains(count)), "{counts:?}");
        }
    }
}

#[test]
fn one_shard_takes_all() {
    let any = "127.0.0.1:0".parse().unwrap();
    let group = UdpGroup::bind(any, 1, &UdpOptions::default()).unwrap();
    let keyed = Program::new(CidNaming::Keyed, 1, &KEY);
    for program in [Program::new(CidNaming::Plain, 1, &KEY), keyed.clone(), keyed.hash_initial()] {
        group.steer(&program).unwrap();
    }
}
