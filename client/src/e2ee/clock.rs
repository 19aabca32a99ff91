//! One causal order for all who read a conversation, without trusting the server's.
//!
//! Each message carries a logical time, above that of everything its writer had seen (Lamport 1978),
//! and the ids of the last messages it had seen. Readers sort by `(time, id)`: all get the same
//! order, and an answer never stands before its question. A reference to a message that never came
//! shows that one is missing.

use std::collections::{BTreeSet, VecDeque};

use ringpost_protocol::id::UserId;
use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::identity::hash;
use crate::limits::{LOGICAL_CLOCK_STEP_MAX, MESSAGE_REFERENCES_MAX, MESSAGES_REMEMBERED_MAX};

/// Random name of a message, chosen by the writer.
pub type MessageId = [u8; 16];

/// Place of a message among the others of its conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub id: MessageId,
    /// Starts at 1.
    pub time: u64,
    /// What the writer had seen last: messages that no other message it had seen refers to. At most
    /// [`MESSAGE_REFERENCES_MAX`].
    pub after: Vec<MessageId>,
}

/// The logical clock of one conversation on this device.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CausalClock {
    time: u64,
    /// Seen, and not referred to by anything seen.
    heads: BTreeSet<MessageId>,
    /// The last ids seen, oldest first.
    seen: VecDeque<MessageId>,
    /// The last messages of others, by their writers, oldest first.
    #[serde(default)]
    told: VecDeque<[u8; 8]>,
}

impl Stamp {
    /// Sort by this.
    pub fn order(&self) -> (u64, MessageId) {
        (self.time, self.id)
    }
}

impl CausalClock {
    /// The stamp of a message that is written now.
    pub fn stamp(&mut self, id: MessageId) -> Stamp {
        let after = self.heads.iter().copied().take(MESSAGE_REFERENCES_MAX).collect();
        let stamp = Stamp { id, time: self.time + 1, after };
        self.note(&stamp);
        stamp
    }

    /// A message that came; gives the ids it refers to that are not here. They may be under way, or
    /// older than what is remembered.
    pub fn observe(&mut self, stamp: &Stamp) -> Result<Vec<MessageId>, Fault> {
        // A member must not be able to use up the numbers for all.
        if stamp.time == 0 || stamp.time > self.time.saturating_add(LOGICAL_CLOCK_STEP_MAX) {
            return Err(Fault::Malformed("message"));
        }
        let missing = stamp.after.iter().filter(|id| !self.seen.contains(id)).copied().collect();
        self.note(stamp);
        Ok(missing)
    }

    /// Whether this message of `writer` was here: one whose answer got lost may be sent again. By the
    /// writer, so that nobody takes the place of another one's message by its id.
    pub(crate) fn has_of(&self, writer: &UserId, id: &MessageId) -> bool {
        self.told.contains(&name(writer, id))
    }

    pub(crate) fn note_of(&mut self, writer: &UserId, id: &MessageId) {
        self.told.push_back(name(writer, id));
        if self.told.len() > MESSAGES_REMEMBERED_MAX {
            self.told.pop_front();
        }
    }

    fn note(&mut self, stamp: &Stamp) {
        self.time = self.time.max(stamp.time);
        if self.seen.contains(&stamp.id) {
            return;
        }
        for id in &stamp.after {
            self.heads.remove(id);
        }
        self.heads.insert(stamp.id);
        while self.heads.len() > MESSAGE_REFERENCES_MAX {
            self.heads.pop_first();
        }
        self.seen.push_back(stamp.id);
        if self.seen.len() > MESSAGES_REMEMBERED_MAX {
            self.seen.pop_front();
        }
    }
}

fn name(writer: &UserId, id: &MessageId) -> [u8; 8] {
    let hash = hash("Ringpost message 1", &[id, writer.as_str().as_bytes()]);
    hash[..8].try_into().expect("8 of 32")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> MessageId {
        [n; 16]
    }

    #[test]
    fn an_answer_comes_after_its_question_on_every_device() {
        let [mut alice, mut bob, mut carol] = [(); 3].map(|()| CausalClock::default());
        let question = alice.stamp(id(9));
        bob.observe(&question).unwrap();
        let answer = bob.stamp(id(1));
        assert_eq!(answer.after, [id(9)]);
        // Carol gets the answer first: the order is the same, and she sees what is missing.
        assert_eq!(carol.observe(&answer), Ok(vec![id(9)]));
        assert_eq!(carol.observe(&question), Ok(vec![]));
        assert!(question.order() < answer.order());
        assert!(answer.order() < carol.stamp(id(0)).order());
    }

    #[test]
    fn messages_written_at_once_are_both_referred_to() {
        let [mut alice, mut bob] = [(); 2].map(|()| CausalClock::default());
        let (a, b) = (alice.stamp(id(2)), bob.stamp(id(1)));
        alice.observe(&b).unwrap();
        bob.observe(&a).unwrap();
        assert!(b.order() < a.order(), "by id");
        let next = alice.stamp(id(3));
        assert_eq!(next.after, [id(1), id(2)]);
        bob.observe(&next).unwrap();
        assert_eq!(bob.stamp(id(4)).after, [id(3)]);
    }

    #[test]
    fn nobody_uses_up_the_numbers() {
        let mut clock = CausalClock::default();
        for time in [0, LOGICAL_CLOCK_STEP_MAX + 1, u64::MAX] {
            assert!(clock.observe(&Stamp { id: id(1), time, after: vec![] }).is_err());
        }
        assert_eq!(clock.stamp(id(2)).time, 1);
    }

    #[test]
    fn memory_is_bounded() {
        let mut clock = CausalClock::default();
        for n in 0..5_000u64 {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_be_bytes());
            clock.observe(&Stamp { id, time: n + 1, after: vec![] }).unwrap();
        }
        assert_eq!(clock.seen.len(), MESSAGES_REMEMBERED_MAX);
        assert_eq!(clock.stamp([0xFF; 16]).after.len(), MESSAGE_REFERENCES_MAX);
    }
}
