//! Runs [`krunner::fuzzing::authorized_keys`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::authorized_keys(input));
