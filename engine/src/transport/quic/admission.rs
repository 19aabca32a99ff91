//! Whether a client's first packet begins a handshake: it costs the gateway as much as a hundred
//! messages, and its source address may be a lie.

use super::config::QuicLimits;
use crate::limits::Bucket;

/// What to do with a first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    /// Demands a proof of the address; costs nothing until it comes back.
    Retry,
    /// Says no, so that the client goes to TCP at once.
    Refuse,
    /// Says nothing: an answer would cost more than the packet is worth.
    Ignore,
}

/// What is known about a first packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// It brings the proof that its source address is its own.
    pub(super) is_address_proven: bool,
    /// A proof may still be demanded.
    pub(super) may_retry: bool,
    /// The address, if it is its own, would be refused.
    pub(super) is_over_limit: bool,
}

/// The state of one shard's admission.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// Handshakes under way.
    pub(super) pending: usize,
    /// Nobody is let in: the gateway drains.
    pub(super) is_closed: bool,
    /// Handshakes begun in the turn of `turn_ns`.
    accepted: u32,
    turn_ns: u64,
    retries: Bucket,
}

impl Admission {
    pub(super) fn decide(
        &mut self,
        now_ns: u64,
        candidate: Candidate,
        connections: usize,
        limits: &QuicLimits,
    ) -> Verdict {
        if self.turn_ns != now_ns {
            (self.turn_ns, self.accepted) = (now_ns, 0);
        }
        if self.is_closed || connections >= limits.connections_max {
            return Verdict::Refuse;
        }
        if self.pending >= limits.handshakes_pending_max {
            // Who has proven its address is told; the others are a flood.
            let refused = candidate.is_address_proven;
            return if refused { Verdict::Refuse } else { Verdict::Ignore };
        }
        let is_busy =
            self.pending >= limits.retry_pending || self.accepted >= limits.accepts_per_turn;
        // Nobody is refused for an address that somebody else may have named.
        let must_prove = is_busy || candidate.is_over_limit;
        if must_prove && !candidate.is_address_proven && candidate.may_retry {
            let now_ms = now_ns / 1_000_000;
            let affordable = self.retries.take(limits.retries, now_ms, 1).is_ok();
            return if affordable { Verdict::Retry } else { Verdict::Ignore };
        }
        if self.accepted >= 2 * limits.accepts_per_turn {
            return Verdict::Ignore; // it tries again, when others had their turn
        }
        self.accepted += 1;
        Verdict::Accept
    }

    /// Who was accepted was not let in.
    pub(super) fn take_back(&mut self) {
        self.accepted -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Rate;

    const STRANGER: Candidate =
        Candidate { is_address_proven: false, may_retry: true, is_over_limit: false };
    const PROVEN: Candidate =
        Candidate { is_address_proven: true, may_retry: false, is_over_limit: false };

    fn limits() -> QuicLimits {
        QuicLimits {
            connections_max: 100,
            retry_pending: 10,
            accepts_per_turn: 4,
            handshakes_pending_max: 20,
            retries: Rate { per_second: 1_000, burst: 3 },
            ..QuicLimits::default()
        }
    }

    #[test]
    fn strangers_prove_their_address_when_many_handshakes_are_under_way() {
        let (mut admission, limits) = (Admission { pending: 9, ..Admission::default() }, limits());
        assert_eq!(admission.decide(1, STRANGER, 9, &limits), Verdict::Accept);
        let over_limit = Candidate { is_over_limit: true, ..STRANGER };
        assert_eq!(admission.decide(1, over_limit, 9, &limits), Verdict::Retry);
        admission.pending = 10;
        assert_eq!(admission.decide(2, STRANGER, 10, &limits), Verdict::Retry);
        assert_eq!(admission.decide(2, PROVEN, 10, &limits), Verdict::Accept);
    }

    #[test]
    fn one_turn_begins_a_few_handshakes_without_proof() {
        let (mut admission, limits) = (Admission::default(), limits());
        for _ in 0..4 {
            assert_eq!(admission.decide(1, STRANGER, 0, &limits), Verdict::Accept);
        }
        assert_eq!(admission.decide(1, STRANGER, 0, &limits), Verdict::Retry);
        for _ in 4..8 {
            assert_eq!(admission.decide(1, PROVEN, 0, &limits), Verdict::Accept);
        }
        assert_eq!(admission.decide(1, PROVEN, 0, &limits), Verdict::Ignore);
        assert_eq!(admission.decide(2, STRANGER, 0, &limits), Verdict::Accept);
    }

    #[test]
    fn a_flood_is_answered_at_a_rate_and_then_not_at_all() {
        let (mut admission, limits) = (Admission { pending: 10, ..Admission::default() }, limits());
        let verdicts: Vec<_> = (0..5).map(|_| admission.decide(0, STRANGER, 10, &limits)).collect();
        assert_eq!(verdicts[..3], [Verdict::Retry; 3]);
        assert_eq!(verdicts[3..], [Verdict::Ignore; 2]);
        assert_eq!(admission.decide(1_000_000, STRANGER, 10, &limits), Verdict::Retry);
    }

    #[test]
    fn a_full_house_tells_those_who_have_proven_their_address() {
        let (mut admission, limits) = (Admission { pending: 20, ..Admission::default() }, limits());
        assert_eq!(admission.decide(0, STRANGER, 20, &limits), Verdict::Ignore);
        assert_eq!(admission.decide(0, PROVEN, 20, &limits), Verdict::Refuse);
        admission.pending = 0;
        assert_eq!(admission.decide(0, STRANGER, 100, &limits), Verdict::Refuse);
        admission.is_closed = true;
        assert_eq!(admission.decide(0, PROVEN, 0, &limits), Verdict::Refuse);
    }
}
