//! Plain values that sources, attribution, explanation and report share.

mod limit;
mod sample;

pub(crate) use limit::{LimitAtKill, LimitKind};
pub(crate) use sample::{MemorySample, ProcessMemory};
