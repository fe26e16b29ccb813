//! What events mean: pure, time is a parameter.

pub(super) mod sigkill;
