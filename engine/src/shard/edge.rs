//! The QUIC side of a shard: datagrams in and out, timers, and the streams that connections live on.
//!
//! A QUIC connection stays on the shard that its connection id names, its *edge*. Its one stream is a
//! link like a socket (`link`): here of a connection of this shard, or over the mesh (`relay`) of one
//! that has moved to its home.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use ringpost_ring::{OpId, UdpSocket};

use super::stream::StreamTable;
use crate::limits::{
    DATAGRAM_SENDS_MAX, FLOOD_CALM_MS, FLOOD_RETRIES_PER_SECOND, STREAM_CHUNK_BYTES_MAX,
};
use crate::transport::quic::{QuicEndpoint, Read, StreamKey};

/// What a shard keeps for QUIC.
pub(super) struct Edge {
    pub(super) endpoint: QuicEndpoint,
    pub(super) streams: StreamTable,
    pub(super) socket: UdpSocket,
    /// The armed receive of datagrams.
    pub(super) recv: Option<OpId>,
    pub(super) recv_cancelled: bool,
    /// It is not armed before then, monotonic.
    pub(super) recv_after_ms: u64,
    /// Streams to drive in the next turn.
    pub(super) ready: VecDeque<StreamKey>,
    pub(super) sends_in_flight: usize,
    /// The endpoint has more to send than there was room for.
    pub(super) has_more_to_send: bool,
    pub(super) flood: Flood,
}

/// What a stream had when it was read.
pub(super) enum Input {
    Received(Bytes),
    /// The client sends nothing more.
    Ended,
    Nothing,
}

/// Whether so many handshakes are begun that clients have to prove their addresses first.
#[derive(Default)]
pub(super) struct Flood {
    /// Proofs demanded when it was looked at last.
    seen: u64,
    /// The same before the present second.
    before: u64,
    second: u64,
    /// It counts as over then; 0: there is none.
    until_ms: u64,
}

impl Edge {
    pub(super) fn new(endpoint: QuicEndpoint, socket: UdpSocket) -> Self {
        Self {
            endpoint,
            streams: StreamTable::default(),
            socket,
            recv: None,
            recv_cancelled: false,
            recv_after_ms: 0,
            ready: VecDeque::new(),
            sends_in_flight: 0,
            has_more_to_send: false,
            flood: Flood::default(),
        }
    }

    /// Has a stream looked at in the next turn.
    pub(super) fn queue(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get_mut(key)
            && !std::mem::replace(&mut stream.is_ready, true)
        {
            self.ready.push_back(key);
        }
    }

    /// Takes the one send of a connection. True: the stream has all of it.
    pub(super) fn begin_send(&mut self, key: StreamKey, data: Vec<Bytes>) -> bool {
        let Some(stream) = self.streams.get_mut(key) else { return false };
        stream.sending = data;
        self.endpoint.write(key, &mut stream.sending);
        stream.sending.is_empty()
    }

    /// Goes on with a send that had to wait.
    pub(super) fn go_on_sending(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if stream.sending.is_empty() || stream.is_gone {
            return;
        }
        self.endpoint.write(key, &mut stream.sending);
        stream.owes_sent |= stream.sending.is_empty();
    }

    /// Reads a chunk. What came in small pieces is put together, so that it crosses the mesh as one.
    pub(super) fn read(&mut self, key: StreamKey) -> Input {
        let Some(stream) = self.streams.get_mut(key) else { return Input::Nothing };
        if std::mem::take(&mut stream.ends) {
            stream.is_readable = false;
            return Input::Ended;
        }
        let mut first = Bytes::new();
        let mut joined = BytesMut::new();
        loop {
            let room_bytes = STREAM_CHUNK_BYTES_MAX - first.len().max(joined.len());
            if room_bytes == 0 {
                break;
            }
            match self.endpoint.read(key, room_bytes) {
                Read::Data(data) if first.is_empty() => first = data,
                Read::Data(data) => {
                    if joined.is_empty() {
                        joined.extend_from_slice(&first);
                    }
                    joined.extend_from_slice(&data);
                }
                Read::Nothing => {
                    stream.is_readable = false;
                    break;
                }
                // A reset says as much as an end: what is whole has been handled.
                Read::End | Read::Reset => {
                    if first.is_empty() {
                        stream.is_readable = false;
                        return Input::Ended;
                    }
                    stream.ends = true;
                    break;
                }
            }
        }
        match (first.is_empty(), joined.is_empty()) {
            (true, _) => Input::Nothing,
            (false, true) => Input::Received(first),
            (false, false) => Input::Received(joined.freeze()),
        }
    }

    /// The connection of a stream takes another chunk.
    pub(super) fn receive(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.wants = true;
            if stream.has_news() {
                self.queue(key);
            }
        }
    }

    /// Sends for a connection of this shard.
    pub(super) fn send(&mut self, key: StreamKey, data: Vec<Bytes>) {
        if self.begin_send(key, data)
            && let Some(stream) = self.streams.get_mut(key)
        {
            stream.owes_sent = true;
            self.queue(key);
        }
    }

    /// The connection of a stream leaves for its home.
    pub(super) fn leaves(&mut self, key: StreamKey) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.leaves();
        }
    }

    /// Nobody needs a stream any more. With `flushes` what it was given goes out first, as far as the
    /// client takes it within a bounded time.
    pub(super) fn give_up(&mut self, key: StreamKey, flushes: bool) {
        if self.streams.remove(key).is_none() {
            return;
        }
        if flushes {
            self.endpoint.finish(key);
        }
        let code = if flushes { CLOSE_DONE } else { CLOSE_ABORTED };
        self.endpoint.close(key, code, Bytes::new());
    }

    /// When this must be looked at, monotonic nanoseconds; 0: in the next turn.
    pub(super) fn deadline_ns(&self) -> u64 {
        let can_send = self.has_more_to_send && self.sends_in_flight < DATAGRAM_SENDS_MAX;
        if !self.ready.is_empty() || can_send {
            return 0;
        }
        let recv_ms = if self.recv.is_none() && self.recv_after_ms > 0 {
            self.recv_after_ms
        } else {
            u64::MAX
        };
        let own_ns = self.flood.deadline_ms().min(recv_ms).saturating_mul(1_000_000);
        self.endpoint.poll_timeout().map_or(own_ns, |deadline_ns| deadline_ns.min(own_ns))
    }

    /// Whether there is no connection here, nor one that is being closed.
    pub(super) fn is_quiet(&self) -> bool {
        self.streams.len() == 0 && self.endpoint.connections() == 0
    }

    /// Whether nothing is in flight.
    pub(super) fn is_settled(&self) -> bool {
        self.recv.is_none() && self.sends_in_flight == 0 && !self.has_more_to_send
    }
}

impl Flood {
    /// So many address proofs have been demanded up to now. Gives whether a flood begins or ends.
    pub(super) fn observe(&mut self, retries: u64, now_ms: u64) -> Option<bool> {
        let second = now_ms / 1_000;
        if second != self.second {
            (self.before, self.second) = (self.seen, second);
        }
        self.seen = retries;
        if retries - self.before >= FLOOD_RETRIES_PER_SECOND {
            self.before = retries;
            let begins = self.until_ms == 0;
            self.until_ms = now_ms + FLOOD_CALM_MS;
            return begins.then_some(true);
        }
        let ends = self.until_ms > 0 && now_ms >= self.until_ms;
        if ends {
            self.until_ms = 0;
        }
        ends.then_some(false)
    }

    fn deadline_ms(&self) -> u64 {
        if self.until_ms > 0 { self.until_ms } else { u64::MAX }
    }
}

/// Everything was said on the stream.
const CLOSE_DONE: u32 = 0;
/// It ends without that.
const CLOSE_ABORTED: u32 = 2;
/// There is no room for the connection.
pub(super) const CLOSE_REFUSED: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_begins_once_and_ends_after_calm() {
        let mut flood = Flood::default();
        assert_eq!(flood.observe(0, 1_000), None);
        let many = FLOOD_RETRIES_PER_SECOND;
        assert_eq!(flood.observe(many - 1, 1_000), None);
        assert_eq!(flood.observe(2 * many - 2, 2_000), None, "as many again, a second later");
        assert_eq!(flood.observe(2 * many - 2 + many, 2_999), Some(true));
        assert_eq!(flood.observe(5 * many, 5_000), None, "it goes on");
        assert_eq!(flood.deadline_ms(), 5_000 + FLOOD_CALM_MS);
        assert_eq!(flood.observe(5 * many, 4_999 + FLOOD_CALM_MS), None);
        assert_eq!(flood.observe(5 * many, 5_000 + FLOOD_CALM_MS), Some(false));
        assert_eq!((flood.observe(5 * many, 90_000), flood.deadline_ms()), (None, u64::MAX));
        assert_eq!(flood.observe(6 * many, 90_001), Some(true));
    }
}
