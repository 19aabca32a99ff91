//! A walk over one segment within the byte budget: reclaim copies what is needed of it, a sweep
//! looks for what has expired. One at a time.

use bytes::Bytes;

use crate::batch::{Scan, Scanner, index};
use crate::commit::Task;
use crate::disk::{DiskOp, SegmentId};
use crate::read::READ_ATTEMPTS;
use crate::store::Store;

#[derive(Debug)]
pub(crate) struct SegmentScan {
    purpose: Purpose,
    scanner: Scanner,
    reading: bool,
    /// How often the read at hand failed.
    failures: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Reclaim,
    Sweep,
}

impl Store {
    /// Background work: a sweep waits for one segment's reclaim, and reclaim for one sweep.
    pub(crate) fn poll_upkeep(&mut self, now_ms: u64) -> Option<(Task, DiskOp)> {
        if self.scan.is_none() && self.reclaim.is_idle() {
            if self.sweep.goes_first {
                self.begin_sweep(now_ms);
            }
            if self.scan.is_none() {
                self.begin_reclaim(now_ms);
            }
            if self.scan.is_none() && self.reclaim.is_idle() {
                self.begin_sweep(now_ms);
            }
        }
        self.poll_scan(now_ms).or_else(|| self.poll_removal())
    }

    pub(crate) fn begin_scan(&mut self, purpose: Purpose, segment: SegmentId, end: u32) {
        let scanner = Scanner::new(self.config.origin(), segment, end, READ_BYTES);
        self.scan = Some(SegmentScan { purpose, scanner, reading: false, failures: 0 });
    }

    /// Appends go first: nothing is copied while more than a batch waits.
    fn is_backlogged(&self) -> bool {
        self.forming.queued_bytes() > index(self.config.batch_bytes_max / 2)
    }

    fn poll_scan(&mut self, now_ms: u64) -> Option<(Task, DiskOp)> {
        loop {
            let (backlogged, rate) = (self.is_backlogged(), self.reclaim_rate());
            let scan = self.scan.as_mut()?;
            if scan.reading || backlogged {
                return None;
            }
            let (purpose, segment) = (scan.purpose, scan.scanner.segment);
            match (scan.scanner.next(), purpose) {
                (Scan::Batch { offset, bytes, .. }, Purpose::Reclaim) => {
                    if self.room.is_full() && !self.reserve_takes(bytes.len() as u64) {
                        self.scan = None;
                        self.rest_reclaim(now_ms);
                        return None;
                    }
                    self.copy_live(now_ms, segment, offset, &bytes);
                }
                (Scan::Batch { offset, bytes, .. }, Purpose::Sweep) => {
                    self.sweep_batch(now_ms, segment, offset, &bytes);
                }
                // What it held is missed, and counted, when reclaim drains the segment.
                (Scan::Damage { .. }, _) => {}
                (Scan::More { offset, length_bytes }, _) => {
                    if now_ms < self.next_scan_read_ms {
                        return None;
                    }
                    scan.reading = true;
                    let pause_ms = (u64::from(length_bytes) * 1000).div_ceil(rate);
                    self.next_scan_read_ms = now_ms + pause_ms;
                    let (file, at) = (segment.into(), u64::from(offset));
                    let read = DiskOp::Read { file, offset: at, length_bytes };
                    return Some((Task::ScanRead { segment, offset, length_bytes }, read));
                }
                (Scan::End, purpose) => {
                    self.scan = None;
                    match purpose {
                        Purpose::Reclaim => self.scanned(segment),
                        Purpose::Sweep => self.swept(now_ms, segment),
                    }
                    return None;
                }
            }
        }
    }

    /// `window`: what was read; `None` when the disk refused.
    pub(crate) fn scan_read(&mut self, offset: u32, length_bytes: u32, window: Option<Bytes>) {
        let Some(scan) = &mut self.scan else { return };
        scan.reading = false;
        scan.failures = if window.is_some() { 0 } else { scan.failures + 1 };
        if let Some(window) = window {
            scan.scanner.feed(offset, length_bytes, window);
        } else if scan.failures == READ_ATTEMPTS {
            scan.failures = 0;
            scan.scanner.unreadable(length_bytes);
        }
    }

    pub(crate) fn scan_timeout(&self) -> Option<u64> {
        let waits = self.scan.as_ref().is_some_and(|scan| !scan.reading);
        (waits && !self.is_backlogged()).then_some(self.next_scan_read_ms)
    }
}

const READ_BYTES: u32 = 256 << 10;
const _: () = assert!(READ_BYTES >= crate::limits::BLOCK_BYTES);
