//! What must hold, whatever happens: compared with what the apps were told.

use std::collections::BTreeMap;

use ringpost_client::{Message, Receipt, Refused, SendId, Sent};
use ringpost_protocol::id::{DeviceAddress, MailboxId, SendSeq, Seq, UserId};
use ringpost_protocol::message::{Delivery, GapReason, SkipReason};

use super::counts::Coverage;
use super::fate::{Excuse, Fate, Sending, Taken, Told};
use super::groups;
use super::injury::Damage;
use super::registry::Registry;
use super::stores::Floors;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// Index of a message in the order in which apps sent them; the envelope begins with it.
pub type MessageIndex = usize;

/// What keeps its order: two clients, and the group through which one writes to the other, if to one.
pub type Lane = (usize, usize, Option<UserId>);

/// Remembers every message and what became of it.
pub struct Oracle {
    /// Devices by client.
    pub devices: Vec<DeviceAddress>,
    pub(super) messages: Vec<Fate>,
    /// How many had no outcome when each of them was sent, itself included.
    pub(super) unsettled: Vec<usize>,
    /// How many have none now.
    unsettled_now: usize,
    /// What an id in a client's outbox stands for. A crash may give an id again.
    by_send: BTreeMap<(usize, SendId), MessageIndex>,
    welcomed: Vec<bool>,
    /// By client.
    pub(super) told: Vec<Told>,
    /// Last message of a sender that a client's app was told.
    last_told: BTreeMap<Lane, MessageIndex>,
    pub(super) orders: groups::Told,
    /// What each place of a mailbox held: it must never hold anything else.
    places: BTreeMap<(MailboxId, Seq), MessageIndex>,
    /// Highest number of a sender that a client has durably taken: (client, sender).
    pub(super) taken: BTreeMap<Lane, Taken>,
    /// Highest receipt told to a sender: (sender, client).
    pub(super) receipts: BTreeMap<Lane, SendSeq>,
    pub registry: Registry,
    /// What only the oracle sees of it.
    pub reached: Coverage,
    /// The wall clock was set: a restart may let the expiry clock run ahead by an hour.
    pub clock_was_set: bool,
    /// Answers to Sends may have been lost.
    pub answers_lost: bool,
    /// The directory did not answer at times: nobody's devices were looked at then.
    pub directory_failed: bool,
    /// Some reads of the disk were refused: three in a row are damage.
    pub reads_failed: bool,
    /// The disk has damaged something, at a home of clients or not.
    is_damaged: bool,
    /// Clients whose home shard's disk has damaged something.
    pub(super) excused: BTreeMap<usize, Excuse>,
    pub(super) floors: Floors,
    pub accepted_count: u64,
    pub refused_count: u64,
    pub gap_count: u64,
    /// Outcomes, messages and receipts told for the first time: finitely many.
    pub advances: u64,
    violation: Option<Violation>,
}

impl Oracle {
    pub fn new(devices: Vec<DeviceAddress>) -> Self {
        Self {
            welcomed: vec![false; devices.len()],
            told: devices.iter().map(|_| Told::default()).collect(),
            devices,
            messages: Vec::new(),
            unsettled: Vec::new(),
            unsettled_now: 0,
            by_send: BTreeMap::new(),
            last_told: BTreeMap::new(),
            orders: BTreeMap::new(),
            registry: Registry::default(),
            reached: Coverage::default(),
            places: BTreeMap::new(),
            taken: BTreeMap::new(),
            receipts: BTreeMap::new(),
            clock_was_set: false,
            answers_lost: false,
            directory_failed: false,
            reads_failed: false,
            is_damaged: false,
            excused: BTreeMap::new(),
            floors: Floors::default(),
            accepted_count: 0,
            refused_count: 0,
            gap_count: 0,
            advances: 0,
            violation: None,
        }
    }

    /// The first broken promise.
    pub fn verdict(&self) -> Result<(), Violation> {
        self.violation.clone().map_or(Ok(()), Err)
    }

    pub fn violated(&mut self, text: impl Into<String>) {
        self.violation.get_or_insert_with(|| Violation(text.into()));
    }

    pub fn require(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.violated(text());
        }
    }

    /// The index of the message that an app is going to send.
    pub fn next_message(&self) -> MessageIndex {
        self.messages.len()
    }

    /// The app of `from` has sent a message that is meant for the clients `named`.
    pub fn sent(&mut self, from: usize, named: &[usize], id: SendId, sending: Sending) {
        // Those that were never welcomed may be unknown to the gateway.
        let owed = named.iter().copied().filter(|&client| self.welcomed[client]).collect();
        self.by_send.insert((from, id), self.messages.len());
        self.messages.push(Fate::new(from, owed, sending));
        self.unsettled_now += 1;
        self.unsettled.push(self.unsettled_now);
    }

    /// The sender crashed before this message was surely on its disk.
    pub fn maybe_lost(&mut self, message: MessageIndex) {
        self.messages[message].unsure = true;
    }

    pub fn welcomed(&mut self, client: usize) {
        self.welcomed[client] = true;
    }

    /// A connection brought a message. `replaced_ns`: since when its device has a newer one.
    pub fn delivered(
        &mut self,
        (client, now_ns): (usize, u64),
        mailbox: MailboxId,
        delivery: &Delivery,
        replaced_ns: Option<u64>,
    ) {
        let Some(message) = self.known(client, &delivery.envelope) else { return };
        let place = *self.places.entry((mailbox, delivery.seq)).or_insert(message);
        self.require(place == message, || {
            format!("{:?} of client {client} held message {place}, now {message}", delivery.seq)
        });
        self.group_delivered(client, message, delivery.group.as_ref(), now_ns);
        let sent_ns = self.messages[message].sent_ns;
        self.require(replaced_ns.is_none_or(|at_ns| sent_ns <= at_ns), || {
            format!("a replaced connection of client {client} got the later message {message}")
        });
    }

    /// The index that an envelope begins with, if there is such a message.
    fn known(&mut self, client: usize, envelope: &[u8]) -> Option<MessageIndex> {
        let message = index_of(envelope).filter(|&message| message < self.messages.len());
        self.require(message.is_some() && is_intact(envelope), || {
            format!("client {client} was given a damaged message ({message:?})")
        });
        message
    }

    /// The app of `client` was told of a message.
    pub fn told(&mut self, client: usize, message: &Message) {
        let Some(index) = self.known(client, &message.envelope) else { return };
        let from = self.client_of(&message.from);
        self.require(self.messages[index].from == from, || {
            format!("message {index} came from client {from}")
        });
        let is_new = self.told[client].messages.insert(index);
        self.require(is_new, || format!("client {client} was told message {index} twice"));
        self.advances += u64::from(is_new);
        if let Some(group) = &message.group {
            self.reached.group_messages_told += 1;
            let told = self.orders.entry(group.clone()).or_default();
            told.entry(client).or_default().push(index);
        }
        let before = self.last_told.insert((client, from, message.group.clone()), index);
        self.require(before.is_none_or(|before| before < index), || {
            format!("client {client} was told message {index} after {before:?}")
        });
    }

    /// The app of `client` was told that it misses something.
    pub fn gap(&mut self, client: usize, reason: GapReason, now_ns: u64) {
        self.gap_count += 1;
        self.told[client].gap(reason, now_ns);
    }

    pub fn accepted(&mut self, client: usize, sent: &Sent, now_ns: u64) {
        self.accepted_count += 1;
        let index = self.by_send[&(client, sent.id)];
        self.messages[index].accepted_ns = now_ns;
        self.group_accepted(index, now_ns);
        self.listed_accepted(index, &sent.skipped, now_ns);
        for (user, device, reason) in &sent.skipped {
            let address = DeviceAddress { user: user.clone(), device: device.clone() };
            // One that does not exist is named too, and owed nothing.
            let Some(skipped) = self.find(&address) else { continue };
            let fate = &mut self.messages[index];
            let was_owed = fate.owed.contains(&skipped);
            fate.owed.retain(|&owed| owed != skipped);
            if *reason == SkipReason::Full {
                fate.skipped_full.push(skipped);
            }
            let is_excused = self.excused.contains_key(&skipped);
            let is_right = matches!(reason, SkipReason::Full | SkipReason::Stale);
            self.require(is_right || !was_owed || is_excused, || {
                format!("client {skipped} exists and was skipped with message {index}: {reason:?}")
            });
        }
        let before = self.messages[index].outcome.replace(Ok(()));
        self.advances += u64::from(before.is_none());
        self.unsettled_now -= usize::from(before.is_none());
        self.require(before.is_none(), || format!("message {index} was settled twice"));
    }

    pub fn refused(&mut self, client: usize, refused: &Refused, now_ns: u64) {
        self.refused_count += 1;
        let index = self.by_send[&(client, refused.id)];
        let fate = &mut self.messages[index];
        let before = fate.outcome.replace(Err(refused.code));
        self.advances += u64::from(before.is_none());
        self.unsettled_now -= usize::from(before.is_none());
        let excused = &self.excused;
        fate.owed.retain(|owed| !excused.contains_key(owed));
        self.require(before.is_none(), || format!("message {index} was settled twice"));
        if self.messages[index].group.is_some() {
            self.group_refused(index, refused.code, now_ns);
        } else {
            self.listed_refused(index, refused.code, now_ns);
        }
    }

    /// `client` holds a message of `from` durably, and has said so or may.
    pub fn taken(
        &mut self,
        (client, from, group): (usize, &DeviceAddress, Option<&UserId>),
        send_seq: SendSeq,
        message: MessageIndex,
    ) {
        let is_mortal = self.messages.get(message).is_none_or(|fate| fate.ttl_ms > 0);
        let key = (client, self.client_of(from), group.cloned());
        self.taken.entry(key).or_default().note(send_seq, message, is_mortal);
    }

    pub fn receipt(&mut self, client: usize, receipt: &Receipt) {
        let Receipt { peer, group, up_to_send_seq: up_to } = receipt;
        let (peer, up_to) = (self.client_of(peer), *up_to);
        let taken = self.taken.get(&(peer, client, group.clone()));
        let taken = taken.map_or(SendSeq(0), |taken| taken.highest);
        self.require(up_to <= taken, || {
            format!("client {client} has a receipt up to {up_to:?}, {peer} only took {taken:?}")
        });
        let receipt = self.receipts.entry((client, peer, group.clone())).or_default();
        self.advances += u64::from(*receipt < up_to);
        *receipt = (*receipt).max(up_to);
    }

    /// What lay on the disk of a shard may be gone; it is home to these clients, if to any.
    pub fn excuse(&mut self, clients: Vec<usize>, damage: Damage, now_ns: u64) {
        self.is_damaged = true;
        for client in clients {
            let excuse = self.excused.entry(client).or_insert(Excuse { since_ns: now_ns, damage });
            if damage == Damage::Silent {
                excuse.damage = damage;
            }
        }
    }

    pub fn has_excuses(&self) -> bool {
        self.is_damaged
    }

    /// A store was opened: damage that it found then is in its report and nowhere else.
    pub fn opened(&mut self) {
        for excuse in self.excused.values_mut() {
            excuse.damage = Damage::Silent;
        }
    }

    pub fn message_count(&self) -> usize {
        self.messages.len()
    }

    fn client_of(&self, address: &DeviceAddress) -> usize {
        self.find(address).expect("only our devices send")
    }

    fn find(&self, address: &DeviceAddress) -> Option<usize> {
        self.devices.iter().position(|device| device == address)
    }

    /// Gaps of a kind, told to apps.
    pub fn gaps_told(&self, reason: GapReason) -> u64 {
        self.told.iter().map(|told| told.gap_count(reason)).sum()
    }
}

/// The envelope of a message: its index, then bytes that follow from it.
pub fn envelope(message: MessageIndex, bytes: usize) -> Vec<u8> {
    let mut envelope = (message as u64).to_le_bytes().to_vec();
    envelope.extend((0..bytes).map(|position| filler(message, position)));
    envelope
}

/// The message that an envelope belongs to; `None`: it is too short for one of ours.
pub fn index_of(envelope: &[u8]) -> Option<MessageIndex> {
    usize::try_from(u64::from_le_bytes(*envelope.first_chunk()?)).ok()
}

fn is_intact(envelope: &[u8]) -> bool {
    let Some(message) = index_of(envelope) else { return false };
    let mut rest = envelope[8..].iter().enumerate();
    rest.all(|(position, &byte)| byte == filler(message, position))
}

fn filler(message: MessageIndex, position: usize) -> u8 {
    let sum = message.wrapping_mul(31).wrapping_add(position.wrapping_mul(7));
    u8::try_from(sum % 251).expect("below 251")
}
