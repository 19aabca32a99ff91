//! What a store's directory holds, and what the first block of each segment says.

use bytes::Bytes;

use super::Opening;
use crate::batch::{BatchHead, index};
use crate::disk::{FileId, SegmentId};
use crate::entry::SEGMENT_SPAN_MAX;
use crate::fault::OpenFault;
use crate::limits::{BLOCK_BYTES, SEGMENT_BYTES_MAX};
use crate::segment::{Header, HeaderBlock};

/// One segment file and what its first block says.
#[derive(Debug)]
pub(super) struct File {
    pub(super) segment: SegmentId,
    pub(super) bytes: u32,
    pub(super) open_count: Option<u32>,
    pub(super) first_batch: Option<u64>,
    /// The header is intact: the segment was in use.
    pub(super) is_valid: bool,
}

impl Opening {
    pub(super) fn listed(&mut self, mut files: Vec<(FileId, u64)>) -> Result<(), OpenFault> {
        files.sort_unstable_by_key(|(file, _)| *file);
        for (file, bytes) in files {
            let segment = match file {
                FileId::Segment(segment) => segment,
                FileId::Checkpoint(checkpoint) => {
                    self.checkpoints.insert(0, (checkpoint, bytes));
                    continue;
                }
            };
            let fits = u32::try_from(bytes).ok().filter(|bytes| *bytes <= SEGMENT_BYTES_MAX);
            let bytes = fits.ok_or(OpenFault::TooLong { segment, bytes })?;
            self.progress.bytes_total += u64::from(bytes.saturating_sub(BLOCK_BYTES));
            self.files.push(File {
                segment,
                bytes,
                open_count: None,
                first_batch: None,
                is_valid: false,
            });
        }
        // The next segment too must be one that entries can name.
        match (self.files.first(), self.files.last()) {
            (Some(first), Some(last))
                if last.segment.0 == u32::MAX
                    || last.segment.0 - first.segment.0 >= SEGMENT_SPAN_MAX - 1 =>
            {
                Err(OpenFault::SegmentsApart { first: first.segment, last: last.segment })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn read_header(&mut self, file: usize, bytes: &Bytes) -> Result<(), OpenFault> {
        let origin = self.config.origin();
        let file = &mut self.files[file];
        let block = bytes.get(index(BLOCK_BYTES)..).unwrap_or_default();
        match Header::decode(bytes, origin, file.segment)? {
            HeaderBlock::Valid(header) => {
                file.is_valid = true;
                file.open_count = Some(header.open_count);
                file.first_batch = Some(header.first_batch);
            }
            // The first batch says the same, if it is there.
            HeaderBlock::Blank | HeaderBlock::Damaged => {
                if let Some(head) = BatchHead::parse(block, origin, file.segment, BLOCK_BYTES) {
                    file.open_count = Some(head.open_count);
                    file.first_batch = Some(head.number);
                }
            }
        }
        Ok(())
    }
}
