//! How kills are to be seen on this host, decided once at the start.
//!
//! | our pid namespace | asked for | whose processes are told |
//! |---|---|---|
//! | one of our own | | those in it and in the ones below |
//! | the host's | | those of our memory cgroup and below it: the rest are other tenants |
//! | the host's, and our cgroup is the root | | all: nobody else is there |
//! | any | everything | all |

use std::path::PathBuf;

use nix::sys::stat::stat;

use super::cgroup::Cgroup;
use super::procfs::{Fence, ProcRoot};
use super::tracer::{INIT_PID_NAMESPACE, Loading, Reach, Scope, Target};
use crate::error::chain;

const OWN_PID_NAMESPACE: &str = "/proc/self/ns/pid";
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// What a monitor works with.
#[derive(Debug)]
pub struct Means {
    /// The tracer that is being loaded; or why none is.
    pub(super) tracer: Result<Loading, String>,
    /// Whose processes.
    pub(super) scope: Scope,
    /// Where processes are; none when `/proc` numbers them otherwise than the tracer.
    pub(super) proc: Option<ProcRoot>,
    /// Whom of those we may see.
    pub(super) fence: Option<Fence>,
    /// Our own memory cgroup, if it can be found.
    pub(super) cgroup: Option<Cgroup>,
}

/// Whose processes somebody wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Those that are ours.
    Ours,
    /// All of the machine.
    Everything,
}

impl Means {
    /// Finds out, and starts the thread that loads the tracer; so it has to be called while there is no
    /// other thread (see [`Loading`]).
    #[must_use]
    pub fn of_this_host(wanted: Wanted) -> Self {
        let cgroup = Cgroup::of_this_process();
        let namespace = stat(OWN_PID_NAMESPACE).ok().and_then(|namespace| u32::try_from(namespace.st_ino).ok());
        let is_hosts = namespace == Some(INIT_PID_NAMESPACE);
        let reach = match (wanted, &cgroup) {
            (Wanted::Everything, _) => Ok(Reach::Everything),
            (Wanted::Ours, Ok(cgroup)) if is_hosts && !cgroup.is_root() => Ok(Reach::Cgroup(cgroup.id())),
            (Wanted::Ours, Err(error)) if is_hosts => Err(format!(
                "in the host's pid namespace only a memory cgroup tells ours from others': {}",
                chain(error)
            )),
            (Wanted::Ours, _) => Ok(Reach::PidNamespace),
        };
        let scope = match reach {
            Ok(Reach::Everything) => Scope::All,
            Ok(Reach::Cgroup(_)) | Err(_) => Scope::Cgroup,
            Ok(Reach::PidNamespace) => Scope::PidNamespace,
        };
        let tracer = match (reach, namespace) {
            (Err(reason), _) => Err(reason),
            (_, None) => Err(format!("cannot read {OWN_PID_NAMESPACE}")),
            (Ok(reach), Some(pid_namespace)) => {
                let target = Target { btf: PathBuf::from(KERNEL_BTF), pid_namespace, reach };
                Loading::start(target).map_err(|error| format!("no thread to load it with: {error}"))
            }
        };
        let proc = (is_hosts || wanted == Wanted::Ours).then(ProcRoot::default);
        let cgroup = cgroup.ok();
        let fence = cgroup.as_ref().filter(|_| scope == Scope::Cgroup).map(Cgroup::fence);
        Self { tracer, scope, proc, fence, cgroup }
    }
}
