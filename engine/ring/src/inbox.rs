//! Bounded inbound queues, one per shard, and when a shard may sleep on an empty one.
//!
//! The order that loses no wake-up, with [`Group`]'s fences:
//!
//! ```text
//! receiver                              sender
//! arm_sleep: arm, then look again       push: put, then claim
//! enter (waits only if it was empty)    wake, if claimed
//! disarm_sleep
//! pop until empty
//! ```
//!
//! `tests/loom.rs` runs this code through every order of its steps.

use std::sync::Arc;

use crate::queue::Queue;
use crate::wake::Group;

/// The queues of a group, for all its shards and the threads beside them.
pub struct Inboxes<T> {
    queues: Arc<[Queue<T>]>,
    group: Group,
}

/// The queue has no room; what was to be put into it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the inbound queue is full")]
pub struct InboxFull;

impl<T> Inboxes<T> {
    /// A queue of `capacity` items for each shard of `group`.
    pub fn new(group: Group, capacity: usize) -> Self {
        let queues = (0..group.shard_count()).map(|_| Queue::new(capacity)).collect();
        Self { queues, group }
    }

    /// Number of shards.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        self.group.shard_count()
    }

    /// Puts `item` into the queue of `shard`. True: it sleeps and the caller must wake it, by
    /// [`crate::Op::Wake`] or [`Inboxes::ring_bell`].
    pub fn push(&self, shard: u16, item: T) -> Result<bool, InboxFull> {
        self.queues[usize::from(shard)].push(item).map_err(|_| InboxFull)?;
        Ok(self.group.claim(shard))
    }

    /// Wakes `shard` from a thread without a ring.
    pub fn ring_bell(&self, shard: u16) {
        self.group.handle(shard).wake();
    }

    /// Takes the oldest item of `shard`.
    pub fn pop(&self, shard: u16) -> Option<T> {
        self.queues[usize::from(shard)].pop()
    }

    /// Items that wait for `shard`. One that is being put in may count already.
    #[must_use]
    pub fn depth(&self, shard: u16) -> usize {
        self.queues[usize::from(shard)].len()
    }

    /// Says that `shard` is about to sleep. False: something arrived, do not sleep.
    #[must_use = "sleeping on a queue that is not empty may last"]
    pub fn arm_sleep(&self, shard: u16) -> bool {
        self.group.arm(shard);
        if self.depth(shard) == 0 {
            return true;
        }
        self.group.disarm(shard);
        false
    }

    /// Says that `shard` is awake.
    pub fn disarm_sleep(&self, shard: u16) {
        self.group.disarm(shard);
    }
}

impl<T> Clone for Inboxes<T> {
    fn clone(&self) -> Self {
        Self { queues: Arc::clone(&self.queues), group: self.group.clone() }
    }
}
