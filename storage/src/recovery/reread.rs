//! A piece of the log that the disk refuses to read: block by block, each tried again.
//!
//! What stays unreadable is passed over like any other damage: if a later batch attests what it
//! held, its range is reported, and the rest is served. At the very end of the log nothing tells
//! whether it held an accepted message, so there the opening fails instead of cutting it away.

use bytes::Bytes;

use super::{FileScan, Next, Opening, State};
use crate::batch::index;
use crate::disk::{DiskError, DiskOp, SegmentId};
use crate::fault::OpenFault;
use crate::limits::BLOCK_BYTES;
use crate::read::READ_ATTEMPTS;
use crate::readahead::Refused;

/// A piece being read again.
#[derive(Debug)]
pub(super) struct Reread {
    /// The block at hand, and where the piece ends.
    offset: u64,
    end: u64,
    length_bytes: u32,
    failures: u8,
    bytes: Vec<u8>,
}

/// A block that cannot be read.
#[derive(Debug)]
pub(super) struct Unreadable {
    segment: SegmentId,
    pub(super) offset: u64,
    error: DiskError,
}

impl Reread {
    pub(super) fn new(refused: &Refused) -> Self {
        let Refused { offset, length_bytes, .. } = *refused;
        Self {
            offset,
            end: offset + u64::from(length_bytes),
            length_bytes,
            failures: 0,
            bytes: Vec::with_capacity(index(length_bytes)),
        }
    }

    fn block_bytes(&self) -> u32 {
        u32::try_from(self.end - self.offset).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES))
    }

    pub(super) fn poll(&self, segment: SegmentId) -> Next {
        let length_bytes = self.block_bytes();
        Next::Ask(DiskOp::Read { file: segment.into(), offset: self.offset, length_bytes })
    }
}

impl Opening {
    pub(super) fn reread(
        &mut self,
        file: usize,
        scan: FileScan,
        mut piece: Box<Reread>,
        block: &[u8],
    ) -> State {
        let asked = piece.block_bytes();
        piece.bytes.extend_from_slice(block);
        piece.failures = 0;
        piece.offset += u64::from(asked);
        let is_short = block.len() < index(asked);
        self.goes_on(file, scan, piece, is_short)
    }

    pub(super) fn reread_refused(
        &mut self,
        file: usize,
        scan: FileScan,
        mut piece: Box<Reread>,
        error: DiskError,
    ) -> State {
        piece.failures += 1;
        if piece.failures < READ_ATTEMPTS {
            return State::Reread { file, scan, piece };
        }
        let (segment, offset) = (scan.scanner.segment, piece.offset);
        self.report.unreadable_blocks += 1;
        self.unreadable.push(Unreadable { segment, offset, error });
        // Neither a batch nor zeros.
        let noise = vec![NOISE; index(piece.block_bytes())];
        self.reread(file, scan, piece, &noise)
    }

    fn goes_on(
        &mut self,
        file: usize,
        mut scan: FileScan,
        piece: Box<Reread>,
        is_short: bool,
    ) -> State {
        if piece.offset < piece.end && !is_short {
            return State::Reread { file, scan, piece };
        }
        if is_short {
            self.reads.ends_here();
        }
        let Reread { length_bytes, bytes, .. } = *piece;
        self.progress.bytes_read += bytes.len() as u64;
        scan.scanner.extend(length_bytes, Bytes::from(bytes));
        State::Scan { file, scan }
    }

    /// Whether the end of the log could be read.
    pub(super) fn check_end(&mut self) -> Result<(), OpenFault> {
        match self.unreadable.drain(..).next() {
            None => Ok(()),
            Some(Unreadable { segment, offset, error }) => {
                Err(OpenFault::EndUnreadable { segment, offset, error })
            }
        }
    }
}

const NOISE: u8 = 0xff;
