//! The database: its tables, reading them at the start, and one transaction per batch.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableTable, TableDefinition};
use ringpost_protocol::id::{MessageNumber, SendSeq, UserId};

use crate::event::{EventId, NewSend, News, SendId};
use crate::limits::DATABASE_CACHE_BYTES;
use crate::store::inbox::MarkKey;
use crate::store::row::{self, CounterRow, RowFault};

/// Why the database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreFault {
    #[error("the database directory cannot be prepared: {0}")]
    Directory(#[from] std::io::Error),
    #[error("the database failed: {0}")]
    Database(Box<redb::Error>),
    #[error("the database holds what this version cannot read: {0}")]
    Content(String),
}

/// Everything stored, as read at the start. Each list is in the order of its keys.
#[derive(Default)]
pub(super) struct Contents {
    pub(super) counters: Option<CounterRow>,
    pub(super) sends: Vec<(SendId, NewSend)>,
    pub(super) numbers: Vec<(SendSeq, SendId, bool)>,
    pub(super) news: Vec<(EventId, News)>,
    pub(super) marks: Vec<(MarkKey, MessageNumber)>,
    pub(super) records: Vec<(String, Vec<u8>)>,
}

/// Changes that become durable together. Write it on any thread, one at a time, and hand the
/// result to [`Ledger::finish_commit`](crate::ledger::Ledger::finish_commit).
#[derive(Debug)]
pub struct Batch {
    pub(super) database: Arc<Database>,
    pub(super) counters: CounterRow,
    pub(super) changes: Vec<Change>,
}

/// Proof that a batch is durable.
#[derive(Debug)]
pub struct Written(pub(super) CounterRow);

#[derive(Debug)]
pub(super) enum Change {
    PutSend(SendId, NewSend),
    DropSend(SendId),
    PutNumber { send_seq: SendSeq, id: SendId, after_reject: bool },
    DropNumber(SendSeq),
    PutNews(EventId, News),
    DropNews(EventId),
    PutMark(MarkKey, MessageNumber),
    PutRecord(String, Vec<u8>),
    DropRecord(String),
}

/// Opens the database file, or makes it and its directory.
pub fn create_database(path: &Path) -> Result<Database, StoreFault> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory)?;
    let is_new = !path.try_exists()?;
    let database =
        Database::builder().set_cache_size(DATABASE_CACHE_BYTES).create(path).map_err(fault)?;
    if is_new && cfg!(unix) {
        // Without it a power cut could take away the file, and with it the counters that must
        // never start again.
        File::open(directory)?.sync_all()?;
    }
    Ok(database)
}

impl Batch {
    /// Returns once everything in the batch is on disk. After an error nothing is known about the
    /// batch: only opening the database again tells.
    pub fn write(self) -> Result<Written, StoreFault> {
        let transaction = self.database.begin_write().map_err(fault)?;
        {
            let mut tables = WriteTables::open(&transaction).map_err(fault)?;
            for change in &self.changes {
                tables.apply(change).map_err(fault)?;
            }
            tables
                .counters
                .insert((), row::encode_counters(&self.counters).as_slice())
                .map_err(fault)?;
        }
        transaction.commit().map_err(fault)?;
        Ok(Written(self.counters))
    }
}

pub(super) fn load(database: &Database) -> Result<Contents, StoreFault> {
    // Opening a table that does not exist is an error in a read transaction, so make them all.
    let transaction = database.begin_write().map_err(fault)?;
    let mut contents = Contents::default();
    {
        let tables = WriteTables::open(&transaction).map_err(fault)?;
        tables.read(&mut contents)?;
    }
    transaction.commit().map_err(fault)?;
    Ok(contents)
}

struct WriteTables<'t> {
    counters: redb::Table<'t, (), &'static [u8]>,
    sends: redb::Table<'t, u64, &'static [u8]>,
    numbers: redb::Table<'t, u64, (u64, bool)>,
    news: redb::Table<'t, u64, &'static [u8]>,
    marks: redb::Table<'t, MarkTuple<'static>, u64>,
    records: redb::Table<'t, &'static str, &'static [u8]>,
}

/// User, device, installation, group (empty: direct).
type MarkTuple<'a> = (&'a str, &'a str, u64, &'a str);

impl<'t> WriteTables<'t> {
    fn open(transaction: &'t redb::WriteTransaction) -> Result<Self, redb::TableError> {
        Ok(Self {
            counters: transaction.open_table(COUNTERS)?,
            sends: transaction.open_table(SENDS)?,
            numbers: transaction.open_table(NUMBERS)?,
            news: transaction.open_table(NEWS)?,
            marks: transaction.open_table(MARKS)?,
            records: transaction.open_table(RECORDS)?,
        })
    }

    fn apply(&mut self, change: &Change) -> Result<(), redb::StorageError> {
        match change {
            Change::PutSend(id, send) => {
                self.sends.insert(id.0, row::encode_send(send).as_slice())?;
            }
            Change::DropSend(id) => {
                self.sends.remove(id.0)?;
            }
            Change::PutNumber { send_seq, id, after_reject } => {
                self.numbers.insert(send_seq.0, (id.0, *after_reject))?;
            }
            Change::DropNumber(send_seq) => {
                self.numbers.remove(send_seq.0)?;
            }
            Change::PutNews(id, news) => {
                self.news.insert(id.0, row::encode_news(news).as_slice())?;
            }
            Change::DropNews(id) => {
                self.news.remove(id.0)?;
            }
            Change::PutMark(key, number) => {
                self.marks.insert(mark_tuple(key), number.0)?;
            }
            Change::PutRecord(place, record) => {
                self.records.insert(place.as_str(), record.as_slice())?;
            }
            Change::DropRecord(place) => {
                self.records.remove(place.as_str())?;
            }
        }
        Ok(())
    }

    fn read(&self, contents: &mut Contents) -> Result<(), StoreFault> {
        if let Some(value) = self.counters.get(()).map_err(fault)? {
            contents.counters = Some(row::decode_counters(value.value())?);
        }
        for entry in self.sends.iter().map_err(fault)? {
            let (id, value) = entry.map_err(fault)?;
            contents.sends.push((SendId(id.value()), row::decode_send(value.value())?));
        }
        for entry in self.numbers.iter().map_err(fault)? {
            let (send_seq, value) = entry.map_err(fault)?;
            let (id, after_reject) = value.value();
            contents.numbers.push((SendSeq(send_seq.value()), SendId(id), after_reject));
        }
        for entry in self.news.iter().map_err(fault)? {
            let (id, value) = entry.map_err(fault)?;
            contents.news.push((EventId(id.value()), row::decode_news(value.value())?));
        }
        for entry in self.marks.iter().map_err(fault)? {
            let (key, value) = entry.map_err(fault)?;
            let (user, device, install_id, group) = key.value();
            let key = row::mark_key(user, device, install_id, group)?;
            contents.marks.push((key, MessageNumber(value.value())));
        }
        for entry in self.records.iter().map_err(fault)? {
            let (place, record) = entry.map_err(fault)?;
            contents.records.push((place.value().into(), record.value().into()));
        }
        Ok(())
    }
}

fn mark_tuple(key: &MarkKey) -> MarkTuple<'_> {
    (
        key.from.user.as_str(),
        key.from.device.as_str(),
        key.install_id.0,
        key.group.as_ref().map_or("", UserId::as_str),
    )
}

fn fault(error: impl Into<redb::Error>) -> StoreFault {
    StoreFault::Database(Box::new(error.into()))
}

impl From<RowFault> for StoreFault {
    fn from(fault: RowFault) -> Self {
        Self::Content(fault.to_string())
    }
}

const COUNTERS: TableDefinition<'_, (), &[u8]> = TableDefinition::new("counters");
/// What is in the outbox.
const SENDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("sends");
/// Wire number -> (outbox entry, after_reject). A table of its own, so that a retry under a new
/// number does not write the envelope again.
const NUMBERS: TableDefinition<'_, u64, (u64, bool)> = TableDefinition::new("numbers");
const NEWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("news");
const MARKS: TableDefinition<'_, MarkTuple<'_>, u64> = TableDefinition::new("marks");
/// The sealed state of a messenger.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
