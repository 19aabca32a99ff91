//! From the app's words to envelopes in the outbox.
//!
//! Everything that is written waits in a durable queue until the keys of all devices it is for are
//! here and the outbox has room; then it is encrypted and leaves that queue in the same transaction.
//! Per conversation the order is kept.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ringpost_protocol::id::{DeviceAddress, DeviceId, UserId};
use ringpost_protocol::limits::ENVELOPE_BYTES_MAX;
use ringpost_protocol::message::{Recipient, RejectCode, SendBody, SkipReason};

use super::desk::Desk;
use super::directory::Wish;
use super::news::{Conversation, MessageId, News};
use super::posted::Stale;
use super::row::{Row, Tracked, Waiting};
use crate::e2ee::clock::Stamp;
use crate::e2ee::{Content, Fault, Pair, Payload};
use crate::event::{NewSend, Receipt, Refused, SendId, SendOptions, Sent};
use crate::ledger::Ledger;
use crate::limits::{TRACKED_MAX, WAITING_BYTES_MAX, WAITING_ROWS_MAX};

/// Why a message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteFault {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error("Too much waits to be sent already. Try again when you are connected.")]
    QueueFull,
    #[error("This group is not known here.")]
    UnknownGroup,
    #[error("Nothing is known of this contact yet. Write to it first.")]
    Unacquainted,
    #[error("There are no numbers to compare with this contact now.")]
    NothingToCompare,
}

/// Why a message does not go out now.
pub(super) enum Stop {
    /// Keys or room are missing.
    NotYet,
    Never(Fault),
}

impl Desk {
    /// What a person writes, or does: it takes a place in the conversation's order.
    pub(super) fn write(
        &mut self,
        now_ms: u64,
        to: Conversation,
        content: Content,
    ) -> Result<MessageId, WriteFault> {
        if let Conversation::Direct(user) = &to
            && self.contacts.get(user).is_some_and(|known| known.stored.offered.is_some())
        {
            return Err(Fault::IdentityChanged.into());
        }
        let id = rand::random();
        let is_text = matches!(content, Content::Text(_));
        let stamp = match is_text {
            true => {
                self.dirty.insert(Row::Clock(to.clone()));
                self.clocks.entry(to.clone()).or_default().stamp(id)
            }
            false => Stamp { id, time: 0, after: Vec::new() },
        };
        let payload =
            Payload { conversation: to.clone(), stamp, written_ms: now_ms, content }.encode()?;
        let message = is_text.then_some(id);
        self.queue(Waiting { to, payload, message, is_synced: true, except: vec![], tries: 0 })?;
        Ok(id)
    }

    /// What devices say to each other about `about`, on the way to one user.
    pub(super) fn instruct(
        &mut self,
        now_ms: u64,
        to: &UserId,
        about: Conversation,
        content: Content,
    ) -> Result<(), WriteFault> {
        let stamp = Stamp { id: rand::random(), time: 0, after: Vec::new() };
        let payload =
            Payload { conversation: about, stamp, written_ms: now_ms, content }.encode()?;
        let to = Conversation::Direct(to.clone());
        let (message, is_synced) = (None, false);
        self.queue(Waiting { to, payload, message, is_synced, except: vec![], tries: 0 })
    }

    /// Whether so many messages of so many bytes each may wait.
    pub(super) fn has_waiting_room(&self, rows: usize, bytes: usize) -> bool {
        self.waiting.len() + rows <= WAITING_ROWS_MAX
            && self.waiting_bytes + rows * bytes <= WAITING_BYTES_MAX
    }

    fn queue(&mut self, waiting: Waiting) -> Result<(), WriteFault> {
        if !self.has_waiting_room(1, waiting.payload.len()) {
            return Err(WriteFault::QueueFull);
        }
        let id = self.take_row();
        self.waiting_bytes += waiting.payload.len();
        self.waiting.insert(id, waiting);
        self.dirty.insert(Row::Waiting(id));
        self.is_drain_due = true;
        Ok(())
    }

    /// Sends what can be sent.
    pub(super) fn drain(&mut self, now_ms: u64, ledger: &mut Ledger) {
        let mut blocked = BTreeSet::new();
        let rows: Vec<u64> = self.waiting.keys().copied().collect();
        for row in rows {
            let Some(waiting) = self.waiting.remove(&row) else { continue };
            if blocked.contains(&waiting.to) {
                self.waiting.insert(row, waiting);
                continue;
            }
            match self.post(now_ms, ledger, row, &waiting) {
                Err(Stop::NotYet) => {
                    blocked.insert(waiting.to.clone());
                    self.waiting.insert(row, waiting);
                    continue;
                }
                Err(Stop::Never(fault)) => {
                    if let Some(message) = waiting.message {
                        let reason = fault.to_string();
                        self.tell(ledger, &News::NotSent { message, reason });
                    }
                }
                Ok(()) => {}
            }
            self.waiting_bytes -= waiting.payload.len();
            self.dirty.insert(Row::Waiting(row));
        }
    }

    pub(super) fn post(
        &mut self,
        now_ms: u64,
        ledger: &mut Ledger,
        row: u64,
        waiting: &Waiting,
    ) -> Result<(), Stop> {
        match &waiting.to {
            Conversation::Group(group) => self.post_group(now_ms, ledger, group, row, waiting),
            Conversation::Direct(user) => {
                let mut devices = self.partners(now_ms, user)?;
                if devices.is_empty() && user != self.own_user() {
                    return Err(Stop::NotYet);
                }
                let own = self.own_user().clone();
                // What own devices tell each other must not miss one that is about to publish its keys:
                // a new device is linked by it.
                let is_upkeep = waiting.message.is_none() && !waiting.is_synced;
                if *user == own && is_upkeep && devices.len() < self.own_others() {
                    return Err(Stop::NotYet);
                }
                devices.retain(|device| !waiting.except.contains(device));
                if devices.is_empty() && waiting.tries > 0 {
                    return Err(Stop::Never(Fault::UnknownDevice));
                }
                if waiting.is_synced && *user != own {
                    devices.extend(self.partners(now_ms, &own)?);
                }
                // To oneself, who has no other device.
                if devices.is_empty()
                    && let Some(message) = waiting.message
                {
                    self.tell(ledger, &News::Sent { message });
                }
                self.post_to(ledger, &devices, row, waiting)
            }
        }
    }

    fn own_others(&self) -> usize {
        let devices = self.devices(self.own_user()).unwrap_or_default();
        devices.iter().filter(|device| **device != self.own.address.device).count()
    }

    /// The devices of a user that can be written to now; all of them, but for those that have
    /// published no keys.
    pub(super) fn partners(
        &mut self,
        now_ms: u64,
        user: &UserId,
    ) -> Result<Vec<DeviceAddress>, Stop> {
        let Some(known) = self.contacts.get(user) else {
            self.wishes.want(Wish::GetList(user.clone()));
            return Err(Stop::NotYet);
        };
        if known.stored.offered.is_some() {
            return Err(Stop::NotYet);
        }
        if self.wishes.is_stale(user, known.contact.list().version) {
            self.wishes.want(Wish::GetList(user.clone()));
            return Err(Stop::NotYet);
        }
        let own = self.own_party();
        let (mut ready, mut without) = (Vec::new(), Vec::new());
        for device in known.contact.list().devices.keys() {
            if self.is_own(user, device) {
                continue;
            }
            let party = known.contact.party(device).map_err(Stop::Never)?;
            let address = party.address.clone();
            let pair = self.pairs.entry(address.clone());
            let pair = pair.or_insert_with(|| Pair::new(own.clone(), party));
            match pair.needs_bundle(now_ms) {
                false => ready.push(address),
                true if self.wishes.is_keyless(&address, now_ms) => {}
                true => without.push(device.clone()),
            }
        }
        if without.is_empty() {
            return Ok(ready);
        }
        self.wishes.want(Wish::FetchKeys(user.clone(), without));
        Err(Stop::NotYet)
    }

    /// Encrypts for each of these devices, which have sessions.
    pub(super) fn post_to(
        &mut self,
        ledger: &mut Ledger,
        devices: &[DeviceAddress],
        row: u64,
        waiting: &Waiting,
    ) -> Result<(), Stop> {
        let payload = &waiting.payload[..];
        if !ledger.has_room(devices.len(), devices.len() * (payload.len() + ENVELOPE_ADDED_BYTES)) {
            return Err(Stop::NotYet);
        }
        let mut by_user: BTreeMap<UserId, Vec<(DeviceId, Bytes)>> = BTreeMap::new();
        for address in devices {
            let pair = self.pairs.get_mut(address).expect("the caller has seen its session");
            let envelope = pair.encrypt(payload).map_err(Stop::Never)?;
            self.dirty.insert(Row::Pair(address.clone()));
            let envelopes = by_user.entry(address.user.clone()).or_default();
            envelopes.push((address.device.clone(), envelope.into()));
        }
        let tracked = waiting.message.map(|message| (message, waiting.to.clone()));
        for (user, envelopes) in by_user {
            let device_list_version = self.list_version(&user);
            let is_recipient = |to: &Conversation| *to == Conversation::Direct(user.clone());
            let mut tracked = tracked.clone().filter(|(_, to)| is_recipient(to));
            for envelopes in fitting(envelopes) {
                let to = Recipient::User(user.clone());
                let body = SendBody::PerDevice(envelopes);
                let options = SendOptions { device_list_version, ..SendOptions::default() };
                let id = enqueue(ledger, to, body, options);
                // The parts are one message, of which the app is told once.
                self.track(id, tracked.take());
                self.note_part(id, row, device_list_version);
            }
        }
        self.note_posted(row, waiting.clone(), devices.to_vec(), 0);
        Ok(())
    }

    pub(super) fn track(&mut self, id: SendId, what: Option<(MessageId, Conversation)>) {
        let Some((message, conversation)) = what else { return };
        let (skipped, delivered_to) = (Vec::new(), BTreeSet::new());
        let tracked = Tracked { message, conversation, send_seq: None, skipped, delivered_to };
        self.tracked.insert(id.0, tracked);
        self.dirty.insert(Row::Tracked(id.0));
        if self.tracked.len() > TRACKED_MAX
            && let Some((oldest, _)) = self.tracked.pop_first()
        {
            self.dirty.insert(Row::Tracked(oldest));
        }
    }

    pub(super) fn note_sent(&mut self, sent: Sent) -> Option<News> {
        self.is_drain_due = true;
        let is_stale =
            |(_, _, reason): &(UserId, DeviceId, SkipReason)| *reason == SkipReason::Stale;
        let is_stale = sent.skipped.iter().any(is_stale);
        self.settle_part(sent.id, &sent.to, is_stale.then_some(Stale::Devices));
        let tracked = self.tracked.get_mut(&sent.id.0)?;
        tracked.send_seq = Some(sent.send_seq.0);
        let skipped = sent.skipped.into_iter();
        tracked.skipped = skipped.map(|(user, device, _)| DeviceAddress { user, device }).collect();
        self.dirty.insert(Row::Tracked(sent.id.0));
        Some(News::Sent { message: tracked.message })
    }

    pub(super) fn note_refused(&mut self, refused: &Refused) -> Option<News> {
        self.is_drain_due = true;
        let stale = match refused.code {
            RejectCode::StaleDevices => Some(Stale::AllDevices),
            RejectCode::StaleRoster => Some(Stale::Roster),
            _ => None,
        };
        let is_repeated = self.settle_part(refused.id, &refused.to, stale);
        let tracked = self.tracked.remove(&refused.id.0)?;
        self.dirty.insert(Row::Tracked(refused.id.0));
        if is_repeated {
            return None;
        }
        let reason = match refused.code {
            RejectCode::UnknownRecipient => "The server does not know whom this is for.",
            RejectCode::Blocked => "You cannot write to this contact.",
            RejectCode::NotAMember => "You are not a member of this group.",
            RejectCode::TooLarge => "This is longer than the server takes.",
            RejectCode::StaleRoster => "The members of this group change too fast.",
            RejectCode::StaleDevices => "The devices of this contact change too fast.",
            _ => "The server does not take this.",
        };
        Some(News::NotSent { message: tracked.message, reason: reason.into() })
    }

    pub(super) fn note_delivered(&mut self, now_ms: u64, receipt: &Receipt) -> Option<News> {
        // An own other device is none of the members that are waited for.
        if receipt.group.is_some() && receipt.peer.user == *self.own_user() {
            return None;
        }
        let conversation = match &receipt.group {
            Some(group) => Conversation::Group(group.clone()),
            None => Conversation::Direct(receipt.peer.user.clone()),
        };
        let others = self.other_members(&conversation);
        let (mut messages, mut done) = (Vec::new(), Vec::new());
        for (id, tracked) in &mut self.tracked {
            let is_covered = tracked.send_seq.is_some_and(|seq| seq <= receipt.up_to_send_seq.0)
                && tracked.conversation == conversation
                && !tracked.skipped.contains(&receipt.peer);
            if is_covered && tracked.delivered_to.insert(receipt.peer.user.clone()) {
                messages.push(tracked.message);
                self.dirty.insert(Row::Tracked(*id));
                if tracked.delivered_to.len() >= others {
                    done.push(*id);
                }
            }
        }
        for id in done {
            self.tracked.remove(&id);
        }
        self.typing.note_heard(now_ms, &conversation);
        let by = receipt.peer.user.clone();
        // Our own other devices are no reader.
        let is_told = !messages.is_empty() && by != *self.own_user();
        is_told.then_some(News::Delivered { conversation, messages, by })
    }

    fn other_members(&self, conversation: &Conversation) -> usize {
        match conversation {
            Conversation::Direct(_) => 1,
            Conversation::Group(id) => {
                let roster = self.groups.get(id).and_then(|group| group.roster.as_ref());
                roster.map_or(1, |roster| roster.members().members.len().saturating_sub(1))
            }
        }
    }
}

/// The caller has looked for room.
pub(super) fn enqueue(
    ledger: &mut Ledger,
    to: Recipient,
    body: SendBody,
    options: SendOptions,
) -> SendId {
    let send = NewSend { to, body, options };
    ledger.enqueue(send).expect("there is room, and envelopes are within the bounds")
}

/// Together the envelopes of one Send have a bound as well.
fn fitting(envelopes: Vec<(DeviceId, Bytes)>) -> Vec<Vec<(DeviceId, Bytes)>> {
    let mut sends: Vec<Vec<_>> = Vec::new();
    let mut bytes = 0;
    for (device, envelope) in envelopes {
        bytes += envelope.len();
        match sends.last_mut() {
            Some(last) if bytes <= ENVELOPE_BYTES_MAX => last.push((device, envelope)),
            _ => {
                bytes = envelope.len();
                sends.push(vec![(device, envelope)]);
            }
        }
    }
    sends
}

/// More than encryption adds to a payload.
pub(super) const ENVELOPE_ADDED_BYTES: usize = 256;
