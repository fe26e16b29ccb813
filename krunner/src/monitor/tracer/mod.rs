//! Sources of [`TraceEvent`](super::TraceEvent)s: what can be had on this host, and how it is set up.

mod bpf;
pub mod btf;
mod checks;
pub mod decode;
mod kind;
mod loading;
pub mod probe;

pub(super) use bpf::RingReader;
pub use bpf::{INIT_PID_NAMESPACE, ProgramLog, Reach, Target};
pub use kind::{Scope, TracerKind};
pub use loading::{LOADER_THREAD, Loading, try_to_attach};
