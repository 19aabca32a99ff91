//! What one connection has sent, against what it may send: rates, and its share of a turn.
//!
//! What has arrived is handled and paid for afterwards. A connection in debt is not read until that
//! is paid: its data waits in the kernel, and then at its sender. The limits are the caller's, so
//! that new ones hold at once.

use crate::limits::{Bucket, LimitSet};
use crate::metrics::Bound;

#[derive(Debug, Default)]
pub(super) struct Flow {
    frames: Bucket,
    bytes: Bucket,
    /// The socket is not read before then, monotonic; 0: it is read.
    paused_until_ms: u64,
    /// The turn that the next three speak of.
    turn: u32,
    turn_bytes: u32,
    turn_frames: u32,
    /// Of `turn_frames`.
    charged_frames: u32,
    /// It has had more than its share of a turn: each of its pieces is asked for.
    in_pieces: bool,
}

impl Flow {
    /// `bytes` have arrived. True: from now on it gets its data in pieces.
    pub(super) fn received(&mut self, turn: u32, bytes: usize, limits: &LimitSet) -> bool {
        self.enter(turn);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.turn_bytes = self.turn_bytes.saturating_add(bytes);
        let is_greedy = self.turn_bytes > limits.receive_bytes_per_turn;
        if self.in_pieces {
            // Its sender is not faster than its turns any more.
            self.in_pieces = bytes >= PIECE_BYTES_MIN || is_greedy;
            return false;
        }
        self.in_pieces = is_greedy;
        is_greedy
    }

    /// Whether another frame may be handled in this turn.
    pub(super) fn has_frames_left(&mut self, turn: u32, limits: &LimitSet) -> bool {
        self.enter(turn);
        self.turn_frames < limits.receive_frames_per_turn
    }

    /// A frame is being handled, in the turn that was asked for.
    pub(super) fn take_frame(&mut self) {
        self.turn_frames += 1;
    }

    /// Pays for `bytes` and for the frames since the last call. Gives the limit that was passed
    /// when the connection is to be read no more for a while.
    pub(super) fn charge(&mut self, now_ms: u64, bytes: usize, limits: &LimitSet) -> Option<Bound> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let frames = std::mem::replace(&mut self.charged_frames, self.turn_frames);
        let frames = self.turn_frames - frames;
        let bytes_ms = self.bytes.charge(limits.connection_bytes, now_ms, bytes);
        let frames_ms = self.frames.charge(limits.connection_frames, now_ms, frames);
        let wait_ms = bytes_ms.max(frames_ms);
        if wait_ms == 0 {
            return None;
        }
        let was_paused = self.is_paused();
        self.paused_until_ms = self.paused_until_ms.max(now_ms + wait_ms);
        let bound =
            if bytes_ms > frames_ms { Bound::ConnectionBytes } else { Bound::ConnectionFrames };
        (!was_paused).then_some(bound)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused_until_ms > 0
    }

    /// When the socket may be read again.
    pub(super) fn deadline_ms(&self) -> u64 {
        if self.is_paused() { self.paused_until_ms } else { u64::MAX }
    }

    /// Ends a pause whose time is over.
    pub(super) fn resume(&mut self, now_ms: u64) -> bool {
        let is_over = self.is_paused() && now_ms >= self.paused_until_ms;
        if is_over {
            self.paused_until_ms = 0;
        }
        is_over
    }

    pub(super) fn is_in_pieces(&self) -> bool {
        self.in_pieces
    }

    fn enter(&mut self, turn: u32) {
        if self.turn != turn {
            self.turn = turn;
            (self.turn_bytes, self.turn_frames, self.charged_frames) = (0, 0, 0);
        }
    }
}

/// A piece that is shorter was all that had arrived.
const PIECE_BYTES_MIN: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Rate;

    fn limits() -> LimitSet {
        LimitSet {
            connection_frames: Rate { per_second: 10, burst: 20 },
            connection_bytes: Rate { per_second: 1_000, burst: 10_000 },
            receive_bytes_per_turn: 5_000,
            receive_frames_per_turn: 8,
            ..LimitSet::default()
        }
    }

    fn take(flow: &mut Flow, turn: u32) -> bool {
        let may = flow.has_frames_left(turn, &limits());
        if may {
            flow.take_frame();
        }
        may
    }

    #[test]
    fn a_turn_takes_so_many_frames() {
        let mut flow = Flow::default();
        for turn in 1..3 {
            assert!((0..8).all(|_| take(&mut flow, turn)));
            assert!(!take(&mut flow, turn));
        }
    }

    #[test]
    fn who_sends_more_than_a_turn_takes_gets_pieces_until_they_are_short() {
        let (mut flow, limits) = (Flow::default(), limits());
        assert!(!flow.received(1, 4_096, &limits));
        assert!(flow.received(1, 4_096, &limits), "told once");
        assert!(!flow.received(1, 4_096, &limits));
        assert!(!flow.received(2, 4_096, &limits) && flow.is_in_pieces());
        assert!(!flow.received(3, 200, &limits) && !flow.is_in_pieces());
        assert!(!flow.received(3, 4_096, &limits) && !flow.is_in_pieces());
    }

    #[test]
    fn debts_are_paid_by_a_pause() {
        let (mut flow, limits) = (Flow::default(), limits());
        for turn in 0..3 {
            assert!((0..8).all(|_| take(&mut flow, turn)));
            let passed = flow.charge(50, 100, &limits);
            // 24 frames, 20 at once and 10 a second.
            assert_eq!(passed, (turn == 2).then_some(Bound::ConnectionFrames), "turn {turn}");
        }
        assert_eq!((flow.is_paused(), flow.deadline_ms()), (true, 450));
        // What was on its way makes it longer, and is not told again.
        assert_eq!(flow.charge(50, 20_000, &limits), None);
        assert_eq!(flow.deadline_ms(), 10_350);
        assert!(!flow.resume(10_349) && flow.resume(10_350) && !flow.resume(10_350));
        assert_eq!((flow.is_paused(), flow.deadline_ms()), (false, u64::MAX));
        assert_eq!(flow.charge(10_350, 1, &limits), Some(Bound::ConnectionBytes));
    }

    #[test]
    fn frames_are_charged_once() {
        let (mut flow, limits) = (Flow::default(), limits());
        for _ in 0..100 {
            assert!(take(&mut flow, 1) || flow.turn_frames == 8);
            assert_eq!(flow.charge(0, 0, &limits), None);
        }
    }
}
