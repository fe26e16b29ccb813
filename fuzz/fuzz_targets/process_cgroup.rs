//! Runs [`krunner::fuzzing::process_cgroup`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::process_cgroup(input));
