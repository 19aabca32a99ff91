//! What a run has seen: counts, latency, and the verification of every message.
//!
//! A payload names its stream (one sender to one recipient), its number in the stream and the time
//! at which it was meant to leave; the rest is a pattern that depends on both. A [`Stream`] checks
//! the numbers, and so finds what was lost, doubled or swapped without keeping the messages.

use bytes::BufMut;
use hdrhistogram::Histogram;

use crate::plan::mix;
use crate::timeline::Timeline;

/// One direction between two clients of the same thread.
#[derive(Debug, Default)]
pub struct Stream {
    /// Index of the sending client.
    pub sender: u32,
    /// Index of the receiving client.
    pub receiver: u32,
    /// Messages sent; they are numbered 1 to `sent`.
    sent: u64,
    /// Refused by the server: nobody waits for them.
    rejected: u64,
    /// Messages that arrived, each counted once.
    delivered: u64,
    /// The highest number that arrived.
    last: u64,
    /// Numbers below `last` that have not arrived, rising.
    missing: Vec<u64>,
}

/// How a message fits behind those that came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Higher than all before: in order.
    New,
    /// New, but a later one was here first.
    Reordered,
    /// Seen before.
    Duplicate,
    /// Never sent.
    Invented,
}

impl Stream {
    pub fn new(sender: u32, receiver: u32) -> Self {
        Self { sender, receiver, ..Self::default() }
    }

    /// Numbers the next message.
    pub fn send(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    pub fn handle_rejected(&mut self) {
        self.rejected += 1;
    }

    pub fn handle_arrival(&mut self, sequence: u64) -> Arrival {
        if sequence == 0 || sequence > self.sent {
            return Arrival::Invented;
        }
        if sequence > self.last {
            self.missing.extend(self.last + 1..sequence);
            self.last = sequence;
            self.delivered += 1;
            return Arrival::New;
        }
        match self.missing.binary_search(&sequence) {
            Ok(index) => {
                self.missing.remove(index);
                self.delivered += 1;
                Arrival::Reordered
            }
            Err(_) => Arrival::Duplicate,
        }
    }

    /// Messages that should have arrived and have not.
    pub fn outstanding(&self) -> u64 {
        self.sent.saturating_sub(self.delivered + self.rejected)
    }

    /// Messages that arrived although the server had refused them.
    pub fn delivered_though_rejected(&self) -> u64 {
        (self.delivered + self.rejected).saturating_sub(self.sent)
    }
}

/// Counts and latency of one thread; added up at the end.
#[derive(Clone, Debug)]
pub struct Measure {
    pub sent: u64,
    pub accepted: u64,
    pub rejected: u64,
    pub delivered: u64,
    pub duplicated: u64,
    /// Sent again by the server after a crash, and known from the mark that a client keeps: legal.
    pub duplicated_on_wire: u64,
    pub reordered: u64,
    pub lost: u64,
    /// Payloads that are not what was sent, or that came to the wrong device; such a message also
    /// counts as lost.
    pub corrupted: u64,
    /// Gap frames: the server says that it dropped something.
    pub gaps: u64,
    /// Connections lost and made again while the load ran.
    pub reconnects: u64,
    /// Clients that vanished on purpose, and returned.
    pub vanished: u64,
    pub accepted_us: Histogram<u64>,
    pub delivered_us: Histogram<u64>,
    /// The deliveries again, second by second.
    pub timeline: Timeline,
}

impl Measure {
    pub fn new() -> Self {
        Self {
            sent: 0,
            accepted: 0,
            rejected: 0,
            delivered: 0,
            duplicated: 0,
            duplicated_on_wire: 0,
            reordered: 0,
            lost: 0,
            corrupted: 0,
            gaps: 0,
            reconnects: 0,
            vanished: 0,
            accepted_us: latencies_us(),
            delivered_us: latencies_us(),
            timeline: Timeline::default(),
        }
    }

    pub fn accepted(&mut self, latency_ns: u64) {
        self.accepted += 1;
        self.accepted_us.saturating_record(latency_ns / 1_000);
    }

    /// `now_ns`: on the monotonic clock.
    pub fn delivered(&mut self, now_ns: u64, latency_ns: u64) {
        self.delivered += 1;
        self.timeline.record(now_ns, latency_ns / 1_000);
        self.delivered_us.saturating_record(latency_ns / 1_000);
    }

    /// Takes over what the streams know at the end of a run.
    pub fn settle<'a>(&mut self, streams: impl Iterator<Item = &'a Stream>) {
        for stream in streams {
            self.lost += stream.outstanding();
            self.duplicated += stream.delivered_though_rejected();
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.accepted += other.accepted;
        self.rejected += other.rejected;
        self.delivered += other.delivered;
        self.duplicated += other.duplicated;
        self.duplicated_on_wire += other.duplicated_on_wire;
        self.reordered += other.reordered;
        self.lost += other.lost;
        self.corrupted += other.corrupted;
        self.gaps += other.gaps;
        self.reconnects += other.reconnects;
        self.vanished += other.vanished;
        self.accepted_us += &other.accepted_us;
        self.delivered_us += &other.delivered_us;
        self.timeline.add(&other.timeline);
    }

    /// What came after `before`, an earlier state of this. Counts and latencies; not the seconds.
    pub fn since(&self, before: &Self) -> Self {
        let later = |mut all: Histogram<u64>, earlier: &Histogram<u64>| {
            all.subtract(earlier).expect("the same bounds, and never more than in the whole");
            all
        };
        Self {
            sent: self.sent - before.sent,
            accepted: self.accepted - before.accepted,
            rejected: self.rejected - before.rejected,
            delivered: self.delivered - before.delivered,
            accepted_us: later(self.accepted_us.clone(), &before.accepted_us),
            delivered_us: later(self.delivered_us.clone(), &before.delivered_us),
            ..self.clone()
        }
    }

    /// Every message that was accepted arrived once, whole and in order.
    pub fn is_kept(&self) -> bool {
        self.lost == 0
            && self.duplicated == 0
            && self.reordered == 0
            && self.corrupted == 0
            && self.gaps == 0
    }

    /// Every message arrived once, whole and in order, and none was refused.
    pub fn is_clean(&self) -> bool {
        self.is_kept() && self.rejected == 0
    }
}

impl Default for Measure {
    fn default() -> Self {
        Self::new()
    }
}

/// What a payload says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadHead {
    /// Names the run and the thread, so that mail of another run is not taken for ours.
    pub tag: u32,
    pub stream: u32,
    pub sequence: u64,
    /// Monotonic time of the thread's ring.
    pub intended_ns: u64,
}

/// Writes and checks payloads without computing each byte: the filling is a slice of one block.
pub struct PayloadPattern {
    block: Vec<u8>,
    payload_bytes: usize,
}

impl PayloadPattern {
    pub fn new(payload_bytes: usize, seed: u64) -> Self {
        assert!(payload_bytes >= PAYLOAD_BYTES_MIN, "checked with the plan");
        let words = (payload_bytes + PATTERN_OFFSETS).div_ceil(8) as u64;
        let block = (0..words).flat_map(|word| mix(seed ^ mix(word)).to_le_bytes()).collect();
        Self { block, payload_bytes }
    }

    /// Appends one payload.
    pub fn put(&self, head: &PayloadHead, out: &mut impl BufMut) {
        out.put_u32_le(head.tag);
        out.put_u32_le(head.stream);
        out.put_u64_le(head.sequence);
        out.put_u64_le(head.intended_ns);
        out.put_slice(self.filling(head));
    }

    /// Reads the head and compares every other byte; `None` when something is wrong.
    pub fn check(&self, payload: &[u8]) -> Option<PayloadHead> {
        if payload.len() != self.payload_bytes {
            return None;
        }
        let (head, filling) = payload.split_first_chunk::<PAYLOAD_BYTES_MIN>()?;
        let head = PayloadHead {
            tag: u32::from_le_bytes(*head.first_chunk()?),
            stream: u32::from_le_bytes(*head[4..].first_chunk()?),
            sequence: u64::from_le_bytes(*head[8..].first_chunk()?),
            intended_ns: u64::from_le_bytes(*head[16..].first_chunk()?),
        };
        (filling == self.filling(&head)).then_some(head)
    }

    fn filling(&self, head: &PayloadHead) -> &[u8] {
        let key = u64::from(head.tag) << 32 | u64::from(head.stream);
        let offset = mix(key ^ head.sequence.rotate_left(40)) % PATTERN_OFFSETS as u64;
        let offset = usize::try_from(offset).expect("below PATTERN_OFFSETS");
        &self.block[offset..offset + self.payload_bytes - PAYLOAD_BYTES_MIN]
    }
}

/// An empty histogram of latencies.
pub fn latencies_us() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are constant and legal")
}

/// Bytes of a payload's head, and so the shortest payload.
pub const PAYLOAD_BYTES_MIN: usize = 24;
/// Different fillings.
const PATTERN_OFFSETS: usize = 4_096;
/// Ten minutes; what takes longer is recorded as this.
const LATENCY_US_MAX: u64 = 600_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn stream_of(sent: u64, arrivals: &[u64]) -> (Stream, Vec<Arrival>) {
        let mut stream = Stream::new(0, 1);
        for number in 1..=sent {
            assert_eq!(stream.send(), number);
        }
        let seen = arrivals.iter().map(|&number| stream.handle_arrival(number)).collect();
        (stream, seen)
    }

    #[test]
    fn a_clean_stream_is_clean() {
        let (stream, seen) = stream_of(3, &[1, 2, 3]);
        assert_eq!(seen, [Arrival::New; 3]);
        assert_eq!(stream.outstanding(), 0);
    }

    #[test]
    fn a_lost_message_is_found_in_the_middle_and_at_the_end() {
        assert_eq!(stream_of(3, &[1, 3]).0.outstanding(), 1);
        assert_eq!(stream_of(3, &[1, 2]).0.outstanding(), 1);
        assert_eq!(stream_of(3, &[]).0.outstanding(), 3);
    }

    #[test]
    fn a_doubled_message_is_found() {
        let (stream, seen) = stream_of(3, &[1, 2, 2, 3, 1]);
        assert_eq!(seen[2], Arrival::Duplicate);
        assert_eq!(seen[4], Arrival::Duplicate);
        assert_eq!(stream.outstanding(), 0);
    }

    #[test]
    fn swapped_messages_are_found() {
        let (stream, seen) = stream_of(4, &[1, 3, 2, 4]);
        assert_eq!(seen, [Arrival::New, Arrival::New, Arrival::Reordered, Arrival::New]);
        assert_eq!(stream.outstanding(), 0);
    }

    #[test]
    fn a_message_that_nobody_sent_is_found() {
        assert_eq!(stream_of(1, &[2]).1, [Arrival::Invented]);
        assert_eq!(stream_of(1, &[0]).1, [Arrival::Invented]);
    }

    #[test]
    fn a_rejected_message_is_not_lost_but_must_not_arrive() {
        let (mut stream, _) = stream_of(3, &[1, 3]);
        stream.handle_rejected();
        assert_eq!(stream.outstanding(), 0);
        assert_eq!(stream.handle_arrival(2), Arrival::Reordered);
        let mut measure = Measure::new();
        measure.settle([&stream].into_iter());
        assert_eq!((measure.lost, measure.duplicated), (0, 1));
        assert!(!measure.is_clean());
    }

    #[test]
    fn one_changed_byte_is_found() {
        let pattern = PayloadPattern::new(200, 9);
        let head = PayloadHead { tag: 5, stream: 77, sequence: 1_000_000, intended_ns: 42 };
        let mut payload = Vec::new();
        pattern.put(&head, &mut payload);
        assert_eq!(payload.len(), 200);
        assert_eq!(pattern.check(&payload), Some(head));
        assert_eq!(pattern.check(&payload[..199]), None);
        for index in [0, 5, 9, 24, 100, 199] {
            let mut damaged = payload.clone();
            damaged[index] ^= 1;
            assert_ne!(pattern.check(&damaged), Some(head), "byte {index}");
        }
    }

    #[test]
    fn threads_add_up() {
        let mut sum = Measure::new();
        let mut part = Measure::new();
        part.sent = 2;
        part.accepted(1_500_000);
        part.delivered(0, 9_000_000);
        sum.add(&part);
        sum.add(&part);
        assert_eq!((sum.sent, sum.accepted, sum.delivered), (4, 2, 2));
        assert_eq!(sum.accepted_us.max(), 1_500);
        assert_eq!(sum.delivered_us.len(), 2);
        assert!(sum.is_clean());
    }
}
