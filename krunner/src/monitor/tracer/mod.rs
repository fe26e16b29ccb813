//! Sources of [`TraceEvent`](super::TraceEvent)s: what can be had on this host, and how it is set up.

mod bpf;
pub mod btf;
pub mod decode;
mod kind;
mod loading;

pub use bpf::{INIT_PID_NAMESPACE, Reach, Target};
pub use kind::{Scope, TracerKind};
pub use loading::{LOADER_THREAD, Loading};
