//! Runs [`krunner::fuzzing::service_definition`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::service_definition(input));
