//! Refusals that hold what comes behind them, at a recipient's home; why is told in `route`.

use ringpost_protocol::id::{SendSeq, UserId};
use ringpost_protocol::message::Outcome;

use super::message::{BlockArmed, DeviceIndex, Origin, StoreRequest};

/// Refusals that a recipient's home keeps up until the sender's home knows of them.
#[derive(Default)]
pub(super) struct Blocks {
    armed: hashbrown::HashMap<(u16, DeviceIndex, UserId), Block>,
}

struct Block {
    /// The last Send refused; the note for it ends the block.
    send_seq: SendSeq,
    refusal: Refusal,
}

/// What becomes of a Send that comes behind one that was not stored.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    Outcome(Outcome),
    Unknown,
}

impl Blocks {
    /// The refusal that a Send must get, if its sender is blocked here. The caller arms it again.
    pub(super) fn check(&mut self, request: &StoreRequest) -> Option<Refusal> {
        if self.armed.is_empty() {
            return None;
        }
        let key = key(&request.origin, &request.to);
        let refusal = self.armed.get(&key)?.refusal.clone();
        if request.after_reject && matches!(refusal, Refusal::Outcome(_)) {
            self.armed.remove(&key);
            return None;
        }
        Some(refusal)
    }

    pub(super) fn arm(&mut self, origin: Origin, to: &UserId, refusal: Refusal) {
        self.armed.insert(key(&origin, to), Block { send_seq: origin.send_seq, refusal });
    }

    /// Senders of `shard` know of all refusals.
    pub(super) fn forget(&mut self, shard: u16) {
        self.armed.retain(|(of, _, _), _| *of != shard);
    }

    pub(super) fn noted(&mut self, note: &BlockArmed) {
        let key = key(&note.origin, &note.to);
        if self.armed.get(&key).is_some_and(|block| block.send_seq == note.origin.send_seq) {
            self.armed.remove(&key);
        }
    }
}

/// A device keeps its index while the process lives.
fn key(origin: &Origin, to: &UserId) -> (u16, DeviceIndex, UserId) {
    (origin.shard, origin.device, to.clone())
}

#[cfg(test)]
mod tests {
    use ringpost_protocol::message::RejectCode;

    use super::*;

    fn request(send_seq: u64, after_reject: bool) -> StoreRequest {
        StoreRequest { after_reject, ..StoreRequest::sample(send_seq, "bob") }
    }

    fn arm(blocks: &mut Blocks, send_seq: u64, refusal: Refusal) {
        let request = request(send_seq, false);
        blocks.arm(request.origin, &request.to, refusal);
    }

    fn note(blocks: &mut Blocks, send_seq: u64) {
        let StoreRequest { origin, to, .. } = request(send_seq, false);
        blocks.noted(&BlockArmed { origin, to });
    }

    fn full() -> Refusal {
        let code = RejectCode::MailboxFull;
        Refusal::Outcome(Outcome::Rejected { code, retry_after_ms: Some(1) })
    }

    #[test]
    fn a_refusal_holds_until_after_reject_or_the_note_for_the_last_one() {
        let mut blocks = Blocks::default();
        arm(&mut blocks, 1, full());
        assert!(matches!(blocks.check(&request(2, false)), Some(Refusal::Outcome(_))));
        arm(&mut blocks, 2, full());
        note(&mut blocks, 1);
        assert!(blocks.check(&request(3, false)).is_some(), "2 is not known there yet");
        note(&mut blocks, 2);
        assert!(blocks.check(&request(4, false)).is_none());
        arm(&mut blocks, 5, full());
        assert!(blocks.check(&request(6, true)).is_none());
        assert!(blocks.check(&request(7, false)).is_none());
    }

    #[test]
    fn an_unknown_outcome_lets_nothing_pass_before_the_note() {
        let mut blocks = Blocks::default();
        arm(&mut blocks, 1, full());
        arm(&mut blocks, 2, Refusal::Unknown);
        for after_reject in [true, false] {
            let refusal = blocks.check(&request(3, after_reject));
            assert!(matches!(refusal, Some(Refusal::Unknown)), "{refusal:?}");
        }
        note(&mut blocks, 1);
        assert!(blocks.check(&request(3, true)).is_some());
        note(&mut blocks, 2);
        assert!(blocks.check(&request(2, false)).is_none());
    }
}
