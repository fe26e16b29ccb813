//! Runs [`krunner::fuzzing::intrinsic_ports`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::intrinsic_ports(input));
