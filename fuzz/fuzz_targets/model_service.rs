//! Runs [`krunner::fuzzing::model_service`] on inputs of libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| krunner::fuzzing::model_service(input));
