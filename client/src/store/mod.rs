//! What must survive: the outbox, the inbox and the counters, in one database.
//!
//! [`ledger::Ledger`] is the client's delivery logic without network or clock: it takes the events
//! of a [`ClientSession`](ringpost_protocol::session::ClientSession) and the app's commands, and
//! gives what to send, what to acknowledge and what to tell the app. Everything it holds is in
//! memory and bounded; the database is read when it opens and only written afterwards, one
//! transaction (and so one sync) for all that gathered during the last.

pub mod disk;
pub mod ledger;

mod book;
mod inbox;
mod outbox;
mod row;
mod translate;

pub use book::{Batch, StoreFault, Written, create_database};
