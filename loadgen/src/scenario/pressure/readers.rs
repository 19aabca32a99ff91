//! Readers that stop or are slow. What they left lying is fetched and verified at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use rand::random;

use crate::attack::AttackCounts;
use crate::fleet::Fleet;
use crate::measure::Measure;
use crate::plan::OfflinePlan;
use crate::plan::pressure::{Pressure, PressurePlan};
use crate::scenario::offline::{self, Share, devices_of};
use crate::scenario::{Options, Server};
use crate::swarm::{Reading, Swarm};

/// Devices that read badly, and senders that fill their mailboxes.
pub(super) struct Readers {
    fleet: Fleet,
    mail: OfflinePlan,
    pressure: Pressure,
    pause_ns: u64,
    threads: usize,
    /// Threads whose devices are all connected again.
    returned: Arc<AtomicUsize>,
}

impl Readers {
    /// Makes the devices, and fills their mailboxes if that is meant to come first.
    pub(super) fn start(
        plan: &PressurePlan,
        server: &mut Server,
        options: &Options,
    ) -> Result<Self> {
        let mail = plan.mail();
        let threads = options.thread_count(mail.devices);
        let run = random::<u32>();
        let parts = (0..threads)
            .map(|thread| offline::part(&mail, server, run, thread, threads))
            .collect::<Result<Vec<_>>>()?;
        let fleet =
            Fleet::start(&server.swarm_config(options), options.client_cores.as_ref(), parts)?;
        offline::register(&fleet, &mail, threads, server)?;
        if plan.pressure != Pressure::StopReading {
            offline::fill(&fleet, &mail, threads, server)?;
        }
        Ok(Self {
            fleet,
            mail,
            pressure: plan.pressure,
            pause_ns: plan.pause_ns,
            threads,
            returned: Arc::default(),
        })
    }

    /// Whether all readers are connected, after [`Readers::attack`] has begun.
    pub(super) fn have_returned(&self) -> bool {
        self.returned.load(Ordering::Relaxed) == self.threads
    }

    /// Whether they take nothing at all in the end.
    pub(super) fn do_stop(&self) -> bool {
        self.pressure != Pressure::ReadSlowly
    }

    /// Returns when `stop` says so.
    pub(super) fn attack(&self, stop: &Arc<AtomicBool>) -> Result<AttackCounts> {
        let (mail, threads, pressure) = (self.mail.clone(), self.threads, self.pressure);
        let reading = match pressure {
            Pressure::ReadSlowly => Reading::Slow { pause_ns: self.pause_ns },
            _ => Reading::Stopped,
        };
        let (stop, returned) = (Arc::clone(stop), Arc::clone(&self.returned));
        let job = move |thread: usize, swarm: &mut Swarm| {
            let share = Share::new(&mail, thread, threads);
            let devices = devices_of(&mail, thread, threads);
            let before = swarm.finish().reconnects;
            swarm.set_reading(devices.clone(), reading);
            swarm.connect(devices.clone())?;
            returned.fetch_add(1, Ordering::Relaxed);
            if pressure == Pressure::StopReading {
                swarm.connect(share.sender_range())?;
            }
            while !stop.load(Ordering::Relaxed) {
                if pressure == Pressure::StopReading {
                    // What does not fit is refused: the pressure goes on all the same.
                    swarm.run_fill(&share.counts)?;
                }
                swarm.run_until(swarm.now_ns() + LOOK_NS, |_| false)?;
            }
            let opened = devices.len() as u64;
            Ok((opened, swarm.finish().reconnects - before))
        };
        let parts = self.fleet.run(job, |_| ())?;
        let mut counts = AttackCounts::default();
        for (opened, ended) in parts {
            counts.opened += opened + ended;
            counts.ended_by_server += ended;
        }
        Ok(counts)
    }

    /// Everybody reads again: whatever was accepted must still come, once and in order.
    pub(super) fn drain(self, server: &mut Server) -> Result<Measure> {
        let (mail, threads) = (self.mail.clone(), self.threads);
        let job = move |thread: usize, swarm: &mut Swarm| {
            swarm.set_reading(devices_of(&mail, thread, threads), Reading::Eager);
            swarm.run_drain()?;
            swarm.disconnect()?;
            Ok(swarm.finish())
        };
        let parts = self.fleet.run(job, |totals| server.watch(totals))?;
        let mut measure = Measure::new();
        parts.iter().for_each(|part| measure.add(part));
        Ok(measure)
    }
}

/// How often the end is looked for.
const LOOK_NS: u64 = 100_000_000;
