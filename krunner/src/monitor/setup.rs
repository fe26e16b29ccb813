//! Decides at startup how OOM kills are detected on this host, and whose are reported.
//!
//! | our PID namespace | requested | reported processes |
//! |---|---|---|
//! | not the host's | own | those in it and in its child namespaces |
//! | the host's | own | those in our memory cgroup and below it; others belong to other tenants |
//! | any | all | all |

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::stat::stat;

use super::model::cgroup::CgroupFilter;
use super::model::detection::Scope;
use super::sources::cgroup::{Cgroup, CgroupError, CgroupRoot, is_in_host_cgroup_namespace, own_cgroup_filter};
use super::sources::node::client;
use super::sources::procfs::{ProcRoot, ProcView};
use super::sources::tracer::{self, INIT_PID_NAMESPACE, Loading, LoadingError, ProgramLog, Target, TraceFilter};
use crate::sys::{self, memory};

const OWN_PID_NAMESPACE: &str = "/proc/self/ns/pid";
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Peak memory usage of loading the tracer (30 MiB on 6.18, which has the largest BTF so far), with a margin. It is
/// charged to our own cgroup, where it must not cause an OOM kill.
const LOADING_BYTES: u64 = 48 * MIB;

const MIB: u64 = 1024 * 1024;

/// Why there is no eBPF tracer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TracerError {
    /// The caller does not want it.
    #[error("disabled")]
    Disabled,
    /// The processes to trace cannot be told by their PID namespace.
    #[error("cannot read {OWN_PID_NAMESPACE}")]
    NoPidNamespace,
    /// The processes to trace cannot be told by their cgroup.
    #[error("in the host's PID namespace a memory cgroup is required to identify krunner's own processes")]
    NoCgroup(#[source] Arc<CgroupError>),
    /// Loading could itself cause an OOM kill.
    #[error(
        "loading the OOM tracer temporarily takes {} MiB, but the memory cgroup's limit is {} MiB; raise the limit",
        LOADING_BYTES / MIB,
        limit_bytes / MIB
    )]
    LowLimit {
        /// The memory limit of our cgroup.
        limit_bytes: u64,
    },
    /// The loader thread did not start.
    #[error("cannot start the OOM tracer's loader thread")]
    Thread(#[source] io::Error),
    /// The thread that serves requests would keep its capabilities.
    #[error("cannot drop krunner's file capabilities")]
    Capabilities(#[source] io::Error),
    /// The programs are not attached.
    #[error(transparent)]
    Loading(#[from] LoadingError),
    /// Their records cannot be read.
    #[error("cannot read the OOM tracer's ring buffer")]
    Ring(#[source] io::Error),
}

/// Everything that [`Monitor::start`](super::Monitor::start) needs.
#[derive(Debug)]
pub(crate) struct MonitorSetup {
    /// The tracer being loaded, or the reason why there is none.
    pub(super) tracer: Result<Loading, TracerError>,
    /// Whose OOM kills are reported.
    pub(super) scope: Scope,
    /// Where to read processes; `None` if the tracer's pids are not those in `/proc`, or if our processes cannot be
    /// identified.
    pub(super) proc: Option<ProcRoot>,
    /// Which processes `/proc` shows.
    pub(super) view: ProcView,
    /// Limits scans to our own cgroup, in the host's PID namespace.
    pub(super) cgroup_filter: Option<CgroupFilter>,
    /// Our own memory cgroup, if found.
    pub(super) cgroup: Option<Cgroup>,
    /// The machine's tracer, which is used if the own one cannot be attached.
    pub(super) node: Option<NodeSocket>,
    /// Kills are reported for the runners of this machine: see [`MonitorSetup::for_node`].
    pub(super) traces_for_others: bool,
}

/// Where `krunner node` listens.
#[derive(Debug, Clone)]
pub(crate) struct NodeSocket {
    /// The socket's path here.
    pub path: PathBuf,
    /// Whether our PID namespace is the host's.
    pub is_on_host: bool,
}

impl NodeSocket {
    /// The socket that a runner uses here; `None` if `KRUNNER_NODE_SOCKET` is empty.
    #[must_use]
    pub(crate) fn find() -> Option<Self> {
        let path = client::socket_path(std::env::var_os(client::VARIABLE))?;
        Some(Self { path, is_on_host: HostContext::find(ScopeRequest::Own).is_hosts() })
    }
}

/// Whose OOM kills the caller wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScopeRequest {
    /// Those of our own container or cgroup.
    Own,
    /// Those of all processes on the machine.
    All,
    /// The same, at once and with their evidence, for the runners that they belong to (`krunner node`).
    AllForOthers,
}

/// Whether to use eBPF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BpfPolicy {
    /// Use eBPF if the host allows it.
    Auto,
    /// Do not use eBPF: infer OOM kills from cgroup counters and `/proc`.
    Never,
}

impl MonitorSetup {
    /// Detects the setup, starts the tracer's loader thread, and drops krunner's file capabilities from the calling
    /// thread. Must be called while no other thread exists (see [`Loading`]).
    #[must_use]
    pub(crate) fn detect(requested: ScopeRequest, bpf: BpfPolicy, log: ProgramLog) -> Self {
        memory::tune_malloc();
        let host = HostContext::find(requested);
        let target = if bpf == BpfPolicy::Never { Err(TracerError::Disabled) } else { host.target(log) };
        let tracer = target.and_then(|target| Loading::start(target).map_err(TracerError::Thread));
        // If dropping fails, do not use the tracer: no thread with capabilities may serve requests.
        let tracer = sys::drop_added().map_err(TracerError::Capabilities).and(tracer);
        let proc = (host.is_hosts() || requested == ScopeRequest::Own).then(ProcRoot::default);
        let cgroup_filter =
            (host.scope() == Scope::Cgroup).then(|| own_cgroup_filter(&CgroupRoot::default())).transpose();
        // Without the filter our processes cannot be told from other tenants', so none are read.
        let (cgroup_filter, proc) = cgroup_filter.map_or((None, None), |cgroup_filter| (cgroup_filter, proc));
        let view = ProcView::find(&ProcRoot::default(), std::process::id());
        let may_use_node = requested == ScopeRequest::Own && bpf != BpfPolicy::Never;
        let node = may_use_node.then(NodeSocket::find).flatten();
        let scope = host.scope();
        let cgroup = host.cgroup.ok();
        let dir = cgroup.as_ref().map(|cgroup| cgroup.dir.clone());
        let cgroup_filter = cgroup_filter.map(|filter| CgroupFilter { dir, ..filter });
        let traces_for_others = requested == ScopeRequest::AllForOthers;
        Self { tracer, scope, proc, view, cgroup_filter, cgroup, node, traces_for_others }
    }

    /// Whether this is the host's PID namespace.
    #[must_use]
    pub(crate) fn is_on_host() -> bool {
        HostContext::find(ScopeRequest::All).is_hosts()
    }

    /// Whether paths of cgroups are those of the machine.
    #[must_use]
    pub(crate) fn is_in_host_cgroup_namespace() -> bool {
        is_in_host_cgroup_namespace(&CgroupRoot::default())
    }

    /// One line about what is wrong with `/proc`, if process names cannot be read from it.
    #[must_use]
    pub(crate) fn proc_problem(&self) -> Option<String> {
        (self.view == ProcView::Foreign).then(|| {
            let found =
                "/proc shows a different PID namespace: OOM reports name only processes seen by the eBPF tracer";
            format!("{found} (remedy: {})", ProcView::REMEDY)
        })
    }
}

/// Loads and attaches the tracer that a session would use, and detaches it again.
///
/// # Errors
/// With the reason why the tracer cannot be loaded.
pub(crate) fn try_tracer() -> Result<(), TracerError> {
    Ok(tracer::try_to_attach(&HostContext::find(ScopeRequest::Own).target(ProgramLog::Off)?)?)
}

/// Our PID namespace and memory cgroup.
struct HostContext {
    requested: ScopeRequest,
    pid_namespace: Option<u32>,
    cgroup: Result<Cgroup, Arc<CgroupError>>,
}

impl HostContext {
    fn find(requested: ScopeRequest) -> Self {
        let namespace = stat(OWN_PID_NAMESPACE).ok().and_then(|namespace| u32::try_from(namespace.st_ino).ok());
        Self { requested, pid_namespace: namespace, cgroup: Cgroup::find(&CgroupRoot::default()).map_err(Arc::new) }
    }

    fn is_hosts(&self) -> bool {
        self.pid_namespace == Some(INIT_PID_NAMESPACE)
    }

    fn scope(&self) -> Scope {
        match self.requested {
            ScopeRequest::All | ScopeRequest::AllForOthers => Scope::All,
            // If the namespace is unknown, stay with our cgroup: other processes may belong to other tenants.
            ScopeRequest::Own if self.is_hosts() || self.pid_namespace.is_none() => Scope::Cgroup,
            ScopeRequest::Own => Scope::PidNamespace,
        }
    }

    fn target(&self, log: ProgramLog) -> Result<Target, TracerError> {
        let pid_namespace = self.pid_namespace.ok_or(TracerError::NoPidNamespace)?;
        let filter = match (self.scope(), &self.cgroup) {
            (Scope::All, _) => TraceFilter::None,
            (Scope::PidNamespace, _) => TraceFilter::PidNamespace,
            (Scope::Cgroup, Ok(cgroup)) => TraceFilter::Cgroup { id: cgroup.id, version: cgroup.version },
            (Scope::Cgroup, Err(error)) => return Err(TracerError::NoCgroup(Arc::clone(error))),
        };
        self.has_room()?;
        let counts_memory_and_swap = self.cgroup.as_ref().is_ok_and(|cgroup| cgroup.version == 1);
        let records_namespaces = self.requested == ScopeRequest::AllForOthers;
        let btf = PathBuf::from(KERNEL_BTF);
        Ok(Target { btf, pid_namespace, filter, counts_memory_and_swap, log, records_namespaces })
    }

    /// Checks the limit, not the usage: most of the usage is reclaimable cache.
    fn has_room(&self) -> Result<(), TracerError> {
        let limit = self.cgroup.as_ref().ok().and_then(|cgroup| cgroup.facts().limit_bytes);
        match limit {
            Some(limit_bytes) if limit_bytes < LOADING_BYTES => Err(TracerError::LowLimit { limit_bytes }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    #[test]
    fn tracer_error_texts_are_stable() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let errors = [
            TracerError::Disabled,
            TracerError::NoPidNamespace,
            TracerError::NoCgroup(Arc::new(CgroupError::Read("/proc/self/cgroup".into(), denied()))),
            TracerError::LowLimit { limit_bytes: 32 * MIB },
            TracerError::Thread(denied()),
            TracerError::Capabilities(denied()),
            TracerError::Loading(LoadingError::Panicked),
            TracerError::Ring(denied()),
        ];
        insta::assert_snapshot!(errors.iter().map(|error| chain(error)).collect::<Vec<_>>().join("\n"), @r"
        disabled
        cannot read /proc/self/ns/pid
        in the host's PID namespace a memory cgroup is required to identify krunner's own processes: cannot read /proc/self/cgroup: permission denied
        loading the OOM tracer temporarily takes 48 MiB, but the memory cgroup's limit is 32 MiB; raise the limit
        cannot start the OOM tracer's loader thread: permission denied
        cannot drop krunner's file capabilities: permission denied
        bug: the OOM tracer's loader thread panicked
        cannot read the OOM tracer's ring buffer: permission denied
        ");
    }
}
