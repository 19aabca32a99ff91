//! Who publishes keys, and more when few are left.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;
use ringpost_protocol::limits::ONE_TIME_KEYS_PER_PUBLISH_MAX;
use ringpost_protocol::message::{Call, ClientEvent, KeysPublish, Reply};
use ringpost_ring::host::monotonic_ns;

use super::{KeyBytes, Phase};
use crate::line::Line;
use crate::measure::latencies_us;
use crate::plan::keys::KeysPlan;
use crate::stage::{Actor, Stage, play};

/// A device that has keys.
pub struct Owner {
    plan: KeysPlan,
    keys: KeyBytes,
    line: Line,
    stage: Arc<Stage>,
    is_welcome: bool,
    /// One-time keys to publish.
    wanted: u32,
    /// What is under way: how many, and since when.
    publishing: Option<(u32, u64)>,
    has_asked: bool,
    published: Published,
}

/// What an owner has seen.
#[derive(Clone, Debug)]
pub struct Published {
    /// One-time keys that the server has taken; their numbers are those from 0.
    pub keys: u32,
    /// Frames that it took.
    pub frames: u64,
    /// Times that the server said that few are left.
    pub warnings: u64,
    /// Times that more were published because of that.
    pub refills: u64,
    pub refused: u64,
    /// What the server says is left in the end.
    pub remaining: Option<u32>,
    pub publish_us: Histogram<u64>,
}

impl Owner {
    pub fn new(plan: &KeysPlan, number: u32, line: Line, stage: Arc<Stage>) -> Self {
        let published = Published {
            keys: 0,
            frames: 0,
            warnings: 0,
            refills: 0,
            refused: 0,
            remaining: None,
            publish_us: latencies_us(),
        };
        Self {
            plan: plan.clone(),
            keys: KeyBytes::of(plan.seed, number),
            line,
            stage,
            is_welcome: false,
            wanted: plan.keys,
            publishing: None,
            has_asked: false,
            published,
        }
    }

    /// Goes through all phases.
    pub fn run(mut self) -> Result<Published> {
        let stage = Arc::clone(&self.stage);
        play(&mut self, &stage, Phase::Leave).map(|()| self.published)
    }

    fn publish_next(&mut self) -> Result<()> {
        let frame_max = u32::try_from(ONE_TIME_KEYS_PER_PUBLISH_MAX).expect("a small constant");
        let count = self.wanted.min(frame_max);
        let first = self.published.keys;
        let is_first = self.published.frames == 0;
        let publish = KeysPublish {
            identity_key: is_first.then(|| self.keys.identity()),
            signed_prekey: is_first.then(|| self.keys.signed_prekey()),
            one_time_keys: (first..first + count).map(|id| self.keys.one_time_key(id)).collect(),
        };
        self.publishing = Some((count, monotonic_ns()));
        self.line.client.call(PUBLISH_ID, &Call::KeysPublish(publish))
    }

    fn handle_low(&mut self, remaining: u32) {
        self.published.warnings += 1;
        // More than one warning comes before the answer.
        let is_under_way = self.wanted > 0 || self.publishing.is_some();
        if !is_under_way && !self.stage.has_begun(Phase::Settle) {
            self.wanted = self.plan.keys.saturating_sub(remaining);
            self.published.refills += 1;
        }
    }

    fn handle_reply(&mut self, reply: &Reply) -> Result<()> {
        match (reply, self.publishing.take()) {
            (Reply::Done, Some((count, since_ns))) => {
                self.wanted = self.wanted.saturating_sub(count);
                self.published.keys += count;
                self.published.frames += 1;
                let taken_ns = monotonic_ns().saturating_sub(since_ns);
                self.published.publish_us.saturating_record(taken_ns / 1_000);
                self.stage.done();
            }
            (Reply::KeysLow { remaining_count }, None) => {
                self.published.remaining = Some(*remaining_count);
            }
            (reply, _) => bail!("that is no answer to what was asked: {reply:?}"),
        }
        Ok(())
    }
}

impl Actor for Owner {
    type Phase = Phase;

    fn line(&mut self) -> &mut Line {
        &mut self.line
    }

    fn act(&mut self) -> Result<()> {
        if self.stage.has_begun(Phase::Publish) && self.wanted > 0 && self.publishing.is_none() {
            self.publish_next()?;
        }
        if self.stage.has_begun(Phase::Count) && !self.has_asked {
            self.has_asked = true;
            self.line.client.call(COUNT_ID, &Call::KeyCount)?;
        }
        Ok(())
    }

    fn handle(&mut self, event: ClientEvent) -> Result<()> {
        match event {
            ClientEvent::Welcome(welcome) => {
                self.line.client.handle_welcome(&welcome);
                self.is_welcome = true;
            }
            ClientEvent::KeysLow { remaining_count } => self.handle_low(remaining_count),
            ClientEvent::Replied { reply, .. } => self.handle_reply(&reply)?,
            ClientEvent::GoAway { reason, .. } => bail!("the server sends away: {reason:?}"),
            ClientEvent::Error { code, text, fatal, request_id } => {
                let is_publish = request_id == PUBLISH_ID && !fatal;
                ensure!(is_publish, "the server refuses: {code:?}, {text}");
                // It is tried again: the numbers go on where they were.
                self.publishing = None;
                self.published.refused += 1;
            }
            _ => {}
        }
        Ok(())
    }

    fn finished(&self) -> Option<Phase> {
        if self.published.remaining.is_some() {
            return Some(Phase::Count);
        }
        let is_idle = self.wanted == 0 && self.publishing.is_none();
        if is_idle && self.stage.has_begun(Phase::Settle) {
            return Some(Phase::Exhaust);
        }
        if self.published.keys >= self.plan.keys {
            return Some(Phase::Publish);
        }
        self.is_welcome.then_some(Phase::Login)
    }
}

const PUBLISH_ID: u64 = 1;
const COUNT_ID: u64 = 2;
