//! Who takes keys of others, and looks at each.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use ringpost_protocol::id::UserId;
use ringpost_protocol::message::{Call, ClientEvent, KeyBundle, Reply};
use ringpost_ring::host::monotonic_ns;

use super::{KeyBytes, Phase};
use crate::line::Line;
use crate::measure::latencies_us;
use crate::plan::keys::KeysPlan;
use crate::plan::mix;
use crate::stage::{Actor, Stage, play};

/// A device that fetches keys.
pub struct Taker {
    plan: KeysPlan,
    number: u32,
    /// By their numbers.
    owners: Arc<[UserId]>,
    line: Line,
    stage: Arc<Stage>,
    is_welcome: bool,
    last_request_id: u64,
    /// At most the plan's window.
    unanswered: Vec<Request>,
    /// Owners whose stock this taker has found empty in the end, from the first one on.
    exhausted: u32,
    taken: Taken,
}

struct Request {
    request_id: u64,
    owner: u32,
    since_ns: u64,
}

/// What a taker has got.
#[derive(Clone, Debug)]
pub struct Taken {
    /// One-time keys: their owners and their numbers.
    pub handed_out: Vec<(u32, u32)>,
    /// Answers before the takers began to empty the stocks.
    pub fetched: u64,
    pub fetched_in_all: u64,
    /// Bundles with the signed prekey alone.
    pub fallbacks: u64,
    /// Answers that are not what the owner has published.
    pub corrupted: u64,
    pub refused: u64,
    /// Of those before the takers began to empty the stocks.
    pub fetch_us: Histogram<u64>,
}

impl Taker {
    pub fn new(
        plan: &KeysPlan,
        number: u32,
        owners: Arc<[UserId]>,
        line: Line,
        stage: Arc<Stage>,
    ) -> Self {
        let taken = Taken {
            handed_out: Vec::new(),
            fetched: 0,
            fetched_in_all: 0,
            fallbacks: 0,
            corrupted: 0,
            refused: 0,
            fetch_us: latencies_us(),
        };
        Self {
            plan: plan.clone(),
            number,
            owners,
            line,
            stage,
            is_welcome: false,
            last_request_id: 0,
            unanswered: Vec::new(),
            exhausted: 0,
            taken,
        }
    }

    /// Goes through all phases.
    pub fn run(mut self) -> Result<Taken> {
        let stage = Arc::clone(&self.stage);
        play(&mut self, &stage, Phase::Leave).map(|()| self.taken)
    }

    /// Whose keys are to be taken now; `None`: nobody's.
    fn next_owner(&self) -> Option<u32> {
        if self.stage.has_begun(Phase::Exhaust) {
            return (self.exhausted < self.plan.owners).then_some(self.exhausted);
        }
        let is_time = self.stage.has_begun(Phase::Fetch) && !self.stage.has_begun(Phase::Settle);
        is_time.then(|| {
            let random =
                mix(self.plan.seed ^ mix(u64::from(self.number) << 32)) ^ mix(self.last_request_id);
            u32::try_from(mix(random) % u64::from(self.plan.owners)).expect("below a u32")
        })
    }

    fn handle_bundles(&mut self, request: &Request, user: &UserId, bundles: &[KeyBundle]) {
        self.taken.fetched_in_all += 1;
        if !self.stage.has_begun(Phase::Exhaust) {
            self.taken.fetched += 1;
            let taken_ns = monotonic_ns().saturating_sub(request.since_ns);
            self.taken.fetch_us.saturating_record(taken_ns / 1_000);
        }
        let is_key = self.take(request.owner, user, bundles);
        // All takers empty the same stock at a time.
        let is_exhausted = !is_key && request.owner == self.exhausted;
        if self.stage.has_begun(Phase::Exhaust) && is_exhausted {
            self.exhausted += 1;
        }
    }

    /// Whether it is a one-time key, as its owner made it.
    fn take(&mut self, owner: u32, user: &UserId, bundles: &[KeyBundle]) -> bool {
        let keys = KeyBytes::of(self.plan.seed, owner);
        let is_owners = |bundle: &KeyBundle| {
            *user == self.owners[owner as usize]
                && bundle.identity_key == keys.identity()
                && bundle.signed_prekey == keys.signed_prekey()
        };
        match bundles {
            [bundle] if is_owners(bundle) => match &bundle.one_time_key {
                Some(key) if *key == keys.one_time_key(key.key_id) => {
                    self.taken.handed_out.push((owner, key.key_id));
                    return true;
                }
                Some(_) => self.taken.corrupted += 1,
                None => self.taken.fallbacks += 1,
            },
            _ => self.taken.corrupted += 1,
        }
        false
    }

    fn take_request(&mut self, request_id: u64) -> Result<Request> {
        let found = self.unanswered.iter().position(|it| it.request_id == request_id);
        let place = found.context("an answer that nobody has asked for")?;
        Ok(self.unanswered.swap_remove(place))
    }
}

impl Actor for Taker {
    type Phase = Phase;

    fn line(&mut self) -> &mut Line {
        &mut self.line
    }

    fn act(&mut self) -> Result<()> {
        while self.unanswered.len() < self.plan.window {
            let Some(owner) = self.next_owner() else { break };
            self.last_request_id += 1;
            let (request_id, since_ns) = (self.last_request_id, monotonic_ns());
            let user = self.owners[owner as usize].clone();
            self.line.client.call(request_id, &Call::KeysFetch { user, devices: Vec::new() })?;
            self.unanswered.push(Request { request_id, owner, since_ns });
        }
        Ok(())
    }

    fn handle(&mut self, event: ClientEvent) -> Result<()> {
        match event {
            ClientEvent::Welcome(welcome) => {
                self.line.client.handle_welcome(&welcome);
                self.is_welcome = true;
            }
            ClientEvent::Replied { request_id, reply } => {
                let request = self.take_request(request_id)?;
                let Reply::KeyBundles { user, bundles } = reply else {
                    bail!("that is no answer to what was asked: {reply:?}");
                };
                self.handle_bundles(&request, &user, &bundles);
                self.stage.done();
            }
            ClientEvent::GoAway { reason, .. } => bail!("the server sends away: {reason:?}"),
            ClientEvent::Error { code, text, fatal, request_id } => {
                ensure!(request_id != 0 && !fatal, "the server refuses: {code:?}, {text}");
                self.take_request(request_id)?;
                self.taken.refused += 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn finished(&self) -> Option<Phase> {
        let has_answers = self.unanswered.is_empty();
        if has_answers && self.exhausted == self.plan.owners {
            return Some(Phase::Count);
        }
        if has_answers && self.stage.has_begun(Phase::Settle) {
            return Some(Phase::Settle);
        }
        self.is_welcome.then_some(Phase::Publish)
    }
}
