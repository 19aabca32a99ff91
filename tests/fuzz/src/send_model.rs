//! The send memory of a device next to a plain account of what it must remember: every Send by its
//! number, and rules that look through all of them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use ringpost_protocol::fault::PeerFault;
use ringpost_protocol::id::{InstallId, SendSeq};
use ringpost_protocol::limits::{RECIPIENTS_BLOCKED_MAX, SEND_OUTCOMES_MAX, SENDS_UNANSWERED_MAX};
use ringpost_protocol::message::{Outcome, Recipient};
use ringpost_protocol::window::{Admission, SendMemory};

/// Both, side by side. Each call makes the same one on the memory and compares.
pub(crate) struct SendModel {
    memory: SendMemory,
    install: InstallId,
    high: u64,
    sends: BTreeMap<u64, Known>,
    /// Those without an outcome.
    pending: usize,
    /// Answered numbers; the one whose answer went out last is the last.
    answered: VecDeque<u64>,
    /// Numbers whose outcome is lost: they may come again as new ones.
    lost: BTreeSet<u64>,
    blocks: VecDeque<(Recipient, Outcome)>,
    /// Sends of this and earlier installations that have no outcome yet.
    storing: VecDeque<(InstallId, u64)>,
}

struct Known {
    to: Recipient,
    after_reject: bool,
    /// Until it is settled.
    outcome: Option<Outcome>,
    /// The connection at hand has sent it.
    awaited: bool,
}

impl SendModel {
    pub(crate) fn new(install: InstallId) -> Self {
        Self {
            memory: SendMemory::new(install),
            install,
            high: 0,
            sends: BTreeMap::new(),
            pending: 0,
            answered: VecDeque::new(),
            lost: BTreeSet::new(),
            blocks: VecDeque::new(),
            storing: VecDeque::new(),
        }
    }

    /// Highest number so far.
    pub(crate) fn high(&self) -> u64 {
        self.high
    }

    pub(crate) fn connection_started(&mut self, install: InstallId) {
        self.memory.connection_started(install);
        self.blocks.clear();
        if install == self.install {
            self.sends.values_mut().for_each(|send| send.awaited = false);
        } else {
            self.install = install;
            self.high = 0;
            self.sends.clear();
            self.pending = 0;
            self.answered.clear();
            self.lost.clear();
        }
        self.compare();
    }

    /// A Send of the connection. The outcome when it is answered at once.
    pub(crate) fn admit(
        &mut self,
        number: u64,
        to: &Recipient,
        after_reject: bool,
    ) -> Result<Option<Outcome>, PeerFault> {
        let expected = self.expect_admission(number, to, after_reject);
        let admission = self.memory.admit(SendSeq(number), to, after_reject);
        assert_eq!(admission, expected, "Send {number} to {to:?}, after_reject {after_reject}");
        self.compare();
        match admission? {
            Admission::New => {
                self.storing.push_back((self.install, number));
                Ok(None)
            }
            Admission::Pending => Ok(None),
            Admission::Answered(outcome) => Ok(Some(outcome)),
        }
    }

    fn expect_admission(
        &mut self,
        number: u64,
        to: &Recipient,
        after_reject: bool,
    ) -> Result<Admission, PeerFault> {
        if number == 0 {
            return Err(PeerFault::SendSeqZero);
        }
        if number <= self.high && !self.lost.contains(&number) {
            return self.expect_replay(number, to, after_reject);
        }
        let block = self.blocks.iter().find(|(blocked, _)| blocked == to).cloned();
        let (to, known) =
            (to.clone(), |outcome| Known { to: to.clone(), after_reject, outcome, awaited: true });
        match block {
            Some((_, outcome)) if !after_reject => {
                // Its after_reject is not set, so nothing can have passed the block here.
                let send = known(Some(outcome.clone()));
                self.remember(number, send);
                self.answer(number);
                return Ok(Admission::Answered(outcome));
            }
            _ => {}
        }
        if self.pending >= SENDS_UNANSWERED_MAX {
            return Err(PeerFault::WindowExceeded);
        }
        let send = known(None);
        self.blocks.retain(|(blocked, _)| *blocked != to);
        self.remember(number, send);
        self.pending += 1;
        Ok(Admission::New)
    }

    fn remember(&mut self, number: u64, send: Known) {
        self.sends.insert(number, send);
        self.lost.remove(&number);
        self.high = self.high.max(number);
    }

    fn expect_replay(
        &mut self,
        number: u64,
        to: &Recipient,
        after_reject: bool,
    ) -> Result<Admission, PeerFault> {
        let Some(send) = self.sends.get_mut(&number) else {
            let mark = SendSeq(self.high);
            return Err(PeerFault::SendSeqForgotten { send_seq: SendSeq(number), mark });
        };
        send.awaited = true;
        let outcome = send.outcome.clone();
        if after_reject {
            self.blocks.retain(|(blocked, _)| blocked != to);
        }
        let Some(outcome) = outcome else { return Ok(Admission::Pending) };
        if outcome.is_retryable() {
            self.block(to, &outcome);
        }
        self.answer(number);
        Ok(Admission::Answered(outcome))
    }

    /// Settles one of those that are being stored. Its number and outcome when it is to be told now.
    pub(crate) fn settle(&mut self, index: usize, outcome: Outcome) -> Option<(u64, Outcome)> {
        let index = index.checked_rem(self.storing.len())?;
        let (install, number) = self.storing.remove(index).expect("within its length");
        let expected = self.expect_settled(install, number, &outcome);
        let told = self.memory.settle(install, SendSeq(number), &outcome);
        assert_eq!(told, expected, "whether Send {number} is answered now");
        // An outcome counts once.
        let other = Outcome::Accepted { server_time_ms: 1, skipped: Vec::new() };
        assert!(!self.memory.settle(install, SendSeq(number), &other), "settled twice");
        self.compare();
        told.then_some((number, outcome))
    }

    fn expect_settled(&mut self, install: InstallId, number: u64, outcome: &Outcome) -> bool {
        if install != self.install {
            return false;
        }
        let Some(send) = self.sends.get_mut(&number) else { return false };
        if send.outcome.is_some() {
            return false;
        }
        send.outcome = Some(outcome.clone());
        self.pending -= 1;
        let (to, awaited) = (send.to.clone(), send.awaited);
        let mut later = self.sends.range((Bound::Excluded(number), Bound::Unbounded));
        let passed = later.any(|(_, later)| later.after_reject && later.to == to);
        if outcome.is_retryable() && !passed {
            self.block(&to, outcome);
        }
        self.answer(number);
        awaited
    }

    /// The store has failed under one of those that are being stored. Its number when the
    /// connection waits for it.
    pub(crate) fn lose(&mut self, index: usize) -> Option<u64> {
        let index = index.checked_rem(self.storing.len())?;
        let (install, number) = self.storing.remove(index).expect("within its length");
        let known = self.sends.get(&number);
        let pending = known.filter(|send| install == self.install && send.outcome.is_none());
        let awaited = pending.is_some_and(|send| send.awaited);
        if pending.is_some() {
            self.sends.remove(&number);
            self.pending -= 1;
            self.lost.insert(number);
            if self.lost.len() > SENDS_UNANSWERED_MAX {
                self.lost.pop_first();
            }
        }
        assert_eq!(self.memory.forget(install, SendSeq(number)), awaited);
        self.compare();
        awaited.then_some(number)
    }

    fn block(&mut self, to: &Recipient, outcome: &Outcome) {
        self.blocks.retain(|(blocked, _)| blocked != to);
        self.blocks.push_back((to.clone(), outcome.clone()));
        if self.blocks.len() > RECIPIENTS_BLOCKED_MAX {
            self.blocks.pop_front();
        }
    }

    fn answer(&mut self, number: u64) {
        self.answered.retain(|answered| *answered != number);
        self.answered.push_back(number);
        if self.answered.len() > SEND_OUTCOMES_MAX {
            let forgotten = self.answered.pop_front().expect("more than the bound");
            self.sends.remove(&forgotten);
        }
    }

    fn compare(&self) {
        assert_eq!(self.memory.install_id(), self.install);
        assert_eq!(self.memory.high_mark(), SendSeq(self.high));
        assert_eq!(self.memory.unanswered(), self.pending);
        assert!(self.pending <= SENDS_UNANSWERED_MAX);
    }
}
