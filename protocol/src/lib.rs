//! Wire protocol of Ringpost.
#![forbid(unsafe_code)]

pub mod limits;
pub mod id;
