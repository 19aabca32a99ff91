//! The directory of the world: in memory, with a delay, failures, and what a crash leaves of it.
//!
//! What was asked waits until the commit, which takes all of it; from then on it survives the process.
//! The answers come some time later. So a crash loses what waits, and the answers to what is stored.

use std::sync::{Arc, Mutex};

use ringpost_engine::directory::{
    Answer, Answered, Directory as _, DirectoryPort, InMemory, Request,
};
use ringpost_engine::limits::DIRECTORY_BATCH_MAX;
use ringpost_engine::mesh::Queues;

use super::clock::{MS, Stream};
use super::oracle::Oracle;
use super::ring::Host;
use super::world::Event;

pub struct SimDirectory {
    /// Survives.
    stored: InMemory,
    /// Of this process.
    asked: Arc<Mutex<Vec<Asked>>>,
    answers: Vec<(u16, Answered)>,
    is_busy: bool,
    /// It has failed, and refuses until then.
    closed_until_ns: u64,
    random: Stream,
}

struct Asked {
    shard: u16,
    ticket: u32,
    request: Request,
}

struct Port {
    shard: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl DirectoryPort for Port {
    fn ask(&mut self, ticket: u32, request: Request) {
        let asked = Asked { shard: self.shard, ticket, request };
        self.asked.lock().expect("one thread").push(asked);
    }
}

impl SimDirectory {
    pub fn new(seed: u64) -> Self {
        Self {
            stored: InMemory::default(),
            asked: Arc::default(),
            answers: Vec::new(),
            is_busy: false,
            closed_until_ns: 0,
            random: Stream::new(seed, "directory"),
        }
    }

    /// A process begins: nothing is asked yet, and only what is durable is known.
    pub fn begin_process(&mut self) {
        self.stored = std::mem::take(&mut self.stored).reopened();
        self.asked = Arc::default();
        self.answers.clear();
        (self.is_busy, self.closed_until_ns) = (false, 0);
    }

    pub fn port(&self, shard: u16) -> Box<dyn DirectoryPort> {
        Box::new(Port { shard, asked: Arc::clone(&self.asked) })
    }

    /// A shard had its turn: a commit begins if something waits and none is under way.
    pub fn drive(&mut self, host: &mut Host) {
        if !self.is_busy && !self.asked.lock().expect("one thread").is_empty() {
            self.is_busy = true;
            let process = host.process;
            let delay_ns = self.random.delay(host.faults.weights.directory_ns);
            host.clock.plan_in(delay_ns, Event::DirectoryCommits { process });
        }
    }

    /// All that waits becomes durable, in one moment; or the commit fails, and nobody knows.
    pub fn commit(&mut self, host: &mut Host, oracle: &mut Oracle) {
        let mut asked = std::mem::take(&mut *self.asked.lock().expect("one thread"));
        let later = asked.split_off(asked.len().min(DIRECTORY_BATCH_MAX));
        self.asked.lock().expect("one thread").extend(later);
        let (askers, requests): (Vec<_>, Vec<_>) =
            asked.into_iter().map(|asked| ((asked.shard, asked.ticket), asked.request)).unzip();
        let now_ns = host.clock.now_ns();
        host.clock.note(&[6, requests.len() as u64]);
        let is_closed = now_ns < self.closed_until_ns;
        let fails = !is_closed && host.faults.active && {
            let weight = host.faults.weights.directory_fault;
            self.random.chance(weight)
        };
        let mut answers = vec![Answer::Failed; requests.len()];
        if !is_closed && (!fails || self.random.chance(500)) {
            let done = self.stored.apply(host.clock.now_ms(), &requests);
            let done = done.expect("memory does not fail");
            for (request, answer) in requests.iter().zip(&done) {
                oracle.committed(now_ns, request, answer);
            }
            host.coverage.directory_commits += 1;
            if !fails {
                answers = done;
            }
        }
        if fails {
            host.faults.counts.directory_failures += 1;
            oracle.directory_failed = true;
            host.tell(|| "the directory fails".into());
            self.closed_until_ns = now_ns + self.random.between(50, 2_000) * MS;
        }
        let answers = askers.into_iter().zip(answers);
        self.answers
            .extend(answers.map(|((shard, ticket), answer)| (shard, Answered { ticket, answer })));
        let process = host.process;
        let delay_ns = self.random.delay(host.faults.weights.directory_ns / 4);
        host.clock.plan_in(delay_ns, Event::DirectoryAnswers { process });
    }

    /// The answers to what was committed.
    pub fn answer(&mut self, host: &mut Host, queues: &Queues) {
        let now_ns = host.clock.now_ns();
        for (shard, answered) in self.answers.drain(..) {
            queues.push_answer(shard, answered);
            host.request_turn(shard, now_ns);
        }
        self.is_busy = false;
        self.drive(host);
    }
}
