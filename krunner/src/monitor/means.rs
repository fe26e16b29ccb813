//! How kills are to be seen on this host, decided once at the start.
//!
//! | our pid namespace | asked for | whose processes are told |
//! |---|---|---|
//! | one of our own | ours | those in it and in the ones below |
//! | the host's | ours | those in our memory cgroup and below it: the rest are other tenants |
//! | any | everything | all |

use std::path::PathBuf;

use nix::sys::stat::stat;

use super::cgroup::{Cgroup, CgroupError, CgroupRoot, own_fence};
use super::procfs::{Fence, ProcRoot, ProcView};
use super::tracer::{self, INIT_PID_NAMESPACE, Loading, ProgramLog, Reach, Scope, Target};
use crate::error::chain;
use crate::sys::{self, memory};

const OWN_PID_NAMESPACE: &str = "/proc/self/ns/pid";
const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// What loading the tracer takes for a moment (30 MiB on 6.18, whose BTF is the largest so far), and some more.
/// It is charged to our own cgroup, where it must not be the cause of a kill.
const LOADING_BYTES: u64 = 48 * 1024 * 1024;

/// What a monitor works with.
#[derive(Debug)]
pub struct Means {
    /// The tracer that is being loaded; or why none is.
    pub(super) tracer: Result<Loading, String>,
    /// Whose processes.
    pub(super) scope: Scope,
    /// Where processes are; none when `/proc` numbers them otherwise than the tracer, or ours cannot be told from others.
    pub(super) proc: Option<ProcRoot>,
    /// What `/proc` shows.
    pub(super) view: ProcView,
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

/// By what somebody wants them to be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The best that this host allows.
    TheBest,
    /// Without BPF.
    Snapshots,
}

impl Means {
    /// Finds out, starts the thread that loads the tracer, and drops the capabilities that krunner's file brought
    /// from this one. So it has to be called while there is no other thread (see [`Loading`]).
    #[must_use]
    pub fn of_this_host(wanted: Wanted, by: By, log: ProgramLog) -> Self {
        memory::keep_little();
        let place = Place::find(wanted);
        let target = if by == By::Snapshots { Err("nobody wanted it".to_owned()) } else { place.target(log) };
        let tracer = target.and_then(|target| {
            Loading::start(target).map_err(|error| format!("no thread to load the OOM tracer with: {error}"))
        });
        // Where even that is refused, no tracer must be there for a thread with capabilities to be used by others.
        let tracer = sys::drop_added()
            .map_err(|error| format!("cannot drop the capabilities of krunner's file: {error}"))
            .and(tracer);
        let proc = (place.is_hosts() || wanted == Wanted::Ours).then(ProcRoot::default);
        let fence = (place.scope() == Scope::Cgroup).then(|| own_fence(&CgroupRoot::default())).transpose();
        // Without a fence nobody can be told from other tenants, so nobody is looked at.
        let (fence, proc) = fence.map_or((None, None), |fence| (fence, proc));
        let view = ProcView::find(&ProcRoot::default(), std::process::id());
        Self { tracer, scope: place.scope(), proc, view, fence, cgroup: place.cgroup.ok() }
    }
}

impl Means {
    /// What is wrong with `/proc`, in a line, if no process can be named from it.
    #[must_use]
    pub fn proc_problem(&self) -> Option<String> {
        (self.view == ProcView::Foreign).then(|| {
            let found = "/proc shows another PID namespace: OOM reports name only processes that the eBPF tracer saw";
            format!("{found} (remedy: {})", ProcView::REMEDY)
        })
    }
}

/// Loads and attaches the tracer that a session would have, and lets it go again.
///
/// # Errors
/// With what is in the way.
pub fn try_tracer() -> Result<(), String> {
    tracer::try_to_attach(&Place::find(Wanted::Ours).target(ProgramLog::Off)?)
}

/// Where we are.
struct Place {
    wanted: Wanted,
    pid_namespace: Option<u32>,
    cgroup: Result<Cgroup, CgroupError>,
}

impl Place {
    fn find(wanted: Wanted) -> Self {
        let namespace = stat(OWN_PID_NAMESPACE).ok().and_then(|namespace| u32::try_from(namespace.st_ino).ok());
        Self { wanted, pid_namespace: namespace, cgroup: Cgroup::find(&CgroupRoot::default()) }
    }

    fn is_hosts(&self) -> bool {
        self.pid_namespace == Some(INIT_PID_NAMESPACE)
    }

    fn scope(&self) -> Scope {
        match self.wanted {
            Wanted::Everything => Scope::All,
            // Not to know means not to name what may be others' processes.
            Wanted::Ours if self.is_hosts() || self.pid_namespace.is_none() => Scope::Cgroup,
            Wanted::Ours => Scope::PidNamespace,
        }
    }

    fn target(&self, log: ProgramLog) -> Result<Target, String> {
        let pid_namespace = self.pid_namespace.ok_or_else(|| format!("cannot see {OWN_PID_NAMESPACE}"))?;
        let reach = match (self.scope(), &self.cgroup) {
            (Scope::All, _) => Reach::Everything,
            (Scope::PidNamespace, _) => Reach::PidNamespace,
            (Scope::Cgroup, Ok(cgroup)) => Reach::Cgroup { id: cgroup.id, version: cgroup.version },
            (Scope::Cgroup, Err(error)) => {
                return Err(format!(
                    "in the host's pid namespace only a memory cgroup tells ours from others: {}",
                    chain(error)
                ));
            }
        };
        self.has_room()?;
        Ok(Target { btf: PathBuf::from(KERNEL_BTF), pid_namespace, reach, log })
    }

    /// Only a limit counts, not what is used: most of that is cache, which gives way.
    fn has_room(&self) -> Result<(), String> {
        const MIB: u64 = 1024 * 1024;
        let limit = self.cgroup.as_ref().ok().and_then(|cgroup| cgroup.facts().limit_bytes);
        match limit {
            Some(limit) if limit < LOADING_BYTES => Err(format!(
                "loading the OOM tracer takes {} MiB for a moment, and the memory cgroup has a limit of {} MiB; raise it",
                LOADING_BYTES / MIB,
                limit / MIB
            )),
            _ => Ok(()),
        }
    }
}
