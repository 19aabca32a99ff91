//! One Send to a group: a part to each home shard of its members, one outcome of all.
//!
//! The group's home takes one Send after the other and gives each its parts; the mesh is first in,
//! first out, so all members get them in that order. Nothing begins before there is room for all
//! parts. Each part is one record that names all mailboxes of its shard.
//!
//! Parts are not atomic (protocol rule 5). The Send is accepted when one of them is stored; devices
//! that got nothing are named, and a gap is in their mailboxes before that is said. When nobody can
//! know whether a part was stored, the outcome of the whole is unknown: its replay is stored again,
//! and dropped by those who have it.

use std::sync::Arc;

use bytes::Bytes;
use ringpost_protocol::id::{DeviceAddress, DeviceId, MessageNumber, UserId};
use ringpost_protocol::limits::SKIPPED_DEVICES_MAX;
use ringpost_protocol::message::{Outcome, Recipient, RejectCode, SkipReason};
use ringpost_ring::Ring;
use slab::Slab;

use super::Shard;
use super::deposit::rejected;
use super::group::Known;
use super::message::{MeshMessage, Origin, StoreReply};
use crate::metrics::Bound;

/// A Send on its way to the home of its group.
pub struct GroupSend {
    pub origin: Origin,
    pub from: DeviceAddress,
    pub group: UserId,
    /// The version of the roster that it is meant for; 0: whatever it is.
    pub roster_version: u64,
    pub message_number: MessageNumber,
    pub envelope: Bytes,
    pub ttl_ms: u64,
    pub urgent: bool,
}

/// A Send to a group on its way to one home of its members.
pub struct GroupPart {
    /// The group's home, and what it calls this Send.
    pub home: u16,
    pub fanout: u32,
    pub send: Arc<GroupSend>,
    /// The same for all parts.
    pub sent_at_ms: u64,
    /// Those who live at the receiver.
    pub members: Arc<[UserId]>,
    /// No other shard has members.
    pub is_whole: bool,
}

/// What became of a part.
pub struct PartReply {
    pub fanout: u32,
    pub outcome: PartOutcome,
}

pub enum PartOutcome {
    /// At least one mailbox has it.
    Stored { skipped: Skipped },
    /// None has it.
    Refused { code: RejectCode, retry_after_ms: Option<u64>, skipped: Skipped },
    /// The store failed.
    Unknown,
}

/// Devices that got nothing.
pub type Skipped = Vec<(UserId, DeviceId, SkipReason)>;

/// Sends whose parts are under way.
#[derive(Default)]
pub(super) struct Fanouts(Slab<Fanout>);

struct Fanout {
    send: Arc<GroupSend>,
    sent_at_ms: u64,
    parts_left: usize,
    is_stored: bool,
    is_unknown: bool,
    refusal: Option<(RejectCode, Option<u64>)>,
    skipped: Skipped,
}

impl Fanouts {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the outcome of one part. The last one gives the Send back.
    fn take(&mut self, reply: PartReply) -> Option<Fanout> {
        let id = reply.fanout as usize;
        let fanout = self.0.get_mut(id).expect("each part is answered once");
        fanout.take(reply.outcome);
        (fanout.parts_left == 0).then(|| self.0.remove(id))
    }
}

impl Fanout {
    fn new(send: Arc<GroupSend>, sent_at_ms: u64, parts_left: usize) -> Self {
        Self {
            send,
            sent_at_ms,
            parts_left,
            is_stored: false,
            is_unknown: false,
            refusal: None,
            skipped: Vec::new(),
        }
    }

    fn take(&mut self, outcome: PartOutcome) {
        self.parts_left -= 1;
        match outcome {
            PartOutcome::Stored { skipped } => {
                self.is_stored = true;
                self.skipped.extend(skipped);
            }
            PartOutcome::Refused { code, retry_after_ms, skipped } => {
                self.skipped.extend(skipped);
                let worse = self.refusal.is_none_or(|(known, _)| rank(code) > rank(known));
                if worse {
                    self.refusal = Some((code, retry_after_ms));
                }
            }
            PartOutcome::Unknown => self.is_unknown = true,
        }
    }

    /// `None`: nobody knows.
    fn outcome(&mut self) -> Option<Outcome> {
        if self.is_unknown {
            return None;
        }
        if self.is_stored {
            let mut skipped = std::mem::take(&mut self.skipped);
            skipped.sort_unstable(); // the shards answer in any order
            skipped.truncate(SKIPPED_DEVICES_MAX);
            return Some(Outcome::Accepted { server_time_ms: self.sent_at_ms, skipped });
        }
        let (code, retry_after_ms) = self.refusal.expect("a part is stored, refused or unknown");
        Some(rejected(code, retry_after_ms))
    }
}

/// Of several refusals the one that says most: what passes before what does not, as a Send that is
/// tried again may be stored by those who have only no room now.
fn rank(code: RejectCode) -> u8 {
    match code {
        RejectCode::MailboxFull => 4,
        RejectCode::SenderShare => 3,
        code if code.is_retryable() => 2,
        _ => 1,
    }
}

impl<R: Ring> Shard<R> {
    /// Sends the parts; there is room for all of them.
    pub(super) fn fan_out(&mut self, send: GroupSend, known: &Known) {
        let (send, sent_at_ms) = (Arc::new(send), self.time.unix_ms);
        let home = self.home.as_mut().expect("groups live at home shards");
        let fanout = Fanout::new(Arc::clone(&send), sent_at_ms, known.parts.len());
        let id = u32::try_from(home.fanouts.0.insert(fanout)).expect("bounded by the credits");
        self.metrics.group_sends += 1;
        for (shard, members) in &known.parts {
            let part = Box::new(GroupPart {
                home: self.id,
                fanout: id,
                send: Arc::clone(&send),
                sent_at_ms,
                members: Arc::clone(members),
                is_whole: known.parts.len() == 1,
            });
            if *shard == self.id {
                self.handle_part(part);
            } else {
                let reserved = self.mesh.reserve(*shard);
                assert!(reserved.is_ok(), "room was checked");
                self.push_mesh(*shard, MeshMessage::Part(part));
            }
        }
    }

    /// One part is stored, refused or lost.
    pub(super) fn part_done(&mut self, reply: PartReply) {
        let home = self.home.as_mut().expect("groups live at home shards");
        let Some(mut fanout) = home.fanouts.take(reply) else { return };
        if fanout.skipped.len() > SKIPPED_DEVICES_MAX {
            self.metrics.bound_hits.add(Bound::SkippedDevices);
        }
        let outcome = fanout.outcome();
        self.answer_group_send(&fanout.send, outcome);
    }

    /// Tells the sender's home. `None`: nobody knows what became of it.
    pub(super) fn answer_group_send(&mut self, send: &GroupSend, outcome: Option<Outcome>) {
        let (origin, to) = (send.origin, Recipient::Group(send.group.clone()));
        match outcome {
            Some(outcome) => self.reply(StoreReply { origin, to, outcome, list: None }),
            None => self.outcome_unknown(origin, to),
        }
    }

    /// Tells the group's home.
    pub(super) fn reply_part(&mut self, home: u16, reply: PartReply) {
        if home == self.id {
            self.part_done(reply);
        } else {
            self.push_mesh(home, MeshMessage::PartDone(Box::new(reply)));
        }
    }
}

#[cfg(test)]
mod tests {
    use ringpost_protocol::id::{InstallId, SendSeq};

    use super::*;
    use crate::shard::message::DeviceIndex;

    fn outcome(parts: Vec<PartOutcome>) -> Option<Outcome> {
        let (user, device) = (UserId::new("eve").unwrap(), DeviceId::new("d").unwrap());
        let origin = Origin {
            shard: 0,
            device: DeviceIndex(0),
            install_id: InstallId(1),
            send_seq: SendSeq(1),
        };
        let send = GroupSend {
            origin,
            from: DeviceAddress { user: user.clone(), device },
            group: user,
            roster_version: 0,
            message_number: MessageNumber(1),
            envelope: Bytes::new(),
            ttl_ms: 1,
            urgent: false,
        };
        let mut fanouts = Fanouts::default();
        let fanout = Fanout::new(Arc::new(send), 7, parts.len());
        let fanout = u32::try_from(fanouts.0.insert(fanout)).unwrap();
        let mut done: Vec<_> = parts
            .into_iter()
            .filter_map(|outcome| fanouts.take(PartReply { fanout, outcome }))
            .collect();
        assert_eq!((done.len(), fanouts.len()), (1, 0), "it ends with its last part");
        done[0].outcome()
    }

    fn skipped(names: &[&str]) -> Skipped {
        let name = |name: &&str| {
            (UserId::new(name).unwrap(), DeviceId::new("d").unwrap(), SkipReason::Full)
        };
        names.iter().map(name).collect()
    }

    fn refused(code: RejectCode, names: &[&str]) -> PartOutcome {
        let retry_after_ms = code.is_retryable().then_some(5);
        PartOutcome::Refused { code, retry_after_ms, skipped: skipped(names) }
    }

    #[test]
    fn one_stored_part_is_enough_and_who_has_nothing_is_named() {
        let stored = |names| PartOutcome::Stored { skipped: skipped(names) };
        let full = refused(RejectCode::MailboxFull, &["a"]);
        let nobody = refused(RejectCode::UnknownRecipient, &[]);
        let accepted = Some(Outcome::Accepted { server_time_ms: 7, skipped: skipped(&["a", "b"]) });
        assert_eq!(outcome(vec![stored(&["b"]), full, nobody]), accepted);
    }

    #[test]
    fn nothing_is_accepted_when_one_part_is_unknown() {
        let stored = PartOutcome::Stored { skipped: Vec::new() };
        assert_eq!(outcome(vec![PartOutcome::Unknown, stored]), None);
        assert_eq!(outcome(vec![refused(RejectCode::Overloaded, &[]), PartOutcome::Unknown]), None);
    }

    #[test]
    fn a_refusal_that_passes_counts_more_than_one_that_does_not() {
        use RejectCode::{MailboxFull, SenderShare, StorageFull, UnknownRecipient};
        for (codes, expected) in [
            ([UnknownRecipient, UnknownRecipient], UnknownRecipient),
            ([UnknownRecipient, StorageFull], StorageFull),
            ([SenderShare, StorageFull], SenderShare),
            ([SenderShare, MailboxFull], MailboxFull),
        ] {
            for codes in [codes, [codes[1], codes[0]]] {
                let parts = codes.iter().map(|&code| refused(code, &["a"])).collect();
                let retry_after_ms = expected.is_retryable().then_some(5);
                assert_eq!(outcome(parts), Some(rejected(expected, retry_after_ms)));
            }
        }
    }

    #[test]
    fn no_more_are_named_than_fit_into_a_frame() {
        let names: Vec<String> = (0..SKIPPED_DEVICES_MAX + 9).map(|n| format!("{n:04}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let stored = PartOutcome::Stored { skipped: skipped(&names) };
        let Some(Outcome::Accepted { skipped, .. }) = outcome(vec![stored]) else { panic!() };
        assert_eq!(skipped.len(), SKIPPED_DEVICES_MAX);
    }
}
