//! The API of an app: people, groups, texts and ticks, with everything encrypted from end to end.
//!
//! Modules from the app inwards: [`news`], what the app is told; the desk, all of the logic without
//! network or waiting: outgoing, incoming, the directory and groups; the rows it keeps.

pub mod news;
mod desk;
mod outgoing;
mod incoming;
mod directory;
mod group;
mod row;

#[cfg(test)]
mod tests;

pub use news::{Conversation, Event, Loss, MessageId, News, Text};
pub use outgoing::WriteFault;
