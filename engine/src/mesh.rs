//! How shards talk: one bounded inbound queue per shard, credits per destination, no locks.
//!
//! A *request* costs its sender one credit of the destination and is answered by exactly one
//! *reply*, which gives the credit back. Replies and notes need no credit: `queue_capacity` leaves
//! room for them, so answering never waits, draining never blocks, and no cycle of full queues can
//! form. A shard without credit stops reading the sockets that need it; see `shard/route.rs`.

use ringpost_protocol::mutant::{Mutant, is_active};
use ringpost_ring::{Group, Inboxes};

use crate::directory::Answered;
use crate::limits::{DIRECTORY_REQUESTS_MAX, KEYS_NEWS_MAX, MESH_CREDITS, SHARDS_MAX};
use crate::shard::message::{ControlRequest, MeshMessage};

/// The queues of all shards, shared by their [`Mesh`] handles and the control thread.
#[derive(Clone)]
pub struct Queues {
    inboxes: Inboxes<Inbound>,
}

/// One shard's end of the mesh.
pub struct Mesh {
    shard: u16,
    queues: Queues,
    /// Credits left per destination.
    credits: Box<[u32]>,
}

/// A message and who sent it. Control and the directory are no shards and have no credits to give
/// back.
pub struct Inbound {
    pub from: Source,
    pub message: MeshMessage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Shard(u16),
    Control,
    Directory,
}

/// No credit is left for the destination; the caller keeps the request and waits.
#[derive(Debug)]
pub struct NoCredit;

impl Queues {
    pub fn new(group: Group) -> Self {
        let shards = group.shard_count();
        assert!((1..=SHARDS_MAX).contains(&shards), "shard count is checked by the configuration");
        Self { inboxes: Inboxes::new(group, queue_capacity(shards)) }
    }

    pub fn shards(&self) -> u16 {
        self.inboxes.shard_count()
    }

    /// Queues a request of the control thread and wakes the shard. False: the queue is full, which
    /// only a flood of control requests can cause.
    pub fn push_control(&self, shard: u16, request: ControlRequest) -> bool {
        let inbound = Inbound { from: Source::Control, message: MeshMessage::Control(request) };
        let pushed = self.inboxes.push(shard, inbound);
        if pushed == Ok(true) {
            self.inboxes.ring_bell(shard);
        }
        pushed.is_ok()
    }

    /// Queues an answer of the directory to a request of the shard, and wakes it.
    pub fn push_answer(&self, shard: u16, answered: Answered) {
        let message = MeshMessage::Answered(Box::new(answered));
        let pushed = self.inboxes.push(shard, Inbound { from: Source::Directory, message });
        if pushed.expect("a shard's unanswered requests bound what can be queued") {
            self.inboxes.ring_bell(shard);
        }
    }
}

impl Mesh {
    pub fn new(shard: u16, queues: Queues) -> Self {
        let credits = vec![MESH_CREDITS; usize::from(queues.shards())].into_boxed_slice();
        Self { shard, queues, credits }
    }

    /// Takes one credit of `to`, to be spent by one [`Mesh::push`] of a request.
    pub fn reserve(&mut self, to: u16) -> Result<(), NoCredit> {
        let credits = &mut self.credits[usize::from(to)];
        if *credits == 0 {
            return Err(NoCredit);
        }
        *credits -= 1;
        Ok(())
    }

    /// Gives back the credit that a reply of `from` carries.
    pub fn replied(&mut self, from: u16) {
        if is_active(Mutant::CreditLeaked) {
            return;
        }
        let credits = &mut self.credits[usize::from(from)];
        *credits += 1;
        assert!(*credits <= MESH_CREDITS, "a reply without its request");
    }

    /// Queues `message` at shard `to`; true: it sleeps and the caller must wake it.
    #[must_use = "a sleeping shard must be woken"]
    pub fn push(&self, to: u16, message: MeshMessage) -> bool {
        let inbound = Inbound { from: Source::Shard(self.shard), message };
        self.queues.inboxes.push(to, inbound).expect("credits bound what can be queued")
    }

    pub fn pop(&self) -> Option<Inbound> {
        self.queues.inboxes.pop(self.shard)
    }

    pub fn depth(&self) -> usize {
        self.queues.inboxes.depth(self.shard)
    }

    /// Requests that can be made to `to` now.
    pub fn credits(&self, to: u16) -> u32 {
        self.credits[usize::from(to)]
    }

    /// Requests to all shards whose reply has not come.
    pub fn unanswered(&self) -> u64 {
        self.credits.iter().map(|left| u64::from(MESH_CREDITS - left)).sum()
    }

    pub fn shards(&self) -> u16 {
        self.queues.shards()
    }

    /// Says that this shard is about to sleep. False: something arrived, do not sleep.
    pub fn arm_sleep(&self) -> bool {
        self.queues.inboxes.arm_sleep(self.shard)
    }

    pub fn disarm_sleep(&self) {
        self.queues.inboxes.disarm_sleep(self.shard);
    }
}

/// Room in one shard's inbound queue. Per other shard: its unanswered requests, our replies to
/// them having been drained; the replies to our own requests; and one note per request of either
/// side (see `MeshMessage::Noted`), because the queue is first in, first out and a credit is only
/// spent again after its reply was drained. Beside them the answers of the directory.
fn queue_capacity(shards: u16) -> usize {
    let per_shard = 3 * MESH_CREDITS as usize;
    per_shard * usize::from(shards) + CONTROL_MESSAGES_MAX + DIRECTORY_REQUESTS_MAX
}

/// Requests of the control thread that may wait at one shard.
const CONTROL_MESSAGES_MAX: usize = 16 + KEYS_NEWS_MAX;
