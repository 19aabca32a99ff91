//! The schema of `proto/ringpost.proto`, generated. `bytes` fields share the memory of the frame
//! they were decoded from.
#![allow(clippy::all, reason = "generated code")]
#![allow(unused_qualifications, reason = "generated code")]

include!(concat!(env!("OUT_DIR"), "/ringpost.v1.rs"));
