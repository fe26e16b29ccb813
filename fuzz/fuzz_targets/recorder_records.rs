//! Runs [`krunner::fuzzing::recorder_records`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::recorder_records(input));
