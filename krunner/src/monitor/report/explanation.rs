//! Formats an explanation, at most a line or two for each part. Each line begins with a newline. Unknown parts are omitted.

mod advice;
mod growth;
mod limit;
mod usage;

use std::fmt;

pub(super) use growth::{in_seconds, mib_per_s};

use crate::monitor::explain::Explanation;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(limit) = &self.limit {
            write!(f, "\n{limit}")?;
        }
        if let Some(usage) = &self.usage {
            write!(f, "\n{usage}")?;
        }
        if let Some(growth) = self.growth.as_ref().map(ToString::to_string).filter(|line| !line.is_empty()) {
            write!(f, "\ngrowth: {growth}")?;
        }
        if let Some(advice) = &self.advice {
            write!(f, "{advice}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::explain::{KernelMemory, LimitHit, LimitScope, MemoryUsage, TreeUsage};
    use crate::monitor::model::LimitKind;
    use crate::monitor::model::mount::MountUsage;
    use crate::monitor::model::process::ProcessKey;

    const MIB: u64 = 1 << 20;

    fn hit(scope: LimitScope, path: Option<&str>) -> LimitHit {
        LimitHit {
            scope,
            kind: LimitKind::Memory,
            path: path.map(str::to_owned),
            limit_bytes: Some(256 * MIB),
            usage_bytes: Some(256 * MIB),
            is_trigger_outside: Some(false),
            is_exact: true,
        }
    }

    #[test]
    fn limit_says_whose_it_is() {
        let text = |scope, path| hit(scope, path).to_string();
        assert_eq!(
            text(LimitScope::Container, Some("/box")),
            "limit: 256m for this container, 256m in use at the kill (/box)"
        );
        let pod = Some("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f1c.slice");
        assert!(text(LimitScope::Above, pod).starts_with("limit: 256m for its pod, 256m in use"));
        assert!(text(LimitScope::Above, None).starts_with("limit: 256m for a cgroup above this container"));
        let unknown = text(LimitScope::Unknown, None);
        assert!(unknown.starts_with("limit: 256m for this container or another cgroup"), "{unknown}");
        let machine = text(LimitScope::Machine, None);
        assert!(machine.ends_with("none reached; the machine ran out of memory (256m of 256m in use)"), "{machine}");
        let inferred = LimitHit { usage_bytes: None, is_exact: false, ..hit(LimitScope::Container, None) };
        assert!(inferred.to_string().ends_with("inferred from failed-charge counters"));
    }

    #[test]
    fn usage_names_what_is_large_first() {
        let kernel = KernelMemory { total_bytes: 70 * MIB, sockets_bytes: Some(66 * MIB), ..KernelMemory::default() };
        let key = ProcessKey { pid: 7, start_ticks: 1 };
        let tree = TreeUsage { key, name: "train\n.py".into(), descendants: 8, rss_bytes: 120 * MIB };
        let shm = MountUsage { path: "/dev/shm".into(), used_bytes: 40 * MIB, size_bytes: Some(64 * MIB) };
        let usage = MemoryUsage {
            total_bytes: 256 * MIB,
            anon_bytes: Some(130 * MIB),
            shmem_bytes: Some(41 * MIB),
            page_cache_bytes: Some(0),
            kernel: Some(kernel),
            unexplained_bytes: 15 * MIB,
            mounts: vec![shm],
            trees: vec![tree],
            ..MemoryUsage::default()
        };
        let expected = "\nmemory: 256m = programs 130m + kernel 70m + tmpfs and shared memory 41m + unaccounted 15m\n  \
                        kernel: socket buffers 66m\n  tmpfs: /dev/shm 40m of 64m\n  \
                        7 (train\\n.py) and its 8 descendants: 120m of 256m";
        assert_eq!(Explanation { usage: Some(usage), ..Explanation::default() }.to_string(), expected);
        assert_eq!(Explanation::default().to_string(), "");
    }
}
