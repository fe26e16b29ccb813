//! The battery: every kind of kill for memory that a build must pass, and what looks like one, played under the eyes of
//! monitors that are scored by a truth that is not theirs.
//!
//! ```text
//!  case ──▶ stage: one scratch cgroup ── scene, then a sentinel ──▶ truth: who was killed (the scene), how many (the kernel)
//!             │  krunner monitor          ──▶ reports ──┐
//!             └─ krunner monitor --no-bpf ──▶ reports ──┴──▶ judge ──▶ Outcome ──▶ table
//! ```
//!
//! `case` is the list, `stage` where a case happens, `judge` the rules, `facts` those for what is
//! said beside the names (`kernel_log` is their truth), `outcome` what came of it, `table` how that is
//! shown. Both monitors see the same kills at the same time, so that their scores can be compared. It runs on any machine
//! that lets its user make memory cgroups: in `cargo xtask battery`, in the suites, and as the first process of the virtual
//! machines of `cargo xtask vm`.

mod case;
mod clock;
mod facts;
mod judge;
mod kernel_log;
mod outcome;
mod run;
mod stage;
mod table;

pub use outcome::{Finding, Means, Outcome, Score, Totals};
pub use run::{Machine, Plan, names, run, shortfalls};
pub use table::{impossible, kernels, table};
