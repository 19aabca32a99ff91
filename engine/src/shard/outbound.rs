//! Frames to ciphertext to the socket, and the orderly end of a connection.
//!
//! One send is in flight per connection at most, and only what is sent is sealed: the rest stays in
//! the mailbox. So a slow reader costs one bounded buffer, and delays nobody else.
//!
//! A reader that stops holds at most twice `OUTBOUND_BYTES_MAX` and one frame: once sealed and in
//! flight, once in `out`; and in the kernel 16 KiB that are not sent yet (TCP_NOTSENT_LOWAT) and what
//! its window has taken, together no more than the socket's buffer. Answers to what it sends do not add
//! to that: it is not read while they wait. After `send_stall_ms_max` it is ended.

use bytes::Bytes;
use ringpost_protocol::fault::PeerFault;
use ringpost_protocol::message::{self, GoAwayReason};
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::{Completion, Outcome, Ring};

use super::Shard;
use super::conn::{Closing, ConnKey, Held, Phase, Shutdown};
use crate::limits::{LINGER_MS, SPARE_BUFFER_BYTES_MAX, SPARE_BUFFERS_MAX};
use crate::metrics::Bound;

impl<R: Ring> Shard<R> {
    /// Puts a connection into the queue of this turn's flush.
    pub(super) fn mark_dirty(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if !std::mem::replace(&mut conn.dirty, true) {
            self.dirty.push(key);
        }
    }

    /// Sends what the turn has produced: one send per connection, all in one batch.
    pub(super) fn flush(&mut self) {
        let mut index = 0;
        // Flushing one connection may make another one dirty, never the same one for ever.
        while index < self.dirty.len() {
            let key = self.dirty[index];
            index += 1;
            if let Some(conn) = self.conns.get_mut(key) {
                conn.dirty = false;
                self.flush_conn(key);
            }
        }
        self.dirty.clear();
    }

    fn flush_conn(&mut self, key: ConnKey) {
        let conn = self.conns.get_mut(key).expect("checked by the caller");
        if conn.send.is_some() {
            return;
        }
        if conn.has_ended() {
            // A short send has left something over after the end was given up waiting for.
            conn.out.clear();
            conn.unsent.clear();
        }
        if conn.is_flushed() {
            match conn.phase {
                Phase::Moving(_) => self.go_home(key),
                Phase::Closing(_) => self.shutdown(key),
                _ => {}
            }
            return;
        }
        if !self.link_has_room(key) {
            return;
        }
        let conn = self.conns.get_mut(key).expect("checked by the caller");
        let mut data = std::mem::take(&mut conn.unsent);
        if data.is_empty() {
            let plaintext = std::mem::take(&mut conn.out);
            // Exact for records alone: then the bytes need no block of their own to be shared.
            let mut ciphertext = Vec::with_capacity(conn.transport.sealed_bytes(plaintext.len()));
            conn.transport.seal(&plaintext, &mut ciphertext);
            self.spare_out.put(plaintext);
            if ciphertext.is_empty() {
                return;
            }
            data.push(Bytes::from(ciphertext));
        }
        conn.send_deadline_ms = self.time.now_ms + self.limits.send_stall_ms_max;
        self.link_send(key, data);
        self.schedule(key);
    }

    pub(super) fn handle_sent(&mut self, key: ConnKey, completion: Completion) {
        let conn = self.conns.get_mut(key).expect("a connection outlives its send");
        assert!(!completion.more, "a send completes once");
        conn.send = None;
        conn.send_deadline_ms = u64::MAX;
        match completion.result {
            Ok(Outcome::Sent { sent_bytes, data }) => {
                self.metrics.sent_bytes += sent_bytes as u64;
                if !is_active(Mutant::ShortSendTakenForWhole) {
                    conn.unsent = rest_of(data, sent_bytes);
                }
                self.go_on_sending(key);
            }
            Ok(other) => unreachable!("a send gives a count, not {other:?}"),
            Err(errno) => {
                tracing::debug!(%errno, "send failed");
                self.abort(key);
            }
        }
        self.finish_close(key);
    }

    /// A send on a stream has ended.
    pub(super) fn end_send(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.send = None;
        conn.send_deadline_ms = u64::MAX;
    }

    /// The link takes the next send.
    pub(super) fn go_on_sending(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.held == Held::ForOutput {
            conn.held = Held::ForTurn;
            self.held.push(key);
        }
        if let Some(device) = conn.device() {
            self.deliver(device);
        }
        self.mark_dirty(key);
    }

    /// Ends a connection for a fault of its peer, which is told.
    pub(super) fn fail(&mut self, key: ConnKey, fault: &PeerFault) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.is_closing() {
            return;
        }
        tracing::debug!(address = %conn.address, code = ?fault.code(), %fault, "connection refused");
        if conn.device().is_some() {
            self.metrics.peer_faults += 1;
        } else {
            self.metrics.hello_refused.add(fault.into());
        }
        if matches!(fault, PeerFault::WindowExceeded) {
            self.metrics.bound_hits.add(Bound::SendsUnanswered);
        }
        if !conn.transport.is_handshaking() {
            message::put_fault(&mut conn.out, fault);
        }
        self.begin_close(key);
    }

    /// Ends a connection for a reason of ours: the client should come back.
    pub(super) fn send_away(&mut self, key: ConnKey, reason: GoAwayReason) {
        let reconnect_after_ms = self.return_time_ms();
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.is_closing() {
            return;
        }
        if !conn.transport.is_handshaking() {
            message::put_go_away(&mut conn.out, reason, reconnect_after_ms, None);
        }
        self.begin_close(key);
    }

    /// From here on nothing is taken from the peer; what is queued for it still goes out.
    pub(super) fn begin_close(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.is_closing() {
            return;
        }
        let deadline_ms = self.time.now_ms + self.limits.send_stall_ms_max;
        let closing = Closing { shutdown: Shutdown::Flushing, deadline_ms };
        let phase = std::mem::replace(&mut conn.phase, Phase::Closing(closing));
        conn.blocked = None;
        conn.held = Held::No;
        conn.input.clear();
        conn.transport.close(&mut conn.out);
        if let Phase::Open { device } | Phase::Registering { device } = phase {
            self.detach(device, key);
        }
        self.end_greeting(key);
        self.mark_dirty(key);
        self.schedule(key);
    }

    /// Ends a connection that cannot be written to any more.
    pub(super) fn abort(&mut self, key: ConnKey) {
        self.begin_close(key);
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.out.clear();
        conn.unsent.clear();
        conn.peer_closed = true;
        conn.is_aborted = true;
        self.shutdown(key);
    }

    /// Everything is flushed: ends our direction, so that the peer sees the end after the last
    /// frame. What still arrives is read and dropped for a while, because closing a socket with
    /// unread data resets it, and the reset may overtake that frame (RFC 1122, 4.2.2.13).
    fn shutdown(&mut self, key: ConnKey) {
        let now_ms = self.time.now_ms;
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Phase::Closing(closing) = &mut conn.phase else { return };
        if closing.shutdown != Shutdown::Flushing {
            return;
        }
        closing.shutdown = Shutdown::Submitted;
        closing.deadline_ms = now_ms + LINGER_MS;
        self.link_end_write(key);
        if self.conns.get(key).is_some_and(|conn| conn.peer_closed) {
            self.cancel_all(key);
        }
        self.rearm.push(key);
        self.schedule(key);
    }

    pub(super) fn handle_shutdown(&mut self, key: ConnKey) {
        let conn = self.conns.get_mut(key).expect("a connection outlives its shutdown");
        let Phase::Closing(closing) = &mut conn.phase else {
            unreachable!("only closing connections are shut down");
        };
        closing.shutdown = Shutdown::Done;
        self.finish_close(key);
    }

    /// Frees a closing connection once no completion can follow.
    pub(super) fn finish_close(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get(key) else { return };
        let Phase::Closing(closing) = &conn.phase else { return };
        let quiet = conn.recv.is_none() && conn.send.is_none();
        let lingers = !conn.peer_closed && self.time.now_ms < closing.deadline_ms;
        if closing.shutdown != Shutdown::Done || !quiet || lingers {
            return;
        }
        let conn = self.conns.remove(key);
        self.link_close(conn.link, key, !conn.is_aborted);
    }

    /// The deadline of a connection may have come: a late Hello, a silent peer, an expired token, a
    /// stalled send, the end of lingering.
    pub(super) fn handle_deadline(&mut self, key: ConnKey) {
        let time = self.time;
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.scheduled_ms > time.now_ms {
            return; // an older entry of the wheel; the newer one will fire
        }
        conn.scheduled_ms = u64::MAX;
        if conn.flow.resume(time.now_ms) {
            conn.session.was_not_read(time.now_ms);
            self.rearm.push(key);
        }
        if conn.send_deadline_ms <= time.now_ms {
            self.metrics.slow_consumers += 1;
            conn.send_deadline_ms = u64::MAX;
            self.begin_close(key);
            self.cancel_all(key);
        } else if let Phase::Closing(closing) = &conn.phase {
            if closing.deadline_ms <= time.now_ms {
                self.cancel_all(key);
                self.shutdown(key);
                self.finish_close(key);
            }
        } else if conn.welcome_deadline_ms(&self.limits) <= time.now_ms {
            self.end_late(key);
        } else if !conn.flow.is_paused()
            && let Err(fault) = conn.session.handle_timeout(time.now_ms, time.unix_ms)
        {
            self.fail(key, &fault);
        }
        self.schedule(key);
    }

    fn cancel_all(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.peer_closed = true;
        self.link_cancel_recv(key);
        self.link_cancel_send(key);
    }

    /// Sees to it that the wheel fires no later than the connection's deadline.
    pub(super) fn schedule(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let deadline_ms = conn.deadline_ms(self.time.now_ms, self.time.unix_ms, &self.limits);
        if deadline_ms < conn.scheduled_ms {
            conn.scheduled_ms = deadline_ms;
            self.wheel.insert(deadline_ms, key);
        }
    }
}

/// What a short send has left.
fn rest_of(mut data: Vec<Bytes>, mut sent_bytes: usize) -> Vec<Bytes> {
    data.retain_mut(|chunk| {
        let taken = sent_bytes.min(chunk.len());
        sent_bytes -= taken;
        let _ = chunk.split_to(taken);
        !chunk.is_empty()
    });
    data
}

/// Buffers for frames that are not yet sealed: few connections have any at the same moment, and one
/// that was just used is still in the processor's cache.
#[derive(Default)]
pub(super) struct SpareBuffers(Vec<Vec<u8>>);

impl SpareBuffers {
    /// Gives `out` memory if it has none.
    pub(super) fn lend(&mut self, out: &mut Vec<u8>) {
        if out.capacity() == 0
            && let Some(buffer) = self.0.pop()
        {
            *out = buffer;
        }
    }

    fn put(&mut self, mut buffer: Vec<u8>) {
        let worth_it = (1..=SPARE_BUFFER_BYTES_MAX).contains(&buffer.capacity());
        if worth_it && self.0.len() < SPARE_BUFFERS_MAX {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_a_short_send_starts_where_it_stopped() {
        let chunks = || vec![Bytes::from_static(b"abc"), Bytes::from_static(b"defg")];
        assert_eq!(rest_of(chunks(), 0), chunks());
        assert_eq!(rest_of(chunks(), 2), [&b"c"[..], b"defg"]);
        assert_eq!(rest_of(chunks(), 3), [&b"defg"[..]]);
        assert_eq!(rest_of(chunks(), 6), [&b"g"[..]]);
        assert!(rest_of(chunks(), 7).is_empty());
    }
}
