//! A hunt: many worlds, one per thread at a time, until one breaks a promise.
//!
//! [`hunt`] runs them, [`report`] says what they covered and how one failed.

pub mod hunt;
pub mod report;
