//! The programs of the object: their names, and the raw tracepoint each one is for.
//!
//! Raw tracepoints need no tracefs. Their arguments are those of the kernel's `TP_PROTO`, so the
//! offsets of [`crate::Offsets`] are all they need to know of a kernel.

/// A program and where to attach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name in the object.
    pub name: &'static str,
    /// The raw tracepoint, without its category.
    pub tracepoint: &'static str,
}

/// Writes [`crate::Kill`]. `signal_generate(int sig, struct kernel_siginfo *, struct task_struct *, int group, int result)`.
pub const SIGKILL: Program = Program { name: "sigkill", tracepoint: "signal_generate" };

/// Writes [`crate::Mark`]. `mark_victim(struct task_struct *, uid_t)`; `mark_victim(int pid)` before 2025.
pub const MARK_VICTIM: Program = Program { name: "mark_victim", tracepoint: "mark_victim" };

/// Writes [`crate::Exit`]. `sched_process_exit(struct task_struct *, bool group_dead)`; no `group_dead` before 6.16.
pub const EXIT: Program = Program { name: "process_exit", tracepoint: "sched_process_exit" };

/// Writes [`crate::Fork`]. `sched_process_fork(struct task_struct *parent, struct task_struct *child)`.
pub const FORK: Program = Program { name: "process_fork", tracepoint: "sched_process_fork" };

/// Writes [`crate::Exec`]. `sched_process_exec(struct task_struct *, pid_t old_pid, struct linux_binprm *)`.
pub const EXEC: Program = Program { name: "process_exec", tracepoint: "sched_process_exec" };

/// Writes [`crate::CgroupMade`]. `cgroup_mkdir(struct cgroup *, const char *path)`. Without it, cgroups that are gone
/// before somebody looks have no name.
pub const CGROUP_MKDIR: Program = Program { name: "cgroup_mkdir", tracepoint: "cgroup_mkdir" };

/// Those that the tracer needs, in the order in which to attach: who consumes an event comes before who causes it, so
/// that no mark arrives without its SIGKILL only because the other program was late.
pub const ALL: [Program; 5] = [EXIT, SIGKILL, MARK_VICTIM, FORK, EXEC];
