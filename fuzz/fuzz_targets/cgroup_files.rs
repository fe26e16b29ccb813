//! Runs [`krunner::fuzzing::cgroup_files`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::cgroup_files(input));
