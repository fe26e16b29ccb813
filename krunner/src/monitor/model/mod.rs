//! Plain values that all parts of the monitor share. Pure, except that `clock` asks the kernel for the time.
//!
//! ```text
//!  event      what a tracer saw: kill, mark, exit, fork, exec
//!  process    identity, command line, sizes and exit of a process
//!  cgroup     facts about a cgroup, and which processes are in it
//!  limit      a limit at a kill             sample   memory at one moment
//!  mount      the use of a tmpfs            detection  how kills are detected, and whose
//!  clock, time, units, json                 how time and sizes are read and written
//! ```

pub(in crate::monitor) mod cgroup;
pub(crate) mod clock;
pub(in crate::monitor) mod detection;
pub(in crate::monitor) mod event;
pub(in crate::monitor) mod json;
mod limit;
pub(in crate::monitor) mod mount;
pub(in crate::monitor) mod process;
mod sample;
pub(in crate::monitor) mod time;
pub(in crate::monitor) mod units;

pub(crate) use limit::{LimitAtKill, LimitKind};
pub(crate) use sample::{MemorySample, ProcessMemory};
