//! A directory in memory, for tests and the simulator: what was applied is what survives.

use std::collections::BTreeMap;
use std::convert::Infallible;

use super::handouts::Handouts;
use super::request::{Answer, Request};
use super::rules::{self, Found, ReadTables, RuleFault, TableId, WriteTables};
use super::{Directory, DirectoryFault};

/// Tables in memory.
#[derive(Debug, Default)]
pub struct InMemory {
    tables: Tables,
    handouts: Handouts,
}

#[derive(Debug, Default)]
pub(super) struct Tables(BTreeMap<(TableId, Vec<u8>), Vec<u8>>);

impl InMemory {
    /// As after a restart: what was applied, and nothing else.
    #[must_use]
    pub fn reopened(self) -> Self {
        Self { tables: self.tables, handouts: Handouts::default() }
    }
}

impl Directory for InMemory {
    fn apply(&mut self, now_ms: u64, requests: &[Request]) -> Result<Vec<Answer>, DirectoryFault> {
        let Self { tables, handouts } = self;
        let answers =
            requests.iter().map(|request| match rules::change(tables, handouts, now_ms, request) {
                Ok(answer) => answer,
                Err(RuleFault::Damaged(_)) => Answer::Failed,
                Err(RuleFault::Tables(fault)) => match fault {},
            });
        Ok(answers.collect())
    }

    fn stock(&self) -> u64 {
        let Ok(stock) = rules::total_stock(&self.tables);
        stock
    }

    fn recover(&mut self) -> Result<(), DirectoryFault> {
        Ok(())
    }
}

impl ReadTables for Tables {
    type Fault = Infallible;

    fn get(&self, table: TableId, key: &[u8]) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn with_prefix(&self, table: TableId, prefix: &[u8]) -> Result<Found, Infallible> {
        let from = self.0.range((table, prefix.to_vec())..);
        let found = from.take_while(|((of, key), _)| *of == table && key.starts_with(prefix));
        Ok(found.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }
}

impl WriteTables for Tables {
    fn put(&mut self, table: TableId, key: &[u8], value: &[u8]) -> Result<(), Infallible> {
        self.0.insert((table, key.to_vec()), value.to_vec());
        Ok(())
    }

    fn remove(&mut self, table: TableId, key: &[u8]) -> Result<(), Infallible> {
        self.0.remove(&(table, key.to_vec()));
        Ok(())
    }
}
