//! What must hold, whatever happens: compared with what the apps were told.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_client::{Message, Refused, SendId, Sent};
use ringpost_protocol::id::{DeviceAddress, MailboxId, SendSeq, Seq};
use ringpost_protocol::message::{Delivery, RejectCode};

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// Index of a message in the order in which apps sent them; the envelope begins with it.
pub type MessageIndex = usize;

/// Remembers every message and what became of it.
pub struct Oracle {
    /// Devices by client.
    pub devices: Vec<DeviceAddress>,
    messages: Vec<Fate>,
    /// What an id in a client's outbox stands for. A crash may give an id again.
    by_send: BTreeMap<(usize, SendId), MessageIndex>,
    welcomed: Vec<bool>,
    /// Told to the app of a client.
    told: BTreeSet<(usize, MessageIndex)>,
    /// Last message of a sender that a client's app was told.
    last_told: BTreeMap<(usize, usize), MessageIndex>,
    /// What each place of a mailbox held: it must never hold anything else.
    places: BTreeMap<(MailboxId, Seq), MessageIndex>,
    /// Highest number of a sender that a client has durably taken: (client, sender).
    taken: BTreeMap<(usize, usize), SendSeq>,
    /// Highest receipt told to a sender: (sender, client).
    receipts: BTreeMap<(usize, usize), SendSeq>,
    pub accepted_count: u64,
    pub refused_count: u64,
    pub gap_count: u64,
    violation: Option<Violation>,
}

struct Fate {
    from: usize,
    /// Devices that were welcomed before it was sent, so that it must reach them.
    owed: Vec<usize>,
    sent_ns: u64,
    outcome: Option<Result<(), RejectCode>>,
    /// The sender's device may have lost it before it promised anything.
    unsure: bool,
}

impl Oracle {
    pub fn new(devices: Vec<DeviceAddress>) -> Self {
        Self {
            welcomed: vec![false; devices.len()],
            devices,
            messages: Vec::new(),
            by_send: BTreeMap::new(),
            told: BTreeSet::new(),
            last_told: BTreeMap::new(),
            places: BTreeMap::new(),
            taken: BTreeMap::new(),
            receipts: BTreeMap::new(),
            accepted_count: 0,
            refused_count: 0,
            gap_count: 0,
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

    /// The app of `from` is going to send the message with this index to a user.
    pub fn next_message(&self) -> MessageIndex {
        self.messages.len()
    }

    pub fn sent(&mut self, from: usize, to_user: usize, id: SendId, now_ns: u64) {
        let user = &self.devices[to_user].user;
        let owed = (0..self.devices.len())
            .filter(|&client| client != from && self.welcomed[client])
            .filter(|&client| self.devices[client].user == *user)
            .collect();
        self.by_send.insert((from, id), self.messages.len());
        let fate = Fate { from, owed, sent_ns: now_ns, outcome: None, unsure: false };
        self.messages.push(fate);
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
        client: usize,
        mailbox: MailboxId,
        delivery: &Delivery,
        replaced_ns: Option<u64>,
    ) {
        let message = index_of(&delivery.envelope);
        let place = *self.places.entry((mailbox, delivery.seq)).or_insert(message);
        self.require(place == message, || {
            format!("{:?} of client {client} held message {place}, now {message}", delivery.seq)
        });
        let sent_ns = self.messages[message].sent_ns;
        self.require(replaced_ns.is_none_or(|at_ns| sent_ns <= at_ns), || {
            format!("a replaced connection of client {client} got the later message {message}")
        });
    }

    /// The app of `client` was told of a message.
    pub fn told(&mut self, client: usize, message: &Message) {
        let index = index_of(&message.envelope);
        self.require(is_intact(&message.envelope), || format!("message {index} is damaged"));
        let from = self.client_of(&message.from);
        self.require(self.messages[index].from == from, || {
            format!("message {index} came from client {from}")
        });
        let is_new = self.told.insert((client, index));
        self.require(is_new, || format!("client {client} was told message {index} twice"));
        let before = self.last_told.insert((client, from), index);
        self.require(before.is_none_or(|before| before < index), || {
            format!("client {client} was told message {index} after {before:?}")
        });
    }

    pub fn accepted(&mut self, client: usize, sent: &Sent) {
        self.accepted_count += 1;
        let skipped: Vec<usize> = sent
            .skipped
            .iter()
            .map(|(user, device, _)| {
                self.client_of(&DeviceAddress { user: user.clone(), device: device.clone() })
            })
            .collect();
        let index = self.by_send[&(client, sent.id)];
        let fate = &mut self.messages[index];
        fate.owed.retain(|client| !skipped.contains(client));
        let before = fate.outcome.replace(Ok(()));
        self.require(before.is_none(), || format!("message {index} was settled twice"));
    }

    pub fn refused(&mut self, client: usize, refused: &Refused) {
        self.refused_count += 1;
        let index = self.by_send[&(client, refused.id)];
        let fate = &mut self.messages[index];
        let before = fate.outcome.replace(Err(refused.code));
        let owed = fate.owed.clone();
        self.require(before.is_none(), || format!("message {index} was settled twice"));
        self.require(refused.code == RejectCode::UnknownRecipient && owed.is_empty(), || {
            format!("message {index} was refused ({:?}) though {owed:?} exist", refused.code)
        });
    }

    /// `client` holds a message of `from` durably, and has said so or may.
    pub fn taken(&mut self, client: usize, from: &DeviceAddress, send_seq: SendSeq) {
        let taken = self.taken.entry((client, self.client_of(from))).or_default();
        *taken = (*taken).max(send_seq);
    }

    pub fn receipt(&mut self, client: usize, peer: &DeviceAddress, up_to: SendSeq) {
        let peer = self.client_of(peer);
        let taken = self.taken.get(&(peer, client)).copied().unwrap_or_default();
        self.require(up_to <= taken, || {
            format!("client {client} has a receipt up to {up_to:?}, {peer} only took {taken:?}")
        });
        let receipt = self.receipts.entry((client, peer)).or_default();
        *receipt = (*receipt).max(up_to);
    }

    /// What is still owed when the world has become kind; empty in the end.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (index, fate) in self.messages.iter().enumerate() {
            match fate.outcome {
                None if !fate.unsure => missing.push(format!("message {index} has no outcome")),
                None | Some(Err(_)) => {}
                Some(Ok(())) => {
                    let lacking = fate.owed.iter().filter(|&&to| !self.told.contains(&(to, index)));
                    missing.extend(
                        lacking.map(|to| format!("message {index} was accepted and not told {to}")),
                    );
                }
            }
        }
        for (&(client, from), &up_to) in &self.taken {
            let told = self.receipts.get(&(from, client)).copied().unwrap_or_default();
            if told != up_to {
                missing.push(format!("{from} has a receipt {told:?} of {client}, not {up_to:?}"));
            }
        }
        missing
    }

    pub fn message_count(&self) -> usize {
        self.messages.len()
    }

    fn client_of(&self, address: &DeviceAddress) -> usize {
        self.devices.iter().position(|device| device == address).expect("only our devices exist")
    }
}

/// The envelope of a message: its index, then bytes that follow from it.
pub fn envelope(message: MessageIndex, bytes: usize) -> Vec<u8> {
    let mut envelope = (message as u64).to_le_bytes().to_vec();
    envelope.extend((0..bytes).map(|position| filler(message, position)));
    envelope
}

fn index_of(envelope: &[u8]) -> MessageIndex {
    let head = envelope.first_chunk().expect("every envelope holds an index");
    usize::try_from(u64::from_le_bytes(*head)).expect("64-bit platform")
}

fn is_intact(envelope: &[u8]) -> bool {
    let message = index_of(envelope);
    let mut rest = envelope[8..].iter().enumerate();
    rest.all(|(position, &byte)| byte == filler(message, position))
}

fn filler(message: MessageIndex, position: usize) -> u8 {
    u8::try_from((message * 31 + position * 7) % 251).expect("below 251")
}
