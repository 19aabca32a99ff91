//! Waking a shard that sleeps in the kernel, and only then.
//!
//! The receiver *arms* (says that it is about to sleep), *rechecks* its queues, and sleeps only if
//! they are empty; the sender puts its item into the queue and then *claims* the wake. A full fence
//! on both sides orders "flag, then queue" against "queue, then flag", so that at least one of the
//! two sees the other: either the receiver finds the item, or a sender finds the flag. Of many
//! senders one claims; the others pay two loads. [`crate::Inboxes`] does all of that for queues.
//!
//! ```
//! # let group = ringpost_ring::Group::new(2).unwrap();
//! # let queue: Vec<u8> = vec![1];
//! # let mut wait_ns = u64::MAX;
//! // receiver, before it enters the kernel
//! group.arm(0);
//! if !queue.is_empty() {
//!     wait_ns = 0;
//! }
//! // ring.enter(wait_ns, ...);
//! group.disarm(0);
//!
//! // sender, after the push
//! if group.claim(0) {
//!     // ring.submit(token, Op::Wake { shard: 0 }), or WakeHandle::wake outside of a shard
//! }
//! ```

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering, fence};

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicI32, Ordering, fence};

/// The rings of one process. Made before the shard threads start; each [`crate::Uring`] then takes
/// its place.
#[derive(Clone, Debug)]
pub struct Group {
    seats: Arc<[Seat]>,
}

/// Wakes one shard from a thread that has no ring.
#[derive(Clone, Debug)]
pub struct WakeHandle {
    group: Group,
    shard: u16,
}

/// On its own cache lines: every sender of every shard reads the flag.
#[derive(Debug)]
#[repr(align(128))]
struct Seat {
    sleeping: AtomicBool,
    /// Descriptor of the ring, negative while there is none.
    ring_fd: AtomicI32,
    /// An eventfd on which the ring always has a read armed.
    bell: File,
}

impl Group {
    /// Room for `shard_count` rings; takes one descriptor for each.
    pub fn new(shard_count: u16) -> io::Result<Self> {
        let seat = |_| {
            Ok(Seat {
                sleeping: AtomicBool::new(false),
                ring_fd: AtomicI32::new(-1),
                bell: eventfd()?,
            })
        };
        let seats: io::Result<Vec<Seat>> = (0..shard_count).map(seat).collect();
        Ok(Self { seats: seats?.into() })
    }

    /// Number of shards that the group was made for.
    #[must_use]
    pub fn shard_count(&self) -> u16 {
        u16::try_from(self.seats.len()).expect("made from a u16")
    }

    /// The receiver is about to sleep. It must look at its queues once more after this.
    pub fn arm(&self, shard: u16) {
        set(&self.seat(shard).sleeping, true);
        fence(Ordering::SeqCst);
    }

    /// The receiver is awake.
    pub fn disarm(&self, shard: u16) {
        set(&self.seat(shard).sleeping, false);
    }

    /// After putting something into a queue of `shard`: whether the caller must wake it.
    #[must_use = "the shard sleeps on if a claimed wake is not sent"]
    pub fn claim(&self, shard: u16) -> bool {
        fence(Ordering::SeqCst);
        let sleeping = &self.seat(shard).sleeping;
        sleeping.load(Ordering::Relaxed) && sleeping.swap(false, Ordering::Relaxed)
    }

    /// A handle for threads without a ring. Works before the ring is up: it then wakes at once.
    #[must_use]
    pub fn handle(&self, shard: u16) -> WakeHandle {
        assert!(shard < self.shard_count(), "no shard {shard}");
        WakeHandle { group: self.clone(), shard }
    }

    /// Descriptor of the ring, if it is up.
    pub(crate) fn ring_fd(&self, shard: u16) -> Option<RawFd> {
        let fd = self.seat(shard).ring_fd.load(Ordering::Acquire);
        (fd >= 0).then_some(fd)
    }

    pub(crate) fn register(&self, shard: u16, fd: RawFd) {
        let earlier = self.seat(shard).ring_fd.swap(fd, Ordering::AcqRel);
        assert!(earlier < 0, "two rings for shard {shard}");
    }

    pub(crate) fn unregister(&self, shard: u16) {
        self.seat(shard).ring_fd.store(-1, Ordering::Release);
    }

    pub(crate) fn bell_fd(&self, shard: u16) -> RawFd {
        self.seat(shard).bell.as_raw_fd()
    }

    fn seat(&self, shard: u16) -> &Seat {
        &self.seats[usize::from(shard)]
    }
}

impl WakeHandle {
    /// Wakes the shard, or the next one to sleep: it gets [`crate::WOKEN_TOKEN`] once for any
    /// number of calls that it has not seen yet.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // Fails only if the counter is full, and then the ring has been told already.
        let _ = (&self.group.seat(self.shard).bell).write(&one);
    }
}

/// A swap, not a store, so that loom checks what runs: it does not know that a claim's swap comes
/// right after the store that it reads, and would go through orders that no machine can produce.
/// The price is one locked instruction per sleep.
fn set(flag: &AtomicBool, value: bool) {
    flag.swap(value, Ordering::Relaxed);
}

/// Blocking: the ring's read of it shall wait, and a write blocks only at 2^64 - 2 wakes.
fn eventfd() -> io::Result<File> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { File::from_raw_fd(fd) })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_senders_claims_the_wake() {
        let group = Group::new(2).unwrap();
        assert!(!group.claim(1), "awake");
        group.arm(1);
        assert!(!group.claim(0), "another shard");
        assert!(group.claim(1));
        assert!(!group.claim(1), "claimed already");
        group.arm(1);
        group.disarm(1);
        assert!(!group.claim(1));
    }
}
