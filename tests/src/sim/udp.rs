//! UDP between clients and shards: datagrams that are lost, doubled, and overtake each other; sockets
//! that a steering program chooses, or a hash over the sender's address where there is none.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ringpost_ring::steering::Program;
use ringpost_ring::{DatagramSend, Errno, SEGMENTS_MAX, UdpSocket};

use super::clock::MS;
use super::ring::{Done, Host};
use super::world::Event;

/// One datagram, or several from one address that the kernel joined.
#[derive(Debug)]
pub struct Train {
    pub from: SocketAddr,
    pub ecn: u8,
    pub segment_bytes: usize,
    pub data: Vec<u8>,
}

/// The socket of one shard.
#[derive(Debug, Default)]
pub struct Inlet {
    /// The armed receive.
    armed: Option<u32>,
    /// Arrived, and not taken by the shard.
    arrived: VecDeque<Train>,
    arrived_bytes: usize,
    /// Buffers that are the kernel's.
    pub buffers: Vec<u16>,
}

impl Inlet {
    pub fn new(buffers: u16) -> Self {
        Self { buffers: (0..buffers).collect(), ..Self::default() }
    }

    /// The receive was cancelled.
    pub fn disarm(&mut self) {
        self.armed = None;
    }
}

impl Host {
    pub fn arm_datagrams(&mut self, shard: u16, slot: u32, socket: UdpSocket) {
        assert_eq!(socket, UdpSocket(i32::from(shard)), "the socket of another shard");
        let inlet = &mut self.kernel(shard).inlet;
        assert!(inlet.armed.replace(slot).is_none(), "two receives on one socket");
        self.pump_datagrams(shard);
    }

    /// A client sends from `from`, over the path of `client`.
    pub fn datagram_up(&mut self, client: usize, from: SocketAddr, ecn: u8, data: &[u8]) {
        if self.is_cut(client, true) {
            self.faults.counts.lost_datagrams += 1;
            return;
        }
        for delay_ns in self.faults.datagram_delays_ns() {
            let data = data.to_vec();
            self.clock.plan_in(delay_ns, Event::DatagramToServer { from, ecn, data });
        }
    }

    pub fn handle_datagram_to_server(&mut self, from: SocketAddr, ecn: u8, data: Vec<u8>) {
        if !self.up {
            return;
        }
        self.clock.note(&[6, u64::from(from.port()), data.len() as u64]);
        let shards = self.shard_count();
        let steered = self.steering.as_ref().and_then(|program| program.shard(&data));
        let shard = steered.unwrap_or_else(|| hash_of(from, shards));
        let inlet = &mut self.kernel(shard).inlet;
        if inlet.arrived_bytes + data.len() > SOCKET_BYTES_MAX {
            self.faults.counts.lost_datagrams += 1;
            return;
        }
        inlet.arrived_bytes += data.len();
        inlet.arrived.push_back(Train { from, ecn, segment_bytes: data.len(), data });
        self.pump_datagrams(shard);
    }

    /// The program of the sockets, from now on.
    pub fn steer(&mut self, program: Option<Program>) {
        self.steering = program;
    }

    fn pump_datagrams(&mut self, shard: u16) {
        while let Some(slot) = self.kernel(shard).inlet.armed {
            if self.kernel(shard).inlet.arrived.is_empty() {
                return;
            }
            let is_starved = self.kernel(shard).inlet.buffers.is_empty();
            let (more, result) = if self.faults.has_no_buffers() || is_starved {
                (false, Err(Errno::NOBUFS))
            } else if self.faults.cancels() {
                (false, Err(Errno::CANCELED))
            } else {
                let train = self.next_train(shard);
                let buffer = self.kernel(shard).inlet.buffers.pop().expect("not empty");
                // The kernel ends a receive with an empty datagram.
                let more =
                    !train.data.is_empty() && !self.overflows(shard) && !self.faults.clears_more();
                (more, Ok(Done::Datagrams { buffer, train }))
            };
            if !more {
                self.kernel(shard).inlet.armed = None;
            }
            self.complete(shard, slot, more, result);
        }
    }

    /// What the next buffer takes: now and then several datagrams of one sender.
    fn next_train(&mut self, shard: u16) -> Train {
        let joins = self.faults.joins_datagrams();
        let inlet = &mut self.kernel(shard).inlet;
        let mut train = inlet.arrived.pop_front().expect("asked by the caller");
        let mut count = 1;
        while joins
            && count < SEGMENTS_MAX
            && train.data.len() == count * train.segment_bytes
            && inlet.arrived.front().is_some_and(|next| {
                (next.from, next.ecn) == (train.from, train.ecn)
                    && (1..=train.segment_bytes).contains(&next.data.len())
            })
        {
            let next = inlet.arrived.pop_front().expect("looked at");
            train.data.extend_from_slice(&next.data);
            count += 1;
        }
        inlet.arrived_bytes -= train.data.len();
        self.faults.counts.joined_datagrams += u64::from(count > 1);
        train
    }

    /// A shard sends: every datagram of the train goes its own way.
    pub fn send_datagrams(
        &mut self,
        shard: u16,
        slot: u32,
        socket: UdpSocket,
        send: &DatagramSend,
    ) {
        assert_eq!(socket, UdpSocket(i32::from(shard)), "the socket of another shard");
        let &DatagramSend { to, from, ecn, segment_bytes, ref data } = send;
        assert!(from.is_none_or(|from| from == SERVER), "not an address of the gateway: {from:?}");
        assert!(!data.is_empty() && ecn < 4, "{send:?}");
        let segment_bytes = segment_bytes.map_or(data.len(), usize::from);
        assert!(data.len().div_ceil(segment_bytes) <= SEGMENTS_MAX, "too long a train");
        if self.faults.fails_datagram_send() {
            return self.complete(shard, slot, false, Err(Errno::PERM));
        }
        for datagram in data.chunks(segment_bytes) {
            for delay_ns in self.faults.datagram_delays_ns() {
                let data = datagram.to_vec();
                self.clock.plan_in(delay_ns, Event::DatagramToClient { to, ecn, data });
            }
        }
        self.complete(shard, slot, false, Ok(Done::Nothing));
    }
}

fn hash_of(from: SocketAddr, shards: u16) -> u16 {
    let IpAddr::V4(ip) = from.ip() else { unreachable!("clients have IPv4 addresses") };
    let hash = (u64::from(u32::from(ip)) << 16 | u64::from(from.port()))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    u16::try_from((hash >> 32) % u64::from(shards)).expect("below a u16")
}

/// Where the gateway is.
pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// What waits in a socket at most; the rest is lost.
const SOCKET_BYTES_MAX: usize = 64 << 10;

/// A datagram that comes a second time comes up to so much later.
pub const DOUBLE_NS_MAX: u64 = 500 * MS;
