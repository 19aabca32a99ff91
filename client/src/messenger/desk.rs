//! The logic of a messenger, without network, threads or waiting. It reads what the [`Ledger`]
//! received before the app does, and writes what the ledger sends; all that changes by it goes into
//! the batch that the ledger is about to write. So a ratchet's step is on disk before the message
//! that it made leaves, and a message's plaintext, its session and the end of its one-time key are on
//! disk together before it is acknowledged.
//!
//! Call [`Desk::turn`] before each [`Ledger::begin_commit`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use ringpost_protocol::message::ClientEvent;
use tokio::sync::Notify;

use super::directory::Wishes;
use super::news::{Conversation, News};
use super::row::{
    Acquaintance, Group, Held, Own, Part, Posted, Record, RecordRef, Row, Tracked, Waiting,
};
use super::typing::Typing;
use super::verify::Verification;
use crate::e2ee::clock::CausalClock;
use crate::e2ee::identity::Secret;
use crate::e2ee::{
    Contact, DeviceList, Fault, GroupReceiver, IdentityKey, OwnKeys, Pair, Party, PreKeys,
    PublicIdentity, seal,
};
use crate::event::News as Raw;
use crate::ledger::Ledger;

pub(crate) struct Desk {
    key: Secret,
    pub(super) own: Own,
    pub(super) contacts: BTreeMap<UserId, Known>,
    pub(super) pairs: BTreeMap<DeviceAddress, Pair>,
    pub(super) clocks: BTreeMap<Conversation, CausalClock>,
    pub(super) groups: BTreeMap<UserId, Group>,
    pub(super) receivers: BTreeMap<(UserId, DeviceAddress), GroupReceiver>,
    /// In the order in which they were written.
    pub(super) waiting: BTreeMap<u64, Waiting>,
    pub(super) waiting_bytes: usize,
    /// In the order in which they came.
    pub(super) held: BTreeMap<u64, Held>,
    /// By the outbox entry.
    pub(super) tracked: BTreeMap<u64, Tracked>,
    pub(super) posted: BTreeMap<u64, Posted>,
    /// By the outbox entry.
    pub(super) parts: BTreeMap<u64, Part>,
    pub(super) next_row: u64,
    /// Rows that differ from the database.
    pub(super) dirty: BTreeSet<Row>,
    /// Something changed that [`Self::waiting`] may have waited for.
    pub(super) is_drain_due: bool,
    /// The same for [`Self::held`].
    pub(super) is_held_due: bool,
    pub(super) wishes: Wishes,
    /// Under way; not kept.
    pub(super) verifications: BTreeMap<UserId, Verification>,
    pub(super) typing: Typing,
    /// Told when there is something to ask the directory for.
    errands: Arc<Notify>,
}

/// A user whose device list we have.
pub(super) struct Known {
    pub(super) contact: Contact,
    pub(super) stored: Acquaintance,
}

impl Desk {
    /// Reads the records, or becomes a new device of `own` with a new identity.
    /// [`Fault::SealBroken`]: the key is another one, or the database is another user's.
    pub(crate) fn open(
        key: [u8; 32],
        own: DeviceAddress,
        now_ms: u64,
        ledger: &mut Ledger,
    ) -> Result<Self, Fault> {
        let key = Secret::from_bytes(key);
        let records = ledger.translate();
        let mut desk = Self::new(key, own.clone(), now_ms);
        if records.is_empty() {
            desk.begin_life()?;
        }
        for (place, record) in records {
            let record = seal::open(&desk.key, place.as_bytes(), &record)?;
            desk.restore(record)?;
        }
        if desk.own.address != own {
            return Err(Fault::SealBroken);
        }
        desk.restore_pairs()?;
        desk.count_parts();
        desk.is_drain_due = true;
        desk.is_held_due = true;
        desk.wish_at_start();
        desk.flush(ledger);
        Ok(desk)
    }

    fn new(key: Secret, address: DeviceAddress, now_ms: u64) -> Self {
        let rng = &mut rand::rng();
        let identity = IdentityKey::random(rng);
        let keys = OwnKeys { identity, prekeys: PreKeys::new(now_ms, rng) };
        let user = IdentityKey::random(rng);
        let link = Some(rand::random());
        let (changes, left) = (VecDeque::new(), VecDeque::new());
        let own = Own { address, user, keys, is_list_published: false, link, changes, left };
        Self {
            key,
            own,
            contacts: BTreeMap::new(),
            pairs: BTreeMap::new(),
            clocks: BTreeMap::new(),
            groups: BTreeMap::new(),
            receivers: BTreeMap::new(),
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            held: BTreeMap::new(),
            tracked: BTreeMap::new(),
            posted: BTreeMap::new(),
            parts: BTreeMap::new(),
            next_row: 1,
            dirty: BTreeSet::new(),
            is_drain_due: false,
            is_held_due: false,
            wishes: Wishes::default(),
            verifications: BTreeMap::new(),
            typing: Typing::default(),
            errands: Arc::default(),
        }
    }

    /// The first device of its user: the only one in the list.
    fn begin_life(&mut self) -> Result<(), Fault> {
        let DeviceAddress { user, device } = self.own.address.clone();
        let devices = BTreeMap::from([(device, self.own.keys.identity.public())]);
        let list = DeviceList { user: user.clone(), version: 1, devices };
        let encoded = list.sign(&self.own.user)?;
        self.meet(&user, &encoded)?;
        self.dirty.insert(Row::Own);
        Ok(())
    }

    /// Keeps the first list of a user, or the first one of another identity: sessions with the
    /// devices of the one before are bound to that.
    pub(super) fn meet(&mut self, user: &UserId, encoded: &[u8]) -> Result<(), Fault> {
        let contact = Contact::meet(user, encoded)?;
        let devices = self.devices(user).unwrap_or_default();
        self.forget_devices(user, devices);
        self.verifications.remove(user);
        let stored = Acquaintance { encoded: encoded.to_vec(), offered: None, is_verified: false };
        self.contacts.insert(user.clone(), Known { contact, stored });
        self.dirty.insert(Row::Contact(user.clone()));
        Ok(())
    }

    fn restore(&mut self, record: Record) -> Result<(), Fault> {
        match record {
            Record::Own(own) => self.own = *own,
            Record::Contact(user, stored) => {
                let contact = Contact::meet(&user, &stored.encoded)?;
                self.contacts.insert(user, Known { contact, stored });
            }
            Record::Pair(peer, state) => {
                self.wishes.restored.push((peer, state));
            }
            Record::Clock(conversation, clock) => {
                self.clocks.insert(conversation, clock);
            }
            Record::Group(id, group) => {
                self.groups.insert(id, *group);
            }
            Record::Receiver(group, device, receiver) => {
                self.receivers.insert((group, device), receiver);
            }
            Record::Waiting(id, waiting) => {
                self.waiting_bytes += waiting.payload.len();
                self.waiting.insert(id, waiting);
                self.next_row = self.next_row.max(id + 1);
            }
            Record::Held(id, held) => {
                self.held.insert(id, held);
                self.next_row = self.next_row.max(id + 1);
            }
            Record::Tracked(id, tracked) => {
                self.tracked.insert(id, tracked);
            }
            Record::Posted(id, posted) => {
                self.posted.insert(id, posted);
                self.next_row = self.next_row.max(id + 1);
            }
            Record::Part(id, part) => {
                self.parts.insert(id, part);
            }
        }
        Ok(())
    }

    /// A pair needs the contact, which may have been read after it.
    fn restore_pairs(&mut self) -> Result<(), Fault> {
        let own = self.own_party();
        for (peer, state) in std::mem::take(&mut self.wishes.restored) {
            let contact = &self.contacts.get(&peer.user).ok_or(Fault::SealBroken)?.contact;
            let party = contact.party(&peer.device).map_err(|_| Fault::SealBroken)?;
            self.pairs.insert(peer, Pair::restore(own.clone(), party, state)?);
        }
        Ok(())
    }

    /// What the server says besides mail.
    pub(crate) fn handle_event(&mut self, ledger: &mut Ledger, event: &ClientEvent) {
        match event {
            ClientEvent::Welcome(_) => self.handle_connected(),
            ClientEvent::KeysLow { remaining_count } => self.handle_key_count(*remaining_count),
            ClientEvent::DeviceList(list) => {
                self.handle_list(ledger, &list.user, &list.signed_list);
            }
            ClientEvent::GroupChanged { group, version } => {
                self.note_group_changed(group, *version);
            }
            _ => {}
        }
    }

    /// Reads what came, sends what can go, and puts all changes into the ledger's next batch.
    pub(crate) fn turn(&mut self, now_ms: u64, ledger: &mut Ledger) {
        while let Some((id, raw)) = ledger.next_raw() {
            match self.translate(now_ms, ledger, raw) {
                Some(news) => {
                    let sealed = self.sealed(&news);
                    ledger.replace_news(id, sealed);
                }
                None => ledger.confirm(id),
            }
        }
        if std::mem::take(&mut self.is_held_due) {
            self.retry_held(now_ms, ledger);
        }
        self.keep_prekeys(now_ms);
        if std::mem::take(&mut self.is_drain_due) {
            self.drain(now_ms, ledger);
        }
        self.forget_left();
        self.flush(ledger);
        if self.take_fresh() {
            self.errands.notify_one();
        }
    }

    fn translate(&mut self, now_ms: u64, ledger: &mut Ledger, raw: Raw) -> Option<News> {
        match raw {
            Raw::Message(message) => self.receive(now_ms, ledger, message),
            Raw::Sent(sent) => self.note_sent(sent),
            Raw::Refused(refused) => self.note_refused(&refused),
            Raw::Delivered(receipt) => self.note_delivered(now_ms, &receipt),
            Raw::Gap(gap) => Some(News::Missing { group: gap.group, reason: gap.reason.into() }),
            // Never raw.
            Raw::Sealed(_) => None,
        }
    }

    /// Nothing waits to be encrypted, and of groups and the own device list nothing is to be changed.
    pub(crate) fn is_settled(&self) -> bool {
        self.waiting.is_empty()
            && self.own.changes.is_empty()
            && self.groups.values().all(|group| group.steps.is_empty())
    }

    /// Tells the app something that no news of the ledger stand for.
    pub(super) fn tell(&mut self, ledger: &mut Ledger, news: &News) {
        let sealed = self.sealed(news);
        ledger.add_news(sealed);
    }

    fn sealed(&self, news: &News) -> Raw {
        Raw::Sealed(Bytes::from(seal::seal(&self.key, NEWS, news, &mut rand::rng())))
    }

    pub(crate) fn errands(&self) -> Arc<Notify> {
        self.errands.clone()
    }

    /// For opening what [`Self::turn`] made of the news.
    #[cfg(test)]
    pub(super) fn key(&self) -> &Secret {
        &self.key
    }

    /// Writes the rows that changed.
    fn flush(&mut self, ledger: &mut Ledger) {
        for row in std::mem::take(&mut self.dirty) {
            let place = seal::place(&self.key, &row);
            match self.record(&row) {
                Some(record) => {
                    let sealed = seal::seal(&self.key, place.as_bytes(), &record, &mut rand::rng());
                    ledger.put_record(place, sealed);
                }
                None => ledger.drop_record(place),
            }
        }
    }

    /// `None`: it is gone.
    fn record<'a>(&'a self, row: &'a Row) -> Option<RecordRef<'a>> {
        Some(match row {
            Row::Own => RecordRef::Own(&self.own),
            Row::Contact(user) => RecordRef::Contact(user, &self.contacts.get(user)?.stored),
            Row::Pair(peer) => RecordRef::Pair(peer, self.pairs.get(peer)?.state()),
            Row::Clock(conversation) => {
                RecordRef::Clock(conversation, self.clocks.get(conversation)?)
            }
            Row::Group(id) => RecordRef::Group(id, self.groups.get(id)?),
            Row::Receiver(group, device) => {
                let key = (group.clone(), device.clone());
                RecordRef::Receiver(group, device, self.receivers.get(&key)?)
            }
            Row::Waiting(id) => RecordRef::Waiting(*id, self.waiting.get(id)?),
            Row::Held(id) => RecordRef::Held(*id, self.held.get(id)?),
            Row::Tracked(id) => RecordRef::Tracked(*id, self.tracked.get(id)?),
            Row::Posted(id) => RecordRef::Posted(*id, self.posted.get(id)?),
            Row::Part(id) => RecordRef::Part(*id, self.parts.get(id)?),
        })
    }

    pub(super) fn own_party(&self) -> Party {
        let identity = self.own.keys.identity.public();
        Party { address: self.own.address.clone(), identity }
    }

    pub(super) fn own_user(&self) -> &UserId {
        &self.own.address.user
    }

    pub(super) fn is_own(&self, user: &UserId, device: &DeviceId) -> bool {
        self.own.address.user == *user && self.own.address.device == *device
    }

    /// Of both users, if the other is known.
    pub(super) fn identities(&self, user: &UserId) -> Option<(PublicIdentity, PublicIdentity)> {
        let known = self.contacts.get(user)?;
        Some((self.own.user.public(), known.contact.identity()))
    }

    pub(super) fn take_row(&mut self) -> u64 {
        self.next_row += 1;
        self.next_row - 1
    }
}

impl Known {
    /// Takes a newer list; gives the devices that are gone.
    pub(super) fn update(&mut self, list: &[u8]) -> Result<Vec<DeviceId>, Fault> {
        let changes = self.contact.update(list)?;
        self.stored.encoded = list.to_vec();
        self.stored.offered = None;
        Ok(changes.removed)
    }
}

/// Opens what the app is told.
pub(crate) fn open_news(key: &Secret, sealed: &[u8]) -> Result<News, Fault> {
    seal::open(key, NEWS, sealed)
}

/// All news share it: they are moved from row to row only by the one who holds the database.
const NEWS: &[u8] = b"news";
