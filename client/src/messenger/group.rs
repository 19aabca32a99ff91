//! Groups: the server fans out, the members' devices know who is a member.
//!
//! The administrator asks the server first, then signs the next roster and sends it to all members
//! over the sessions with their devices; so the server's list is only a list of mailboxes. Whoever
//! makes a group is its administrator. A member who leaves says so to the others, and the
//! administrator signs the roster without it.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_protocol::id::{DeviceAddress, UserId};
use ringpost_protocol::message::{Recipient, SendBody};

use super::desk::Desk;
use super::directory::Wish;
use super::incoming::Outcome;
use super::news::{Conversation, News};
use super::outgoing::{ENVELOPE_ADDED_BYTES, Stop, WriteFault, enqueue};
use super::row::{Group, Held, Row, Step, Waiting};
use crate::e2ee::clock::Stamp;
use crate::e2ee::group::Plan;
use crate::e2ee::roster::{Member, Members};
use crate::e2ee::{Content, Fault, GroupSender, MemberDevice, Opened, Payload, Roster};
use crate::event::SendOptions;
use crate::ledger::Ledger;
use crate::limits::{
    GROUP_MEMBERS_MAX, GROUPS_MAX, GROUPS_OF_OTHERS_MAX, GROUPS_PER_VOUCHER_MAX,
    LEFT_GROUPS_REMEMBERED_MAX,
};

impl Desk {
    pub(crate) fn create_group(
        &mut self,
        id: &UserId,
        members: Vec<UserId>,
    ) -> Result<(), WriteFault> {
        if self.groups.len() >= GROUPS_MAX {
            return Err(WriteFault::QueueFull);
        }
        check_size(members.len() + 1)?;
        let group = Group { is_member: true, ..Group::default() };
        self.groups.entry(id.clone()).or_insert(group);
        self.step(id, Step::Create(members))
    }

    pub(crate) fn add_members(
        &mut self,
        id: &UserId,
        users: Vec<UserId>,
    ) -> Result<(), WriteFault> {
        let roster = self.administrated(id)?;
        check_size(roster.members().members.len() + users.len())?;
        self.step(id, Step::Add(users))
    }

    pub(crate) fn remove_members(
        &mut self,
        id: &UserId,
        users: Vec<UserId>,
    ) -> Result<(), WriteFault> {
        self.administrated(id)?;
        self.step(id, Step::Remove(users))
    }

    pub(crate) fn leave_group(&mut self, id: &UserId) -> Result<(), WriteFault> {
        self.step(id, Step::Leave)
    }

    /// Ids of the members, as the administrator signed them.
    pub(crate) fn members(&self, id: &UserId) -> Option<Vec<UserId>> {
        let roster = self.groups.get(id)?.roster.as_ref()?;
        Some(roster.members().members.keys().cloned().collect())
    }

    fn administrated(&self, id: &UserId) -> Result<&Roster, WriteFault> {
        let roster = self.groups.get(id).and_then(|group| group.roster.as_ref());
        let roster = roster.ok_or(WriteFault::UnknownGroup)?;
        match roster.members().members.get(self.own_user()) {
            Some(own) if own.is_admin => Ok(roster),
            _ => Err(Fault::NotMember.into()),
        }
    }

    fn step(&mut self, id: &UserId, step: Step) -> Result<(), WriteFault> {
        let group = self.groups.get_mut(id).ok_or(WriteFault::UnknownGroup)?;
        group.steps.push_back(step);
        self.dirty.insert(Row::Group(id.clone()));
        self.wishes.want(Wish::Group(id.clone()));
        Ok(())
    }

    /// The next step, once all whom it adds are known: their identities go into the roster.
    pub(super) fn ready_step(&mut self, id: &UserId) -> Option<Step> {
        let step = self.groups.get(id)?.steps.front()?.clone();
        let added = match &step {
            Step::Create(users) | Step::Add(users) => users.as_slice(),
            Step::Remove(_) | Step::Leave => &[],
        };
        let mut is_ready = true;
        for user in added {
            if !self.contacts.contains_key(user) {
                self.wishes.want(Wish::GetList(user.clone()));
                is_ready = false;
            }
        }
        is_ready.then_some(step)
    }

    /// The server has done it. False: there is no room to tell the members yet.
    pub(super) fn finish_step(
        &mut self,
        now_ms: u64,
        ledger: &mut Ledger,
        id: &UserId,
        step: &Step,
    ) -> bool {
        let done = match step {
            Step::Create(users) | Step::Add(users) => {
                self.sign_next(now_ms, ledger, id, users, &[])
            }
            Step::Remove(users) => self.sign_next(now_ms, ledger, id, &[], users),
            Step::Leave => self.say_left(now_ms, ledger, id),
        };
        match done {
            Err(WriteFault::QueueFull) => return false,
            Err(fault) => {
                let (group, reason) = (id.clone(), fault.to_string());
                self.tell(ledger, &News::GroupRefused { group, reason });
            }
            Ok(()) => {}
        }
        self.pop_step(id);
        true
    }

    pub(super) fn refuse_step(&mut self, ledger: &mut Ledger, id: &UserId, reason: String) {
        self.tell(ledger, &News::GroupRefused { group: id.clone(), reason });
        self.pop_step(id);
    }

    fn pop_step(&mut self, id: &UserId) {
        let Some(group) = self.groups.get_mut(id) else { return };
        group.steps.pop_front();
        // It was never made, and will not be: what waits for it is never sent.
        if group.roster.is_none() && group.steps.is_empty() {
            self.groups.remove(id);
        }
        self.dirty.insert(Row::Group(id.clone()));
    }

    /// Signs the roster that follows and sends it to all whom it concerns.
    fn sign_next(
        &mut self,
        now_ms: u64,
        ledger: &mut Ledger,
        id: &UserId,
        add: &[UserId],
        remove: &[UserId],
    ) -> Result<(), WriteFault> {
        let own = self.own_user().clone();
        let group = self.groups.get(id).ok_or(WriteFault::UnknownGroup)?;
        let before = group.roster.as_ref();
        let (version, parent) =
            before.map_or((1, [0; 32]), |roster| (roster.members().version + 1, *roster.hash()));
        let identity = self.own.user.public();
        let mut members = before.map_or_else(
            || BTreeMap::from([(own.clone(), Member { identity, is_admin: true })]),
            |roster| roster.members().members.clone(),
        );
        let mut concerned: BTreeSet<UserId> = members.keys().cloned().collect();
        for user in add {
            let known = self.contacts.get(user).ok_or(Fault::UnknownDevice)?;
            let member = Member { identity: known.contact.identity(), is_admin: *user == own };
            members.entry(user.clone()).or_insert(member);
        }
        members.retain(|user, _| !remove.contains(user));
        concerned.extend(members.keys().cloned());
        let next = Members { group: id.clone(), version, parent, members };
        let signed = next.sign(&own, &self.own.user)?;
        // All or none: the next try would sign another one.
        if !self.has_waiting_room(concerned.len(), padded_bytes(signed.len())) {
            return Err(WriteFault::QueueFull);
        }
        self.follow(id, &signed, &own)?;
        for user in concerned {
            let about = Conversation::Group(id.clone());
            self.instruct(now_ms, &user, about, Content::Roster(signed.clone()))?;
        }
        let news = self.group_news(id);
        self.tell(ledger, &news);
        Ok(())
    }

    fn say_left(
        &mut self,
        now_ms: u64,
        ledger: &mut Ledger,
        id: &UserId,
    ) -> Result<(), WriteFault> {
        if !self.has_waiting_room(GROUP_MEMBERS_MAX, padded_bytes(0)) {
            return Err(WriteFault::QueueFull);
        }
        let own = self.own_user().clone();
        for user in self.members(id).unwrap_or_default() {
            if user != own {
                let about = Conversation::Group(id.clone());
                self.instruct(now_ms, &user, about, Content::Left)?;
            }
        }
        let group = self.groups.get_mut(id).ok_or(WriteFault::UnknownGroup)?;
        (group.is_member, group.sender) = (false, None);
        self.dirty.insert(Row::Group(id.clone()));
        let news = self.group_news(id);
        self.tell(ledger, &news);
        Ok(())
    }

    /// Takes a roster that came from `voucher`.
    fn follow(&mut self, id: &UserId, signed: &[u8], voucher: &UserId) -> Result<(), Fault> {
        let identity = self.own.user.public();
        let own = (&self.own.address.user, &identity);
        let known = self.contacts.get(voucher).ok_or(Fault::UnknownDevice)?;
        let voucher = (voucher, &known.contact.identity());
        self.check_group_count(id, voucher.0)?;
        let group = self.groups.get_mut(id);
        match group.and_then(|group| group.roster.as_mut().filter(|_| group.is_member)) {
            Some(roster) => roster.follow(signed)?,
            None => {
                let roster = Roster::join(signed, own, voucher)?;
                if roster.members().group != *id {
                    return Err(Fault::ForgedRoster);
                }
                let by = (voucher.0 != &self.own.address.user).then(|| voucher.0.clone());
                let group = self.groups.entry(id.clone()).or_default();
                (group.roster, group.by) = (Some(roster), by);
                self.own.left.retain(|left| left != id);
                self.dirty.insert(Row::Own);
            }
        }
        self.dirty.insert(Row::Group(id.clone()));
        let group = self.groups.get_mut(id).expect("just put there");
        let roster = group.roster.as_ref().expect("just put there");
        group.is_member = roster.has(&self.own.address.user);
        let now: Vec<UserId> = roster.members().members.keys().cloned().collect();
        let is_gone =
            |(of, device): &&(UserId, DeviceAddress)| of == id && !now.contains(&device.user);
        let gone: Vec<_> = self.receivers.keys().filter(is_gone).cloned().collect();
        for (group, device) in gone {
            self.receivers.remove(&(group.clone(), device.clone()));
            self.dirty.insert(Row::Receiver(group, device));
        }
        self.is_held_due = true;
        self.is_drain_due = true;
        Ok(())
    }

    /// Nobody fills the memory by putting us into groups.
    fn check_group_count(&self, id: &UserId, voucher: &UserId) -> Result<(), Fault> {
        if self.groups.contains_key(id) {
            return Ok(());
        }
        let of_voucher =
            self.groups.values().filter(|group| group.by.as_ref() == Some(voucher)).count();
        let of_others = self.groups.values().filter(|group| group.by.is_some()).count();
        let is_full = self.groups.len() >= GROUPS_MAX
            || voucher != self.own_user()
                && (of_others >= GROUPS_OF_OTHERS_MAX || of_voucher >= GROUPS_PER_VOUCHER_MAX);
        if is_full { Err(Fault::TooManyGroups) } else { Ok(()) }
    }

    /// Groups that we are not in any more go once nothing of theirs is to be read or sent.
    pub(super) fn forget_left(&mut self) {
        let is_over = |(id, group): &(&UserId, &Group)| {
            let is_left = !group.is_member && group.roster.is_some() && group.steps.is_empty();
            let is_to = |to: &Conversation| matches!(to, Conversation::Group(to) if to == *id);
            is_left
                && self.held.values().all(|held| held.group.as_ref() != Some(*id))
                && self.waiting.values().all(|waiting| !is_to(&waiting.to))
        };
        let over: Vec<UserId> =
            self.groups.iter().filter(is_over).map(|(id, _)| id.clone()).collect();
        for id in over {
            self.groups.remove(&id);
            let of_group = self.receivers.keys().filter(|(group, _)| *group == id);
            for (group, device) in of_group.cloned().collect::<Vec<_>>() {
                self.receivers.remove(&(group.clone(), device.clone()));
                self.dirty.insert(Row::Receiver(group, device));
            }
            let conversation = Conversation::Group(id.clone());
            self.clocks.remove(&conversation);
            self.wishes.rosters.remove(&id);
            self.dirty.extend([Row::Group(id.clone()), Row::Clock(conversation), Row::Own]);
            self.own.left.push_back(id);
            if self.own.left.len() > LEFT_GROUPS_REMEMBERED_MAX {
                self.own.left.pop_front();
            }
        }
    }

    pub(super) fn has_left(&self, id: &UserId) -> bool {
        self.own.left.contains(id)
    }

    fn group_news(&self, id: &UserId) -> News {
        let is_member = self.groups.get(id).is_some_and(|group| group.is_member);
        News::Group { group: id.clone(), members: self.members(id).unwrap_or_default(), is_member }
    }

    /// Encrypts for the group, after its key went to every device that lacks it.
    pub(super) fn post_group(
        &mut self,
        now_ms: u64,
        ledger: &mut Ledger,
        id: &UserId,
        row: u64,
        waiting: &Waiting,
    ) -> Result<(), Stop> {
        let group = self.groups.get(id).ok_or(Stop::Never(Fault::NotMember))?;
        if !group.is_member {
            return Err(Stop::Never(Fault::NotMember));
        }
        let Some(roster) = group.roster.clone() else { return Err(Stop::NotYet) };
        if !group.steps.is_empty() {
            return Err(Stop::NotYet);
        }
        let roster_version = self.agreed_version(now_ms, id, &roster)?;
        let devices = self.group_devices(now_ms, &roster)?;
        let group = self.groups.get_mut(id).expect("looked at above");
        let mut sender = group.sender.take().unwrap_or_else(|| GroupSender::new(&roster, now_ms));
        let mut plan = sender.plan(&roster, &devices, now_ms).map_err(Stop::Never)?;
        if plan == Plan::Rotate {
            sender = GroupSender::new(&roster, now_ms);
            plan = sender.plan(&roster, &devices, now_ms).map_err(Stop::Never)?;
        }
        let Plan::Distribute(to) = plan else { unreachable!("a new key is not used up") };
        let key = Payload {
            conversation: Conversation::Group(id.clone()),
            stamp: Stamp { id: rand::random(), time: 0, after: Vec::new() },
            written_ms: now_ms,
            content: Content::GroupKey(sender.distribution(id)),
        };
        let key = key.encode().map_err(Stop::Never)?;
        let added = |payload: usize| payload + ENVELOPE_ADDED_BYTES;
        let bytes = to.len() * added(key.len()) + added(waiting.payload.len());
        if !ledger.has_room(to.len() + 1, bytes) {
            group.sender = Some(sender);
            return Err(Stop::NotYet);
        }
        let addresses: Vec<_> = to.iter().map(|device| device.party().address.clone()).collect();
        if !addresses.is_empty() {
            let key = Waiting { payload: key, message: None, is_synced: false, ..waiting.clone() };
            let key_row = self.take_row();
            self.post_to(ledger, &addresses, key_row, &key)?;
        }
        sender.distributed(&to);
        let envelope = sender.encrypt(&roster, &waiting.payload, now_ms).map_err(Stop::Never)?;
        let body = SendBody::Shared(envelope.into());
        let options = SendOptions { roster_version, ..SendOptions::default() };
        let send = enqueue(ledger, Recipient::Group(id.clone()), body, options);
        self.note_part(send, row, 0);
        self.note_posted(row, waiting.clone(), Vec::new(), roster_version);
        self.track(send, waiting.message.map(|message| (message, waiting.to.clone())));
        self.groups.get_mut(id).expect("looked at above").sender = Some(sender);
        self.dirty.insert(Row::Group(id.clone()));
        Ok(())
    }

    /// All devices of all members but this one that can be given the key. One whose user has another
    /// identity than the roster says gets nothing.
    fn group_devices(
        &mut self,
        now_ms: u64,
        roster: &Roster,
    ) -> Result<BTreeSet<MemberDevice>, Stop> {
        let mut devices = BTreeSet::new();
        let mut is_ready = true;
        for user in roster.members().members.keys() {
            // The server has taken it out, and its administrator is about to sign that.
            if !self.is_served(&roster.members().group, user) {
                continue;
            }
            let is_changed =
                self.contacts.get(user).is_some_and(|known| known.stored.offered.is_some());
            if is_changed {
                continue;
            }
            // All are asked for at once.
            let Ok(partners) = self.partners(now_ms, user) else {
                is_ready = false;
                continue;
            };
            for address in partners {
                let known = self.contacts.get(user).expect("it has partners");
                let device = known.contact.member(&address.device).map_err(Stop::Never)?;
                if roster.admits(&device).is_ok() {
                    devices.insert(device);
                }
            }
        }
        if is_ready { Ok(devices) } else { Err(Stop::NotYet) }
    }

    pub(super) fn open_group(&mut self, held: &Held) -> Result<Opened, Fault> {
        let id = held.group.as_ref().ok_or(Fault::NotMember)?;
        let group = self.groups.get(id).ok_or(Fault::NotMember)?;
        let roster = group.roster.as_ref().ok_or(Fault::NotMember)?;
        let known = self.contacts.get(&held.from.user).ok_or(Fault::UnknownDevice)?;
        let device = known.contact.member(&held.from.device)?;
        roster.admits(&device)?;
        let key = (id.clone(), held.from.clone());
        let receiver = self.receivers.get_mut(&key).ok_or(Fault::NoSenderKey)?;
        let opened = receiver.decrypt(&device, roster, &held.bytes)?;
        self.dirty.insert(Row::Receiver(key.0, key.1));
        Ok(opened)
    }

    pub(super) fn take_group_key(
        &mut self,
        held: Held,
        conversation: &Conversation,
        key: &[u8],
    ) -> Outcome {
        let Conversation::Group(id) = conversation else { return Outcome::Refuse(Fault::Altered) };
        if self.has_left(id) {
            return Outcome::Done(None);
        }
        let Some(roster) = self.groups.get(id).and_then(|group| group.roster.as_ref()) else {
            return Outcome::Hold(held, Fault::NotMember);
        };
        let known = self.contacts.get(&held.from.user);
        let device = match known.map(|known| known.contact.member(&held.from.device)) {
            Some(Ok(device)) => device,
            Some(Err(fault)) => return Outcome::Refuse(fault),
            None => return Outcome::Refuse(Fault::UnknownDevice),
        };
        let place = (id.clone(), held.from.clone());
        let receiver = self.receivers.entry(place.clone()).or_default();
        match receiver.accept(&device, roster, key) {
            Ok(()) => {
                self.dirty.insert(Row::Receiver(place.0, place.1));
                self.is_held_due = true;
                Outcome::Done(None)
            }
            // Of a roster that is under way.
            Err(fault @ Fault::RosterBehind { .. }) => Outcome::Hold(held, fault),
            // Sent before its sender knew that it is out. What it then wrote the server has refused,
            // so nothing is missed; what it had written before came in front of the roster.
            Err(Fault::NotMember) => Outcome::Done(None),
            Err(fault) => Outcome::Refuse(fault),
        }
    }

    pub(super) fn take_roster(
        &mut self,
        held: Held,
        conversation: &Conversation,
        signed: &[u8],
    ) -> Outcome {
        let Conversation::Group(id) = conversation else { return Outcome::Refuse(Fault::Altered) };
        let before = self.groups.get(id).and_then(|group| group.roster.clone());
        match self.follow(id, signed, &held.from.user) {
            Ok(()) => {
                let now = self.groups.get(id).and_then(|group| group.roster.as_ref());
                let is_new = now != before.as_ref();
                Outcome::Done(is_new.then(|| self.group_news(id)))
            }
            // One before it is under way.
            Err(fault @ Fault::RosterForked) => Outcome::Hold(held, fault),
            Err(Fault::RosterRolledBack { .. }) => Outcome::Done(None),
            Err(fault) => Outcome::Refuse(fault),
        }
    }

    /// A member goes; the administrator's device signs the list without it.
    pub(super) fn note_left(&mut self, conversation: &Conversation, user: &UserId) -> Outcome {
        let Conversation::Group(id) = conversation else { return Outcome::Refuse(Fault::Altered) };
        let is_member = self.members(id).is_some_and(|members| members.contains(user));
        if is_member && self.administrated(id).is_ok() {
            // The server knows already, and does not mind being asked.
            if self.step(id, Step::Remove(vec![user.clone()])).is_err() {
                return Outcome::Refuse(Fault::NotMember);
            }
        }
        Outcome::Done(None)
    }
}

/// More than a payload with so many bytes of content takes.
fn padded_bytes(bytes: usize) -> usize {
    2 * bytes + 1_024
}

fn check_size(members: usize) -> Result<(), Fault> {
    match members > GROUP_MEMBERS_MAX {
        true => Err(Fault::TooLong { bytes: members, bytes_max: GROUP_MEMBERS_MAX }),
        false => Ok(()),
    }
}
