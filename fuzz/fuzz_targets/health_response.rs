//! Runs [`krunner::fuzzing::health_response`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::health_response(input));
