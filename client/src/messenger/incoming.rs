//! From envelopes in the inbox to what the app is told.
//!
//! What cannot be opened yet, as the sender's devices, a group key or a roster have not come, is held
//! in a bounded durable queue and tried again when one of them has.

use std::collections::{BTreeMap, BTreeSet};

use ringpost_protocol::id::{DeviceAddress, UserId};

use super::desk::Desk;
use super::directory::Wish;
use super::news::{Conversation, News, Text};
use super::row::{Held, Row};
use crate::e2ee::{Content, Fault, Pair, Payload, is_first};
use crate::event::Message;
use crate::ledger::Ledger;
use crate::limits::{HELD_MS_MAX, HELD_ROWS_MAX};

/// What becomes of a message.
pub(super) enum Outcome {
    /// It is dealt with; the app may be told.
    Done(Option<News>),
    /// To be tried again; here is what of it is to be kept.
    Hold(Held, Fault),
    Refuse(Fault),
}

impl Desk {
    pub(super) fn receive(
        &mut self,
        now_ms: u64,
        ledger: &mut Ledger,
        message: Message,
    ) -> Option<News> {
        let held = Held {
            from: message.from.clone(),
            group: message.group.clone(),
            sent_at_ms: message.sent_at_ms,
            bytes: message.envelope.to_vec(),
            is_opened: false,
            roster_version: None,
            since_ms: now_ms,
            is_looked_up: false,
        };
        match self.read(now_ms, ledger, held) {
            Outcome::Done(news) => news,
            Outcome::Refuse(fault) => Some(undecryptable(message.from, message.group, &fault)),
            Outcome::Hold(held, _) => {
                self.hold(ledger, held);
                None
            }
        }
    }

    fn hold(&mut self, ledger: &mut Ledger, held: Held) {
        let row = self.take_row();
        self.held.insert(row, held);
        self.dirty.insert(Row::Held(row));
        if self.held.len() > HELD_ROWS_MAX
            && let Some(oldest) = self.oldest_of_the_greediest()
            && let Some(held) = self.held.remove(&oldest)
        {
            self.dirty.insert(Row::Held(oldest));
            let news = undecryptable(held.from, held.group, &Fault::NoSession);
            self.tell(ledger, &news);
        }
    }

    /// Of the user who holds most rows: nobody drives out what others have sent.
    fn oldest_of_the_greediest(&self) -> Option<u64> {
        let mut counts: BTreeMap<&UserId, usize> = BTreeMap::new();
        for held in self.held.values() {
            *counts.entry(&held.from.user).or_default() += 1;
        }
        let (user, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        let oldest = self.held.iter().find(|(_, held)| held.from.user == *user);
        oldest.map(|(row, _)| *row)
    }

    /// In the order in which they came, as often as one of them makes another one readable.
    pub(super) fn retry_held(&mut self, now_ms: u64, ledger: &mut Ledger) {
        loop {
            let rows: Vec<u64> = self.held.keys().copied().collect();
            let mut is_progress = false;
            for row in rows {
                let Some(held) = self.held.remove(&row) else { continue };
                let (from, group) = (held.from.clone(), held.group.clone());
                let (was_opened, since_ms) = (held.is_opened, held.since_ms);
                let news = match self.read(now_ms, ledger, held) {
                    Outcome::Hold(held, _) if now_ms.saturating_sub(since_ms) < HELD_MS_MAX => {
                        if held.is_opened != was_opened {
                            self.dirty.insert(Row::Held(row));
                        }
                        self.held.insert(row, held);
                        continue;
                    }
                    Outcome::Done(news) => news,
                    Outcome::Refuse(fault) | Outcome::Hold(_, fault) => {
                        Some(undecryptable(from, group, &fault))
                    }
                };
                is_progress = true;
                self.dirty.insert(Row::Held(row));
                if let Some(news) = news {
                    self.tell(ledger, &news);
                }
            }
            if !is_progress {
                return;
            }
        }
    }

    fn read(&mut self, now_ms: u64, ledger: &mut Ledger, held: Held) -> Outcome {
        if held.is_opened {
            return match Payload::decode(&held.bytes) {
                Ok(payload) => self.handle(now_ms, ledger, held, payload),
                Err(fault) => Outcome::Refuse(fault),
            };
        }
        let opened = match held.group.is_some() {
            true => {
                self.open_group(&held).map(|opened| (opened.plaintext, Some(opened.roster_version)))
            }
            false => self.open_pair(now_ms, &held).map(|plaintext| (plaintext, None)),
        };
        match opened {
            Ok((plaintext, roster_version)) => match Payload::decode(&plaintext) {
                Ok(payload) => {
                    let held = Held { bytes: plaintext, is_opened: true, roster_version, ..held };
                    self.handle(now_ms, ledger, held, payload)
                }
                Err(fault) => Outcome::Refuse(fault),
            },
            Err(fault) if self.may_come(&held, &fault) => {
                self.report_ghost(ledger, &held, &fault);
                Outcome::Hold(held, fault)
            }
            Err(fault) => Outcome::Refuse(fault),
        }
    }

    /// Whether what the message lacks may still come.
    fn may_come(&mut self, held: &Held, fault: &Fault) -> bool {
        let user = &held.from.user;
        match fault {
            Fault::UnknownDevice | Fault::IdentityChanged if !held.is_looked_up => {
                self.wishes.want(Wish::GetList(user.clone()));
                true
            }
            // Until the app says whether the new identity is to be taken.
            Fault::UnknownDevice | Fault::IdentityChanged => {
                self.contacts.get(user).is_some_and(|known| known.stored.offered.is_some())
            }
            Fault::NoSenderKey | Fault::RosterBehind { .. } => true,
            Fault::NotMember => held.group.is_some() && self.is_roster_awaited(held),
            Fault::NoSession => {
                self.wishes.renew(held.from.clone());
                self.is_drain_due = true;
                false
            }
            _ => false,
        }
    }

    /// A group whose first roster, or the one that names the sender, may be under way.
    fn is_roster_awaited(&self, held: &Held) -> bool {
        if held.group.as_ref().is_some_and(|id| self.has_left(id)) {
            return false;
        }
        let group = held.group.as_ref().and_then(|id| self.groups.get(id));
        group.is_none_or(|group| group.roster.is_none() || group.is_member)
    }

    /// The server takes somebody for a member of a group of ours whom no roster names. Maybe the one
    /// that does is under way; maybe the server has added them by itself.
    fn report_ghost(&mut self, ledger: &mut Ledger, held: &Held, fault: &Fault) {
        let group = held.group.as_ref().and_then(|id| self.groups.get(id));
        if *fault == Fault::NotMember && group.is_some_and(|group| group.roster.is_some()) {
            self.refuse(ledger, &held.from.user, GHOST.into());
        }
    }

    fn open_pair(&mut self, now_ms: u64, held: &Held) -> Result<Vec<u8>, Fault> {
        let known = self.contacts.get(&held.from.user).ok_or(Fault::UnknownDevice)?;
        let party = known.contact.party(&held.from.device)?;
        let own = self.own_party();
        let address = held.from.clone();
        let pair = self.pairs.entry(address.clone()).or_insert_with(|| Pair::new(own, party));
        let plaintext = pair.decrypt(&mut self.own.keys, &held.bytes, now_ms, &mut rand::rng())?;
        self.dirty.insert(Row::Pair(address));
        if is_first(&held.bytes) {
            self.dirty.insert(Row::Own);
        }
        Ok(plaintext)
    }

    /// What was said, once it is clear who said it.
    fn handle(
        &mut self,
        now_ms: u64,
        ledger: &mut Ledger,
        held: Held,
        payload: Payload,
    ) -> Outcome {
        let Some(conversation) = self.place(&held, &payload.conversation) else {
            return Outcome::Refuse(Fault::Altered);
        };
        // Between two devices goes what keeps a group together; what is said in it goes to all.
        let is_upkeep =
            matches!(payload.content, Content::GroupKey(_) | Content::Roster(_) | Content::Left);
        let is_group = matches!(conversation, Conversation::Group(_));
        if is_group && is_upkeep != held.group.is_none() {
            return Outcome::Refuse(Fault::Altered);
        }
        // A list that was only offered names the own other devices: the code tells whether to believe.
        let is_own = held.from.user == *self.own_user();
        if is_own && self.own.link.is_some() && !matches!(payload.content, Content::Link(_)) {
            return Outcome::Hold(held, Fault::UnknownDevice);
        }
        if !is_own {
            self.typing.note_heard(now_ms, &conversation);
        }
        let by = held.from.user.clone();
        let news = match payload.content {
            Content::Text(text) => {
                let clock = self.clocks.entry(conversation.clone()).or_default();
                if clock.has_of(&by, &payload.stamp.id) {
                    return Outcome::Done(None);
                }
                let missing = match clock.observe(&payload.stamp) {
                    Ok(missing) => missing,
                    Err(fault) => return Outcome::Refuse(fault),
                };
                clock.note_of(&by, &payload.stamp.id);
                self.dirty.insert(Row::Clock(conversation.clone()));
                Some(News::Text(Text {
                    id: payload.stamp.id,
                    is_for_old_members: self.is_old(&conversation, held.roster_version),
                    conversation,
                    from: by,
                    text,
                    time: payload.stamp.time,
                    missing,
                    written_ms: payload.written_ms,
                    sent_at_ms: held.sent_at_ms,
                }))
            }
            Content::Read(messages) => Some(News::Read { conversation, messages, by }),
            Content::Typing(is_typing) => {
                self.is_fresh(now_ms, &held).then_some(News::Typing { conversation, by, is_typing })
            }
            Content::GroupKey(key) => return self.take_group_key(held, &conversation, &key),
            Content::Roster(signed) => return self.take_roster(held, &conversation, &signed),
            Content::Link(link) => return self.take_link(held, &link),
            Content::Lists(lists) => return self.take_lists(ledger, &held, &lists),
            Content::Left => return self.note_left(&conversation, &held.from.user),
            Content::Verification(step) => return self.take_step(now_ms, ledger, &held, &step),
            Content::Renewed | Content::Unknown => None,
        };
        Outcome::Done(news)
    }

    /// The conversation that a message belongs to here, if it was written for that: the server may
    /// have delivered it elsewhere.
    fn place(&self, held: &Held, named: &Conversation) -> Option<Conversation> {
        let is_own = held.from.user == *self.own_user();
        match (&held.group, named) {
            (Some(group), Conversation::Group(named)) if named == group => {
                Some(Conversation::Group(group.clone()))
            }
            (Some(_), _) => None,
            // Keys and rosters of a group, from device to device.
            (None, Conversation::Group(group)) => Some(Conversation::Group(group.clone())),
            (None, Conversation::Direct(to)) if is_own => Some(Conversation::Direct(to.clone())),
            (None, Conversation::Direct(to)) => {
                (to == self.own_user()).then(|| Conversation::Direct(held.from.user.clone()))
            }
        }
    }

    fn is_old(&self, conversation: &Conversation, roster_version: Option<u64>) -> bool {
        let Conversation::Group(id) = conversation else { return false };
        let roster = self.groups.get(id).and_then(|group| group.roster.as_ref());
        roster.zip(roster_version).is_some_and(|(now, then)| then < now.members().version)
    }

    fn is_fresh(&self, now_ms: u64, held: &Held) -> bool {
        now_ms.saturating_sub(held.sent_at_ms) < crate::limits::TYPING_MS_MAX
    }

    /// The list of this user is the newest there is.
    pub(super) fn note_looked_up(&mut self, user: &UserId) {
        let rows: BTreeSet<u64> = self
            .held
            .iter_mut()
            .filter(|(_, held)| held.from.user == *user)
            .map(|(row, held)| {
                held.is_looked_up = true;
                *row
            })
            .collect();
        self.dirty.extend(rows.into_iter().map(Row::Held));
        self.is_held_due = true;
        self.is_drain_due = true;
    }
}

fn undecryptable(from: DeviceAddress, group: Option<UserId>, fault: &Fault) -> News {
    News::Undecryptable { from, group, reason: fault.to_string() }
}

const GHOST: &str = "Somebody whom the group's administrator has not added writes to it. Nothing of \
                     it is shown unless a signed list of the members says otherwise.";
