//! A gateway of some shards, its clients, and the network between them.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringpost_ring::steering::Program;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::super::{
    CidNaming, EndReason, QuicConfig, QuicCounters, QuicEndpoint, QuicEvent, QuicKeys, QuicLimits,
    Read, StreamKey,
};
use super::client::{Client, client_config, client_tls};
use crate::transport::tls;

pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000 * MS;

/// A datagram under way.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) ecn: u8,
    pub(super) data: Bytes,
}

/// How the kernel picks a shard.
pub(super) enum Steering {
    Program(Program),
    /// By addresses and ports alone.
    Hash,
}

/// What the network does to a datagram.
pub(super) struct Network {
    pub(super) delay_ns: u64,
    /// Each datagram is later by up to so much, and so may overtake others.
    pub(super) jitter_ns: u64,
    /// Of a hundred.
    pub(super) loss_percent: u64,
    /// Datagrams of one sender that arrive together arrive as a train, as the kernel joins them.
    pub(super) joins: bool,
    state: u64,
}

/// A shard, whose streams give back what they get.
pub(super) struct Shard {
    pub(super) endpoint: QuicEndpoint,
    /// What has still to be written, per stream.
    pub(super) streams: HashMap<StreamKey, Vec<Bytes>>,
    /// From where streams were opened, as the owner is told.
    pub(super) opened_from: Vec<IpAddr>,
    pub(super) ended: Vec<(StreamKey, EndReason)>,
    pub(super) moved: Vec<SocketAddr>,
    /// It reads nothing and writes nothing.
    pub(super) is_asleep: bool,
    /// What was read, in all.
    pub(super) read_bytes: usize,
}

pub(super) struct World {
    epoch: Instant,
    pub(super) now_ns: u64,
    pub(super) config: QuicConfig,
    pub(super) certificate: CertificateDer<'static>,
    pub(super) tls: tls::ServerConfig,
    pub(super) shards: Vec<Shard>,
    pub(super) clients: Vec<Client>,
    pub(super) network: Network,
    pub(super) steering: Steering,
    pub(super) forwards: bool,
    in_flight: BTreeMap<(u64, u64), Packet>,
    sequence: u64,
    /// Everything that was sent to the gateway.
    pub(super) record: Option<Vec<Packet>>,
    /// Bytes that the gateway sent, by address.
    pub(super) sent_to: HashMap<SocketAddr, usize>,
    /// Where it arrives at the gateway, which has several addresses.
    pub(super) local: IpAddr,
    /// From where the gateway last sent to an address.
    pub(super) sent_from: HashMap<SocketAddr, IpAddr>,
}

pub(super) fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    (made.cert.der().clone(), key)
}

impl World {
    /// A stream that a shard has; where there is one client, its stream.
    pub(super) fn any_stream(&self) -> StreamKey {
        let keys = self.shards.iter().flat_map(|shard| shard.streams.keys());
        *keys.into_iter().next().unwrap()
    }

    pub(super) fn new(shards: u16) -> Self {
        Self::with_config(shards, QuicConfig::clone)
    }

    pub(super) fn with_config(shards: u16, change: impl FnOnce(&QuicConfig) -> QuicConfig) -> Self {
        let (certificate, key) = certificate();
        let tls = tls::ServerConfig::new(vec![certificate.clone()], key).unwrap();
        let keys = QuicKeys::from_secret(&[9; 32]);
        // Generous, so that only the tests of admission meet it.
        let limits = QuicLimits { accepts_per_turn: 1_000, ..QuicLimits::default() };
        let config = QuicConfig::new(&tls, keys, CidNaming::Keyed, limits).with_seed([5; 32]);
        let config = change(&config);
        let now_ns = 77 * SECOND;
        let steering = Steering::Program(config.program(shards));
        let shards = (0..shards).map(|shard| Shard::new(&config, shard, shards, now_ns)).collect();
        let network = Network::new(0x5eed);
        Self {
            epoch: Instant::now(),
            now_ns,
            config,
            certificate,
            tls,
            shards,
            clients: Vec::new(),
            network,
            steering,
            forwards: false,
            in_flight: BTreeMap::new(),
            sequence: 0,
            record: None,
            sent_to: HashMap::new(),
            local: server().ip(),
            sent_from: HashMap::new(),
        }
    }

    pub(super) fn instant(&self) -> Instant {
        self.epoch + Duration::from_nanos(self.now_ns)
    }

    /// A client with settings of its own; its number.
    pub(super) fn connect_with(&mut self, tls: Arc<rustls::ClientConfig>) -> usize {
        let number = self.clients.len();
        let address = address(number, 0);
        let seed = u8::try_from(number % 250).unwrap();
        let config = client_config(tls);
        self.clients.push(Client::new(self.instant(), address, server(), config, seed));
        number
    }

    pub(super) fn connect(&mut self) -> usize {
        let tls = client_tls(&self.certificate, tls::ALPN);
        self.connect_with(Arc::new(tls))
    }

    /// A client that has sent `hello` and got it back.
    pub(super) fn connected(&mut self) -> usize {
        let client = self.connect();
        self.clients[client].send(&b"hello"[..]);
        self.run_until(10 * SECOND, |world| world.clients[client].received.len() == 5);
        client
    }

    /// Gives a client another port, and with another `host` another address.
    pub(super) fn rebind(&mut self, client: usize, host: u8, port: u16) {
        let mut new = address(client, host);
        new.set_port(port);
        self.clients[client].address = new;
    }

    /// Sends a packet of somebody.
    pub(super) fn inject(&mut self, packet: Packet) {
        self.put(packet);
    }

    /// Runs until `done`, which must be within `patience_ns`.
    pub(super) fn run_until(&mut self, patience_ns: u64, done: impl Fn(&Self) -> bool) {
        let end_ns = self.now_ns + patience_ns;
        assert!(self.runs_until(end_ns, done), "not done in {} ms", patience_ns / MS);
    }

    pub(super) fn run_for(&mut self, time_ns: u64) {
        self.runs_until(self.now_ns + time_ns, |_| false);
    }

    /// Runs until `done` or `end_ns`; whether it is done.
    pub(super) fn runs_until(&mut self, end_ns: u64, done: impl Fn(&Self) -> bool) -> bool {
        loop {
            self.drive();
            if done(self) {
                return true;
            }
            match self.next_ns() {
                Some(next_ns) if next_ns <= end_ns => self.now_ns = self.now_ns.max(next_ns),
                _ => {
                    self.now_ns = self.now_ns.max(end_ns);
                    self.drive();
                    return done(self);
                }
            }
        }
    }

    fn next_ns(&mut self) -> Option<u64> {
        let packet = self.in_flight.keys().next().map(|&(at_ns, _)| at_ns);
        let shards = self.shards.iter().filter_map(|shard| shard.endpoint.poll_timeout());
        let epoch = self.epoch;
        let clients = self.clients.iter_mut().filter_map(|client| {
            let at = client.connection.poll_timeout()?;
            Some(u64::try_from((at - epoch).as_nanos()).unwrap())
        });
        packet.into_iter().chain(shards).chain(clients).min()
    }

    /// Everything that is due now.
    fn drive(&mut self) {
        let (now, now_ns) = (self.instant(), self.now_ns);
        let mut out = Vec::new();
        while let Some(entry) = self.in_flight.first_entry() {
            if entry.key().0 > now_ns {
                break;
            }
            let packet = entry.remove();
            if packet.to == server() {
                self.deliver_to_server(&packet);
            } else {
                self.deliver_to_client(&packet);
            }
        }
        for client in &mut self.clients {
            client.handle_timeout(now, now_ns);
            client.transmit(now, &mut out);
        }
        for shard in &mut self.shards {
            if shard.endpoint.poll_timeout().is_some_and(|at_ns| at_ns <= now_ns) {
                shard.endpoint.handle_timeout(now_ns);
            }
        }
        self.drive_shards(&mut out);
        for packet in out {
            self.put(packet);
        }
    }

    fn drive_shards(&mut self, out: &mut Vec<Packet>) {
        for index in 0..self.shards.len() {
            self.shards[index].handle_events();
            while let Some((owner, foreign)) = self.shards[index].endpoint.poll_foreign() {
                if self.forwards {
                    let owner = &mut self.shards[usize::from(owner)];
                    owner.endpoint.handle_foreign(self.now_ns, &foreign);
                }
            }
        }
        for shard in &mut self.shards {
            shard.handle_events();
            while let Some(send) = shard.endpoint.poll_transmit(self.now_ns) {
                self.sent_from.extend(send.from.map(|ip| (send.to, ip)));
                let segment_bytes = send.segment_bytes.map_or(send.data.len(), usize::from);
                for data in send.data.chunks(segment_bytes) {
                    *self.sent_to.entry(send.to).or_default() += data.len();
                    let data = Bytes::copy_from_slice(data);
                    out.push(Packet { from: server(), to: send.to, ecn: send.ecn, data });
                }
            }
        }
    }

    fn deliver_to_client(&mut self, packet: &Packet) {
        let (now, now_ns) = (self.instant(), self.now_ns);
        // Several may share a socket: their connection ids tell them apart.
        for client in self.clients.iter_mut().filter(|client| client.address == packet.to) {
            client.handle(now, now_ns, packet);
        }
    }

    fn deliver_to_server(&mut self, packet: &Packet) {
        if let Some(record) = &mut self.record {
            record.push(packet.clone());
        }
        let mut train = packet.data.to_vec();
        while self.network.joins {
            let Some(entry) = self.in_flight.first_entry() else { break };
            let next = entry.get();
            let is_whole = train.len().is_multiple_of(packet.data.len());
            let fits = (next.from, next.to) == (packet.from, packet.to)
                && next.data.len() <= packet.data.len();
            if !is_whole || !fits || entry.key().0 > self.now_ns {
                break;
            }
            train.extend_from_slice(&entry.remove().data);
        }
        let by_hash = usize::from(packet.from.port()) % self.shards.len();
        let shard = match &self.steering {
            Steering::Program(program) => program.shard(&train).map_or(by_hash, usize::from),
            Steering::Hash => by_hash,
        };
        let segment_bytes = u32::try_from(packet.data.len()).unwrap();
        let (endpoint, local) = (&mut self.shards[shard].endpoint, Some(self.local));
        let (from, ecn) = (packet.from, packet.ecn);
        endpoint.handle_datagrams(self.now_ns, from, local, ecn, segment_bytes, &train);
    }

    fn put(&mut self, packet: Packet) {
        self.sequence += 1;
        if self.network.random(100) < self.network.loss_percent {
            return;
        }
        let jitter_ns = self.network.random(self.network.jitter_ns.max(1));
        let at_ns = self.now_ns + self.network.delay_ns + jitter_ns;
        self.in_flight.insert((at_ns, self.sequence), packet);
    }

    /// One number of all shards.
    pub(super) fn count(&self, of: impl Fn(&QuicCounters) -> u64) -> u64 {
        self.shards.iter().map(|shard| of(shard.endpoint.counters())).sum()
    }
}

impl Shard {
    pub(super) fn new(config: &QuicConfig, shard: u16, shards: u16, now_ns: u64) -> Self {
        Self {
            endpoint: QuicEndpoint::new(config, shard, shards, now_ns),
            streams: HashMap::new(),
            opened_from: Vec::new(),
            ended: Vec::new(),
            moved: Vec::new(),
            is_asleep: false,
            read_bytes: 0,
        }
    }

    pub(super) fn handle_events(&mut self) {
        while let Some(event) = self.endpoint.poll_event() {
            match event {
                QuicEvent::Opened { key, from } => {
                    self.opened_from.push(from);
                    assert!(self.streams.insert(key, Vec::new()).is_none(), "opened once");
                }
                QuicEvent::Readable(key) | QuicEvent::Writable(key) => self.echo(key),
                QuicEvent::Moved { from, .. } => self.moved.push(from),
                QuicEvent::Ended { key, reason } => {
                    assert!(self.streams.remove(&key).is_some(), "ended once, after it opened");
                    self.ended.push((key, reason));
                }
            }
        }
    }

    /// Gives back what came, as fast as it is taken.
    pub(super) fn echo(&mut self, key: StreamKey) {
        if self.is_asleep {
            return;
        }
        let unsent = self.streams.get_mut(&key).expect("an event of an open stream");
        loop {
            self.endpoint.write(key, unsent);
            if !unsent.is_empty() {
                return; // the rest waits for Writable, and with it the reading
            }
            match self.endpoint.read(key, 16 * 1024) {
                Read::Data(data) => {
                    self.read_bytes += data.len();
                    unsent.push(data);
                }
                Read::End => return self.endpoint.finish(key),
                Read::Nothing | Read::Reset => return,
            }
        }
    }
}

impl Network {
    pub(super) fn new(state: u64) -> Self {
        Self { delay_ns: 10 * MS, jitter_ns: 0, loss_percent: 0, joins: false, state }
    }

    /// Below `below`.
    pub(super) fn random(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.state >> 33) % below
    }
}

pub(super) fn server() -> SocketAddr {
    "192.0.2.1:7443".parse().unwrap()
}

/// Of a client, at one of its places.
pub(super) fn address(client: usize, host: u8) -> SocketAddr {
    let [high, low] = u16::try_from(client).unwrap().to_be_bytes();
    SocketAddr::from(([10, host, high, low], 40_000))
}

/// Bytes of which none looks like its neighbours.
pub(super) fn pattern(length: usize, seed: u64) -> Bytes {
    let mut network = Network::new(seed);
    (0..length).map(|_| network.random(256).to_le_bytes()[0]).collect::<Vec<_>>().into()
}
