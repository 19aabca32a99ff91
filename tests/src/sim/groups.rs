//! What must hold of messages to groups: who gets them, why one is refused, and one order for all.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use ringpost_client::SendId;
use ringpost_engine::directory::Roster;
use ringpost_protocol::id::UserId;
use ringpost_protocol::message::RejectCode;
use ringpost_protocol::wire::{self, client_frame::Frame, send};

use super::fate::{Fate, Sending};
use super::oracle::{MessageIndex, Oracle, index_of};

/// What each client was told of a group, in that order.
pub type Told = BTreeMap<UserId, BTreeMap<usize, Vec<MessageIndex>>>;

impl Oracle {
    /// The app of `from` has sent a message to a group, for a version of its roster or any. It is
    /// owed to all who are members then.
    pub fn sent_to_group(
        &mut self,
        from: usize,
        (group, roster_version): (UserId, u64),
        id: SendId,
        sending: Sending,
    ) {
        let roster = match roster_version {
            0 => self.registry.newest(&group),
            version => self.registry.roster(&group, version),
        };
        let is_owed = |&client: &usize| {
            client != from
                && roster.is_some_and(|roster| roster.members.contains(&self.devices[client].user))
        };
        let named: Vec<usize> = (0..self.devices.len()).filter(is_owed).collect();
        self.sent(from, &named, id, sending);
        let fate = self.messages.last_mut().expect("sent above");
        (fate.group, fate.roster_version) = (Some(group), roster_version);
        self.reached.group_sends += 1;
    }

    /// A connection sends frames; those with messages to groups get the version of the roster that
    /// they are meant for, which the library leaves out.
    pub fn transmitted(&mut self, frames: Vec<u8>) -> Vec<u8> {
        let mut out = Vec::with_capacity(frames.len());
        let mut rest = &frames[..];
        while !rest.is_empty() {
            let mut body = rest;
            let length = prost::decode_length_delimiter(&mut body).expect("our own frame");
            let whole = rest.len() - body.len() + length;
            let (frame, behind) = rest.split_at(whole);
            rest = behind;
            if body.first() != Some(&SEND_TAG) {
                out.extend_from_slice(frame);
                continue;
            }
            let mut decoded = wire::ClientFrame::decode(&body[..length]).expect("our own frame");
            if let Some(Frame::Send(wire::Send {
                to: Some(send::To::Group(_)),
                body: Some(send::Body::Shared(envelope)),
                roster_version,
                ..
            })) = &mut decoded.frame
            {
                let message = index_of(envelope).expect("an envelope of ours");
                let fate = &mut self.messages[message];
                fate.transmitted += 1;
                *roster_version = fate.roster_version;
            }
            decoded.encode_length_delimited(&mut out).expect("a Vec grows");
        }
        out
    }

    /// Who is owed a message that was accepted: who was a member all the time in which it can have
    /// got its place; or of the version that it was meant for, which must have been in force then.
    pub(super) fn group_accepted(&mut self, message: MessageIndex, now_ns: u64) {
        let fate = &mut self.messages[message];
        let Some(group) = &fate.group else { return };
        let states = self.registry.in_force(group, fate.sent_ns, now_ns);
        let version = fate.roster_version;
        if version == 0 {
            let is_member = |user: &UserId| {
                let mut rosters = states.iter().map(|(_, roster)| *roster);
                rosters.all(|roster| roster.is_some_and(|roster| roster.members.contains(user)))
            };
            fate.owed.retain(|&client| is_member(&self.devices[client].user));
        }
        let is_in_force = version == 0 || states.iter().any(|&(other, _)| other == version);
        self.require(is_in_force, || {
            format!("message {message} was accepted for version {version}, not in force then")
        });
    }

    /// A client was brought a message of a group: it must have been a member at some time at which it
    /// can have got its place.
    pub(super) fn group_delivered(
        &mut self,
        client: usize,
        message: MessageIndex,
        group: Option<&UserId>,
        now_ns: u64,
    ) {
        let fate = &self.messages[message];
        let is_same = fate.group.as_ref() == group;
        let user = &self.devices[client].user;
        let has = |roster: &Roster| roster.members.contains(user);
        let is_member = group.is_none_or(|group| {
            let until_ns = if fate.accepted_ns > 0 { fate.accepted_ns } else { now_ns };
            let states = self.registry.in_force(group, fate.sent_ns, until_ns);
            states.iter().any(|&(version, roster)| {
                roster.is_some_and(has) && [0, version].contains(&fate.roster_version)
            })
        });
        self.require(is_same && is_member, || {
            format!("client {client} was brought message {message} of {group:?}, not a member then")
        });
    }

    pub(super) fn group_refused(&mut self, message: MessageIndex, code: RejectCode, now_ns: u64) {
        self.forget_unlisted(message, now_ns);
        let fate = &self.messages[message];
        let Some(group) = &fate.group else { return };
        let states = self.registry.in_force(group, fate.sent_ns, now_ns);
        let mut rosters = states.iter().filter_map(|&(version, roster)| Some((version, roster?)));
        let from = &self.devices[fate.from].user;
        let is_right = match code {
            // No group; or nobody in it has another device that is known.
            RejectCode::UnknownRecipient => states.iter().any(|(_, roster)| {
                roster.is_none_or(|roster| {
                    let mut owed = fate.owed.iter();
                    let is_excused = |client: &usize| self.excused.contains_key(client);
                    owed.all(|client| {
                        is_excused(client) || !roster.members.contains(&self.devices[*client].user)
                    })
                })
            }),
            RejectCode::NotAMember => rosters.any(|(_, roster)| !roster.members.contains(from)),
            RejectCode::StaleRoster => {
                let version = fate.roster_version;
                version != 0 && rosters.any(|(other, _)| other != version)
            }
            _ => false,
        };
        match code {
            RejectCode::NotAMember => self.reached.sends_of_strangers += 1,
            RejectCode::StaleRoster => self.reached.sends_stale += 1,
            _ => {}
        }
        self.require(is_right, || format!("message {message} to a group was refused: {code:?}"));
    }

    /// All who were told some messages of a group were told them in one order. Left out are those
    /// that were sent twice: the first time may have been stored for some, and the second for others.
    pub fn check_orders(&mut self) {
        let orders = std::mem::take(&mut self.orders);
        for (group, told) in &orders {
            let mut times: BTreeMap<MessageIndex, u64> = BTreeMap::new();
            let mut behind: BTreeMap<MessageIndex, BTreeSet<MessageIndex>> = BTreeMap::new();
            for told in told.values() {
                let mut before = None;
                for &message in told.iter().filter(|&&told| is_steady(&self.messages[told])) {
                    *times.entry(message).or_default() += 1;
                    if let Some(before) = before.replace(message) {
                        behind.entry(before).or_default().insert(message);
                    }
                }
            }
            self.reached.group_orders_compared +=
                times.values().filter(|&&times| times > 1).count() as u64;
            let circle = circle(times.keys().copied().collect(), &behind);
            self.require(circle.is_empty(), || {
                format!("{group:?} has no one order of the messages {circle:?}")
            });
        }
        self.orders = orders;
    }
}

fn is_steady(fate: &Fate) -> bool {
    fate.transmitted == 1 && fate.outcome == Some(Ok(()))
}

/// What is left when messages that nothing else comes before are taken away again and again.
fn circle(
    mut left: BTreeSet<MessageIndex>,
    behind: &BTreeMap<MessageIndex, BTreeSet<MessageIndex>>,
) -> BTreeSet<MessageIndex> {
    let mut before: BTreeMap<MessageIndex, usize> = BTreeMap::new();
    for &message in behind.values().flatten() {
        *before.entry(message).or_default() += 1;
    }
    let mut free: Vec<MessageIndex> =
        left.iter().copied().filter(|message| !before.contains_key(message)).collect();
    while let Some(message) = free.pop() {
        left.remove(&message);
        for next in behind.get(&message).into_iter().flatten() {
            let count = before.get_mut(next).expect("counted above");
            *count -= 1;
            if *count == 0 {
                free.push(*next);
            }
        }
    }
    left
}

/// Of the field of a Send in a frame.
const SEND_TAG: u8 = 2 << 3 | 2;
