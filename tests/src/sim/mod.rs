//! A whole gateway with its clients in one thread, from one seed.
//!
//! The shards, stores, client sessions and client ledgers are the production code. What is below
//! them is not: [`clock`] time, [`net`] and [`udp`] the network, [`quic`] a cipher, [`disk`] a file system that forgets un-synced
//! writes, [`ring`] the completions, [`directory`] tables in memory. [`faults`] says what goes wrong and how often, [`oracle`] what
//! must hold all the same, and [`world`] runs it: [`world::World::run`].
//!
//! A run depends on nothing but its seed: no wall clock, no thread, no order of a hash table. Two
//! runs of a seed give the same fingerprint.

pub mod clock;
pub mod trace;
pub mod counts;
pub mod shape;
pub mod weights;
pub mod faults;
pub mod disk;
pub mod injury;
pub mod path;
pub mod net;
pub mod udp;
pub mod quic;
pub mod ring;
pub mod reshard;
pub mod directory;
pub mod gateway;
pub mod keys;
pub mod connection;
pub mod client;
pub mod app;
pub mod scribe;
pub mod workload;
pub mod fate;
pub mod oracle;
pub mod registry;
pub mod groups;
pub mod stale;
pub mod stores;
mod strike;
pub mod settle;
mod handover;
mod end;
pub mod world;
