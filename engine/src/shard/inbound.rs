//! Ciphertext to plaintext to frames to requests.

use bytes::BytesMut;
use ringpost_protocol::fault::{FrameFault, PeerFault};
use ringpost_protocol::frame::split_frame;
use ringpost_protocol::message::Request;
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::{Completion, Errno, Lease, Outcome, Ring};

use super::Shard;
use super::conn::{ConnKey, Held, Phase};
use super::group_call::GroupWish;
use crate::limits::{INBOUND_BYTES_MAX, OUTBOUND_BYTES_MAX};
use crate::metrics::Bound;
use crate::transport::Peer;
use crate::transport::proxy::ProxyFault;

/// A partial frame up to this size moves to a buffer of its own.
const LEFTOVER_COPY_BYTES_MAX: usize = 4096;

/// What has arrived on a socket.
pub(super) enum Data<'a> {
    Lent(Lease),
    /// It has waited, and its buffer went back.
    Copied(&'a [u8]),
}

impl Data<'_> {
    pub(super) fn bytes<'a>(&'a self, ring: &'a impl Ring) -> &'a [u8] {
        match self {
            Self::Lent(lease) => ring.bytes(lease),
            Self::Copied(data) => data,
        }
    }
}

impl<R: Ring> Shard<R> {
    pub(super) fn handle_recv(&mut self, key: ConnKey, completion: Completion) {
        let Some(conn) = self.conns.get_mut(key) else {
            unreachable!("a connection outlives its receive");
        };
        if !completion.more && !is_active(Mutant::ReceiveMoreIgnored) {
            conn.recv = None;
            self.rearm.push(key);
            if matches!(conn.phase, Phase::Moving(_)) {
                self.mark_dirty(key); // it may leave now
            }
        }
        match completion.result {
            Ok(Outcome::Received(Some(lease))) => self.take_data(key, Data::Lent(lease)),
            Ok(Outcome::Received(None)) => self.handle_end(key),
            Ok(other) => unreachable!("a receive gives data, not {other:?}"),
            // Normal flow control: the pool is refilled in this turn, and the receive armed again.
            Err(Errno::NOBUFS) => {}
            Err(Errno::CANCELED) => {}
            Err(errno) => {
                tracing::debug!(%errno, "receive failed");
                self.abort(key);
            }
        }
        self.finish_close(key);
    }

    /// What comes before the verification is handled as far as this turn's share of it goes.
    pub(super) fn take_data(&mut self, key: ConnKey, data: Data<'_>) {
        let conn = self.conns.get(key).expect("checked by the caller");
        if conn.is_unverified && !self.greetings.take_step() {
            let copy = Box::from(data.bytes(&self.ring));
            self.give_back(data);
            return self.postpone_step(key, copy);
        }
        self.handle_data(key, data);
    }

    pub(super) fn handle_data(&mut self, key: ConnKey, data: Data<'_>) {
        let conn = self.conns.get_mut(key).expect("checked by the caller");
        if conn.is_closing() {
            return self.give_back(data);
        }
        if conn.header.is_some() {
            return self.handle_header(key, data);
        }
        // Most data is whole frames: opened into the shared buffer, so that an idle connection
        // holds none.
        let mut input = std::mem::take(&mut conn.input);
        if input.is_empty() {
            input = std::mem::take(&mut self.plaintext);
        }
        let was_handshaking = conn.transport.is_handshaking();
        let ciphertext = data.bytes(&self.ring);
        let received_bytes = ciphertext.len();
        self.metrics.received_bytes += received_bytes as u64;
        let opened = conn.transport.handle_ciphertext(ciphertext, &mut input);
        conn.input = input;
        let is_greedy = conn.flow.received(self.turn_number, received_bytes, &self.limits);
        if !is_active(Mutant::LeaseNotReturned) {
            self.give_back(data);
        }
        if is_greedy {
            self.metrics.bound_hits.add(Bound::ReceiveBytes);
            self.link_cancel_recv(key);
        }
        let conn = self.conns.get_mut(key).expect("checked above");
        if was_handshaking && !conn.transport.is_handshaking() {
            self.metrics.handshakes += 1;
        }
        let wants_seal = conn.transport.wants_seal();
        match opened {
            Ok(peer) => {
                self.process_input(key);
                if peer == Peer::Closed {
                    self.handle_end(key);
                }
            }
            Err(fault) => {
                tracing::debug!(%fault, "transport failed");
                if was_handshaking {
                    self.metrics.handshakes_failed += 1;
                } else {
                    self.metrics.peer_faults += 1;
                }
                self.begin_close(key);
            }
        }
        if wants_seal {
            self.mark_dirty(key);
        }
        self.charge(key, received_bytes);
    }

    pub(super) fn give_back(&mut self, data: Data<'_>) {
        if let Data::Lent(lease) = data {
            self.ring.release(lease);
        }
    }

    /// A connection pays for what it has sent. In debt, it is not read for a while.
    fn charge(&mut self, key: ConnKey, received_bytes: usize) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.is_exempt || conn.is_closing() {
            return;
        }
        let passed = conn.flow.charge(self.time.now_ms, received_bytes, &self.limits);
        if let Some(bound) = passed {
            self.metrics.bound_hits.add(bound);
            self.link_cancel_recv(key);
            self.schedule(key);
        }
    }

    /// The peer sends nothing more: what it sent is handled, then the connection ends.
    pub(super) fn handle_end(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.peer_closed = true;
        if conn.held != Held::No {
            return; // what is held is handled first
        }
        if conn.header.is_some() && !conn.is_closing() {
            return self.refuse_header(key, ProxyFault::Truncated);
        }
        let bytes = conn.input.len();
        if bytes > 0 && conn.takes_frames() {
            self.fail(key, &FrameFault::Truncated { bytes }.into());
        }
        self.begin_close(key);
    }

    /// Handles the frames that have arrived, until one must wait.
    pub(super) fn process_input(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let mut input = std::mem::take(&mut conn.input);
        let result = self.process_frames(key, &mut input);
        let Some(conn) = self.conns.get_mut(key) else { return }; // moved with its input
        if let Err(fault) = result {
            self.fail(key, &fault);
            return;
        }
        if conn.takes_frames() && input.len() < LEFTOVER_COPY_BYTES_MAX {
            // Keeps only what is left, not the buffer that the handled frames still share.
            if !input.is_empty() {
                conn.input = BytesMut::from(&input[..]);
            }
            input.clear();
            self.plaintext = input;
        } else if !input.is_empty() {
            conn.input = input;
        }
        self.pause_or_resume(key);
    }

    fn process_frames(&mut self, key: ConnKey, input: &mut BytesMut) -> Result<(), PeerFault> {
        loop {
            let Some(conn) = self.conns.get_mut(key) else { return Ok(()) };
            if !conn.takes_frames() || input.is_empty() {
                return Ok(());
            }
            if !conn.flow.has_frames_left(self.turn_number, &self.limits) {
                conn.held = Held::ForTurn;
                self.held.push(key);
                self.metrics.bound_hits.add(Bound::ReceiveFrames);
                return Ok(());
            }
            if conn.send.is_some() && conn.out.len() >= OUTBOUND_BYTES_MAX {
                conn.held = Held::ForOutput;
                self.metrics.bound_hits.add(Bound::Answers);
                return Ok(());
            }
            let Some(frame) = split_frame(input, conn.frame_bytes_max as usize)? else {
                return Ok(());
            };
            conn.flow.take_frame();
            self.metrics.frames_received += 1;
            let request = conn.session.handle_frame(self.time.now_ms, frame, &mut conn.out)?;
            if !conn.out.is_empty() {
                self.mark_dirty(key);
            }
            let Some(request) = request else { continue };
            if matches!(request, Request::Hello(_)) {
                // The connection may leave for another shard, and takes the rest along.
                let conn = self.conns.get_mut(key).expect("present above");
                conn.input = std::mem::take(input);
            }
            self.handle_request(key, request)?;
        }
    }

    /// Handles what the last turn has left.
    pub(super) fn resume_held(&mut self) {
        for key in std::mem::take(&mut self.woken) {
            self.resume_send(key);
        }
        for key in std::mem::take(&mut self.held) {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            if conn.held != Held::ForTurn {
                continue; // it has ended
            }
            conn.held = Held::No;
            self.process_input(key);
            self.charge(key, 0);
            if self.conns.get(key).is_some_and(|conn| conn.peer_closed && !conn.is_closing()) {
                self.handle_end(key);
            }
        }
    }

    fn handle_request(&mut self, key: ConnKey, request: Request) -> Result<(), PeerFault> {
        if let Request::Hello(hello) = request {
            return self.handle_hello(key, hello);
        }
        let conn = self.conns.get_mut(key).expect("its frame is being handled");
        let Phase::Open { device } = conn.phase else {
            unreachable!("the session lets nothing but Hello through before Welcome");
        };
        match request {
            // Not answered, so the client will replay it where it was told to go.
            Request::Send(_) if self.drain.is_some() => {}
            Request::Send(send) => return self.handle_send(key, device, send),
            Request::Ack { up_to } => self.acknowledge(device, up_to),
            Request::TokenRenew { token } => return self.renew_token(key, device, &token),
            Request::Bye => self.begin_close(key),
            // The session has noted the new interval; its deadline may be earlier now.
            Request::Mode(_) => self.schedule(key),
            Request::Call { .. } if self.drain.is_some() => {}
            Request::Call { request_id, call } => match GroupWish::of(*call) {
                Ok((group, wish)) => self.handle_group_call(key, device, request_id, group, wish),
                Err(call) => self.handle_call(key, device, request_id, *call),
            },
            Request::Hello(_) | Request::Ping | Request::Unsupported { .. } => {
                unreachable!("answered before")
            }
        }
        Ok(())
    }

    /// While requests wait for room, no more than a bound is received ahead.
    fn pause_or_resume(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if conn.takes_frames() {
            if std::mem::take(&mut conn.recv_paused) {
                self.rearm.push(key);
            }
            return;
        }
        if conn.input.len() > INBOUND_BYTES_MAX && !conn.recv_paused && !conn.is_closing() {
            conn.recv_paused = true;
            self.metrics.bound_hits.add(Bound::InboundBytes);
            self.link_cancel_recv(key);
        }
    }

    /// Arms the receives of this turn. The only place that does.
    pub(super) fn arm_receives(&mut self) {
        let mut rearm = std::mem::take(&mut self.rearm);
        for key in rearm.drain(..) {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            if !conn.wants_recv() {
                continue;
            }
            let multishot = !matches!(conn.phase, Phase::Greeting) && !conn.flow.is_in_pieces();
            if self.link_has_room(key) {
                self.link_recv(key, multishot);
            }
        }
        self.rearm = rearm;
    }
}
