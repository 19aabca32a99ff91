//! Hints that somebody types. They are messages like others, and so would wait at the server for
//! those who are away: only who has been heard of lately gets one, and no more than one in a while.

use std::collections::BTreeMap;

use super::desk::Desk;
use super::news::Conversation;
use super::outgoing::{Stop, WriteFault};
use super::posted::FLEETING;
use super::row::Waiting;
use crate::e2ee::clock::Stamp;
use crate::e2ee::{Content, Payload};
use crate::ledger::Ledger;
use crate::limits::{HEARD_MAX, HEARD_MS_MAX, TYPING_MS_MIN};

/// Of conversations; of this run.
#[derive(Default)]
pub(super) struct Typing {
    heard_ms: BTreeMap<Conversation, u64>,
    told: BTreeMap<Conversation, Told>,
}

struct Told {
    at_ms: u64,
    is_typing: bool,
}

impl Typing {
    /// Somebody else has sent, got or read something there.
    pub(super) fn note_heard(&mut self, now_ms: u64, conversation: &Conversation) {
        self.heard_ms.insert(conversation.clone(), now_ms);
        if self.heard_ms.len() > HEARD_MAX {
            let oldest = self.heard_ms.iter().min_by_key(|(_, at_ms)| **at_ms);
            let oldest = oldest.map(|(conversation, _)| conversation.clone());
            self.heard_ms.remove(&oldest.expect("there are several"));
        }
    }

    fn is_due(&mut self, now_ms: u64, conversation: &Conversation, is_typing: bool) -> bool {
        let is_here = |at_ms: &u64| now_ms.saturating_sub(*at_ms) < HEARD_MS_MAX;
        if !self.heard_ms.get(conversation).is_some_and(is_here) {
            return false;
        }
        match self.told.get(conversation) {
            // Each end follows a beginning, so there is at most one for each of those.
            Some(told) if is_typing => now_ms.saturating_sub(told.at_ms) >= TYPING_MS_MIN,
            Some(told) => told.is_typing,
            None => is_typing,
        }
    }

    fn note_told(&mut self, now_ms: u64, conversation: &Conversation, is_typing: bool) {
        // The time of the beginning counts: who stops and begins again is no reason for more.
        let told = self.told.entry(conversation.clone());
        let told = told.or_insert(Told { at_ms: now_ms, is_typing });
        told.is_typing = is_typing;
        if is_typing {
            told.at_ms = now_ms;
        }
        self.told.retain(|_, told| now_ms.saturating_sub(told.at_ms) < HEARD_MS_MAX);
    }
}

impl Desk {
    /// Tells the others of a conversation now, or not at all. Gives whether it went out.
    pub(crate) fn tell_typing(
        &mut self,
        now_ms: u64,
        ledger: &mut Ledger,
        to: Conversation,
        is_typing: bool,
    ) -> Result<bool, WriteFault> {
        let is_behind = self.waiting.values().any(|waiting| waiting.to == to);
        let is_known = match &to {
            Conversation::Direct(user) => {
                user != self.own_user() && self.contacts.contains_key(user)
            }
            Conversation::Group(group) => self.groups.contains_key(group),
        };
        if !is_known || is_behind || !ledger.is_connected() {
            return Ok(false);
        }
        if !self.typing.is_due(now_ms, &to, is_typing) {
            return Ok(false);
        }
        let stamp = Stamp { id: rand::random(), time: 0, after: Vec::new() };
        let content = Content::Typing(is_typing);
        let payload = Payload { conversation: to.clone(), stamp, written_ms: now_ms, content };
        let payload = payload.encode()?;
        let hint =
            Waiting { to, payload, message: None, is_synced: false, except: vec![], tries: 0 };
        let is_sent = match self.post(now_ms, ledger, FLEETING, &hint) {
            Ok(()) => true,
            Err(Stop::NotYet) => false,
            Err(Stop::Never(fault)) => return Err(fault.into()),
        };
        if is_sent {
            self.typing.note_told(now_ms, &hint.to, is_typing);
        }
        Ok(is_sent)
    }
}
