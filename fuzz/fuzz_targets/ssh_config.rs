//! Runs [`krunner::fuzzing::ssh_config`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::ssh_config(input));
