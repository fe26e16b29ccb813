//! Attribution of kills from events. Pure: time is a parameter.

pub(super) mod kill_accounting;
pub(super) mod sigkill;
