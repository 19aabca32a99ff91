//! Talks in a terminal.
fn main() {}
