//! The OOM matrix: real OOM kills of every kind that a build must report, and events that only look like OOM kills. Each
//! case runs under two monitors, which are scored against a ground truth that does not come from krunner.
//!
//! ```text
//!  case ──▶ harness: one scratch cgroup ── scenario, then a marker kill ──▶ actual: who (scenario), how many (kernel)
//!             │  krunner monitor          ──▶ reports ──┐
//!             └─ krunner monitor --no-bpf ──▶ reports ──┴──▶ scoring ──▶ Outcome ──▶ table
//! ```
//!
//! `case` lists the cases and where each runs, `scenario` has what they do, `harness` runs one, `scoring` has the rules for the names in a report, `details`, `facts` and `limit`
//! those for the rest of it (`kernel_log` reads what the kernel logged), `outcome` is the result and `table` prints it. Both
//! monitors see the same kills at the same time, so their scores are comparable. The matrix runs on any machine whose user
//! may create memory cgroups: in `cargo xtask oom-matrix`, in the suites, and in the virtual machines of `cargo xtask vm`.

mod case;
mod details;
mod facts;
mod harness;
mod kernel_log;
mod kill_clock;
mod limit;
mod outcome;
mod run;
mod scenario;
mod scoring;
mod table;

pub use kernel_log::KernelLog;
pub use outcome::{CaseResult, MonitorMode, Outcome, Score, Totals};
pub use run::{FALLBACK_PERCENT, Machine, MatrixPlan, Requirements, names, run, shortfalls};
pub use table::{kernels, table, unavailable};
