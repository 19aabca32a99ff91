//! Clients over QUIC: quinn-proto on the ring, one UDP socket for each client, so that each can have
//! a port of its own and leave it. Everything else of the swarm sees a client whose bytes come and
//! go.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::{Bytes, BytesMut};
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, EndpointConfig, EndpointEvent, Event,
    IdleTimeout, ReadError, StreamEvent, StreamId, TransportConfig, VarInt,
};
use ringpost_protocol::limits::{QUIC_CLIENT_WINDOW_BYTES, QUIC_IDLE_MS};
use ringpost_ring::net::{UdpGroup, UdpOptions};
use ringpost_ring::{Completion, DatagramSend, Datagrams, Errno, Op, OpId, Outcome, Ring};

use super::handover::Cut;
use super::{LinkState, Swarm, token};

/// QUIC of one thread.
pub(super) struct Quic {
    endpoint: quinn_proto::Endpoint,
    config: quinn_proto::ClientConfig,
    server_name: String,
    /// When the ring's clock was at 0.
    origin: Instant,
    /// Which client a connection belongs to, by handle.
    owners: Vec<u32>,
    /// (nanoseconds, client), at most one of each.
    timers: BTreeSet<(u64, u32)>,
    /// Sockets that were left: (when to close, socket), in order. Until then operations that are
    /// under way may name them.
    left: VecDeque<(u64, UdpGroup)>,
    /// Clients whose connection has ended.
    closed: Vec<u32>,
    /// Sockets made so far.
    socket_count: u32,
    datagram: Vec<u8>,
    inbound: Vec<u8>,
}

/// A client's connection.
pub(super) struct QuicConn {
    handle: ConnectionHandle,
    connection: Connection,
    /// The only one; from the end of the handshake on.
    stream: Option<StreamId>,
    socket: UdpGroup,
    receive_op: Option<OpId>,
    /// What the stream has not taken yet.
    outbound: Vec<u8>,
    /// Bye is in `outbound`, and the end of the stream follows.
    leaving: bool,
    /// Its entry among the timers, which may be early; `u64::MAX` when there is none.
    timer_ns: u64,
}

/// What clients of a run over QUIC have in common.
pub fn quic_config(tls: Arc<rustls::ClientConfig>) -> Result<quinn_proto::ClientConfig> {
    let crypto = quinn_proto::crypto::rustls::QuicClientConfig::try_from(tls)
        .context("the provider has no AES-128-GCM")?;
    let mut config = quinn_proto::ClientConfig::new(Arc::new(crypto));
    let mut transport = TransportConfig::default();
    let idle = VarInt::from_u64(QUIC_IDLE_MS).context("an hour fits")?;
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(IdleTimeout::from(idle)))
        .stream_receive_window(VarInt::from_u32(QUIC_CLIENT_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(QUIC_CLIENT_WINDOW_BYTES))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(None);
    config.transport_config(Arc::new(transport));
    Ok(config)
}

impl Quic {
    pub(super) fn new(config: quinn_proto::ClientConfig, server_name: String, now_ns: u64) -> Self {
        let endpoint =
            quinn_proto::Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
        let now = Instant::now();
        Self {
            endpoint,
            config,
            server_name,
            origin: now.checked_sub(Duration::from_nanos(now_ns)).unwrap_or(now),
            owners: Vec::new(),
            timers: BTreeSet::new(),
            left: VecDeque::new(),
            closed: Vec::new(),
            socket_count: 0,
            datagram: Vec::new(),
            inbound: Vec::new(),
        }
    }

    pub(super) fn next_ns(&self) -> u64 {
        if !self.closed.is_empty() {
            return 0;
        }
        let timer_ns = self.timers.first().map_or(u64::MAX, |(at_ns, _)| *at_ns);
        timer_ns.min(self.left.front().map_or(u64::MAX, |(at_ns, _)| *at_ns))
    }

    fn instant(&self, now_ns: u64) -> Instant {
        self.origin + Duration::from_nanos(now_ns)
    }

    fn nanoseconds(&self, instant: Instant) -> u64 {
        let since = instant.saturating_duration_since(self.origin);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    /// A socket for one client, on loopback with an address that the last ones did not have.
    fn bind(&mut self, target: SocketAddr) -> Result<UdpGroup> {
        self.socket_count = self.socket_count.wrapping_add(1);
        let ip = match target.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => {
                let host = u8::try_from(self.socket_count % LOOPBACK_HOSTS).expect("below 256");
                IpAddr::V4(Ipv4Addr::new(127, 0, 2, 1 + host))
            }
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(ip) if ip.is_loopback() => IpAddr::V6(ip),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let options = UdpOptions {
            send_buffer_bytes: SOCKET_BUFFER_BYTES,
            receive_buffer_bytes: SOCKET_BUFFER_BYTES,
        };
        UdpGroup::bind(SocketAddr::new(ip, 0), 1, &options).context("a socket for a client")
    }
}

impl Swarm {
    /// Begins a connection on a socket of its own.
    pub(super) fn connect_quic(&mut self, client: u32) -> Result<()> {
        let now_ns = self.ring.now_ns();
        let target = self.config.target;
        let Some(quic) = &mut self.quic else { return Ok(()) };
        let socket = quic.bind(target)?;
        let now = quic.instant(now_ns);
        let (handle, connection) = quic
            .endpoint
            .connect(now, quic.config.clone(), target, &quic.server_name)
            .map_err(|error| anyhow!("connect to {target}: {error}"))?;
        if quic.owners.len() <= handle.0 {
            quic.owners.resize(handle.0 + 1, u32::MAX);
        }
        quic.owners[handle.0] = client;
        self.slots[client as usize].quic = Some(Box::new(QuicConn {
            handle,
            connection,
            stream: None,
            socket,
            receive_op: None,
            outbound: Vec::new(),
            leaving: false,
            timer_ns: u64::MAX,
        }));
        self.mark_dirty(client);
        Ok(())
    }

    /// The client goes on from another address and port; what is under way to the old one is lost.
    fn move_quic(&mut self, client: u32) -> Result<()> {
        let now_ns = self.ring.now_ns();
        let slot = &mut self.slots[client as usize];
        let (Some(quic), Some(conn)) = (&mut self.quic, slot.quic.as_deref_mut()) else {
            return Ok(());
        };
        let socket = std::mem::replace(&mut conn.socket, quic.bind(self.config.target)?);
        quic.left.push_back((now_ns + LEFT_NS, socket));
        let receive_op = conn.receive_op.take();
        conn.connection.local_address_changed();
        slot.client.probe(now_ns / 1_000_000);
        if let Some(target) = receive_op {
            self.ring.submit(token(CANCEL_DATAGRAMS, client), Op::Cancel { target });
        }
        Ok(())
    }

    /// Everything that the ring says about datagrams.
    pub(super) fn handle_quic(&mut self, completion: Completion) -> Result<()> {
        match completion.token >> 32 {
            RECEIVE_DATAGRAMS => self.handle_datagrams(completion),
            // What could not be sent is lost, as datagrams may be.
            _ => Ok(()),
        }
    }

    fn handle_datagrams(&mut self, completion: Completion) -> Result<()> {
        let client = super::client_of(completion.token);
        let conn = self.slots[client as usize].quic.as_deref_mut();
        let conn = conn.filter(|conn| conn.receive_op == Some(completion.op));
        let is_current = conn.is_some();
        if let Some(conn) = conn.filter(|_| !completion.more) {
            conn.receive_op = None;
            self.mark_dirty(client);
        }
        match completion.result {
            Ok(Outcome::Datagrams(datagrams)) if is_current => {
                self.take_datagrams(client, datagrams)
            }
            Ok(Outcome::Datagrams(datagrams)) => {
                self.ring.release(datagrams.lease);
                Ok(())
            }
            Err(Errno::NOBUFS) | Ok(_) => Ok(()),
            Err(errno) if is_current => {
                self.lose(client, &format!("receive: {errno}"));
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    fn take_datagrams(&mut self, client: u32, datagrams: Datagrams) -> Result<()> {
        let now_ns = self.ring.now_ns();
        let Datagrams { lease, from, local, ecn, segment_bytes } = datagrams;
        let payload = BytesMut::from(self.ring.bytes(&lease));
        self.ring.release(lease);
        let Some(quic) = &mut self.quic else { return Ok(()) };
        let now = quic.instant(now_ns);
        let mut rest = payload;
        while !rest.is_empty() {
            let length = rest.len().min(segment_bytes as usize);
            let segment = rest.split_to(length);
            let mut answer = Vec::new();
            let ecn = quinn_proto::EcnCodepoint::from_bits(ecn);
            let event = quic.endpoint.handle(now, from, local, ecn, segment, &mut answer);
            if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event
                && let Some(conn) = quic
                    .owners
                    .get(handle.0)
                    .and_then(|owner| self.slots.get_mut(*owner as usize))
                    .and_then(|slot| slot.quic.as_deref_mut())
                    .filter(|conn| conn.handle == handle)
            {
                conn.connection.handle_event(event);
            }
        }
        self.drive_quic(client)
    }

    /// Connections whose time has come, and old sockets that are closed at last.
    pub(super) fn quic_due(&mut self, now_ns: u64) -> Result<()> {
        while let Some(client) = self.quic.as_mut().and_then(|quic| quic.closed.pop()) {
            self.handle_closed(client)?;
        }
        while let Some(quic) = &mut self.quic {
            let due = quic.timers.first().copied().filter(|&(at_ns, _)| at_ns <= now_ns);
            let Some((at_ns, client)) = due else {
                while quic.left.front().is_some_and(|(at_ns, _)| *at_ns <= now_ns) {
                    quic.left.pop_front();
                }
                break;
            };
            quic.timers.remove(&(at_ns, client));
            let now = quic.instant(now_ns);
            let conn = self.slots[client as usize].quic.as_deref_mut();
            let conn = conn.expect("an entry goes with its connection");
            conn.timer_ns = u64::MAX;
            if conn.connection.poll_timeout().is_some_and(|due| due <= now) {
                conn.connection.handle_timeout(now);
            }
            self.drive_quic(client)?;
        }
        Ok(())
    }

    /// Everything that follows from the last input of a connection.
    fn drive_quic(&mut self, client: u32) -> Result<()> {
        loop {
            let slot = &mut self.slots[client as usize];
            let (Some(quic), Some(conn)) = (&mut self.quic, slot.quic.as_deref_mut()) else {
                return Ok(());
            };
            while let Some(event) = conn.connection.poll_endpoint_events() {
                if let Some(event) = quic.endpoint.handle_event(conn.handle, event) {
                    conn.connection.handle_event(event);
                }
            }
            let Some(event) = conn.connection.poll() else { break };
            match event {
                Event::Connected => self.open_quic_stream(client),
                Event::ConnectionLost { reason } => {
                    self.lose(client, &format!("the server closed the connection: {reason}"));
                }
                Event::Stream(StreamEvent::Readable { id }) => self.read_quic(client, id)?,
                Event::Stream(StreamEvent::Writable { .. }) => self.mark_dirty(client),
                _ => {}
            }
        }
        // Also when nothing came up: acknowledgements and timers.
        self.mark_dirty(client);
        Ok(())
    }

    fn open_quic_stream(&mut self, client: u32) {
        let now_ms = self.ring.now_ns() / 1_000_000;
        let slot = &mut self.slots[client as usize];
        let Some(conn) = slot.quic.as_deref_mut() else { return };
        conn.stream = conn.connection.streams().open(Dir::Bi);
        let is_open = conn.stream.is_some();
        slot.client.connect_sealed(now_ms);
        if !is_open || !slot.wanted {
            let reason = if is_open { "not needed any more" } else { "the server takes no stream" };
            self.lose(client, reason);
            return;
        }
        self.handovers.handshakes += 1;
        self.mark_dirty(client);
    }

    fn read_quic(&mut self, client: u32, id: StreamId) -> Result<()> {
        let now_ms = self.ring.now_ns() / 1_000_000;
        let slot = &mut self.slots[client as usize];
        let (Some(quic), Some(conn)) = (&mut self.quic, slot.quic.as_deref_mut()) else {
            return Ok(());
        };
        quic.inbound.clear();
        let mut stream = conn.connection.recv_stream(id);
        let end = match stream.read(true) {
            Ok(mut chunks) => {
                let end = loop {
                    match chunks.next(usize::MAX) {
                        Ok(Some(chunk)) => quic.inbound.extend_from_slice(&chunk.bytes),
                        Ok(None) => break Some("the server closed the connection"),
                        Err(ReadError::Blocked) => break None,
                        Err(ReadError::Reset(_)) => break Some("the server reset the stream"),
                    }
                };
                let _ = chunks.finalize(); // what is to be said is sent in any case
                end
            }
            Err(_) => return Ok(()),
        };
        let inbound = std::mem::take(&mut quic.inbound);
        let handled = slot.client.handle_received(now_ms, &inbound, &mut self.received);
        quic.inbound = inbound;
        self.handle_events(client, handled)?;
        if let Some(reason) = end {
            self.lose(client, reason);
        }
        Ok(())
    }

    /// Hands over what the client has to say, and sends what the connection makes of it.
    pub(super) fn flush_quic(&mut self, client: u32) -> Result<()> {
        let now_ms = self.ring.now_ns() / 1_000_000;
        let slot = &mut self.slots[client as usize];
        let Some(conn) = slot.quic.as_deref_mut() else { return Ok(()) };
        if conn.receive_op.is_none() {
            let op = Op::RecvDatagrams { socket: conn.socket.socket(0) };
            conn.receive_op = Some(self.ring.submit(token(RECEIVE_DATAGRAMS, client), op));
        }
        let mut says_something = false;
        if let Some(id) = conn.stream {
            let before = conn.outbound.len();
            slot.client.poll_transmit(now_ms, &mut self.plaintext, &mut conn.outbound);
            says_something = conn.outbound.len() > before;
            conn.leaving |= slot.state == LinkState::Leaving;
            conn.write(id);
        }
        let is_cut = says_something && slot.cut == Cut::Due && slot.state == LinkState::Open;
        // What is said in this moment is lost with the network.
        self.transmit_quic(client, is_cut);
        if is_cut {
            self.begin_change(client);
            self.move_quic(client)?;
            // The new path is asked for a sign of life at once.
            self.flush_quic(client)?;
        }
        Ok(())
    }

    fn transmit_quic(&mut self, client: u32, is_lost: bool) {
        let now_ns = self.ring.now_ns();
        let slot = &mut self.slots[client as usize];
        let (Some(quic), Some(conn)) = (&mut self.quic, slot.quic.as_deref_mut()) else { return };
        let now = quic.instant(now_ns);
        loop {
            quic.datagram.clear();
            let transmit = conn.connection.poll_transmit(now, SEGMENTS_MAX, &mut quic.datagram);
            let Some(transmit) = transmit else { break };
            if is_lost {
                continue;
            }
            let send = Box::new(DatagramSend {
                to: transmit.destination,
                from: None,
                ecn: transmit.ecn.map_or(0, |ecn| ecn as u8),
                segment_bytes: transmit.segment_size.and_then(|bytes| u16::try_from(bytes).ok()),
                data: Bytes::copy_from_slice(&quic.datagram[..transmit.size]),
            });
            let op = Op::SendDatagrams { socket: conn.socket.socket(0), send };
            self.ring.submit(token(SEND_DATAGRAMS, client), op);
        }
        if let Some(due) = conn.connection.poll_timeout() {
            let due_ns = quic.nanoseconds(due);
            if due_ns < conn.timer_ns {
                quic.timers.remove(&(conn.timer_ns, client));
                conn.timer_ns = due_ns;
                quic.timers.insert((due_ns, client));
            }
        }
    }

    /// Ends a connection: the server is told, without being waited for.
    pub(super) fn close_quic(&mut self, client: u32) {
        let now_ns = self.ring.now_ns();
        let slot = &mut self.slots[client as usize];
        if let (Some(quic), Some(conn)) = (&self.quic, slot.quic.as_deref_mut()) {
            conn.connection.close(quic.instant(now_ns), VarInt::from_u32(0), Bytes::new());
            conn.stream = None;
        }
        self.transmit_quic(client, false);
        let slot = &mut self.slots[client as usize];
        let (Some(quic), Some(conn)) = (&mut self.quic, slot.quic.take()) else { return };
        let _ = quic.endpoint.handle_event(conn.handle, EndpointEvent::drained());
        quic.owners[conn.handle.0] = u32::MAX;
        quic.timers.remove(&(conn.timer_ns, client));
        quic.left.push_back((now_ns + LEFT_NS, conn.socket));
        quic.closed.push(client);
        if let Some(target) = conn.receive_op {
            self.ring.submit(token(CANCEL_DATAGRAMS, client), Op::Cancel { target });
        }
    }
}

impl QuicConn {
    fn write(&mut self, id: StreamId) {
        let mut stream = self.connection.send_stream(id);
        // A stream that takes nothing says so when it does again; one that is closed ends anyway.
        if let Ok(written) = stream.write(&self.outbound) {
            self.outbound.drain(..written);
        }
        if self.leaving && self.outbound.is_empty() {
            let _ = stream.finish(); // fails when it is finished already
        }
    }
}

// Kinds of operations; see the others beside them.
const RECEIVE_DATAGRAMS: u64 = 8;
const SEND_DATAGRAMS: u64 = 9;
const CANCEL_DATAGRAMS: u64 = 10;
pub(super) const KINDS: std::ops::RangeInclusive<u64> = RECEIVE_DATAGRAMS..=CANCEL_DATAGRAMS;

/// Buffers of a thread for what arrives; short datagrams share one when they arrive together.
pub(super) const DATAGRAM_BUFFERS: u16 = 256;
/// Of one client; a phone has no more.
const SOCKET_BUFFER_BYTES: u32 = 64 * 1024;
/// Datagrams of one send.
const SEGMENTS_MAX: usize = 10;
const LOOPBACK_HOSTS: u32 = 250;
/// How long a socket that was left stays open, unread.
const LEFT_NS: u64 = 1_000_000_000;
