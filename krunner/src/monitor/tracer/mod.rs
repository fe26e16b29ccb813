//! Sources of [`TraceEvent`](super::TraceEvent)s.
//!
//! So far their first steps: where the running kernel keeps what the BPF programs read (`btf`), and
//! what their records say (`decode`). The loader itself is to come.

pub mod btf;
pub mod decode;
