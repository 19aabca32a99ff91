//! TCP between clients and shards: ordered bytes that come late and in pieces, ends, resets, and
//! peers that are gone without a word.

use std::collections::VecDeque;

use bytes::Bytes;
use ringpost_ring::{Errno, Socket};

use super::quic::is_quic;
use super::ring::{Done, Host, Kind};
use super::world::Event;

/// Names one connection for ever; the shards see it as the number of a socket. Those of
/// [`super::quic`] are negative, and the shards do not see them.
pub type LinkId = i32;

/// One connection.
#[derive(Debug)]
pub struct Link {
    pub client: usize,
    /// So many times longer than usual everything takes here.
    pub slowness: u64,
    /// Whose listener it came to.
    shard: u16,
    process: u64,
    pub up: Pipe,
    pub down: Pipe,
    server_open: bool,
    client_end: ClientEnd,
    recv: Option<Armed>,
    send: Option<(Armed, Vec<Bytes>)>,
}

/// One direction.
#[derive(Debug, Default)]
pub struct Pipe {
    /// When the last byte sent so far arrives.
    pub last_ns: u64,
    /// Sent and not arrived.
    flying_bytes: usize,
    /// Arrived and not read.
    arrived: VecDeque<u8>,
    fin_sent: bool,
    ended: bool,
    reset: bool,
}

impl Pipe {
    pub fn is_reset(&self) -> bool {
        self.reset
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClientEnd {
    Open,
    Closed,
    /// Out of reach: nothing arrives, nothing is answered.
    Vanished,
}

#[derive(Clone, Copy, Debug)]
struct Armed {
    shard: u16,
    slot: u32,
    multishot: bool,
}

impl Host {
    /// A client connects; what it writes at once arrives behind.
    pub fn connect(&mut self, client: usize, shard: u16) -> LinkId {
        self.last_link += 1;
        let id = self.last_link;
        let slowness = self.faults.link_slowness();
        self.links.insert(
            id,
            Link {
                client,
                slowness,
                shard,
                process: 0,
                up: Pipe::default(),
                down: Pipe::default(),
                server_open: false,
                client_end: ClientEnd::Open,
                recv: None,
                send: None,
            },
        );
        let at_ns = self.arrival_ns(id, true);
        self.link(id).down.last_ns = at_ns;
        self.clock.plan(at_ns, Event::Syn { link: id });
        id
    }

    pub fn handle_syn(&mut self, id: LinkId) {
        let (up, process) = (self.up, self.process);
        let link = self.link(id);
        if !up || link.up.reset {
            return self.answer_reset(id);
        }
        link.server_open = true;
        link.process = process;
        let shard = link.shard;
        self.kernel(shard).backlog.push_back(id);
        self.pump_accept(shard);
    }

    pub fn client_write(&mut self, id: LinkId, mut data: &[u8]) {
        if is_quic(id) {
            return self.quic_write(id, data);
        }
        if self.link(id).client_end != ClientEnd::Open {
            return;
        }
        let mut pieces = 0;
        while !data.is_empty() {
            pieces += 1;
            let bytes =
                if pieces < PIECES_MAX { self.faults.piece(data.len()) } else { data.len() };
            let (piece, rest) = data.split_at(bytes);
            let at_ns = self.arrival_ns(id, true);
            self.clock.plan(at_ns, Event::ToServer { link: id, data: piece.to_vec() });
            data = rest;
        }
    }

    /// The client's process ends the connection in order.
    pub fn client_close(&mut self, id: LinkId) {
        if is_quic(id) {
            return self.quic_close(id);
        }
        let link = self.link(id);
        if link.client_end == ClientEnd::Open {
            link.client_end = ClientEnd::Closed;
            let at_ns = self.arrival_ns(id, true);
            self.clock.plan(at_ns, Event::FinToServer { link: id });
        }
    }

    pub fn client_reset(&mut self, id: LinkId) {
        if is_quic(id) {
            return self.quic_abort(id);
        }
        let link = self.link(id);
        if link.client_end == ClientEnd::Open {
            link.client_end = ClientEnd::Closed;
            self.send_reset(id, true);
        }
    }

    /// The server is not told; it finds out by the silence.
    pub fn client_vanish(&mut self, id: LinkId) {
        if is_quic(id) {
            return self.quic_vanish(id);
        }
        let link = self.link(id);
        if link.client_end == ClientEnd::Open {
            link.client_end = ClientEnd::Vanished;
            self.faults.counts.vanished += 1;
        }
    }

    /// Something in the middle resets both ends.
    pub fn cut(&mut self, id: LinkId) {
        if is_quic(id) {
            return self.quic_cut(id);
        }
        self.send_reset(id, true);
        self.send_reset(id, false);
    }

    pub fn handle_to_server(&mut self, id: LinkId, data: &[u8]) {
        let link = self.link(id);
        if link.up.reset {
            return;
        }
        if !link.server_open {
            return self.answer_reset(id);
        }
        link.up.arrived.extend(data);
        self.pump_recv(id);
    }

    pub fn handle_fin_to_server(&mut self, id: LinkId) {
        self.link(id).up.ended = true;
        self.pump_recv(id);
    }

    pub fn handle_rst_to_server(&mut self, id: LinkId) {
        let link = self.link(id);
        link.up.reset = true;
        link.up.arrived.clear();
        self.pump_recv(id);
        self.pump_send(id);
    }

    /// True: the data reaches the client.
    pub fn handle_to_client(&mut self, id: LinkId, bytes: usize) -> bool {
        let link = self.link(id);
        match link.client_end {
            ClientEnd::Vanished => return false,
            ClientEnd::Closed => {
                self.send_reset(id, true);
                return false;
            }
            ClientEnd::Open => {}
        }
        if link.down.reset {
            return false;
        }
        link.down.flying_bytes -= bytes;
        self.pump_send(id);
        true
    }

    /// True: the client learns that the connection is over.
    pub fn handle_end_to_client(&mut self, id: LinkId, reset: bool) -> bool {
        let link = self.link(id);
        link.down.reset |= reset;
        link.client_end == ClientEnd::Open
    }

    pub fn arm_recv(&mut self, shard: u16, slot: u32, socket: Socket, multishot: bool) {
        let link = self.link(socket.0);
        assert!(link.server_open, "a receive on a closed socket");
        assert!(link.recv.is_none(), "two receives on one socket");
        link.recv = Some(Armed { shard, slot, multishot });
        self.pump_recv(socket.0);
    }

    pub fn arm_send(&mut self, shard: u16, slot: u32, socket: Socket, data: Vec<Bytes>) {
        let link = self.link(socket.0);
        assert!(link.server_open, "a send on a closed socket");
        assert!(link.send.is_none(), "two sends on one socket");
        assert!(!link.down.fin_sent, "a send after the end of our direction");
        assert!(data.iter().any(|chunk| !chunk.is_empty()), "an empty send");
        link.send = Some((Armed { shard, slot, multishot: false }, data));
        self.pump_send(socket.0);
    }

    pub fn shutdown_write(&mut self, socket: Socket) -> Result<Done, Errno> {
        let link = self.link(socket.0);
        if link.up.reset {
            return Err(Errno::NOTCONN);
        }
        self.send_fin(socket.0);
        Ok(Done::Nothing)
    }

    pub fn close_socket(&mut self, socket: Socket) {
        let link = self.link(socket.0);
        assert!(link.server_open, "a socket is closed once");
        assert!(link.recv.is_none() && link.send.is_none(), "closed with operations in flight");
        link.server_open = false;
        if link.up.arrived.is_empty() {
            self.send_fin(socket.0);
        } else {
            self.answer_reset(socket.0);
        }
    }

    pub fn is_owned(&self, socket: Socket) -> bool {
        self.links.get(&socket.0).is_some_and(|link| link.server_open)
    }

    /// Sockets that the present process holds.
    pub fn open_sockets(&self) -> usize {
        self.links.values().filter(|link| link.server_open).count()
    }

    /// The process is gone. The kernel resets its connections, unless the host went down with it.
    pub fn drop_sockets(&mut self, tells: bool) {
        let ids: Vec<LinkId> =
            self.links.iter().filter_map(|(id, link)| link.server_open.then_some(*id)).collect();
        for id in ids {
            let link = self.link(id);
            (link.server_open, link.recv, link.send) = (false, None, None);
            if tells {
                self.answer_reset(id);
            }
        }
    }

    pub fn disarm(&mut self, kind: Kind) {
        match kind {
            Kind::Recv(link) => self.link(link).recv = None,
            Kind::Send(link) => self.link(link).send = None,
            Kind::Accept | Kind::Datagrams | Kind::File | Kind::Other => {}
        }
    }

    pub fn pump_accept(&mut self, shard: u16) {
        while let Some(slot) = self.kernel(shard).accept
            && !self.kernel(shard).backlog.is_empty()
        {
            if self.faults.fails_accept() {
                self.kernel(shard).accept = None;
                let errno =
                    if self.faults.accept.chance(300) { Errno::MFILE } else { Errno::CONNABORTED };
                if errno == Errno::CONNABORTED {
                    let gone = self.kernel(shard).backlog.pop_front().expect("not empty");
                    self.link(gone).server_open = false;
                    self.answer_reset(gone);
                }
                return self.complete(shard, slot, false, Err(errno));
            }
            let link = self.kernel(shard).backlog.pop_front().expect("not empty");
            let more = !self.overflows(shard) && !self.faults.clears_more();
            if !more {
                self.kernel(shard).accept = None;
            }
            self.complete(shard, slot, more, Ok(Done::Accepted(Socket(link))));
        }
    }

    fn pump_recv(&mut self, id: LinkId) {
        while let Some(Armed { shard, slot, multishot }) = self.link(id).recv {
            let link = self.link(id);
            let (reset, ended) = (link.up.reset, link.up.ended);
            let waiting_bytes = link.up.arrived.len();
            let (more, result) = if reset {
                (false, Err(Errno::CONNRESET))
            } else if waiting_bytes == 0 && ended {
                (false, Ok(Done::Ended))
            } else if waiting_bytes == 0 {
                return;
            } else if self.faults.has_no_buffers() || self.kernel(shard).buffers.is_empty() {
                (false, Err(Errno::NOBUFS))
            } else if self.faults.cancels() {
                (false, Err(Errno::CANCELED))
            } else {
                let buffer = self.kernel(shard).buffers.pop().expect("not empty");
                let bytes = self.faults.piece(waiting_bytes.min(BUFFER_BYTES));
                self.faults.counts.short_receives += u64::from(bytes < waiting_bytes);
                let data = self.link(id).up.arrived.drain(..bytes).collect();
                let more = multishot && !self.overflows(shard) && !self.faults.clears_more();
                (more, Ok(Done::Received { buffer, data }))
            };
            if !more {
                self.link(id).recv = None;
            }
            self.complete(shard, slot, more, result);
        }
    }

    fn pump_send(&mut self, id: LinkId) {
        let room_max = self.faults.weights.send_buffer_bytes;
        let link = self.link(id);
        let Some((Armed { shard, slot, .. }, data)) = link.send.take() else { return };
        if link.up.reset {
            return self.complete(shard, slot, false, Err(Errno::CONNRESET));
        }
        let room = room_max.saturating_sub(link.down.flying_bytes);
        let total: usize = data.iter().map(Bytes::len).sum();
        let mut bytes = total.min(room);
        if bytes == 0 {
            link.send = Some((Armed { shard, slot, multishot: false }, data));
            return;
        }
        if self.faults.sends_short() {
            bytes = 1 + self.faults.short_send.index(bytes);
        }
        self.tell(|| format!("link {id}: {bytes} of {total} bytes sent"));
        let sent: Vec<u8> = data.iter().flatten().copied().take(bytes).collect();
        self.link(id).down.flying_bytes += bytes;
        let mut rest = &sent[..];
        let mut pieces = 0;
        while !rest.is_empty() {
            pieces += 1;
            let length =
                if pieces < PIECES_MAX { self.faults.piece(rest.len()) } else { rest.len() };
            let (piece, behind) = rest.split_at(length);
            let at_ns = self.arrival_ns(id, false);
            self.clock.plan(at_ns, Event::ToClient { link: id, data: piece.to_vec() });
            rest = behind;
        }
        self.complete(shard, slot, false, Ok(Done::Sent { bytes, data }));
    }

    fn send_fin(&mut self, id: LinkId) {
        if !std::mem::replace(&mut self.link(id).down.fin_sent, true) {
            let at_ns = self.arrival_ns(id, false);
            self.clock.plan(at_ns, Event::FinToClient { link: id });
        }
    }

    fn answer_reset(&mut self, id: LinkId) {
        // A host that is down answers nothing; one that is up again does.
        if self.up {
            self.send_reset(id, false);
        }
    }

    pub fn link(&mut self, id: LinkId) -> &mut Link {
        self.links.get_mut(&id).expect("links are kept for ever")
    }
}

/// One write travels in at most so many pieces.
const PIECES_MAX: usize = 12;
const BUFFER_BYTES: usize = 2048;
