//! Reads struct offsets from the running kernel's BTF, for the eBPF programs.
//!
//! The programs read `task_struct` and related structs at offsets that differ between kernel builds, and Rust has no
//! CO-RE relocations. So user space takes the offsets from the kernel's BTF (`Documentation/bpf/btf.rst`,
//! `include/uapi/linux/btf.h`) and passes them as a global. The kernel version would not do: vendors backport both
//! members and tracepoint arguments.
//!
//! Optional members that are missing become [`ABSENT`]; any other missing member is an error that names it. Everything
//! except [`read_kernel_facts`] is a pure function of bytes, which may be malformed: reads are bounds-checked, and
//! walks count their steps. One pass indexes where each type starts and finds the types known by name.

use std::path::{Path, PathBuf};
use std::{fs, io};

use krunner_common::{ABSENT, Offsets, upid};

/// `BTF_MAGIC`, in the byte order of the writer.
const MAGIC: u16 = 0xEB9F;

// The `BTF_KIND_*` that are interpreted. TYPEDEF to RESTRICT and TYPE_TAG modify another type.
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

/// By kind: the number of bytes after `struct btf_type`, and the number of bytes for each entry. Kind 0, void, is never
/// written.
#[rustfmt::skip]
const BODY_BYTES: [(usize, usize); 20] = [
    (0, 0), (4, 0), (0, 0), (12, 0), (0, 12), (0, 12), (0, 8), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0),
    (0, 0), (0, 8), (4, 0), (0, 12), (0, 0), (4, 0), (0, 0), (0, 12),
];

/// Maximum depth of typedefs and qualifiers, to detect cycles. The kernel uses four or five.
const MODIFIERS_MAX: usize = 32;

/// Maximum number of members that one lookup visits, including nested ones: `task_struct` has about 300.
const MEMBERS_MAX: u32 = 1 << 16;

/// The typedef of the `mark_victim` tracepoint's prototype (`include/trace/bpf_probe.h`).
const MARK_VICTIM: &str = "btf_trace_mark_victim";

/// The enum of cgroup controllers, in the order of `css_set.subsys`.
const CONTROLLERS: &str = "cgroup_subsys_id";

/// The enum of BPF helpers.
const HELPERS: &str = "bpf_func_id";

/// Size of a pointer in bytes.
const POINTER_BYTES: u32 = 8;

/// The types that are looked up by name.
#[rustfmt::skip]
const WANTED: [(u32, &str); 16] = [
    (STRUCT, "task_struct"), (STRUCT, "signal_struct"), (STRUCT, "mm_struct"), (STRUCT, "cred"), (STRUCT, "pid"),
    (STRUCT, "pid_namespace"), (STRUCT, "upid"), (STRUCT, "css_set"), (STRUCT, "cgroup_subsys_state"),
    (STRUCT, "cgroup"), (STRUCT, "kernfs_node"), (STRUCT, "mem_cgroup"), (STRUCT, "page_counter"), (TYPEDEF, MARK_VICTIM), (ENUM, CONTROLLERS), (ENUM, HELPERS),
];

/// Properties of the running kernel that the programs depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KernelFacts {
    /// Offsets of the members that the programs read; the required ones are present.
    pub offsets: Offsets,
    /// The tracepoint `mark_victim` passes a thread id instead of the task.
    pub mark_victim_is_pid: bool,
    /// BPF programs can read the running task with plain loads (the helper `bpf_get_current_task_btf` exists).
    pub has_direct_reads: bool,
    /// Offset in `css_set` of the cgroup in the v2 hierarchy, which begins with its own `css`; or [`ABSENT`].
    pub css_set_default: u32,
}

/// Why the kernel's BTF cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BtfError {
    /// The kernel has none (`CONFIG_DEBUG_INFO_BTF`), or it cannot be read.
    #[error("cannot read the kernel's BTF from {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The file is empty, as when a container runtime masks it.
    #[error("the kernel's BTF file is empty (masked by the container runtime?)")]
    Empty,
    /// Not BTF, or BTF in the opposite byte order.
    #[error("not BTF in native byte order: magic is {0:#06x}")]
    Magic(u16),
    /// Inconsistent or truncated BTF.
    #[error("malformed BTF: {0}")]
    Malformed(&'static str),
    /// An unknown kind, whose size and therefore the start of the next type is unknown.
    #[error("unknown BTF kind {0}")]
    Kind(u32),
    /// A required type is missing.
    #[error("the kernel's BTF has no type {0}")]
    NoType(&'static str),
    /// A required member is missing, is a bit field, or is no longer in the expected struct.
    #[error("the kernel's BTF has no member {0}.{1} (or it is a bit field)")]
    NoMember(&'static str, &'static str),
    /// The layout of `struct upid`, which is compiled into the programs, differs.
    #[error("unexpected layout of struct upid: [offset of nr, offset of ns, size] = {0:?}")]
    Upid([u32; 3]),
    /// The tracepoint's first argument has an unexpected type.
    #[error("the first argument of mark_victim is neither a pid nor a task_struct")]
    MarkVictim,
}

/// Reads the BTF in `file`: for the running kernel, `/sys/kernel/btf/vmlinux`.
pub(crate) fn read_kernel_facts(file: &Path) -> Result<KernelFacts, BtfError> {
    let btf = fs::read(file).map_err(|error| BtfError::Read(file.to_owned(), error))?;
    if btf.is_empty() { Err(BtfError::Empty) } else { kernel_facts(&btf) }
}

/// Looks up everything that the programs need in `btf`.
pub(crate) fn kernel_facts(btf: &[u8]) -> Result<KernelFacts, BtfError> {
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

/// A `struct btf_type`, and the offset of its body in the type section.
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
    /// Offset of each type in `types`. The first one has the id 1, because 0 is `void`.
    starts: Vec<u32>,
    /// The first type with the name, for each of [`WANTED`].
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

    /// The type at `at`, and the offset of the next one.
    fn type_at(&self, at: usize) -> Result<(Type, usize), BtfError> {
        let [name, info, size_or_id] = words(self.types, at)?;
        // Newer kernels use 24 bits for the number of entries and 7 for the kind; older ones 16 and 5, with zeros
        // above.
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

    /// Strips typedefs and qualifiers from a type.
    fn peel(&self, mut id: u32) -> Result<Type, BtfError> {
        for _ in 0..MODIFIERS_MAX {
            let start = (id as usize).checked_sub(1).and_then(|index| self.starts.get(index));
            let (found, _) = self.type_at(*start.ok_or(BtfError::Malformed("reference to a missing type"))? as usize)?;
            if !matches!(found.kind, TYPEDEF..=RESTRICT | TYPE_TAG) {
                return Ok(found);
            }
            id = found.size_or_id;
        }
        Err(BtfError::Malformed("cyclic type modifiers"))
    }

    /// Byte offset plus `base`, and type id, of `member` in the struct `outer` with the name `name`, or in unnamed
    /// structs and unions inside it.
    fn find(&self, outer: Type, base: u32, name: &'static str, member: &'static str) -> Result<(u32, u32), BtfError> {
        if outer.kind != STRUCT || !is_text(self.strings, outer.name, name) {
            return Err(BtfError::NoMember(name, member));
        }
        let mut left = MEMBERS_MAX;
        let mut unnamed = vec![(outer, base)];
        while let Some((within, base)) = unnamed.pop() {
            for index in 0..within.entries as usize {
                left = left.checked_sub(1).ok_or(BtfError::Malformed("too many nested members"))?;
                let [called, type_id, bits] = words(self.types, within.body + 12 * index)?;
                // In a struct with bit fields, the top byte is the field's width. Bit fields are skipped.
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
        let counter = |name, member| or_absent(self.memory_counter(name, member), ABSENT);
        let css_set_memory = or_absent(self.css_set_memory(), ABSENT)?;
        let (mm_rss, mm_rss_stride) = or_absent(self.rss(), (ABSENT, ABSENT))?;
        Ok(Offsets {
            task_group_leader: task("group_leader")?,
            task_thread_pid: task("thread_pid")?,
            // Called `real_start_time` before 5.5.
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
            css_set_memory,
            css_set_charged: css_set_memory,
            css_cgroup: optional("cgroup_subsys_state", "cgroup")?,
            css_parent: optional("cgroup_subsys_state", "parent")?,
            cgroup_kn: optional("cgroup", "kn")?,
            kernfs_node_id: optional("kernfs_node", "id")?,
            cgroup_root: optional("cgroup", "root")?,
            cgroup_self: optional("cgroup", "self")?,
            kernfs_node_name: optional("kernfs_node", "name")?,
            css_memory_usage: counter("memory", "usage")?,
            css_memory_max: counter("memory", "max")?,
            css_memsw_usage: counter("memsw", "usage")?,
            css_memsw_max: counter("memsw", "max")?,
            ..Offsets::UNKNOWN
        }
        .with_window())
    }

    /// Offset in `css_set` of the memory controller's pointer, an element of the array `subsys`.
    fn css_set_memory(&self) -> Result<u32, BtfError> {
        let (subsys, index) = (self.offset("css_set", "subsys")?, self.enumerator(CONTROLLERS, "memory_cgrp_id")?);
        let offset = index.checked_mul(POINTER_BYTES).and_then(|bytes| bytes.checked_add(subsys));
        offset.filter(|offset| *offset != ABSENT).ok_or(BtfError::Malformed("controller index out of range"))
    }

    /// Offset of a member of a `mem_cgroup` counter, relative to `mem_cgroup.css`.
    fn memory_counter(&self, name: &'static str, member: &'static str) -> Result<u32, BtfError> {
        let state = self.offset("mem_cgroup", "css")?;
        let (counter, _) = self.member("mem_cgroup", name)?;
        let offset = counter.checked_add(self.offset("page_counter", member)?).and_then(|at| at.checked_sub(state));
        offset.ok_or(BtfError::NoMember("mem_cgroup", name))
    }

    /// A v2 `cgroup` begins with its own `css`, so a pointer to one is a pointer to the other. Fails if the kernel
    /// differs.
    fn css_set_default(&self) -> Result<u32, BtfError> {
        match self.offset("cgroup", "self")? {
            0 => self.offset("css_set", "dfl_cgrp"),
            _ => Err(BtfError::NoMember("cgroup", "self")),
        }
    }

    /// The value of an enumerator of the enum `name`.
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

    /// Offset of the first counter of `mm_struct.rss_stat`, and the distance between counters: an array of
    /// `percpu_counter` since 6.2, before that a struct `mm_rss_stat` with an array of longs.
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

    /// The typedef is a function pointer whose first parameter is the tracer's `void *`.
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

/// Makes a missing type or member a default instead of an error.
fn or_absent<T>(found: Result<T, BtfError>, absent: T) -> Result<T, BtfError> {
    let is_missing = matches!(found, Err(BtfError::NoType(_) | BtfError::NoMember(..)));
    if is_missing { Ok(absent) } else { found }
}

fn words<const N: usize>(bytes: &[u8], at: usize) -> Result<[u32; N], BtfError> {
    let words = bytes.get(at..).and_then(|rest| rest.as_chunks().0.first_chunk::<N>());
    Ok(words.ok_or(BtfError::Malformed("truncated"))?.map(u32::from_ne_bytes))
}

/// The section whose offset (from the end of the header) and length are at `at` in the header.
fn section(bytes: &[u8], at: usize) -> Result<&[u8], BtfError> {
    let ([header_bytes], [start, len]) = (words(bytes, 4)?, words(bytes, at)?);
    let rest = bytes.get(header_bytes as usize..).and_then(|rest| rest.get(start as usize..));
    rest.and_then(|rest| rest.get(..len as usize)).ok_or(BtfError::Malformed("truncated section"))
}

/// Whether the NUL-terminated string at `at` is `text`.
fn is_text(strings: &[u8], at: u32, text: &str) -> bool {
    let rest = strings.get(at as usize..).and_then(|found| found.strip_prefix(text.as_bytes()));
    rest.is_some_and(|rest| rest.first() == Some(&0))
}

#[cfg(test)]
#[path = "btf_tests.rs"]
mod tests;
