//! The gateway: one [`shard::Shard`] per pinned core, nothing shared between them.
//!
//! # The life of a message, through the files in their order
//!
//! 1. `shard/accept`: a socket is accepted, its handshake done, its Hello verified; the connection
//!    moves to the home shard of its user. A QUIC connection (`shard/edge`) stays where its datagrams
//!    come, and its stream is relayed (`shard/relay`).
//! 2. [`transport`]: ciphertext becomes plaintext.
//! 3. `shard/inbound`: plaintext becomes frames, frames become requests (`ringpost_protocol`).
//! 4. `shard/route`: the send memory says whether a Send is new; it goes to the recipient's home,
//!    over the [`mesh`] if that is another shard.
//! 5. `shard/deposit`: the mailboxes that have room take it; the store appends it.
//! 6. `shard/disk`, `shard/home`: write, fdatasync, and only then is it spoken of.
//! 7. `shard/mailbox`: the recipient's connection gets it, the sender's home the outcome.
//! 8. `shard/outbound`: frames become one record, the record one send.
//! 9. `shard/receipts`: the acknowledgement sets off a receipt, then deletes the message.
//!
//! A Send to a group goes from its sender's home to the group's (`shard/group`, `shard/fanout`), which
//! orders it, and from there to the homes of all members (`shard/deposit`).
//!
//! Everything else is off that path: configuration, the control thread, the [`directory`], metrics.
#![forbid(unsafe_code)]

pub mod limits;
pub mod config;
pub mod host;
pub mod data_dir;
pub mod progress;
pub mod store_tool;
pub mod transport;
pub mod shard;
pub mod mesh;
pub mod directory;
pub mod metrics;
pub mod audit;
pub mod control;
pub mod start;
pub mod check;
pub mod doors;
pub mod launch;
