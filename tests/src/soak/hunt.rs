//! Runs worlds on all threads and collects what they did.

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use ringpost_protocol::mutant::{self, Mutant};

use crate::sim::keys::Keys;
use crate::sim::trace::Trace;
use crate::sim::world::{Options, Report, World};

/// Which worlds to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// First seed, and the first that is not run any more.
    pub seeds: std::ops::Range<u64>,
    /// No world begins after that.
    pub until: Option<Instant>,
    pub threads: usize,
    /// Go on after a failure.
    pub keep_going: bool,
    pub options: Options,
    /// The deliberate bug that all these worlds have.
    pub mutant: Option<Mutant>,
}

/// What became of one world.
#[derive(Clone, Debug)]
pub struct Ended {
    pub seed: u64,
    pub result: Result<Report, Failure>,
}

/// A world that broke a promise, or whose code panicked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub text: String,
    /// What happened before, one event a line; the newest last.
    pub events: Vec<String>,
}

/// Runs `plan`, giving every ended world to `each` in the order in which they end.
pub fn run(plan: &Plan, keys: &Keys, mut each: impl FnMut(Ended)) {
    quiet_panics();
    let next = AtomicU64::new(plan.seeds.start);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (sender, ended): (Sender<Ended>, Receiver<Ended>) = channel();
        for _ in 0..plan.threads.max(1) {
            let (sender, next, stop) = (sender.clone(), &next, &stop);
            scope.spawn(move || {
                mutant::activate(plan.mutant);
                while !stop.load(Ordering::Relaxed)
                    && plan.until.is_none_or(|until| Instant::now() < until)
                {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= plan.seeds.end {
                        break;
                    }
                    let result = run_seed(seed, keys, plan.options);
                    if result.is_err() && !plan.keep_going {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if sender.send(Ended { seed, result }).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        ended.into_iter().for_each(&mut each);
    });
}

/// Runs one world. One that fails is run once more, for its last events.
pub fn run_seed(seed: u64, keys: &Keys, options: Options) -> Result<Report, Failure> {
    let first = match caught(seed, keys, options, Trace::off()) {
        Ok(report) => return Ok(report),
        Err(text) => text,
    };
    let trace = Trace::keeping(EVENTS_KEPT);
    let text = match caught(seed, keys, options, trace.clone()) {
        Err(second) if second == first => first,
        Err(second) => format!("{first}\nAND NOT THE SAME AGAIN: {second}"),
        Ok(_) => format!("{first}\nAND NOT AGAIN: the world depends on more than its seed"),
    };
    Err(Failure { text, events: trace.lines() })
}

fn caught(seed: u64, keys: &Keys, options: Options, trace: Trace) -> Result<Report, String> {
    let run = AssertUnwindSafe(|| World::run_traced(seed, keys, options, trace));
    match panic::catch_unwind(run) {
        Ok(Ok(report)) => Ok(report),
        Ok(Err(violation)) => Err(violation.to_string()),
        Err(_) => Err(LAST_PANIC.take()),
    }
}

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics of worlds are told with their seed, not when they happen.
fn quiet_panics() {
    panic::set_hook(Box::new(|panic| {
        LAST_PANIC.set(format!("panic: {panic}"));
    }));
}

/// Of a world that failed.
const EVENTS_KEPT: usize = 200;
