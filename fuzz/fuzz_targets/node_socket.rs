//! Runs [`krunner::fuzzing::node_socket`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::node_socket(input));
