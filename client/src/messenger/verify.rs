//! Verification by a short string: the steps of [`sas`](crate::e2ee::sas) between two devices, and
//! which contacts are verified.
//!
//! ```text
//! step  1 | transaction 16                        ask         to all devices of the other user
//!       2 | transaction 16 | commitment 32        agree       of the device where the person agrees
//!       3 | transaction 16 | commitment 32 | key  reveal      to the device that so committed itself
//!       4 | transaction 16 | key 32               answer
//!       5 | transaction 16 | confirmation         confirm     each side: the person saw the same
//!       6 | transaction 16 | reason 1             end
//! ```
//!
//! A device that does not know a transaction leaves it to the user's other devices. What is under way
//! is in memory only: after a restart one asks again. When both ask at once the lower transaction
//! stands.

use ringpost_protocol::id::{DeviceAddress, UserId};

use super::desk::Desk;
use super::incoming::Outcome;
use super::news::{Conversation, News};
use super::outgoing::WriteFault;
use super::row::{Held, Row};
use crate::e2ee::sas::{Answering, Asking, Committed, Comparing, People, Person};
use crate::e2ee::{Content, Fault, PublicIdentity};
use crate::ledger::Ledger;
use crate::limits::VERIFICATIONS_MAX;

/// One that is under way with a user.
pub(super) struct Verification {
    transaction: Transaction,
    /// The other side's, once one has answered or asked.
    device: Option<DeviceAddress>,
    since_ms: u64,
    stage: Stage,
}

enum Stage {
    /// The other one asks; our person has to agree.
    Asked,
    Asking(Box<Asking>),
    Committed(Box<Committed>),
    Answering(Box<Answering>, [u8; 32]),
    Comparing {
        comparing: Box<Comparing>,
        is_confirmed_here: bool,
        is_confirmed_there: bool,
    },
}

type Transaction = [u8; 16];

impl Desk {
    /// Asks the other user, or agrees to what that one has asked.
    pub(crate) fn start_verification(
        &mut self,
        now_ms: u64,
        user: &UserId,
    ) -> Result<(), WriteFault> {
        let people = self.people(user)?;
        if let Some(known) = self.verifications.get(user) {
            let transaction = known.transaction;
            match (&known.stage, known.device.clone()) {
                (Stage::Asked, Some(device)) => {
                    return self.agree(now_ms, people, transaction, device);
                }
                // Again: the other device may have forgotten.
                (Stage::Asking(_), _) => {
                    return self.send_step(now_ms, user, ASK, transaction, &[]);
                }
                _ => {}
            }
        }
        let transaction = rand::random();
        self.send_step(now_ms, user, ASK, transaction, &[])?;
        let stage = Stage::Asking(Box::new(Asking::start(people, transaction)));
        self.begin(
            now_ms,
            user,
            Verification { transaction, device: None, since_ms: now_ms, stage },
        );
        Ok(())
    }

    /// The person has compared the numbers. When they differ the contact is not verified any more.
    pub(crate) fn finish_verification(
        &mut self,
        now_ms: u64,
        ledger: &mut Ledger,
        user: &UserId,
        is_same: bool,
    ) -> Result<(), WriteFault> {
        let verification = self.verifications.get_mut(user).ok_or(WriteFault::NothingToCompare)?;
        let transaction = verification.transaction;
        let Stage::Comparing { comparing, is_confirmed_here, is_confirmed_there } =
            &mut verification.stage
        else {
            return Err(WriteFault::NothingToCompare);
        };
        if !is_same {
            self.set_verified(user, false);
            self.verifications.remove(user);
            return self.send_step(now_ms, user, END, transaction, &[DIFFERENT]);
        }
        let confirmation = comparing.confirm();
        *is_confirmed_here = true;
        let is_done = *is_confirmed_there;
        self.send_step(now_ms, user, CONFIRM, transaction, &confirmation)?;
        if is_done {
            self.conclude(user);
            self.tell(ledger, &News::Verified { user: user.clone() });
        }
        Ok(())
    }

    /// Whether the person has made sure of this contact's present identity.
    pub(crate) fn is_verified(&self, user: &UserId) -> bool {
        let stored = self.contacts.get(user).map(|known| &known.stored);
        stored.is_some_and(|stored| stored.is_verified && stored.offered.is_none())
    }

    /// The person has compared the safety number of these identities, own and other, in another way.
    pub(crate) fn note_compared(
        &mut self,
        user: &UserId,
        identities: (PublicIdentity, PublicIdentity),
        is_same: bool,
    ) {
        if self.identities(user) == Some(identities) {
            self.set_verified(user, is_same);
        }
    }

    pub(super) fn set_verified(&mut self, user: &UserId, is_verified: bool) {
        if let Some(known) = self.contacts.get_mut(user) {
            known.stored.is_verified = is_verified;
            self.dirty.insert(Row::Contact(user.clone()));
        }
    }

    /// A step has come. What does not fit is not for this device, or of the past.
    pub(super) fn take_step(
        &mut self,
        now_ms: u64,
        ledger: &mut Ledger,
        held: &Held,
        step: &[u8],
    ) -> Outcome {
        let user = &held.from.user;
        let Some((kind, transaction, body)) = read_step(step) else {
            return Outcome::Refuse(Fault::Malformed(STEP));
        };
        let Ok(people) = self.people(user) else { return Outcome::Done(None) };
        let taken = match kind {
            ASK => self.take_ask(now_ms, &held.from, people, transaction),
            _ => self.take_answer(now_ms, &held.from, (kind, transaction, body)),
        };
        match taken {
            Ok(news) => Outcome::Done(news),
            // There is no room to go on: one of the two asks again.
            Err(WriteFault::Fault(fault)) => {
                let reason = fault.to_string();
                self.set_verified(user, false);
                self.verifications.remove(user);
                if self.send_step(now_ms, user, END, transaction, &[BROKEN]).is_err() {
                    tracing::debug!("no room to say that a verification has failed");
                }
                self.tell(ledger, &News::VerificationFailed { user: user.clone(), reason });
                Outcome::Done(None)
            }
            Err(_) => Outcome::Done(None),
        }
    }

    fn take_ask(
        &mut self,
        now_ms: u64,
        from: &DeviceAddress,
        people: People,
        transaction: Transaction,
    ) -> Result<Option<News>, WriteFault> {
        let user = &from.user;
        if let Some(known) = self.verifications.get(user) {
            let ours = known.transaction;
            if ours == transaction {
                return Ok(None);
            }
            if matches!(known.stage, Stage::Asking(_)) {
                // Both want it. The other one may have lost our question in a restart.
                return match ours < transaction {
                    true => self.send_step(now_ms, user, ASK, ours, &[]),
                    false => self.agree(now_ms, people, transaction, from.clone()),
                }
                .map(|()| None);
            }
        }
        let (device, stage) = (Some(from.clone()), Stage::Asked);
        self.begin(now_ms, user, Verification { transaction, device, since_ms: now_ms, stage });
        Ok(Some(News::VerificationAsked { user: user.clone() }))
    }

    /// Any step but the first. Nothing is lost of a verification by a step that does not fit it.
    fn take_answer(
        &mut self,
        now_ms: u64,
        from: &DeviceAddress,
        (kind, transaction, body): (u8, Transaction, &[u8]),
    ) -> Result<Option<News>, WriteFault> {
        let user = &from.user;
        let Some(mut known) = self.verifications.remove(user) else { return Ok(None) };
        let is_of_device = known.device.as_ref().is_none_or(|device| device == from);
        if known.transaction != transaction || !is_of_device {
            self.verifications.insert(user.clone(), known);
            return Ok(None);
        }
        let mut news = None;
        known.stage = match (kind, known.stage, body.as_chunks::<32>().0) {
            (COMMIT, Stage::Asking(asking), [commitment]) => {
                known.device = Some(from.clone());
                let (committed, key) = asking.reveal(*commitment);
                let reveal = [*commitment, key].concat();
                self.send_step(now_ms, user, REVEAL, transaction, &reveal)?;
                Stage::Committed(Box::new(committed))
            }
            (REVEAL, Stage::Answering(answering, own), [commitment, key]) if *commitment == own => {
                let (comparing, key) = answering.reveal(*key)?;
                self.send_step(now_ms, user, ANSWER, transaction, &key)?;
                news = Some(numbers(user, &comparing));
                Stage::compare(comparing)
            }
            // Another of our devices was quicker.
            (REVEAL, ..) => return Ok(None),
            (ANSWER, Stage::Committed(committed), [key]) => {
                let comparing = committed.compare(*key)?;
                news = Some(numbers(user, &comparing));
                Stage::compare(comparing)
            }
            (CONFIRM, Stage::Comparing { comparing, is_confirmed_here, .. }, _) => {
                comparing.check(body)?;
                if is_confirmed_here {
                    self.set_verified(user, true);
                    return Ok(Some(News::Verified { user: user.clone() }));
                }
                Stage::Comparing { comparing, is_confirmed_here, is_confirmed_there: true }
            }
            (END, ..) => {
                let reason = match body {
                    [DIFFERENT] => DIFFERENT_THERE,
                    _ => BROKEN_THERE,
                };
                let user = user.clone();
                return Ok(Some(News::VerificationFailed { user, reason: reason.into() }));
            }
            (_, stage, _) => stage,
        };
        self.verifications.insert(user.clone(), known);
        Ok(news)
    }

    fn agree(
        &mut self,
        now_ms: u64,
        people: People,
        transaction: Transaction,
        device: DeviceAddress,
    ) -> Result<(), WriteFault> {
        let user = device.user.clone();
        let (answering, commitment) = Answering::accept(people, transaction);
        self.send_step(now_ms, &user, COMMIT, transaction, &commitment)?;
        let stage = Stage::Answering(Box::new(answering), commitment);
        let device = Some(device);
        self.begin(now_ms, &user, Verification { transaction, device, since_ms: now_ms, stage });
        Ok(())
    }

    fn begin(&mut self, now_ms: u64, user: &UserId, verification: Verification) {
        self.verifications.insert(user.clone(), verification);
        if self.verifications.len() > VERIFICATIONS_MAX {
            let age_ms = |known: &Verification| now_ms.saturating_sub(known.since_ms);
            let others = self.verifications.iter().filter(|(of, _)| *of != user);
            let oldest = others.max_by_key(|(_, known)| age_ms(known)).map(|(of, _)| of.clone());
            self.verifications.remove(&oldest.expect("there are several"));
        }
    }

    fn conclude(&mut self, user: &UserId) {
        self.set_verified(user, true);
        self.verifications.remove(user);
    }

    fn people(&self, user: &UserId) -> Result<People, WriteFault> {
        let known = self.contacts.get(user).filter(|_| user != self.own_user());
        let known = known.ok_or(WriteFault::Unacquainted)?;
        if known.stored.offered.is_some() {
            return Err(Fault::IdentityChanged.into());
        }
        let own = Person { user: self.own_user().clone(), identity: self.own.user.public() };
        let peer = Person { user: user.clone(), identity: known.contact.identity() };
        Ok(People { own, peer })
    }

    fn send_step(
        &mut self,
        now_ms: u64,
        user: &UserId,
        kind: u8,
        transaction: Transaction,
        body: &[u8],
    ) -> Result<(), WriteFault> {
        let step = [&[kind][..], &transaction, body].concat();
        let about = Conversation::Direct(user.clone());
        self.instruct(now_ms, user, about, Content::Verification(step))
    }
}

impl Stage {
    fn compare(comparing: Comparing) -> Self {
        let comparing = Box::new(comparing);
        Self::Comparing { comparing, is_confirmed_here: false, is_confirmed_there: false }
    }
}

fn numbers(user: &UserId, comparing: &Comparing) -> News {
    News::Compare { user: user.clone(), numbers: comparing.numbers() }
}

fn read_step(step: &[u8]) -> Option<(u8, Transaction, &[u8])> {
    let (&kind, rest) = step.split_first()?;
    let (transaction, body) = rest.split_first_chunk()?;
    Some((kind, *transaction, body))
}

const ASK: u8 = 1;
const COMMIT: u8 = 2;
const REVEAL: u8 = 3;
const ANSWER: u8 = 4;
const CONFIRM: u8 = 5;
const END: u8 = 6;
/// Why it ended: the other person saw other numbers.
const DIFFERENT: u8 = 1;
/// The other device got something that does not fit.
const BROKEN: u8 = 2;
const STEP: &str = "step of the comparison";
const DIFFERENT_THERE: &str = "The other person sees other numbers. Somebody may be between you: \
                               do not trust what you read here until you have compared the safety \
                               number.";
const BROKEN_THERE: &str = "The other device has broken off the comparison: something came that \
                            does not fit. Start again; if it happens again, somebody may be between \
                            you.";
