//! The queue work in redb, a copy-on-write B-tree: one table, keys of queue and number.

use std::error::Error;
use std::path::Path;

use redb::{Database, TableDefinition};

use super::{Outcome, Work};
use crate::fixture;

pub(super) fn run(work: &Work, directory: &Path) -> Result<Outcome, Box<dyn Error>> {
    let database = Database::create(directory.join("redb"))?;
    let envelope = fixture::envelope(work.envelope_bytes);
    Outcome::timed(work, |number| {
        let transaction = database.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for index in work.messages(number) {
                table.insert(Work::key(index), &envelope[..])?;
            }
            for index in work.deleted(number) {
                table.remove(Work::key(index))?;
            }
        }
        // Durable when it returns, unless asked otherwise.
        Ok(transaction.commit()?)
    })
}

const TABLE: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("queues");
