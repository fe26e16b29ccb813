//! What the running kernel says of its own structs, for the eBPF programs.
//!
//! The programs read `task_struct` and its neighbours by offsets that differ from build to build, and
//! Rust has no CO-RE relocations for them. So user space takes the offsets from the kernel's BTF
//! (`Documentation/bpf/btf.rst`, `include/uapi/linux/btf.h`) and hands them over as a global. The version
//! number would not do: vendors backport both members and tracepoint arguments.
//!
//! This file owns the format and the names. It loads nothing, logs nothing and decides nothing: what the
//! programs can do without is [`ABSENT`], anything else that is missing is an error that names it. All
//! but [`read_kernel_facts`] is a function of bytes, which may be any bytes: reads are checked, and walks
//! end, since their steps are counted. One pass notes where each type starts and which are known by name.

use std::path::{Path, PathBuf};
use std::{fs, io};

use krunner_common::{ABSENT, Offsets, upid};

/// `BTF_MAGIC`, in the writer's byte order.
const MAGIC: u16 = 0xEB9F;

// The `BTF_KIND_*` that we look into. From TYPEDEF to RESTRICT, and TYPE_TAG, they qualify another type.
const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const TYPEDEF: u32 = 8;
const RESTRICT: u32 = 11;
const FUNC_PROTO: u32 = 13;
const TYPE_TAG: u32 = 18;

/// By kind: how many bytes follow `struct btf_type`, and how many more for each entry. The
/// first, void, is never written.
#[rustfmt::skip]
const BODY_BYTES: [(usize, usize); 20] = [
    (0, 0), (4, 0), (0, 0), (12, 0), (0, 12), (0, 12), (0, 8), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0),
    (0, 0), (0, 8), (4, 0), (0, 12), (0, 0), (4, 0), (0, 0), (0, 12),
];

/// The kernel's names and qualifiers go four or five deep; a loop of them never ends.
const MODIFIERS_MAX: usize = 32;

/// Members that one lookup may pass, nested ones included: `task_struct` has some 300.
const MEMBERS_MAX: u32 = 1 << 16;

/// The type of what is called at `mark_victim`, a typedef (`include/trace/bpf_probe.h`).
const MARK_VICTIM: &str = "btf_trace_mark_victim";

/// Which cgroup controllers there are, in the order of `css_set.subsys`.
const CONTROLLERS: &str = "cgroup_subsys_id";

/// The helpers that BPF programs may call.
const HELPERS: &str = "bpf_func_id";

/// Bytes of a pointer.
const POINTER_BYTES: u32 = 8;

/// The types that we know by name.
#[rustfmt::skip]
const WANTED: [(u32, &str); 14] = [
    (STRUCT, "task_struct"), (STRUCT, "signal_struct"), (STRUCT, "mm_struct"), (STRUCT, "cred"), (STRUCT, "pid"),
    (STRUCT, "pid_namespace"), (STRUCT, "upid"), (STRUCT, "css_set"), (STRUCT, "cgroup_subsys_state"),
    (STRUCT, "cgroup"), (STRUCT, "kernfs_node"), (TYPEDEF, MARK_VICTIM), (ENUM, CONTROLLERS), (ENUM, HELPERS),
];

/// What the programs are to know of the running kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelFacts {
    /// Where the members are that the programs read; those that they cannot do without are there.
    pub offsets: Offsets,
    /// The tracepoint `mark_victim` passes a bare thread id, not the task.
    pub mark_victim_is_pid: bool,
    /// BPF programs may read the running task with plain loads (the helper `bpf_get_current_task_btf`).
    pub has_direct_reads: bool,
    /// Where `css_set` has the cgroup of the hierarchy of version 2, which begins with its own state; or [`ABSENT`].
    pub css_set_default: u32,
}

/// Why the kernel's BTF does not tell what the programs need.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel has none (`CONFIG_DEBUG_INFO_BTF`), or it cannot be read.
    #[error("cannot read the kernel's BTF from {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A container's mask lies over it.
    #[error("the kernel's BTF is empty as seen from here")]
    Empty,
    /// Not BTF, or that of a machine with the other byte order.
    #[error("no BTF in this machine's byte order: it starts with {0:#06x}")]
    Magic(u16),
    /// It contradicts itself, or has been cut short.
    #[error("malformed BTF: {0}")]
    Malformed(&'static str),
    /// A kind of type that this program does not know, and so not where the next type starts.
    #[error("BTF has types of the unknown kind {0}")]
    Kind(u32),
    /// A type is missing.
    #[error("the kernel has no type {0}")]
    NoType(&'static str),
    /// A member is missing, has no address, or its struct is another than it used to be.
    #[error("the kernel has no member {0}.{1}, or as a bit field")]
    NoMember(&'static str, &'static str),
    /// The one layout that the programs have built in is not the kernel's.
    #[error("the kernel's struct upid is another: offsets of nr and ns, and size: {0:?}")]
    Upid([u32; 3]),
    /// The first argument of the tracepoint is something else.
    #[error("the kernel's mark_victim passes neither a pid nor a task_struct")]
    MarkVictim,
}

/// Reads the BTF in `file`: for the running kernel, `/sys/kernel/btf/vmlinux`.
pub fn read_kernel_facts(file: &Path) -> Result<KernelFacts, BtfError> {
    let btf = fs::read(file).map_err(|error| BtfError::Read(file.to_owned(), error))?;
    if btf.is_empty() { Err(BtfError::Empty) } else { kernel_facts(&btf) }
}

/// Looks up in `btf` all that the programs need.
pub fn kernel_facts(btf: &[u8]) -> Result<KernelFacts, BtfError> {
    let btf = Btf::parse(btf)?;
    let size = btf.named("upid")?.size_or_id;
    let layout = [btf.offset("upid", "nr")?, btf.offset("upid", "ns")?, size];
    if layout != [upid::NR, upid::NS, upid::SIZE] {
        return Err(BtfError::Upid(layout));
    }
    Ok(KernelFacts {
        offsets: btf.offsets()?,
        mark_victim_is_pid: btf.mark_victim_is_pid()?,
        css_set_default: or_absent(btf.css_set_default(), ABSENT)?,
        has_direct_reads: or_absent(btf.enumerator(HELPERS, "BPF_FUNC_get_current_task_btf").map(|_| true), false)?,
    })
}

/// One type: its `struct btf_type`, and where in the type section its body is.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    has_bit_fields: bool,
    entries: u32,
    size_or_id: u32,
    body: usize,
}

struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where in `types` each type is; the first one has the id 1, for 0 is `void`.
    starts: Vec<u32>,
    /// The first type of that name, for each of [`WANTED`].
    wanted: [Option<Type>; WANTED.len()],
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, BtfError> {
        let magic = bytes.first_chunk().map_or(0, |magic| u16::from_ne_bytes(*magic));
        if magic != MAGIC {
            return Err(BtfError::Magic(magic));
        }
        let (types, strings) = (section(bytes, 8)?, section(bytes, 16)?);
        let mut btf = Self { types, strings, starts: Vec::new(), wanted: [None; WANTED.len()] };
        let mut at = 0;
        while at < types.len() {
            let (found, next) = btf.type_at(at)?;
            btf.starts.push(u32::try_from(at).map_err(|_| BtfError::Malformed("too many types"))?);
            // Most types are of other kinds, and many have no name.
            if matches!(found.kind, STRUCT | TYPEDEF | ENUM) && found.name != 0 {
                btf.keep_if_wanted(found);
            }
            at = next;
        }
        Ok(btf)
    }

    fn keep_if_wanted(&mut self, found: Type) {
        let is_wanted = |(kind, name): &(u32, &str)| found.kind == *kind && is_text(self.strings, found.name, name);
        if let Some(index) = WANTED.iter().position(is_wanted) {
            self.wanted[index].get_or_insert(found);
        }
    }

    /// The type at `at`, and where the next one is.
    fn type_at(&self, at: usize) -> Result<(Type, usize), BtfError> {
        let [name, info, size_or_id] = words(self.types, at)?;
        // Newer headers give 24 bits to the entries and 7 to the kind; the older 16 and 5, zeros above.
        let (entries, kind) = (info & 0x00ff_ffff, (info >> 24) & 0x7f);
        let (fixed, each) = BODY_BYTES.get(kind as usize).filter(|_| kind != 0).ok_or(BtfError::Kind(kind))?;
        let body = at + 12;
        let found = Type { name, kind, has_bit_fields: info >> 31 == 1, entries, size_or_id, body };
        Ok((found, body + fixed + each * entries as usize))
    }

    fn named(&self, name: &'static str) -> Result<Type, BtfError> {
        let found = WANTED.iter().zip(self.wanted).find(|((_, wanted), _)| *wanted == name);
        found.and_then(|(_, found)| found).ok_or(BtfError::NoType(name))
    }

    /// The type behind its names and qualifiers.
    fn peel(&self, mut id: u32) -> Result<Type, BtfError> {
        for _ in 0..MODIFIERS_MAX {
            let start = (id as usize).checked_sub(1).and_then(|index| self.starts.get(index));
            let (found, _) =
                self.type_at(*start.ok_or(BtfError::Malformed("it refers to a type that it lacks"))? as usize)?;
            if !matches!(found.kind, TYPEDEF..=RESTRICT | TYPE_TAG) {
                return Ok(found);
            }
            id = found.size_or_id;
        }
        Err(BtfError::Malformed("a type has no end of names"))
    }

    /// Where in the struct `outer`, which must be called `name`, or in the unnamed structs and unions
    /// within, `member` is, and the id of its type. The offset is in bytes, and `base` is added to it.
    fn find(&self, outer: Type, base: u32, name: &'static str, member: &'static str) -> Result<(u32, u32), BtfError> {
        if outer.kind != STRUCT || !is_text(self.strings, outer.name, name) {
            return Err(BtfError::NoMember(name, member));
        }
        let mut left = MEMBERS_MAX;
        let mut unnamed = vec![(outer, base)];
        while let Some((within, base)) = unnamed.pop() {
            for index in 0..within.entries as usize {
                left = left.checked_sub(1).ok_or(BtfError::Malformed("a struct has no end of members"))?;
                let [called, type_id, bits] = words(self.types, within.body + 12 * index)?;
                // Where a struct has bit fields, the top byte is the width of each; they are passed over.
                let is_bit_field = within.has_bit_fields && bits >> 24 != 0 || !bits.is_multiple_of(8);
                let offset = (bits / 8).checked_add(base).filter(|offset| !is_bit_field && *offset != ABSENT);
                let Some(offset) = offset else { continue };
                if is_text(self.strings, called, member) {
                    return Ok((offset, type_id));
                }
                if is_text(self.strings, called, "") {
                    let inner = self.peel(type_id)?;
                    unnamed.extend(matches!(inner.kind, STRUCT | UNION).then_some((inner, offset)));
                }
            }
        }
        Err(BtfError::NoMember(name, member))
    }

    fn member(&self, name: &'static str, member: &'static str) -> Result<(u32, u32), BtfError> {
        self.find(self.named(name)?, 0, name, member)
    }

    fn offset(&self, name: &'static str, member: &'static str) -> Result<u32, BtfError> {
        Ok(self.member(name, member)?.0)
    }

    fn offsets(&self) -> Result<Offsets, BtfError> {
        let task = |member| self.offset("task_struct", member);
        let optional = |name, member| or_absent(self.offset(name, member), ABSENT);
        let (base, common) = self.member("pid_namespace", "ns")?;
        let (mm_rss, mm_rss_stride) = or_absent(self.rss(), (ABSENT, ABSENT))?;
        Ok(Offsets {
            task_group_leader: task("group_leader")?,
            task_thread_pid: task("thread_pid")?,
            // Before 5.5 it had the first name; never both.
            task_start_boottime: task("real_start_time").or_else(|_| task("start_boottime"))?,
            task_signal: task("signal")?,
            task_exit_code: task("exit_code")?,
            task_pid: task("pid")?,
            task_tgid: task("tgid")?,
            pid_level: self.offset("pid", "level")?,
            pid_numbers: self.offset("pid", "numbers")?,
            pid_namespace_inum: self.find(self.peel(common)?, base, "ns_common", "inum")?.0,
            signal_live: self.offset("signal_struct", "live")?,
            signal_group_exit_code: optional("signal_struct", "group_exit_code")?,
            signal_oom_score_adj: optional("signal_struct", "oom_score_adj")?,
            task_real_parent: optional("task_struct", "real_parent")?,
            task_comm: optional("task_struct", "comm")?,
            task_real_cred: optional("task_struct", "real_cred")?,
            cred_uid: optional("cred", "uid")?,
            task_mm: optional("task_struct", "mm")?,
            mm_total_vm: optional("mm_struct", "total_vm")?,
            mm_rss,
            mm_rss_stride,
            mm_pgtables_bytes: optional("mm_struct", "pgtables_bytes")?,
            mm_arg_start: optional("mm_struct", "arg_start")?,
            mm_arg_end: optional("mm_struct", "arg_end")?,
            task_cgroups: optional("task_struct", "cgroups")?,
            css_set_memory: or_absent(self.css_set_memory(), ABSENT)?,
            css_cgroup: optional("cgroup_subsys_state", "cgroup")?,
            css_parent: optional("cgroup_subsys_state", "parent")?,
            cgroup_kn: optional("cgroup", "kn")?,
            kernfs_node_id: optional("kernfs_node", "id")?,
            cgroup_root: optional("cgroup", "root")?,
            cgroup_self: optional("cgroup", "self")?,
            kernfs_node_name: optional("kernfs_node", "name")?,
            ..Offsets::UNKNOWN
        }
        .with_window())
    }

    /// Where in `css_set` the pointer for the memory controller is: the array's element of that number.
    fn css_set_memory(&self) -> Result<u32, BtfError> {
        let (subsys, index) = (self.offset("css_set", "subsys")?, self.enumerator(CONTROLLERS, "memory_cgrp_id")?);
        let offset = index.checked_mul(POINTER_BYTES).and_then(|bytes| bytes.checked_add(subsys));
        offset.filter(|offset| *offset != ABSENT).ok_or(BtfError::Malformed("a controller has no place"))
    }

    /// A cgroup of version 2 stands for its own state, for it begins with that: then there is nothing to add to
    /// the pointer.
    fn css_set_default(&self) -> Result<u32, BtfError> {
        match self.offset("cgroup", "self")? {
            0 => self.offset("css_set", "dfl_cgrp"),
            _ => Err(BtfError::NoMember("cgroup", "self")),
        }
    }

    /// The value that a name has in the enum `name`.
    fn enumerator(&self, name: &'static str, called: &'static str) -> Result<u32, BtfError> {
        let within = self.named(name)?;
        for index in 0..within.entries as usize {
            let [text, value] = words(self.types, within.body + 8 * index)?;
            if is_text(self.strings, text, called) {
                return Ok(value);
            }
        }
        Err(BtfError::NoMember(name, called))
    }

    /// Where the first counter of `mm_struct.rss_stat` is, and how far it is to the next: an array of
    /// `percpu_counter` since 6.2, before that a struct `mm_rss_stat` around an array of longs.
    fn rss(&self) -> Result<(u32, u32), BtfError> {
        let (base, stat) = self.member("mm_struct", "rss_stat")?;
        let stat = self.peel(stat)?;
        if stat.kind != ARRAY {
            return Ok((self.find(stat, base, "mm_rss_stat", "count")?.0, 8));
        }
        let [element] = words(self.types, stat.body)?;
        let counter = self.peel(element)?;
        Ok((self.find(counter, base, "percpu_counter", "count")?.0, counter.size_or_id))
    }

    /// The typedef is of a pointer to a function, whose first parameter is the tracer's own `void *`.
    fn mark_victim_is_pid(&self) -> Result<bool, BtfError> {
        let pointer = self.peel(self.named(MARK_VICTIM)?.size_or_id)?;
        let pointee = |pointer: Type| if pointer.kind == PTR { self.peel(pointer.size_or_id).ok() } else { None };
        let called = pointee(pointer).filter(|called| called.kind == FUNC_PROTO && called.entries >= 2);
        let [_, _, _, second] = words(self.types, called.ok_or(BtfError::MarkVictim)?.body)?;
        let victim = self.peel(second)?;
        let is_task = pointee(victim).is_some_and(|task| is_text(self.strings, task.name, "task_struct"));
        if is_task || victim.kind == INT { Ok(!is_task) } else { Err(BtfError::MarkVictim) }
    }
}

/// What we can do without is no error.
fn or_absent<T>(found: Result<T, BtfError>, absent: T) -> Result<T, BtfError> {
    let is_missing = matches!(found, Err(BtfError::NoType(_) | BtfError::NoMember(..)));
    if is_missing { Ok(absent) } else { found }
}

fn words<const N: usize>(bytes: &[u8], at: usize) -> Result<[u32; N], BtfError> {
    let words = bytes.get(at..).and_then(|rest| rest.as_chunks().0.first_chunk::<N>());
    Ok(words.ok_or(BtfError::Malformed("it is cut off"))?.map(u32::from_ne_bytes))
}

/// The section whose offset, from the end of the header, and length are at `at` in the header.
fn section(bytes: &[u8], at: usize) -> Result<&[u8], BtfError> {
    let ([header_bytes], [start, len]) = (words(bytes, 4)?, words(bytes, at)?);
    let rest = bytes.get(header_bytes as usize..).and_then(|rest| rest.get(start as usize..));
    rest.and_then(|rest| rest.get(..len as usize)).ok_or(BtfError::Malformed("a section is cut off"))
}

/// Whether the NUL-terminated string at `at` is `text`.
fn is_text(strings: &[u8], at: u32, text: &str) -> bool {
    let rest = strings.get(at as usize..).and_then(|found| found.strip_prefix(text.as_bytes()));
    rest.is_some_and(|rest| rest.first() == Some(&0))
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
