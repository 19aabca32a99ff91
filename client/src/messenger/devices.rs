//! Several devices of one user.
//!
//! The new device shows a code, the old one reads it: so the old one knows the new one's identity, and
//! the new one knows by the secret in it who answers. The old one signs a list with both, and sends
//! the user's identity and the known contacts and groups over a session between the two. Until that
//! has come the new device believes no list of the own user.
//!
//! Everybody with whom there is a session is told of a change as well: else a server that keeps the
//! new list to itself could have them write on to a device that was removed.

use std::collections::BTreeSet;

use ringpost_protocol::id::{DeviceId, UserId};
use ringpost_protocol::limits::DEVICES_PER_USER_MAX;

use super::desk::Desk;
use super::directory::Wish;
use super::incoming::Outcome;
use super::news::{Conversation, News};
use super::outgoing::WriteFault;
use super::row::{Held, ListChange, Row};
use crate::e2ee::{Content, DeviceList, Fault, IdentityKey, PublicIdentity, hex, unhex};
use crate::ledger::Ledger;
use crate::limits::{LISTS_BYTES_MAX, WAITING_ROWS_MAX};

impl Desk {
    /// What the new device shows, as text or as a QR code. `None`: it is linked.
    pub(crate) fn link_code(&self) -> Option<String> {
        let secret = self.own.link?;
        let identity = self.own.keys.identity.public();
        let address = &self.own.address;
        let parts = [
            LINK.to_owned(),
            hex(address.user.as_str().as_bytes()),
            hex(address.device.as_str().as_bytes()),
            hex(identity.as_bytes()),
            hex(&secret),
        ];
        Some(parts.join(":"))
    }

    /// The old device has read the code of a new one.
    pub(crate) fn link_device(&mut self, code: &str) -> Result<(), WriteFault> {
        let code = Code::read(code).ok_or(Fault::Malformed(CODE))?;
        let is_own_user = code.user == *self.own_user();
        if !is_own_user || self.own.address.device == code.device || self.own.link.is_some() {
            return Err(Fault::UnknownDevice.into());
        }
        let Code { device, identity, secret, .. } = code;
        self.change_list(ListChange::Link { device, identity, secret })
    }

    /// What the new device needs to know. Where there is no room for all of it, it knows less.
    fn welcome_device(&mut self, now_ms: u64, secret: [u8; 32]) -> Result<(), WriteFault> {
        let own = self.own_user().clone();
        let link = [secret, *self.own.user.seed()].concat();
        self.instruct(now_ms, &own, Conversation::Direct(own.clone()), Content::Link(link))?;
        if self.send_lists(now_ms).and_then(|()| self.send_rosters(now_ms)).is_err() {
            tracing::warn!("no room to tell the new device of all contacts and groups");
        }
        Ok(())
    }

    fn send_rosters(&mut self, now_ms: u64) -> Result<(), WriteFault> {
        let own = self.own_user().clone();
        let rosters: Vec<(UserId, Vec<u8>)> = self
            .groups
            .iter()
            .filter_map(|(id, group)| Some((id.clone(), group.roster.as_ref()?.encoded().to_vec())))
            .collect();
        for (id, roster) in rosters {
            self.instruct(now_ms, &own, Conversation::Group(id), Content::Roster(roster))?;
        }
        Ok(())
    }

    /// A device that was lost, or is not used any more: nobody who has the next list writes to it. It
    /// still knows the user's identity key.
    pub(crate) fn remove_device(&mut self, device: &DeviceId) -> Result<(), WriteFault> {
        let known = self.contacts.get(self.own_user()).ok_or(Fault::UnknownDevice)?;
        if !known.contact.list().devices.contains_key(device) {
            return Err(Fault::UnknownDevice.into());
        }
        self.change_list(ListChange::Remove(device.clone()))
    }

    /// It is in force, and told, once the server has it.
    fn change_list(&mut self, change: ListChange) -> Result<(), WriteFault> {
        if self.own.changes.len() >= DEVICES_PER_USER_MAX {
            return Err(WriteFault::QueueFull);
        }
        self.own.changes.push_back(change);
        let mut list = self.own_list()?;
        self.own.changes.iter().for_each(|change| apply(change, &mut list));
        if list.devices.is_empty() || list.devices.len() > DEVICES_PER_USER_MAX {
            self.own.changes.pop_back();
            return Err(Fault::Malformed(CODE).into());
        }
        self.dirty.insert(Row::Own);
        self.wishes.want(Wish::PutList);
        Ok(())
    }

    /// The own list with the next change, to be put; `None`: nothing is to be put.
    pub(super) fn next_own_list(&self) -> Option<(DeviceList, Vec<u8>)> {
        let contact = &self.contacts.get(self.own_user())?.contact;
        if !self.own.is_list_published {
            return Some((contact.list().clone(), contact.encoded().to_vec()));
        }
        let mut list = self.own_list().ok()?;
        apply(self.own.changes.front()?, &mut list);
        let signed = list.sign(&self.own.user).ok()?;
        Some((list, signed))
    }

    /// The server has this list of ours.
    pub(super) fn take_own_list(&mut self, ledger: &mut Ledger, signed: &[u8]) {
        let own = self.own_user().clone();
        if let Err(fault) = self.update_list(ledger, &own, signed) {
            tracing::debug!(%fault, "another of our devices was faster");
        }
        self.note_own_list();
    }

    /// Tells of changes that are in force, whichever device has put them there, and drops those that
    /// cannot be made any more.
    pub(super) fn settle_changes(&mut self, now_ms: u64) {
        while let Some(change) = self.own.changes.front().cloned() {
            let Ok(list) = self.own_list() else { return };
            let mut next = list.clone();
            apply(&change, &mut next);
            let is_possible = (1..=DEVICES_PER_USER_MAX).contains(&next.devices.len());
            if is_possible && next.devices != list.devices || !self.own.is_list_published {
                return;
            }
            if is_possible && self.tell_change(now_ms, &change).is_err() {
                // No room.
                self.wishes.put_off(&Wish::PutList, now_ms);
                return;
            }
            self.own.changes.pop_front();
            self.dirty.insert(Row::Own);
            if self.own.changes.is_empty() {
                self.wishes.end(&Wish::PutList);
            }
        }
    }

    fn tell_change(&mut self, now_ms: u64, change: &ListChange) -> Result<(), WriteFault> {
        if self.waiting.len() * 2 > WAITING_ROWS_MAX {
            return Err(WriteFault::QueueFull);
        }
        let own = self.own_user().clone();
        let known = self.contacts.get(&own).ok_or(Fault::UnknownDevice)?;
        let lists = vec![known.contact.encoded().to_vec()];
        match change {
            ListChange::Link { secret, .. } => self.welcome_device(now_ms, *secret)?,
            ListChange::Remove(_) => {
                let about = Conversation::Direct(own.clone());
                self.instruct(now_ms, &own, about, Content::Lists(lists))?;
            }
        }
        if self.announce_list(now_ms).is_err() {
            tracing::debug!("no room to tell others of a new list; the server does");
        }
        Ok(())
    }

    /// The own list to all others with whom there is a session. Of very many the last ones hear of it
    /// only from the server.
    fn announce_list(&mut self, now_ms: u64) -> Result<(), WriteFault> {
        let own = self.contacts.get(self.own_user()).ok_or(Fault::UnknownDevice)?;
        let lists = Content::Lists(vec![own.contact.encoded().to_vec()]);
        let users: BTreeSet<UserId> = self.pairs.keys().map(|device| device.user.clone()).collect();
        let own = self.own_user().clone();
        for user in users.iter().filter(|user| **user != own) {
            if self.waiting.len() * 2 > WAITING_ROWS_MAX {
                break;
            }
            self.instruct(now_ms, user, Conversation::Direct(user.clone()), lists.clone())?;
        }
        Ok(())
    }

    pub(crate) fn devices(&self, user: &UserId) -> Option<Vec<DeviceId>> {
        Some(self.contacts.get(user)?.contact.list().devices.keys().cloned().collect())
    }

    fn own_list(&self) -> Result<DeviceList, Fault> {
        let own = self.contacts.get(self.own_user()).ok_or(Fault::UnknownDevice)?;
        let mut list = own.contact.list().clone();
        list.version += 1;
        Ok(list)
    }

    /// To the own other devices: all lists that are known here.
    fn send_lists(&mut self, now_ms: u64) -> Result<(), WriteFault> {
        let own = self.own_user().clone();
        let mut batch: Vec<Vec<u8>> = Vec::new();
        let mut batches = Vec::new();
        for known in self.contacts.values() {
            let bytes: usize = batch.iter().map(Vec::len).sum();
            if bytes + known.contact.encoded().len() > LISTS_BYTES_MAX {
                batches.push(std::mem::take(&mut batch));
            }
            batch.push(known.contact.encoded().to_vec());
        }
        batches.push(batch);
        for lists in batches {
            self.instruct(now_ms, &own, Conversation::Direct(own.clone()), Content::Lists(lists))?;
        }
        Ok(())
    }

    /// The server's list of our own user is signed by somebody else: either this device is new and is
    /// to be linked, or the server lies.
    pub(super) fn consider_own_list(&mut self, ledger: &mut Ledger, list: &[u8]) {
        let own = self.own_user().clone();
        let is_candidate = self.own.link.is_some() && self.meet(&own, list).is_ok();
        if is_candidate {
            self.own.is_list_published = true;
            self.dirty.insert(Row::Own);
            self.note_looked_up(&own);
        }
        self.refuse(ledger, &own, NOT_LINKED.into());
    }

    /// From a device of the own user that knows the code.
    pub(super) fn take_link(&mut self, held: Held, link: &[u8]) -> Outcome {
        let own = self.own_user().clone();
        let Some(secret) = self.own.link else { return Outcome::Done(None) };
        let (Some((theirs, seed)), true) = (link.split_at_checked(32), held.from.user == own)
        else {
            return Outcome::Refuse(Fault::Altered);
        };
        let Ok(seed) = <[u8; 32]>::try_from(seed) else { return Outcome::Refuse(Fault::Altered) };
        let user = IdentityKey::from_seed(seed);
        let known = self.contacts.get(&own).map(|known| known.contact.identity());
        if *theirs != secret || known != Some(user.public()) {
            return Outcome::Refuse(Fault::VerificationFailed);
        }
        (self.own.user, self.own.link) = (user, None);
        // Whoever was compared with the identity of before.
        let users: Vec<UserId> = self.contacts.keys().cloned().collect();
        for user in users {
            self.set_verified(&user, false);
        }
        self.verifications.clear();
        self.dirty.insert(Row::Own);
        self.is_held_due = true;
        Outcome::Done(Some(News::Linked))
    }

    pub(super) fn take_lists(
        &mut self,
        ledger: &mut Ledger,
        held: &Held,
        lists: &[Vec<u8>],
    ) -> Outcome {
        let from = &held.from.user;
        let is_own = from == self.own_user();
        let known = self.own_list().ok();
        for list in lists {
            match DeviceList::user_of(list) {
                // Others speak for themselves alone.
                Ok(user) if is_own || user == *from => self.handle_list(ledger, &user, list),
                Ok(_) => return Outcome::Refuse(Fault::Altered),
                Err(_) => {}
            }
        }
        // Each tells those it has sessions with: another of our devices may have others.
        if is_own && self.own_list().ok() != known && self.announce_list(held.since_ms).is_err() {
            tracing::debug!("no room to tell others of a new list; the server does");
        }
        Outcome::Done(None)
    }
}

fn apply(change: &ListChange, list: &mut DeviceList) {
    match change {
        ListChange::Link { device, identity, .. } => {
            list.devices.insert(device.clone(), *identity);
        }
        ListChange::Remove(device) => drop(list.devices.remove(device)),
    }
}

/// What a new device shows.
struct Code {
    user: UserId,
    device: DeviceId,
    identity: PublicIdentity,
    secret: [u8; 32],
}

impl Code {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.trim().split(':');
        if parts.next()? != LINK {
            return None;
        }
        let mut next = || unhex(parts.next()?);
        let (user, device) = (String::from_utf8(next()?).ok()?, String::from_utf8(next()?).ok()?);
        let identity: [u8; 32] = next()?.try_into().ok()?;
        let secret = next()?.try_into().ok()?;
        Some(Self {
            user: UserId::new(&user).ok()?,
            device: DeviceId::new(&device).ok()?,
            identity: PublicIdentity::try_from(identity).ok()?,
            secret,
        })
    }
}

const LINK: &str = "ringpost-link-1";
const CODE: &str = "code of the new device";
const NOT_LINKED: &str = "This account has devices already, and this one is not among them. Link it \
                          from one of those; until then nobody believes what it writes.";
