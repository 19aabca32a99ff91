//! What the clients of one thread say to each other, and whether it all arrives.
//!
//! Three loads: *open*, where a schedule says when each message is meant to leave, whatever the
//! server does; *closed*, where a delivery lets the next message out; and *fill*, where senders
//! send a given number as fast as their answers allow.

use std::collections::VecDeque;

use anyhow::{Result, bail};
use ringpost_protocol::id::Seq;
use ringpost_protocol::message::{ClientEvent, Delivery, Outcome};

use crate::measure::{Arrival, Measure, PayloadHead, PayloadPattern, Stream};
use crate::plan::Schedule;
use crate::swarm::Swarm;

/// Streams, load and counts of one thread.
pub struct Traffic {
    /// In `chat`, stream i is what client i sends, and i ^ 1 is its partner.
    streams: Vec<Stream>,
    /// For each stream, the last message number seen on the wire: what a client keeps to drop what is
    /// delivered twice after a crash.
    marks: Vec<u64>,
    load: Load,
    measure: Measure,
    /// For each client, the intended times of messages that could not leave yet.
    backlogs: Vec<VecDeque<u64>>,
    backlog_count: u64,
    /// For each client, (stream, messages left) of the fill.
    fills: Vec<VecDeque<(u32, u64)>>,
    fill_count: u64,
    pattern: PayloadPattern,
    tag: u32,
    /// The payload that is sent next.
    payload: Vec<u8>,
    /// Whether a message that comes again is legal because the server may have crashed.
    crashed: bool,
    /// On the ring's clock.
    last_delivery_ns: u64,
    first_send_ns: u64,
    last_answer_ns: u64,
}

#[derive(Debug)]
enum Load {
    None,
    Open { schedule: Schedule, start_ns: u64 },
    Closed { end_ns: u64 },
    Fill,
}

impl Traffic {
    pub fn new(clients: usize, streams: Vec<Stream>, pattern: PayloadPattern, tag: u32) -> Self {
        Self {
            marks: vec![0; streams.len()],
            streams,
            load: Load::None,
            measure: Measure::new(),
            backlogs: vec![VecDeque::new(); clients],
            backlog_count: 0,
            fills: vec![VecDeque::new(); clients],
            fill_count: 0,
            pattern,
            tag,
            payload: Vec::new(),
            crashed: false,
            last_delivery_ns: 0,
            first_send_ns: 0,
            last_answer_ns: 0,
        }
    }

    pub fn measure(&self) -> &Measure {
        &self.measure
    }

    pub fn count_vanished(&mut self) {
        self.measure.vanished += 1;
    }

    pub fn handle_connection_lost(&mut self) {
        self.measure.reconnects += 1;
    }

    /// Nothing waits to be sent, and every Send has its answer.
    pub fn is_answered(&self) -> bool {
        self.fill_count == 0
            && self.backlog_count == 0
            && self.measure.accepted + self.measure.rejected >= self.measure.sent
    }

    /// Everything that was accepted has arrived.
    pub fn is_delivered(&self) -> bool {
        self.measure.delivered + self.measure.rejected >= self.measure.sent
    }

    /// When the next message of an open loop is meant to leave.
    pub fn next_ns(&self) -> Option<u64> {
        match &self.load {
            Load::Open { schedule, start_ns } => Some(start_ns + schedule.next_ns()?),
            _ => None,
        }
    }

    /// The counts, with what the streams know of loss.
    pub fn finish(&mut self) -> Measure {
        let mut measure = self.measure.clone();
        measure.settle(self.streams.iter());
        measure
    }

    /// Whether the message is to be handed on; counts it if not.
    fn admit(&mut self, client: u32, delivery: &Delivery) -> Option<PayloadHead> {
        let head = self.pattern.check(&delivery.envelope).filter(|head| head.tag == self.tag);
        let stream = head.and_then(|head| self.streams.get_mut(head.stream as usize));
        let Some((head, stream)) = head.zip(stream).filter(|(_, stream)| stream.receiver == client)
        else {
            self.measure.corrupted += 1;
            return None;
        };
        let mark = &mut self.marks[head.stream as usize];
        if self.crashed && delivery.message_number.0 <= *mark {
            self.measure.duplicated_on_wire += 1;
            return None;
        }
        *mark = delivery.message_number.0.max(*mark);
        match stream.handle_arrival(head.sequence) {
            Arrival::New => {}
            Arrival::Reordered => self.measure.reordered += 1,
            Arrival::Duplicate => {
                self.measure.duplicated += 1;
                return None;
            }
            Arrival::Invented => {
                self.measure.corrupted += 1;
                return None;
            }
        }
        Some(head)
    }

    /// Makes the payload of one message.
    fn put_payload(&mut self, stream: u32, sequence: u64, intended_ns: u64) {
        self.payload.clear();
        let head = PayloadHead { tag: self.tag, stream, sequence, intended_ns };
        self.pattern.put(&head, &mut self.payload);
    }
}

impl Swarm {
    /// Sends as the schedule says, then waits up to `grace_ns` for what is still on its way.
    pub fn run_open(
        &mut self,
        schedule: Schedule,
        duration_ns: u64,
        grace_ns: u64,
    ) -> Result<bool> {
        let start_ns = self.now_ns();
        self.traffic.load = Load::Open { schedule, start_ns };
        self.run_load(start_ns + duration_ns, grace_ns)
    }

    /// Keeps `window` messages of each pair on their way, then waits up to `grace_ns`.
    pub fn run_closed(&mut self, window: u32, duration_ns: u64, grace_ns: u64) -> Result<bool> {
        let start_ns = self.now_ns();
        let end_ns = start_ns + duration_ns;
        self.traffic.load = Load::Closed { end_ns };
        let streams = u32::try_from(self.traffic.streams.len()).expect("streams fit u32");
        for pair in (0..streams).step_by(2) {
            for turn in 0..window {
                self.offer(pair + turn % 2, start_ns);
            }
        }
        self.run_load(end_ns, grace_ns)
    }

    /// Sends `count` messages on each stream and waits for their answers, however long they take
    /// as long as there are any.
    pub fn run_fill(&mut self, counts: &[(u32, u64)]) -> Result<()> {
        self.traffic.load = Load::Fill;
        self.traffic.first_send_ns = self.now_ns();
        for &(stream, count) in counts.iter().filter(|&&(_, count)| count > 0) {
            let sender = self.traffic.streams[stream as usize].sender;
            self.traffic.fills[sender as usize].push_back((stream, count));
            self.traffic.fill_count += count;
        }
        for client in 0..self.traffic.fills.len() {
            self.fill(u32::try_from(client).expect("clients are counted in u32"));
        }
        self.run_while_moving(|measure| measure.accepted + measure.rejected, Traffic::is_answered)
    }

    /// Waits until all has arrived, as long as something does.
    pub fn run_drain(&mut self) -> Result<()> {
        self.run_while_moving(|measure| measure.delivered, Traffic::is_delivered)
    }

    /// From now on the server may deliver again what was not acknowledged.
    pub fn handle_crash(&mut self) {
        self.traffic.crashed = true;
    }

    pub fn seconds_until_last_answer(&self) -> f64 {
        seconds(self.traffic.first_send_ns, self.traffic.last_answer_ns)
    }

    pub fn seconds_until_last_delivery(&self, start_ns: u64) -> f64 {
        seconds(start_ns, self.traffic.last_delivery_ns)
    }

    fn run_load(&mut self, end_ns: u64, grace_ns: u64) -> Result<bool> {
        self.run_until(end_ns, |_| false)?;
        let done = self.run_until(end_ns + grace_ns, |swarm| {
            swarm.traffic.next_ns().is_none()
                && swarm.traffic.is_answered()
                && swarm.traffic.is_delivered()
        })?;
        self.traffic.load = Load::None;
        // A doubled message comes after the first one: look a little longer.
        self.run_until(self.now_ns() + LINGER_NS, |_| false)?;
        Ok(done)
    }

    fn run_while_moving(
        &mut self,
        count: impl Fn(&Measure) -> u64,
        done: impl Fn(&Traffic) -> bool,
    ) -> Result<()> {
        loop {
            let before = count(&self.traffic.measure);
            let deadline_ns = self.now_ns() + STALL_NS_MAX;
            let moved = self.run_until(deadline_ns, |swarm| {
                done(&swarm.traffic) || count(&swarm.traffic.measure) > before + STALL_STEP
            })?;
            if done(&self.traffic) {
                self.run_until(self.now_ns() + LINGER_NS, |_| false)?;
                return Ok(());
            }
            if !moved && count(&self.traffic.measure) == before {
                return Ok(());
            }
        }
    }

    /// Messages of the open loop whose time has come.
    pub(crate) fn send_due(&mut self, now_ns: u64) {
        loop {
            let Load::Open { schedule, start_ns } = &mut self.traffic.load else { return };
            let start_ns = *start_ns;
            let Some(due) = schedule.poll_due(now_ns.saturating_sub(start_ns)) else { return };
            self.offer(due.client, start_ns + due.intended_ns);
        }
    }

    /// Messages, answers and receipts.
    pub(crate) fn handle_message(&mut self, client: u32, event: ClientEvent) -> Result<()> {
        match event {
            ClientEvent::Answered { send_seq, outcome } => {
                let slot = &mut self.slots[client as usize];
                let Some(send) = slot.client.handle_answer(send_seq, &outcome) else {
                    bail!("the server answered a Send twice, or one that was never sent");
                };
                self.traffic.last_answer_ns = self.now_ns();
                match outcome {
                    Outcome::Accepted { .. } => {
                        let latency_ns = self.now_ns().saturating_sub(send.intended_ns);
                        self.traffic.measure.accepted(latency_ns);
                    }
                    Outcome::Rejected { .. } => {
                        self.traffic.measure.rejected += 1;
                        self.traffic.streams[send.stream as usize].handle_rejected();
                    }
                }
                self.send_waiting(client);
            }
            ClientEvent::Deliver(delivery) => {
                self.see(client, delivery.seq);
                if let Some(head) = self.traffic.admit(client, &delivery) {
                    self.handle_delivery(&head);
                }
            }
            ClientEvent::Delivered { seq, .. } => self.see(client, seq),
            ClientEvent::Gap { seq, .. } => {
                self.see(client, seq);
                self.traffic.measure.gaps += 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// After Welcome: what was unanswered goes first, then what waited.
    pub(crate) fn resume(&mut self, client: u32) {
        for (send_seq, send) in self.slots[client as usize].client.replays() {
            self.traffic.put_payload(send.stream, send.sequence, send.intended_ns);
            let receiver = self.traffic.streams[send.stream as usize].receiver;
            let to = self.slots[receiver as usize].client.address().clone();
            self.slots[client as usize].client.replay(send_seq, &to, &self.traffic.payload);
        }
        self.send_waiting(client);
        self.mark_dirty(client);
    }

    fn handle_delivery(&mut self, head: &PayloadHead) {
        let now_ns = self.now_ns();
        self.traffic.last_delivery_ns = now_ns;
        self.traffic.measure.delivered(now_ns, now_ns.saturating_sub(head.intended_ns));
        if let Load::Closed { end_ns } = self.traffic.load
            && now_ns < end_ns
        {
            // The partner of the sender answers.
            self.offer(head.stream ^ 1, now_ns);
        }
    }

    fn see(&mut self, client: u32, seq: Seq) {
        self.slots[client as usize].client.handle_seq(seq);
        self.mark_dirty(client);
    }

    /// A message that wants to leave on the client's own stream: now, or when the window opens.
    fn offer(&mut self, client: u32, intended_ns: u64) {
        let index = client as usize;
        if self.traffic.backlogs[index].is_empty() && self.slots[index].client.is_ready() {
            self.send(client, intended_ns);
        } else {
            self.traffic.backlogs[index].push_back(intended_ns);
            self.traffic.backlog_count += 1;
        }
    }

    fn send_waiting(&mut self, client: u32) {
        let index = client as usize;
        while self.slots[index].client.is_ready() {
            let Some(intended_ns) = self.traffic.backlogs[index].pop_front() else { break };
            self.traffic.backlog_count -= 1;
            self.send(client, intended_ns);
        }
        self.fill(client);
    }

    /// Takes the client's streams in turn, so that all recipients get their first message early.
    fn fill(&mut self, client: u32) {
        let index = client as usize;
        while self.slots[index].client.is_ready()
            && self.slots[index].client.unanswered() < FILL_WINDOW
        {
            let Some((stream, left)) = self.traffic.fills[index].pop_front() else { break };
            self.traffic.fill_count -= 1;
            if left > 1 {
                self.traffic.fills[index].push_back((stream, left - 1));
            }
            let now_ns = self.now_ns();
            self.send(stream, now_ns);
        }
    }

    fn send(&mut self, stream: u32, intended_ns: u64) {
        let Stream { sender, receiver, .. } = self.traffic.streams[stream as usize];
        let sequence = self.traffic.streams[stream as usize].send();
        self.traffic.put_payload(stream, sequence, intended_ns);
        let to = self.slots[receiver as usize].client.address().clone();
        let client = &mut self.slots[sender as usize].client;
        client.send(&to, &self.traffic.payload, stream, sequence, intended_ns);
        self.traffic.measure.sent += 1;
        self.mark_dirty(sender);
    }
}

fn seconds(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e9
}

/// Unanswered Sends of one sender while it fills mailboxes.
const FILL_WINDOW: usize = 128;
/// How long to look for duplicates after the last expected message.
const LINGER_NS: u64 = 200_000_000;
/// Without any movement for so long, a fill or a drain has ended.
const STALL_NS_MAX: u64 = 10_000_000_000;
const STALL_STEP: u64 = 1_000;
