//! Several disk operations at a time, as the kernel runs them for the gateway's ring.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ringpost_storage::{BlockingDisk, DiskError, DiskOp, DiskOpId, DiskOutcome};

/// The result of one operation.
pub type Answer = (DiskOpId, Result<DiskOutcome, DiskError>);

/// Runs each operation on whichever thread is free.
#[derive(Debug)]
pub struct Workers {
    asked: Sender<(DiskOpId, DiskOp)>,
    answered: Receiver<Answer>,
}

impl Workers {
    /// `disk` is called once for each of `threads`.
    ///
    /// # Panics
    /// A worker, when the lock of their queue is poisoned: another one has panicked.
    pub fn new<D: BlockingDisk + Send + 'static>(threads: usize, disk: impl Fn() -> D) -> Self {
        let (asked, asking) = mpsc::channel();
        let (answering, answered) = mpsc::channel();
        let asking = Arc::new(Mutex::new(asking));
        for _ in 0..threads {
            let (mut disk, asking, answering) = (disk(), Arc::clone(&asking), answering.clone());
            thread::spawn(move || {
                loop {
                    let next = asking.lock().expect("no worker panics while it waits").recv();
                    let Ok((id, op)) = next else { return };
                    if answering.send((id, disk.execute(op))).is_err() {
                        return;
                    }
                }
            });
        }
        Self { asked, answered }
    }

    /// # Panics
    /// When all workers have panicked.
    pub fn start(&self, id: DiskOpId, op: DiskOp) {
        self.asked.send((id, op)).expect("the workers end with this");
    }

    /// The next result, if there is one within `timeout`.
    pub fn wait_for(&self, timeout: Duration) -> Option<Answer> {
        self.answered.recv_timeout(timeout).ok()
    }
}
