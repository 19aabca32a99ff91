//! The index as items of chunks, a piece at a time while it changes.

use ringpost_protocol::id::DeviceAddress;

use super::encode::{DEVICE, QUEUE, SEGMENT, begin};
use crate::batch::index;
use crate::disk::SegmentId;
use crate::entry::ENTRY_BYTES;
use crate::store::Store;
use crate::table::PARTS;

/// What is encoded next.
#[derive(Debug, Default)]
pub(super) struct Cursor {
    /// Parts of the tables that were taken.
    parts: usize,
    /// Of the last part taken, what is still to come; the next one is the last.
    next_mailboxes: Vec<u64>,
    next_devices: Vec<DeviceAddress>,
    /// Entries of the next mailbox up to this seq are written.
    after: u64,
    /// The last segment written; they come at the end, when no queue can name an older state.
    segment: Option<SegmentId>,
    /// Encoded so far.
    pub(super) entries: u64,
    pub(super) devices: u64,
}

impl Store {
    /// About `checkpoint_chunk_bytes` of items, unsealed; `None` when all are encoded.
    pub(super) fn next_chunk(&self, cursor: &mut Cursor) -> Option<Vec<u8>> {
        let mut chunk = begin();
        let empty = chunk.len();
        while chunk.len() < index(self.config.checkpoint_chunk_bytes) {
            if let Some(mailbox) = cursor.next_mailboxes.pop() {
                if !self.put_queue(mailbox, cursor, &mut chunk) {
                    cursor.next_mailboxes.push(mailbox);
                }
            } else if let Some(address) = cursor.next_devices.pop() {
                self.put_device_slot(&address, &mut chunk);
                cursor.devices += 1;
            } else if cursor.parts < PARTS {
                cursor.next_mailboxes = self.mailboxes.ids_of_part(cursor.parts);
                cursor.next_devices = self.devices.keys_of_part(cursor.parts);
                cursor.parts += 1;
            } else if !self.put_segment(cursor, &mut chunk) {
                break;
            }
        }
        (chunk.len() > empty).then_some(chunk)
    }

    /// Appends entries of `mailbox`; whether these were the last.
    fn put_queue(&self, mailbox: u64, cursor: &mut Cursor, chunk: &mut Vec<u8>) -> bool {
        let after = std::mem::take(&mut cursor.after);
        // Emptied since the part was taken.
        let Some(queue) = self.mailboxes.get(&mailbox) else { return true };
        let from = queue.entries.partition_point(|entry| entry.seq() <= after);
        let left = queue.entries.len() - from;
        // A longer queue is written in several items.
        let count = left.min(index(self.config.checkpoint_chunk_bytes) / (2 * ENTRY_BYTES));
        let stated = u32::try_from(count).expect("fits a chunk");
        chunk.push(QUEUE);
        chunk.extend_from_slice(&mailbox.to_le_bytes());
        chunk.extend_from_slice(&queue.acked.to_le_bytes());
        chunk.extend_from_slice(&stated.to_le_bytes());
        for entry in queue.entries.range(from..from + count) {
            chunk.extend_from_slice(&entry.to_bytes());
            cursor.after = entry.seq();
        }
        cursor.entries += u64::from(stated);
        if left == count {
            cursor.after = 0;
        }
        left == count
    }

    /// Appends the next segment with messages that expire, if there is one.
    fn put_segment(&self, cursor: &mut Cursor, chunk: &mut Vec<u8>) -> bool {
        let mut segments = self.log.segments();
        let next = segments.find(|segment| {
            cursor.segment.is_none_or(|last| last < segment.id)
                && segment.earliest_expiry_ms != u64::MAX
        });
        let Some(segment) = next else { return false };
        chunk.push(SEGMENT);
        chunk.extend_from_slice(&segment.id.0.to_le_bytes());
        chunk.extend_from_slice(&segment.earliest_expiry_ms.to_le_bytes());
        cursor.segment = Some(segment.id);
        true
    }

    fn put_device_slot(&self, address: &DeviceAddress, chunk: &mut Vec<u8>) {
        let slot = self.devices.get(address).expect("a device stays");
        chunk.push(DEVICE);
        chunk.extend_from_slice(&slot.mailbox.to_le_bytes());
        chunk.extend_from_slice(&slot.created_unix_ms.to_le_bytes());
        for value in [slot.place.segment.0, slot.place.offset, slot.length] {
            chunk.extend_from_slice(&value.to_le_bytes());
        }
        let texts = [address.user.as_str(), address.device.as_str()];
        for text in texts {
            chunk.push(u8::try_from(text.len()).expect("ids have at most 128 bytes"));
        }
        texts.iter().for_each(|text| chunk.extend_from_slice(text.as_bytes()));
    }
}
