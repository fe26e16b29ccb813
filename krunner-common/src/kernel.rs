//! Configuration that the loader passes to the programs: kernel struct offsets and settings.
//!
//! Both structs are read-only globals of the object. The loader overrides them before it loads the programs, and the
//! verifier then treats them as constants, so branches for absent members cost nothing at run time.

use crate::layout::layout;

/// The offset of a member that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// The value of [`Config::pid_ns_level`] when the level is unknown.
pub const LEVEL_UNKNOWN: u32 = u32::MAX;

/// The layout of `struct upid` that is compiled into the programs (include/linux/pid.h: `int nr;
/// struct pid_namespace *ns;`, unchanged since 2.6.24). If BTF shows a different layout, the loader must not load them.
pub mod upid {
    /// Offset of `upid.nr`, an `int`.
    pub const NR: u32 = 0;
    /// Offset of `upid.ns`, a pointer.
    pub const NS: u32 = 8;
    /// `sizeof(struct upid)` in bytes.
    pub const SIZE: u32 = 16;
}

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// No filter: every process on the machine is reported, with its ids in the initial PID namespace.
    pub const ALL_NAMESPACES: u32 = 1;
    /// `mark_victim` has an `int` for its first argument, not a task (BTF: the second parameter of the
    /// prototype behind the typedef `btf_trace_mark_victim`; the first is the tracer's own `void *`).
    pub const MARK_VICTIM_IS_PID: u32 = 2;
    /// The kernel has the helper `bpf_get_current_task_btf` (5.11 and later), and the programs may read the
    /// running task and the structs it points to with plain loads. If the verifier rejects the programs, the loader
    /// clears this bit and retries; every read is then a helper call.
    pub const DIRECT_READS: u32 = 4;
}

layout! {
    /// Which processes are reported.
    pub struct Config: 24 {
        /// In addition to the namespace filter, only tasks in the memory cgroup with this id and its descendants are
        /// reported; 0 disables the filter. The id is the inode number of the cgroup's directory (`kernfs_node.id`; on
        /// 64-bit machines the two are the same, `kernfs_id_ino()` in `include/linux/kernfs.h`), in the cgroup v1
        /// memory hierarchy or in the v2 hierarchy. Requires [`Offsets::has_task_cgroup`]: without it no task matches.
        pub filter_cgroup_id: u64,
        /// Inode number of our pid namespace (`stat /proc/self/ns/pid`), the kernel's `ns_common.inum`.
        pub pid_ns_inum: u32,
        /// Number of PID namespaces above ours, 0 in the initial one (inode 0xEFFFFFFC), or [`LEVEL_UNKNOWN`]. No
        /// system call returns it, so the programs learn it from the first of our processes that they see. At level 0
        /// there is nothing to filter, which makes the programs cheaper and faster to load.
        pub pid_ns_level: u32,
        /// Bits of [`config_flag`].
        pub flags: u32,
        /// Padding to a multiple of 8 bytes; always 0.
        pub reserved: u32,
    }
}

/// How many bytes of a `task_struct` the programs copy at once. The BPF stack has 512 bytes, so it cannot be much
/// more; the members that a fork record needs span 304 bytes in 6.18.
pub const WINDOW_BYTES: u32 = 320;

/// Memory cgroups are charged in batches of this many pages (`MEMCG_CHARGE_BATCH`, include/linux/memcontrol.h). A
/// charge can therefore fail while fewer pages than this are left below the limit.
pub const CHARGE_BATCH_PAGES: u64 = 64;

layout! {
    /// Byte offsets of kernel struct members, from the running kernel's BTF; [`ABSENT`] for a member that it does not
    /// have.
    ///
    /// The first group is required. If one of the others is absent, the fields read from it are 0 in the records.
    pub struct Offsets: 156 {
        /// `task_struct.group_leader`: a pointer to the thread group leader
        pub task_group_leader: u32,
        /// `task_struct.thread_pid`: a pointer to `struct pid`
        pub task_thread_pid: u32,
        /// `task_struct.start_boottime` (`real_start_time` before 5.5): nanoseconds since boot
        pub task_start_boottime: u32,
        /// `task_struct.signal`: a pointer to `signal_struct`
        pub task_signal: u32,
        /// `task_struct.exit_code`: an `int` in wait(2) format
        pub task_exit_code: u32,
        /// `task_struct.pid`: the thread id in the initial PID namespace
        pub task_pid: u32,
        /// `task_struct.tgid`: the process id in the initial PID namespace
        pub task_tgid: u32,
        /// `pid.level`: the number of PID namespaces above the innermost one
        pub pid_level: u32,
        /// `pid.numbers`: one `struct upid` for each level
        pub pid_numbers: u32,
        /// `pid_namespace.ns` + `ns_common.inum`
        pub pid_namespace_inum: u32,
        /// `signal_struct.live`: the number of threads that have not exited
        pub signal_live: u32,

        /// `signal_struct.group_exit_code`: an `int` in wait(2) format
        pub signal_group_exit_code: u32,
        /// `signal_struct.oom_score_adj`: a `short`
        pub signal_oom_score_adj: u32,
        /// `task_struct.real_parent`: a pointer to the parent task
        pub task_real_parent: u32,
        /// `task_struct.comm`: the command name, 16 bytes
        pub task_comm: u32,
        /// `task_struct.real_cred`: a pointer to `struct cred`
        pub task_real_cred: u32,
        /// `cred.uid`: the real user id
        pub cred_uid: u32,
        /// `task_struct.mm`: a pointer to `mm_struct`, null once the memory is released
        pub task_mm: u32,
        /// `mm_struct.total_vm`: address space in pages
        pub mm_total_vm: u32,
        /// The first counter of `mm_struct.rss_stat`. 6.2 and later: the array member + `percpu_counter.count`; before:
        /// the member + `mm_rss_stat.count`.
        pub mm_rss: u32,
        /// Distance between two counters. 6.2 and later: `sizeof(struct percpu_counter)`; before: 8.
        pub mm_rss_stride: u32,
        /// `mm_struct.pgtables_bytes`: size of the page tables in bytes
        pub mm_pgtables_bytes: u32,
        /// `mm_struct.arg_start`: start of the arguments in user memory
        pub mm_arg_start: u32,
        /// `mm_struct.arg_end`: end of the arguments in user memory
        pub mm_arg_end: u32,

        /// `task_struct.cgroups`: a pointer to `css_set`
        pub task_cgroups: u32,
        /// `css_set.subsys` + 8 * `memory_cgrp_id` (an enumerator of `cgroup_subsys_id`)
        pub css_set_memory: u32,
        /// `cgroup_subsys_state.cgroup`: a pointer to `cgroup`
        pub css_cgroup: u32,
        /// `cgroup_subsys_state.parent`: a pointer to the parent's `css`
        pub css_parent: u32,
        /// `cgroup.kn`: a pointer to `kernfs_node`
        pub cgroup_kn: u32,
        /// `kernfs_node.id`: a `u64`
        pub kernfs_node_id: u32,

        /// Start of the [`WINDOW_BYTES`] of `task_struct` that contain every member a fork record needs; [`ABSENT`] if
        /// the members are further apart. Set by [`Self::with_window`].
        pub task_window: u32,

        /// `cgroup.root`: identifies the hierarchy
        pub cgroup_root: u32,
        /// `cgroup.self`: the `css` that belongs to no controller
        pub cgroup_self: u32,
        /// `kernfs_node.name`: a pointer to the directory name
        pub kernfs_node_name: u32,

        /// Like [`Self::css_set_memory`], but not replaced by the cgroup v2 filter: used to find limits.
        pub css_set_charged: u32,
        /// `mem_cgroup.memory.usage`, relative to `mem_cgroup.css`
        pub css_memory_usage: u32,
        /// `mem_cgroup.memory.max`, relative to `mem_cgroup.css`
        pub css_memory_max: u32,
        /// `mem_cgroup.memsw.usage`, relative to `mem_cgroup.css`; [`ABSENT`] under cgroup v2, where a different
        /// counter is in its place.
        pub css_memsw_usage: u32,
        /// `mem_cgroup.memsw.max`, relative to `mem_cgroup.css`; [`ABSENT`] under cgroup v2.
        pub css_memsw_max: u32,
    }
}

impl Offsets {
    /// All members absent.
    pub const UNKNOWN: Self = Self {
        task_group_leader: ABSENT,
        task_thread_pid: ABSENT,
        task_start_boottime: ABSENT,
        task_signal: ABSENT,
        task_exit_code: ABSENT,
        task_pid: ABSENT,
        task_tgid: ABSENT,
        pid_level: ABSENT,
        pid_numbers: ABSENT,
        pid_namespace_inum: ABSENT,
        signal_live: ABSENT,
        signal_group_exit_code: ABSENT,
        signal_oom_score_adj: ABSENT,
        task_real_parent: ABSENT,
        task_comm: ABSENT,
        task_real_cred: ABSENT,
        cred_uid: ABSENT,
        task_mm: ABSENT,
        mm_total_vm: ABSENT,
        mm_rss: ABSENT,
        mm_rss_stride: ABSENT,
        mm_pgtables_bytes: ABSENT,
        mm_arg_start: ABSENT,
        mm_arg_end: ABSENT,
        task_cgroups: ABSENT,
        css_set_memory: ABSENT,
        css_cgroup: ABSENT,
        css_parent: ABSENT,
        cgroup_kn: ABSENT,
        kernfs_node_id: ABSENT,
        task_window: ABSENT,
        cgroup_root: ABSENT,
        cgroup_self: ABSENT,
        kernfs_node_name: ABSENT,
        css_set_charged: ABSENT,
        css_memory_usage: ABSENT,
        css_memory_max: ABSENT,
        css_memsw_usage: ABSENT,
        css_memsw_max: ABSENT,
    };

    /// Sets [`Self::task_window`] from the other offsets.
    #[must_use]
    pub fn with_window(self) -> Self {
        let needed = [self.task_group_leader, self.task_pid, self.task_thread_pid, self.task_start_boottime];
        let known = needed.into_iter().chain((self.task_real_parent != ABSENT).then_some(self.task_real_parent));
        let (first, last) = known.fold((ABSENT, 0), |(first, last), offset| (first.min(offset), last.max(offset)));
        let first = first & !7;
        // The last one may have 8 bytes.
        let fits = last != ABSENT && last - first <= WINDOW_BYTES - 8;
        Self { task_window: if fits { first } else { ABSENT }, ..self }
    }

    /// Whether the programs can find a task's memory cgroup. [`Config::filter_cgroup_id`] and
    /// [`crate::Kill::cgroup_id`] require it.
    #[must_use]
    pub fn has_task_cgroup(&self) -> bool {
        let needed = [
            self.task_cgroups,
            self.css_set_memory,
            self.css_cgroup,
            self.css_parent,
            self.cgroup_kn,
            self.kernfs_node_id,
        ];
        !needed.contains(&ABSENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_holds_what_a_fork_needs() {
        let known = Offsets {
            task_pid: 1268,
            task_group_leader: 1328,
            task_thread_pid: 1368,
            task_start_boottime: 1576,
            ..Offsets::UNKNOWN
        };
        assert_eq!(known.with_window().task_window, 1264);
        assert_eq!(Offsets { task_start_boottime: 1584, ..known }.with_window().task_window, ABSENT);
        assert_eq!(Offsets { task_real_parent: 8, ..known }.with_window().task_window, ABSENT);
        assert_eq!(Offsets::UNKNOWN.with_window(), Offsets::UNKNOWN);
    }
}
