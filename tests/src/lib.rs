//! What the tests of the whole share: the simulated world, and the hunt through many of them.
#![forbid(unsafe_code)]

pub mod sim;
pub mod soak;
