//! One device of a member: connects, talks when all are there, remembers what it got.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use ringpost_protocol::id::{SendSeq, UserId};
use ringpost_protocol::message::{
    Call, ClientEvent, Delivery, ErrorCode, GroupState, Outcome, Recipient, RejectCode, Reply,
};
use ringpost_ring::host::monotonic_ns;

use super::admin::Admin;
use super::{Phase, Tally};
use crate::line::Line;
use crate::measure::latencies_us;
use crate::plan::group::{GROUP_PAYLOAD_BYTES_MIN, GroupPlan};
use crate::plan::mix;
use crate::stage::{Actor, Stage, play};

/// A device and its connection.
pub struct Device {
    plan: GroupPlan,
    group: UserId,
    line: Line,
    stage: Arc<Stage>,
    tally: Arc<Tally>,
    is_welcome: bool,
    /// Of the first device.
    admin: Option<Admin>,
    standing: Standing,
    /// The roster has been asked for, and not answered.
    is_asking: bool,
    /// The administrator's request was refused for now.
    is_refused: bool,
    /// When to ask again for what was refused.
    ask_ns: u64,
    /// What it still has to send, the next one last; when it was sent first, if it was.
    unsent: Vec<(u64, Option<u64>)>,
    /// What was sent and not answered: number, version, members of it.
    sent: Option<(u64, u64, u64)>,
    seen: Seen,
}

/// What a device knows of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Unknown,
    Member { version: u64, members: u64 },
    Outside,
}

/// What a device has seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Numbers of the messages with the version of the roster that they were sent for, in the order
    /// in which they came; each once.
    pub order: Vec<(u64, u64)>,
    /// The same of those that it sent itself.
    pub accepted: Vec<(u64, u64)>,
    /// At the first device: the members of each version.
    pub rosters: BTreeMap<u64, Vec<u32>>,
    /// The same: how often the group was changed.
    pub changes: u32,
    /// Sends that were answered by STALE_ROSTER, and went out again.
    pub stale: u64,
    /// Sends of somebody who was no member then; they went out again later.
    pub outside: u64,
    pub rejected: u64,
    /// Devices that were named as skipped in its answers.
    pub skipped: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    pub gaps: u64,
    /// From the first send to the answer, and to the delivery, microseconds.
    pub answers_us: Histogram<u64>,
    pub deliveries_us: Histogram<u64>,
    has: Vec<bool>,
}

impl Seen {
    pub(super) fn new(messages: usize) -> Self {
        Self {
            order: Vec::new(),
            accepted: Vec::new(),
            rosters: BTreeMap::new(),
            changes: 0,
            stale: 0,
            outside: 0,
            rejected: 0,
            skipped: 0,
            duplicated: 0,
            corrupted: 0,
            gaps: 0,
            answers_us: latencies_us(),
            deliveries_us: latencies_us(),
            has: vec![false; messages],
        }
    }

    /// Whether it is one that has not come before.
    fn take(&mut self, plan: &GroupPlan, delivery: &Delivery) -> bool {
        let Some(head) = Head::read(plan, &delivery.envelope) else {
            self.corrupted += 1;
            return false;
        };
        let place = usize::try_from(head.number).expect("below the number of messages");
        if std::mem::replace(&mut self.has[place], true) {
            self.duplicated += 1;
            return false;
        }
        self.order.push((head.number, head.version));
        self.deliveries_us.saturating_record(monotonic_ns().saturating_sub(head.sent_ns) / 1_000);
        true
    }
}

impl Device {
    /// `users`: the members, by their numbers.
    pub fn new(
        plan: &GroupPlan,
        index: u32,
        (group, users): (UserId, &[UserId]),
        line: Line,
        (stage, tally): (Arc<Stage>, Arc<Tally>),
    ) -> Result<Self> {
        let unsent = plan.messages_of(index).into_iter().rev().map(|number| (number, None));
        Ok(Self {
            plan: plan.clone(),
            admin: (index == 0).then(|| Admin::new(plan, group.clone(), users.to_vec())),
            group,
            line,
            stage,
            tally,
            is_welcome: false,
            standing: Standing::Unknown,
            is_asking: false,
            is_refused: false,
            ask_ns: 0,
            unsent: unsent.collect(),
            sent: None,
            seen: Seen::new(usize::try_from(plan.messages).context("too many messages")?),
        })
    }

    /// Goes through all phases.
    pub fn run(mut self) -> Result<Seen> {
        let stage = Arc::clone(&self.stage);
        play(&mut self, &stage, Phase::Leave).map(|()| self.seen)
    }

    /// What the administrator does next.
    fn change(&mut self, now_ns: u64) -> Result<()> {
        let Some(admin) = &mut self.admin else { return Ok(()) };
        let call = if std::mem::take(&mut self.is_refused) {
            admin.again()
        } else if !self.seen.rosters.is_empty() {
            let accepted = self.tally.accepted.load(Ordering::Relaxed);
            self.stage.has_begun(Phase::Talk).then(|| admin.poll_change(accepted, now_ns)).flatten()
        } else {
            admin.again().is_none().then(|| admin.create())
        };
        call.map_or(Ok(()), |call| self.line.client.call(CHANGE_ID, &call))
    }

    /// Asks for the roster.
    fn ask(&mut self) -> Result<()> {
        self.is_asking = true;
        self.line.client.call(GET_ID, &Call::GroupGet { group: self.group.clone() })
    }

    fn send_next(&mut self, version: u64, members: u64) {
        let Some((number, first_ns)) = self.unsent.pop() else { return };
        let sent_ns = first_ns.unwrap_or_else(monotonic_ns);
        let payload = Head { number, version, sent_ns }.payload(&self.plan);
        self.sent = Some((number, version, members));
        let to = Recipient::Group(self.group.clone());
        self.line.client.send_as_of(version, &to, &payload, number, sent_ns);
    }

    fn handle_answer(&mut self, send_seq: SendSeq, outcome: &Outcome) -> Result<()> {
        let send = self.line.client.handle_answer(send_seq, outcome).zip(self.sent.take());
        let Some((send, (number, version, members))) = send else {
            bail!("the server answered a Send twice, or one that was never sent");
        };
        let again = (number, Some(send.intended_ns));
        match outcome {
            Outcome::Accepted { skipped, .. } => {
                self.seen.accepted.push((number, version));
                self.seen.skipped += skipped.len() as u64;
                let deliveries = members * u64::from(self.plan.devices_per_member) - 1;
                self.tally.expected.fetch_add(deliveries, Ordering::AcqRel);
                self.tally.accepted.fetch_add(1, Ordering::AcqRel);
                let taken_ns = monotonic_ns().saturating_sub(send.intended_ns);
                self.seen.answers_us.saturating_record(taken_ns / 1_000);
            }
            Outcome::Rejected { code: RejectCode::StaleRoster, .. } => {
                self.seen.stale += 1;
                self.standing = Standing::Unknown;
                self.unsent.push(again);
            }
            Outcome::Rejected { code: RejectCode::NotAMember, .. } if self.plan.changes > 0 => {
                self.seen.outside += 1;
                self.standing = Standing::Outside;
                self.unsent.push(again);
            }
            Outcome::Rejected { .. } => self.seen.rejected += 1,
        }
        Ok(())
    }

    fn handle_state(&mut self, request_id: u64, state: &GroupState) -> Result<()> {
        if let Some(admin) = self.admin.as_mut().filter(|_| request_id == CHANGE_ID) {
            let (version, members) = admin.handle_state(state)?;
            self.seen.rosters.insert(version, members);
            self.seen.changes = admin.made();
        } else {
            self.is_asking = false;
        }
        let is_news = match self.standing {
            Standing::Member { version, .. } => version < state.version,
            Standing::Unknown | Standing::Outside => true,
        };
        if is_news {
            let members = state.members.len() as u64;
            self.standing = Standing::Member { version: state.version, members };
        }
        Ok(())
    }

    fn handle_refusal(&mut self, request_id: u64, code: ErrorCode) -> Result<()> {
        match (request_id, code) {
            (GET_ID, ErrorCode::NotAllowed) => self.standing = Standing::Outside,
            (GET_ID, ErrorCode::LimitReached) => {}
            (CHANGE_ID, ErrorCode::LimitReached) => self.is_refused = true,
            _ => bail!("the server refuses request {request_id}: {code:?}"),
        }
        self.is_asking &= request_id != GET_ID;
        self.ask_ns = monotonic_ns() + ASK_INTERVAL_NS;
        Ok(())
    }
}

impl Actor for Device {
    type Phase = Phase;

    fn line(&mut self) -> &mut Line {
        &mut self.line
    }

    fn act(&mut self) -> Result<()> {
        let now_ns = monotonic_ns();
        if self.stage.has_begun(Phase::Create) && !(self.is_refused && now_ns < self.ask_ns) {
            self.change(now_ns)?;
        }
        if !self.stage.has_begun(Phase::Read) {
            return Ok(());
        }
        match self.standing {
            Standing::Member { version, members } => {
                if self.stage.has_begun(Phase::Talk) && self.sent.is_none() {
                    self.send_next(version, members);
                }
            }
            Standing::Unknown | Standing::Outside => {
                if !self.is_asking && now_ns >= self.ask_ns {
                    self.ask()?;
                }
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: ClientEvent) -> Result<()> {
        match event {
            ClientEvent::Welcome(welcome) => {
                self.line.client.handle_welcome(&welcome);
                self.is_welcome = true;
            }
            ClientEvent::Replied { request_id, reply: Reply::GroupState(state) } => {
                self.handle_state(request_id, &state)?;
            }
            // Somebody who is out may be in again. A member goes on with what it knows, as it
            // would when this was lost: the answer to its next Send tells.
            ClientEvent::GroupChanged { .. } => self.ask_ns = 0,
            ClientEvent::Answered { send_seq, outcome } => {
                self.handle_answer(send_seq, &outcome)?
            }
            ClientEvent::Deliver(delivery) => {
                self.line.client.handle_seq(delivery.seq);
                if self.seen.take(&self.plan, &delivery) {
                    self.stage.done();
                }
            }
            ClientEvent::Delivered { seq, .. } => self.line.client.handle_seq(seq),
            ClientEvent::Gap { seq, .. } => {
                self.line.client.handle_seq(seq);
                self.seen.gaps += 1;
            }
            ClientEvent::GoAway { reason, .. } => bail!("the server sends away: {reason:?}"),
            ClientEvent::Error { code, request_id, fatal: false, .. } if request_id != 0 => {
                self.handle_refusal(request_id, code)?;
            }
            ClientEvent::Error { code, text, .. } => bail!("the server refuses: {code:?}, {text}"),
            _ => {}
        }
        Ok(())
    }

    fn finished(&self) -> Option<Phase> {
        let has_said = self.unsent.is_empty() && self.sent.is_none();
        if self.stage.has_begun(Phase::Talk)
            && has_said
            && self.admin.as_ref().is_none_or(Admin::is_done)
        {
            return Some(Phase::Talk);
        }
        if matches!(self.standing, Standing::Member { .. }) {
            return Some(Phase::Read);
        }
        if self.admin.as_ref().is_none_or(Admin::is_created) && self.stage.has_begun(Phase::Create)
        {
            return Some(Phase::Create);
        }
        self.is_welcome.then_some(Phase::Login)
    }
}

/// What is in a message before its filling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    number: u64,
    version: u64,
    sent_ns: u64,
}

impl Head {
    /// With bytes that depend on all of it.
    fn payload(self, plan: &GroupPlan) -> Vec<u8> {
        let Self { number, version, sent_ns } = self;
        let mut payload = Vec::with_capacity(plan.payload_bytes + 8);
        payload.extend([number, version, sent_ns].map(u64::to_le_bytes).as_flattened());
        let mut state = mix(number ^ mix(version ^ mix(sent_ns)));
        while payload.len() < plan.payload_bytes {
            state = mix(state);
            payload.push(state.to_le_bytes()[0]);
        }
        payload
    }

    /// `None`: it is not what was sent.
    fn read(plan: &GroupPlan, bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..GROUP_PAYLOAD_BYTES_MIN)?;
        let field = |place: usize| {
            let bytes = head[8 * place..8 * (place + 1)].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        };
        let head = Self { number: field(0), version: field(1), sent_ns: field(2) };
        (head.number < plan.messages && bytes == head.payload(plan)).then_some(head)
    }
}

const GET_ID: u64 = 1;
const CHANGE_ID: u64 = 2;
/// Before the roster is asked for again, by those who are out or were refused.
const ASK_INTERVAL_NS: u64 = 100_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_was_changed_anywhere_is_noticed() {
        let plan = GroupPlan {
            members: 2,
            devices_per_member: 1,
            messages: 10,
            payload_bytes: 40,
            changes: 0,
            seed: 1,
        };
        let head = Head { number: 9, version: 3, sent_ns: 77 };
        let sent = head.payload(&plan);
        assert_eq!((sent.len(), Head::read(&plan, &sent)), (40, Some(head)));
        for index in 0..sent.len() {
            let mut changed = sent.clone();
            changed[index] ^= 1;
            assert_eq!(Head::read(&plan, &changed), None, "{index}");
        }
        assert_eq!(Head::read(&plan, &sent[..39]), None);
        assert_eq!(Head::read(&plan, &Head { number: 10, ..head }.payload(&plan)), None);
    }
}
