//! What events mean: pure, time is a parameter.

pub(super) mod accounted;
pub(super) mod sigkill;
