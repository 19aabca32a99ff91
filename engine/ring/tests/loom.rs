//! Every order of the steps by which shards hand each other work and fall asleep. No wake-up is
//! lost: a shard that sleeps for ever ends a model with "deadlock".
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release -p ringpost-ring --test loom --target-dir target/loom
//! ```
//!
//! The inbox and the flags of the group are the production code. Modelled are the queue (see
//! `queue.rs`) and the kernel: a wake is a completion that ends the wait it meets, or the next one.
//! The receiver's loop is the one of a shard's turn.

#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use loom::model::Builder;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::mpsc::{Receiver, Sender, channel};
use loom::thread;
use ringpost_ring::{Group, Inboxes};

/// What `io_uring_enter` does for one ring: a wake is a completion, and a wait ends with one.
struct Kernel {
    completions: Receiver<()>,
}

/// The other end of a [`Kernel`].
type Wake = Sender<()>;

impl Kernel {
    fn new() -> (Wake, Self) {
        let (wake, completions) = channel();
        (wake, Self { completions })
    }

    fn enter(&self, waits: bool) {
        if waits {
            self.completions.recv().unwrap();
        } else {
            // Or the model would follow a shard that turns for ever beside a sender that is slow.
            thread::yield_now();
        }
    }
}

/// Turns until `count` items have come.
fn receive(shard: u16, inboxes: &Inboxes<u32>, kernel: &Kernel, count: usize) -> Vec<u32> {
    let mut got = Vec::new();
    loop {
        while let Some(item) = inboxes.pop(shard) {
            got.push(item);
        }
        if got.len() == count {
            return got;
        }
        let sleeps = inboxes.arm_sleep(shard);
        kernel.enter(sleeps);
        if sleeps {
            inboxes.disarm_sleep(shard);
        }
    }
}

fn check(preemptions_max: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions_max);
    builder.check(model);
}

#[test]
fn two_senders_wake_a_sleeper() {
    check(3, || {
        let inboxes = Inboxes::new(Group::new(1).unwrap(), 4);
        let (wake, kernel) = Kernel::new();
        let senders: Vec<_> = (0..2)
            .map(|sender| {
                let (inboxes, wake) = (inboxes.clone(), wake.clone());
                thread::spawn(move || {
                    if inboxes.push(0, sender).unwrap() {
                        wake.send(()).unwrap();
                    }
                })
            })
            .collect();
        let mut got = receive(0, &inboxes, &kernel, 2);
        got.sort_unstable();
        assert_eq!(got, [0, 1]);
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

#[test]
fn one_sender_wakes_a_sleeper_again_and_again_in_order() {
    check(3, || {
        let inboxes = Inboxes::new(Group::new(1).unwrap(), 4);
        let (wake, kernel) = Kernel::new();
        let sender = {
            let (inboxes, wake) = (inboxes.clone(), wake.clone());
            thread::spawn(move || {
                for item in 0..3 {
                    if inboxes.push(0, item).unwrap() {
                        wake.send(()).unwrap();
                    }
                }
            })
        };
        assert_eq!(receive(0, &inboxes, &kernel, 3), [0, 1, 2]);
        sender.join().unwrap();
    });
}

#[test]
fn two_shards_ask_and_answer_while_both_sleep() {
    check(3, || {
        let inboxes = Inboxes::new(Group::new(2).unwrap(), 4);
        let (wake_first, first) = Kernel::new();
        let (wake_second, second) = Kernel::new();
        let answering = {
            let inboxes = inboxes.clone();
            thread::spawn(move || {
                assert_eq!(receive(1, &inboxes, &second, 1), [7]);
                if inboxes.push(0, 8).unwrap() {
                    wake_first.send(()).unwrap();
                }
            })
        };
        if inboxes.push(1, 7).unwrap() {
            wake_second.send(()).unwrap();
        }
        assert_eq!(receive(0, &inboxes, &first, 1), [8]);
        answering.join().unwrap();
    });
}

#[test]
fn one_sleep_costs_at_most_one_wake() {
    check(4, || {
        let group = Group::new(1).unwrap();
        group.arm(0);
        let claims = Arc::new(AtomicUsize::new(0));
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let (group, claims) = (group.clone(), Arc::clone(&claims));
                thread::spawn(move || {
                    if group.claim(0) {
                        claims.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for sender in senders {
            sender.join().unwrap();
        }
        assert_eq!(claims.load(Ordering::Relaxed), 1);
    });
}

/// The control experiment: to look first and arm then loses a wake-up, and the model finds it.
#[test]
#[should_panic(expected = "deadlock")]
fn a_receiver_that_looks_before_it_arms_is_found() {
    check(3, || {
        let group = Group::new(1).unwrap();
        let inboxes = Inboxes::new(group.clone(), 4);
        let (wake, kernel) = Kernel::new();
        let sender = {
            let (inboxes, wake) = (inboxes.clone(), wake.clone());
            thread::spawn(move || {
                if inboxes.push(0, 0).unwrap() {
                    wake.send(()).unwrap();
                }
            })
        };
        while inboxes.pop(0).is_none() {
            let sleeps = inboxes.depth(0) == 0;
            group.arm(0);
            kernel.enter(sleeps);
            group.disarm(0);
        }
        sender.join().unwrap();
    });
}
