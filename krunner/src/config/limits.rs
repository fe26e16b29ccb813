//! Resource limits of this process (getrlimit(2)) that are too low for a session.
//!
//! Below some of them nothing works, so the runner ends at once and names the limit. With the others a session works, and a
//! part of it may not: `krunner doctor` lists them.

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::geteuid;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What a session needs of one resource.
struct Need {
    resource: Resource,
    name: &'static str,
    unit: Unit,
    /// Below this a session cannot start.
    required: u64,
    /// Below this a part of it may fail.
    recommended: u64,
    /// What part of a session fails below `recommended`.
    effect: &'static str,
    /// How a shell and a container engine name it.
    options: (&'static str, &'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Count,
    Seconds,
}

/// Measured: the start overflows a stack of 300 KB; an idle session that holds the files of three cgroups open has 94
/// descriptors, a client 14, a step 6.
static NEEDS: [Need; 8] = [
    Need {
        resource: Resource::RLIMIT_STACK,
        name: "RLIMIT_STACK",
        unit: Unit::Bytes,
        required: 512 * KIB,
        recommended: MIB,
        effect: "programs may crash",
        options: ("-s", "stack"),
    },
    Need {
        resource: Resource::RLIMIT_NOFILE,
        name: "RLIMIT_NOFILE",
        unit: Unit::Count,
        required: 128,
        recommended: 256,
        effect: "connections, kernels and services may be refused",
        options: ("-n", "nofile"),
    },
    Need {
        resource: Resource::RLIMIT_NPROC,
        name: "RLIMIT_NPROC",
        unit: Unit::Count,
        required: 0,
        recommended: 64,
        effect: "steps that exceed it end with -1; it counts all processes and threads of this user on the machine",
        options: ("-u", "nproc"),
    },
    Need {
        resource: Resource::RLIMIT_AS,
        name: "RLIMIT_AS",
        unit: Unit::Bytes,
        required: 0,
        recommended: 256 * MIB,
        effect: "threads and programs may not start",
        options: ("-v", "as"),
    },
    Need {
        resource: Resource::RLIMIT_DATA,
        name: "RLIMIT_DATA",
        unit: Unit::Bytes,
        required: 0,
        recommended: 64 * MIB,
        effect: "programs may run out of memory",
        options: ("-d", "data"),
    },
    Need {
        resource: Resource::RLIMIT_FSIZE,
        name: "RLIMIT_FSIZE",
        unit: Unit::Bytes,
        required: 0,
        recommended: 16 * MIB,
        effect: "logs and the flight recorder may be cut off",
        options: ("-f", "fsize"),
    },
    Need {
        resource: Resource::RLIMIT_MEMLOCK,
        name: "RLIMIT_MEMLOCK",
        unit: Unit::Bytes,
        required: 0,
        recommended: 64 * KIB,
        effect: "the runner may be slow at its memory limit",
        options: ("-l", "memlock"),
    },
    Need {
        resource: Resource::RLIMIT_CPU,
        name: "RLIMIT_CPU",
        unit: Unit::Seconds,
        required: 0,
        recommended: RLIM_INFINITY,
        effect: "the kernel kills the runner after that CPU time",
        options: ("-t", "cpu"),
    },
];

/// A limit that is too low.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is {}, and krunner needs at least {}; {}", .name, shown(*.value, *.unit), shown(*.needed, *.unit), .remedy)]
pub(crate) struct LowLimit {
    name: &'static str,
    unit: Unit,
    value: u64,
    needed: u64,
    effect: &'static str,
    /// How to raise it.
    pub(crate) remedy: String,
}

impl LowLimit {
    /// The limit, and what may fail.
    pub(crate) fn found(&self) -> String {
        let recommended = match self.needed {
            RLIM_INFINITY => "unlimited".to_owned(),
            needed => format!("{} or more", shown(needed, self.unit)),
        };
        format!("{} is {} ({recommended} recommended): {}", self.name, shown(self.value, self.unit), self.effect)
    }
}

/// Checks the stack alone, which is needed before anything else is done.
///
/// # Errors
/// If krunner would overflow it.
pub(crate) fn require_stack() -> Result<(), LowLimit> {
    require(&NEEDS[..1])
}

/// Checks what a session cannot do without.
///
/// # Errors
/// For the first limit that is too low.
pub(crate) fn require_for_session() -> Result<(), LowLimit> {
    require(&NEEDS)
}

/// The limits with which a part of a session may fail.
pub(crate) fn low_limits() -> Vec<LowLimit> {
    // The number of processes does not bind root (setrlimit(2)).
    let binds = |need: &&Need| need.resource != Resource::RLIMIT_NPROC || !geteuid().is_root();
    NEEDS.iter().filter(binds).filter_map(|need| need.unmet(soft(need.resource)?, need.recommended)).collect()
}

fn require(needs: &[Need]) -> Result<(), LowLimit> {
    needs.iter().find_map(|need| need.unmet(soft(need.resource)?, need.required)).map_or(Ok(()), Err)
}

/// The limit that the kernel enforces.
fn soft(resource: Resource) -> Option<u64> {
    getrlimit(resource).ok().map(|(soft, _)| soft)
}

impl Need {
    fn unmet(&self, value: u64, needed: u64) -> Option<LowLimit> {
        let (shell, engine) = self.options;
        (value < needed).then(|| LowLimit {
            name: self.name,
            unit: self.unit,
            value,
            needed,
            effect: self.effect,
            remedy: format!("raise it (`ulimit {shell}`, or --ulimit {engine}=... of the container engine)"),
        })
    }
}

fn shown(value: u64, unit: Unit) -> String {
    match unit {
        Unit::Bytes if value >= MIB => format!("{} MiB", value / MIB),
        Unit::Bytes if value >= KIB => format!("{} KiB", value / KIB),
        Unit::Bytes => format!("{value} bytes"),
        Unit::Count => value.to_string(),
        Unit::Seconds => format!("{value} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(name: &str) -> &'static Need {
        NEEDS.iter().find(|need| need.name == name).unwrap()
    }

    #[test]
    fn low_limit_is_named_with_its_value_and_the_remedy() {
        let stack = need("RLIMIT_STACK");
        assert_eq!(
            stack.unmet(64 * KIB, stack.required).unwrap().to_string(),
            "RLIMIT_STACK is 64 KiB, and krunner needs at least 512 KiB; raise it (`ulimit -s`, or --ulimit stack=... of \
             the container engine)"
        );
        assert_eq!(stack.unmet(512 * KIB, stack.required), None);
        assert_eq!(
            need("RLIMIT_NOFILE").unmet(100, 256).unwrap().found(),
            "RLIMIT_NOFILE is 100 (256 or more recommended): connections, kernels and services may be refused"
        );
        assert_eq!(
            need("RLIMIT_CPU").unmet(60, RLIM_INFINITY).unwrap().found(),
            "RLIMIT_CPU is 60 s (unlimited recommended): the kernel kills the runner after that CPU time"
        );
        assert_eq!(need("RLIMIT_CPU").unmet(RLIM_INFINITY, RLIM_INFINITY), None);
    }

    #[test]
    fn the_stack_comes_first_and_what_is_required_is_recommended() {
        assert_eq!(NEEDS[0].name, "RLIMIT_STACK");
        assert!(NEEDS.iter().all(|need| need.required <= need.recommended));
    }
}
