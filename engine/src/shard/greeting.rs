//! Connections that are not verified yet: how many there are, how long, and how much of a turn they
//! get.
//!
//! A handshake and the verification of a token cost a hundred times what a message costs. So a turn
//! takes only so many of their steps, and what else has arrived waits its turn, in order, copied out
//! of the receive pool. A connection with something waiting is not read, so it waits with one piece.
//! When there are too many of them the oldest one ends if it had a fair chance, or else nothing is
//! accepted until one of them ends: an attacker who opens connections and says nothing pushes out
//! his own.

use std::collections::VecDeque;

use ringpost_ring::Ring;

use super::Shard;
use super::conn::ConnKey;
use super::inbound::Data;
use crate::metrics::Bound;

/// The connections of one shard that are not verified, and their steps.
#[derive(Default)]
pub(super) struct Greetings {
    /// How many there are.
    count: usize,
    /// With the time of their accept, in that order. Some of them are verified or gone.
    order: VecDeque<(ConnKey, u64)>,
    /// What has arrived and waits.
    waiting: VecDeque<(ConnKey, Box<[u8]>)>,
    /// That this turn may still take.
    steps_left: usize,
}

impl Greetings {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Whether the next turn has something to do.
    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn begin_turn(&mut self, steps: usize) {
        self.steps_left = steps;
    }

    /// A connection was accepted.
    pub(super) fn begin(&mut self, key: ConnKey, now_ms: u64) {
        self.count += 1;
        self.order.push_back((key, now_ms));
    }

    /// It is verified, or has ended.
    pub(super) fn end(&mut self) {
        self.count -= 1;
    }

    /// Takes a step now, unless the turn has taken its number or others are before it.
    pub(super) fn take_step(&mut self) -> bool {
        if self.steps_left == 0 || self.has_waiting() {
            return false;
        }
        self.steps_left -= 1;
        true
    }

    pub(super) fn wait(&mut self, key: ConnKey, data: Box<[u8]>) {
        self.waiting.push_back((key, data));
    }

    /// The next one that waits, if the turn may take it.
    fn take_waiting(&mut self) -> Option<(ConnKey, Box<[u8]>)> {
        if self.steps_left == 0 {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.steps_left -= 1;
        Some(next)
    }

    /// The oldest one, and when it was accepted. `is_unverified` tells which still count.
    fn oldest(&mut self, is_unverified: impl Fn(ConnKey) -> bool) -> Option<(ConnKey, u64)> {
        // What is verified stays in the middle until there is too much of it.
        if self.order.len() > 2 * self.count + ORDER_SLACK {
            self.order.retain(|&(key, _)| is_unverified(key));
        }
        while let Some(&(key, accepted_ms)) = self.order.front() {
            if is_unverified(key) {
                return Some((key, accepted_ms));
            }
            self.order.pop_front();
        }
        None
    }
}

impl<R: Ring> Shard<R> {
    /// Steps that earlier turns have left, in order.
    pub(super) fn drive_greetings(&mut self) {
        self.greetings.begin_turn(self.limits.handshake_steps_per_turn);
        while let Some((key, data)) = self.greetings.take_waiting() {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            conn.awaits_step = false;
            self.rearm.push(key);
            self.handle_data(key, Data::Copied(&data));
            self.finish_close(key);
        }
    }

    /// Keeps what has arrived for a connection whose step comes later.
    pub(super) fn postpone_step(&mut self, key: ConnKey, data: Box<[u8]>) {
        self.metrics.bound_hits.add(Bound::Handshakes);
        self.conns.get_mut(key).expect("checked by the caller").awaits_step = true;
        self.greetings.wait(key, data);
    }

    /// The connection is verified, or ends before that.
    pub(super) fn end_greeting(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if std::mem::replace(&mut conn.is_unverified, false) {
            self.greetings.end();
        }
    }

    /// If there are too many unverified connections, the oldest ones make room. `None`: there is
    /// room; otherwise when the oldest one has had its time.
    pub(super) fn make_room_to_greet(&mut self) -> Option<u64> {
        while self.greetings.count() >= self.limits.handshakes_pending_max {
            let conns = &self.conns;
            let (key, accepted_ms) = self
                .greetings
                .oldest(|key| conns.get(key).is_some_and(|conn| conn.is_unverified))?;
            let until_ms = accepted_ms + GREETING_MS_MIN;
            if self.time.now_ms < until_ms {
                return Some(until_ms);
            }
            self.metrics.bound_hits.add(Bound::HandshakesPending);
            self.abort(key);
            self.finish_close(key);
        }
        None
    }
}

/// Time that a connection has for its handshake even when others want its place.
const GREETING_MS_MIN: u64 = 1_000;
const ORDER_SLACK: usize = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn key(index: u32) -> ConnKey {
        ConnKey { index, generation: 1 }
    }

    #[test]
    fn steps_are_taken_in_order_and_so_many_in_a_turn() {
        let mut greetings = Greetings::default();
        greetings.begin_turn(2);
        let now: Vec<bool> = (0..3).map(|_| greetings.take_step()).collect();
        assert_eq!(now, [true, true, false]);
        for index in 2..6 {
            greetings.wait(key(index), Box::new([]));
        }
        greetings.begin_turn(3);
        let taken: Vec<_> = std::iter::from_fn(|| greetings.take_waiting()).collect();
        assert_eq!(taken.iter().map(|(key, _)| key.index).collect::<Vec<_>>(), [2, 3, 4]);
        greetings.begin_turn(3);
        assert!(!greetings.take_step(), "somebody is before it");
        assert!(greetings.take_waiting().is_some() && greetings.take_step());
    }

    #[test]
    fn the_oldest_is_found_and_the_list_stays_short() {
        let mut greetings = Greetings::default();
        let mut unverified = BTreeSet::new();
        for index in 0..10_000 {
            greetings.begin(key(index), u64::from(index));
            // All but the first and every thousandth are verified at once.
            if index % 1_000 == 0 {
                unverified.insert(index);
            } else {
                greetings.end();
            }
            let oldest = greetings.oldest(|key| unverified.contains(&key.index));
            assert_eq!(oldest, Some((key(0), 0)));
            assert!(greetings.order.len() <= 2 * greetings.count() + ORDER_SLACK + 1);
        }
        unverified.remove(&0);
        greetings.end();
        let oldest = greetings.oldest(|key| unverified.contains(&key.index));
        assert_eq!((oldest, greetings.count()), (Some((key(1_000), 1_000)), 9));
    }
}
