//! Checkpoints: an image of the index in a file of its own, so that a restart reads only the log
//! behind it. Purely an optimisation: without one, or with a damaged one, the older one or the
//! whole log is read, with the same result.
//!
//! The image is *fuzzy*: mailbox after mailbox is written while the log goes on. When it begins,
//! at time B, it notes the replay position P: the place of the first batch that is not durable.
//! Its end is written once everything is durable that was commanded before the last mailbox was
//! written. A restart loads the image and replays every batch from P on top.
//!
//! # Why image and replay give what the whole log gives
//!
//! Look at one entry (mailbox, seq), encoded at time T >= B.
//!
//! - **Appended after T**: its record is in a batch >= P, and is replayed like all that follows.
//! - **Queued at T**: it is in the image, with the place of the last copy that was durable at T.
//!   Its record, if it is in a batch >= P, and later copies are replayed in the order of the log,
//!   and the later place wins. At B all copies in batches < P had moved their entry already, since
//!   moves are made when a batch is durable. What removes it after T is in a batch >= P.
//! - **Gone at T**: the image lacks it. If its record or a copy is in a batch >= P, replay brings
//!   it back for a moment; but what removed it (an ack, a later receipt of its slot, a later gap of
//!   its reason, a gap that replaces it) stands behind every record of it, so it is replayed too. A
//!   copy is made only of what is queued, and acks are written behind the copies of their batch.
//! - **The end waits**: an image must not know what a crash undoes. All it shows was commanded
//!   before its last mailbox was written, and the end is written when that is durable. The end
//!   attests those batches like a batch does: if they cannot be read later, that is corruption.
//! - **A receipt slot or a gap twice**: a long mailbox is written in pieces, so the image may hold
//!   an old receipt and the one that replaced it meanwhile. The newer one is in a batch >= P and
//!   takes the old one's place again.
//! - **`acked`** of the image is an ack that was given: what it covers must not come back.
//! - **Devices**: the last record wins, in the image as in the log; copies move them likewise.
//! - **A mailbox that was emptied** is not in the image, one that is new neither: both as above.
//!   Ids are taken one part of the table at a time, sorted. The part of an id never changes, so
//!   none is missed.
//! - **Segments removed since**: an entry that still names one has been moved or removed by a
//!   record that was durable before the removal. Either that record is replayed, or its own segment
//!   is gone too, and then the entry was removed: a copy would have been copied again. So what
//!   still names a missing segment in the end is dropped. What removes a record stands behind it
//!   in the log, and segments go from the old end; so no entry of a segment that is there can have
//!   lost the record that removes it. (`reclaim.rs` argues the same for acks.) Hence an image may
//!   be as old as it likes.
//! - **Segments lost since**: what names a missing segment though an older one is there was not
//!   reclaimed. Its mailbox gets a gap. The end states the newest segment that the image names, and
//!   new ones are above it: a place in a lost file must not become one in a new file.
//! - **A removal that a crash undid** leaves one segment too many, which nothing refers to.
//! - **Needed bytes of each segment** are counted once, from the finished index.
//!
//! Crashes: the file is one of many until its end is written; then it is synced, then the
//! directory, and only then the older one is removed. Every chunk has a checksum over its
//! content, its number, the file and the open that wrote it, so a hole or an older block of the
//! disk is no chunk. Opening takes the newest file that is whole and removes the others.
//!
//! A checkpoint that cannot be written, or synced, is abandoned and its file removed; the store
//! goes on, and tries again when as much log as usual has been written.

mod encode;
mod items;
mod load;
mod write;

use crate::disk::{CheckpointId, SegmentId};

pub(crate) use encode::END_BYTES;
pub(crate) use load::{Load, Loaded};
pub(crate) use write::{CheckpointOp, Checkpoints};

/// Where replay begins: at the first batch that was not durable when the checkpoint began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replay {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
    pub(crate) batch: u64,
}

/// What an opening leaves to the store.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    /// The valid one, if any: it stays until a newer one is durable.
    pub(crate) current: Option<CheckpointId>,
    /// The highest number in the directory.
    pub(crate) highest: u32,
    /// Length of the log behind it.
    pub(crate) log_bytes: u64,
}
