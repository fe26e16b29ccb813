//! Runs [`krunner::fuzzing::zmtp_scanner`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::zmtp_scanner(input));
