//! A ring without a kernel: every operation completes at once and in order, sockets are two byte
//! buffers, files forget what is written. What remains of a shard's turn on it is the shard.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use bytes::Bytes;
use ringpost_ring::{
    COMPLETIONS_PER_ENTER_MAX, Completion, Errno, File, Lease, Op, OpId, Outcome, Pool, Ring,
    RingCounters, Socket,
};

/// The ring; its clones are the same ring, for the shard and for what plays its clients.
#[derive(Clone)]
pub struct MemoryRing(Rc<RefCell<State>>);

/// What the shard holds: the trait lends bytes, which a shared state cannot.
pub struct ShardRing {
    ring: MemoryRing,
    /// Contents of the receive buffers on loan, by index.
    lent: Vec<Vec<u8>>,
    vacant: Vec<u16>,
    now_ns: u64,
    unix_ms: u64,
    counters: RingCounters,
}

struct State {
    ready: VecDeque<(u64, OpId, bool, Result<Done, Errno>)>,
    last_op: u32,
    accept: Option<(u64, OpId)>,
    /// By the number of the socket.
    sockets: Vec<Wire>,
    files: i32,
    now_ns: u64,
    unix_ms: u64,
}

/// A connection as the clients see it.
#[derive(Default)]
struct Wire {
    receive: Option<(u64, OpId, bool)>,
    to_server: VecDeque<Vec<u8>>,
    to_client: Vec<u8>,
}

enum Done {
    Received(Vec<u8>),
    Other(Outcome),
}

impl MemoryRing {
    /// `unix_ms`: what the wall clock shows from now on, and always.
    pub fn new(unix_ms: u64) -> Self {
        Self(Rc::new(RefCell::new(State {
            ready: VecDeque::new(),
            last_op: 0,
            accept: None,
            sockets: Vec::new(),
            files: 0,
            now_ns: START_NS,
            unix_ms,
        })))
    }

    /// The shard's side.
    pub fn for_shard(&self) -> ShardRing {
        let State { now_ns, unix_ms, .. } = *self.0.borrow();
        ShardRing {
            ring: self.clone(),
            lent: Vec::new(),
            vacant: Vec::new(),
            now_ns,
            unix_ms,
            counters: RingCounters::default(),
        }
    }

    /// A client connects. The shard must have its listener armed.
    pub fn connect(&self) -> Socket {
        let mut state = self.0.borrow_mut();
        let number = i32::try_from(state.sockets.len()).expect("a few");
        state.sockets.push(Wire::default());
        let (token, op) = state.accept.expect("the shard accepts");
        let accepted = Outcome::Accepted(Socket(number));
        state.ready.push_back((token, op, true, Ok(Done::Other(accepted))));
        Socket(number)
    }

    /// A client sends `bytes`.
    pub fn send(&self, socket: Socket, bytes: Vec<u8>) {
        let mut state = self.0.borrow_mut();
        state.wire(socket).to_server.push_back(bytes);
        state.pump(socket);
    }

    /// Moves what the shard has sent behind what `out` holds.
    pub fn take(&self, socket: Socket, out: &mut Vec<u8>) {
        out.append(&mut self.0.borrow_mut().wire(socket).to_client);
    }

    /// Whether the shard's next turn finds something.
    pub fn is_ready(&self) -> bool {
        !self.0.borrow().ready.is_empty()
    }

    /// Lets time pass.
    pub fn advance(&self, ns: u64) {
        self.0.borrow_mut().now_ns += ns;
    }
}

impl State {
    fn wire(&mut self, socket: Socket) -> &mut Wire {
        let index = usize::try_from(socket.0).expect("made by connect");
        &mut self.sockets[index]
    }

    /// Gives what has arrived to the receive that is armed.
    fn pump(&mut self, socket: Socket) {
        while let Some((token, op, multishot)) = self.wire(socket).receive {
            let Some(bytes) = self.wire(socket).to_server.pop_front() else { return };
            if !multishot {
                self.wire(socket).receive = None;
            }
            self.ready.push_back((token, op, multishot, Ok(Done::Received(bytes))));
        }
    }

    fn submit(&mut self, token: u64, op: Op) -> OpId {
        self.last_op += 1;
        let id = OpId { slot: self.last_op, generation: 0 };
        let outcome = match op {
            Op::Accept { .. } => {
                self.accept = Some((token, id));
                return id;
            }
            Op::Recv { socket, multishot } => {
                self.wire(socket).receive = Some((token, id, multishot));
                self.pump(socket);
                return id;
            }
            Op::Wake { .. } => return id,
            Op::Cancel { target } => return self.cancel(token, id, target),
            Op::Send { socket, data } => {
                let to_client = &mut self.wire(socket).to_client;
                data.iter().for_each(|chunk| to_client.extend_from_slice(chunk));
                Outcome::Sent { sent_bytes: data.iter().map(Bytes::len).sum(), data }
            }
            Op::Open { .. } => {
                self.files += 1;
                Outcome::Opened(File(self.files))
            }
            Op::Read { .. } => unreachable!("what was written a moment ago is in memory"),
            Op::RecvDatagrams { .. } | Op::SendDatagrams { .. } => {
                unreachable!("its shard serves TCP alone")
            }
            _ => Outcome::Done,
        };
        self.ready.push_back((token, id, false, Ok(Done::Other(outcome))));
        id
    }

    /// Only receives wait for anything.
    fn cancel(&mut self, token: u64, id: OpId, target: OpId) -> OpId {
        let armed = |wire: &&mut Wire| wire.receive.is_some_and(|(_, op, _)| op == target);
        let receive = self.sockets.iter_mut().find(armed).and_then(|wire| wire.receive.take());
        let result = match receive {
            Some((token, op, _)) => {
                self.ready.push_back((token, op, false, Err(Errno::CANCELED)));
                Ok(Done::Other(Outcome::Done))
            }
            None => Err(Errno::NOENT),
        };
        self.ready.push_back((token, id, false, result));
        id
    }
}

impl ShardRing {
    fn lend(&mut self, bytes: Vec<u8>) -> Outcome {
        let length_bytes = u32::try_from(bytes.len()).expect("a few records");
        let buffer_index = self.vacant.pop().unwrap_or_else(|| {
            self.lent.push(Vec::new());
            u16::try_from(self.lent.len() - 1).expect("a few buffers")
        });
        self.lent[usize::from(buffer_index)] = bytes;
        Outcome::Received(Some(Lease { pool: Pool::Stream, buffer_index, length_bytes }))
    }
}

impl Ring for ShardRing {
    fn submit(&mut self, token: u64, op: Op) -> OpId {
        self.counters.submitted += 1;
        self.ring.0.borrow_mut().submit(token, op)
    }

    fn enter(&mut self, _wait_ns: u64, out: &mut Vec<Completion>) {
        let ring = self.ring.clone();
        let mut state = ring.0.borrow_mut();
        (self.now_ns, self.unix_ms) = (state.now_ns, state.unix_ms);
        self.counters.enters += 1;
        let count = state.ready.len().min(COMPLETIONS_PER_ENTER_MAX);
        for (token, op, more, result) in state.ready.drain(..count) {
            let result = result.map(|done| match done {
                Done::Received(bytes) => self.lend(bytes),
                Done::Other(outcome) => outcome,
            });
            out.push(Completion { token, op, more, result });
        }
    }

    fn bytes(&self, lease: &Lease) -> &[u8] {
        &self.lent[usize::from(lease.buffer_index)]
    }

    fn release(&mut self, lease: Lease) {
        self.vacant.push(lease.buffer_index);
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn unix_ms(&self) -> u64 {
        self.unix_ms
    }

    fn peer_address(&self, _socket: Socket) -> Option<IpAddr> {
        // Not loopback: rates hold.
        Some(Ipv4Addr::new(192, 0, 2, 1).into())
    }

    fn in_flight(&self) -> usize {
        let state = self.ring.0.borrow();
        let receives = state.sockets.iter().filter(|wire| wire.receive.is_some()).count();
        state.ready.len() + receives + usize::from(state.accept.is_some())
    }

    fn counters(&self) -> RingCounters {
        self.counters
    }
}

/// Not zero: a deadline of zero is in the past.
const START_NS: u64 = 1_000_000_000;
