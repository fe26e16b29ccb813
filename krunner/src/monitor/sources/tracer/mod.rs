//! The eBPF tracer, a source of [`TraceEvent`](crate::monitor::model::event::TraceEvent)s: host checks, loading and decoding.

mod bpf;
pub(crate) mod btf;
mod checks;
pub(crate) mod decode;
mod findings;
#[cfg(any(test, fuzzing))]
pub(in crate::monitor) mod fuzzing;
mod loading;
pub(crate) mod probe;

pub(in crate::monitor) use bpf::RingReader;
pub(crate) use bpf::{INIT_PID_NAMESPACE, ProgramLog, Target, TraceFilter};
pub(crate) use loading::{LOADER_THREAD, Loading, LoadingError, try_to_attach};
