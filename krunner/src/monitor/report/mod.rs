//! Formats what attribution found: a process tree for people, objects for programs, and the files that survive the runner.
//!
//! ```text
//!  OomReport ─┬▶ text, explanation    a process tree and the lines below it
//!             ├▶ journal              oom.jsonl; journal_reader reads it back
//!             ├▶ plot                 a page with the chart of the last minute
//!             └▶ recorder             the flight recorder, and the post-mortem of a runner that died
//!  MemoryWarning ─▶ warning           one line
//!  all objects ───▶ schema            their JSON Schema
//! ```

mod explanation;
#[cfg(any(test, fuzzing))]
pub(in crate::monitor) mod fuzzing;
pub(crate) mod journal;
pub(crate) mod journal_reader;
pub(crate) mod plot;
pub(crate) mod recorder;
#[cfg(test)]
mod report_tests;
pub(crate) mod schema;
mod text;
mod warning;
