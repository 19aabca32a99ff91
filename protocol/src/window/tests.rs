use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::id::{DeviceId, UserId};

use crate::message::{RejectCode, SkipReason};
use crate::seeded::Seeded;

const INSTALL: InstallId = InstallId(1);

fn user(name: &str) -> Recipient {
    Recipient::User(UserId::new(name).unwrap())
}

fn accepted(server_time_ms: u64) -> Outcome {
    Outcome::Accepted { server_time_ms, skipped: Vec::new() }
}

fn full() -> Outcome {
    Outcome::Rejected { code: RejectCode::MailboxFull, retry_after_ms: Some(50) }
}

fn refused() -> Outcome {
    Outcome::Rejected { code: RejectCode::UnknownRecipient, retry_after_ms: None }
}

/// A memory with short ways to say what happens to it.
struct Case(SendMemory);

impl Case {
    fn new() -> Self {
        Self(SendMemory::new(INSTALL))
    }

    fn admit(&mut self, send_seq: u64, to: &str, after_reject: bool) -> Admission {
        self.0.admit(SendSeq(send_seq), &user(to), after_reject).unwrap()
    }

    fn settle(&mut self, send_seq: u64, outcome: &Outcome) -> bool {
        self.0.settle(INSTALL, SendSeq(send_seq), outcome)
    }

    fn forget(&mut self, send_seq: u64) -> bool {
        self.0.forget(INSTALL, SendSeq(send_seq))
    }

    fn fault(&mut self, send_seq: u64) -> PeerFault {
        self.0.admit(SendSeq(send_seq), &user("bob"), false).unwrap_err()
    }
}

#[test]
fn a_replay_is_answered_without_a_second_delivery() {
    let mut case = Case::new();
    assert_eq!(case.admit(5, "bob", false), Admission::New);
    assert_eq!(case.admit(5, "bob", false), Admission::Pending);
    assert!(case.settle(5, &accepted(9)));
    assert!(!case.settle(5, &accepted(10)), "one outcome only");
    assert_eq!(case.admit(5, "bob", false), Admission::Answered(accepted(9)));
    assert_eq!((case.0.unanswered(), case.0.high_mark()), (0, SendSeq(5)));

    let skipped =
        vec![(UserId::new("bob").unwrap(), DeviceId::new("d").unwrap(), SkipReason::Full)];
    let partly = Outcome::Accepted { server_time_ms: 1, skipped };
    case.admit(6, "bob", false);
    case.settle(6, &partly);
    assert_eq!(case.admit(6, "bob", false), Admission::Answered(partly));
}

#[test]
fn what_has_no_outcome_is_found_by_its_recipient() {
    let mut case = Case::new();
    let awaits = |case: &Case, send_seq, to| case.0.awaits_other(SendSeq(send_seq), &user(to));
    case.admit(1, "bob", false);
    assert!(awaits(&case, 2, "bob") && !awaits(&case, 2, "carol"));
    assert!(!awaits(&case, 1, "bob"), "its replay waits for nothing");
    let group = Recipient::Group(UserId::new("bob").unwrap());
    assert!(!case.0.awaits_other(SendSeq(2), &group));
    case.settle(1, &accepted(9));
    assert!(!awaits(&case, 2, "bob"));
    case.admit(2, "bob", false);
    case.forget(2);
    assert!(!awaits(&case, 3, "bob"));
}

#[test]
fn numbers_that_are_zero_or_in_a_gap_are_faults() {
    let mut case = Case::new();
    assert_eq!(case.fault(0), PeerFault::SendSeqZero);
    case.admit(5, "bob", false);
    let forgotten = PeerFault::SendSeqForgotten { send_seq: SendSeq(4), mark: SendSeq(5) };
    assert_eq!(case.fault(4), forgotten);
}

#[test]
fn the_257th_unanswered_is_a_fault() {
    let mut case = Case::new();
    for send_seq in 1..=SENDS_UNANSWERED_MAX as u64 {
        assert_eq!(case.admit(send_seq, "bob", false), Admission::New);
    }
    assert_eq!(case.fault(257), PeerFault::WindowExceeded);
    assert_eq!(case.admit(256, "bob", false), Admission::Pending, "replays are not counted twice");
    case.settle(100, &accepted(1));
    assert_eq!(case.admit(257, "bob", false), Admission::New);
}

#[test]
fn an_outcome_that_the_client_may_lack_is_not_forgotten() {
    let mut case = Case::new();
    // Send 1 takes long; hundreds of later ones come and go meanwhile.
    case.admit(1, "slow", false);
    for send_seq in 2..=600 {
        case.admit(send_seq, "bob", false);
        case.settle(send_seq, &accepted(send_seq));
    }
    assert!(case.settle(1, &accepted(601)));
    // Its number is the lowest, but its answer went out last: the connection may have died on it.
    assert_eq!(case.admit(1, "slow", false), Admission::Answered(accepted(601)));
    assert!(matches!(case.fault(345), PeerFault::SendSeqForgotten { .. }));
    assert_eq!(case.admit(346, "bob", false), Admission::Answered(accepted(346)));
    // A replay renews what it repeats: 346 outlives 255 further outcomes.
    for send_seq in 601..=855 {
        case.admit(send_seq, "bob", false);
        case.settle(send_seq, &accepted(send_seq));
    }
    assert_eq!(case.admit(346, "bob", false), Admission::Answered(accepted(346)));
}

#[test]
fn a_retryable_refusal_blocks_its_recipient_until_after_reject() {
    let mut case = Case::new();
    case.admit(1, "bob", false);
    case.settle(1, &full());
    assert_eq!(case.admit(2, "bob", false), Admission::Answered(full()));
    assert_eq!(case.admit(3, "eve", false), Admission::New, "others are not blocked");
    let group = Recipient::Group(UserId::new("bob").unwrap());
    assert_eq!(case.0.admit(SendSeq(4), &group, false), Ok(Admission::New), "nor a namesake");
    assert_eq!(case.admit(5, "bob", true), Admission::New);
    assert_eq!(case.admit(6, "bob", false), Admission::New);
    // The block's own refusals are remembered like any other.
    assert_eq!(case.admit(2, "bob", false), Admission::Answered(full()));
    // ... and such a replay sets the block up again.
    assert_eq!(case.admit(7, "bob", false), Admission::Answered(full()));
}

#[test]
fn a_final_refusal_blocks_nothing() {
    let mut case = Case::new();
    case.admit(1, "bob", false);
    case.settle(1, &refused());
    assert_eq!(case.admit(2, "bob", false), Admission::New);
    assert_eq!(case.admit(1, "bob", false), Admission::Answered(refused()));
    assert_eq!(case.admit(3, "bob", false), Admission::New);
}

#[test]
fn a_refusal_from_before_after_reject_does_not_block_what_follows_it() {
    let mut case = Case::new();
    case.admit(1, "bob", false);
    case.admit(2, "bob", false);
    case.settle(1, &full());
    case.admit(3, "bob", true);
    // The refusal of 2 was under way when the client sent 3.
    case.settle(2, &full());
    assert_eq!(case.admit(4, "bob", false), Admission::New);
    // A refusal of 3 itself blocks again, although 3 had after_reject.
    case.settle(3, &full());
    assert_eq!(case.admit(5, "bob", false), Admission::Answered(full()));
}

#[test]
fn a_new_connection_replays_in_order_and_keeps_the_order() {
    let mut case = Case::new();
    for send_seq in 1..=3 {
        case.admit(send_seq, "bob", false);
    }
    case.settle(1, &full());
    case.0.connection_started(INSTALL);
    assert!(!case.settle(2, &accepted(7)), "not answered before the replay asks");
    assert_eq!(case.admit(1, "bob", false), Admission::Answered(full()));
    assert_eq!(case.admit(2, "bob", false), Admission::Answered(accepted(7)));
    assert_eq!(case.admit(3, "bob", false), Admission::Pending);
    assert!(case.settle(3, &accepted(8)), "the replay awaits it");
    assert_eq!(case.admit(4, "bob", false), Admission::Answered(full()), "re-armed by the replay");
    // Replays that end with after_reject leave no block behind.
    assert_eq!(case.admit(5, "bob", true), Admission::New);
    case.0.connection_started(INSTALL);
    case.admit(4, "bob", false);
    assert_eq!(case.admit(5, "bob", true), Admission::Pending);
    assert_eq!(case.admit(6, "bob", false), Admission::New);
}

#[test]
fn the_replay_of_a_forgotten_send_is_new() {
    let mut case = Case::new();
    for send_seq in 1..=4 {
        case.admit(send_seq, "bob", false);
    }
    case.settle(1, &accepted(7));
    assert!(case.forget(2), "its connection waits in vain");
    assert!(!case.forget(2), "once");
    assert!(!case.forget(1), "an outcome that is known stays known");
    assert!(!case.settle(2, &accepted(8)), "too late");
    case.0.connection_started(INSTALL);
    assert!(!case.forget(3), "not replayed yet on this connection");
    assert_eq!(case.0.unanswered(), 1);
    assert_eq!(case.admit(1, "bob", false), Admission::Answered(accepted(7)));
    assert_eq!(case.admit(2, "bob", false), Admission::New);
    assert_eq!(case.admit(2, "bob", false), Admission::Pending);
    // A refusal of the first one holds back the others, as it does the first time.
    assert!(case.settle(2, &full()));
    assert_eq!(case.admit(3, "bob", false), Admission::Answered(full()));
    assert_eq!(case.admit(4, "bob", false), Admission::Pending);
    assert_eq!(case.0.high_mark(), SendSeq(4));
    assert_eq!(case.admit(3, "bob", false), Admission::Answered(full()), "and is remembered");
}

#[test]
fn numbers_that_nobody_replays_are_forgotten_for_good() {
    let mut case = Case::new();
    for send_seq in 1..=SENDS_UNANSWERED_MAX as u64 + 1 {
        case.admit(send_seq, "bob", false);
        assert!(case.forget(send_seq));
    }
    assert!(matches!(case.fault(1), PeerFault::SendSeqForgotten { .. }));
    assert_eq!(case.admit(2, "bob", false), Admission::New);
    case.0.connection_started(InstallId(2));
    assert!(case.0.forgotten.is_empty());
}

#[test]
fn blocks_end_with_the_connection() {
    let mut case = Case::new();
    case.admit(1, "bob", false);
    case.settle(1, &full());
    case.0.connection_started(INSTALL);
    assert_eq!(case.admit(2, "bob", false), Admission::New);
}

#[test]
fn a_new_installation_starts_from_nothing() {
    let mut case = Case::new();
    case.admit(8, "bob", false);
    case.admit(9, "bob", false);
    case.settle(9, &full());
    case.0.connection_started(InstallId(2));
    assert_eq!(case.0.install_id(), InstallId(2));
    assert_eq!((case.0.unanswered(), case.0.high_mark()), (0, SendSeq(0)));
    assert_eq!(case.admit(8, "bob", false), Admission::New);
    // The outcome of the old installation's Send 8 is no answer to this one.
    assert!(!case.settle(8, &accepted(1)));
    assert_eq!(case.0.unanswered(), 1);
}

#[test]
fn blocks_are_bounded_and_the_oldest_ends_first() {
    let mut case = Case::new();
    for number in 1..=RECIPIENTS_BLOCKED_MAX as u64 + 1 {
        case.admit(number, &number.to_string(), false);
        case.settle(number, &full());
    }
    assert_eq!(case.0.blocks.len(), RECIPIENTS_BLOCKED_MAX);
    assert_eq!(case.admit(10_000, "1", false), Admission::New);
    assert_eq!(case.admit(10_001, "2", false), Admission::Answered(full()));
}

#[test]
fn an_accepted_send_takes_few_bytes() {
    assert!(size_of::<Remembered>() <= 40);
}

/// What the memory must do, with no thought for time or space.
#[derive(Default)]
struct Model {
    mark: u64,
    /// Per number: recipient, after_reject, awaited, outcome.
    sends: BTreeMap<u64, (String, bool, bool, Option<Outcome>)>,
    /// Numbers in the order in which their answers went out.
    answers: Vec<u64>,
    blocks: BTreeMap<String, Outcome>,
    forgotten: BTreeSet<u64>,
}

impl Model {
    /// The pending ones, and those whose answers went out last.
    fn remembered(&self) -> BTreeSet<u64> {
        let mut last = BTreeSet::new();
        for &answered in self.answers.iter().rev() {
            if last.len() < SEND_OUTCOMES_MAX {
                last.insert(answered);
            }
        }
        last.extend(self.sends.iter().filter(|(_, send)| send.3.is_none()).map(|(n, _)| *n));
        last
    }

    fn admit(&mut self, send_seq: u64, to: &str, after_reject: bool) -> Option<Admission> {
        if send_seq <= self.mark && !self.forgotten.contains(&send_seq) {
            if !self.remembered().contains(&send_seq) {
                return None;
            }
            if after_reject {
                self.blocks.remove(to);
            }
            let send = self.sends.get_mut(&send_seq).unwrap();
            let Some(outcome) = send.3.clone() else {
                send.2 = true;
                return Some(Admission::Pending);
            };
            if outcome.is_retryable() {
                self.blocks.insert(to.into(), outcome.clone());
            }
            self.answers.push(send_seq);
            return Some(Admission::Answered(outcome));
        }
        let block = self.blocks.get(to).cloned().filter(|_| !after_reject);
        let pending = self.sends.values().filter(|send| send.3.is_none()).count();
        if block.is_none() && pending == SENDS_UNANSWERED_MAX {
            return None;
        }
        self.mark = self.mark.max(send_seq);
        self.forgotten.remove(&send_seq);
        self.sends.insert(send_seq, (to.into(), after_reject, true, block.clone()));
        if let Some(outcome) = block {
            self.answers.push(send_seq);
            return Some(Admission::Answered(outcome));
        }
        self.blocks.remove(to);
        Some(Admission::New)
    }

    fn settle(&mut self, send_seq: u64, outcome: &Outcome) -> bool {
        // As in the memory, a later Send counts only while it is remembered.
        let kept = self.remembered();
        let (to, _, awaited, settled) = self.sends.get_mut(&send_seq).unwrap();
        let (to, awaited) = (to.clone(), *awaited);
        *settled = Some(outcome.clone());
        let passed = self
            .sends
            .range(send_seq + 1..)
            .any(|(s, send)| kept.contains(s) && send.0 == to && send.1);
        if outcome.is_retryable() && !passed {
            self.blocks.insert(to, outcome.clone());
        }
        self.answers.push(send_seq);
        awaited
    }
}

#[test]
fn random_histories_match_the_model() {
    for (seed, settle_percent) in (0..20).zip([30, 60, 90].into_iter().cycle()) {
        let mut random = Seeded(seed);
        let mut model = Model::default();
        let mut case = Case::new();
        // Some seeds settle slowly, so that the window fills; some let one Send hang for long.
        for step in 0..1_500 {
            match random.below(100) {
                0 => {
                    case.0.connection_started(INSTALL);
                    model.blocks.clear();
                    for send in model.sends.values_mut() {
                        send.2 = false;
                    }
                }
                1 | 2 => {
                    let pending = model.sends.iter().find(|(_, send)| send.3.is_none());
                    let Some((&send_seq, &(_, _, awaited, _))) = pending else { continue };
                    model.sends.remove(&send_seq);
                    model.forgotten.insert(send_seq);
                    assert_eq!(case.forget(send_seq), awaited, "seed {seed} step {step}");
                }
                roll if roll < settle_percent => {
                    let pending: Vec<u64> = model
                        .sends
                        .iter()
                        .filter(|(_, s)| s.3.is_none())
                        .map(|(n, _)| *n)
                        .collect();
                    // Mostly in order, sometimes not; the lowest is left hanging at times.
                    let skip = if seed % 2 == 0 { 0 } else { random.index(3) };
                    let Some(&send_seq) = pending.get(skip) else { continue };
                    let outcome = match random.below(10) {
                        0 => full(),
                        1 => refused(),
                        _ => accepted(step),
                    };
                    assert_eq!(
                        case.settle(send_seq, &outcome),
                        model.settle(send_seq, &outcome),
                        "seed {seed} step {step}"
                    );
                }
                _ => {
                    let replay = model.mark > 0 && random.chance(30);
                    let (send_seq, to, after_reject) = if replay {
                        let back = random.below(model.mark.min(600));
                        let send_seq = model.mark - back;
                        let known = model.sends.get(&send_seq).cloned();
                        let (to, after, ..) = known.unwrap_or_default();
                        (send_seq, if to.is_empty() { "x".into() } else { to }, after)
                    } else {
                        let to = random.below(5).to_string();
                        (model.mark + 1 + random.below(2), to, random.chance(10))
                    };
                    let got = case.0.admit(SendSeq(send_seq), &user(&to), after_reject).ok();
                    let expected = model.admit(send_seq, &to, after_reject);
                    assert_eq!(got, expected, "seed {seed} step {step} send_seq {send_seq}");
                }
            }
            assert!(case.0.sends.len() <= SENDS_UNANSWERED_MAX + SEND_OUTCOMES_MAX);
            assert!(case.0.answered.len() <= SEND_OUTCOMES_MAX);
        }
    }
}
