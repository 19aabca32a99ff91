//! Where a Send goes: to this shard's mailboxes or over the mesh, and its outcome back.
//!
//! **Order after a refusal** (protocol rule 4). When a recipient's home refuses a Send for a reason
//! that passes, Sends behind it may already be on the mesh, and must not overtake it when room
//! appears. So the home arms a *block* for that sender and recipient, and refuses in the same way
//! whatever arrives without `after_reject`. The sender's home arms the same block in its send memory
//! when the refusal reaches it, and says so with a note. The mesh is first in, first out: when the
//! note arrives, everything sent before the sender's home knew has been refused, and the home
//! forgets its block. So a block of a recipient's home lives for one round trip of the mesh, and
//! there are never more of them than unanswered requests.

use std::collections::VecDeque;

use ringpost_protocol::fault::PeerFault;
use ringpost_protocol::id::{DeviceAddress, SendSeq, UserId};
use ringpost_protocol::message::{self, Outcome, Recipient, RejectCode, SendRequest};
use ringpost_protocol::window::{Admission, SendMemory};
use ringpost_ring::{Op, Ring};

use super::Shard;
use super::conn::ConnKey;
use super::message::{BlockArmed, DeviceIndex, MeshMessage, Origin, StoreReply, StoreRequest};
use super::token::Token;
use crate::metrics::Bound;

/// Who goes on when a shard has room again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// A connection with a Send.
    Send(ConnKey),
    /// A connection on its way home.
    Move(ConnKey),
    /// A device whose receipts must be stored.
    Receipts(DeviceIndex),
}

/// Waiters per destination shard; each connection and device stands in at most one queue.
pub(super) type Waiters = Vec<VecDeque<Waiter>>;

impl<R: Ring> Shard<R> {
    /// Takes a Send from its connection, or keeps it there until there is room.
    pub(super) fn handle_send(
        &mut self,
        key: ConnKey,
        device: DeviceIndex,
        send: SendRequest,
    ) -> Result<(), PeerFault> {
        let to_shard = match &send.to {
            Recipient::User(user) => self.home_of(user),
            Recipient::Group(_) => self.id,
        };
        if !self.has_room(to_shard) {
            let conn = self.conns.get_mut(key).expect("its frame is being handled");
            conn.blocked = Some(Box::new(send));
            self.wait_for_room(to_shard, Waiter::Send(key));
            return Ok(());
        }
        let now_ms = self.time.now_ms;
        let home = self.home.as_mut().expect("an open connection is at home");
        let sender = home.device_mut(device);
        sender.last_send_ms = now_ms;
        let memory = sender.memory.as_mut().expect("made when the connection was welcomed");
        let admission = memory.admit(send.send_seq, &send.to, send.after_reject)?;
        match admission {
            Admission::New => self.dispatch(device, to_shard, send),
            // Its outcome is on the way and will be answered on this connection.
            Admission::Pending => {}
            Admission::Answered(outcome) => {
                let conn = self.conns.get_mut(key).expect("its frame is being handled");
                message::put_outcome(&mut conn.out, send.send_seq, &outcome);
                self.mark_dirty(key);
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, device: DeviceIndex, to_shard: u16, send: SendRequest) {
        let SendRequest { send_seq, message_number, to, body, ttl_ms, urgent, after_reject } = send;
        let home = self.home.as_ref().expect("an open connection is at home");
        let sender = home.device(device);
        let memory = sender.memory.as_ref().expect("made when the connection was welcomed");
        let origin = Origin { shard: self.id, device, install_id: memory.install_id(), send_seq };
        let user = match to {
            Recipient::User(user) => user,
            Recipient::Group(_) => {
                let outcome =
                    Outcome::Rejected { code: RejectCode::Unsupported, retry_after_ms: None };
                return self.settle(StoreReply { origin, to, outcome });
            }
        };
        let from = sender.address.clone();
        let request = StoreRequest {
            origin,
            from,
            to: user,
            message_number,
            body,
            ttl_ms,
            urgent,
            after_reject,
        };
        if to_shard == self.id {
            return self.handle_store(request);
        }
        let reserved = self.mesh.reserve(to_shard);
        assert!(reserved.is_ok(), "room was checked");
        self.push_mesh(to_shard, MeshMessage::Store(Box::new(request)));
    }

    /// Answers a store request, to this shard or over the mesh.
    pub(super) fn reply(&mut self, reply: StoreReply) {
        let to_shard = reply.origin.shard;
        if to_shard == self.id {
            self.settle(reply);
        } else {
            self.push_mesh(to_shard, MeshMessage::Stored(Box::new(reply)));
        }
    }

    /// The outcome has reached the sender's home: remember it, and tell the device if it is there.
    pub(super) fn settle(&mut self, reply: StoreReply) {
        let StoreReply { origin, to, outcome } = reply;
        match &outcome {
            Outcome::Accepted { .. } => self.metrics.messages_accepted += 1,
            Outcome::Rejected { code, .. } => self.metrics.messages_rejected.add((*code).into()),
        }
        if outcome.is_retryable() {
            self.note_block(&origin, &to);
        }
        let home = self.home.as_mut().expect("requests come from home shards");
        let device = home.device_mut(origin.device);
        // Freed only when nothing is unanswered.
        let Some(memory) = device.memory.as_mut() else { return };
        if !memory.settle(origin.install_id, origin.send_seq, &outcome) {
            return; // kept for the replay
        }
        let Some(attached) = &device.attached else { return };
        let key = attached.conn;
        if let Some(conn) = self.conns.get_mut(key)
            && conn.device().is_some()
        {
            message::put_outcome(&mut conn.out, origin.send_seq, &outcome);
            self.mark_dirty(key);
        }
    }

    fn note_block(&mut self, origin: &Origin, to: &Recipient) {
        let Recipient::User(user) = to else { return };
        let to_shard = self.home_of(user);
        if to_shard == self.id {
            return; // refused in the same call: nothing could be in between
        }
        let home = self.home.as_ref().expect("requests come from home shards");
        let from = home.device(origin.device).address.clone();
        let note = BlockArmed { from, to: user.clone(), send_seq: origin.send_seq };
        self.push_mesh(to_shard, MeshMessage::BlockArmed(Box::new(note)));
    }

    /// Whether a request to `shard` can be made now.
    pub(super) fn has_room(&self, shard: u16) -> bool {
        if shard == self.id {
            let home = self.home.as_ref().expect("requests go to home shards");
            home.has_room()
        } else {
            self.mesh.credits(shard) > 0
        }
    }

    pub(super) fn wait_for_room(&mut self, shard: u16, waiter: Waiter) {
        if shard == self.id {
            self.metrics.bound_hits.add(Bound::UnsyncedRecords);
        } else {
            self.metrics.mesh_credit_waits += 1;
        }
        self.waiters[usize::from(shard)].push_back(waiter);
    }

    /// Lets waiters go on, first come first served, while there is room.
    pub(super) fn serve_waiters(&mut self) {
        for shard in 0..self.mesh.shards() {
            let index = usize::from(shard);
            // Whoever must wait again goes to the end, and is not looked at twice in a turn.
            for _ in 0..self.waiters[index].len() {
                if !self.has_room(shard) {
                    break;
                }
                match self.waiters[index].pop_front() {
                    Some(Waiter::Send(key)) => self.resume_send(key),
                    Some(Waiter::Move(key)) => self.go_home(key),
                    Some(Waiter::Receipts(device)) => self.resume_ack(device),
                    None => break,
                }
            }
        }
    }

    fn resume_send(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Some(device) = conn.device() else { return };
        let Some(send) = conn.blocked.take() else { return };
        match self.handle_send(key, device, *send) {
            Ok(()) => self.process_input(key),
            Err(fault) => self.fail(key, &fault),
        }
    }

    pub(super) fn push_mesh(&mut self, to: u16, message: MeshMessage) {
        if self.mesh.push(to, message) {
            self.ring.submit(Token::Unowned.pack(), Op::Wake { shard: to });
        }
    }

    pub(super) fn home_of(&self, user: &UserId) -> u16 {
        user.slot().shard(self.config.storage_shards)
    }
}

/// Refusals that a recipient's home keeps up until the sender's home knows of them.
#[derive(Default)]
pub(super) struct Blocks {
    armed: hashbrown::HashMap<(DeviceAddress, UserId), Block>,
}

struct Block {
    /// The last Send refused; the note for it ends the block.
    send_seq: SendSeq,
    outcome: Outcome,
}

impl Blocks {
    /// The refusal that a Send must get, if its sender is blocked here.
    pub(super) fn check(&mut self, request: &StoreRequest) -> Option<Outcome> {
        if self.armed.is_empty() {
            return None;
        }
        let key = (request.from.clone(), request.to.clone());
        if request.after_reject {
            self.armed.remove(&key);
            return None;
        }
        let block = self.armed.get_mut(&key)?;
        block.send_seq = request.origin.send_seq;
        Some(block.outcome.clone())
    }

    pub(super) fn arm(&mut self, request: &StoreRequest, outcome: &Outcome) {
        let key = (request.from.clone(), request.to.clone());
        let block = Block { send_seq: request.origin.send_seq, outcome: outcome.clone() };
        self.armed.insert(key, block);
    }

    pub(super) fn noted(&mut self, note: BlockArmed) {
        let key = (note.from, note.to);
        if self.armed.get(&key).is_some_and(|block| block.send_seq == note.send_seq) {
            self.armed.remove(&key);
        }
    }
}

/// Frees what a device has not used for a while; a later replay may then be stored again, and is
/// dropped by the receiver.
pub(super) fn is_forgettable(memory: &SendMemory, idle_ms: u64) -> bool {
    memory.unanswered() == 0 && idle_ms >= crate::limits::SEND_MEMORY_MS
}
