//! [`Ring`] on io_uring.
//!
//! Single issuer with deferred task work: completions are posted only while the shard is in
//! `io_uring_enter` with GETEVENTS, so nothing interrupts the shard, and every enter must carry the
//! flag, also one that does not wait.
//!
//! What does not fit into the submission queue waits in `spill`, in order. The completion queue has
//! its own size, unrelated to the submission queue, because multishot operations complete without
//! being submitted; if it overflows, the kernel keeps the rest and the next enter fetches it.
//!
//! Dropping: closing a ring is not enough to free what its operations point to, because the kernel
//! cancels asynchronously after the close, and a worker thread may be writing into a buffer even
//! then. So `drop` first cancels everything and waits for every final completion, on this thread
//! (the type is not `Send`); only then nothing in the kernel points here, and the memory goes. If a
//! worker hangs longer than [`DRAIN_WAIT_MAX`], the memory is leaked: that is safe, freeing is not.

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, opcode};

use crate::datagram::DATAGRAM_GROUP;
use crate::lease::ReceivePool;
use crate::op::{
    KIND_SHIFT, OpTable, Pools, RECEIVE_GROUP, RECV_DATAGRAMS_KIND, RECV_KIND, SIGNAL_KIND_MIN,
    Step,
};
use crate::wake::Group;
use crate::{
    COMPLETIONS_PER_ENTER_MAX, Completion, Datagrams, Errno, Lease, Op, OpId, Outcome, Pool, Ring,
    RingCounters, RingFault, Socket, WOKEN_TOKEN, host, net, probe,
};

/// Sizes of one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringConfig {
    /// Operations that one enter submits at most; a power of two. More wait in user space.
    pub submission_entries: u32,
    /// Completions that the kernel holds before it reports an overflow; a power of two.
    pub completion_entries: u32,
    /// Receive buffers of the shard; a power of two, at most 32768.
    pub receive_buffer_count: u16,
    /// Bytes of one receive buffer; a power of two.
    pub receive_buffer_bytes: u32,
    /// Buffers of 68 KiB for datagrams; a power of two, at most 32768. 0: the ring serves none.
    /// Untouched pages cost nothing; short datagrams touch 4 KiB of a buffer, and trains all of it.
    pub datagram_buffer_count: u16,
}

impl Default for UringConfig {
    fn default() -> Self {
        Self {
            submission_entries: 1024,
            completion_entries: 16 * 1024,
            receive_buffer_count: 512,
            receive_buffer_bytes: 4096,
            datagram_buffer_count: 0,
        }
    }
}

/// The io_uring of one shard. Made, used and dropped on the shard's own thread.
pub struct Uring {
    ring: IoUring,
    /// Dropped by hand: only after the kernel is done with what it owns.
    ops: ManuallyDrop<OpTable>,
    /// Dropped by hand, as above.
    pools: ManuallyDrop<Pools>,
    /// Where the armed read of the eventfd puts the counter. Dropped by hand, as above.
    bell_count: ManuallyDrop<Box<u64>>,
    bell_armed: bool,
    /// Entries that the submission queue had no room for, oldest first.
    spill: VecDeque<Entry>,
    /// Completions that never went through the kernel.
    ready: VecDeque<Completion>,
    /// A wake arrived that the shard has not been told of.
    woken: bool,
    closing: bool,
    group: Group,
    shard: u16,
    enter_flags: EnterFlags,
    counters: RingCounters,
    now_ns: u64,
    unix_ms: u64,
}

impl Uring {
    /// Sets up the ring of shard `shard` on the calling thread and takes its place in `group`.
    pub fn new(group: &Group, shard: u16, config: UringConfig) -> Result<Self, RingFault> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            // An entry that the kernel refuses must not hold back those behind it.
            .setup_submit_all()
            .setup_cqsize(config.completion_entries)
            .build(config.submission_entries)
            .map_err(|error| probe::setup_fault(&error, ring_bytes(&config)))?;
        probe::require(&probe::features_of(&ring)?)?;
        let pools = Pools {
            stream: ReceivePool::new(config.receive_buffer_count, config.receive_buffer_bytes),
            datagram: (config.datagram_buffer_count > 0)
                .then(|| ReceivePool::for_datagrams(config.datagram_buffer_count)),
        };
        for (group, pool) in groups(&pools) {
            // SAFETY: the descriptors lie in `pools`, which is freed only after `drop` has seen the
            // last completion and the group is unregistered, or never.
            unsafe {
                ring.submitter().register_buf_ring_with_flags(
                    pool.descriptors_address(),
                    pool.count(),
                    group,
                    0,
                )
            }
            .map_err(|error| probe::setup_fault(&error, ring_bytes(&config)))?;
        }

        // Waiting for peers is no disk wait; without this an idle shard counts as 100 % iowait.
        let mut enter_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if ring.params().is_feature_no_iowait() {
            enter_flags |= EnterFlags::NO_IOWAIT;
        }
        group.register(shard, ring.as_raw_fd());
        let mut uring = Self {
            ring,
            ops: ManuallyDrop::new(OpTable::new()),
            pools: ManuallyDrop::new(pools),
            bell_count: ManuallyDrop::new(Box::new(0)),
            bell_armed: false,
            spill: VecDeque::new(),
            ready: VecDeque::new(),
            woken: false,
            closing: false,
            group: group.clone(),
            shard,
            enter_flags,
            counters: RingCounters::default(),
            now_ns: host::monotonic_ns(),
            unix_ms: host::unix_ms(),
        };
        uring.arm_bell();
        Ok(uring)
    }

    /// The read that turns a write to the eventfd into a wake. Armed here and nowhere else.
    fn arm_bell(&mut self) {
        self.bell_armed = true;
        let entry = opcode::Read::new(
            Fd(self.group.bell_fd(self.shard)),
            (&raw mut **self.bell_count).cast(),
            BELL_BYTES,
        );
        self.queue(entry.build().user_data(Signal::Bell.user_data()));
    }

    fn wake(&mut self, shard: u16) {
        assert!(shard < self.group.shard_count(), "no shard {shard}");
        if shard == self.shard {
            self.woken = true;
            return;
        }
        let Some(fd) = self.group.ring_fd(shard) else { return };
        let entry = opcode::MsgRingData::new(Fd(fd), 0, Signal::Woken.user_data(), None).build();
        let entry = entry.user_data(Signal::WakeFailed.user_data()).flags(Flags::SKIP_SUCCESS);
        self.queue(entry);
    }

    fn connect(&mut self, token: u64, op: &Op) -> OpId {
        let Op::Connect { local, remote } = op else { unreachable!("asked by submit") };
        match net::stream_socket(*local, *remote) {
            Ok(socket) => {
                let (id, entry) = self.ops.start_connect(token, socket, (*remote).into());
                self.queue(entry);
                id
            }
            Err(error) => self.fail(token, Errno::of(&error)),
        }
    }

    /// Completes an operation that never reaches the kernel.
    fn fail(&mut self, token: u64, errno: Errno) -> OpId {
        let op = self.ops.unstarted();
        self.ready.push_back(Completion { token, op, more: false, result: Err(errno) });
        op
    }

    fn queue(&mut self, entry: Entry) {
        self.counters.submitted += 1;
        if !self.spill.is_empty() || !self.push(&entry) {
            self.counters.spilled += 1;
            self.spill.push_back(entry);
        }
    }

    fn push(&mut self, entry: &Entry) -> bool {
        // SAFETY: whatever the entry points to is owned by the op table, the pools or `bell_count`,
        // and stays in place until the operation's final completion.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn refill(&mut self) {
        while let Some(entry) = self.spill.pop_front() {
            if !self.push(&entry) {
                self.spill.push_front(entry);
                return;
            }
        }
    }

    /// The one system call of a turn.
    fn enter_kernel(&mut self, wait_ns: u64) {
        let to_submit = self.ring.submission().len();
        let to_submit = u32::try_from(to_submit).expect("below the queue's size");
        let timeout = timespec(wait_ns);
        let mut args = SubmitArgs::new();
        if wait_ns != u64::MAX {
            args = args.timespec(&timeout);
        }
        let want = u32::from(wait_ns > 0);
        // SAFETY: EXT_ARG announces exactly `SubmitArgs`, which with its timespec outlives the
        // call; for the entries see `push`.
        let entered = unsafe {
            self.ring.submitter().enter(to_submit, want, self.enter_flags.bits(), Some(&args))
        };
        self.counters.enters += 1;
        if let Err(error) = entered {
            match Errno::of(&error) {
                // BUSY: completions must be reaped before the kernel takes more; AGAIN: it is short
                // of memory for now. The entries stay queued for the next turn.
                Errno::TIME | Errno::INTR | Errno::BUSY | Errno::AGAIN => {}
                errno => panic!("io_uring_enter: {errno}"),
            }
        }
        if self.ring.submission().cq_overflow() {
            self.counters.overflows += 1;
        }
    }

    /// Handles at most `completions_max` completions of the kernel.
    fn reap(&mut self, completions_max: usize, out: &mut Vec<Completion>) {
        let mut rearm_bell = false;
        let mut queue = self.ring.completion();
        for cqe in queue.by_ref().take(completions_max) {
            if cqe.user_data() >> KIND_SHIFT >= SIGNAL_KIND_MIN {
                let bell = cqe.user_data() == Signal::Bell.user_data();
                if bell {
                    self.bell_armed = false;
                    rearm_bell = true;
                }
                self.woken |= bell || cqe.user_data() == Signal::Woken.user_data();
                continue;
            }
            self.counters.completions += 1;
            match self.ops.complete(cqe.user_data(), cqe.result(), cqe.flags(), &mut self.pools) {
                Step::Again(entry) => self.spill.push_back(entry),
                Step::Deliver(completion) => {
                    if completion.result.as_ref().err() == Some(&Errno::NOBUFS) {
                        match cqe.user_data() >> KIND_SHIFT {
                            RECV_KIND => self.counters.receive_pool_empty += 1,
                            RECV_DATAGRAMS_KIND => self.counters.datagram_pool_empty += 1,
                            _ => {}
                        }
                    }
                    out.push(completion);
                }
            }
        }
        drop(queue);
        if rearm_bell && !self.closing {
            self.arm_bell();
        }
    }

    /// Cancels everything and waits for the final completions; whether all of them came.
    fn drain(&mut self) -> bool {
        self.closing = true;
        let cancel_all = opcode::AsyncCancel2::new(CancelBuilder::any().all()).build();
        let cancel_all = cancel_all.user_data(Signal::CancelledAll.user_data());
        let deadline = Instant::now() + DRAIN_WAIT_MAX;
        let mut completions = Vec::new();
        while self.ops.in_flight() > 0 || self.bell_armed {
            if Instant::now() > deadline {
                return false;
            }
            // Again in every round: it misses what was still queued in user space.
            self.queue(cancel_all.clone());
            self.enter(DRAIN_ROUND_NS, &mut completions);
            for completion in completions.drain(..) {
                self.discard(completion);
            }
        }
        while let Some(completion) = self.ready.pop_front() {
            self.discard(completion);
        }
        true
    }

    /// What a completion carries that nobody will take: descriptors and receive buffers.
    fn discard(&mut self, completion: Completion) {
        match completion.result {
            Ok(Outcome::Accepted(socket) | Outcome::Connected(socket)) => net::close(socket.0),
            Ok(Outcome::Opened(file)) => net::close(file.0),
            Ok(Outcome::Received(Some(lease)) | Outcome::Datagrams(Datagrams { lease, .. })) => {
                self.release(lease)
            }
            _ => {}
        }
    }
}

impl Ring for Uring {
    fn submit(&mut self, token: u64, op: Op) -> OpId {
        match op {
            Op::Wake { shard } => {
                self.wake(shard);
                SIGNAL_OP
            }
            Op::Connect { .. } => self.connect(token, &op),
            Op::Cancel { target } if !self.ops.is_live(target) => self.fail(token, Errno::NOENT),
            op => {
                let datagrams = matches!(op, Op::RecvDatagrams { .. });
                assert!(!datagrams || self.pools.datagram.is_some(), "a ring without datagrams");
                let (id, entry) = self.ops.start(token, op);
                self.queue(entry);
                id
            }
        }
    }

    fn enter(&mut self, wait_ns: u64, out: &mut Vec<Completion>) {
        self.refill();
        let busy = !self.spill.is_empty() || !self.ready.is_empty() || self.woken;
        self.enter_kernel(if busy { 0 } else { wait_ns });
        self.now_ns = host::monotonic_ns();
        self.unix_ms = host::unix_ms();

        // One place is kept for the wake.
        let room = COMPLETIONS_PER_ENTER_MAX - 1;
        let ready = self.ready.len().min(room);
        out.extend(self.ready.drain(..ready));
        self.reap(room - ready, out);
        if std::mem::take(&mut self.woken) {
            let result = Ok(Outcome::Woken);
            out.push(Completion { token: WOKEN_TOKEN, op: SIGNAL_OP, more: true, result });
        }
    }

    fn bytes(&self, lease: &Lease) -> &[u8] {
        match lease.pool {
            Pool::Stream => self.pools.stream.bytes(lease),
            Pool::Datagram => {
                let pool = self.pools.datagram.as_ref();
                pool.expect("a lease of this ring").bytes(lease)
            }
        }
    }

    fn release(&mut self, lease: Lease) {
        match lease.pool {
            Pool::Stream => self.pools.stream.release(lease),
            Pool::Datagram => {
                let pool = self.pools.datagram.as_mut();
                pool.expect("a lease of this ring").release(lease);
            }
        }
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }

    fn unix_ms(&self) -> u64 {
        self.unix_ms
    }

    fn peer_address(&self, socket: Socket) -> Option<IpAddr> {
        net::peer_address(socket).ok().map(|address| address.ip())
    }

    fn in_flight(&self) -> usize {
        self.ops.in_flight() + self.ready.len()
    }

    fn counters(&self) -> RingCounters {
        let datagrams = self.ops.datagram_counts();
        RingCounters {
            leases_out: self.pools.stream.lent_count(),
            datagram_leases_out: self.pools.datagram.as_ref().map_or(0, ReceivePool::lent_count),
            datagrams_truncated: datagrams.truncated,
            segmentations_refused: datagrams.segmentations_refused,
            trains_split: datagrams.trains_split,
            ..self.counters
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.group.unregister(self.shard);
        if std::thread::panicking() || !self.drain() {
            tracing::error!(
                shard = self.shard,
                in_flight = self.ops.in_flight(),
                "ring dropped with operations in flight; their memory is leaked"
            );
            return;
        }
        // Nothing selects a buffer any more; a failure would only keep the ring's own reference.
        for (group, _) in groups(&self.pools) {
            let _ = self.ring.submitter().unregister_buf_ring(group);
        }
        // SAFETY: dropped once, here, and not used after; the kernel has given its last completion.
        unsafe {
            ManuallyDrop::drop(&mut self.ops);
            ManuallyDrop::drop(&mut self.pools);
            ManuallyDrop::drop(&mut self.bell_count);
        }
    }
}

/// Completions that belong to the ring and not to an operation.
#[derive(Clone, Copy)]
enum Signal {
    /// Another ring's message.
    Woken,
    /// A message that found no ring at the other end; nothing to do.
    WakeFailed,
    /// The eventfd was written.
    Bell,
    CancelledAll,
}

impl Signal {
    fn user_data(self) -> u64 {
        (SIGNAL_KIND_MIN + self as u64) << KIND_SHIFT
    }
}

fn timespec(wait_ns: u64) -> Timespec {
    let wait = Duration::from_nanos(wait_ns);
    Timespec::new().sec(wait.as_secs()).nsec(wait.subsec_nanos())
}

/// The pools with the numbers of their groups.
fn groups(pools: &Pools) -> impl Iterator<Item = (u16, &ReceivePool)> {
    let datagram = pools.datagram.as_ref().map(|pool| (DATAGRAM_GROUP, pool));
    [(RECEIVE_GROUP, &pools.stream)].into_iter().chain(datagram)
}

/// Kernel memory for the queues, roughly, for the message when it is refused.
fn ring_bytes(config: &UringConfig) -> u64 {
    u64::from(config.submission_entries) * 68
        + u64::from(config.completion_entries) * 16
        + u64::from(config.receive_buffer_count) * 16
        + u64::from(config.datagram_buffer_count) * 16
}

/// Stands where an operation's id is asked for and there is none.
const SIGNAL_OP: OpId = OpId { slot: u32::MAX, generation: 0 };

/// Size of an eventfd's counter.
const BELL_BYTES: u32 = 8;

const DRAIN_WAIT_MAX: Duration = Duration::from_secs(10);
const DRAIN_ROUND_NS: u64 = 50_000_000;
