//! Load generator for Ringpost: thread per core on io_uring, sans-IO clients, every message
//! verified, latency counted from the time at which a message was meant to leave.
//!
//! Modules in the order in which a run passes them: [`scenario`], what is run, with a server from
//! [`gateway`], which [`scrape`] asks for its numbers, users from [`tokens`] and a [`plan`];
//! [`fleet`], the threads; [`swarm`], one thread's connections, from the addresses of [`addr`];
//! [`traffic`], what they say; [`client`], one of them; [`attack`], those that mean no good;
//! [`durable`], apps that are killed; [`group`], who talk to all, and [`keys`], who publish and take
//! keys, each on a [`mod@line`] of its own, together on a [`stage`]; [`measure`] and [`timeline`],
//! what was seen; [`sample`], what it cost; [`report`], how it is told, with facts from [`host`];
//! [`cores`], who runs where.
#![forbid(unsafe_code)]

pub mod scenario;
pub mod gateway;
pub mod scrape;
pub mod tokens;
mod tickets;
pub mod plan;
pub mod fleet;
pub mod swarm;
pub mod addr;
pub mod traffic;
pub mod client;
pub mod attack;
pub mod durable;
pub mod line;
pub mod stage;
pub mod group;
pub mod keys;
pub mod measure;
pub mod timeline;
pub mod sample;
pub mod report;
pub mod host;
pub mod cores;
