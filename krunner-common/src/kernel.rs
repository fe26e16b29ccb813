//! What the loader tells the programs about the running kernel and about itself.
//!
//! Both structs are read-only globals of the object. The loader overrides them before the load, and
//! the verifier then takes them for constants: what a kernel lacks costs nothing at run time.

use crate::layout::layout;

/// An offset that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// [`Config::pid_ns_level`] when it is not known.
pub const LEVEL_UNKNOWN: u32 = u32::MAX;

/// The layout of `struct upid` that the programs take for granted (include/linux/pid.h: `int nr;
/// struct pid_namespace *ns;`, unchanged since 2.6.24). A loader that finds another one in BTF must
/// not load them.
pub mod upid {
    /// `upid.nr`
    pub const NR: u32 = 0;
    /// `upid.ns`
    pub const NS: u32 = 8;
    /// `sizeof(struct upid)`
    pub const SIZE: u32 = 16;
}

/// Bits of [`Config::flags`].
pub mod config_flag {
    /// No filter: every process of the machine is reported, with the ids of the init namespace.
    pub const ALL_NAMESPACES: u32 = 1;
    /// `mark_victim` has an `int` for its first argument, not a task (BTF: the second parameter of the
    /// prototype behind the typedef `btf_trace_mark_victim`; the first is the tracer's own `void *`).
    pub const MARK_VICTIM_IS_PID: u32 = 2;
    /// The kernel has the helper `bpf_get_current_task_btf` (5.11 and later), and the programs may read the
    /// running task and what hangs on it with plain loads. A loader whose kernel refuses the programs
    /// clears this bit and tries again: then every read is a call.
    pub const DIRECT_READS: u32 = 4;
}

layout! {
    /// Who "we" are.
    pub struct Config: 24 {
        /// Only tasks whose memory cgroup has this id or is below the one that has it are ours, on top of
        /// what the namespace says; 0 for no fence. The id is the inode number of the cgroup's directory
        /// (`kernfs_node.id`; on machines of 64 bits the two are the same, `kernfs_id_ino()` in
        /// `include/linux/kernfs.h`), in the first version's hierarchy of the memory controller or in the
        /// second's. Needs [`Offsets::can_fence`]: without, nothing at all is ours.
        pub fence_cgroup_id: u64,
        /// Inode number of our pid namespace (`stat /proc/self/ns/pid`), the kernel's `ns_common.inum`.
        pub pid_ns_inum: u32,
        /// How many pid namespaces are above ours, 0 in the init namespace (inode 0xEFFFFFFC), or
        /// [`LEVEL_UNKNOWN`]: no system call tells it, so the programs find it out with the first of
        /// our processes that they see. Level 0 leaves nothing to filter, which makes them cheaper and
        /// the load quicker.
        pub pid_ns_level: u32,
        /// Bits of [`config_flag`].
        pub flags: u32,
        /// Nothing; it makes the whole a multiple of 8.
        pub reserved: u32,
    }
}

/// How much of a `task_struct` the programs copy at once. More would not leave room on their stack of
/// 512 bytes; what a fork needs spans 304 in 6.18.
pub const WINDOW_BYTES: u32 = 320;

layout! {
    /// Offsets in bytes of kernel struct members, from the running kernel's BTF; [`ABSENT`] for a member
    /// that it does not have.
    ///
    /// The programs cannot do without the first group. Each of the others only takes figures out of
    /// the records, which are then 0.
    pub struct Offsets: 136 {
        /// `task_struct.group_leader`
        pub task_group_leader: u32,
        /// `task_struct.thread_pid`
        pub task_thread_pid: u32,
        /// `task_struct.start_boottime` (5.5 and later; before: `real_start_time`), ns since boot
        pub task_start_boottime: u32,
        /// `task_struct.signal`
        pub task_signal: u32,
        /// `task_struct.exit_code`
        pub task_exit_code: u32,
        /// `task_struct.pid`, the thread id in the init namespace
        pub task_pid: u32,
        /// `task_struct.tgid`, in the init namespace
        pub task_tgid: u32,
        /// `pid.level`
        pub pid_level: u32,
        /// `pid.numbers`
        pub pid_numbers: u32,
        /// `pid_namespace.ns` + `ns_common.inum`
        pub pid_namespace_inum: u32,
        /// `signal_struct.live`, how many threads have not exited
        pub signal_live: u32,

        /// `signal_struct.group_exit_code`
        pub signal_group_exit_code: u32,
        /// `signal_struct.oom_score_adj`
        pub signal_oom_score_adj: u32,
        /// `task_struct.real_parent`
        pub task_real_parent: u32,
        /// `task_struct.comm`
        pub task_comm: u32,
        /// `task_struct.real_cred`
        pub task_real_cred: u32,
        /// `cred.uid`
        pub cred_uid: u32,
        /// `task_struct.mm`
        pub task_mm: u32,
        /// `mm_struct.total_vm`
        pub mm_total_vm: u32,
        /// Where in `mm_struct` the first counter of `rss_stat` is. 6.2 and later: the array
        /// member itself + `percpu_counter.count`; before: the member + `mm_rss_stat.count`.
        pub mm_rss: u32,
        /// From one counter to the next. 6.2 and later: `sizeof(struct percpu_counter)`; before: 8.
        pub mm_rss_stride: u32,
        /// `mm_struct.pgtables_bytes`
        pub mm_pgtables_bytes: u32,
        /// `mm_struct.arg_start`
        pub mm_arg_start: u32,
        /// `mm_struct.arg_end`
        pub mm_arg_end: u32,

        /// `task_struct.cgroups`
        pub task_cgroups: u32,
        /// `css_set.subsys` + 8 * `memory_cgrp_id` (an enumerator of `cgroup_subsys_id`)
        pub css_set_memory: u32,
        /// `cgroup_subsys_state.cgroup`
        pub css_cgroup: u32,
        /// `cgroup_subsys_state.parent`
        pub css_parent: u32,
        /// `cgroup.kn`
        pub cgroup_kn: u32,
        /// `kernfs_node.id`
        pub kernfs_node_id: u32,

        /// Where in `task_struct` the [`WINDOW_BYTES`] begin that hold what a fork needs of the child;
        /// [`ABSENT`] if its members lie further apart. From [`Self::with_window`].
        pub task_window: u32,

        /// `cgroup.root`, the hierarchy
        pub cgroup_root: u32,
        /// `cgroup.self`, the state that belongs to no controller
        pub cgroup_self: u32,
        /// `kernfs_node.name`
        pub kernfs_node_name: u32,
    }
}

impl Offsets {
    /// A kernel of which nothing is known.
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
    };

    /// Finds the window for the other offsets.
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

    /// Whether everything is there that the programs cannot do without.
    #[must_use]
    pub fn suffice(&self) -> bool {
        let needed = [
            self.task_group_leader,
            self.task_thread_pid,
            self.task_start_boottime,
            self.task_signal,
            self.task_exit_code,
            self.task_pid,
            self.task_tgid,
            self.pid_level,
            self.pid_numbers,
            self.pid_namespace_inum,
            self.signal_live,
        ];
        !needed.contains(&ABSENT)
    }

    /// Whether the programs can tell a task's memory cgroup, which [`Config::fence_cgroup_id`] needs. Without, a kill's
    /// cgroup is not known.
    #[must_use]
    pub fn can_fence(&self) -> bool {
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

    /// What the records lack on this kernel, by the kernel's names; not the fence, see [`Self::can_fence`].
    pub fn missing(&self) -> impl Iterator<Item = &'static str> + use<> {
        [
            (self.signal_group_exit_code, "signal_struct.group_exit_code"),
            (self.signal_oom_score_adj, "signal_struct.oom_score_adj"),
            (self.task_real_parent, "task_struct.real_parent"),
            (self.task_comm, "task_struct.comm"),
            (self.task_real_cred, "task_struct.real_cred"),
            (self.cred_uid, "cred.uid"),
            (self.task_mm, "task_struct.mm"),
            (self.mm_total_vm, "mm_struct.total_vm"),
            (self.mm_rss, "mm_struct.rss_stat"),
            (self.mm_pgtables_bytes, "mm_struct.pgtables_bytes"),
            (self.mm_arg_start, "mm_struct.arg_start"),
            (self.mm_arg_end, "mm_struct.arg_end"),
            (self.cgroup_root, "cgroup.root"),
            (self.cgroup_self, "cgroup.self"),
            (self.kernfs_node_name, "kernfs_node.name"),
        ]
        .into_iter()
        .filter_map(|(offset, name)| (offset == ABSENT).then_some(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(Offsets::UNKNOWN.missing().count(), 15);
        assert!(!Offsets::UNKNOWN.can_fence());
        let known = Offsets { task_comm: 8, ..Offsets::UNKNOWN };
        assert_eq!(known.missing().count(), 14);
        assert!(!known.missing().any(|name| name == "task_struct.comm"));
    }

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
