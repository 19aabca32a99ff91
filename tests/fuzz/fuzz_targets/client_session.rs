#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ringpost_fuzz::client_session::check(data));
