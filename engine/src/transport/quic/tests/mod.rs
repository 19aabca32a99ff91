//! Endpoints of a gateway against clients of stock quinn-proto, on a clock and a network of their
//! own.

mod client;
mod world;

mod admission;
mod basics;
mod containment;
mod handover;
mod idle;
mod ids;
mod strangers;
mod tickets;
