//! The directory in the data directory: one redb file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use redb::{
    Builder, Database, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, TableDefinition,
};

use super::handouts::Handouts;
use super::request::{Answer, Request};
use super::rules::{self, Found, ReadTables, RuleFault, TableId, WriteTables};
use super::{Directory, DirectoryFault};
use crate::limits::DIRECTORY_CACHE_BYTES;

/// Keys, device lists and rosters in a file of the data directory. One process has it open.
pub struct Embedded {
    path: PathBuf,
    /// `None` after a failure.
    database: Option<Database>,
    handouts: Handouts,
    /// One-time keys of all devices.
    stock: u64,
}

impl Embedded {
    /// Opens the directory in `data_dir`, made when it does not exist. After a crash it takes longer,
    /// because what the file uses is counted anew.
    pub fn open(data_dir: &Path) -> Result<Self, DirectoryFault> {
        let path = data_dir.join(FILE_NAME);
        make_file(&path, data_dir)
            .map_err(|error| DirectoryFault::Create { path: path.clone(), error })?;
        let database = open_database(&path)?;
        let stock = Reading::begin(&database)
            .and_then(|tables| rules::total_stock(&tables))
            .map_err(|error| DirectoryFault::Open { path: path.clone(), error })?;
        Ok(Self { path, database: Some(database), handouts: Handouts::default(), stock })
    }

    fn read(&self, requests: &[Request]) -> Result<Vec<Answer>, DirectoryFault> {
        let database = self.database.as_ref().ok_or(DirectoryFault::Closed)?;
        let tables = Reading::begin(database).map_err(fault)?;
        requests.iter().map(|request| settle(rules::read(&tables, request))).collect()
    }

    fn change(&mut self, now_ms: u64, requests: &[Request]) -> Result<Vec<Answer>, DirectoryFault> {
        let database = self.database.as_ref().ok_or(DirectoryFault::Closed)?;
        let transaction = database.begin_write().map_err(|error| fault(error.into()))?;
        let (answers, stock) = {
            let mut tables = Changing::begin(&transaction).map_err(fault)?;
            let handouts = &mut self.handouts;
            let answers = requests
                .iter()
                .map(|request| settle(rules::change(&mut tables, handouts, now_ms, request)));
            let answers = answers.collect::<Result<Vec<_>, _>>()?;
            (answers, rules::total_stock(&tables).map_err(fault)?)
        };
        // Durable when it returns.
        transaction.commit().map_err(|error| fault(error.into()))?;
        self.stock = stock;
        Ok(answers)
    }
}

impl Directory for Embedded {
    fn apply(&mut self, now_ms: u64, requests: &[Request]) -> Result<Vec<Answer>, DirectoryFault> {
        let applied = match requests.iter().all(Request::is_read) {
            true => self.read(requests),
            false => self.change(now_ms, requests),
        };
        if applied.is_err() {
            // What the file's caches hold is not what the disk has.
            self.database = None;
        }
        applied
    }

    fn stock(&self) -> u64 {
        self.stock
    }

    fn recover(&mut self) -> Result<(), DirectoryFault> {
        self.database = None;
        self.database = Some(open_database(&self.path)?);
        Ok(())
    }
}

/// A new file is durable in its directory before anything in it is acknowledged.
fn make_file(path: &Path, data_dir: &Path) -> io::Result<()> {
    let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_) => File::open(data_dir)?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn open_database(path: &Path) -> Result<Database, DirectoryFault> {
    let open = |error: redb::Error| DirectoryFault::Open { path: path.to_owned(), error };
    let database = Builder::new()
        .set_cache_size(DIRECTORY_CACHE_BYTES)
        .set_repair_callback(|session| {
            tracing::info!(progress = session.progress(), "the directory is being repaired");
        })
        .create(path)
        .map_err(|error| open(error.into()))?;
    let transaction = database.begin_write().map_err(|error| open(error.into()))?;
    drop(Changing::begin(&transaction).map_err(open)?); // makes the tables
    transaction.commit().map_err(|error| open(error.into()))?;
    Ok(database)
}

fn settle(ruled: Result<Answer, RuleFault<redb::Error>>) -> Result<Answer, DirectoryFault> {
    match ruled {
        Ok(answer) => Ok(answer),
        Err(RuleFault::Damaged(table)) => {
            tracing::error!(?table, "a record of the directory is damaged; its request fails");
            Ok(Answer::Failed)
        }
        Err(RuleFault::Tables(error)) => Err(fault(error)),
    }
}

fn fault(error: redb::Error) -> DirectoryFault {
    match error {
        redb::Error::Io(error)
            if matches!(
                error.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge
            ) =>
        {
            DirectoryFault::DiskFull
        }
        error => DirectoryFault::Failed(error),
    }
}

type Bytes = &'static [u8];

const TABLES: [(TableId, TableDefinition<'_, Bytes, Bytes>); 6] = [
    (TableId::Devices, TableDefinition::new("devices")),
    (TableId::OneTimeKeys, TableDefinition::new("one_time_keys")),
    (TableId::Removed, TableDefinition::new("removed_devices")),
    (TableId::Lists, TableDefinition::new("device_lists")),
    (TableId::Rosters, TableDefinition::new("rosters")),
    (TableId::Totals, TableDefinition::new("totals")),
];

/// The tables of a transaction that reads, in the order of [`TABLES`].
struct Reading([ReadOnlyTable<Bytes, Bytes>; TABLES.len()]);

impl Reading {
    fn begin(database: &Database) -> Result<Self, redb::Error> {
        let transaction = database.begin_read()?;
        let mut tables = Vec::with_capacity(TABLES.len());
        for (_, definition) in TABLES {
            tables.push(transaction.open_table(definition)?);
        }
        Ok(Self(tables.try_into().unwrap_or_else(|_| unreachable!("one for each definition"))))
    }
}

impl ReadTables for Reading {
    type Fault = redb::Error;

    fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
        get(&self.0[table as usize], key)
    }

    fn with_prefix(&self, table: TableId, prefix: &[u8]) -> Result<Found, redb::Error> {
        with_prefix(&self.0[table as usize], prefix)
    }
}

/// The tables of a transaction that writes, in the order of [`TABLES`].
struct Changing<'t>(Vec<Table<'t, Bytes, Bytes>>);

impl<'t> Changing<'t> {
    fn begin(transaction: &'t redb::WriteTransaction) -> Result<Self, redb::Error> {
        let mut tables = Vec::with_capacity(TABLES.len());
        for (_, definition) in TABLES {
            tables.push(transaction.open_table(definition)?);
        }
        Ok(Self(tables))
    }
}

impl ReadTables for Changing<'_> {
    type Fault = redb::Error;

    fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, redb::Error> {
        get(&self.0[table as usize], key)
    }

    fn with_prefix(&self, table: TableId, prefix: &[u8]) -> Result<Found, redb::Error> {
        with_prefix(&self.0[table as usize], prefix)
    }
}

impl WriteTables for Changing<'_> {
    fn put(&mut self, table: TableId, key: &[u8], value: &[u8]) -> Result<(), redb::Error> {
        self.0[table as usize].insert(key, value)?;
        Ok(())
    }

    fn remove(&mut self, table: TableId, key: &[u8]) -> Result<(), redb::Error> {
        self.0[table as usize].remove(key)?;
        Ok(())
    }
}

fn get(
    table: &impl ReadableTable<Bytes, Bytes>,
    key: &[u8],
) -> Result<Option<Vec<u8>>, redb::Error> {
    Ok(table.get(key)?.map(|value| value.value().to_vec()))
}

fn with_prefix(
    table: &impl ReadableTable<Bytes, Bytes>,
    prefix: &[u8],
) -> Result<Found, redb::Error> {
    let mut found = Vec::new();
    for entry in table.range(prefix..)? {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        found.push((key.value().to_vec(), value.value().to_vec()));
    }
    Ok(found)
}

/// In the data directory.
const FILE_NAME: &str = "directory.redb";

#[cfg(test)]
mod tests;
