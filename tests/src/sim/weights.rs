//! How often things go wrong in a world.

use super::clock::{MS, Stream};

/// Chances are per mille of the occasions, chosen anew for each seed: in one world the network is
/// bad, in the next one the disk is slow and nothing else happens ("swarm testing").
#[derive(Clone, Debug)]
pub struct Weights {
    pub short_send: u64,
    pub clear_more: u64,
    pub no_buffers: u64,
    pub cancelled: u64,
    pub accept_fault: u64,
    /// The kernel takes only some of what an enter submits; the rest waits for the next one.
    pub late_submit: u64,
    /// Stream data is cut into pieces down to one byte.
    pub split: u64,
    /// A packet is lost, and what follows waits for it.
    pub loss: u64,
    /// A reset is lost: one end believes in a connection that the other one has forgotten.
    pub lost_reset: u64,
    pub network_ns: u64,
    /// Some links are so many times slower than others, so that what leaves first comes last.
    pub slow_link: u64,
    pub completion_ns: u64,
    pub disk_ns: u64,
    /// A commit of the directory takes up to this, and now and then much longer.
    pub directory_ns: u64,
    /// A commit of the directory fails, and nobody knows whether it took place.
    pub directory_fault: u64,
    /// A shard's turn takes up to this; now and then much longer.
    pub turn_ns: u64,
    pub receive_buffers: u16,
    pub send_buffer_bytes: usize,
    /// The process or its machine goes down while a slow sync is under way.
    pub crash_in_sync: u64,
    /// Connections over QUIC; with zero the gateway has no datagram sockets at all.
    pub quic: u64,
    /// How datagrams find their shard.
    pub steering: Steering,
    /// Handshakes under way beyond which a client must prove its address.
    pub retry_pending: usize,
    /// A datagram is lost.
    pub datagram_loss: u64,
    /// A datagram comes twice.
    pub doubled: u64,
    /// A send of datagrams fails, and they are lost.
    pub datagram_send_fault: u64,
    /// Mean time between faults of a kind; `None`: not in this world.
    pub mean_ms: Vec<(Fault, u64)>,
}

/// How datagrams find their shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// By a keyed function of the connection id.
    Keyed,
    /// By the first bytes of the connection id.
    Plain,
    /// By the sender's address alone: shards forward to each other.
    Hash,
}

/// What strikes now and then, and not at every occasion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A connection ends in one of several ways.
    Connection,
    /// The packets of one client do not get through for a while, in one direction or both.
    Partition,
    /// A client with a connection over QUIC has another address.
    Rebind,
    /// Datagrams that no client has sent: garbage, or a copy of one that was overheard.
    Stranger,
    /// A client stays away for long.
    Absence,
    /// A client does not read for a while.
    SlowReader,
    /// Somebody connects who does not speak the protocol.
    Rogue,
    /// A client acknowledges what it was never sent.
    FalseAck,
    ClientCrash,
    PowerFailure,
    Kill,
    Restart,
    /// The completion queue of one ring overflows: multishots end, and everything comes at once.
    Overflow,
    /// One sync takes seconds.
    SlowSync,
    /// Reads take long for seconds, and who waits for them comes back to ask again.
    SlowReads,
    /// The wall clock is set.
    ClockStep,
    /// One write fails with EIO, after a part of it.
    FailWrite,
    /// One sync fails with EIO, and the kernel forgets what it should have written.
    FailSync,
    /// A place cannot be read, once or twice.
    FailRead,
    /// A place cannot be read for seconds.
    Unreadable,
    /// A write lands elsewhere.
    Misdirect,
    /// A bit changes at rest.
    Rot,
    /// Files cannot grow for seconds.
    DiskFull,
}

impl Weights {
    pub fn of(seed: u64) -> Self {
        let random = &mut Stream::new(seed, "weights");
        let mut level = |low, high| match random.below(3) {
            0 => 0,
            1 => low,
            _ => high,
        };
        let (short_send, clear_more) = (level(50, 400), level(50, 400));
        let (no_buffers, cancelled) = (level(20, 150), level(20, 100));
        let (accept_fault, split) = (level(50, 300), level(200, 900));
        let (late_submit, loss, lost_reset) = (level(50, 400), level(5, 60), level(100, 600));
        let usual = MEANS.iter().map(|&fault| (fault, 500));
        let of_store = STORE_MEANS.iter().map(|&fault| (fault, STORE_CHANCE));
        let of_disk = DISK_MEANS.iter().map(|&fault| (fault, DISK_CHANCE));
        let quic = QuicWeights::of(seed);
        let of_quic = QUIC_MEANS.iter().filter(|_| quic.share > 0).map(|&fault| (fault, 700));
        let mean_ms = usual
            .chain(of_store)
            .chain(of_disk)
            .chain(of_quic)
            .filter_map(|((fault, mean_ms), chance)| {
                let mut stream = Stream::new(seed, &format!("weight of {fault:?}"));
                stream.chance(chance).then(|| (fault, mean_ms / stream.between(1, 4)))
            })
            .collect();
        let mut scale = |choices: [u64; 3]| choices[random.index(3)];
        Self {
            short_send,
            clear_more,
            no_buffers,
            cancelled,
            accept_fault,
            late_submit,
            split,
            loss,
            lost_reset,
            network_ns: scale([MS / 10, 5 * MS, 150 * MS]),
            slow_link: scale([1, 1, 20]),
            completion_ns: scale([1_000, 50_000, MS]),
            disk_ns: scale([50_000, MS, 20 * MS]),
            directory_ns: [MS, 10 * MS, 300 * MS][Stream::new(seed, "directory ns").index(3)],
            directory_fault: [0, 0, 30][Stream::new(seed, "weight of directory").index(3)],
            turn_ns: scale([5_000, 50_000, MS]),
            receive_buffers: u16::try_from(scale([2, 8, 64])).expect("small"),
            send_buffer_bytes: usize::try_from(scale([2_000, 16_000, 200_000])).expect("small"),
            crash_in_sync: [0, 200, 600][Stream::new(seed, "weight of crash in sync").index(3)],
            quic: quic.share,
            steering: quic.steering,
            retry_pending: quic.retry_pending,
            datagram_loss: quic.loss,
            doubled: quic.doubled,
            datagram_send_fault: quic.send_fault,
            mean_ms,
        }
    }

    /// Nothing goes wrong, and everything takes about as long as usual.
    pub fn none() -> Self {
        Self {
            short_send: 0,
            clear_more: 0,
            no_buffers: 0,
            cancelled: 0,
            accept_fault: 0,
            late_submit: 0,
            split: 0,
            loss: 0,
            lost_reset: 0,
            network_ns: MS,
            slow_link: 1,
            completion_ns: 50_000,
            disk_ns: MS,
            directory_ns: 2 * MS,
            directory_fault: 0,
            turn_ns: 50_000,
            receive_buffers: 64,
            send_buffer_bytes: 200_000,
            crash_in_sync: 0,
            quic: 0,
            steering: Steering::Keyed,
            retry_pending: usize::MAX,
            datagram_loss: 0,
            doubled: 0,
            datagram_send_fault: 0,
            mean_ms: Vec::new(),
        }
    }

    /// Mean time between two of them.
    pub fn mean_ms(&self, fault: Fault) -> Option<u64> {
        self.mean_ms.iter().find(|(kind, _)| *kind == fault).map(|&(_, mean_ms)| mean_ms)
    }
}

/// What concerns QUIC alone, from a stream of its own.
struct QuicWeights {
    share: u64,
    steering: Steering,
    retry_pending: usize,
    loss: u64,
    doubled: u64,
    send_fault: u64,
}

impl QuicWeights {
    fn of(seed: u64) -> Self {
        let random = &mut Stream::new(seed, "weights of quic");
        let steerings = [Steering::Keyed, Steering::Keyed, Steering::Plain, Steering::Hash];
        Self {
            share: [0, 500, 1_000][random.index(3)],
            steering: steerings[random.index(4)],
            retry_pending: [0, 2, usize::MAX][random.index(3)],
            loss: [0, 10, 100][random.index(3)],
            doubled: [0, 20, 200][random.index(3)],
            send_fault: [0, 10, 100][random.index(3)],
        }
    }
}

/// The longest mean time of each; a world has it a quarter to all of that.
const MEANS: &[(Fault, u64)] = &[
    (Fault::Connection, 8_000),
    (Fault::Partition, 20_000),
    (Fault::Absence, 20_000),
    (Fault::SlowReader, 15_000),
    (Fault::Rogue, 10_000),
    (Fault::FalseAck, 20_000),
    (Fault::ClientCrash, 20_000),
    (Fault::PowerFailure, 30_000),
    (Fault::Kill, 30_000),
    (Fault::Restart, 40_000),
    (Fault::Overflow, 10_000),
    (Fault::SlowSync, 15_000),
    (Fault::SlowReads, 12_000),
    (Fault::ClockStep, 15_000),
];

/// In worlds with QUIC.
const QUIC_MEANS: &[(Fault, u64)] = &[(Fault::Rebind, 4_000), (Fault::Stranger, 6_000)];

/// A store that fails is opened again, which excuses nothing, but takes time.
const STORE_MEANS: &[(Fault, u64)] = &[(Fault::FailWrite, 15_000), (Fault::FailSync, 15_000)];
const STORE_CHANCE: u64 = 250;

/// Other faults of the disk's own making come in fewer worlds: they excuse much.
const DISK_MEANS: &[(Fault, u64)] = &[
    (Fault::FailRead, 5_000),
    (Fault::Unreadable, 20_000),
    (Fault::Misdirect, 20_000),
    (Fault::Rot, 8_000),
    (Fault::DiskFull, 15_000),
];
const DISK_CHANCE: u64 = 120;
