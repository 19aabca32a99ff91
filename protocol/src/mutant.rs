//! Deliberate bugs, one per promise: what the simulator must catch, else it proves nothing.
//!
//! Production code asks [`is_active`] at the one place where a bug of that kind would sit. Without
//! the crate's feature `mutants`, which only the tests enable, the answer is a constant `false`
//! and nothing of it is left in the program. With it, a thread may turn one bug on, which makes
//! every simulated world of that thread a broken one; see the binary `mutants` of `ringpost-tests`.

/// Declares the catalogue, so that no bug can be left out of [`Mutant::ALL`].
macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// One deliberate bug. The variants follow a message's path.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Mutant {
            $($(#[$doc])* $name,)*
        }

        impl Mutant {
            /// The whole catalogue.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

mutants! {
    /// The end of a multishot accept is overlooked: the listener is deaf.
    AcceptMoreIgnored,
    /// The end of a multishot receive is overlooked: the connection is deaf.
    ReceiveMoreIgnored,
    /// A receive buffer is not given back to the ring.
    LeaseNotReturned,
    /// A datagram that came to the wrong shard is dropped there.
    DatagramNotForwarded,
    /// What a QUIC client sends gets lost on its way to the shard of its connection.
    StreamChunkLost,
    /// A short send counts as a whole one.
    ShortSendTakenForWhole,
    /// A device is welcomed before its record is durable.
    WelcomeBeforeSync,
    /// The older connection of a device lives on beside the newer one.
    ReplacedConnectionKept,
    /// The end of an older connection detaches the newer one of its device.
    StaleGenerationAccepted,
    /// An acknowledgement above everything sent is taken.
    AckOfUnsentAccepted,
    /// Later Sends overtake a refused one: the sender's home arms no block.
    AfterRejectIgnored,
    /// Later Sends that are on the mesh overtake a refused one.
    HomeBlockMissing,
    /// Later Sends that are on the mesh overtake one of which a failed store may have lost.
    UnknownBlockMissing,
    /// The answer to a mesh request does not give its credit back.
    CreditLeaked,
    /// A Send to a group that waits for the one before it is not told that its turn has come.
    GroupWakeLost,
    /// A device may have several Sends to one group under way.
    GroupSendsTogether,
    /// Messages to groups that waited for a store to be opened are stored in another order.
    HeldPartsReordered,
    /// Sends that wait for a device list outlive the store that failed.
    ListWaitsOutliveStore,
    /// Envelopes for an older device list than the present one are taken as if they were for it.
    StaleListIgnored,
    /// A Send for a version of the roster that is not in force is taken.
    StaleRosterTaken,
    /// A change of a roster is answered and served before it is durable.
    RosterBeforeDurable,
    /// Who was removed from a group gets its messages all the same.
    RemovedMemberServed,
    /// An answered request still counts as unanswered.
    RequestSlotLeaked,
    /// One-time keys that are published once more, after a crash, are handed out once more.
    RepublishedKeysTaken,
    /// The bound of a mailbox is not looked at.
    MailboxBoundIgnored,
    /// A device that was skipped is never told.
    SkippedWithoutGap,
    /// Accepted is said when the record is in memory.
    SpeakBeforeSync,
    /// A record is delivered before it is durable.
    DeliverBeforeSync,
    /// Only every other batch is synced.
    SyncSkipped,
    /// A new segment is used before its directory entry is durable.
    DirectoryNotSynced,
    /// A segment's header states its first batch before the ones before it are durable.
    HeaderTooEarly,
    /// Delivery after a Hello begins one entry too late.
    ReplayFromWrongSeq,
    /// A record read from disk for an older connection is delivered on the newer one.
    StaleReadDelivered,
    /// The watermark of an acknowledgement is written before the receipts are durable.
    ReceiptLostOnRestart,
    /// A message that expired gets a receipt all the same.
    ReceiptForExpired,
    /// A receipt covers one Send more than was acknowledged.
    ReceiptTooFar,
    /// An acknowledgement is not written at all.
    AckNotWritten,
    /// Recovery forgets the last record of each batch.
    RecoverySkipsLastRecord,
    /// Recovery takes a batch whose checksum is wrong.
    TornTailTakenForGood,
    /// An open begins with the numbers of the one before it.
    SeqReusedAfterCrash,
    /// Recovery forgets acknowledgements.
    RecoveryForgetsAcks,
    /// Replay on top of a checkpoint begins one batch too late.
    CheckpointReplayedTooLate,
    /// Reclaim removes a segment though records of it are needed.
    ReclaimDropsLive,
    /// Reclaim copies a message also for mailboxes that have acknowledged it.
    ReclaimResurrectsAcked,
    /// Reclaim removes a segment before the copies of its records are durable.
    ReclaimBeforeCopiesDurable,
    /// An expired message vanishes without a gap.
    ExpiredWithoutGap,
    /// The expiry clock follows the wall clock at start, however far that has jumped.
    ExpiryClockUnlimited,
    /// Re-sharding leaves one slot behind.
    ReshardLosesSlot,
    /// After a failed sync the store goes on as if it had succeeded.
    SyncFailureIgnored,
    /// The client tells its app of a message that it knows already.
    ReceiveMarkIgnored,
}

/// Whether this thread runs with that bug.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_active(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use enabled::{activate, is_active};

#[cfg(feature = "mutants")]
mod enabled {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Turns one bug on for this thread, or all of them off.
    pub fn activate(mutant: Option<Mutant>) {
        ACTIVE.set(mutant);
    }

    /// Whether this thread runs with that bug.
    pub fn is_active(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }
}
