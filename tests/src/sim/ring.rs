//! The machine below the seam: a [`Ring`] for each shard, on one shared host.
//!
//! An `enter` never blocks: with nothing to give it returns at once, which the trait allows, and
//! the scheduler gives the shard its next turn when something is ready or the time is up.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;

use bytes::Bytes;
use ringpost_ring::steering::Program;
use ringpost_ring::{
    COMPLETIONS_PER_ENTER_MAX, Completion, Datagrams, Errno, File, Lease, Op, OpId, Outcome, Pool,
    Ring, RingCounters, Socket, WOKEN_TOKEN,
};

use super::clock::{Clock, MS};
use super::counts::Coverage;
use super::disk::{Disk, FileDone, FileOp};
use super::faults::Faults;
use super::injury::Injuries;
use super::net::{Link, LinkId};
use super::path::Path;
use super::quic::QuicLinks;
use super::trace::Trace;
use super::udp::{Inlet, SERVER, Train};
use super::world::Event;

/// Everything that the shards of one process and the clients share.
pub struct Host {
    pub clock: Clock<Event>,
    pub faults: Faults,
    pub disk: Disk,
    pub injuries: Injuries,
    /// What the file `CURRENT` of the data directory holds.
    pub current: Vec<u8>,
    pub links: BTreeMap<LinkId, Link>,
    pub last_link: LinkId,
    /// Connections over QUIC, at the clients.
    pub quic: QuicLinks,
    /// The program of the datagram sockets; `None`: a hash over the sender's address.
    pub steering: Option<Program>,
    /// By client.
    pub paths: Vec<Path>,
    pub coverage: Coverage,
    kernels: Vec<Kernel>,
    /// Number of the present process; what was meant for an older one is dropped.
    pub process: u64,
    pub up: bool,
    /// Completions that rings were given so far.
    pub completions: u64,
    /// How long the next sync takes; zero: as usual.
    pub slow_sync_ns: u64,
    /// Reads of files take long until then.
    pub slow_reads_until_ns: u64,
    pub trace: Trace,
}

/// What the kernel keeps for one ring.
#[derive(Default)]
pub struct Kernel {
    ops: BTreeMap<u32, OpState>,
    last_slot: u32,
    ready: VecDeque<Ready>,
    woken: bool,
    /// Receive buffers that are the kernel's.
    pub buffers: Vec<u16>,
    pub accept: Option<u32>,
    pub backlog: VecDeque<LinkId>,
    pub inlet: Inlet,
    /// What the last enter found, for the scheduler.
    pub rest: Rest,
    pub turn_at_ns: u64,
    pub turn_ticket: u64,
    /// Until then the completion queue overflows: multishots end, and nothing is seen.
    overflow_ns: u64,
}

impl Kernel {
    /// When completions that wait will be seen; `None`: none waits.
    pub fn shows_at_ns(&self) -> Option<u64> {
        (!self.ready.is_empty()).then_some(self.overflow_ns)
    }
}

/// What a shard may do after a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rest {
    /// It had something, or asked not to wait.
    #[default]
    No,
    /// It would sleep until then.
    Until(u64),
}

struct OpState {
    token: u64,
    kind: Kind,
    file_op: Option<FileOp>,
    /// Completions of one operation keep their order.
    last_ns: u64,
    /// Its final completion is on the way.
    finishing: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Accept,
    Recv(LinkId),
    Send(LinkId),
    Datagrams,
    File,
    Other,
}

/// A completion before the ring takes it over.
#[derive(Debug)]
pub struct Ready {
    slot: u32,
    more: bool,
    result: Result<Done, Errno>,
}

impl Ready {
    /// For the trace.
    pub fn describe(&self) -> String {
        let Self { slot, more, result } = self;
        let result = match result {
            Ok(Done::Received { data, .. }) => format!("{} bytes received", data.len()),
            Ok(Done::Datagrams { train, .. }) => {
                format!("{} bytes of datagrams received", train.data.len())
            }
            Ok(Done::Sent { bytes, .. }) => format!("{bytes} bytes sent"),
            Ok(Done::Read(data)) => format!("{} bytes read", data.len()),
            other => format!("{other:?}"),
        };
        format!("operation {slot} completes: {result}{}", if *more { ", more" } else { "" })
    }
}

#[derive(Debug)]
pub enum Done {
    Accepted(Socket),
    Received { buffer: u16, data: Vec<u8> },
    Datagrams { buffer: u16, train: Train },
    Ended,
    Sent { bytes: usize, data: Vec<Bytes> },
    Opened(File),
    Read(Bytes),
    Nothing,
}

/// One shard's ring.
pub struct SimRing {
    shard: u16,
    host: Rc<RefCell<Host>>,
    queued: Vec<(u32, Op)>,
    wakes: Vec<u16>,
    /// Receive buffers on loan, with what they hold.
    lent: Vec<Option<Vec<u8>>>,
    /// The same of datagrams.
    lent_datagrams: Vec<Option<Vec<u8>>>,
    now_ns: u64,
    unix_ms: u64,
    counters: RingCounters,
}

impl Host {
    pub fn new(seed: u64, shards: u16, clients: usize) -> Self {
        Self {
            clock: Clock::new(),
            faults: Faults::new(seed),
            disk: Disk::default(),
            injuries: Injuries::default(),
            current: Vec::new(),
            links: BTreeMap::new(),
            last_link: 0,
            quic: QuicLinks::new(seed),
            steering: None,
            paths: vec![Path::default(); clients],
            coverage: Coverage::default(),
            kernels: (0..shards).map(|_| Kernel::default()).collect(),
            process: 0,
            up: false,
            completions: 0,
            slow_sync_ns: 0,
            slow_reads_until_ns: 0,
            trace: Trace::off(),
        }
    }

    /// One line of the trace.
    pub fn tell(&self, text: impl FnOnce() -> String) {
        self.trace.tell(self.clock.now_ns(), text);
    }

    pub fn shard_count(&self) -> u16 {
        u16::try_from(self.kernels.len()).expect("made from a u16")
    }

    pub fn kernel(&mut self, shard: u16) -> &mut Kernel {
        &mut self.kernels[usize::from(shard)]
    }

    /// A new process: fresh kernels.
    pub fn begin_process(&mut self) {
        self.process += 1;
        self.up = true;
        self.injuries.hurt_process = false;
        let buffers = self.faults.weights.receive_buffers;
        for kernel in &mut self.kernels {
            let turn_ticket = kernel.turn_ticket + 1;
            *kernel = Kernel {
                buffers: (0..buffers).collect(),
                inlet: Inlet::new(buffers),
                turn_at_ns: u64::MAX,
                turn_ticket,
                ..Kernel::default()
            };
        }
    }

    /// The process is gone, in the middle of whatever it did. Operations that the kernel had been
    /// given took place or did not.
    pub fn end_process(&mut self, loses_power: bool) {
        self.process += 1;
        let tells = !loses_power || self.faults.crash.chance(500);
        for shard in 0..self.kernels.len() {
            let ops = std::mem::take(&mut self.kernels[shard].ops);
            for op in ops.into_values().filter_map(|op| op.file_op) {
                if self.faults.crash.chance(500) {
                    // It may name what another of them would have made: then it fails, unheard.
                    let _ = self.disk.execute(&op);
                }
            }
            self.kernels[shard] =
                Kernel { turn_ticket: self.kernels[shard].turn_ticket + 1, ..Kernel::default() };
        }
        self.drop_sockets(tells);
        self.up = false;
        if loses_power {
            self.disk.lose_power(&mut self.faults.crash);
        } else {
            self.disk.close_all();
        }
    }

    /// Gives `shard` a turn at `at_ns` at the latest.
    pub fn request_turn(&mut self, shard: u16, at_ns: u64) {
        let kernel = &mut self.kernels[usize::from(shard)];
        if at_ns < kernel.turn_at_ns {
            kernel.turn_at_ns = at_ns;
            kernel.turn_ticket += 1;
            let ticket = kernel.turn_ticket;
            self.clock.plan(at_ns, Event::Turn { shard, ticket });
        }
    }

    pub fn complete(&mut self, shard: u16, slot: u32, more: bool, result: Result<Done, Errno>) {
        let at_ns = self.clock.now_ns() + self.faults.completion_delay_ns();
        let process = self.process;
        let op = self.kernel(shard).ops.get_mut(&slot).expect("an operation in flight completes");
        assert!(!op.finishing, "one final completion");
        op.finishing = !more;
        op.last_ns = op.last_ns.max(at_ns);
        let at_ns = op.last_ns;
        let ready = Ready { slot, more, result };
        self.clock.plan(at_ns, Event::Ready { process, shard, ready });
    }

    pub fn handle_ready(&mut self, process: u64, shard: u16, ready: Ready) {
        if process == self.process {
            self.completions += 1;
            self.kernel(shard).ready.push_back(ready);
            let at_ns = self.clock.now_ns().max(self.kernel(shard).overflow_ns);
            self.request_turn(shard, at_ns);
        }
    }

    /// The completion queue of `shard` overflows for a while.
    pub fn overflow(&mut self, shard: u16) {
        self.faults.counts.overflows += 1;
        let until_ns = self.clock.now_ns() + self.faults.disk.between(1, 2_000) * MS / 10;
        self.kernel(shard).overflow_ns = until_ns;
    }

    /// Whether a multishot operation of `shard` ends for want of room in the completion queue.
    pub fn overflows(&mut self, shard: u16) -> bool {
        let now_ns = self.clock.now_ns();
        self.kernel(shard).overflow_ns > now_ns
    }

    pub fn handle_woken(&mut self, process: u64, shard: u16) {
        if process == self.process {
            self.kernel(shard).woken = true;
            self.request_turn(shard, self.clock.now_ns());
        }
    }

    pub fn handle_file_due(&mut self, process: u64, shard: u16, slot: u32) {
        if process != self.process {
            return;
        }
        let op = self.kernel(shard).ops.get_mut(&slot).expect("files operations are not cancelled");
        op.finishing = true;
        let file_op = op.file_op.take().expect("due once");
        let result = self.carry_out(&file_op).map(|done| match done {
            FileDone::Opened(file) => Done::Opened(file),
            FileDone::Read(data) => Done::Read(data),
            FileDone::Done => Done::Nothing,
        });
        self.handle_ready(process, shard, Ready { slot, more: false, result });
    }

    fn start(&mut self, shard: u16, slot: u32, op: Op) {
        let file_op = match op {
            Op::Accept { .. } => {
                assert!(self.kernel(shard).accept.is_none(), "two accepts on one listener");
                self.kernel(shard).accept = Some(slot);
                return self.pump_accept(shard);
            }
            Op::Recv { socket, multishot } => return self.arm_recv(shard, slot, socket, multishot),
            Op::Send { socket, data } => return self.arm_send(shard, slot, socket, data),
            Op::Cancel { target } => {
                let result = self.cancel(shard, target);
                return self.complete(shard, slot, false, result);
            }
            Op::Shutdown { socket } | Op::ShutdownWrite { socket } => {
                let result = self.shutdown_write(socket);
                return self.complete(shard, slot, false, result);
            }
            Op::CloseSocket { socket } => {
                self.close_socket(socket);
                return self.complete(shard, slot, false, Ok(Done::Nothing));
            }
            Op::RecvDatagrams { socket } => return self.arm_datagrams(shard, slot, socket),
            Op::SendDatagrams { socket, send } => {
                return self.send_datagrams(shard, slot, socket, &send);
            }
            Op::CloseFile { file } => {
                self.disk.close(file);
                // Without a random delay: a shard closes its files in no particular order.
                let (process, ready) =
                    (self.process, Ready { slot, more: false, result: Ok(Done::Nothing) });
                return self.clock.plan_in(1_000, Event::Ready { process, shard, ready });
            }
            Op::Open { path, mode } => FileOp::Open { path: text(path), mode },
            Op::Read { file, offset, length_bytes } => FileOp::Read { file, offset, length_bytes },
            Op::Write { file, offset, data } => FileOp::Write { file, offset, data },
            Op::SyncData { file } => self.sync(file, true),
            Op::SyncAll { file } => self.sync(file, false),
            Op::Unlink { path } => FileOp::Unlink { path: text(path) },
            Op::Connect { .. } | Op::Wake { .. } => unreachable!("no shard connects"),
        };
        let process = self.process;
        let mut delay_ns = self.faults.disk_delay_ns();
        if self.slow_sync_ns > 0 && self.faults.active && matches!(file_op, FileOp::Sync { .. }) {
            delay_ns += std::mem::take(&mut self.slow_sync_ns);
            self.faults.counts.slow_syncs += 1;
            if let Some((after_ns, loses_power)) = self.faults.crash_in_sync(delay_ns) {
                self.clock.plan_in(after_ns, Event::CrashInSync { process, loses_power });
            }
        }
        let are_reads_slow = self.clock.now_ns() < self.slow_reads_until_ns && self.faults.active;
        if are_reads_slow && matches!(file_op, FileOp::Read { .. }) {
            delay_ns += self.faults.slow_read_ns();
        }
        self.kernel(shard).ops.get_mut(&slot).expect("just submitted").file_op = Some(file_op);
        self.clock.plan_in(delay_ns, Event::FileDue { process, shard, slot });
    }

    fn sync(&self, file: File, data_only: bool) -> FileOp {
        FileOp::Sync { file, before: self.disk.changes(), data_only }
    }

    fn cancel(&mut self, shard: u16, target: OpId) -> Result<Done, Errno> {
        let op = self.kernel(shard).ops.get(&target.slot).filter(|op| !op.finishing);
        let kind = op.ok_or(Errno::NOENT)?.kind;
        match kind {
            Kind::File | Kind::Other => return Err(Errno::ALREADY),
            Kind::Accept => self.kernel(shard).accept = None,
            Kind::Datagrams => self.kernel(shard).inlet.disarm(),
            Kind::Recv(_) | Kind::Send(_) => self.disarm(kind),
        }
        self.complete(shard, target.slot, false, Err(Errno::CANCELED));
        Ok(Done::Nothing)
    }
}

impl SimRing {
    pub fn new(host: Rc<RefCell<Host>>, shard: u16) -> Self {
        let (now_ns, unix_ms, buffers) = {
            let host = host.borrow();
            let buffers = usize::from(host.faults.weights.receive_buffers);
            (host.clock.now_ns(), host.clock.unix_ms(), buffers)
        };
        Self {
            shard,
            host,
            queued: Vec::new(),
            wakes: Vec::new(),
            lent: vec![None; buffers],
            lent_datagrams: vec![None; buffers],
            now_ns,
            unix_ms,
            counters: RingCounters::default(),
        }
    }

    /// Whether the next enter has something to submit.
    pub fn has_queued(&self) -> bool {
        !self.queued.is_empty() || !self.wakes.is_empty()
    }

    fn deliver(&mut self, kernel: &mut Kernel, ready: Ready) -> Completion {
        let Ready { slot, more, result } = ready;
        let op = &kernel.ops[&slot];
        let token = op.token;
        if !more {
            kernel.ops.remove(&slot);
        }
        self.counters.completions += 1;
        let result = result.map(|done| match done {
            Done::Accepted(socket) => Outcome::Accepted(socket),
            Done::Received { buffer, data } => {
                let length_bytes = u32::try_from(data.len()).expect("a buffer is small");
                self.counters.leases_out += 1;
                let before = self.lent[usize::from(buffer)].replace(data);
                assert!(before.is_none(), "a buffer on loan was filled");
                Outcome::Received(Some(Lease {
                    pool: Pool::Stream,
                    buffer_index: buffer,
                    length_bytes,
                }))
            }
            Done::Datagrams { buffer, train } => {
                let Train { from, ecn, segment_bytes, data } = train;
                let length_bytes = u32::try_from(data.len()).expect("a buffer is small");
                let segment_bytes = u32::try_from(segment_bytes.max(1)).expect("smaller");
                self.counters.datagram_leases_out += 1;
                let before = self.lent_datagrams[usize::from(buffer)].replace(data);
                assert!(before.is_none(), "a buffer on loan was filled");
                let lease = Lease { pool: Pool::Datagram, buffer_index: buffer, length_bytes };
                let local = Some(SERVER);
                Outcome::Datagrams(Datagrams { lease, from, local, ecn, segment_bytes })
            }
            Done::Ended => Outcome::Received(None),
            Done::Sent { bytes, data } => Outcome::Sent { sent_bytes: bytes, data },
            Done::Opened(file) => Outcome::Opened(file),
            Done::Read(data) => Outcome::Read(data),
            Done::Nothing => Outcome::Done,
        });
        Completion { token, op: OpId { slot, generation: 0 }, more, result }
    }
}

impl Ring for SimRing {
    fn submit(&mut self, token: u64, op: Op) -> OpId {
        if let Op::Wake { shard } = op {
            self.wakes.push(shard);
            return OpId { slot: u32::MAX, generation: 0 };
        }
        self.counters.submitted += 1;
        let mut host = self.host.borrow_mut();
        let kind = match &op {
            Op::Accept { .. } => Kind::Accept,
            Op::Recv { socket, .. } => Kind::Recv(socket.0),
            Op::Send { socket, .. } => Kind::Send(socket.0),
            Op::RecvDatagrams { .. } => Kind::Datagrams,
            Op::Open { .. }
            | Op::Read { .. }
            | Op::Write { .. }
            | Op::SyncData { .. }
            | Op::SyncAll { .. }
            | Op::Unlink { .. } => Kind::File,
            _ => Kind::Other,
        };
        let kernel = host.kernel(self.shard);
        kernel.last_slot += 1;
        let slot = kernel.last_slot;
        let state = OpState { token, kind, file_op: None, last_ns: 0, finishing: false };
        kernel.ops.insert(slot, state);
        self.queued.push((slot, op));
        OpId { slot, generation: 0 }
    }

    fn enter(&mut self, wait_ns: u64, out: &mut Vec<Completion>) {
        let shared = Rc::clone(&self.host);
        let host = &mut *shared.borrow_mut();
        self.counters.enters += 1;
        // In order: what the kernel does not take now keeps its place.
        let submitted = host.faults.submitted(self.queued.len());
        for (slot, op) in self.queued.drain(..submitted) {
            host.start(self.shard, slot, op);
        }
        for shard in std::mem::take(&mut self.wakes) {
            let (delay_ns, process) = (host.faults.completion_delay_ns(), host.process);
            host.clock.plan_in(delay_ns, Event::Woken { process, shard });
        }
        (self.now_ns, self.unix_ms) = (host.clock.now_ns(), host.clock.unix_ms());
        let kernel = host.kernel(self.shard);
        let before = out.len();
        while kernel.overflow_ns <= self.now_ns
            && out.len() - before < COMPLETIONS_PER_ENTER_MAX - 1
        {
            let Some(ready) = kernel.ready.pop_front() else { break };
            let completion = self.deliver(kernel, ready);
            out.push(completion);
        }
        if std::mem::take(&mut kernel.woken) {
            let (op, result) = (OpId { slot: u32::MAX, generation: 0 }, Ok(Outcome::Woken));
            out.push(Completion { token: WOKEN_TOKEN, op, more: true, result });
        }
        kernel.rest = if wait_ns > 0 && out.len() == before {
            Rest::Until(self.now_ns.saturating_add(wait_ns))
        } else {
            Rest::No
        };
    }

    fn bytes(&self, lease: &Lease) -> &[u8] {
        let lent = match lease.pool {
            Pool::Stream => &self.lent,
            Pool::Datagram => &self.lent_datagrams,
        };
        let held = lent[usize::from(lease.buffer_index)].as_ref();
        let held = held.expect("a lease that is not on loan");
        assert_eq!(held.len(), lease.length_bytes as usize);
        held
    }

    fn release(&mut self, lease: Lease) {
        let mut host = self.host.borrow_mut();
        let kernel = host.kernel(self.shard);
        let (lent, count, buffers) = match lease.pool {
            Pool::Stream => (&mut self.lent, &mut self.counters.leases_out, &mut kernel.buffers),
            Pool::Datagram => (
                &mut self.lent_datagrams,
                &mut self.counters.datagram_leases_out,
                &mut kernel.inlet.buffers,
            ),
        };
        let held = lent[usize::from(lease.buffer_index)].take();
        assert!(held.is_some(), "a lease released twice");
        *count -= 1;
        buffers.push(lease.buffer_index);
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn unix_ms(&self) -> u64 {
        self.unix_ms
    }

    fn peer_address(&self, socket: Socket) -> Option<IpAddr> {
        let mut host = self.host.borrow_mut();
        let link = host.link(socket.0);
        let client = u32::try_from(link.client).unwrap_or(u32::MAX);
        (!link.up.is_reset())
            .then(|| IpAddr::V4(Ipv4Addr::from(FIRST_ADDRESS.wrapping_add(client))))
    }

    fn in_flight(&self) -> usize {
        self.host.borrow_mut().kernel(self.shard).ops.len()
    }

    fn counters(&self) -> RingCounters {
        self.counters
    }
}

/// 10.0.0.0; that of a client follows by its number.
pub const FIRST_ADDRESS: u32 = 10 << 24;

fn text(path: std::ffi::CString) -> String {
    path.into_string().expect("paths of the simulator are ASCII")
}
