//! Numbers and answers of Sends, beyond one connection: what makes a replay harmless.
//!
//! [`SendMemory`] belongs to the sender's home shard: it gives each Send exactly one answer and
//! keeps the order after a refusal. When a crash takes it, a replay may be stored twice: the
//! receiving client drops the second by its message number.

use std::collections::VecDeque;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::fault::PeerFault;
use crate::id::{InstallId, SendSeq};
use crate::limits::{RECIPIENTS_BLOCKED_MAX, SEND_OUTCOMES_MAX, SENDS_UNANSWERED_MAX};
use crate::message::{Outcome, Recipient};
use crate::mutant::{Mutant, is_active};

/// What the home shard remembers of one sending device, across its connections.
///
/// Call order: [`connection_started`](Self::connection_started) when the device's session opens,
/// then for each Send [`admit`](Self::admit), and for each one admitted as [`Admission::New`]
/// later [`settle`](Self::settle) or [`forget`](Self::forget), also when the connection is gone by
/// then.
#[derive(Clone, Debug)]
pub struct SendMemory {
    install_id: InstallId,
    /// Highest number seen; 0 before the first.
    high_mark: SendSeq,
    /// Sends that are pending or remembered, by rising number.
    sends: VecDeque<Remembered>,
    /// Numbers of the answered ones, in the order in which their answer last went out. Forgetting
    /// in this order, not by number, never forgets an outcome that the client still lacks: those
    /// are at most as many as it may have unanswered, and they went out last.
    answered: VecDeque<SendSeq>,
    /// Numbers whose outcome will never be known: their replays are new. Rising; at most as many as
    /// a client may have unanswered.
    forgotten: Vec<SendSeq>,
    /// Recipients with a retryable refusal that no `after_reject` has passed yet; the oldest first.
    blocks: Vec<Block>,
}

/// What becomes of a Send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Store it, then settle.
    New,
    /// It is being stored already; [`SendMemory::settle`] will bring its answer.
    Pending,
    /// Answer this at once: it is remembered, or a block refuses it.
    Answered(Outcome),
}

#[derive(Clone, Debug)]
struct Remembered {
    send_seq: SendSeq,
    recipient: RecipientHash,
    after_reject: bool,
    state: SendState,
}

#[derive(Clone, Debug)]
enum SendState {
    /// `awaited`: the current connection has sent it, and must get the answer.
    Pending {
        awaited: bool,
    },
    /// Accepted, no device skipped: nearly all of them, so they stay small.
    Accepted {
        server_time_ms: u64,
    },
    Other(Box<Outcome>),
}

#[derive(Clone, Debug)]
struct Block {
    recipient: RecipientHash,
    outcome: Outcome,
}

/// Stands for a recipient. Two that collide can only share a block, which costs a retry.
type RecipientHash = u64;

impl SendMemory {
    pub fn new(install_id: InstallId) -> Self {
        Self {
            install_id,
            high_mark: SendSeq::default(),
            sends: VecDeque::new(),
            answered: VecDeque::new(),
            forgotten: Vec::new(),
            blocks: Vec::new(),
        }
    }

    pub fn install_id(&self) -> InstallId {
        self.install_id
    }

    /// Highest number admitted so far; 0 before the first.
    pub fn high_mark(&self) -> SendSeq {
        self.high_mark
    }

    /// Whether another Send than `send_seq` to `recipient` has no outcome yet.
    pub fn awaits_other(&self, send_seq: SendSeq, to: &Recipient) -> bool {
        if self.unanswered() == 0 {
            return false;
        }
        let recipient = hash_recipient(to);
        self.sends.iter().any(|send| {
            send.recipient == recipient
                && send.send_seq != send_seq
                && matches!(send.state, SendState::Pending { .. })
        })
    }

    /// Sends that have no outcome yet.
    pub fn unanswered(&self) -> usize {
        self.sends.len() - self.answered.len()
    }

    /// A session of the device has opened. Blocks are of one connection; a new installation starts
    /// from nothing.
    pub fn connection_started(&mut self, install_id: InstallId) {
        if install_id != self.install_id {
            *self = Self::new(install_id);
            return;
        }
        self.blocks.clear();
        // The client replays what it has no answer for; it gets the answer then, and only then.
        for send in &mut self.sends {
            if let SendState::Pending { awaited } = &mut send.state {
                *awaited = false;
            }
        }
    }

    /// Takes a Send as it comes from the connection.
    pub fn admit(
        &mut self,
        send_seq: SendSeq,
        to: &Recipient,
        after_reject: bool,
    ) -> Result<Admission, PeerFault> {
        if send_seq == SendSeq::default() {
            return Err(PeerFault::SendSeqZero);
        }
        let recipient = hash_recipient(to);
        if send_seq <= self.high_mark && self.forgotten.binary_search(&send_seq).is_err() {
            return self.replay(send_seq, recipient, after_reject);
        }
        let block = self.blocks.iter().position(|block| block.recipient == recipient);
        if let Some(block) = block
            && !after_reject
        {
            let outcome = self.blocks[block].outcome.clone();
            self.push(send_seq, recipient, false, SendState::of(&outcome));
            self.answer_sent(send_seq);
            return Ok(Admission::Answered(outcome));
        }
        if self.unanswered() == SENDS_UNANSWERED_MAX {
            return Err(PeerFault::WindowExceeded);
        }
        if let Some(block) = block {
            self.blocks.remove(block);
        }
        self.push(send_seq, recipient, after_reject, SendState::Pending { awaited: true });
        Ok(Admission::New)
    }

    /// A Send seen before: the same effects on blocks as the first time, no second delivery.
    fn replay(
        &mut self,
        send_seq: SendSeq,
        recipient: RecipientHash,
        after_reject: bool,
    ) -> Result<Admission, PeerFault> {
        let Ok(index) = self.position(send_seq) else {
            return Err(PeerFault::SendSeqForgotten { send_seq, mark: self.high_mark });
        };
        if after_reject {
            self.blocks.retain(|block| block.recipient != recipient);
        }
        let outcome = match &mut self.sends[index].state {
            SendState::Pending { awaited } => {
                *awaited = true;
                return Ok(Admission::Pending);
            }
            SendState::Accepted { server_time_ms } => {
                Outcome::Accepted { server_time_ms: *server_time_ms, skipped: Vec::new() }
            }
            SendState::Other(outcome) => Outcome::clone(outcome),
        };
        if outcome.is_retryable() {
            self.block(recipient, &outcome);
        }
        self.answered.retain(|&answered| answered != send_seq);
        self.answered.push_back(send_seq);
        Ok(Admission::Answered(outcome))
    }

    /// The outcome of a Send that was admitted as new. Returns whether to answer it now, on the
    /// device's current connection; otherwise the outcome is kept for the replay.
    ///
    /// `install_id` is the one that was current at [`admit`](Self::admit): an outcome for an
    /// installation that is gone must not answer another Send of the same number.
    #[must_use]
    pub fn settle(&mut self, install_id: InstallId, send_seq: SendSeq, outcome: &Outcome) -> bool {
        if install_id != self.install_id {
            return false;
        }
        let Ok(index) = self.position(send_seq) else {
            return false;
        };
        let SendState::Pending { awaited } = self.sends[index].state else { return false };
        self.sends[index].state = SendState::of(outcome);
        let recipient = self.sends[index].recipient;
        // A Send that the client let pass after it saw an earlier refusal must not be followed by
        // a block that is older than it.
        let passed = |send: &Remembered| send.after_reject && send.recipient == recipient;
        if outcome.is_retryable() && !self.sends.range(index + 1..).any(passed) {
            self.block(recipient, outcome);
        }
        self.answer_sent(send_seq);
        awaited
    }

    /// The outcome of a Send that was admitted as new will never be known, because the store that
    /// took it has failed: its replay is new, under the same number. Returns whether the current
    /// connection waits for the answer: it must be told to go away, so that the client replays.
    #[must_use]
    pub fn forget(&mut self, install_id: InstallId, send_seq: SendSeq) -> bool {
        if install_id != self.install_id {
            return false;
        }
        let Ok(index) = self.position(send_seq) else {
            return false;
        };
        let SendState::Pending { awaited } = self.sends[index].state else { return false };
        self.sends.remove(index);
        if let Err(place) = self.forgotten.binary_search(&send_seq) {
            self.forgotten.insert(place, send_seq);
        }
        // Only a client that does not replay what it must has older ones.
        if self.forgotten.len() > SENDS_UNANSWERED_MAX {
            self.forgotten.remove(0);
        }
        awaited
    }

    /// Later Sends to `recipient` are refused with `outcome`.
    fn block(&mut self, recipient: RecipientHash, outcome: &Outcome) {
        if is_active(Mutant::AfterRejectIgnored) {
            return;
        }
        self.blocks.retain(|block| block.recipient != recipient);
        if self.blocks.len() == RECIPIENTS_BLOCKED_MAX {
            self.blocks.remove(0);
        }
        self.blocks.push(Block { recipient, outcome: outcome.clone() });
    }

    fn push(
        &mut self,
        send_seq: SendSeq,
        recipient: RecipientHash,
        after_reject: bool,
        state: SendState,
    ) {
        self.high_mark = self.high_mark.max(send_seq);
        self.forgotten.retain(|&forgotten| forgotten != send_seq);
        // The last, but for the replay of a forgotten one.
        let index = self.position(send_seq).expect_err("what is known is not new");
        self.sends.insert(index, Remembered { send_seq, recipient, after_reject, state });
    }

    /// Notes that an answer goes out, and forgets the one that went out longest ago.
    fn answer_sent(&mut self, send_seq: SendSeq) {
        self.answered.push_back(send_seq);
        if self.answered.len() <= SEND_OUTCOMES_MAX {
            return;
        }
        let oldest = self.answered.pop_front().expect("more than SEND_OUTCOMES_MAX are answered");
        let index = self.position(oldest).expect("every answered Send is remembered");
        self.sends.remove(index);
    }

    /// Where a Send is, or where it would be. Numbers mostly follow each other, so the distance
    /// from the last one tells; a search over all would miss the cache at every step.
    fn position(&self, send_seq: SendSeq) -> Result<usize, usize> {
        let Some(last) = self.sends.back() else { return Err(0) };
        let Some(behind) = last.send_seq.0.checked_sub(send_seq.0) else {
            return Err(self.sends.len());
        };
        let guess = usize::try_from(behind).ok().and_then(|back| {
            let index = self.sends.len().checked_sub(1 + back)?;
            (self.sends[index].send_seq == send_seq).then_some(index)
        });
        guess.map_or_else(|| self.sends.binary_search_by_key(&send_seq, |send| send.send_seq), Ok)
    }
}

impl SendState {
    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Accepted { server_time_ms, skipped } if skipped.is_empty() => {
                Self::Accepted { server_time_ms: *server_time_ms }
            }
            _ => Self::Other(Box::new(outcome.clone())),
        }
    }
}

fn hash_recipient(to: &Recipient) -> RecipientHash {
    match to {
        Recipient::User(id) => xxh3_64_with_seed(id.as_str().as_bytes(), 2),
        Recipient::Group(id) => xxh3_64_with_seed(id.as_str().as_bytes(), 3),
    }
}

#[cfg(test)]
mod tests;
