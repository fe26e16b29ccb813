//! Formats the limit: `limit: 256m for this container, 256m in use (/docker/3f2a)`.

use std::fmt;

use crate::monitor::explain::{LimitHit, LimitScope};
use crate::monitor::model::LimitKind;
use crate::monitor::model::units::{mib, mib_or_unknown};

impl fmt::Display for LimitHit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scope == LimitScope::Outside {
            return f.write_str(
                "limit: not this container's; its pod, slice or the engine's scope hit a limit, or the machine ran out of memory",
            );
        }
        if self.scope == LimitScope::Machine {
            f.write_str("limit: none reached; the machine ran out of memory")?;
            if let (Some(total), Some(used)) = (self.limit_bytes, self.usage_bytes) {
                write!(f, " ({} of {} in use)", mib(used), mib(total))?;
            }
            return Ok(());
        }
        write!(f, "limit: {} {}", mib_or_unknown(self.limit_bytes), scope_text(self))?;
        if self.kind == LimitKind::MemoryAndSwap {
            f.write_str(", memory plus swap")?;
        }
        match self.usage_bytes {
            Some(bytes) => write!(f, ", {} in use at the kill", mib(bytes))?,
            None => f.write_str(", inferred from failed-charge counters")?,
        }
        if let Some(path) = &self.path {
            write!(f, " ({})", path.escape_debug())?;
        }
        if self.is_trigger_outside == Some(true) {
            f.write_str("; the allocating process is outside krunner's view")?;
        }
        Ok(())
    }
}

fn scope_text(limit: &LimitHit) -> &'static str {
    let is_pod = || limit.path.as_deref().is_some_and(is_pod);
    match limit.scope {
        LimitScope::Container => "for this container",
        LimitScope::Inner => "for a cgroup inside this container",
        LimitScope::Above if is_pod() => "for its pod",
        // podman with crun puts a container one level below the scope that has its limit.
        LimitScope::Above => "for a cgroup above this container (its pod, slice or the engine's scope)",
        LimitScope::Beside => "for a sibling cgroup",
        LimitScope::Unknown => "for this container or another cgroup (no cgroup file system is visible)",
        LimitScope::Machine | LimitScope::Outside => "",
    }
}

/// The kubelet's names: `kubepods-burstable-pod0f1c...slice` (systemd) and `kubepods/burstable/pod0f1c...` (cgroupfs).
fn is_pod(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap_or_default();
    path.contains("kubepods") && last.contains("pod") && !last.ends_with("kubepods")
}
