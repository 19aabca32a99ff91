//! From a new socket to a connection at its home shard: accept, handshake, Hello, move.

use std::net::IpAddr;

use ringpost_protocol::fault::PeerFault;
use ringpost_protocol::message::{GoAwayReason, Hello};
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::{Completion, Errno, Op, Outcome, Ring, Socket};

use super::Shard;
use super::backlog::Request;
use super::conn::{Conn, ConnKey, Phase};
use super::lanes::Waiter;
use super::link::Link;
use super::message::{Arrival, DeviceIndex, Login, MeshMessage, ShardEvent};
use super::token::Token;
use crate::control::auth::{AuthFault, Claims};
use crate::limits::Admission;
use crate::metrics::{Bound, RefusedConnection};

/// How long an accept that failed for want of resources waits.
const ACCEPT_RETRY_MS: u64 = 1_000;

impl<R: Ring> Shard<R> {
    /// Arms the listener if it should accept and does not. The only place that does.
    pub(super) fn arm_accept(&mut self) {
        let Some(listener) = self.listener else { return };
        if let Some(bound) = self.accept_bound() {
            return self.pause_accept(bound);
        }
        if self.accept.is_some() || self.drain.is_some() || !self.is_ready() {
            return;
        }
        if self.time.now_ms < self.accept_after_ms {
            return;
        }
        self.accept = Some(self.ring.submit(Token::Accept.pack(), Op::Accept { listener }));
    }

    /// Why nothing may be accepted now.
    pub(super) fn accept_bound(&mut self) -> Option<Bound> {
        self.room_to_greet_ms = u64::MAX;
        if self.conns.len() >= self.limits.connections_max {
            return Some(Bound::ConnectionsPerShard);
        }
        self.room_to_greet_ms = self.make_room_to_greet()?;
        Some(Bound::HandshakesPending)
    }

    /// What the kernel holds in its backlog waits there.
    fn pause_accept(&mut self, bound: Bound) {
        if let Some(target) = self.accept
            && !std::mem::replace(&mut self.accept_cancelled, true)
        {
            self.metrics.bound_hits.add(bound);
            self.ring.submit(Token::Unowned.pack(), Op::Cancel { target });
        }
    }

    pub(super) fn handle_accept(&mut self, completion: Completion) {
        if !completion.more && !is_active(Mutant::AcceptMoreIgnored) {
            self.accept = None;
            self.accept_cancelled = false;
        }
        match completion.result {
            Ok(Outcome::Accepted(socket)) => self.admit(socket),
            Ok(other) => unreachable!("an accept gives a socket, not {other:?}"),
            Err(Errno::CANCELED) => {}
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS)) => {
                tracing::warn!(%errno, "accepting pauses; raise the limit on open files or memory");
                self.metrics.accept_failures += 1;
                self.accept_after_ms = self.time.now_ms + ACCEPT_RETRY_MS;
            }
            // The connection was gone before it was taken.
            Err(errno) => {
                tracing::debug!(%errno, "accept failed");
                self.metrics.accept_failures += 1;
            }
        }
    }

    fn admit(&mut self, socket: Socket) {
        self.metrics.accepts += 1;
        let Some(conn) = self.begin_conn(socket) else {
            self.ring.submit(Token::Unowned.pack(), Op::CloseSocket { socket });
            return;
        };
        let key = self.conns.insert(conn);
        self.greetings.begin(key, self.time.now_ms);
        self.schedule(key);
        self.rearm.push(key);
    }

    /// `None`: it is not wanted. Nothing was spent on it but its accept.
    fn begin_conn(&mut self, socket: Socket) -> Option<Conn> {
        if self.drain.is_some() {
            return None;
        }
        let address = self.ring.peer_address(socket)?;
        // Behind a balancer the client's address comes with the header.
        let (header, admission) = match &self.config.proxy_trusted {
            None => (None, self.admit_address(address)?),
            Some(ranges) if ranges.iter().any(|range| range.contains(address)) => {
                (Some(Box::default()), Admission::default())
            }
            Some(_) => {
                tracing::debug!(%address, "none of proxy_trusted");
                self.metrics.connections_refused.add(RefusedConnection::ProxyUntrusted);
                return None;
            }
        };
        let transport = self.acceptor.accept().ok()?;
        let frame_bytes_max = self.limits.frame_bytes_max;
        let mut conn =
            Conn::new(Link::Tcp(socket), transport, address, frame_bytes_max, self.time.now_ms);
        conn.header = header;
        (conn.is_exempt, conn.guard) = (admission.is_exempt, admission.guard);
        Some(conn)
    }

    /// Whether `address` may have another connection; `None` if not.
    pub(super) fn admit_address(&mut self, address: IpAddr) -> Option<Admission> {
        match self.gate.admit(address, self.time.now_ms) {
            Ok(admission) => Some(self.let_in(admission)),
            Err(refusal) => {
                tracing::debug!(%address, ?refusal, "connection refused");
                self.metrics.connections_refused.add(refusal.into());
                None
            }
        }
    }

    pub(super) fn let_in(&mut self, admission: Admission) -> Admission {
        if admission.is_uncounted {
            self.metrics.bound_hits.add(Bound::Addresses);
        }
        admission
    }

    /// A connection was not welcomed in time.
    pub(super) fn end_late(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get(key) else { return };
        if conn.is_unverified {
            self.fail(key, &PeerFault::HelloTimeout);
        } else {
            // It has said all that it had to say.
            self.send_away(key, GoAwayReason::Overload);
        }
    }

    /// Verifies the token on the shard that accepted, so that a flood of bad tokens is spread as
    /// the connections are.
    pub(super) fn handle_hello(&mut self, key: ConnKey, hello: Hello) -> Result<(), PeerFault> {
        let claims = match self.verify(&hello.token) {
            Ok(claims) => claims,
            Err(fault) => {
                self.audit_refused(key, &hello, None, &fault);
                return Err(fault);
            }
        };
        if claims.device != hello.device {
            self.audit_refused(key, &hello, Some(&claims), &PeerFault::TokenMismatch);
            return Err(PeerFault::TokenMismatch);
        }
        let conn = self.conns.get_mut(key).expect("its frame is being handled");
        conn.phase = Phase::Moving(Box::new(Login { hello, claims }));
        self.end_greeting(key);
        self.go_home(key);
        Ok(())
    }

    fn verify(&mut self, token: &str) -> Result<Claims, PeerFault> {
        self.verifier.verify(token, self.time.unix_ms).map_err(|fault| {
            if fault == AuthFault::KeyUnknown {
                (self.events)(ShardEvent::UnknownKey { shard: self.id });
            }
            token_fault(fault)
        })
    }

    /// Hands a verified connection to its home as soon as nothing is in flight on its socket.
    pub(super) fn go_home(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Phase::Moving(login) = &conn.phase else { return };
        let home = login.claims.user.slot().shard(self.config.storage_shards);
        if home == self.id {
            let Phase::Moving(login) = std::mem::replace(&mut conn.phase, Phase::Greeting) else {
                unreachable!("matched above");
            };
            self.arrive(key, *login);
            return;
        }
        if conn.recv.is_some() {
            return; // its completion brings the connection back here
        }
        if !conn.is_flushed() {
            self.mark_dirty(key);
            return;
        }
        if self.mesh.reserve(home).is_err() {
            self.wait_for_room(home, Waiter::Move(key));
            return;
        }
        let mut conn = self.conns.remove(key);
        let Phase::Moving(login) = std::mem::replace(&mut conn.phase, Phase::Greeting) else {
            unreachable!("matched above");
        };
        conn.dirty = false;
        conn.scheduled_ms = u64::MAX;
        if let (Link::Quic(stream), Some(edge)) = (conn.link, &mut self.edge) {
            edge.leaves(stream);
        }
        self.metrics.moves += 1;
        self.push_mesh(home, MeshMessage::Move(Box::new(Arrival { conn, login: *login })));
    }

    /// A connection comes home. At start it waits for the store; later it is sent away while the
    /// store is not open, as those are that were here already.
    pub(super) fn handle_move(&mut self, from: u16, arrival: Box<Arrival>) {
        if self.is_ready() {
            self.take_over(from, *arrival);
        } else {
            self.hold(Request::Move { from, arrival });
        }
    }

    /// Takes over a connection from the shard that accepted it.
    pub(super) fn take_over(&mut self, from: u16, arrival: Arrival) {
        self.push_mesh(from, MeshMessage::Moved);
        let Arrival { mut conn, login } = arrival;
        conn.is_exempt = self.gate.is_exempt(conn.address); // the limits may be newer than it
        let full = self.conns.len() >= self.limits.connections_max;
        let key = self.conns.insert(conn);
        self.schedule(key);
        if full || self.drain.is_some() {
            if full {
                self.metrics.bound_hits.add(Bound::ConnectionsPerShard);
            }
            self.send_away(key, GoAwayReason::Overload);
            return;
        }
        self.arrive(key, login);
    }

    /// A client that stays longer than its token lives brings a newer one of the same device.
    pub(super) fn renew_token(
        &mut self,
        key: ConnKey,
        device: DeviceIndex,
        token: &str,
    ) -> Result<(), PeerFault> {
        let home = self.home.as_ref().expect("an open connection is at home");
        let address = home.device(device).address.clone();
        let claims = self.verify(token).and_then(|claims| {
            let is_same = claims.user == address.user && claims.device == address.device;
            is_same.then_some(claims).ok_or(PeerFault::TokenMismatch)
        });
        let claims = match claims {
            Ok(claims) => claims,
            Err(fault) => {
                self.audit_renewal_refused(key, device, token, &fault);
                return Err(fault);
            }
        };
        let conn = self.conns.get_mut(key).expect("its frame is being handled");
        conn.session.renewed(claims.expires_unix_ms);
        self.schedule(key);
        Ok(())
    }

    /// At home: the connection becomes its device's, and is welcomed once the device is durable.
    fn arrive(&mut self, key: ConnKey, login: Login) {
        if !self.home.as_ref().is_some_and(|home| home.state.is_open()) {
            return self.send_away(key, GoAwayReason::Storage);
        }
        match self.attach(key, login) {
            Ok(()) => self.process_input(key),
            Err(fault) => self.fail(key, &fault),
        }
    }
}

/// What the client is told; the precise reason is logged without the token.
pub(super) fn token_fault(fault: AuthFault) -> PeerFault {
    tracing::debug!(%fault, "token refused");
    match fault {
        AuthFault::Expired => PeerFault::TokenExpired,
        AuthFault::KeyIdMissing | AuthFault::KeyUnknown => PeerFault::TokenInvalid("unknown key"),
        AuthFault::AlgorithmMismatch => PeerFault::TokenInvalid("algorithm is not the key's"),
        AuthFault::SignatureWrong => PeerFault::TokenInvalid("wrong signature"),
        AuthFault::AudienceWrong => PeerFault::TokenInvalid("wrong audience"),
        AuthFault::NotYetValid => PeerFault::TokenInvalid("not valid yet"),
        AuthFault::TooLong | AuthFault::Malformed | AuthFault::ExtensionUnsupported => {
            PeerFault::TokenInvalid("malformed")
        }
        AuthFault::ClaimMissing(_) | AuthFault::UserInvalid(_) | AuthFault::DeviceInvalid(_) => {
            PeerFault::TokenInvalid("a claim is missing or invalid")
        }
    }
}
