//! What the messenger wants of the server's directory, and what it makes of the answers.
//!
//! Wishes follow from the state, so none is stored: what waits for keys wants them again after a
//! restart. A wish that failed is put off, longer each time.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};

use super::desk::Desk;
use super::news::{Conversation, News};
use super::posted::ServerRoster;
use super::row::{Row, Step};
use crate::e2ee::prekey::Pending;
use crate::e2ee::{Bundle, Content, Fault, PairState, PublicIdentity};
use crate::ledger::Ledger;
use crate::limits::{
    CONTACTS_MAX, DIRECTORY_RETRY_MS_MAX, DIRECTORY_RETRY_MS_MIN, ONE_TIME_PREKEYS_TARGET,
    RENEW_MS_MIN,
};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wish {
    CountKeys,
    PublishKeys,
    PutList,
    GetList(UserId),
    FetchKeys(UserId, Vec<DeviceId>),
    /// The server's roster of a group.
    GetRoster(UserId),
    /// The next step of a group.
    Group(UserId),
}

/// A wish with what it takes. All of it is durable when it is handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    CountKeys,
    PublishKeys { identity: PublicIdentity, keys: Pending },
    PutList { version: u64, devices: Vec<DeviceId>, signed: Vec<u8> },
    GetList(UserId),
    FetchKeys(UserId, Vec<DeviceId>),
    GetRoster(UserId),
    Group(UserId, Step),
}

/// What the directory answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    KeyCount(u32),
    /// `None`: the user has none yet.
    List(Option<Vec<u8>>),
    Bundles(Vec<(DeviceId, Result<Bundle, Fault>)>),
    /// Version and members.
    Roster(u64, BTreeSet<UserId>),
    /// Another try may go better.
    Failed,
    /// It was refused, in words.
    Refused(String),
}

#[derive(Default)]
pub(super) struct Wishes {
    wanted: BTreeSet<Wish>,
    /// Something was wanted that the errands have not heard of.
    is_fresh: bool,
    /// Not before this time, after so many failures.
    put_off: BTreeMap<Wish, (u64, u32)>,
    /// Devices that had published nothing, and when to ask again.
    keyless: BTreeMap<DeviceAddress, u64>,
    /// Devices with which a session is to be begun anew.
    renew: BTreeSet<DeviceAddress>,
    renewed_ms: BTreeMap<DeviceAddress, u64>,
    /// One-time keys at the server, once it has said.
    server_count: Option<u32>,
    /// Versions of lists that are not the newest.
    stale: BTreeMap<UserId, u64>,
    /// Messages to groups wait for rosters until then.
    pub(super) roster_waits: BTreeMap<UserId, u64>,
    /// Of groups that something was sent to in this run, as the server has them.
    pub(super) rosters: BTreeMap<UserId, ServerRoster>,
    /// Of this run; the same refusal is told once.
    told: BTreeSet<(UserId, String)>,
    /// Read from the database, until the contacts have been.
    pub(super) restored: Vec<(DeviceAddress, PairState)>,
}

impl Wishes {
    pub(super) fn want(&mut self, wish: Wish) {
        self.is_fresh |= self.wanted.insert(wish);
    }

    pub(super) fn renew(&mut self, device: DeviceAddress) {
        self.is_fresh |= self.renew.insert(device);
    }

    pub(super) fn is_keyless(&self, device: &DeviceAddress, now_ms: u64) -> bool {
        self.keyless.get(device).is_some_and(|until_ms| now_ms < *until_ms)
    }

    /// Done: when it is wanted again, the errands hear of it.
    pub(super) fn end(&mut self, wish: &Wish) {
        self.wanted.remove(wish);
        self.put_off.remove(wish);
    }

    /// There is a newer list than this one.
    pub(super) fn note_stale(&mut self, user: &UserId, version: u64) {
        self.stale.insert(user.clone(), version);
    }

    pub(super) fn is_stale(&self, user: &UserId, version: u64) -> bool {
        self.stale.get(user).is_some_and(|stale| version <= *stale)
    }

    /// What the server has was looked up.
    pub(super) fn note_fresh(&mut self, user: &UserId) {
        self.stale.remove(user);
    }

    /// Gives the time before which it is not tried again.
    pub(super) fn put_off(&mut self, wish: &Wish, now_ms: u64) -> u64 {
        let (until_ms, count) = self.put_off.entry(wish.clone()).or_default();
        let wait_ms = (DIRECTORY_RETRY_MS_MIN << (*count).min(20)).min(DIRECTORY_RETRY_MS_MAX);
        (*until_ms, *count) = (now_ms + wait_ms, *count + 1);
        *until_ms
    }

    fn is_due(&self, wish: &Wish, now_ms: u64) -> bool {
        let is_put_off = self.put_off.get(wish).is_some_and(|(until_ms, _)| now_ms < *until_ms);
        !is_put_off
    }
}

impl Desk {
    pub(super) fn wish_at_start(&mut self) {
        self.wishes.want(Wish::CountKeys);
        if !self.own.is_list_published || !self.own.changes.is_empty() {
            self.wishes.want(Wish::PutList);
        }
        for (id, group) in &self.groups {
            if !group.steps.is_empty() {
                self.wishes.want(Wish::Group(id.clone()));
            }
        }
    }

    /// A new connection: what was put off because there was none is due.
    pub(crate) fn handle_connected(&mut self) {
        self.wishes.put_off.clear();
        self.wishes.keyless.clear();
        self.wishes.want(Wish::CountKeys);
        self.wishes.is_fresh = true;
        self.is_drain_due = true;
    }

    /// The server's stock of our one-time keys.
    pub(crate) fn handle_key_count(&mut self, count: u32) {
        self.wishes.server_count = Some(count);
    }

    /// Makes the prekeys that are due and asks for their publication.
    pub(super) fn keep_prekeys(&mut self, now_ms: u64) {
        let count = self.wishes.server_count.unwrap_or(ONE_TIME_PREKEYS_TARGET);
        let (prekeys, rng) = (&mut self.own.keys.prekeys, &mut rand::rng());
        let due = prekeys.upkeep(now_ms, count);
        if due.rotate {
            prekeys.rotate(now_ms, rng);
        }
        if due.expire {
            prekeys.expire(now_ms);
        }
        if due.one_time_count > 0 {
            prekeys.make_one_time(due.one_time_count, rng);
        }
        if due.rotate || due.expire || due.one_time_count > 0 {
            self.dirty.insert(Row::Own);
        }
        if due.publish {
            self.wishes.want(Wish::PublishKeys);
        }
    }

    /// Once for all that was wanted since.
    pub(super) fn take_fresh(&mut self) -> bool {
        std::mem::take(&mut self.wishes.is_fresh)
    }

    /// When something that was put off is due.
    pub(crate) fn errand_at_ms(&self) -> Option<u64> {
        let wishes = &self.wishes;
        let put_off = wishes.put_off.iter().filter(|(wish, _)| wishes.wanted.contains(wish));
        let put_off = put_off.map(|(_, (until_ms, _))| *until_ms);
        let waits = wishes.keyless.values().chain(wishes.roster_waits.values()).copied();
        put_off.chain(waits).min()
    }

    /// The next thing to ask the directory for; answer it with [`Self::handle_answer`].
    pub(crate) fn next_errand(&mut self, now_ms: u64) -> Option<(Wish, Errand)> {
        self.settle_changes(now_ms);
        self.want_renewals(now_ms);
        // Who was without keys may have some by now.
        self.is_drain_due |= self.wishes.keyless.values().any(|until_ms| *until_ms <= now_ms);
        self.wishes.keyless.retain(|_, until_ms| now_ms < *until_ms);
        self.is_drain_due |= self.wishes.roster_waits.values().any(|until_ms| *until_ms <= now_ms);
        self.wishes.roster_waits.retain(|_, until_ms| now_ms < *until_ms);
        let due: Vec<Wish> = self.wishes.wanted.iter().cloned().collect();
        for wish in due {
            if !self.wishes.is_due(&wish, now_ms) {
                continue;
            }
            if let Some(errand) = self.errand(&wish) {
                return Some((wish, errand));
            }
        }
        None
    }

    fn want_renewals(&mut self, now_ms: u64) {
        for device in &self.wishes.renew {
            let last_ms = self.wishes.renewed_ms.get(device);
            if last_ms.is_none_or(|last_ms| now_ms.saturating_sub(*last_ms) >= RENEW_MS_MIN) {
                let devices = vec![device.device.clone()];
                self.wishes.wanted.insert(Wish::FetchKeys(device.user.clone(), devices));
            }
        }
    }

    fn errand(&mut self, wish: &Wish) -> Option<Errand> {
        Some(match wish {
            Wish::CountKeys => Errand::CountKeys,
            Wish::PublishKeys => {
                let keys = self.own.keys.prekeys.pending(&self.own.keys.identity);
                Errand::PublishKeys { identity: self.own.keys.identity.public(), keys }
            }
            Wish::PutList => {
                let (list, signed) = self.next_own_list()?;
                let devices = list.devices.keys().cloned().collect();
                Errand::PutList { version: list.version, devices, signed }
            }
            Wish::GetList(user) => Errand::GetList(user.clone()),
            Wish::FetchKeys(user, devices) => Errand::FetchKeys(user.clone(), devices.clone()),
            Wish::GetRoster(id) => Errand::GetRoster(id.clone()),
            Wish::Group(id) => Errand::Group(id.clone(), self.ready_step(id)?),
        })
    }

    pub(crate) fn handle_answer(
        &mut self,
        now_ms: u64,
        ledger: &mut Ledger,
        wish: &Wish,
        errand: &Errand,
        answer: Answer,
    ) {
        match (errand, answer) {
            (Errand::CountKeys, Answer::KeyCount(count)) => self.handle_key_count(count),
            (Errand::PublishKeys { keys, .. }, Answer::Done) => self.note_published(keys),
            (Errand::PutList { signed, .. }, Answer::Done) => self.take_own_list(ledger, signed),
            // It is there already, from before a crash or from another device.
            (Errand::PutList { .. }, Answer::Refused(_)) => {
                self.wishes.want(Wish::GetList(self.own_user().clone()));
                self.wishes.put_off(wish, now_ms);
                return;
            }
            (Errand::GetList(user), Answer::List(Some(list))) => {
                self.handle_list(ledger, user, &list);
                // It was of no use, and what waits for it would want it again at once.
                if !self.contacts.contains_key(user) {
                    self.wishes.put_off(wish, now_ms);
                    return;
                }
            }
            (Errand::FetchKeys(user, devices), Answer::Bundles(bundles)) => {
                self.wishes.wanted.remove(wish);
                let without = self.handle_bundles(now_ms, ledger, (user, devices), bundles);
                if !without.is_empty() {
                    return self.note_keyless(now_ms, user, without, wish);
                }
            }
            (Errand::GetRoster(id), Answer::Roster(version, members)) => {
                self.take_server_roster(now_ms, id, version, Some(members));
            }
            // We are no member there: it says so to whatever we send.
            (Errand::GetRoster(id), Answer::Refused(_)) => {
                self.take_server_roster(now_ms, id, 0, None);
            }
            (Errand::Group(id, step), Answer::Done) => {
                self.wishes.rosters.remove(id);
                if !self.finish_step(now_ms, ledger, id, step) {
                    self.wishes.put_off(wish, now_ms);
                    return;
                }
            }
            (Errand::Group(id, _), Answer::Refused(reason)) => {
                self.refuse_step(ledger, id, reason);
            }
            _ => {
                self.wishes.put_off(wish, now_ms);
                return;
            }
        }
        self.wishes.wanted.remove(wish);
        self.wishes.put_off.remove(wish);
        self.want_next_step(wish);
        self.is_drain_due = true;
    }

    fn want_next_step(&mut self, wish: &Wish) {
        if let Wish::Group(id) = wish
            && self.groups.get(id).is_some_and(|group| !group.steps.is_empty())
        {
            self.wishes.want(wish.clone());
        }
        if *wish == Wish::PutList && !self.own.changes.is_empty() {
            self.wishes.want(Wish::PutList);
        }
    }

    fn note_published(&mut self, keys: &Pending) {
        self.own.keys.prekeys.confirm(keys);
        let added = u32::try_from(keys.one_time.len()).unwrap_or(u32::MAX);
        if let Some(count) = &mut self.wishes.server_count {
            *count = count.saturating_add(added);
        }
        self.dirty.insert(Row::Own);
    }

    /// A device list, asked for or pushed.
    pub(crate) fn handle_list(&mut self, ledger: &mut Ledger, user: &UserId, list: &[u8]) {
        self.wishes.note_fresh(user);
        let is_full = self.contacts.len() >= CONTACTS_MAX;
        let outcome = match self.contacts.contains_key(user) {
            false if is_full => return,
            false => self.meet(user, list),
            true => self.update_list(ledger, user, list),
        };
        let own = self.own_user().clone();
        match outcome {
            Ok(()) if *user == own => self.note_own_list(),
            Ok(()) => {}
            Err(Fault::IdentityChanged) if *user != own => self.offer(ledger, user, list),
            Err(Fault::IdentityChanged) => return self.consider_own_list(ledger, list),
            Err(fault) => return self.refuse(ledger, user, fault.to_string()),
        }
        self.wishes.is_fresh = true;
        self.note_looked_up(user);
    }

    /// A newer list of a contact, or of the own user.
    pub(super) fn update_list(
        &mut self,
        ledger: &mut Ledger,
        user: &UserId,
        list: &[u8],
    ) -> Result<(), Fault> {
        let before = self.devices(user);
        let known = self.contacts.get_mut(user).ok_or(Fault::UnknownDevice)?;
        let removed = known.update(list)?;
        self.dirty.insert(Row::Contact(user.clone()));
        self.forget_devices(user, removed);
        let devices = self.devices(user);
        // A device that is not linked yet knows of none.
        if *user == *self.own_user() && self.own.link.is_none() && devices != before {
            let devices = devices.unwrap_or_default();
            self.tell(ledger, &News::Devices { devices });
        }
        Ok(())
    }

    /// Tells the app once in a run.
    pub(super) fn refuse(&mut self, ledger: &mut Ledger, user: &UserId, reason: String) {
        if self.wishes.told.insert((user.clone(), reason.clone())) {
            self.tell(ledger, &News::Refused { user: user.clone(), reason });
        }
    }

    pub(super) fn note_own_list(&mut self) {
        self.own.is_list_published = true;
        // Ours is the user's identity. A list that was only offered is signed by another one.
        let identity = self.own.user.public();
        let own = self.contacts.get(self.own_user());
        if own.is_some_and(|own| own.contact.identity() == identity) {
            self.own.link = None;
        }
        self.wishes.wanted.remove(&Wish::PutList);
        if !self.own.changes.is_empty() {
            // On the list that is there now.
            self.wishes.put_off.remove(&Wish::PutList);
            self.wishes.want(Wish::PutList);
        }
        self.dirty.insert(Row::Own);
    }

    /// Another identity: the app decides.
    fn offer(&mut self, ledger: &mut Ledger, user: &UserId, list: &[u8]) {
        let Some(known) = self.contacts.get_mut(user) else { return };
        let is_new = known.stored.offered.replace(list.to_vec()).is_none();
        self.dirty.insert(Row::Contact(user.clone()));
        if is_new {
            let reason = Fault::IdentityChanged.to_string();
            self.tell(ledger, &News::IdentityChanged { user: user.clone(), reason });
        }
    }

    /// The app takes the identity that was offered.
    pub(crate) fn accept_identity(&mut self, user: &UserId) -> Result<(), Fault> {
        let known = self.contacts.get_mut(user).ok_or(Fault::UnknownDevice)?;
        let Some(offered) = known.stored.offered.take() else { return Ok(()) };
        self.meet(user, &offered)?;
        self.note_looked_up(user);
        Ok(())
    }

    pub(super) fn forget_devices(&mut self, user: &UserId, devices: Vec<DeviceId>) {
        for device in devices {
            self.forget_device(&DeviceAddress { user: user.clone(), device });
        }
    }

    fn forget_device(&mut self, device: &DeviceAddress) {
        self.pairs.remove(device);
        self.dirty.insert(Row::Pair(device.clone()));
        let groups: Vec<UserId> = self
            .receivers
            .keys()
            .filter(|(_, of)| of == device)
            .map(|(group, _)| group.clone())
            .collect();
        for group in groups {
            self.receivers.remove(&(group.clone(), device.clone()));
            self.dirty.insert(Row::Receiver(group, device.clone()));
        }
    }

    /// Gives the devices with which no session could be begun.
    fn handle_bundles(
        &mut self,
        now_ms: u64,
        ledger: &mut Ledger,
        (user, devices): (&UserId, &[DeviceId]),
        bundles: Vec<(DeviceId, Result<Bundle, Fault>)>,
    ) -> BTreeSet<DeviceId> {
        let mut without: BTreeSet<DeviceId> = devices.iter().cloned().collect();
        for (device, bundle) in bundles {
            let address = DeviceAddress { user: user.clone(), device };
            let Some(pair) = self.pairs.get_mut(&address) else { continue };
            let is_renewal = self.wishes.renew.remove(&address);
            if !is_renewal && !pair.needs_bundle(now_ms) {
                without.remove(&address.device);
                continue;
            }
            let identity = &self.own.keys.identity;
            let begun =
                bundle.and_then(|bundle| pair.begin(identity, &bundle, now_ms, &mut rand::rng()));
            match begun {
                Ok(()) => {
                    without.remove(&address.device);
                    self.dirty.insert(Row::Pair(address.clone()));
                    if is_renewal {
                        self.wishes.renewed_ms.insert(address, now_ms);
                        self.say_renewed(now_ms, user);
                    }
                }
                Err(fault) => self.refuse(ledger, user, fault.to_string()),
            }
        }
        without
    }

    /// They are left out until they are asked again; maybe the user has other devices by now.
    fn note_keyless(
        &mut self,
        now_ms: u64,
        user: &UserId,
        devices: BTreeSet<DeviceId>,
        wish: &Wish,
    ) {
        let until_ms = self.wishes.put_off(wish, now_ms);
        for device in devices {
            let address = DeviceAddress { user: user.clone(), device };
            self.wishes.keyless.insert(address, until_ms);
        }
        self.wishes.want(Wish::GetList(user.clone()));
        self.is_drain_due = true;
    }

    fn say_renewed(&mut self, now_ms: u64, user: &UserId) {
        let about = Conversation::Direct(user.clone());
        if self.instruct(now_ms, user, about, Content::Renewed).is_err() {
            tracing::debug!("no room to say that a session is new; the next message says it");
        }
    }
}
