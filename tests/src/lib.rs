//! What the tests of the whole share: the simulated world.
#![forbid(unsafe_code)]

pub mod sim;
