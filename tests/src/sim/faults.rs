//! Whether something goes wrong now: one stream of random numbers for each kind of fault, so that
//! adding one kind does not change what the others do.

use super::clock::{MS, Stream};
use super::counts::FaultCounts;
use super::udp::DOUBLE_NS_MAX;
use super::weights::Weights;

/// The weights of a world and its streams.
#[derive(Clone, Debug)]
pub struct Faults {
    pub weights: Weights,
    pub counts: FaultCounts,
    /// False: the world has become kind, only its delays go on.
    pub active: bool,
    pub short_send: Stream,
    pub accept: Stream,
    pub crash: Stream,
    pub connection: Stream,
    pub partition: Stream,
    pub clock: Stream,
    pub disk: Stream,
    pub reshard: Stream,
    pub misbehaviour: Stream,
    slow_sync: Stream,
    pub slow_read: Stream,
    clear_more: Stream,
    no_buffers: Stream,
    cancelled: Stream,
    late_submit: Stream,
    split: Stream,
    network: Stream,
    loss: Stream,
    lost_reset: Stream,
    completion: Stream,
    turn: Stream,
    carrier: Stream,
    datagram: Stream,
    datagram_loss: Stream,
    doubled: Stream,
    joined: Stream,
    datagram_send: Stream,
    pub rebind: Stream,
}

impl Faults {
    pub fn new(seed: u64) -> Self {
        let stream = |name| Stream::new(seed, name);
        Self {
            weights: Weights::of(seed),
            counts: FaultCounts::default(),
            active: true,
            short_send: stream("short send"),
            accept: stream("accept"),
            crash: stream("crash"),
            connection: stream("connection"),
            partition: stream("partition"),
            clock: stream("clock"),
            disk: stream("disk"),
            reshard: stream("reshard"),
            misbehaviour: stream("misbehaviour"),
            slow_sync: stream("slow sync"),
            slow_read: stream("slow read"),
            clear_more: stream("clear more"),
            no_buffers: stream("no buffers"),
            cancelled: stream("cancelled"),
            late_submit: stream("late submit"),
            split: stream("split"),
            network: stream("network"),
            loss: stream("loss"),
            lost_reset: stream("lost reset"),
            completion: stream("completion"),
            turn: stream("turn"),
            carrier: stream("carrier"),
            datagram: stream("datagram"),
            datagram_loss: stream("datagram loss"),
            doubled: stream("doubled"),
            joined: stream("joined"),
            datagram_send: stream("datagram send"),
            rebind: stream("rebind"),
        }
    }

    pub fn sends_short(&mut self) -> bool {
        let hit = self.active && self.short_send.chance(self.weights.short_send);
        self.counts.short_sends += u64::from(hit);
        hit
    }

    pub fn clears_more(&mut self) -> bool {
        let hit = self.active && self.clear_more.chance(self.weights.clear_more);
        self.counts.cleared_more += u64::from(hit);
        hit
    }

    pub fn has_no_buffers(&mut self) -> bool {
        let hit = self.active && self.no_buffers.chance(self.weights.no_buffers);
        self.counts.no_buffers += u64::from(hit);
        hit
    }

    pub fn cancels(&mut self) -> bool {
        let hit = self.active && self.cancelled.chance(self.weights.cancelled);
        self.counts.cancelled += u64::from(hit);
        hit
    }

    pub fn fails_accept(&mut self) -> bool {
        let hit = self.active && self.accept.chance(self.weights.accept_fault);
        self.counts.accept_faults += u64::from(hit);
        hit
    }

    /// Of `count` operations so many are submitted by this enter.
    pub fn submitted(&mut self, count: usize) -> usize {
        if count == 0 || !self.active || !self.late_submit.chance(self.weights.late_submit) {
            return count;
        }
        self.counts.late_submits += 1;
        self.late_submit.index(count)
    }

    /// Length of the next piece of `len` bytes.
    pub fn piece(&mut self, len: usize) -> usize {
        if len > 1 && self.split.chance(self.weights.split) {
            self.counts.splits += 1;
            let most = if self.split.chance(300) { 3 } else { len };
            1 + self.split.index(len.min(most))
        } else {
            len
        }
    }

    /// How long a packet is under way; one that is lost comes with its retransmission.
    pub fn network_delay_ns(&mut self) -> u64 {
        let delay_ns = self.network.delay(self.weights.network_ns);
        if !self.active || !self.loss.chance(self.weights.loss) {
            return delay_ns;
        }
        self.counts.lost_packets += 1;
        // The timeout of a retransmission doubles with each that is lost too.
        delay_ns + 200 * MS * (1 << self.loss.below(5))
    }

    /// After what times a datagram arrives: once, never, or twice.
    pub fn datagram_delays_ns(&mut self) -> Vec<u64> {
        let delay_ns = self.datagram.delay(self.weights.network_ns);
        if !self.active {
            return vec![delay_ns];
        }
        if self.datagram_loss.chance(self.weights.datagram_loss) {
            self.counts.lost_datagrams += 1;
            return Vec::new();
        }
        let mut delays_ns = vec![delay_ns];
        if self.doubled.chance(self.weights.doubled) {
            self.counts.doubled_datagrams += 1;
            delays_ns.push(delay_ns + self.doubled.below(DOUBLE_NS_MAX));
        }
        delays_ns
    }

    /// Whether the kernel joins what waits in a socket.
    pub fn joins_datagrams(&mut self) -> bool {
        self.joined.chance(500)
    }

    pub fn fails_datagram_send(&mut self) -> bool {
        let hit = self.active && self.datagram_send.chance(self.weights.datagram_send_fault);
        self.counts.failed_datagram_sends += u64::from(hit);
        hit
    }

    /// Whether a new connection is one over QUIC.
    pub fn picks_quic(&mut self) -> bool {
        self.weights.quic > 0 && self.carrier.chance(self.weights.quic)
    }

    pub fn loses_reset(&mut self) -> bool {
        let hit = self.active && self.lost_reset.chance(self.weights.lost_reset);
        self.counts.lost_resets += u64::from(hit);
        hit
    }

    /// So many times slower than the usual one is a new link.
    pub fn link_slowness(&mut self) -> u64 {
        if self.network.chance(300) { self.weights.slow_link } else { 1 }
    }

    /// When the process ends during a sync that takes `sync_ns`, and whether power goes with it.
    pub fn crash_in_sync(&mut self, sync_ns: u64) -> Option<(u64, bool)> {
        let random = &mut self.slow_sync;
        let hit = self.active && random.chance(self.weights.crash_in_sync);
        hit.then(|| (random.below(sync_ns), random.chance(500)))
    }

    /// What a read takes more than usual while reads are slow.
    pub fn slow_read_ns(&mut self) -> u64 {
        self.counts.slow_reads += 1;
        self.slow_read.below(2_000 * MS)
    }

    pub fn completion_delay_ns(&mut self) -> u64 {
        self.completion.delay(self.weights.completion_ns)
    }

    pub fn disk_delay_ns(&mut self) -> u64 {
        self.disk.delay(self.weights.disk_ns)
    }

    /// Also a shard that does nothing needs time, so that one that spins is found out.
    pub fn turn_cost_ns(&mut self) -> u64 {
        1_000 + self.turn.delay(self.weights.turn_ns)
    }
}
