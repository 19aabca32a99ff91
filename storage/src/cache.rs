//! The last batches stay in memory.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::batch::index;
use crate::entry::Place;

/// Recent batches in log order, so that what was just committed is delivered without a read.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    batches: VecDeque<(Place, usize, Bytes)>,
    bytes: usize,
    bytes_max: usize,
}

impl Cache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, ..Self::default() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives the last batch that had to leave.
    pub(crate) fn insert(&mut self, place: Place, batch: Bytes, cost: usize) -> Option<Bytes> {
        self.bytes += cost;
        self.batches.push_back((place, cost, batch));
        let mut evicted = None;
        while self.bytes > self.bytes_max
            && let Some((_, cost, batch)) = self.batches.pop_front()
        {
            self.bytes -= cost;
            evicted = Some(batch);
        }
        evicted
    }

    /// The bytes of one record, shared.
    pub(crate) fn get(&self, place: Place, length: u32) -> Option<Bytes> {
        let key = |place: Place| (place.segment, place.offset);
        // Most records are read once, as soon as their batch is durable.
        let newest = self.batches.back().filter(|(start, ..)| key(*start) <= key(place));
        let (start, _, batch) = match newest {
            Some(newest) => newest,
            None => {
                let after = self.batches.partition_point(|(start, ..)| key(*start) <= key(place));
                self.batches.get(after.checked_sub(1)?)?
            }
        };
        let from = index(place.offset - start.offset.min(place.offset));
        let within = start.segment == place.segment && from + index(length) <= batch.len();
        within.then(|| batch.slice(from..from + index(length)))
    }
}
