//! What became of a message, what a client was told, and what is still missing in the end.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_engine::limits::SEND_MEMORY_MS;
use ringpost_protocol::id::{SendSeq, UserId};
use ringpost_protocol::message::{GapReason, RejectCode};

use super::clock::MS;
use super::injury::Damage;
use super::oracle::{MessageIndex, Oracle};
use super::stale::Addressed;

/// One message.
#[derive(Debug)]
pub struct Fate {
    pub from: usize,
    /// That it was sent to.
    pub group: Option<UserId>,
    /// That it is meant for; 0: whatever it is.
    pub roster_version: u64,
    /// How often it left its sender.
    pub transmitted: u32,
    /// Devices that were welcomed before it was sent, so that it must reach them.
    pub owed: Vec<usize>,
    /// Devices whose mailbox was full: each must be told of a gap.
    pub skipped_full: Vec<usize>,
    /// Zero: it outlives the world.
    pub ttl_ms: u64,
    pub addressed: Addressed,
    pub envelope_bytes: usize,
    pub sent_ns: u64,
    pub outcome: Option<Result<(), RejectCode>>,
    /// When the sender's app was told that it was accepted.
    pub accepted_ns: u64,
    /// The sender's device may have lost it before it promised anything.
    pub unsure: bool,
}

/// How and when an app sends a message.
#[derive(Clone, Debug)]
pub struct Sending {
    /// Zero: it outlives the world.
    pub ttl_ms: u64,
    pub addressed: Addressed,
    pub envelope_bytes: usize,
    pub now_ns: u64,
}

/// What the app of one client has heard.
#[derive(Debug, Default)]
pub struct Told {
    pub messages: BTreeSet<MessageIndex>,
    /// How many gaps, and when the last one.
    gaps: BTreeMap<GapReason, (u64, u64)>,
}

/// What a client has taken of a sender.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    pub highest: SendSeq,
    /// Those that cannot have expired before they were acknowledged.
    sure: BTreeMap<SendSeq, MessageIndex>,
}

/// Why something may be missing for a client.
#[derive(Clone, Copy, Debug)]
pub struct Excuse {
    /// Since the first damage.
    pub since_ns: u64,
    pub damage: Damage,
}

impl Fate {
    pub fn new(from: usize, owed: Vec<usize>, sending: Sending) -> Self {
        let skipped_full = Vec::new();
        let Sending { ttl_ms, addressed, envelope_bytes, now_ns: sent_ns } = sending;
        Self {
            from,
            group: None,
            roster_version: 0,
            transmitted: 0,
            owed,
            skipped_full,
            ttl_ms,
            addressed,
            envelope_bytes,
            sent_ns,
            outcome: None,
            accepted_ns: 0,
            unsure: false,
        }
    }

    fn has_skipped(&self, client: usize) -> bool {
        self.skipped_full.contains(&client)
    }

    /// The first moment at which it may have expired.
    fn expires_ns(&self, clock_was_set: bool) -> u64 {
        match self.ttl_ms {
            0 => u64::MAX,
            _ if clock_was_set => self.sent_ns,
            ttl_ms => self.sent_ns + ttl_ms * MS,
        }
    }
}

impl Told {
    pub fn gap(&mut self, reason: GapReason, now_ns: u64) {
        let (count, last_ns) = self.gaps.entry(reason).or_default();
        (*count, *last_ns) = (*count + 1, now_ns);
    }

    pub fn gap_count(&self, reason: GapReason) -> u64 {
        self.gaps.get(&reason).map_or(0, |(count, _)| *count)
    }

    /// Whether a gap of this kind was told at that time or later.
    fn has_gap_since(&self, reason: GapReason, since_ns: u64) -> bool {
        self.gaps.get(&reason).is_some_and(|&(_, last_ns)| last_ns >= since_ns)
    }
}

impl Taken {
    pub fn note(&mut self, send_seq: SendSeq, message: MessageIndex, is_mortal: bool) {
        self.highest = self.highest.max(send_seq);
        if !is_mortal {
            self.sure.insert(send_seq, message);
        }
    }
}

impl Oracle {
    /// Whether the disk lost a message between its delivery and its acknowledgement: nobody knows any
    /// more who sent it, and its device was told. Or it lost the receipt, and the sender was told.
    fn is_unreadable(
        &self,
        (client, from): (usize, usize),
        taken: &Taken,
        send_seq: SendSeq,
    ) -> bool {
        let Some(&message) = taken.sure.get(&send_seq) else { return false };
        let sent_ns = self.messages[message].sent_ns;
        let was_told = |end: usize| self.told[end].has_gap_since(GapReason::Damaged, sent_ns);
        self.reads_failed && (was_told(client) || was_told(from))
    }

    /// What is still owed when the world has become kind; empty in the end.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (index, fate) in self.messages.iter().enumerate() {
            match fate.outcome {
                None if !fate.unsure => missing.push(format!("message {index} has no outcome")),
                None | Some(Err(_)) => {}
                Some(Ok(())) => self.missing_of(index, fate, &mut missing),
            }
        }
        for ((client, from, group), taken) in &self.taken {
            let (client, from) = (*client, *from);
            let told = self.receipts.get(&(from, client, group.clone()));
            let told = told.copied().unwrap_or_default();
            let is_excused = [client, from].iter().any(|end| self.excused.contains_key(end));
            let sure = self.receipted(client, taken);
            if told < sure && !is_excused && !self.is_unreadable((client, from), taken, sure) {
                let text = format!("{from} has a receipt {told:?} of {client}, not {sure:?}");
                missing.push(format!("{text} ({group:?})"));
            }
        }
        missing
    }

    /// Of the envelopes that have yet to come to the client for which there are most.
    pub fn most_owed_bytes(&self) -> usize {
        let owed_bytes = |(client, told): (usize, &Told)| {
            let fates = self.messages.iter().enumerate();
            fates
                .filter(|(index, fate)| {
                    fate.owed.contains(&client) && !told.messages.contains(index)
                })
                .map(|(_, fate)| fate.envelope_bytes)
                .sum::<usize>()
        };
        self.told.iter().enumerate().map(owed_bytes).max().unwrap_or(0)
    }

    /// The highest number of which its sender must be told that `client` has taken it. Not one that the
    /// sender was told has skipped this client: its first try was stored, and the answer lost.
    fn receipted(&self, client: usize, taken: &Taken) -> SendSeq {
        let has_skipped = |message: usize| {
            self.messages.get(message).is_some_and(|fate| fate.has_skipped(client))
        };
        let mut sure = taken.sure.iter().rev();
        sure.find(|(_, message)| !has_skipped(**message)).map(|(sure, _)| *sure).unwrap_or_default()
    }

    fn missing_of(&self, index: MessageIndex, fate: &Fate, missing: &mut Vec<String>) {
        for &to in &fate.owed {
            let told = &self.told[to];
            let is_told = told.messages.contains(&index)
                || told.has_gap_since(GapReason::Expired, fate.expires_ns(self.clock_was_set))
                || self.is_excused(to)
                || self.reads_failed && told.has_gap_since(GapReason::Damaged, fate.sent_ns)
                || self.came_too_late(index, fate, to);
            if !is_told {
                missing.push(format!("message {index} was accepted and not told {to}"));
            }
        }
        for &to in &fate.skipped_full {
            let is_told = self.told[to].has_gap_since(GapReason::Full, fate.sent_ns);
            if !is_told && !self.excused.contains_key(&to) {
                missing.push(format!("client {to} was skipped with message {index} and not told"));
            }
        }
    }

    /// The message skipped this client, which was told of a gap, or it was refused because of a roster
    /// or a device list that has changed meanwhile; that answer was lost, with a process or with send
    /// memory that nobody used for long, and the replay was stored for it behind later ones. The client
    /// takes it for one that it knows.
    fn came_too_late(&self, index: MessageIndex, fate: &Fate, to: usize) -> bool {
        let told = &self.told[to];
        let overtaken = |&later: &MessageIndex| {
            let later = &self.messages[later];
            later.from == fate.from && later.group == fate.group
        };
        let was_forgotten = fate.accepted_ns - fate.sent_ns >= SEND_MEMORY_MS * MS;
        (self.answers_lost || was_forgotten)
            && (told.has_gap_since(GapReason::Full, fate.sent_ns)
                || self.saw_rosters_change(fate)
                || self.saw_lists_change(fate, to))
            && told.messages.range(index + 1..).any(overtaken)
    }

    fn saw_rosters_change(&self, fate: &Fate) -> bool {
        fate.group.as_ref().is_some_and(|group| {
            self.registry.in_force(group, fate.sent_ns, fate.accepted_ns).len() > 1
        })
    }

    /// Whether a message for this client may be gone: damaged, and it was told so, or its store has
    /// said so at an opening.
    fn is_excused(&self, client: usize) -> bool {
        self.excused.get(&client).is_some_and(|excuse| {
            excuse.damage == Damage::Silent
                || self.told[client].has_gap_since(GapReason::Damaged, excuse.since_ns)
        })
    }
}
