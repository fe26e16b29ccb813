//! Runs [`krunner::fuzzing::cmdline`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::cmdline(input));
