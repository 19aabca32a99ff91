//! A client's side of QUIC: quinn's state machine with a cipher that depends on nothing but the seed,
//! and an address that changes.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, ConnectionId, ConnectionIdGenerator, DatagramEvent,
    Dir, EcnCodepoint, Endpoint, EndpointConfig, Event as QuicEvent, StreamEvent, StreamId,
    TransportConfig, VarInt,
};
use ringpost_engine::transport::quic::plain::PlainQuic;
use ringpost_protocol::limits::QUIC_IDLE_MS;

use super::clock::{MS, Stream};
use super::net::LinkId;
use super::ring::{FIRST_ADDRESS, Host};
use super::udp::SERVER;
use super::world::Event;

/// What a connection has for its client.
#[derive(Debug)]
pub enum Heard {
    Data(Vec<u8>),
    /// Nothing more comes.
    End,
}

/// All QUIC connections of all clients.
pub struct QuicLinks {
    /// An instant that stands for zero.
    start: Instant,
    links: BTreeMap<LinkId, QuicLink>,
    /// Who receives at an address.
    addresses: BTreeMap<SocketAddr, LinkId>,
    last: LinkId,
    /// For ids, ports and whatever quinn wants.
    random: Stream,
    last_port: u16,
    /// What nobody has heard yet.
    heard: VecDeque<(usize, LinkId, Heard)>,
    /// The last datagram sent, for who overhears it.
    pub overheard: Vec<u8>,
}

/// One connection, with an endpoint and a socket of its own.
struct QuicLink {
    client: usize,
    endpoint: Endpoint,
    handle: ConnectionHandle,
    connection: Connection,
    stream: Option<StreamId>,
    /// What the stream has not taken yet.
    unsent: BytesMut,
    address: SocketAddr,
    first_address: SocketAddr,
    ends: Ends,
    /// The client knows that it is over.
    told_end: bool,
    timer_ns: u64,
    timer_ticket: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Open,
    /// The client has closed it, and waits until the gateway has everything; not longer than this.
    Until(u64),
    Closed,
}

/// How a client's address changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebind {
    /// Another port, which the client does not notice: a NAT forgot it.
    Port,
    /// Another network, and it knows.
    Network,
    /// Back to where it was first.
    Home,
}

impl QuicLinks {
    pub fn new(seed: u64) -> Self {
        Self {
            start: Instant::now(),
            links: BTreeMap::new(),
            addresses: BTreeMap::new(),
            last: 0,
            random: Stream::new(seed, "quic client"),
            last_port: 1_024,
            heard: VecDeque::new(),
            overheard: Vec::new(),
        }
    }

    fn instant(&self, now_ns: u64) -> Instant {
        self.start + Duration::from_nanos(now_ns)
    }

    fn free_port(&mut self) -> u16 {
        self.last_port = self.last_port.checked_add(1).unwrap_or(1_024);
        self.last_port
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.random.next_u64().to_le_bytes()[0])
    }

    pub fn next_heard(&mut self) -> Option<(usize, LinkId, Heard)> {
        self.heard.pop_front()
    }

    /// Whose link it is.
    fn client(&self, id: LinkId) -> Option<usize> {
        self.links.get(&id).map(|link| link.client)
    }

    fn remove(&mut self, id: LinkId) {
        if let Some(link) = self.links.remove(&id) {
            self.addresses.remove(&link.address);
        }
    }
}

/// Links of TCP are positive.
pub fn is_quic(id: LinkId) -> bool {
    id < 0
}

impl Host {
    /// A client connects over QUIC. What it writes before the handshake is done waits.
    pub fn quic_connect(&mut self, client: usize) -> LinkId {
        let now_ns = self.clock.now_ns();
        let quic = &mut self.quic;
        quic.last -= 1;
        let id = quic.last;
        let number = u32::try_from(client).expect("few clients");
        let address =
            SocketAddr::new(Ipv4Addr::from(FIRST_ADDRESS + number).into(), quic.free_port());
        let seed: [u8; 32] = quic.bytes();
        let mut endpoint = Endpoint::new(Arc::new(endpoint_config(seed)), None, false, Some(seed));
        let config = client_config(ConnectionId::new(&quic.bytes::<20>()));
        let now = quic.instant(now_ns);
        let (handle, connection) = endpoint
            .connect(now, config, SocketAddr::new(SERVER, PORT), "gateway")
            .expect("a good address and a good name");
        quic.addresses.insert(address, id);
        let link = QuicLink {
            client,
            endpoint,
            handle,
            connection,
            stream: None,
            unsent: BytesMut::new(),
            address,
            first_address: address,
            ends: Ends::Open,
            told_end: false,
            timer_ns: u64::MAX,
            timer_ticket: 0,
        };
        quic.links.insert(id, link);
        self.coverage.quic_connections += 1;
        self.drive_quic(id);
        id
    }

    pub fn quic_write(&mut self, id: LinkId, data: &[u8]) {
        if let Some(link) = self.quic.links.get_mut(&id)
            && link.ends == Ends::Open
        {
            link.unsent.extend_from_slice(data);
            self.drive_quic(id);
        }
    }

    /// The client's process ends the connection in order.
    pub fn quic_close(&mut self, id: LinkId) {
        let until_ns = self.clock.now_ns() + LINGER_NS;
        if let Some(link) = self.quic.links.get_mut(&id)
            && link.ends == Ends::Open
        {
            link.ends = Ends::Until(until_ns);
            link.told_end = true;
            self.clock.plan(until_ns, Event::QuicTimer { link: id, ticket: LINGER_TICKET });
            self.drive_quic(id);
        }
    }

    /// It ends without its rest.
    pub fn quic_abort(&mut self, id: LinkId) {
        let now = self.quic.instant(self.clock.now_ns());
        if let Some(link) = self.quic.links.get_mut(&id)
            && link.ends != Ends::Closed
        {
            (link.ends, link.told_end) = (Ends::Closed, true);
            link.connection.close(now, VarInt::from_u32(1), Bytes::new());
            self.drive_quic(id);
        }
    }

    /// The gateway is not told; it finds out by the silence.
    pub fn quic_vanish(&mut self, id: LinkId) {
        if self.quic.links.contains_key(&id) {
            self.quic.remove(id);
            self.faults.counts.vanished += 1;
        }
    }

    /// The client's system takes its socket away, and says so to the client alone.
    pub fn quic_cut(&mut self, id: LinkId) {
        if let Some(client) = self.quic.client(id) {
            self.quic.heard.push_back((client, id, Heard::End));
            self.quic.remove(id);
        }
    }

    /// The address of a client changes.
    pub fn quic_rebind(&mut self, id: LinkId, rebind: Rebind) {
        let port = self.quic.free_port();
        let moves = self.faults.counts.rebinds;
        let Some(link) = self.quic.links.get_mut(&id) else { return };
        let before = link.address;
        match rebind {
            Rebind::Port => link.address.set_port(port),
            Rebind::Network => {
                let number = u32::try_from(link.client).expect("few clients");
                let network = u32::try_from(moves % 200 + 1).expect("small") << 16;
                let ip = Ipv4Addr::from(FIRST_ADDRESS + network + number);
                link.address = SocketAddr::new(ip.into(), port);
                link.connection.local_address_changed();
            }
            Rebind::Home => {
                link.address = link.first_address;
                link.connection.local_address_changed();
            }
        }
        let after = link.address;
        self.quic.addresses.remove(&before);
        self.quic.addresses.insert(after, id);
        self.faults.counts.rebinds += 1;
        self.tell(|| format!("link {id} moves from {before} to {after}: {rebind:?}"));
        self.drive_quic(id);
    }

    pub fn handle_datagram_to_client(&mut self, to: SocketAddr, ecn: u8, data: &[u8]) {
        let Some(&id) = self.quic.addresses.get(&to) else { return };
        self.clock.note(&[7, u64::from(to.port()), data.len() as u64]);
        let now = self.quic.instant(self.clock.now_ns());
        let Some(link) = self.quic.links.get_mut(&id) else { return };
        let client = link.client;
        if self.is_cut(client, false) {
            self.faults.counts.lost_datagrams += 1;
            return;
        }
        let link = self.quic.links.get_mut(&id).expect("looked up above");
        let mut answer = Vec::new();
        let (ecn, data) = (EcnCodepoint::from_bits(ecn), BytesMut::from(data));
        let from = SocketAddr::new(SERVER, PORT);
        match link.endpoint.handle(now, from, None, ecn, data, &mut answer) {
            Some(DatagramEvent::ConnectionEvent(_, event)) => link.connection.handle_event(event),
            Some(DatagramEvent::Response(_)) => {
                let address = link.address;
                self.datagram_up(client, address, 0, &answer);
            }
            Some(DatagramEvent::NewConnection(_)) => unreachable!("clients accept nothing"),
            None => {}
        }
        self.drive_quic(id);
    }

    pub fn handle_quic_timer(&mut self, id: LinkId, ticket: u64) {
        let now_ns = self.clock.now_ns();
        let now = self.quic.instant(now_ns);
        let Some(link) = self.quic.links.get_mut(&id) else { return };
        if ticket == LINGER_TICKET {
            return self.drive_quic(id);
        }
        if ticket == link.timer_ticket {
            link.timer_ns = u64::MAX;
            link.connection.handle_timeout(now);
            self.drive_quic(id);
        }
    }

    /// Everything that follows from the last input to a connection.
    pub fn drive_quic(&mut self, id: LinkId) {
        let Some(mut link) = self.quic.links.remove(&id) else { return };
        let now_ns = self.clock.now_ns();
        let now = self.quic.instant(now_ns);
        let reads = !self.paths[link.client].is_blind;
        let mut heard = Vec::new();
        loop {
            link.handle_events(&mut heard);
            link.write();
            if reads {
                link.read(&mut heard);
            }
            link.end(now, now_ns);
            let has_sent = self.transmit_quic(&mut link, now);
            let has_event = link.exchange_events();
            if !has_sent && !has_event {
                break;
            }
        }
        for heard in heard {
            if !link.told_end {
                link.told_end = matches!(heard, Heard::End);
                self.quic.heard.push_back((link.client, id, heard));
            }
        }
        if link.connection.is_drained() {
            self.quic.addresses.remove(&link.address);
            return;
        }
        if let Some(at) = link.connection.poll_timeout() {
            let at_ns = at.saturating_duration_since(self.quic.start).as_nanos();
            let at_ns = u64::try_from(at_ns).expect("some centuries");
            if at_ns != link.timer_ns {
                link.timer_ns = at_ns;
                link.timer_ticket += 1;
                let ticket = link.timer_ticket;
                self.clock.plan(at_ns, Event::QuicTimer { link: id, ticket });
            }
        }
        self.quic.links.insert(id, link);
    }

    /// The client reads again what has come meanwhile.
    pub fn quic_reads(&mut self, client: usize) {
        let ids: Vec<LinkId> = self
            .quic
            .links
            .iter()
            .filter(|(_, link)| link.client == client)
            .map(|l| *l.0)
            .collect();
        for id in ids {
            self.drive_quic(id);
        }
    }

    fn transmit_quic(&mut self, link: &mut QuicLink, now: Instant) -> bool {
        let mut has_sent = false;
        let mut buffer = Vec::new();
        while let Some(transmit) = link.connection.poll_transmit(now, TRAIN_MAX, &mut buffer) {
            has_sent = true;
            let ecn = transmit.ecn.map_or(0, |ecn| ecn as u8);
            let data = &buffer[..transmit.size];
            for datagram in data.chunks(transmit.segment_size.unwrap_or(transmit.size)) {
                self.datagram_up(link.client, link.address, ecn, datagram);
            }
            self.quic.overheard = data[..data.len().min(1200)].to_vec();
            buffer.clear();
        }
        has_sent
    }
}

impl QuicLink {
    fn handle_events(&mut self, heard: &mut Vec<Heard>) {
        while let Some(event) = self.connection.poll() {
            match event {
                QuicEvent::Connected => {
                    self.stream = self.connection.streams().open(Dir::Bi);
                    assert!(self.stream.is_some(), "the gateway allows one stream");
                }
                QuicEvent::ConnectionLost { .. } => {
                    self.ends = Ends::Closed;
                    heard.push(Heard::End);
                }
                QuicEvent::Stream(StreamEvent::Finished { .. })
                    if matches!(self.ends, Ends::Until(_)) =>
                {
                    self.ends = Ends::Until(0);
                }
                QuicEvent::Stream(StreamEvent::Stopped { .. }) => heard.push(Heard::End),
                _ => {}
            }
        }
    }

    fn write(&mut self) {
        let Some(stream) = self.stream.filter(|_| self.ends != Ends::Closed) else { return };
        while !self.unsent.is_empty() {
            // Blocked, stopped or closed: what is left waits, or is lost with the connection.
            let Ok(taken) = self.connection.send_stream(stream).write(&self.unsent) else { return };
            self.unsent.advance(taken);
        }
        if matches!(self.ends, Ends::Until(_)) {
            // A second time, or after the gateway has stopped it: nothing to end.
            let _ = self.connection.send_stream(stream).finish();
        }
    }

    fn read(&mut self, heard: &mut Vec<Heard>) {
        let Some(stream) = self.stream else { return };
        let mut data = Vec::new();
        let mut receive = self.connection.recv_stream(stream);
        let Ok(mut chunks) = receive.read(true) else { return };
        let is_over = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => data.extend_from_slice(&chunk.bytes),
                Ok(None) => break true,
                Err(quinn_proto::ReadError::Blocked) => break false,
                Err(quinn_proto::ReadError::Reset(_)) => break true,
            }
        };
        // Whatever it wants to be sent goes out with the next packet, which is asked for anyway.
        let _ = chunks.finalize();
        if !data.is_empty() {
            heard.push(Heard::Data(data));
        }
        if is_over {
            heard.push(Heard::End);
        }
    }

    /// Closes when everything is said, or it takes too long.
    fn end(&mut self, now: Instant, now_ns: u64) {
        if let Ends::Until(until_ns) = self.ends
            && until_ns <= now_ns
        {
            self.ends = Ends::Closed;
            self.connection.close(now, VarInt::from_u32(0), Bytes::new());
        }
    }

    fn exchange_events(&mut self) -> bool {
        let mut has_event = false;
        while let Some(event) = self.connection.poll_endpoint_events() {
            has_event = true;
            if let Some(event) = self.endpoint.handle_event(self.handle, event) {
                self.connection.handle_event(event);
            }
        }
        has_event
    }
}

/// Ids from a seed.
struct SeededCids(Stream);

impl ConnectionIdGenerator for SeededCids {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.0.next_u64().to_le_bytes())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

fn endpoint_config(seed: [u8; 32]) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(PlainQuic));
    let number = u64::from_le_bytes(*seed.first_chunk().expect("32 bytes"));
    config.cid_generator(move || Box::new(SeededCids(Stream::new(number, "connection ids"))));
    config
}

fn client_config(first_cid: ConnectionId) -> ClientConfig {
    let mut config = ClientConfig::new(Arc::new(PlainQuic));
    config.initial_dst_cid_provider(Arc::new(move || first_cid));
    let mut transport = TransportConfig::default();
    let idle = VarInt::from_u64(QUIC_IDLE_MS).expect("an hour fits");
    transport.max_idle_timeout(Some(idle.into())).mtu_discovery_config(None);
    config.transport_config(Arc::new(transport));
    config
}

const PORT: u16 = 7443;
/// The gateway has so long to take a client's last words.
const LINGER_NS: u64 = 3_000 * MS;
/// No timer of quinn's has it.
const LINGER_TICKET: u64 = 0;
const TRAIN_MAX: usize = 10;
