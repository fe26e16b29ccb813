//! Runs [`krunner::fuzzing::process_stat`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::process_stat(input));
