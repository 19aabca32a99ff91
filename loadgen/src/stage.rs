//! Devices that go through the phases of a run together, a thread for each.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use anyhow::Result;
use ringpost_protocol::message::ClientEvent;

use crate::line::Line;

/// What the devices and the one who waits for them know of each other.
#[derive(Debug, Default)]
pub struct Stage {
    /// 0 before the first one.
    phase: AtomicU32,
    /// Devices that are through with this phase.
    through: AtomicU32,
    /// What has been done so far, of whatever is counted: while it rises, nothing hangs.
    pub progress: AtomicU64,
    failed: AtomicBool,
}

impl Stage {
    /// For the one who waits: everybody is through with the last one.
    pub fn begin(&self, phase: impl Into<u32>) {
        self.through.store(0, Ordering::Release);
        self.phase.store(phase.into(), Ordering::Release);
    }

    pub fn has_begun(&self, phase: impl Into<u32>) -> bool {
        self.phase.load(Ordering::Acquire) >= phase.into()
    }

    pub fn through(&self) -> u32 {
        self.through.load(Ordering::Acquire)
    }

    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub fn done(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// One device.
pub trait Actor {
    /// Its numbers rise from 1.
    type Phase: Copy + Into<u32>;

    fn line(&mut self) -> &mut Line;

    /// Sends what is due.
    fn act(&mut self) -> Result<()>;

    fn handle(&mut self, event: ClientEvent) -> Result<()>;

    /// The last phase that it is through with. Not one that ends by time: nobody waits for those.
    fn finished(&self) -> Option<Self::Phase>;
}

/// Plays one device until the phase `end` begins.
pub fn play<A: Actor>(actor: &mut A, stage: &Stage, end: A::Phase) -> Result<()> {
    let result = live(actor, stage, end);
    if result.is_err() {
        stage.failed.store(true, Ordering::Release);
    }
    result
}

fn live<A: Actor>(actor: &mut A, stage: &Stage, end: A::Phase) -> Result<()> {
    let mut told = 0;
    while !stage.has_begun(end) {
        actor.act()?;
        actor.line().turn()?;
        while let Some(event) = actor.line().client.poll_event() {
            actor.handle(event)?;
        }
        let phase = stage.phase.load(Ordering::Acquire);
        if told < phase && actor.finished().is_some_and(|finished| finished.into() >= phase) {
            told = phase;
            stage.through.fetch_add(1, Ordering::AcqRel);
        }
    }
    actor.line().finish()
}
