//! What the app sent and the server has not finally answered, and in which order it may go out.
//!
//! An entry waits in the lane of its recipient until it is given a wire number; at most
//! `SENDS_UNANSWERED_MAX` are numbered. A number is durable before it is used, and numbers are used
//! in order, so after a crash the numbered entries are exactly those to replay.
//!
//! A lane whose entry was refused for now is closed: the server refuses everything behind it too,
//! until a Send carries `after_reject`. When all of those answers are in and the wait is over, the
//! first entry goes out again as a probe that carries it, and the lane is open.
//!
//! What goes out behind a probe travels in vain when there is still no room. So a lane that was
//! closed has a window: as many entries as got their final answer since the probe before, and one
//! more with each. A mailbox that stays full is asked with one envelope at a time; one that takes a
//! few in a round gets those few in one round trip; and in vain goes at most as much as was taken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ringpost_protocol::id::SendSeq;
use ringpost_protocol::limits::SENDS_UNANSWERED_MAX;
use ringpost_protocol::message::{Outcome, Recipient, SendBody};

use crate::event::{NewSend, News, Refused, SendId, Sent};
use crate::limits::{RETRY_DOUBLINGS_MAX, RETRY_MS_MIN};
use crate::store::book::Change;

/// The outbox holds as much as it may; wait until some of it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the outbox is full: {rows} messages, {bytes} bytes of envelopes")]
pub struct OutboxFull {
    pub rows: usize,
    pub bytes: usize,
}

pub(super) struct Outbox {
    rows: BTreeMap<SendId, Row>,
    /// Order is kept per user and per group.
    lanes: BTreeMap<Recipient, Lane>,
    /// First waiting entry of each open lane whose window has room.
    ready: BTreeMap<SendId, Recipient>,
    /// Closed lanes whose answers are all in, by the time of their probe.
    probes: BTreeSet<(u64, Recipient)>,
    /// Numbered entries.
    in_flight: BTreeMap<SendSeq, SendId>,
    bytes: usize,
    rows_max: usize,
    bytes_max: usize,
    next_send_id: u64,
    next_send_seq: u64,
}

struct Row {
    send: NewSend,
    /// This entry is the probe of its lane.
    after_reject: bool,
}

struct Lane {
    /// Not numbered, in the app's order.
    waiting: VecDeque<SendId>,
    in_flight_count: usize,
    /// So many may be in flight.
    window: usize,
    /// Accepted, or refused for good, since the last probe.
    final_count: usize,
    /// Probes refused in a row.
    refused_count: u32,
    /// Closed; when its probe is due.
    retry_at_ms: Option<u64>,
}

/// A numbered entry as it goes out.
pub(super) struct Numbered<'a> {
    pub(super) id: SendId,
    pub(super) send: &'a NewSend,
    pub(super) after_reject: bool,
}

impl Outbox {
    pub(super) fn new(rows_max: usize, bytes_max: usize, next_id: u64, next_seq: u64) -> Self {
        assert!(next_id > 0 && next_seq > 0, "both count from 1");
        Self {
            rows: BTreeMap::new(),
            lanes: BTreeMap::new(),
            ready: BTreeMap::new(),
            probes: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            bytes: 0,
            rows_max,
            bytes_max,
            next_send_id: next_id,
            next_send_seq: next_seq,
        }
    }

    /// Takes over what the database holds. Both lists rise.
    pub(super) fn restore(
        &mut self,
        sends: Vec<(SendId, NewSend)>,
        numbers: Vec<(SendSeq, SendId, bool)>,
    ) -> Result<(), &'static str> {
        let mut numbered = BTreeSet::new();
        for (send_seq, id, _) in &numbers {
            if send_seq.0 >= self.next_send_seq || !numbered.insert(*id) {
                return Err("a number that was never given, or given twice");
            }
        }
        for (id, send) in sends {
            if id.0 >= self.next_send_id {
                return Err("an outbox entry beyond the counter");
            }
            let lane = self.lanes.entry(send.to.clone()).or_default();
            if numbered.remove(&id) {
                lane.in_flight_count += 1;
            } else {
                lane.waiting.push_back(id);
            }
            self.bytes += envelope_bytes(&send.body);
            self.rows.insert(id, Row { send, after_reject: false });
        }
        if !numbered.is_empty() {
            return Err("a number without its outbox entry");
        }
        for (send_seq, id, after_reject) in numbers {
            self.in_flight.insert(send_seq, id);
            self.rows.get_mut(&id).expect("checked above").after_reject = after_reject;
        }
        self.ready = self
            .lanes
            .iter()
            .filter_map(|(key, lane)| Some((*lane.waiting.front()?, key.clone())))
            .collect();
        Ok(())
    }

    pub(super) fn enqueue(
        &mut self,
        send: NewSend,
        changes: &mut Vec<Change>,
    ) -> Result<SendId, OutboxFull> {
        let bytes = envelope_bytes(&send.body);
        if self.rows.len() >= self.rows_max || self.bytes + bytes > self.bytes_max {
            return Err(OutboxFull { rows: self.rows.len(), bytes: self.bytes });
        }
        let id = SendId(self.next_send_id);
        self.next_send_id += 1;
        self.bytes += bytes;
        let key = send.to.clone();
        changes.push(Change::PutSend(id, send.clone()));
        self.rows.insert(id, Row { send, after_reject: false });
        self.lanes.entry(key.clone()).or_default().waiting.push_back(id);
        self.schedule(&key);
        Ok(id)
    }

    pub(super) fn has_room(&self, rows: usize, bytes: usize) -> bool {
        self.rows.len() + rows <= self.rows_max && self.bytes + bytes <= self.bytes_max
    }

    /// Gives numbers to as many entries as may be unanswered.
    pub(super) fn release(&mut self, now_ms: u64, changes: &mut Vec<Change>) {
        while self.in_flight.len() < SENDS_UNANSWERED_MAX {
            let Some((key, after_reject)) = self.next_lane(now_ms) else { return };
            let lane = self.lanes.get_mut(&key).expect("a scheduled lane exists");
            if after_reject {
                lane.open();
            }
            let id = lane.waiting.pop_front().expect("a scheduled lane has something waiting");
            lane.in_flight_count += 1;
            let send_seq = SendSeq(self.next_send_seq);
            self.next_send_seq += 1;
            self.in_flight.insert(send_seq, id);
            self.rows.get_mut(&id).expect("a waiting entry exists").after_reject = after_reject;
            changes.push(Change::PutNumber { send_seq, id, after_reject });
            self.schedule(&key);
        }
    }

    /// Takes an answer. Gives what the app must be told; `None` for an answer to nothing, and when
    /// the entry will be retried.
    pub(super) fn answer(
        &mut self,
        now_ms: u64,
        send_seq: SendSeq,
        outcome: Outcome,
        changes: &mut Vec<Change>,
    ) -> Option<News> {
        let id = self.in_flight.remove(&send_seq)?;
        changes.push(Change::DropNumber(send_seq));
        let row = self.rows.get(&id).expect("a numbered entry exists");
        let (key, was_probe) = (row.send.to.clone(), row.after_reject);
        self.lanes.get_mut(&key).expect("its lane exists").in_flight_count -= 1;
        let news = match outcome {
            Outcome::Rejected { retry_after_ms, .. } if outcome.is_retryable() => {
                self.close(now_ms, &key, was_probe, retry_after_ms);
                self.wait_again(id, &key);
                None
            }
            Outcome::Rejected { code, .. } => {
                self.lanes.get_mut(&key).expect("its lane exists").note_final(was_probe);
                let to = self.remove(id, changes);
                Some(News::Refused(Refused { id, to, code }))
            }
            Outcome::Accepted { server_time_ms, skipped } => {
                self.lanes.get_mut(&key).expect("its lane exists").note_final(was_probe);
                let to = self.remove(id, changes);
                Some(News::Sent(Sent { id, send_seq, to, server_time_ms, skipped }))
            }
        };
        self.schedule(&key);
        news
    }

    /// Call when a connection starts. An entry that is numbered although an earlier one of its lane
    /// waits was refused on the last connection, even if that answer got lost: the server
    /// refuses everything behind a refusal. Replaying it under its number could let it overtake.
    pub(super) fn take_back_overtakers(&mut self, changes: &mut Vec<Change>) {
        let overtakers: Vec<(SendSeq, SendId, Recipient)> = self
            .in_flight
            .iter()
            .filter_map(|(send_seq, id)| {
                let key = self.rows.get(id)?.send.to.clone();
                let first = *self.lanes.get(&key)?.waiting.front()?;
                (first < *id).then_some((*send_seq, *id, key))
            })
            .collect();
        for (send_seq, id, key) in overtakers {
            self.in_flight.remove(&send_seq);
            changes.push(Change::DropNumber(send_seq));
            self.lanes.get_mut(&key).expect("its lane exists").in_flight_count -= 1;
            self.wait_again(id, &key);
            self.schedule(&key);
        }
    }

    /// Numbered entries with a number in `(after, up_to]`, in order.
    pub(super) fn numbers(
        &self,
        after: SendSeq,
        up_to: SendSeq,
    ) -> impl Iterator<Item = SendSeq> + '_ {
        self.in_flight.keys().copied().filter(move |seq| *seq > after && *seq <= up_to)
    }

    pub(super) fn numbered(&self, send_seq: SendSeq) -> Option<Numbered<'_>> {
        let id = *self.in_flight.get(&send_seq)?;
        let row = self.rows.get(&id)?;
        Some(Numbered { id, send: &row.send, after_reject: row.after_reject })
    }

    /// When [`Self::release`] has something to do that it has not now. While as much as may be is
    /// unanswered, only an answer makes room.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        if self.in_flight.len() >= SENDS_UNANSWERED_MAX {
            return None;
        }
        self.probes.first().map(|(retry_at_ms, _)| *retry_at_ms)
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Of envelopes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn next_send_id(&self) -> u64 {
        self.next_send_id
    }

    pub(super) fn next_send_seq(&self) -> u64 {
        self.next_send_seq
    }

    fn next_lane(&mut self, now_ms: u64) -> Option<(Recipient, bool)> {
        if self.probes.first().is_some_and(|(retry_at_ms, _)| *retry_at_ms <= now_ms) {
            let (_, key) = self.probes.pop_first().expect("looked at above");
            return Some((key, true));
        }
        self.ready.pop_first().map(|(_, key)| (key, false))
    }

    fn close(
        &mut self,
        now_ms: u64,
        key: &Recipient,
        was_probe: bool,
        retry_after_ms: Option<u64>,
    ) {
        let lane = self.lanes.get_mut(key).expect("its lane exists");
        if was_probe {
            lane.refused_count += 1;
        } else if lane.retry_at_ms.is_some() {
            return; // refused because it stood behind the one that closed the lane
        }
        let own_wait_ms = RETRY_MS_MIN << lane.refused_count.min(RETRY_DOUBLINGS_MAX);
        let wait_ms = own_wait_ms.max(retry_after_ms.unwrap_or(0));
        lane.retry_at_ms = Some(now_ms.saturating_add(wait_ms));
        if let Some(first) = lane.waiting.front() {
            self.ready.remove(first);
        }
    }

    /// Puts an entry that lost its number back at its place.
    fn wait_again(&mut self, id: SendId, key: &Recipient) {
        self.rows.get_mut(&id).expect("the entry exists").after_reject = false;
        let lane = self.lanes.get_mut(key).expect("its lane exists");
        if let Some(first) = lane.waiting.front() {
            self.ready.remove(first);
        }
        let place = lane.waiting.partition_point(|other| *other < id);
        lane.waiting.insert(place, id);
    }

    fn remove(&mut self, id: SendId, changes: &mut Vec<Change>) -> Recipient {
        let row = self.rows.remove(&id).expect("the entry exists");
        self.bytes -= envelope_bytes(&row.send.body);
        changes.push(Change::DropSend(id));
        row.send.to
    }

    /// Enters a lane where it is to be found next, or forgets it when it is empty.
    fn schedule(&mut self, key: &Recipient) {
        let lane = self.lanes.get(key).expect("its lane exists");
        let first = lane.waiting.front().copied();
        match (first, lane.retry_at_ms) {
            (None, _) if lane.in_flight_count == 0 => {
                self.lanes.remove(key);
            }
            (Some(first), None) if lane.in_flight_count < lane.window => {
                self.ready.insert(first, key.clone());
            }
            (Some(_), Some(retry_at_ms)) if lane.in_flight_count == 0 => {
                self.probes.insert((retry_at_ms, key.clone()));
            }
            _ => {}
        }
    }
}

impl Lane {
    /// Its probe goes out.
    fn open(&mut self) {
        self.retry_at_ms = None;
        self.window = self.final_count.clamp(1, SENDS_UNANSWERED_MAX);
        self.final_count = 0;
    }

    fn note_final(&mut self, was_probe: bool) {
        self.final_count += 1;
        self.window = (self.window + 1).min(SENDS_UNANSWERED_MAX);
        if was_probe {
            self.refused_count = 0;
        }
    }
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            in_flight_count: 0,
            window: SENDS_UNANSWERED_MAX,
            final_count: 0,
            refused_count: 0,
            retry_at_ms: None,
        }
    }
}

fn envelope_bytes(body: &SendBody) -> usize {
    match body {
        SendBody::Shared(envelope) => envelope.len(),
        SendBody::PerDevice(envelopes) => envelopes.iter().map(|(_, bytes)| bytes.len()).sum(),
    }
}
