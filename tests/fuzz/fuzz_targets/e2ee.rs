#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_fuzz::e2ee::check(data));
