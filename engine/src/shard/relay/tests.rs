use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ringpost_protocol::message::GoAwayReason;
use ringpost_ring::{Completion, Group, Lease, Op, OpId, Ring, RingCounters, Socket, UdpSocket};

use super::super::conn::Conn;
use super::super::link::Link;
use super::super::stream::{Owner, Stream, StreamTable};
use super::super::{Random, ShardConfig, ShardParts, ShardSettings};
use super::*;
use crate::control::auth::Verifier;
use crate::control::{dev, tls_files};
use crate::limits::{AddressTable, MESH_CREDITS};
use crate::mesh::{Mesh, Queues};
use crate::transport::quic::{CidNaming, QuicConfig, QuicKeys, QuicLimits, SECRET_BYTES};
use crate::transport::tls::ServerConfig;
use crate::transport::{Acceptor, Transport};

/// The edge's side of one stream, whose client sends numbers, and the home's side as `link` plays
/// it, with the mesh between them.
struct World {
    stream: Stream,
    /// Numbers that have arrived at the edge and are not read.
    arrived: VecDeque<u32>,
    to_edge: VecDeque<ToEdge>,
    to_home: VecDeque<u32>,
    /// The home's receive: whether it is a multishot one.
    armed: Option<bool>,
    got: Vec<u32>,
}

enum ToEdge {
    Receive,
    Taken { wants: bool },
}

impl World {
    fn new() -> Self {
        let mut stream = Stream::new(ConnKey { index: 0, generation: 1 });
        stream.leaves();
        Self {
            stream,
            arrived: VecDeque::new(),
            to_edge: VecDeque::new(),
            to_home: VecDeque::new(),
            armed: None,
            got: Vec::new(),
        }
    }

    fn arm(&mut self, multishot: bool) {
        if self.armed.is_none() {
            self.armed = Some(multishot);
            self.to_edge.push_back(ToEdge::Receive);
        }
    }

    fn edge_hears(&mut self) {
        match self.to_edge.pop_front() {
            Some(ToEdge::Receive) => {
                self.stream.claimed(1, ConnKey { index: 7, generation: 1 });
                self.stream.wants = true;
            }
            Some(ToEdge::Taken { wants }) => self.stream.taken(wants),
            None => {}
        }
    }

    fn edge_tells(&mut self) {
        if !self.stream.may_read() {
            return;
        }
        match self.arrived.pop_front() {
            Some(number) => {
                self.stream.chunk_left();
                self.to_home.push_back(number);
            }
            None => self.stream.is_readable = false,
        }
        assert!(self.to_home.len() <= 1, "one chunk on the mesh");
    }

    fn home_hears(&mut self) {
        let Some(number) = self.to_home.pop_front() else { return };
        self.got.push(number);
        if self.armed == Some(false) {
            self.armed = None;
        }
        self.to_edge.push_back(ToEdge::Taken { wants: self.armed == Some(true) });
    }
}

#[test]
fn every_order_of_events_brings_every_chunk_once_and_in_order() {
    for seed in 0..2_000 {
        let (mut world, mut random) = (World::new(), Random::new(seed));
        let mut sent = 0;
        while sent < 40 {
            match random.below(7) {
                0 => {
                    world.arrived.push_back(sent);
                    world.stream.is_readable = true;
                    sent += 1;
                }
                1 => world.edge_hears(),
                2 => world.edge_tells(),
                3 => world.home_hears(),
                4 => world.arm(true),
                5 => world.arm(false),
                _ => world.armed = None, // cancelled
            }
        }
        // From here on it is read as a connection reads that is not paused.
        for _ in 0..400 {
            world.arm(true);
            world.edge_hears();
            world.edge_tells();
            world.home_hears();
        }
        assert_eq!(world.got, (0..40).collect::<Vec<_>>(), "seed {seed}");
    }
}

#[test]
fn nothing_is_read_for_a_connection_on_its_way() {
    let mut world = World::new();
    world.arrived.push_back(1);
    world.edge_tells();
    assert!(world.to_home.is_empty());
    assert_eq!(world.stream.owner, Owner::Moving);
}

/// A ring on which nothing happens.
struct Still;

impl Ring for Still {
    fn submit(&mut self, _token: u64, _op: Op) -> OpId {
        OpId { slot: 0, generation: 0 }
    }

    fn enter(&mut self, _wait_ns: u64, _out: &mut Vec<Completion>) {}

    fn bytes(&self, _lease: &Lease) -> &[u8] {
        unreachable!("it lends nothing")
    }

    fn release(&mut self, _lease: Lease) {}

    fn now_ns(&self) -> u64 {
        1_000_000_000
    }

    fn unix_ms(&self) -> u64 {
        1_000
    }

    fn peer_address(&self, _socket: Socket) -> Option<IpAddr> {
        None
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn counters(&self) -> RingCounters {
        RingCounters::default()
    }
}

/// An edge and a home, with the mesh between them.
struct Pair {
    edge: Shard<Still>,
    home: Shard<Still>,
}

const EDGE: u16 = 0;
const HOME: u16 = 1;
/// Its QUIC connection does not exist: what is read of it has ended, and it takes nothing.
const STREAM: StreamKey = StreamKey { shard: EDGE, index: 0, generation: 1 };

impl Pair {
    fn new() -> Self {
        let queues = Queues::new(Group::new(2).unwrap());
        let place = tempfile::tempdir().unwrap();
        let files = dev::prepare(place.path()).unwrap();
        let loaded = tls_files::load(&files.certificate, &files.key).unwrap();
        let tls = ServerConfig::new(loaded.certificates, loaded.key).unwrap();
        let keys = QuicKeys::from_secret(&[7; SECRET_BYTES]);
        let quic = QuicConfig::new(&tls, keys, CidNaming::Keyed, QuicLimits::default());
        let settings = ShardSettings {
            acceptor: Acceptor::Tls(tls),
            quic: Some(quic),
            verifier: Arc::new(Verifier::load(&files.jwks, "ringpost").unwrap()),
            limits: Arc::default(),
            reconnect_jitter_ms: 0,
            audits: false,
        };
        let shard = |shard| {
            let config = ShardConfig {
                shard,
                storage_shards: 0,
                confirm_clock: false,
                random_seed: 1,
                proxy_trusted: None,
            };
            let parts = ShardParts {
                ring: Still,
                listener: None,
                datagrams: Some(UdpSocket(-1)),
                mesh: Mesh::new(shard, queues.clone()),
                settings: settings.clone(),
                addresses: AddressTable::new(16, 1),
                directory: None,
                store: None,
                events: Box::new(|_| ()),
            };
            Shard::new(config, parts)
        };
        Self { edge: shard(EDGE), home: shard(HOME) }
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.edge.turn();
            self.home.turn();
        }
    }

    /// The stream of a connection that has left the edge.
    fn put_stream(&mut self, owner: Owner) {
        let mut stream = Stream::new(ConnKey { index: 0, generation: 0 });
        (stream.owner, stream.is_readable) = (owner, false);
        self.streams().insert(STREAM, stream);
    }

    fn streams(&mut self) -> &mut StreamTable {
        &mut self.edge.edge.as_mut().unwrap().streams
    }

    /// Its connection at home, with a receive armed in the next turn.
    fn put_conn(&mut self) -> ConnKey {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let conn = Conn::new(Link::Quic(STREAM), Transport::Quic, address, 65_536, 1_000);
        let key = self.home.conns.insert(conn);
        self.home.greetings.begin(key, 1_000);
        self.home.rearm.push(key);
        key
    }

    /// Nothing is left of the connection, and nothing on its way.
    fn expect_nothing_left(&mut self) {
        assert_eq!((self.home.conns.len(), self.streams().len()), (0, 0));
        assert_eq!((self.edge.mesh.unanswered(), self.home.mesh.unanswered()), (0, 0));
        assert!(self.home.links_done.is_empty());
    }
}

/// Takes all credits that `shard` has at `to`.
fn use_up(shard: &mut Shard<Still>, to: u16) {
    while shard.mesh.reserve(to).is_ok() {}
}

fn give_back(shard: &mut Shard<Still>, to: u16, count: usize) {
    for _ in 0..count {
        shard.mesh.replied(to);
    }
}

#[test]
fn whose_client_left_while_he_moved_finds_out_by_his_first_order() {
    let mut pair = Pair::new();
    pair.turns(1);
    // At the edge the end came while the connection was on its way, so there is no stream.
    pair.put_conn();
    pair.turns(4);
    pair.expect_nothing_left();
}

#[test]
fn an_end_is_told_when_there_is_a_credit_and_once() {
    let mut pair = Pair::new();
    let conn = pair.put_conn();
    pair.put_stream(Owner::There { home: HOME, conn });
    pair.turns(3);
    use_up(&mut pair.edge, HOME);
    let stream = pair.streams().get_mut(STREAM).unwrap();
    (stream.is_gone, stream.owes_sent) = (true, true);
    for _ in 0..3 {
        pair.edge.drive_stream(STREAM);
    }
    pair.turns(2);
    assert_eq!(pair.edge.lanes[usize::from(HOME)].len(), 1, "it waits once");
    assert_eq!(pair.home.conns.len(), 1);
    // One credit, two things to tell.
    give_back(&mut pair.edge, HOME, 1);
    pair.turns(6);
    give_back(&mut pair.edge, HOME, MESH_CREDITS as usize - 1);
    pair.turns(3);
    pair.expect_nothing_left();
}

#[test]
fn what_a_connection_says_last_waits_for_credits_and_goes_out_in_order() {
    let mut pair = Pair::new();
    let conn = pair.put_conn();
    pair.put_stream(Owner::Moving);
    pair.turns(3);
    let owner = pair.streams().get_mut(STREAM).unwrap().owner;
    assert_eq!(owner, Owner::There { home: HOME, conn }, "the first order tells who it is");
    use_up(&mut pair.home, EDGE);
    pair.home.send_away(conn, GoAwayReason::Storage);
    pair.turns(3);
    let waiting = pair.home.lanes[usize::from(EDGE)].len();
    assert_eq!((waiting, pair.home.conns.len()), (1, 1), "nothing is sent without a credit");
    give_back(&mut pair.home, EDGE, 1);
    pair.turns(3);
    let sending = &pair.streams().get_mut(STREAM).unwrap().sending;
    assert!(!sending.is_empty(), "the stream has it, and its client does not take it");
    // The client is gone: the send has failed, and with it the connection.
    pair.streams().get_mut(STREAM).unwrap().is_gone = true;
    pair.edge.drive_stream(STREAM);
    pair.turns(4);
    give_back(&mut pair.home, EDGE, MESH_CREDITS as usize - 1);
    pair.turns(2);
    pair.expect_nothing_left();
}

#[test]
fn a_stream_is_closed_when_there_is_a_credit_though_its_connection_is_gone() {
    let mut pair = Pair::new();
    let conn = pair.put_conn();
    pair.put_stream(Owner::There { home: HOME, conn });
    pair.turns(3);
    use_up(&mut pair.home, EDGE);
    pair.home.abort(conn);
    pair.turns(3);
    assert_eq!((pair.home.conns.len(), pair.streams().len()), (0, 1));
    // News for a connection that is gone is answered, and nothing else.
    let stream = pair.streams().get_mut(STREAM).unwrap();
    (stream.is_readable, stream.wants) = (true, true);
    pair.edge.drive_stream(STREAM);
    pair.turns(3);
    assert_eq!(pair.edge.mesh.unanswered(), 0);
    give_back(&mut pair.home, EDGE, MESH_CREDITS as usize);
    pair.turns(3);
    pair.expect_nothing_left();
}

#[test]
fn a_stalled_send_ends_the_connection_at_both_ends() {
    let mut pair = Pair::new();
    let conn = pair.put_conn();
    pair.put_stream(Owner::There { home: HOME, conn });
    pair.turns(2);
    let home = pair.home.conns.get_mut(conn).unwrap();
    home.out.extend_from_slice(b"an answer that is not taken");
    pair.home.mark_dirty(conn);
    pair.turns(2);
    let home = pair.home.conns.get_mut(conn).unwrap();
    assert!(home.send.is_some() && home.send_deadline_ms < u64::MAX);
    (home.send_deadline_ms, home.scheduled_ms) = (0, 0);
    pair.home.handle_deadline(conn);
    pair.turns(4);
    assert_eq!(pair.home.metrics.slow_consumers.get(), 1);
    pair.expect_nothing_left();
}

#[test]
fn a_connection_waits_for_credits_as_often_as_it_must() {
    let mut pair = Pair::new();
    let conn = pair.put_conn();
    pair.put_stream(Owner::There { home: HOME, conn });
    pair.turns(2);
    use_up(&mut pair.home, EDGE);
    for _ in 0..3 {
        pair.home.conns.get_mut(conn).unwrap().out.extend_from_slice(b"an answer");
        pair.home.mark_dirty(conn);
        pair.turns(2);
        assert_eq!(pair.home.lanes[usize::from(EDGE)].len(), 1, "it waits");
        give_back(&mut pair.home, EDGE, 1);
        pair.turns(2);
        let stream = pair.streams().get_mut(STREAM).unwrap();
        assert!(!std::mem::take(&mut stream.sending).is_empty(), "it has gone out");
        stream.owes_sent = true; // the client has taken it
        pair.edge.drive_stream(STREAM);
        pair.turns(1);
        assert!(pair.home.conns.get_mut(conn).unwrap().is_flushed());
        // The credit of the answer to the order is used up again.
        use_up(&mut pair.home, EDGE);
    }
}
