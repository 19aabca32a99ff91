//! The threads of a run, one swarm each. They do what they are told together, and report when all
//! of them have done it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ringpost_ring::Group;

use crate::addr::SourceAddresses;
use crate::client::Identity;
use crate::cores::CoreList;
use crate::measure::Measure;
use crate::swarm::{Swarm, SwarmConfig};
use crate::traffic::Traffic;

/// What one thread starts with.
pub struct Part {
    pub identities: Vec<Identity>,
    pub traffic: Traffic,
    pub sources: SourceAddresses,
}

/// What one thread shows while it runs. Read without any order: it feeds a progress bar.
#[derive(Debug, Default)]
pub struct Progress {
    open: AtomicU64,
    answered: AtomicU64,
    delivered: AtomicU64,
}

/// The progress of all threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Clients that are connected.
    pub open: u64,
    /// Sends that were accepted or rejected.
    pub answered: u64,
    pub delivered: u64,
}

/// The running threads. They end when this is dropped.
pub struct Fleet {
    threads: Vec<Sender<Command>>,
    progress: Vec<Arc<Progress>>,
}

type Command = Box<dyn FnOnce(&mut Swarm) + Send>;

impl Progress {
    pub fn set(&self, open: u32, measure: &Measure) {
        self.open.store(u64::from(open), Ordering::Relaxed);
        self.answered.store(measure.accepted + measure.rejected, Ordering::Relaxed);
        self.delivered.store(measure.delivered, Ordering::Relaxed);
    }
}

impl Fleet {
    /// `cores`: what the threads are kept on, one core each, dealt round.
    pub fn start(
        config: &Arc<SwarmConfig>,
        cores: Option<&CoreList>,
        parts: Vec<Part>,
    ) -> Result<Self> {
        let count = u16::try_from(parts.len()).context("too many threads")?;
        let group = Group::new(count).context("make the rings' group")?;
        let mut fleet = Self { threads: Vec::new(), progress: Vec::new() };
        let (ready, started) = mpsc::channel();
        for (thread, part) in (0..count).zip(parts) {
            let (commands, inbox) = mpsc::channel::<Command>();
            let progress = Arc::new(Progress::default());
            fleet.threads.push(commands);
            fleet.progress.push(Arc::clone(&progress));
            let (group, config, ready) = (group.clone(), Arc::clone(config), ready.clone());
            let core = cores.map(|cores| cores.of_thread(usize::from(thread)));
            let run = move || {
                let pinned = core.as_ref().map_or(Ok(()), CoreList::pin_thread);
                let swarm = pinned
                    .context("run on the load generator's cores")
                    .and_then(|()| Swarm::new(&group, thread, config, part, progress));
                match swarm {
                    Ok(mut swarm) => {
                        let _ = ready.send(Ok(()));
                        inbox.iter().for_each(|command| command(&mut swarm));
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            };
            thread::Builder::new()
                .name(format!("swarm-{thread}"))
                .spawn(run)
                .context("start a thread")?;
        }
        for _ in 0..count {
            started.recv().context("a thread ended")??;
        }
        Ok(fleet)
    }

    /// Lets all threads do `job` and gives what each returned, in their order. `watch` is called
    /// several times a second meanwhile.
    pub fn run<T: Send + 'static>(
        &self,
        job: impl Fn(usize, &mut Swarm) -> Result<T> + Send + Sync + 'static,
        mut watch: impl FnMut(Totals),
    ) -> Result<Vec<T>> {
        let job = Arc::new(job);
        let (done, results) = mpsc::channel();
        for (thread, commands) in self.threads.iter().enumerate() {
            let (job, done) = (Arc::clone(&job), done.clone());
            let command: Command = Box::new(move |swarm| {
                let output = swarm.refresh().and_then(|()| job(thread, swarm));
                let _ = done.send((thread, output));
            });
            commands.send(command).ok().context("a thread ended")?;
        }
        drop(done);
        let mut outputs: Vec<Option<T>> = self.threads.iter().map(|_| None).collect();
        while outputs.iter().any(Option::is_none) {
            match results.recv_timeout(WATCH_INTERVAL) {
                Ok((thread, output)) => outputs[thread] = Some(output?),
                Err(RecvTimeoutError::Timeout) => watch(self.totals()),
                Err(RecvTimeoutError::Disconnected) => bail!("a thread ended"),
            }
        }
        watch(self.totals());
        Ok(outputs.into_iter().flatten().collect())
    }

    fn totals(&self) -> Totals {
        let sum = |field: fn(&Progress) -> &AtomicU64| {
            self.progress.iter().map(|progress| field(progress).load(Ordering::Relaxed)).sum()
        };
        Totals {
            open: sum(|progress| &progress.open),
            answered: sum(|progress| &progress.answered),
            delivered: sum(|progress| &progress.delivered),
        }
    }
}

const WATCH_INTERVAL: Duration = Duration::from_millis(100);
