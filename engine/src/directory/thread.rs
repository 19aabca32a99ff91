//! The thread of the directory: all that waits is one batch, one durable commit, then the answers.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::counts::DirectoryMetrics;
use super::request::{Answer, Request};
use super::{Directory, DirectoryFault};
use crate::control::DirectoryReporter;
use crate::limits::{
    DIRECTORY_BATCH_MAX, DIRECTORY_CONTROL_REQUESTS_MAX, DIRECTORY_REQUESTS_MAX,
    REOPEN_ATTEMPTS_MAX, REOPEN_PAUSE_MS, REOPEN_PAUSE_MS_MAX,
};
use crate::mesh::Queues;

/// A shard's way to the directory. The answer to each request comes once, through the shard's inbound
/// queue, in the order of the requests.
pub trait DirectoryPort: Send {
    /// Takes a request; never blocks. The shard has at most [`DIRECTORY_REQUESTS_MAX`] unanswered.
    fn ask(&mut self, ticket: u32, request: Request);
}

/// An answer on its way to a shard.
#[derive(Debug)]
pub struct Answered {
    /// As in [`DirectoryPort::ask`].
    pub ticket: u32,
    pub answer: Answer,
}

/// The port of a shard of production.
pub struct ShardQueue {
    shard: u16,
    asked: SyncSender<Asked>,
}

/// The control thread's way to the directory.
#[derive(Clone)]
pub struct ControlPort {
    asked: SyncSender<Asked>,
    permits: Arc<Semaphore>,
    metrics: Arc<DirectoryMetrics>,
}

/// A directory that runs. Its thread ends when all ports are gone and what they have asked is
/// answered.
pub struct Running {
    asked: SyncSender<Asked>,
    /// For the requests of the control thread, each until it is answered: who asked may have left.
    permits: Arc<Semaphore>,
    metrics: Arc<DirectoryMetrics>,
    thread: JoinHandle<()>,
}

struct Asked {
    request: Request,
    asker: Asker,
}

enum Asker {
    Shard { shard: u16, ticket: u32 },
    Control(oneshot::Sender<Answer>, OwnedSemaphorePermit),
}

/// Starts the thread.
pub fn start(
    directory: Box<dyn Directory>,
    queues: Queues,
    reporter: DirectoryReporter,
) -> Result<Running, DirectoryFault> {
    let capacity =
        usize::from(queues.shards()) * DIRECTORY_REQUESTS_MAX + DIRECTORY_CONTROL_REQUESTS_MAX;
    let (asked, questions) = sync_channel(capacity);
    let metrics = Arc::new(DirectoryMetrics::new(directory.stock()));
    let desk = Desk { directory, questions, queues, metrics: Arc::clone(&metrics) };
    let thread = thread::Builder::new()
        .name("directory".to_owned())
        .spawn(move || desk.run(reporter))
        .map_err(DirectoryFault::Thread)?;
    let permits = Arc::new(Semaphore::new(DIRECTORY_CONTROL_REQUESTS_MAX));
    Ok(Running { asked, permits, metrics, thread })
}

impl Running {
    pub fn shard_port(&self, shard: u16) -> ShardQueue {
        ShardQueue { shard, asked: self.asked.clone() }
    }

    /// Gives up this port too.
    pub fn into_thread(self) -> JoinHandle<()> {
        self.thread
    }

    pub fn control_port(&self) -> ControlPort {
        ControlPort {
            asked: self.asked.clone(),
            permits: Arc::clone(&self.permits),
            metrics: Arc::clone(&self.metrics),
        }
    }
}

impl DirectoryPort for ShardQueue {
    fn ask(&mut self, ticket: u32, request: Request) {
        let asker = Asker::Shard { shard: self.shard, ticket };
        match self.asked.try_send(Asked { request, asker }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => unreachable!("the shards' bounds are its capacity"),
            // The thread has given up and said so: the process ends.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}

impl ControlPort {
    /// The answer; [`Answer::Failed`] also when too many requests of the control thread wait.
    pub async fn ask(&self, request: Request) -> Answer {
        // What is full has room again in milliseconds; the caller's client can ask again.
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return Answer::Failed;
        };
        let (reply, answer) = oneshot::channel();
        if self.asked.try_send(Asked { request, asker: Asker::Control(reply, permit) }).is_err() {
            return Answer::Failed;
        }
        answer.await.unwrap_or(Answer::Failed)
    }

    pub fn metrics(&self) -> &DirectoryMetrics {
        &self.metrics
    }
}

/// What the thread works with.
struct Desk {
    directory: Box<dyn Directory>,
    questions: Receiver<Asked>,
    queues: Queues,
    metrics: Arc<DirectoryMetrics>,
}

impl Desk {
    fn run(mut self, reporter: DirectoryReporter) {
        let started = Instant::now();
        while let Ok(first) = self.questions.recv() {
            let (requests, askers) = self.batch(first);
            let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let begun = Instant::now();
            match self.directory.apply(now_ms, &requests) {
                Ok(answers) => {
                    let took = begun.elapsed();
                    self.metrics.applied(&requests, &answers, took, self.directory.stock());
                    for (asker, answer) in askers.into_iter().zip(answers) {
                        self.answer(asker, answer);
                    }
                }
                Err(fault) => {
                    for asker in askers {
                        self.answer(asker, Answer::Failed);
                    }
                    if !self.recover(fault) {
                        return reporter
                            .failed("the directory failed and does not recover; see the log");
                    }
                }
            }
        }
        reporter.ended();
    }

    /// `first` and what waits behind it.
    fn batch(&self, first: Asked) -> (Vec<Request>, Vec<Asker>) {
        let waiting = std::iter::from_fn(|| self.questions.try_recv().ok());
        let all = std::iter::once(first).chain(waiting).take(DIRECTORY_BATCH_MAX);
        all.map(|Asked { request, asker }| (request, asker)).unzip()
    }

    fn answer(&self, asker: Asker, answer: Answer) {
        match asker {
            Asker::Shard { shard, ticket } => {
                self.queues.push_answer(shard, Answered { ticket, answer });
            }
            Asker::Control(reply, _permit) => {
                let _ = reply.send(answer); // nobody waits any more
            }
        }
    }

    /// Makes the directory usable again. Requests that come meanwhile fail. False: it does not work.
    fn recover(&mut self, mut fault: DirectoryFault) -> bool {
        self.metrics.failed();
        let (mut attempts, mut pause_ms) = (0, REOPEN_PAUSE_MS);
        loop {
            tracing::error!(%fault, fix = fault.fix(), pause_ms, "the directory is opened again");
            if !self.refuse_for(Duration::from_millis(pause_ms)) {
                return true; // everybody has left
            }
            match self.directory.recover() {
                Ok(()) => {
                    tracing::warn!("the directory serves again");
                    return true;
                }
                Err(next) => fault = next,
            }
            // A full disk passes without a restart, and would not with one.
            attempts += u32::from(!matches!(fault, DirectoryFault::DiskFull));
            if attempts >= REOPEN_ATTEMPTS_MAX {
                return false;
            }
            pause_ms = (2 * pause_ms).min(REOPEN_PAUSE_MS_MAX);
        }
    }

    /// False: no port is left.
    fn refuse_for(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.questions.recv_timeout(left) {
                Ok(asked) => self.answer(asked.asker, Answer::Failed),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests;
