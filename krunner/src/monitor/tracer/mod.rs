//! Sources of [`TraceEvent`](super::TraceEvent)s.
//!
//! So far their first steps: where the running kernel keeps what the BPF programs read (`btf`),
//! what their records say (`decode`), and what the host allows (`probe`). The loader itself is to come.

pub mod btf;
mod checks;
pub mod decode;
pub mod probe;
