//! Runs [`krunner::fuzzing::jupyter_long_text`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::jupyter_long_text(input));
