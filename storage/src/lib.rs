//! Storage of Ringpost: the segment store of one shard.
#![forbid(unsafe_code)]

pub mod limits;
pub mod disk;
pub mod fault;
pub mod record;
mod batch;
mod segment;
mod queue;
pub mod store;
mod commit;
mod reclaim;
pub mod recovery;
mod rebuild;
pub mod current;

pub use current::{Current, CurrentFault};
pub use disk::{DiskError, DiskErrorKind, DiskOp, DiskOpId, DiskOutcome, SegmentId};
pub use fault::{Fault, OpenFault, StoreFull};
pub use limits::StoreConfig;
pub use record::{
    DeviceRecord, GapReason, NewMessage, ReceiptRecord, StoredMessage, StoredRecord, Text,
};
pub use recovery::{DamagedRange, Opening, Progress, RecoveryReport};
pub use store::{ReadId, ReadStart, RecordNumber, Room, Store, StoreEvent, StoreStats};
