//! The programs of the object and the raw tracepoints they attach to.
//!
//! Raw tracepoints do not require tracefs. Their arguments are those of the kernel's `TP_PROTO`, so the programs depend
//! on the kernel only through [`crate::Offsets`].

/// A program and where to attach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Symbol name in the ELF object.
    pub name: &'static str,
    /// The raw tracepoint, without its category.
    pub tracepoint: &'static str,
}

/// Writes [`crate::Kill`]. `signal_generate(int sig, struct kernel_siginfo *, struct task_struct *, int group, int
/// result)`.
pub const SIGKILL: Program = Program { name: "sigkill", tracepoint: "signal_generate" };

/// Writes [`crate::Mark`]. `mark_victim(struct task_struct *, uid_t)`; `mark_victim(int pid)` before 2025.
pub const MARK_VICTIM: Program = Program { name: "mark_victim", tracepoint: "mark_victim" };

/// Writes [`crate::Exit`]. `sched_process_exit(struct task_struct *, bool group_dead)`; no `group_dead` before 6.16.
pub const EXIT: Program = Program { name: "process_exit", tracepoint: "sched_process_exit" };

/// Writes [`crate::Fork`]. `sched_process_fork(struct task_struct *parent, struct task_struct *child)`.
pub const FORK: Program = Program { name: "process_fork", tracepoint: "sched_process_fork" };

/// Writes [`crate::Exec`]. `sched_process_exec(struct task_struct *, pid_t old_pid, struct linux_binprm *)`.
pub const EXEC: Program = Program { name: "process_exec", tracepoint: "sched_process_exec" };

/// Writes [`crate::CgroupMade`]. `cgroup_mkdir(struct cgroup *, const char *path)`. Without it, cgroups that are
/// removed before user space looks them up have no name in reports.
pub const CGROUP_MKDIR: Program = Program { name: "cgroup_mkdir", tracepoint: "cgroup_mkdir" };

/// Records the SIGKILLs of the host's user-space OOM killers. Only in the object of `krunner node`, which can do without it.
pub const DAEMON_SIGKILL: Program = Program { name: "daemon_sigkill", tracepoint: "signal_generate" };

/// The required programs, in attach order: [`SIGKILL`] is attached before [`MARK_VICTIM`], so that every mark has its
/// SIGKILL record.
pub const ALL: [Program; 5] = [EXIT, SIGKILL, MARK_VICTIM, FORK, EXEC];
