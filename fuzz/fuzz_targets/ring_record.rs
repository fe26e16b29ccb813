//! Runs [`krunner::fuzzing::ring_record`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::ring_record(input));
