//! One device of a member: connects, talks when all are there, remembers what it got.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use hdrhistogram::Histogram;
use ringpost_protocol::id::UserId;
use ringpost_protocol::message::{Call, ClientEvent, Delivery, Outcome, Recipient, Reply};
use ringpost_ring::host::monotonic_ns;
use rustls::pki_types::ServerName;

use super::{Phase, Stage};
use crate::client::{Client, Identity};
use crate::plan::group::{GROUP_PAYLOAD_BYTES_MIN, GroupPlan};
use crate::plan::mix;

/// A device and its connection.
pub struct Device {
    plan: GroupPlan,
    index: u32,
    group: Recipient,
    /// Whom the first device makes the group with.
    others: Vec<UserId>,
    client: Client,
    socket: TcpStream,
    stage: Arc<Stage>,
    is_welcome: bool,
    is_created: bool,
    /// What it still has to send, the next one last.
    unsent: Vec<u64>,
    expected: u64,
    seen: Seen,
}

/// What a device has seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Numbers of the messages, in the order in which they came; each once.
    pub order: Vec<u64>,
    pub accepted: u64,
    pub rejected: u64,
    /// Devices that were named as skipped in its answers.
    pub skipped: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    pub gaps: u64,
    /// From send to answer, and from send to delivery, microseconds.
    pub answers_us: Histogram<u64>,
    pub deliveries_us: Histogram<u64>,
    has: Vec<bool>,
}

impl Seen {
    fn new(messages: usize) -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are legal");
        Self {
            order: Vec::new(),
            accepted: 0,
            rejected: 0,
            skipped: 0,
            duplicated: 0,
            corrupted: 0,
            gaps: 0,
            answers_us: histogram(),
            deliveries_us: histogram(),
            has: vec![false; messages],
        }
    }

    fn take(&mut self, plan: &GroupPlan, delivery: &Delivery) {
        let Some((number, sent_ns)) = read_payload(plan, &delivery.envelope) else {
            self.corrupted += 1;
            return;
        };
        let place = usize::try_from(number).expect("below the number of messages");
        if std::mem::replace(&mut self.has[place], true) {
            self.duplicated += 1;
            return;
        }
        self.order.push(number);
        self.deliveries_us.saturating_record(monotonic_ns().saturating_sub(sent_ns) / 1_000);
    }
}

/// What a device needs to know of the server.
pub struct Door {
    pub target: SocketAddr,
    pub tls: Arc<rustls::ClientConfig>,
    pub name: ServerName<'static>,
}

impl Device {
    /// Connects; the login follows in [`Device::run`].
    pub fn connect(
        plan: &GroupPlan,
        index: u32,
        (identity, group, others): (Identity, UserId, Vec<UserId>),
        door: &Door,
        stage: Arc<Stage>,
    ) -> Result<Self> {
        let socket = TcpStream::connect_timeout(&door.target, CONNECT_TIME_MAX)
            .context("connect to the server")?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LOOK_INTERVAL))?;
        let mut client = Client::new(identity);
        client.connect(now_ms(), &door.tls, door.name.clone())?;
        let mut unsent = plan.messages_of(index);
        unsent.reverse();
        let own = unsent.len() as u64;
        Ok(Self {
            plan: plan.clone(),
            index,
            group: Recipient::Group(group),
            others,
            client,
            socket,
            stage,
            is_welcome: false,
            is_created: false,
            unsent,
            expected: plan.messages - own,
            seen: Seen::new(usize::try_from(plan.messages).context("too many messages")?),
        })
    }

    /// Goes through all phases.
    pub fn run(mut self) -> Result<Seen> {
        let result = self.live();
        if result.is_err() {
            self.stage.fail();
        }
        result.map(|()| self.seen)
    }

    fn live(&mut self) -> Result<()> {
        let mut told = None;
        let (mut plaintext, mut ciphertext) = (Vec::new(), Vec::new());
        let (mut scratch, mut received) = (BytesMut::new(), vec![0; 64 * 1024]);
        let mut has_asked = false;
        while !self.stage.has_begun(Phase::Leave) {
            if self.stage.has_begun(Phase::Create) && self.index == 0 && !has_asked {
                has_asked = true;
                let Recipient::Group(group) = &self.group else { unreachable!("made as one") };
                let (group, members) = (group.clone(), self.others.clone());
                self.client.call(1, &Call::GroupCreate { group, members })?;
            }
            if self.stage.has_begun(Phase::Talk) && self.client.unanswered() == 0 {
                self.send_next();
            }
            ciphertext.clear();
            self.client.poll_transmit(now_ms(), &mut plaintext, &mut ciphertext);
            self.socket.write_all(&ciphertext).context("write to the server")?;
            match self.socket.read(&mut received) {
                Ok(0) => bail!("the server has closed a connection"),
                Ok(length) => {
                    self.client.handle_received(now_ms(), &received[..length], &mut scratch)?;
                }
                Err(error) if is_idle(&error) => {}
                Err(error) => return Err(error).context("read from the server"),
            }
            self.client.handle_timeout(now_ms())?;
            while let Some(event) = self.client.poll_event() {
                self.handle(event)?;
            }
            let phase = self.finished_phase();
            if phase > told && phase.is_some_and(|phase| self.stage.has_begun(phase)) {
                told = phase;
                self.stage.through.fetch_add(1, Ordering::AcqRel);
            }
        }
        self.client.bye();
        ciphertext.clear();
        self.client.poll_transmit(now_ms(), &mut plaintext, &mut ciphertext);
        self.socket.write_all(&ciphertext).context("write to the server")
    }

    /// The last phase that this device is through with.
    fn finished_phase(&self) -> Option<Phase> {
        let has_said = self.unsent.is_empty() && self.client.unanswered() == 0;
        if self.stage.has_begun(Phase::Talk)
            && has_said
            && self.seen.order.len() as u64 >= self.expected
        {
            return Some(Phase::Talk);
        }
        if self.stage.has_begun(Phase::Create) && (self.index != 0 || self.is_created) {
            return Some(Phase::Create);
        }
        self.is_welcome.then_some(Phase::Login)
    }

    fn handle(&mut self, event: ClientEvent) -> Result<()> {
        match event {
            ClientEvent::Welcome(welcome) => {
                self.client.handle_welcome(&welcome);
                self.is_welcome = true;
            }
            ClientEvent::Replied { reply: Reply::GroupState(_), .. } => self.is_created = true,
            ClientEvent::Answered { send_seq, outcome } => {
                let Some(send) = self.client.handle_answer(send_seq, &outcome) else {
                    bail!("the server answered a Send twice, or one that was never sent");
                };
                match outcome {
                    Outcome::Accepted { skipped, .. } => {
                        self.seen.accepted += 1;
                        self.seen.skipped += skipped.len() as u64;
                        let taken_ns = monotonic_ns().saturating_sub(send.intended_ns);
                        self.seen.answers_us.saturating_record(taken_ns / 1_000);
                    }
                    Outcome::Rejected { .. } => self.seen.rejected += 1,
                }
            }
            ClientEvent::Deliver(delivery) => {
                self.client.handle_seq(delivery.seq);
                self.seen.take(&self.plan, &delivery);
                self.stage.delivered.fetch_add(1, Ordering::Relaxed);
            }
            ClientEvent::Delivered { seq, .. } => self.client.handle_seq(seq),
            ClientEvent::Gap { seq, .. } => {
                self.client.handle_seq(seq);
                self.seen.gaps += 1;
            }
            ClientEvent::GoAway { reason, .. } => bail!("the server sends away: {reason:?}"),
            ClientEvent::Error { code, text, .. } => bail!("the server refuses: {code:?}, {text}"),
            _ => {}
        }
        Ok(())
    }

    fn send_next(&mut self) {
        let Some(number) = self.unsent.pop() else { return };
        let now_ns = monotonic_ns();
        let payload = payload(&self.plan, number, now_ns);
        self.client.send(&self.group, &payload, 0, number, now_ns);
    }
}

fn is_idle(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// Number, time, and bytes that depend on both.
fn payload(plan: &GroupPlan, number: u64, now_ns: u64) -> Vec<u8> {
    let mut payload = Vec::with_capacity(plan.payload_bytes);
    payload.extend(number.to_le_bytes());
    payload.extend(now_ns.to_le_bytes());
    let mut state = mix(number ^ now_ns);
    while payload.len() < plan.payload_bytes {
        state = mix(state);
        payload.push(state.to_le_bytes()[0]);
    }
    payload
}

/// `None`: it is not what was sent.
fn read_payload(plan: &GroupPlan, bytes: &[u8]) -> Option<(u64, u64)> {
    let head = bytes.get(..GROUP_PAYLOAD_BYTES_MIN)?;
    let (number, sent_ns) = head.split_at(8);
    let number = u64::from_le_bytes(number.try_into().ok()?);
    let sent_ns = u64::from_le_bytes(sent_ns.try_into().ok()?);
    let is_whole = number < plan.messages && bytes == payload(plan, number, sent_ns);
    is_whole.then_some((number, sent_ns))
}

fn now_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

/// Longer ones count as so long.
const LATENCY_US_MAX: u64 = 600_000_000;
/// How long a device looks at its socket before it looks at what the others do.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

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
            seed: 1,
        };
        let sent = payload(&plan, 9, 77);
        assert_eq!((sent.len(), read_payload(&plan, &sent)), (40, Some((9, 77))));
        for index in 0..sent.len() {
            let mut changed = sent.clone();
            changed[index] ^= 1;
            assert_eq!(read_payload(&plan, &changed), None, "{index}");
        }
        assert_eq!(read_payload(&plan, &sent[..39]), None);
        assert_eq!(read_payload(&plan, &payload(&plan, 10, 77)), None);
    }
}
