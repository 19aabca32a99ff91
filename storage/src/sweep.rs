//! Sweeps: queued messages whose time has passed become gaps, so that the mailboxes of devices
//! that never come back shrink.
//!
//! The index does not know when a message expires; each segment knows the earliest of its own.
//! Once that has passed the segment is read, at most once per
//! [`expiry_scan_interval_ms`](crate::StoreConfig::expiry_scan_interval_ms), and then knows the
//! earliest of the rest. What expires meanwhile is found when it is delivered, or by the next one.

use crate::batch::BATCH_HEAD_BYTES;
use crate::disk::SegmentId;
use crate::entry::Place;
use crate::record::{MessageView, RawRecord, View};
use crate::scan::Purpose;
use crate::store::Store;
use ringpost_protocol::id::{MailboxId, Seq};

#[derive(Debug, Default)]
pub(crate) struct Sweep {
    /// No segment is due before this time.
    next_at_ms: u64,
    /// Reclaim had its turn.
    pub(crate) goes_first: bool,
}

impl Sweep {
    pub(crate) fn look_again(&mut self) {
        self.next_at_ms = 0;
    }
}

impl Store {
    /// A message of `segment` expires then.
    pub(crate) fn note_expiry(&mut self, segment: SegmentId, expires_at_ms: u64) {
        let known = self.log.get_mut(segment);
        known.note_expiry(expires_at_ms);
        let again_ms = known.sweep_again_ms;
        if let Some(passes_ms) = self.clock.when(expires_at_ms) {
            self.sweep.next_at_ms = self.sweep.next_at_ms.min(passes_ms.max(again_ms));
        }
    }

    pub(crate) fn begin_sweep(&mut self, now_ms: u64) {
        let Some(clock_ms) = self.clock.at(now_ms) else { return };
        if now_ms < self.sweep.next_at_ms {
            return;
        }
        // A segment in use is read only while nothing is being added to it.
        let is_idle = self.is_idle();
        let in_use = self.commit.segment().unwrap_or_else(|| self.forming.oldest_segment());
        let due = self.log.segments().find(|segment| {
            let is_whole = segment.id < in_use || (is_idle && segment.id == in_use);
            let is_due = segment.earliest_expiry_ms <= clock_ms && segment.sweep_again_ms <= now_ms;
            is_whole && is_due
        });
        if let Some(due) = due {
            let (segment, end) = (due.id, due.used_bytes);
            self.log.get_mut(segment).rest_expiry_ms = u64::MAX;
            self.sweep.goes_first = false;
            self.begin_scan(Purpose::Sweep, segment, end);
            return;
        }
        let next = self.log.segments().filter_map(|segment| {
            let earliest_ms = segment.earliest_expiry_ms;
            let passes_ms = self.clock.when(earliest_ms).filter(|_| earliest_ms < u64::MAX)?;
            Some(passes_ms.max(segment.sweep_again_ms))
        });
        self.sweep.next_at_ms = next.min().unwrap_or(u64::MAX);
    }

    pub(crate) fn sweep_batch(
        &mut self,
        now_ms: u64,
        segment: SegmentId,
        offset: u32,
        batch: &[u8],
    ) {
        let mut rest = &batch[BATCH_HEAD_BYTES..];
        while let Ok((raw, next)) = RawRecord::split(rest) {
            let at = u32::try_from(batch.len() - rest.len()).expect("within a segment");
            if let Ok(View::Message(view)) = raw.parse() {
                let from = Place { segment, offset: offset + at };
                self.sweep_message(now_ms, &view, from);
            }
            rest = next;
        }
    }

    fn sweep_message(&mut self, now_ms: u64, view: &MessageView<'_>, from: Place) {
        if self.expire_message(now_ms, view, from) {
            return;
        }
        if view.mailboxes().any(|id| self.is_live(id, view.seq, from)) {
            self.log.get_mut(from.segment).note_rest_expiry(view.expires_at_ms);
        }
    }

    /// If its time has passed, no mailbox needs this record any more.
    pub(crate) fn expire_message(
        &mut self,
        now_ms: u64,
        view: &MessageView<'_>,
        from: Place,
    ) -> bool {
        if self.clock.at(now_ms).is_none_or(|clock_ms| view.expires_at_ms > clock_ms) {
            return false;
        }
        let group = (!view.group.is_empty()).then_some(view.group);
        for mailbox in view.mailboxes() {
            if self.is_live(mailbox, view.seq, from) {
                self.expire(MailboxId(mailbox), Seq(view.seq), group);
            }
        }
        true
    }

    pub(crate) fn swept(&mut self, now_ms: u64, segment: SegmentId) {
        let again_ms = now_ms.saturating_add(self.config.expiry_scan_interval_ms);
        let segment = self.log.get_mut(segment);
        segment.sweep_again_ms = again_ms;
        segment.earliest_expiry_ms = segment.rest_expiry_ms;
        self.sweep.look_again();
    }

    /// While something is written, polls come anyway.
    pub(crate) fn sweep_timeout(&self) -> Option<u64> {
        let waits = self.scan.is_none() && self.reclaim.is_idle() && self.is_idle();
        let at_ms = Some(self.sweep.next_at_ms).filter(|at_ms| *at_ms < u64::MAX);
        at_ms.filter(|_| waits && self.clock.when(0).is_some())
    }
}
