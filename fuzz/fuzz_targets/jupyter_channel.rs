//! Runs [`krunner::fuzzing::jupyter_channel`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::jupyter_channel(input));
