//! A group at its home shard: the shard of the slot of its id. It keeps the roster in memory and puts
//! everything that concerns the group into one order: Sends, changes of the roster, questions.
//!
//! What comes first is finished first: a Send waits for the roster to be read, for room at all shards
//! of the members, and for a change in front of it to be durable and installed. So a change that was
//! answered is in force for every Send behind it. What waits is bounded where it comes from: each
//! shard has at most [`GROUP_REQUESTS_MAX`] requests unanswered at another one. They wait for credits
//! of parts, which wait for nothing but a disk, and as they cannot take all credits themselves, no
//! cycle of full queues can form.
//!
//! A device has one Send to a group under way at a time (see `route`), so that neither a refusal nor
//! an unknown outcome can be overtaken by the next.
//!
//! [`GROUP_REQUESTS_MAX`]: crate::limits::GROUP_REQUESTS_MAX

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;
use ringpost_protocol::id::UserId;
use ringpost_protocol::message::{Outcome, RejectCode};
use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::Ring;

use super::Shard;
use super::deposit::rejected;
use super::fanout::GroupSend;
use super::group_call::{BUSY, GroupCall};
use super::lanes::Waiter;
use super::roster::Roster;
use crate::limits::{OVERLOAD_RETRY_MS, ROSTER_MEMBERS_CACHED_MAX};

/// What comes to the home of a group.
pub enum GroupRequest {
    Send(Box<GroupSend>),
    Call(Box<GroupCall>),
}

/// The groups that this shard has in memory.
#[derive(Default)]
pub(super) struct Groups {
    slots: HashMap<UserId, Slot>,
    /// Every group of `slots` once: where a clock hand looks for one that was not used lately.
    clock: VecDeque<UserId>,
    /// Of all slots.
    weight: usize,
}

#[derive(Default)]
pub(super) struct Slot {
    pub(super) state: State,
    /// In the order in which they will be served.
    queue: VecDeque<GroupRequest>,
    /// It stands in a lane.
    waits_for_room: bool,
    /// Since the clock hand came by.
    was_used: bool,
}

/// What is known of a group.
#[derive(Default)]
pub(super) enum State {
    #[default]
    Unread,
    /// The directory has been asked.
    Reading,
    /// `None`: there is no such group.
    Known(Option<Arc<Known>>),
    /// The directory makes it durable.
    Writing { call: Box<GroupCall>, before: Option<Arc<Known>>, next: Arc<Known> },
}

/// A roster as it is used.
pub(super) struct Known {
    pub(super) roster: Roster,
    /// The members by their homes, in the order of the shards.
    pub(super) parts: Vec<(u16, Arc<[UserId]>)>,
}

impl GroupRequest {
    pub(super) fn group(&self) -> &UserId {
        match self {
            Self::Send(send) => &send.group,
            Self::Call(call) => &call.group,
        }
    }
}

impl State {
    fn weight(&self) -> usize {
        let members = |known: &Arc<Known>| known.roster.members.len();
        1 + match self {
            Self::Unread | Self::Reading => 0,
            Self::Known(known) => known.as_ref().map_or(0, members),
            Self::Writing { before, next, .. } => {
                before.as_ref().unwrap_or(next).roster.members.len()
            }
        }
    }

    /// Whether it can be read again.
    fn is_at_rest(&self) -> bool {
        matches!(self, Self::Unread | Self::Known(_))
    }
}

impl Groups {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn slot(&mut self, group: &UserId) -> Option<&mut Slot> {
        self.slots.get_mut(group)
    }

    /// Replaces what is known of a group, and gives what was.
    pub(super) fn set(&mut self, group: &UserId, state: State) -> State {
        let slot = self.slots.get_mut(group).expect("it has requests, or is being asked for");
        self.weight += state.weight();
        let before = std::mem::replace(&mut slot.state, state);
        self.weight -= before.weight();
        before
    }

    fn push(&mut self, request: GroupRequest) {
        let group = request.group();
        if !self.slots.contains_key(group) {
            self.slots.insert(group.clone(), Slot::default());
            self.clock.push_back(group.clone());
            self.weight += State::Unread.weight();
        }
        let slot = self.slots.get_mut(group).expect("inserted above");
        slot.was_used = true;
        slot.queue.push_back(request);
    }

    /// Forgets groups that were not used lately and have nothing to do, while there are too many.
    fn trim(&mut self, weight_max: usize) {
        // Twice around: the first time takes the marks away.
        for _ in 0..2 * self.clock.len() {
            if self.weight <= weight_max {
                return;
            }
            let Some(group) = self.clock.pop_front() else { return };
            let slot = self.slots.get_mut(&group).expect("the clock has every group once");
            let is_idle = slot.queue.is_empty() && slot.state.is_at_rest();
            if is_idle && !std::mem::take(&mut slot.was_used) {
                self.weight -= slot.state.weight();
                self.slots.remove(&group);
            } else {
                self.clock.push_back(group);
            }
        }
    }
}

/// Why a Send goes to nobody.
fn refusal(send: &GroupSend, known: Option<&Known>) -> Option<Outcome> {
    let Some(known) = known.filter(|known| !known.roster.members.is_empty()) else {
        return Some(rejected(RejectCode::UnknownRecipient, None));
    };
    if known.roster.member(&send.from.user).is_none() {
        return Some(rejected(RejectCode::NotAMember, None));
    }
    let is_stale = send.roster_version != 0 && send.roster_version != known.roster.version;
    let is_stale = is_stale && !is_active(Mutant::StaleRosterTaken);
    is_stale.then(|| rejected(RejectCode::StaleRoster, None))
}

impl<R: Ring> Shard<R> {
    /// Something for a group whose home this is.
    pub(super) fn handle_group(&mut self, request: GroupRequest) {
        let home = self.home.as_mut().expect("groups live at home shards");
        let group = request.group().clone();
        home.groups.push(request);
        self.drive_group(&group);
    }

    /// There is room again where it was missing.
    pub(super) fn resume_group(&mut self, group: &UserId) {
        let home = self.home.as_mut().expect("groups live at home shards");
        if let Some(slot) = home.groups.slot(group) {
            slot.waits_for_room = false;
        }
        self.drive_group(group);
    }

    /// Serves what waits, until something must be waited for.
    pub(super) fn drive_group(&mut self, group: &UserId) {
        loop {
            let home = self.home.as_mut().expect("groups live at home shards");
            let Some(slot) = home.groups.slot(group) else { return };
            if slot.waits_for_room || slot.queue.is_empty() {
                break;
            }
            let known = match &slot.state {
                State::Unread => return self.read_roster(group),
                State::Reading | State::Writing { .. } => return,
                State::Known(known) => known.clone(),
            };
            if !self.serve_next(group, known) {
                return;
            }
        }
        let home = self.home.as_mut().expect("groups live at home shards");
        home.groups.trim(ROSTER_MEMBERS_CACHED_MAX);
    }

    /// False: it must wait for room.
    fn serve_next(&mut self, group: &UserId, known: Option<Arc<Known>>) -> bool {
        let home = self.home.as_mut().expect("groups live at home shards");
        let slot = home.groups.slot(group).expect("the caller has it");
        let send = match slot.queue.pop_front().expect("checked by the caller") {
            GroupRequest::Send(send) => send,
            GroupRequest::Call(call) => {
                self.serve_call(call, known);
                return true;
            }
        };
        if let Some(refusal) = refusal(&send, known.as_deref()) {
            self.answer_group_send(&send, Some(refusal));
            return true;
        }
        let known = known.expect("else it would be refused");
        let mut parts = known.parts.iter();
        if let Some(&(full, _)) = parts.find(|&&(shard, _)| !self.has_room(shard)) {
            let home = self.home.as_mut().expect("groups live at home shards");
            let slot = home.groups.slot(group).expect("the caller has it");
            slot.queue.push_front(GroupRequest::Send(send));
            slot.waits_for_room = true;
            self.wait_for_room(full, Waiter::Group(group.clone()));
            return false;
        }
        self.fan_out(*send, &known);
        true
    }

    /// The directory has answered; `None`: there is no such group.
    pub(super) fn roster_read(&mut self, group: &UserId, roster: Option<Roster>) {
        let known = roster.map(|roster| Arc::new(self.known(roster)));
        let home = self.home.as_mut().expect("groups live at home shards");
        home.groups.set(group, State::Known(known));
        self.drive_group(group);
    }

    /// The directory cannot be asked, or knows no answer: what waits is turned away.
    pub(super) fn roster_unread(&mut self, group: &UserId) {
        let home = self.home.as_mut().expect("groups live at home shards");
        home.groups.set(group, State::Unread);
        let slot = home.groups.slot(group).expect("it is being asked for");
        for request in std::mem::take(&mut slot.queue) {
            match request {
                GroupRequest::Send(send) => {
                    let refusal = rejected(RejectCode::Overloaded, Some(OVERLOAD_RETRY_MS));
                    self.answer_group_send(&send, Some(refusal));
                }
                GroupRequest::Call(call) => self.answer_call(&call, Err(BUSY)),
            }
        }
        // Who names groups that do not exist leaves nothing behind, also while nobody can tell.
        let home = self.home.as_mut().expect("groups live at home shards");
        home.groups.trim(ROSTER_MEMBERS_CACHED_MAX);
    }

    pub(super) fn known(&self, roster: Roster) -> Known {
        let parts = roster.parts(|user| self.home_of(user));
        Known { roster, parts }
    }

    /// What a group is served by once a change is durable.
    pub(super) fn installed(&self, before: Option<&Arc<Known>>, next: &Arc<Known>) -> Arc<Known> {
        match before {
            Some(before) if is_active(Mutant::RemovedMemberServed) => {
                let (roster, parts) = (next.roster.clone(), before.parts.clone());
                Arc::new(Known { roster, parts })
            }
            _ => Arc::clone(next),
        }
    }
}

#[cfg(test)]
mod tests;
