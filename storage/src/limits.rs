//! Every bound of the store, and its configuration.

use ringpost_protocol::limits::{DEVICE_ID_BYTES_MAX, ENVELOPE_BYTES_MAX, USER_ID_BYTES_MAX};

/// What one store is opened with. [`StoreConfig::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The storage shard; written into every segment and compared at start.
    pub shard: u16,
    /// Random number of the store, from `CURRENT`; files of another store are refused.
    pub store_id: u64,
    /// Length of one segment file.
    pub segment_bytes: u32,
    /// Recent batches kept in memory, so that a delivery right after its commit reads no disk.
    pub cache_bytes: usize,
    /// A batch that reached this length is closed and the next one begins.
    pub batch_bytes_max: u32,
    /// Records that wait for the disk; beyond it [`crate::StoreFull::Queue`].
    pub queued_bytes_max: usize,
    /// Bytes of old segments that reclaim reads per second; up to eight times as many while it falls
    /// behind.
    pub reclaim_bytes_per_second: u32,
    /// A checkpoint of the index begins when the log behind the last one is longer.
    pub checkpoint_log_bytes: u64,
    /// About so much of a checkpoint is encoded at a time.
    pub checkpoint_chunk_bytes: u32,
    /// Bytes of a checkpoint written per second.
    pub checkpoint_bytes_per_second: u32,
    /// Messages of one mailbox.
    pub mailbox_records_max: u32,
    /// Bytes of the messages of one mailbox.
    pub mailbox_bytes_max: u32,
    /// One sender may hold this part of a mailbox: a quarter is 4.
    pub sender_share: u32,
    /// A segment is read for expired messages at most so often.
    pub expiry_scan_interval_ms: u64,
    /// Zeros written ahead of the log in one piece.
    pub fill_chunk_bytes: u32,
}

impl StoreConfig {
    pub fn new(shard: u16, store_id: u64) -> Self {
        Self {
            shard,
            store_id,
            segment_bytes: 64 << 20,
            cache_bytes: 16 << 20,
            batch_bytes_max: 1 << 20,
            queued_bytes_max: 64 << 20,
            reclaim_bytes_per_second: 64 << 20,
            checkpoint_log_bytes: 512 << 20,
            checkpoint_chunk_bytes: CHECKPOINT_CHUNK_BYTES_MAX,
            checkpoint_bytes_per_second: 32 << 20,
            mailbox_records_max: 1000,
            mailbox_bytes_max: 4 << 20,
            sender_share: 4,
            expiry_scan_interval_ms: 3_600_000,
            fill_chunk_bytes: FILL_CHUNK_BYTES_MAX,
        }
    }

    /// What is wrong with it.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let whole = |bytes: u32| bytes.is_multiple_of(BLOCK_BYTES);
        let segment_bytes = SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX;
        if !segment_bytes.contains(&self.segment_bytes) || !whole(self.segment_bytes) {
            return Err("segment_bytes: 128 KiB to 1 GiB, a multiple of 4096");
        }
        let chunk = self.fill_chunk_bytes;
        if !(2 * BLOCK_BYTES..=FILL_CHUNK_BYTES_MAX).contains(&chunk) || !whole(chunk) {
            return Err("fill_chunk_bytes: 8 KiB to 1 MiB, a multiple of 4096");
        }
        if !(BLOCK_BYTES..=BATCH_BYTES_MAX).contains(&self.batch_bytes_max) {
            return Err("batch_bytes_max: 4 KiB to 16 MiB");
        }
        let chunk_bytes = CHECKPOINT_CHUNK_BYTES_MIN..=CHECKPOINT_CHUNK_BYTES_MAX;
        if !chunk_bytes.contains(&self.checkpoint_chunk_bytes) {
            return Err("checkpoint_chunk_bytes: 512 to 262144");
        }
        Ok(())
    }
}

/// Format of segments and `CURRENT`; another number is refused by name.
pub const FORMAT_VERSION: u16 = 2;
/// Batches start on this boundary and share no block with an earlier one.
pub const BLOCK_BYTES: u32 = 4096;
/// Mailboxes that one message record may name.
pub const MAILBOXES_PER_RECORD_MAX: usize = 1000;
/// The longest record.
pub const RECORD_BYTES_MAX: usize = ENVELOPE_BYTES_MAX
    + 8 * MAILBOXES_PER_RECORD_MAX
    + 2 * USER_ID_BYTES_MAX
    + DEVICE_ID_BYTES_MAX
    + 128;
/// A segment holds at least its header, and one batch of one record.
pub const SEGMENT_BYTES_MIN: u32 = 128 << 10;
pub const SEGMENT_BYTES_MAX: u32 = 1 << 30;
pub const BATCH_BYTES_MAX: u32 = 16 << 20;
pub const CHECKPOINT_CHUNK_BYTES_MIN: u32 = 512;
pub const CHECKPOINT_CHUNK_BYTES_MAX: u32 = 256 << 10;
pub const FILL_CHUNK_BYTES_MAX: u32 = 1 << 20;
/// The log knows the expiry clock so exactly, while something is appended or queued.
pub const CLOCK_LOG_MS: u64 = 60_000;
/// The expiry clock advances at most so far at a start that no operator confirmed.
pub const CLOCK_STEP_MS_MAX: u64 = 3_600_000;
/// Reads of records that are under way at once. Thousands of devices that return to full mailboxes
/// would else fill each turn of a shard with their reads, and everybody else would wait for all of
/// them.
pub const READS_IN_FLIGHT_MAX: usize = 64;
/// So often a full disk is asked again.
pub const DISK_RETRY_MS: u64 = 1000;
/// An idle store attests its last batch after this time.
pub const ATTEST_MS: u64 = 1000;
