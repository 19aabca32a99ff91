//! What a [`Ledger`] offers to one who reads all news before the app does, and keeps state of its own
//! in the same transaction: what follows from a message is durable with it, before its Ack.
//!
//! Call [`Ledger::translate`] once after opening. Then, before each
//! [`Ledger::begin_commit`](Ledger::begin_commit), take all of [`Ledger::next_raw`], and replace or
//! drop each; what is not taken reaches the app only after the next time, and may come again after a
//! restart.

use std::collections::VecDeque;

use crate::event::{Event, EventId, News};
use crate::ledger::Ledger;
use crate::store::book::Change;

impl Ledger {
    /// From now on all news but [`News::Sealed`] go through [`Self::next_raw`]. Gives the records.
    pub(crate) fn translate(&mut self) -> Vec<(String, Vec<u8>)> {
        self.is_translated = true;
        let is_done = |event: &Event| matches!(event, Event::News { news: News::Sealed(_), .. });
        let (done, raw): (VecDeque<_>, _) = self.ready.drain(..).partition(is_done);
        (self.ready, self.raw) = (done, raw);
        std::mem::take(&mut self.records)
    }

    /// The next news to be read. Statuses between them go to the app behind what was read before.
    pub(crate) fn next_raw(&mut self) -> Option<(EventId, News)> {
        loop {
            match self.raw.pop_front()? {
                Event::News { id, news } => return Some((id, news)),
                about @ (Event::Status(_) | Event::Hint(_)) => self.events.push(about),
            }
        }
    }

    /// What the app gets in the place of news that were read.
    pub(crate) fn replace_news(&mut self, id: EventId, news: News) {
        self.inbox.replace(id, news.clone(), &mut self.changes);
        self.events.push(Event::News { id, news });
    }

    /// News that nothing of the server's stands for.
    pub(crate) fn add_news(&mut self, news: News) {
        let id = self.inbox.add(&news, &mut self.changes);
        self.events.push(Event::News { id, news });
    }

    pub(crate) fn put_record(&mut self, place: String, record: Vec<u8>) {
        self.changes.push(Change::PutRecord(place, record));
    }

    pub(crate) fn drop_record(&mut self, place: String) {
        self.changes.push(Change::DropRecord(place));
    }

    /// Whether so many messages with so many bytes of envelopes would all be taken.
    pub(crate) fn has_room(&self, sends: usize, bytes: usize) -> bool {
        self.outbox.len() + self.inbox.len() + sends <= self.rows_max
            && self.outbox.has_room(sends, bytes)
    }
}
