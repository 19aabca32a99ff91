//! Phones with desks and ledgers on disks that forget, and a server in miniature between them.

mod attacks;
mod devices;
mod direct;
mod groups;
mod stale;
mod verify;
mod world;
