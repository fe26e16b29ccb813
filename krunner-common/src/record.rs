//! Ring buffer records. Each begins with its [`Kind`] as `u32`, so that a reader can dispatch on the first word.
//!
//! Process ids are those in the runner's PID namespace (in the initial one with
//! [`ALL_NAMESPACES`](crate::config_flag::ALL_NAMESPACES)); 0 means that the process is not visible there. Times are
//! nanoseconds since boot, suspend included (`bpf_ktime_get_boot_ns`,
//! `task_struct.start_boottime`); field 22 of `/proc/PID/stat` is the same start time in clock ticks,
//! shifted by the time namespace's offset. (tgid, `start_boot_ns`) identifies a process.

use crate::layout::layout;

/// Bytes of a command name, the final NUL included (`TASK_COMM_LEN`).
pub const COMM_BYTES: usize = 16;

/// Maximum length of the command line in an [`Exec`] record.
pub const CMDLINE_BYTES: usize = 256;

/// Bytes of a cgroup's name, the final NUL included. Container runtimes use up to 90 (`cri-containerd-` and 64 digits);
/// a longer name is found by walking the hierarchy.
pub const CGROUP_NAME_BYTES: usize = 128;

/// The type of a record, its first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The record is a [`Kill`].
    Kill = 1,
    /// The record is a [`Mark`].
    Mark = 2,
    /// The record is an [`Exit`].
    Exit = 3,
    /// The record is a [`Fork`].
    Fork = 4,
    /// The record is an [`Exec`].
    Exec = 5,
    /// The record is a [`CgroupMade`].
    CgroupMade = 6,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::Kill, Self::Mark, Self::Exit, Self::Fork, Self::Exec, Self::CgroupMade];

    /// Whether losing the record could lose an OOM kill. These records have their own ring buffer, which forks and
    /// execs cannot fill.
    #[must_use]
    pub const fn is_of_kill(self) -> bool {
        matches!(self, Self::Kill | Self::Mark | Self::Exit)
    }

    /// The kind of an encoded record; `None` for one that this version does not know.
    #[must_use]
    pub fn of(record: &[u8]) -> Option<Self> {
        let number = u32::from_ne_bytes(*record.first_chunk()?);
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// Values of [`Kill::source`].
pub mod source {
    /// The kernel itself (`SEND_SIG_PRIV`): the OOM killer, but also the teardown of a PID namespace or a
    /// hard `RLIMIT_CPU`. It is an OOM kill only together with a [`Mark`](super::Mark).
    pub const KERNEL: u8 = 1;
    /// A process, with kill(2) or a similar call. Parent-death signals and `cgroup.kill` are included: the kernel names
    /// the process that caused them as the sender.
    pub const USER: u8 = 2;
}

/// Values of [`Kill::outcome`], the kernel's `TRACE_SIGNAL_*` (include/trace/events/signal.h).
pub mod outcome {
    /// The signal was queued (`TRACE_SIGNAL_DELIVERED`).
    pub const DELIVERED: u8 = 0;
    /// No thread could take the signal (`TRACE_SIGNAL_IGNORED`).
    pub const IGNORED: u8 = 1;
    /// A SIGKILL was already pending (`TRACE_SIGNAL_ALREADY_PENDING`).
    pub const ALREADY_PENDING: u8 = 2;
}

/// Values of [`Kill::limit_kind`].
pub mod limit_kind {
    /// The victim's cgroup has no limit, or the limit could not be read.
    pub const NONE: u32 = 0;
    /// The memory limit (`mem_cgroup.memory`).
    pub const MEMORY: u32 = 1;
    /// The limit of memory and swap together, cgroup v1 only (`mem_cgroup.memsw`).
    pub const MEMORY_AND_SWAP: u32 = 2;
}

/// Bits of [`Exec::flags`].
pub mod exec_flag {
    /// The command line is longer than what the record holds.
    pub const TRUNCATED: u16 = 1;
    /// The command line could not be read; `/proc/PID/cmdline` may still have it.
    pub const UNREADABLE: u16 = 2;
}

layout! {
    /// A thread and the process that it belongs to.
    pub struct Task: 16 {
        /// Thread group id, which user space calls the process id.
        pub tgid: u32,
        /// Thread id, equal to `tgid` for the leader.
        pub tid: u32,
        /// Start time of the thread group leader, in nanoseconds since boot.
        pub start_boot_ns: u64,
    }
}

layout! {
    /// The id of a process in one PID namespace.
    pub struct NamespaceId: 8 {
        /// Inode number of the namespace (`ns_common.inum`); 0 if unknown.
        pub inum: u32,
        /// The process id there.
        pub pid: u32,
    }
}

layout! {
    /// The ids of a process in the PID namespaces below the initial one. A process that is nested deeper has no id here
    /// in the namespaces beyond. Read them with [`NamespaceIds::iter`]: the programs fill all entries, since each branch in
    /// them multiplies the paths that a verifier has to follow.
    pub struct NamespaceIds: 40 {
        /// The level of the process's own namespace. Entries of deeper levels have no meaning.
        pub deepest: u32,
        /// Padding to a multiple of 8 bytes; always 0.
        pub reserved: u32,
        /// Level 1, that of most containers.
        pub first: NamespaceId,
        /// Level 2, a container in a container.
        pub second: NamespaceId,
        /// Level 3, below a container in a container.
        pub third: NamespaceId,
        /// Level 4, the deepest that is recorded.
        pub fourth: NamespaceId,
    }
}

impl NamespaceIds {
    /// The ids of a process in the initial namespace only.
    pub const NONE: Self = {
        let none = NamespaceId { inum: 0, pid: 0 };
        Self { deepest: 0, reserved: 0, first: none, second: none, third: none, fourth: none }
    };

    /// The namespaces and ids in use, outermost first.
    pub fn iter(&self) -> impl Iterator<Item = NamespaceId> {
        let levels = [self.first, self.second, self.third, self.fourth];
        levels.into_iter().take(self.deepest as usize).take_while(|id| id.inum != 0)
    }
}

layout! {
    /// Memory usage of an `mm_struct`, as the OOM killer prints it.
    ///
    /// Pages have the kernel's size (`sysconf(_SC_PAGESIZE)`). All fields are 0 if the task had already released its
    /// memory. Since 6.2 the kernel keeps the resident counts per CPU, and these are the central sums,
    /// as in its own log: each may be off by up to `max(32, 2 * cpus)` pages per CPU.
    pub struct Memory: 48 {
        /// Address space in pages (`mm_struct.total_vm`).
        pub total_vm_pages: u64,
        /// Resident anonymous pages (`MM_ANONPAGES`).
        pub anon_pages: u64,
        /// Resident file pages (`MM_FILEPAGES`).
        pub file_pages: u64,
        /// Resident shared memory pages (`MM_SHMEMPAGES`).
        pub shmem_pages: u64,
        /// Swapped-out pages (`MM_SWAPENTS`).
        pub swap_pages: u64,
        /// Size of the page tables in bytes (`mm_struct.pgtables_bytes`).
        pub pgtables_bytes: u64,
    }
}

layout! {
    /// A SIGKILL was generated.
    pub struct Kill: 208 {
        /// The record kind, [`Kind::Kill`].
        pub kind: u32,
        /// One of [`source`].
        pub source: u8,
        /// One of [`outcome`].
        pub outcome: u8,
        /// The victim's `oom_score_adj`.
        pub oom_score_adj: i16,
        /// Time of the event, in nanoseconds since boot.
        pub time_boot_ns: u64,
        /// The process that the signal was sent to.
        pub victim: Task,
        /// The sender: for an OOM kill the process whose allocation triggered it. 0 if it is not visible from our
        /// namespace.
        pub sender_tgid: u32,
        /// The victim's real user id in the initial user namespace.
        pub uid: u32,
        /// The victim's memory usage at the time of the signal.
        pub memory: Memory,
        /// Opaque id of the victim's `mm_struct`, equal for all processes that share it (`CLONE_VM`). 0 if it has
        /// already been released.
        pub memory_map: u64,
        /// The cgroup that the victim's memory is charged to (`kernfs_node.id`, the inode number of its directory), 0
        /// if unknown. Unique within the memory controller's hierarchy and never reused.
        pub cgroup_id: u64,
        /// The cgroup, at or above the victim's, whose limit has the least headroom; 0 with [`limit_kind::NONE`]. Set
        /// only for a SIGKILL from the kernel. A charge checks the limits from the innermost cgroup outwards
        /// (`page_counter_try_charge`,
        /// `mm/page_counter.c`), so among equals this is the innermost.
        pub limit_cgroup_id: u64,
        /// That limit in pages (`page_counter.max`).
        pub limit_pages: u64,
        /// Pages charged to that cgroup (`page_counter.usage`).
        pub limit_usage_pages: u64,
        /// One of [`limit_kind`].
        pub limit_kind: u32,
        /// Which [`OomDaemon`](crate::OomDaemon) the sender is, if it is not visible from our namespace; 0 for none. To
        /// `krunner node` all senders are visible; it is set if this one runs on the host.
        pub sender_daemon: u32,
        /// The victim's command name.
        pub comm: [u8; COMM_BYTES],
        /// The sender's command name; empty unless `sender_tgid` is set.
        pub sender_comm: [u8; COMM_BYTES],
        /// The victim's ids below the initial PID namespace. Only with
        /// [`ALL_NAMESPACES`](crate::config_flag::ALL_NAMESPACES); the reports of others have no use for them.
        pub namespaces: NamespaceIds,
    }
}

layout! {
    /// The OOM killer marked a victim. It does so right after sending SIGKILL, in the same task; a victim that was
    /// already exiting is marked without a SIGKILL.
    pub struct Mark: 48 {
        /// The record kind, [`Kind::Mark`].
        pub kind: u32,
        /// The process whose allocation triggered the OOM killer; 0 if it is not visible from our namespace.
        pub trigger_tgid: u32,
        /// Time of the event, in nanoseconds since boot.
        pub time_boot_ns: u64,
        /// The marked thread, which is not always the leader.
        pub victim: Task,
        /// Command name of the trigger; empty unless `trigger_tgid` is set.
        pub trigger_comm: [u8; COMM_BYTES],
    }
}

layout! {
    /// The last thread of a process killed by SIGKILL is exiting. If two threads exit at the same time, there may be
    /// one record for each.
    pub struct Exit: 32 {
        /// The record kind, [`Kind::Exit`].
        pub kind: u32,
        /// Exit code in wait(2) format; the low 7 bits are 9.
        pub exit_code: u32,
        /// Time of the event, in nanoseconds since boot.
        pub time_boot_ns: u64,
        /// The process, and the thread that exited last.
        pub task: Task,
    }
}

layout! {
    /// A process was forked; threads are not recorded. Until it calls exec it has its parent's name and command line.
    pub struct Fork: 24 {
        /// The record kind, [`Kind::Fork`].
        pub kind: u32,
        /// Its parent (`real_parent`); 0 if it is not visible from our namespace.
        pub parent_tgid: u32,
        /// The new process.
        pub child_tgid: u32,
        /// Padding to a multiple of 8 bytes; always 0.
        pub reserved: u32,
        /// Start time of the new process, in nanoseconds since boot.
        pub start_boot_ns: u64,
    }
}

layout! {
    /// A process called execve(2).
    pub struct Exec: 304 {
        /// The record kind, [`Kind::Exec`].
        pub kind: u32,
        /// Valid length of `cmdline`. The bytes after it are left over from other records.
        pub cmdline_bytes: u16,
        /// Bits of [`exec_flag`].
        pub flags: u16,
        /// Time of the event, in nanoseconds since boot.
        pub time_boot_ns: u64,
        /// The process and the thread that called execve(2).
        pub task: Task,
        /// The new command name.
        pub comm: [u8; COMM_BYTES],
        /// The arguments, each with its final NUL.
        pub cmdline: [u8; CMDLINE_BYTES],
    }
}

layout! {
    /// One of our processes created a cgroup in the memory controller's hierarchy.
    pub struct CgroupMade: 160 {
        /// The record kind, [`Kind::CgroupMade`].
        pub kind: u32,
        /// Length of `name` without the final NUL; 0 if the name could not be read or is too long. The bytes after it
        /// are left over from other records.
        pub name_bytes: u32,
        /// Time of the event, in nanoseconds since boot.
        pub time_boot_ns: u64,
        /// Id of the new cgroup, see [`Kill::cgroup_id`].
        pub id: u64,
        /// Id of the parent cgroup.
        pub parent_id: u64,
        /// The directory name, NUL-terminated.
        pub name: [u8; CGROUP_NAME_BYTES],
    }
}

impl CgroupMade {
    /// The name of its directory, empty when the record does not carry it.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name[..(self.name_bytes as usize).min(CGROUP_NAME_BYTES)]
    }
}

impl Exec {
    /// The part of the command line that the record carries.
    #[must_use]
    pub fn cmdline(&self) -> &[u8] {
        &self.cmdline[..usize::from(self.cmdline_bytes).min(CMDLINE_BYTES)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layout as _;

    fn exit() -> Exit {
        let task = Task { tgid: 7, tid: 8, start_boot_ns: 0x0102_0304_0506_0708 };
        Exit { kind: Kind::Exit as u32, exit_code: 9, time_boot_ns: u64::MAX, task }
    }

    #[test]
    fn a_record_survives_its_bytes() {
        let bytes = exit().to_bytes();
        assert_eq!(Kind::of(&bytes), Some(Kind::Exit));
        assert_eq!(Exit::decode(&bytes), Some(exit()));
    }

    #[test]
    fn too_few_bytes_are_no_record_and_more_are_fine() {
        let bytes = exit().to_bytes();
        for length in 0..bytes.len() {
            assert_eq!(Exit::decode(&bytes[..length]), None);
        }
        let mut longer = [0xFF; Exit::SIZE + 8];
        longer[..Exit::SIZE].copy_from_slice(&bytes);
        assert_eq!(Exit::decode(&longer), Some(exit()));
    }

    #[test]
    fn an_unknown_kind_is_none() {
        assert_eq!(Kind::of(&7_u32.to_ne_bytes()), None);
        assert_eq!(Kind::of(&0_u32.to_ne_bytes()), None);
        assert_eq!(Kind::of(&[1, 0, 0]), None);
    }

    #[test]
    fn a_cgroup_name_ends_where_the_record_says() {
        let record = CgroupMade {
            kind: Kind::CgroupMade as u32,
            name_bytes: 3,
            time_boot_ns: 1,
            id: 9,
            parent_id: 1,
            name: [b'x'; CGROUP_NAME_BYTES],
        };
        assert_eq!(CgroupMade::decode(&record.to_bytes()), Some(record));
        assert_eq!(record.name(), b"xxx");
        assert_eq!(CgroupMade { name_bytes: u32::MAX, ..record }.name().len(), CGROUP_NAME_BYTES);
    }

    #[test]
    fn a_command_line_ends_where_the_record_says() {
        let task = Task { tgid: 1, tid: 1, start_boot_ns: 0 };
        let head = Exec {
            kind: Kind::Exec as u32,
            cmdline_bytes: 3,
            flags: 0,
            time_boot_ns: 0,
            task,
            comm: [0; COMM_BYTES],
            cmdline: [b'x'; CMDLINE_BYTES],
        };
        assert_eq!(head.cmdline(), b"xxx");
        assert_eq!(Exec { cmdline_bytes: u16::MAX, ..head }.cmdline().len(), CMDLINE_BYTES);
    }
}
