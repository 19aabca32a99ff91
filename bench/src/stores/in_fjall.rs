//! The queue work in fjall, a log-structured merge tree: one keyspace, keys of queue and number.

use std::error::Error;
use std::path::Path;

use fjall::{Database, KeyspaceCreateOptions, PersistMode};

use super::{Outcome, Work};
use crate::fixture;

pub(super) fn run(work: &Work, directory: &Path) -> Result<Outcome, Box<dyn Error>> {
    let database = Database::builder(directory.join("fjall")).open()?;
    let queues = database.keyspace("queues", KeyspaceCreateOptions::default)?;
    let envelope = fixture::envelope(work.envelope_bytes);
    Outcome::timed(work, |number| {
        let mut batch = database.batch().durability(Some(PersistMode::SyncData));
        for index in work.messages(number) {
            batch.insert(&queues, key(index), &envelope[..]);
        }
        for index in work.deleted(number) {
            batch.remove(&queues, key(index));
        }
        Ok(batch.commit()?)
    })
}

/// In the order of the queues.
fn key(index: u64) -> [u8; 16] {
    let (queue, number) = Work::key(index);
    (u128::from(queue) << 64 | u128::from(number)).to_be_bytes()
}
