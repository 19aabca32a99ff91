//! One connection: its stream, its path, its deadline. Everything here runs inside the endpoint's
//! containment: a panic ends this connection and no other.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{
    ConnectionError, ConnectionEvent, ConnectionHandle, Dir, Endpoint, Event, ReadError,
    StreamEvent, StreamId, Transmit, VarInt,
};

use super::path::Path;
use super::{EndReason, QuicCounters, QuicEvent, Read, StreamKey};
use crate::limits::{Admission, QUIC_SEGMENTS_MAX};

/// A connection of the endpoint.
pub(super) struct Connection {
    inner: quinn_proto::Connection,
    handle: ConnectionHandle,
    pub(super) key: StreamKey,
    pub(super) path: Path,
    phase: Phase,
    stream: Option<StreamId>,
    /// Our direction has ended; `true` inside: the client has all of it.
    finished: Option<bool>,
    /// How the client's direction has ended.
    read_end: Option<Read>,
    /// When the phase has lasted too long.
    deadline: Option<Instant>,
    /// How its address was let in, until its owner wants to know.
    pub(super) admission: Option<Box<Admission>>,
    /// It counts among the handshakes under way, which last until the stream is there.
    pub(super) is_pending: bool,
    /// Stands in the endpoint's list of connections that may have something to send.
    pub(super) is_dirty: bool,
    /// Stands in the endpoint's list of connections that may have something to tell.
    pub(super) is_touched: bool,
    /// The stream's owner knows that it can be read, and has not read since.
    told_readable: bool,
    /// The same for writing.
    told_writable: bool,
}

/// Where a connection stands, for its owner.
enum Phase {
    /// The owner knows nothing of it: handshake, and no stream yet.
    Greeting,
    Open,
    /// The owner has closed it; what it wrote before still goes out.
    Lingering {
        code: VarInt,
        reason: Bytes,
    },
    /// Nothing more is told.
    Ended,
}

/// What [`Connection::settle`] found.
pub(super) struct Settled {
    /// It can be forgotten.
    pub(super) is_drained: bool,
    /// It may have something to send that it had not before.
    pub(super) is_answered: bool,
}

/// What a connection tells, and where it is counted.
pub(super) struct Report<'a> {
    pub(super) now: Instant,
    pub(super) events: &'a mut VecDeque<QuicEvent>,
    pub(super) counters: &'a mut QuicCounters,
}

impl Connection {
    pub(super) fn new(
        inner: quinn_proto::Connection,
        handle: ConnectionHandle,
        key: StreamKey,
        deadline: Instant,
    ) -> Self {
        let path = Path::new(inner.remote_address(), inner.local_ip());
        Self {
            inner,
            handle,
            key,
            path,
            phase: Phase::Greeting,
            stream: None,
            finished: None,
            read_end: None,
            deadline: Some(deadline),
            admission: None,
            is_pending: true,
            is_dirty: false,
            is_touched: false,
            told_readable: false,
            told_writable: false,
        }
    }

    pub(super) fn handle(&self) -> ConnectionHandle {
        self.handle
    }

    /// Whether its handshake, or its stream, is waited for.
    pub(super) fn is_greeting(&self) -> bool {
        matches!(self.phase, Phase::Greeting)
    }

    /// Whether its owner knows of it.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    pub(super) fn handle_event(
        &mut self,
        event: ConnectionEvent,
        from: SocketAddr,
        local: Option<IpAddr>,
        counters: &mut QuicCounters,
    ) {
        self.inner.handle_event(event);
        self.path.handle_datagram(&self.inner, from, local, counters);
    }

    pub(super) fn handle_timeout(&mut self, report: &mut Report<'_>) {
        self.path.handle_timeout(&mut self.inner, report.now, report.counters);
        if self.deadline.is_none_or(|deadline| deadline > report.now) {
            return;
        }
        match &self.phase {
            Phase::Greeting => {
                report.counters.handshakes_late += 1;
                self.end(report.now, VarInt::from_u32(0), Bytes::from_static(b"no stream in time"));
            }
            Phase::Lingering { .. } => self.end_lingering(report.now),
            Phase::Open | Phase::Ended => {}
        }
    }

    /// When [`Connection::handle_timeout`] is due. Right once nothing more can be sent.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        let own = self.deadline.filter(|_| !self.inner.is_closed());
        [self.inner.poll_timeout(), own].into_iter().flatten().min()
    }

    /// Writes a train of datagrams into `buffer`, and says from which
    /// address of ours it goes.
    pub(super) fn poll_transmit(
        &mut self,
        now: Instant,
        buffer: &mut Vec<u8>,
    ) -> Option<(Transmit, Option<IpAddr>)> {
        self.path.handle_transmit();
        let transmit = self.inner.poll_transmit(now, QUIC_SEGMENTS_MAX, buffer)?;
        let from = self.path.local(transmit.destination).or(transmit.src_ip);
        Some((transmit, from))
    }

    /// Hands what it has to say to the endpoint and its owner.
    pub(super) fn settle(&mut self, quic: &mut Endpoint, report: &mut Report<'_>) -> Settled {
        let mut settled = Settled { is_drained: false, is_answered: false };
        while let Some(event) = self.inner.poll_endpoint_events() {
            settled.is_drained |= event.is_drained();
            if let Some(answer) = quic.handle_event(self.handle, event) {
                self.inner.handle_event(answer);
                settled.is_answered = true;
            }
        }
        while let Some(event) = self.inner.poll() {
            self.handle_own_event(event, report);
        }
        if let Some(from) = self.path.poll_moved()
            && self.is_open()
        {
            report.events.push_back(QuicEvent::Moved { key: self.key, from });
        }
        settled
    }

    fn handle_own_event(&mut self, event: Event, report: &mut Report<'_>) {
        match event {
            Event::Connected => report.counters.handshakes += 1,
            Event::ConnectionLost { reason } => self.handle_lost(&reason, report),
            Event::Stream(StreamEvent::Opened { dir }) => self.accept_stream(dir, report),
            Event::Stream(StreamEvent::Readable { id }) if self.stream == Some(id) => {
                self.tell_readable(report);
            }
            Event::Stream(StreamEvent::Writable { id }) if self.stream == Some(id) => {
                self.tell_writable(report);
            }
            Event::Stream(StreamEvent::Finished { id } | StreamEvent::Stopped { id, .. })
                if self.stream == Some(id) =>
            {
                self.handle_taken(report);
            }
            // What the transport configuration leaves no room for, and what nobody waits for.
            _ => {}
        }
    }

    /// Takes the client's stream. It has one; the limit is enforced by the transport, and looked at
    /// here because a wrong call on a stream panics.
    fn accept_stream(&mut self, dir: Dir, report: &mut Report<'_>) {
        while let Some(id) = self.inner.streams().accept(dir) {
            if dir != Dir::Bi || self.stream.is_some() {
                report.counters.stream_violations += 1;
                return self.end_and_tell(b"one bidirectional stream", report);
            }
            self.stream = Some(id);
            // Never another one, not even after this one has ended.
            self.inner.set_max_concurrent_streams(Dir::Bi, VarInt::from_u32(0));
            if matches!(self.phase, Phase::Greeting) {
                self.phase = Phase::Open;
                self.deadline = None;
                // Anybody can send from anywhere; limits are kept by where he is known to be.
                let from = self.path.proven().ip();
                report.events.push_back(QuicEvent::Opened { key: self.key, from });
                self.tell_readable(report);
            }
        }
    }

    fn tell_readable(&mut self, report: &mut Report<'_>) {
        if self.is_open() && !std::mem::replace(&mut self.told_readable, true) {
            report.events.push_back(QuicEvent::Readable(self.key));
        }
    }

    fn tell_writable(&mut self, report: &mut Report<'_>) {
        if self.is_open() && !std::mem::replace(&mut self.told_writable, true) {
            report.events.push_back(QuicEvent::Writable(self.key));
        }
    }

    fn handle_lost(&mut self, reason: &ConnectionError, report: &mut Report<'_>) {
        let reason = EndReason::from(reason);
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Greeting => {
                report.counters.handshakes_failed += 1;
                tracing::debug!(address = %self.path.remote(), ?reason, "QUIC handshake failed");
            }
            Phase::Open => report.events.push_back(QuicEvent::Ended { key: self.key, reason }),
            Phase::Lingering { .. } | Phase::Ended => {}
        }
    }

    /// The client has all that was written, or wants no more of it.
    fn handle_taken(&mut self, report: &mut Report<'_>) {
        match self.phase {
            Phase::Lingering { .. } => self.end_lingering(report.now),
            _ if self.finished.is_some() => self.finished = Some(true),
            // It does not listen: like a socket that was reset.
            Phase::Open => self.end_and_tell(b"stream stopped", report),
            Phase::Greeting | Phase::Ended => {}
        }
    }

    /// What has arrived, in order; `true`: the client may send more, and must be told.
    pub(super) fn read(&mut self, max_bytes: usize) -> (Read, bool) {
        self.told_readable = false;
        if let Some(end) = &self.read_end {
            return (end.clone(), false);
        }
        let Some(id) = self.stream else { return (Read::Nothing, false) };
        let mut stream = self.inner.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else { return (Read::Reset, false) };
        let read = match chunks.next(max_bytes) {
            Ok(Some(chunk)) => Read::Data(chunk.bytes),
            Ok(None) => Read::End,
            Err(ReadError::Blocked) => Read::Nothing,
            Err(ReadError::Reset(_)) => Read::Reset,
        };
        let must_tell = chunks.finalize().should_transmit();
        if matches!(read, Read::End | Read::Reset) {
            self.read_end = Some(read.clone());
        }
        (read, must_tell)
    }

    /// Takes what fits into the send window from the front of `data`; how many bytes that was.
    pub(super) fn write(&mut self, data: &mut Vec<Bytes>) -> usize {
        self.told_writable = false;
        let Some(id) = self.stream else { return 0 };
        let mut written_bytes = 0;
        // Until it is refused: only then does the stream say when it can be written again.
        while !data.is_empty() {
            match self.inner.send_stream(id).write_chunks(data) {
                Ok(written) => {
                    data.drain(..written.chunks);
                    written_bytes += written.bytes;
                }
                Err(_) => break,
            }
        }
        written_bytes
    }

    /// Ends our direction after what was written.
    pub(super) fn finish(&mut self) {
        if let Some(id) = self.stream
            && self.finished.is_none()
        {
            // An error says that the client has stopped the stream: then nothing waits for it.
            self.finished = Some(self.inner.send_stream(id).finish().is_err());
        }
    }

    /// The owner wants to hear nothing more. What was finished and is under way is waited for.
    pub(super) fn close(&mut self, now: Instant, linger: Instant, code: VarInt, reason: Bytes) {
        if self.finished == Some(false) && !self.inner.is_closed() {
            self.phase = Phase::Lingering { code, reason };
            self.deadline = Some(linger);
        } else {
            self.end(now, code, reason);
        }
    }

    fn end_lingering(&mut self, now: Instant) {
        if let Phase::Lingering { code, reason } = std::mem::replace(&mut self.phase, Phase::Ended)
        {
            self.end(now, code, reason);
        }
    }

    /// Ends a connection because of what the client does with streams.
    fn end_and_tell(&mut self, reason: &'static [u8], report: &mut Report<'_>) {
        let was_open = self.is_open();
        self.end(report.now, CODE_STREAM, Bytes::from_static(reason));
        if was_open {
            let reason = EndReason::Reset;
            report.events.push_back(QuicEvent::Ended { key: self.key, reason });
        }
    }

    /// Ends a connection that has not opened its stream.
    pub(super) fn turn_away(&mut self, now: Instant) {
        if self.is_greeting() {
            self.end(now, VarInt::from_u32(0), Bytes::from_static(b"the gateway closes"));
        }
    }

    fn end(&mut self, now: Instant, code: VarInt, reason: Bytes) {
        self.phase = Phase::Ended;
        self.deadline = None;
        self.inner.close(now, code, reason);
    }

    #[cfg(test)]
    pub(super) fn inner(&mut self) -> &mut quinn_proto::Connection {
        &mut self.inner
    }
}

/// What a client is told that uses streams otherwise than agreed.
const CODE_STREAM: VarInt = VarInt::from_u32(1);
