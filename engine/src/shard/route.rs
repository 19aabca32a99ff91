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
//!
//! **Order after an unknown outcome.** When a recipient's home loses its store, it cannot say whether
//! the Sends of the last batches were stored. It reports them as unknown; the sender's home forgets
//! that it took them and sends the connection away, and the client replays them, in order. What the
//! sender had sent behind them must not be stored before the replays, so the recipient's home arms a
//! block here too. It answers "unknown" whatever arrives, also with `after_reject`, which speaks of
//! refusals only; and it ends with the same note.

use ringpost_protocol::fault::PeerFault;
use ringpost_protocol::id::{SendSeq, UserId};
use ringpost_protocol::message::{
    self, GoAwayReason, Limits, Outcome, Recipient, RejectCode, SendBody, SendRequest,
};
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_protocol::window::{Admission, SendMemory};
use ringpost_ring::{Op, Ring};

use super::Shard;
use super::blocks::Refusal;
use super::conn::ConnKey;
use super::deposit::rejected;
use super::fanout::GroupSend;
use super::group::GroupRequest;
use super::lanes::Waiter;
use super::message::{
    BlockArmed, DeviceIndex, MeshMessage, Origin, StoreReply, StoreRequest, UnknownSend,
};
use super::token::Token;
use crate::limits::GROUP_REQUESTS_MAX;
use crate::metrics::Bound;

impl<R: Ring> Shard<R> {
    /// Takes a Send from its connection, or keeps it there until there is room.
    pub(super) fn handle_send(
        &mut self,
        key: ConnKey,
        device: DeviceIndex,
        send: SendRequest,
    ) -> Result<(), PeerFault> {
        let (Recipient::User(to) | Recipient::Group(to)) = &send.to;
        let to_shard = self.home_of(to);
        let awaits_other = self.awaits_other(device, &send);
        if awaits_other || !self.has_room_for_send(to_shard, &send.to) {
            match &send.to {
                _ if awaits_other => {}
                Recipient::User(_) => self.wait_for_room(to_shard, Waiter::Send(key)),
                Recipient::Group(_) => self.wait_with_group_send(to_shard, key),
            }
            let conn = self.conns.get_mut(key).expect("its frame is being handled");
            conn.blocked = Some(Box::new(send));
            return Ok(());
        }
        let now_ms = self.time.now_ms;
        let home = self.home.as_mut().expect("an open connection is at home");
        let sender = home.device_mut(device);
        sender.last_send_ms = now_ms;
        let memory = sender.memory.as_mut().expect("made when the connection was welcomed");
        let admission = memory.admit(send.send_seq, &send.to, send.after_reject)?;
        match admission {
            Admission::New => match self.take_send(key, device) {
                Ok(()) => self.dispatch(key, device, to_shard, send),
                Err(refusal) => self.refuse_here(device, send.send_seq, &refusal),
            },
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

    fn dispatch(&mut self, key: ConnKey, device: DeviceIndex, to_shard: u16, send: SendRequest) {
        let conn = self.conns.get_mut(key).expect("its frame is being handled");
        let limits = Limits::with_frame_bytes_max(conn.frame_bytes_max);
        let too_large = send.body.envelope_bytes_max() > limits.envelope_bytes_max as usize;
        if too_large {
            let refusal = rejected(RejectCode::TooLarge, None);
            return self.refuse_here(device, send.send_seq, &refusal);
        }
        if matches!(send.to, Recipient::Group(_)) && !self.inquiries.has_port() {
            let refusal = rejected(RejectCode::Unsupported, None);
            return self.refuse_here(device, send.send_seq, &refusal);
        }
        let SendRequest { send_seq, message_number, to, body, ttl_ms, urgent, .. } = send;
        let device_list_version = send.device_list_version;
        let home = self.home.as_ref().expect("an open connection is at home");
        let sender = home.device(device);
        let memory = sender.memory.as_ref().expect("made when the connection was welcomed");
        let origin = Origin { shard: self.id, device, install_id: memory.install_id(), send_seq };
        let from = sender.address.clone();
        let (to, envelope) = match (to, body) {
            (Recipient::User(to), body) => (to, body),
            (Recipient::Group(group), SendBody::Shared(envelope)) => {
                let roster_version = send.roster_version;
                let send = GroupSend {
                    origin,
                    from,
                    group,
                    roster_version,
                    message_number,
                    envelope,
                    ttl_ms,
                    urgent,
                };
                return self.push_group(to_shard, GroupRequest::Send(Box::new(send)));
            }
            (Recipient::Group(_), SendBody::PerDevice(_)) => {
                unreachable!("the protocol gives groups one envelope")
            }
        };
        let request = StoreRequest {
            origin,
            from,
            to,
            message_number,
            device_list_version,
            body: envelope,
            ttl_ms,
            urgent,
            after_reject: send.after_reject,
        };
        if to_shard == self.id {
            return self.handle_store(request);
        }
        let reserved = self.mesh.reserve(to_shard);
        assert!(reserved.is_ok(), "room was checked");
        self.push_mesh(to_shard, MeshMessage::Store(Box::new(request)));
    }

    /// Whether the user may send another message now, from whichever of his devices.
    pub(super) fn take_send(&mut self, key: ConnKey, device: DeviceIndex) -> Result<(), Outcome> {
        if self.conns.get(key).is_none_or(|conn| conn.is_exempt) {
            return Ok(());
        }
        let home = self.home.as_mut().expect("an open connection is at home");
        let user = home.device(device).user as usize;
        home.send_rates[user].take(self.limits.user_sends, self.time.now_ms, 1).map_err(|wait_ms| {
            self.metrics.bound_hits.add(Bound::UserSends);
            rejected(RejectCode::RateLimited, Some(wait_ms))
        })
    }

    /// Refuses a Send before it leaves its sender's home. Nobody else has heard of it, so no block
    /// is needed but the one in the send memory, and no note.
    fn refuse_here(&mut self, device: DeviceIndex, send_seq: SendSeq, refusal: &Outcome) {
        if let Outcome::Rejected { code, .. } = refusal {
            self.metrics.messages_rejected.add((*code).into());
        }
        let home = self.home.as_ref().expect("an open connection is at home");
        let memory = home.device(device).memory.as_ref();
        let install_id = memory.expect("made when the connection was welcomed").install_id();
        let origin = Origin { shard: self.id, device, install_id, send_seq };
        self.answer(origin, refusal);
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
        let StoreReply { origin, to, outcome, list } = reply;
        match &outcome {
            Outcome::Accepted { .. } => self.metrics.messages_accepted += 1,
            Outcome::Rejected { code, .. } => self.metrics.messages_rejected.add((*code).into()),
        }
        if outcome.is_retryable() {
            self.note_block(origin, &to);
        }
        self.answer(origin, &outcome);
        if let Some(list) = list {
            self.push_list(origin, *list);
        }
        self.group_send_settled(origin.device, &to);
    }

    fn answer(&mut self, origin: Origin, outcome: &Outcome) {
        let home = self.home.as_mut().expect("requests come from home shards");
        let device = home.device_mut(origin.device);
        // Freed only when nothing is unanswered.
        let Some(memory) = device.memory.as_mut() else { return };
        if !memory.settle(origin.install_id, origin.send_seq, outcome) {
            return; // kept for the replay
        }
        let Some(attached) = &device.attached else { return };
        let key = attached.conn;
        self.put(key, |out| message::put_outcome(out, origin.send_seq, outcome));
    }

    /// The store failed before a Send was durable, or the Send came behind one of those: tells the
    /// sender's home.
    pub(super) fn outcome_unknown(&mut self, origin: Origin, to: Recipient) {
        if origin.shard == self.id {
            return self.handle_unknown(origin, &to);
        }
        if let Recipient::User(user) = &to
            && !is_active(Mutant::UnknownBlockMissing)
        {
            let home = self.home.as_mut().expect("requests go to home shards");
            home.blocks.arm(origin, user, Refusal::Unknown);
        }
        self.push_mesh(origin.shard, MeshMessage::Unknown(Box::new(UnknownSend { origin, to })));
    }

    /// Nobody knows whether a Send of this shard's device was stored: its replay is new.
    pub(super) fn handle_unknown(&mut self, origin: Origin, to: &Recipient) {
        self.metrics.sends_unknown += 1;
        self.note_block(origin, to);
        let home = self.home.as_mut().expect("requests come from home shards");
        let device = home.device_mut(origin.device);
        if let Some(memory) = device.memory.as_mut()
            && memory.forget(origin.install_id, origin.send_seq)
            && let Some(attached) = &device.attached
        {
            let key = attached.conn;
            self.send_away(key, GoAwayReason::Storage);
        }
        self.group_send_settled(origin.device, to);
    }

    fn note_block(&mut self, origin: Origin, to: &Recipient) {
        let Recipient::User(to) = to else { return };
        let to_shard = self.home_of(to);
        if to_shard == self.id {
            return; // answered in the same call, or held until all that waited is (`stale`)
        }
        let note = BlockArmed { origin, to: to.clone() };
        self.push_mesh(to_shard, MeshMessage::BlockArmed(Box::new(note)));
    }

    fn has_room_for_send(&self, shard: u16, to: &Recipient) -> bool {
        match to {
            Recipient::User(_) => self.has_room(shard),
            Recipient::Group(_) => self.has_room_for_group(shard, GROUP_REQUESTS_MAX),
        }
    }

    /// Whether a Send to a group must wait for the outcome of another one of the same device.
    fn awaits_other(&self, device: DeviceIndex, send: &SendRequest) -> bool {
        let Recipient::Group(_) = &send.to else { return false };
        let home = self.home.as_ref().expect("an open connection is at home");
        let memory = home.device(device).memory.as_ref();
        memory.is_some_and(|memory| memory.awaits_other(send.send_seq, &send.to))
            && !is_active(Mutant::GroupSendsTogether)
    }

    /// The next Send of the device to the same group may go.
    fn group_send_settled(&mut self, device: DeviceIndex, to: &Recipient) {
        let Recipient::Group(group) = to else { return };
        self.group_answered(self.home_of(group));
        let home = self.home.as_ref().expect("requests come from home shards");
        let Some(attached) = &home.device(device).attached else { return };
        let key = attached.conn;
        let blocked = self.conns.get(key).and_then(|conn| conn.blocked.as_ref());
        let is_next = blocked.is_some_and(|send| send.to == *to);
        if is_next && !is_active(Mutant::GroupWakeLost) {
            self.woken.push(key);
        }
    }

    pub(super) fn resume_send(&mut self, key: ConnKey) {
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

/// Frees what a device has not used for a while; a later replay may then be stored again, and is
/// dropped by the receiver.
pub(super) fn is_forgettable(memory: &SendMemory, idle_ms: u64) -> bool {
    memory.unanswered() == 0 && idle_ms >= crate::limits::SEND_MEMORY_MS
}
