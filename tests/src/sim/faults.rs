//! Which faults a world has, how often, and one stream of random numbers for each.

use super::clock::{MS, Stream};
use super::counts::FaultCounts;

/// Chances are per mille of the occasions, chosen anew for each seed: in one world the network is
/// bad, in the next one the disk is slow and nothing else happens ("swarm testing").
#[derive(Clone, Debug)]
pub struct Weights {
    pub short_send: u64,
    pub clear_more: u64,
    pub no_buffers: u64,
    pub cancelled: u64,
    pub accept_fault: u64,
    /// Stream data is cut into pieces down to one byte.
    pub split: u64,
    pub network_ns: u64,
    pub completion_ns: u64,
    pub disk_ns: u64,
    /// A shard's turn takes up to this; now and then much longer.
    pub turn_ns: u64,
    pub receive_buffers: u16,
    pub send_buffer_bytes: usize,
    /// Mailboxes fill up, and Sends are refused for now.
    pub tight_mailboxes: bool,
    /// Mean time between faults of a kind; `None`: not in this world.
    pub cut_ms: Option<u64>,
    pub client_crash_ms: Option<u64>,
    pub power_failure_ms: Option<u64>,
    pub kill_ms: Option<u64>,
    pub restart_ms: Option<u64>,
}

/// The weights of a world and its streams.
#[derive(Clone, Debug)]
pub struct Faults {
    pub weights: Weights,
    pub counts: FaultCounts,
    /// False: the world has become kind, only its delays go on.
    pub active: bool,
    pub short_send: Stream,
    pub clear_more: Stream,
    pub no_buffers: Stream,
    pub cancelled: Stream,
    pub accept: Stream,
    pub split: Stream,
    pub network: Stream,
    pub completion: Stream,
    pub disk: Stream,
    pub turn: Stream,
    pub crash: Stream,
    pub connection: Stream,
}

impl Faults {
    pub fn new(seed: u64) -> Self {
        let stream = |name| Stream::new(seed, name);
        Self {
            weights: Weights::of(&mut stream("weights")),
            counts: FaultCounts::default(),
            active: true,
            short_send: stream("short send"),
            clear_more: stream("clear more"),
            no_buffers: stream("no buffers"),
            cancelled: stream("cancelled"),
            accept: stream("accept"),
            split: stream("split"),
            network: stream("network"),
            completion: stream("completion"),
            disk: stream("disk"),
            turn: stream("turn"),
            crash: stream("crash"),
            connection: stream("connection"),
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

    /// Length of the next piece of `len` bytes.
    pub fn piece(&mut self, len: usize) -> usize {
        if self.split.chance(self.weights.split) {
            let most = if self.split.chance(300) { 3 } else { len };
            1 + self.split.index(len.min(most))
        } else {
            len
        }
    }

    pub fn network_delay_ns(&mut self) -> u64 {
        self.network.delay(self.weights.network_ns)
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

impl Weights {
    fn of(random: &mut Stream) -> Self {
        let mut level = |low, high| match random.below(3) {
            0 => 0,
            1 => low,
            _ => high,
        };
        let (short_send, clear_more) = (level(50, 400), level(50, 400));
        let (no_buffers, cancelled) = (level(20, 150), level(20, 100));
        let (accept_fault, split) = (level(50, 300), level(200, 900));
        let mut every = |mean_ms: u64| random.chance(600).then(|| mean_ms / random.between(1, 4));
        let (cut_ms, client_crash_ms) = (every(8_000), every(20_000));
        let (power_failure_ms, kill_ms) = (every(40_000), every(60_000));
        let restart_ms = every(60_000);
        // Together with an end of the process only on demand: see `Options::tight_mailboxes`.
        let keeps_memory = power_failure_ms.or(kill_ms).or(restart_ms).is_none();
        let tight_mailboxes = keeps_memory && random.chance(700);
        let mut scale = |choices: [u64; 3]| choices[random.index(3)];
        Self {
            short_send,
            clear_more,
            no_buffers,
            cancelled,
            accept_fault,
            split,
            network_ns: scale([MS / 10, 5 * MS, 150 * MS]),
            completion_ns: scale([1_000, 50_000, MS]),
            disk_ns: scale([50_000, MS, 20 * MS]),
            turn_ns: scale([5_000, 50_000, MS]),
            receive_buffers: u16::try_from(scale([2, 8, 64])).expect("small"),
            send_buffer_bytes: usize::try_from(scale([2_000, 16_000, 200_000])).expect("small"),
            tight_mailboxes,
            cut_ms,
            client_crash_ms,
            power_failure_ms,
            kill_ms,
            restart_ms,
        }
    }
}
