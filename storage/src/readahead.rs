//! Reads a file from front to back, some pieces ahead of who uses them: the disk works while the
//! last piece is replayed.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::batch::index;
use crate::disk::{DiskError, DiskErrorKind, DiskOp, DiskOpId, DiskOutcome, FileId};

#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    file: Option<FileId>,
    /// Where the next piece begins, and where the last one ends.
    next: u64,
    end: u64,
    /// Asked for and not used yet, in order.
    pieces: VecDeque<Piece>,
    /// Reads under way whose bytes nobody wants any more.
    abandoned: usize,
}

#[derive(Debug)]
struct Piece {
    id: DiskOpId,
    offset: u64,
    length_bytes: u32,
    result: Option<Result<Bytes, DiskError>>,
}

/// A piece that could not be read.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) offset: u64,
    pub(crate) length_bytes: u32,
}

/// What [`ReadAhead::take`] found.
#[derive(Debug)]
pub(crate) enum Taken {
    /// The next piece and the length that was asked for: a shorter one is the end of the file.
    Piece(u32, Bytes),
    Failed(Refused),
    /// It is still being read, or not yet asked for.
    Later,
    /// All was used.
    End,
}

impl ReadAhead {
    /// Goes on with the bytes `from..end` of `file`.
    pub(crate) fn begin(&mut self, file: FileId, from: u64, end: u64) {
        self.abandon();
        (self.file, self.next, self.end) = (Some(file), from, end);
    }

    /// Nothing more is wanted of the file at hand.
    pub(crate) fn abandon(&mut self) {
        self.abandoned += self.pieces.iter().filter(|piece| piece.result.is_none()).count();
        self.pieces.clear();
        self.file = None;
    }

    /// The next read, if there is room for one more. It is answered to `handle` with `id`.
    pub(crate) fn poll(&mut self, id: DiskOpId) -> Option<DiskOp> {
        let file = self.file?;
        if self.pieces.len() + self.abandoned >= PIECES_MAX || self.next >= self.end {
            return None;
        }
        let (offset, left) = (self.next, self.end - self.next);
        let length_bytes = u32::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        self.next += u64::from(length_bytes);
        self.pieces.push_back(Piece { id, offset, length_bytes, result: None });
        Some(DiskOp::Read { file, offset, length_bytes })
    }

    pub(crate) fn handle(&mut self, id: DiskOpId, result: Result<DiskOutcome, DiskError>) {
        let Some(piece) = self.pieces.iter_mut().find(|piece| piece.id == id) else {
            self.abandoned = self.abandoned.checked_sub(1).expect("each read is answered once");
            return;
        };
        assert!(piece.result.is_none(), "each read is answered once");
        piece.result = Some(result.and_then(|outcome| match outcome {
            DiskOutcome::Read(bytes) => Ok(bytes),
            _ => {
                let text = "the driver's answer is of another operation".into();
                Err(DiskError { kind: DiskErrorKind::Io, text })
            }
        }));
    }

    pub(crate) fn take(&mut self) -> Taken {
        let Some(piece) = self.pieces.pop_front() else {
            return if self.next < self.end { Taken::Later } else { Taken::End };
        };
        match piece.result {
            None => {
                self.pieces.push_front(piece);
                Taken::Later
            }
            Some(Err(_)) => {
                Taken::Failed(Refused { offset: piece.offset, length_bytes: piece.length_bytes })
            }
            Some(Ok(bytes)) => {
                if bytes.len() < index(piece.length_bytes) {
                    self.ends_here();
                }
                Taken::Piece(piece.length_bytes, bytes)
            }
        }
    }

    /// The file is shorter than was known.
    pub(crate) fn ends_here(&mut self) {
        self.end = self.end.min(self.next);
        self.next = self.end;
    }

    /// No read is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.abandoned == 0 && self.pieces.iter().all(|piece| piece.result.is_some())
    }
}

/// Fits the processor's cache together with what it becomes.
const PIECE_BYTES: u32 = 1 << 20;
/// Pieces in memory, read or being read.
const PIECES_MAX: usize = 4;
