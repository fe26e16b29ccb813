//! The records. Each opens with its [`Kind`] as `u32`, so that a reader can dispatch on the first word.
//!
//! Ids are those of the runner's own pid namespace (of the init namespace with
//! [`ALL_NAMESPACES`](crate::config_flag::ALL_NAMESPACES)); 0 says that the process is not visible
//! from there. Times are nanoseconds since boot, suspend included (`bpf_ktime_get_boot_ns`,
//! `task_struct.start_boottime`); field 22 of `/proc/PID/stat` is the same start time in clock ticks,
//! moved by the time namespace's offset if there is one. A process is (tgid, `start_boot_ns`).

use crate::layout::layout;

/// Bytes of a command name, the final NUL included (`TASK_COMM_LEN`).
pub const COMM_BYTES: usize = 16;

/// As much of a command line as [`Exec`] carries.
pub const CMDLINE_BYTES: usize = 256;

/// Bytes of a cgroup's name, the final NUL included. Container runtimes use up to 90 (`cri-containerd-` and 64 digits);
/// a longer name is found by walking the hierarchy.
pub const CGROUP_NAME_BYTES: usize = 128;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// [`Kill`]
    Kill = 1,
    /// [`Mark`]
    Mark = 2,
    /// [`Exit`]
    Exit = 3,
    /// [`Fork`]
    Fork = 4,
    /// [`Exec`]
    Exec = 5,
    /// [`CgroupMade`]
    CgroupMade = 6,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::Kill, Self::Mark, Self::Exit, Self::Fork, Self::Exec, Self::CgroupMade];

    /// Whether a kill goes unreported without the record. Such records have a ring buffer of their own, which no number
    /// of forks fills.
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
    /// The kernel itself (`SEND_SIG_PRIV`): the OOM killer, and also the end of a pid namespace or a
    /// hard `RLIMIT_CPU`. Only a [`Mark`](super::Mark) makes it an OOM kill.
    pub const KERNEL: u8 = 1;
    /// A process, with kill(2) or the like. A parent-death signal and `cgroup.kill` count as this too:
    /// the kernel accounts them to whoever caused them.
    pub const USER: u8 = 2;
}

/// Values of [`Kill::outcome`], the kernel's `TRACE_SIGNAL_*` (include/trace/events/signal.h).
pub mod outcome {
    /// The signal was queued.
    pub const DELIVERED: u8 = 0;
    /// Nobody there to take it.
    pub const IGNORED: u8 = 1;
    /// A SIGKILL was pending already; this one changed nothing.
    pub const ALREADY_PENDING: u8 = 2;
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
        /// Thread group, what user space calls the process id.
        pub tgid: u32,
        /// Thread.
        pub tid: u32,
        /// When the thread group's leader started.
        pub start_boot_ns: u64,
    }
}

layout! {
    /// A memory map's figures as the OOM killer prints them.
    ///
    /// Pages are of the kernel's size (`sysconf(_SC_PAGESIZE)`). All 0 when the task had let go of its
    /// memory. Since 6.2 the kernel keeps the resident counts per CPU, and these are the central sums,
    /// as in its own log: each may be off by up to `max(32, 2 * cpus)` pages per CPU.
    pub struct Memory: 48 {
        /// `mm_struct.total_vm`
        pub total_vm_pages: u64,
        /// `MM_ANONPAGES`
        pub anon_pages: u64,
        /// `MM_FILEPAGES`
        pub file_pages: u64,
        /// `MM_SHMEMPAGES`
        pub shmem_pages: u64,
        /// `MM_SWAPENTS`
        pub swap_pages: u64,
        /// `mm_struct.pgtables_bytes`
        pub pgtables_bytes: u64,
    }
}

layout! {
    /// A SIGKILL was generated.
    pub struct Kill: 136 {
        /// [`Kind::Kill`]
        pub kind: u32,
        /// One of [`source`].
        pub source: u8,
        /// One of [`outcome`].
        pub outcome: u8,
        /// The victim's `oom_score_adj`.
        pub oom_score_adj: i16,
        /// Now.
        pub time_boot_ns: u64,
        /// Whom it goes to.
        pub victim: Task,
        /// Who caused it: for an OOM kill the process that asked for memory. 0 when it is not visible
        /// from our namespace.
        pub sender_tgid: u32,
        /// The victim's real user id, in the init user namespace.
        pub uid: u32,
        /// The victim's memory just before it is taken away.
        pub memory: Memory,
        /// Which memory map that is: the same for all who share it, and no more than a number to anybody else. 0
        /// when it has none any more.
        pub memory_map: u64,
        /// The cgroup that the victim's memory is charged to (`kernfs_node.id`, the inode number of its directory), 0 when
        /// it is not known. Unique within the hierarchy of the memory controller; it is not used again.
        pub cgroup_id: u64,
        /// The victim's name.
        pub comm: [u8; COMM_BYTES],
        /// The sender's name; empty unless `sender_tgid` is set.
        pub sender_comm: [u8; COMM_BYTES],
    }
}

layout! {
    /// The OOM killer marked a victim: right after its SIGKILL, by the same sender; without a
    /// SIGKILL if the victim was exiting anyway.
    pub struct Mark: 48 {
        /// [`Kind::Mark`]
        pub kind: u32,
        /// Who asked for memory; 0 when it is not visible from our namespace.
        pub trigger_tgid: u32,
        /// Now.
        pub time_boot_ns: u64,
        /// Who is marked; any thread of the group, not always the leader.
        pub victim: Task,
        /// Name of who asked; empty unless `trigger_tgid` is set.
        pub trigger_comm: [u8; COMM_BYTES],
    }
}

layout! {
    /// The last thread of a process that SIGKILL ended is exiting. When two threads exit at once there
    /// may be a record from each.
    pub struct Exit: 32 {
        /// [`Kind::Exit`]
        pub kind: u32,
        /// As wait(2) will report it; the low 7 bits are 9.
        pub exit_code: u32,
        /// Now.
        pub time_boot_ns: u64,
        /// The process, and the thread that went last.
        pub task: Task,
    }
}

layout! {
    /// A process was made; threads are not told. So far it has its parent's name and command line.
    pub struct Fork: 24 {
        /// [`Kind::Fork`]
        pub kind: u32,
        /// Its parent (`real_parent`); 0 when that is not visible from our namespace.
        pub parent_tgid: u32,
        /// The new process.
        pub child_tgid: u32,
        /// 0; fills up 8 bytes.
        pub reserved: u32,
        /// Now: when it started.
        pub start_boot_ns: u64,
    }
}

layout! {
    /// A process runs a new program.
    pub struct Exec: 304 {
        /// [`Kind::Exec`]
        pub kind: u32,
        /// How much of `cmdline` is filled. What is behind it is left over from other records.
        pub cmdline_bytes: u16,
        /// Bits of [`exec_flag`].
        pub flags: u16,
        /// Now.
        pub time_boot_ns: u64,
        /// The process.
        pub task: Task,
        /// Its new name.
        pub comm: [u8; COMM_BYTES],
        /// The arguments, each with its final NUL.
        pub cmdline: [u8; CMDLINE_BYTES],
    }
}

layout! {
    /// A process of ours made a cgroup in the hierarchy that memory is charged in.
    pub struct CgroupMade: 160 {
        /// [`Kind::CgroupMade`]
        pub kind: u32,
        /// How much of `name` is filled, without the final NUL; 0 when the name could not be read or is too long. What is
        /// behind it is left over from other records.
        pub name_bytes: u32,
        /// Now.
        pub time_boot_ns: u64,
        /// The new cgroup, see [`Kill::cgroup_id`].
        pub id: u64,
        /// The cgroup that it is in.
        pub parent_id: u64,
        /// The name of its directory.
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
