//! What was encrypted for devices or members that are not the present ones.
//!
//! With each Send goes the version of the device list, or of the server's roster of the group, that it
//! is for. Until it is answered the text itself is kept as well. If the server knows a newer version,
//! it says so: the list or the roster is fetched, and the text waits in its old place to be encrypted
//! again: of a user, for the devices that did not get it; for a group, which nobody got it of, with a
//! key for those who are members now. It keeps its id, so that nobody is shown it twice.
//!
//! What the server says of a group's members only decides when to send and whom not to send to:
//! nobody gets a key who is not on the roster that the administrator signed.

use std::collections::BTreeSet;

use ringpost_protocol::id::{DeviceAddress, UserId};
use ringpost_protocol::message::Recipient;

use super::desk::Desk;
use super::directory::Wish;
use super::news::Conversation;
use super::outgoing::Stop;
use super::row::{Part, Posted, Row, Waiting};
use crate::e2ee::Roster;
use crate::event::SendId;
use crate::limits::{ROSTER_WAIT_MS_MAX, STALE_TRIES_MAX};

/// In what a Send was out of date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stale {
    /// Some devices have it.
    Devices,
    AllDevices,
    Roster,
}

/// A group as the server has it.
pub(super) struct ServerRoster {
    version: u64,
    /// `None`: it does not tell.
    members: Option<BTreeSet<UserId>>,
    since_ms: u64,
    /// Something may be under way under an earlier version.
    is_new: bool,
}

/// In place of a row, for what is not sent again.
pub(super) const FLEETING: u64 = 0;

impl Desk {
    pub(super) fn note_part(&mut self, id: SendId, posted: u64, device_list_version: u64) {
        if posted == FLEETING {
            return;
        }
        self.parts.insert(id.0, Part { posted, device_list_version });
        self.dirty.insert(Row::Part(id.0));
    }

    /// Its parts were noted before.
    pub(super) fn note_posted(
        &mut self,
        row: u64,
        waiting: Waiting,
        devices: Vec<DeviceAddress>,
        roster_version: u64,
    ) {
        let parts = self.parts.values().rev().take_while(|part| part.posted == row).count();
        if parts > 0 {
            let repeated_for = BTreeSet::new();
            let posted = Posted { waiting, devices, roster_version, repeated_for, parts };
            self.posted.insert(row, posted);
            self.dirty.insert(Row::Posted(row));
        }
    }

    /// After all was read.
    pub(super) fn count_parts(&mut self) {
        for part in self.parts.values() {
            if let Some(posted) = self.posted.get_mut(&part.posted) {
                posted.parts += 1;
            }
        }
    }

    /// The server has answered a Send. True: what was in it waits to be sent again.
    pub(super) fn settle_part(&mut self, id: SendId, to: &Recipient, stale: Option<Stale>) -> bool {
        let Some(part) = self.parts.remove(&id.0) else { return false };
        self.dirty.insert(Row::Part(id.0));
        let row = part.posted;
        let repeated = match (stale, to) {
            (None, _) => None,
            (Some(Stale::Roster), Recipient::User(_)) => None,
            (Some(Stale::Roster), Recipient::Group(group)) => {
                self.wishes.rosters.remove(group);
                self.repeat_for_group(row)
            }
            (Some(stale), Recipient::User(user)) => {
                self.note_old_list(user, part.device_list_version);
                // The app was told that it is sent, unless nobody has it.
                let is_told = stale == Stale::Devices || !self.tracked.contains_key(&id.0);
                self.repeat_for_user(row, user, is_told)
            }
            (Some(_), Recipient::Group(_)) => None,
        };
        if let Some(posted) = self.posted.get_mut(&row) {
            posted.parts = posted.parts.saturating_sub(1);
            if posted.parts == 0 {
                self.posted.remove(&row);
                self.dirty.insert(Row::Posted(row));
            }
        }
        let is_repeated = repeated.is_some();
        if let Some(waiting) = repeated {
            self.wait_again(row, waiting);
        }
        is_repeated
    }

    fn note_old_list(&mut self, user: &UserId, version: u64) {
        // The new one may have come with the answer.
        let known = self.contacts.get(user).map(|known| known.contact.list().version);
        if known.is_some_and(|known| known <= version) {
            self.wishes.note_stale(user, version);
            self.wishes.want(Wish::GetList(user.clone()));
        }
    }

    fn repeat_for_group(&mut self, row: u64) -> Option<Waiting> {
        let waiting = self.posted.get(&row)?.waiting.clone();
        again(waiting)
    }

    /// For the devices that it was not encrypted for.
    fn repeat_for_user(&mut self, row: u64, user: &UserId, is_told: bool) -> Option<Waiting> {
        let posted = self.posted.get_mut(&row)?;
        // Once for all parts.
        if !posted.repeated_for.insert(user.clone()) {
            return None;
        }
        self.dirty.insert(Row::Posted(row));
        let mut waiting = posted.waiting.clone();
        waiting.except.extend(posted.devices.iter().filter(|of| of.user == *user).cloned());
        let to = Conversation::Direct(user.clone());
        waiting.message = waiting.message.filter(|_| !is_told);
        (waiting.to, waiting.is_synced) = (to, false);
        again(waiting)
    }

    /// In its old place, if that is free. More may wait than may be written: all of it was in the
    /// outbox, which is bounded.
    fn wait_again(&mut self, row: u64, waiting: Waiting) {
        let is_taken = self.waiting.contains_key(&row) || self.posted.contains_key(&row);
        let row = if is_taken { self.take_row() } else { row };
        self.waiting_bytes += waiting.payload.len();
        self.waiting.insert(row, waiting);
        self.dirty.insert(Row::Waiting(row));
        self.is_drain_due = true;
    }

    /// 0: the server has no list of this user yet, or not this one.
    pub(super) fn list_version(&self, user: &UserId) -> u64 {
        if user == self.own_user() && !self.own.is_list_published {
            return 0;
        }
        self.contacts.get(user).map_or(0, |known| known.contact.list().version)
    }

    /// The server tells of a change.
    pub(super) fn note_group_changed(&mut self, group: &UserId, version: u64) {
        if self.wishes.rosters.get(group).is_some_and(|roster| roster.version < version) {
            self.wishes.rosters.remove(group);
        }
    }

    pub(super) fn take_server_roster(
        &mut self,
        now_ms: u64,
        group: &UserId,
        version: u64,
        members: Option<BTreeSet<UserId>>,
    ) {
        let roster = ServerRoster { version, members, since_ms: now_ms, is_new: true };
        self.wishes.rosters.insert(group.clone(), roster);
    }

    /// The version to send under, once the signed roster names all whom the server does, or did not
    /// come for a while.
    pub(super) fn agreed_version(
        &mut self,
        now_ms: u64,
        group: &UserId,
        signed: &Roster,
    ) -> Result<u64, Stop> {
        let Some(served) = self.wishes.rosters.get_mut(group) else {
            self.wishes.want(Wish::GetRoster(group.clone()));
            return Err(Stop::NotYet);
        };
        // What was refused goes first, in its old place.
        let is_before = |posted: &Posted| {
            posted.roster_version != 0
                && posted.roster_version != served.version
                && posted.waiting.to == Conversation::Group(group.clone())
        };
        if served.is_new && self.posted.values().any(is_before) {
            return Err(Stop::NotYet);
        }
        served.is_new = false;
        let until_ms = served.since_ms + ROSTER_WAIT_MS_MAX;
        let is_signed = served.members.iter().flatten().all(|user| signed.has(user));
        if !is_signed && now_ms < until_ms {
            self.wishes.roster_waits.insert(group.clone(), until_ms);
            return Err(Stop::NotYet);
        }
        Ok(served.version)
    }

    /// Whether the server still names this member.
    pub(super) fn is_served(&self, group: &UserId, user: &UserId) -> bool {
        let members = self.wishes.rosters.get(group).and_then(|served| served.members.as_ref());
        members.is_none_or(|members| members.contains(user))
    }
}

/// `None`: too often.
fn again(waiting: Waiting) -> Option<Waiting> {
    let tries = waiting.tries + 1;
    (tries < STALE_TRIES_MAX).then_some(Waiting { tries, ..waiting })
}
