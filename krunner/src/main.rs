//! The krunner binary.
fn main() {}
