//! The words by which suites recognise what krunner says of OOM kills: the one place to adapt when they change.

/// Before the first report of a kill.
pub(crate) const HEADING: &str = "Out-of-memory detected!";

/// In every report, whether the victim is certain or not, and whichever the tracer.
pub(crate) const REPORT: &str = "oom-killed process:";

/// The report's first line when the victim is certain.
pub(crate) const CERTAIN: &str = "detected oom-killed process:";

/// Before the number of kills that have no name yet.
pub(crate) const COUNTED: &str = "the kernel counted ";

/// The answer to an event of the agent to which no kill belongs.
pub(crate) const NOTHING_FOUND: &str = "failed to get the information";

/// At the end of a report that lists other processes.
pub(crate) const LARGEST: &str = "largest surviving processes:";

/// A SIGKILL that a process sent; what follows is its pid and its name.
pub(crate) const SIGKILL_FROM: &str = "SIGKILL from";

/// A SIGKILL from another pid namespace.
pub(crate) const FROM_OUTSIDE: &str = "from outside this container";

/// A SIGKILL of earlyoom or systemd-oomd.
pub(crate) const OOM_DAEMON: &str = "a user-space OOM killer outside this container";

/// A SIGKILL of which only the counter is known.
pub(crate) const NOT_THE_OOM_KILLER: &str = "not the OOM killer";

/// A cgroup that is full and whose OOM killer is disabled.
pub(crate) const OUT_OF_MEMORY: &str = "out of memory";
pub(crate) const MAY_NOT_KILL: &str = "oom killer disabled";

/// In the hint at a full tmpfs, beside its mount point.
pub(crate) const TMPFS: &str = "tmpfs";

/// In the line on the victim's terminal.
pub(crate) const ON_TERMINAL: &str = "OOM";

/// How often `part` is in `text`.
pub(crate) fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}
