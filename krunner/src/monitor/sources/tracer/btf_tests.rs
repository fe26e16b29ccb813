//! BTF of made-up kernels, and that of the running one.
#![expect(clippy::cast_possible_truncation, reason = "a few kilobytes")]

use proptest::prelude::*;

use super::*;

/// Writes BTF: the types, the strings, how many types, the member to leave out.
struct Builder(Vec<u32>, Vec<u8>, u32, &'static str);

impl Builder {
    fn add(&mut self, (kind, name, size_or_id): (u32, &str, u32), entries: usize, body: &[u32]) -> u32 {
        let name_at = self.1.len() as u32;
        self.1.extend(name.bytes().chain([0]));
        self.0.extend([name_at, kind << 24 | entries as u32, size_or_id]);
        self.0.extend(body);
        self.2 += 1;
        self.2
    }

    /// Members are name, type, offset in bytes.
    fn group(&mut self, of: (u32, &str, u32), members: &[(&str, u32, u32)]) -> u32 {
        let mut body = Vec::new();
        for (name, type_id, offset_bytes) in members.iter().filter(|member| member.0 != self.3) {
            body.extend([self.1.len() as u32, *type_id, offset_bytes * 8]);
            self.1.extend(name.bytes().chain([0]));
        }
        self.add(of, body.len() / 3, &body)
    }

    fn values(&mut self, name: &str, values: &[(&str, u32)]) -> u32 {
        let mut body = Vec::new();
        for (name, value) in values.iter().filter(|value| value.0 != self.3) {
            body.extend([self.1.len() as u32, *value]);
            self.1.extend(name.bytes().chain([0]));
        }
        self.add((ENUM, name, 4), body.len() / 2, &body)
    }

    fn finish(self) -> Vec<u8> {
        let (types_len, strings_len) = (4 * self.0.len() as u32, self.1.len() as u32);
        let header = [u32::from_ne_bytes([0x9f, 0xeb, 1, 0]), 24, 0, types_len, types_len, strings_len];
        header.into_iter().chain(self.0).flat_map(u32::to_ne_bytes).chain(self.1).collect()
    }
}

/// A kernel of 5.10's kind or of today's, without one member. Every member is inside something unnamed,
/// and there is a bit field, `execve`.
fn kernel(old: bool, without: &'static str) -> Vec<u8> {
    let mut to = Builder(Vec::new(), vec![0], 0, without);
    let int = to.add((INT, "int", 4), 0, &[32]);
    let constant = to.add((10, "", int), 0, &[]);
    let number = to.add((TYPEDEF, "pid_t", constant), 0, &[]);
    to.add((7, "task_struct", 0), 0, &[]);
    let boot = if old { "real_start_time" } else { "start_boottime" };
    let names =
        ["group_leader", "thread_pid", boot, "signal", "exit_code", "pid", "tgid", "real_parent", "comm", "cgroups"];
    let inner: Vec<_> = names.iter().zip(0..).map(|(name, index)| (*name, number, 8 * index)).collect();
    let inner = to.group((UNION, "", 80), &inner);
    let outer = [("", inner, 128), ("", int, 32 << 21), ("execve", int, 1 << 21), ("mm", int, 16)];
    let task = to.group((STRUCT | 0x80, "task_struct", 200), &outer);
    to.group((STRUCT, "signal_struct", 12), &[("live", int, 4), ("oom_score_adj", int, 8)]);
    to.group((STRUCT, "pid", 96), &[("level", int, 4), ("numbers", int, 80)]);
    to.group((STRUCT, "upid", 16), &[("nr", int, 0), ("ns", int, 8)]);
    let common = to.group((STRUCT, "ns_common", 24), &[("inum", int, 16)]);
    to.group((STRUCT, "pid_namespace", 200), &[("ns", common, 100)]);
    let (name, size) = if old { ("mm_rss_stat", 32) } else { ("percpu_counter", 40) };
    let counter = to.group((STRUCT, name, size), &[("count", int, if old { 0 } else { 8 })]);
    let stat = if old { counter } else { to.add((ARRAY, "", 0), 0, &[counter, int, 4]) };
    let inner = to.group((STRUCT, "", 600), &[("rss_stat", stat, 400)]);
    to.group((STRUCT, "mm_struct", 800), &[("", inner, 64)]);
    let state = to.group((STRUCT, "cgroup_subsys_state", 40), &[("cgroup", int, 0), ("parent", int, 32)]);
    let subsys = to.add((ARRAY, "", 0), 0, &[state, int, 5]);
    to.group((STRUCT, "css_set", 80), &[("subsys", subsys, 16), ("dfl_cgrp", int, 72)]);
    to.group((STRUCT, "cgroup", 400), &[("self", state, 0), ("kn", int, 240), ("root", int, 360)]);
    to.group((STRUCT, "kernfs_node", 120), &[("name", int, 16), ("id", int, 96)]);
    let usage = to.group((STRUCT, "page_counter", 64), &[("usage", int, 0), ("max", int, 40)]);
    let union = to.group((UNION, "", 64), &[("swap", usage, 0), ("memsw", usage, 0)]);
    to.group((STRUCT, "mem_cgroup", 400), &[("css", state, 8), ("memory", usage, 100), ("", union, 200)]);
    to.values("cgroup_subsys_id", &[("cpu_cgrp_id", 0), ("memory_cgrp_id", 4)]);
    let helper = if old { "BPF_FUNC_unspec" } else { "BPF_FUNC_get_current_task_btf" };
    to.values("bpf_func_id", &[("BPF_FUNC_map_lookup_elem", 1), (helper, 158)]);
    let pointer = to.add((PTR, "", task), 0, &[]);
    let called = to.add((FUNC_PROTO, "", 0), 2, &[0, pointer, 0, if old { number } else { pointer }]);
    let tracer = to.add((PTR, "", called), 0, &[]);
    to.add((TYPEDEF, MARK_VICTIM, tracer), 0, &[]);
    to.finish()
}

#[test]
fn both_kinds_of_kernel_are_understood() {
    for (old, rss) in [(true, (464, 8)), (false, (472, 40))] {
        let KernelFacts { offsets, mark_victim_is_pid, has_direct_reads, css_set_default } =
            kernel_facts(&kernel(old, "none")).unwrap();
        assert_eq!((mark_victim_is_pid, has_direct_reads, css_set_default), (old, !old, 72));
        assert_eq!((offsets.mm_rss, offsets.mm_rss_stride), rss);
        assert_eq!([offsets.task_start_boottime, offsets.task_comm, offsets.task_mm], [144, 192, 16]);
        assert_eq!([offsets.css_set_memory, offsets.cgroup_kn, offsets.kernfs_node_id], [48, 240, 96]);
        assert_eq!([offsets.cgroup_root, offsets.cgroup_self, offsets.kernfs_node_name], [360, 0, 16]);
        assert_eq!([offsets.css_memory_usage, offsets.css_memory_max, offsets.css_memsw_max], [92, 132, 232]);
        assert_eq!(offsets.css_set_charged, 48);
        assert!(offsets.has_task_cgroup());
        assert_eq!(offsets.task_window, 128);
        assert_eq!([offsets.pid_namespace_inum, offsets.cred_uid, offsets.mm_arg_end], [116, ABSENT, ABSENT]);
    }
}

#[test]
fn what_is_missing_is_named_if_it_is_needed() {
    let told = |without| kernel_facts(&kernel(false, without)).map_err(|error| error.to_string());
    let absent = |member| Err(format!("the kernel's BTF has no member {member} (or it is a bit field)"));
    assert_eq!(told("start_boottime"), absent("task_struct.start_boottime"));
    assert_eq!(told("inum"), absent("ns_common.inum"));
    assert_eq!(told("rss_stat").unwrap().offsets.mm_rss_stride, ABSENT);
    for member in ["cgroups", "subsys", "memory_cgrp_id", "cgroup", "parent", "kn", "id"] {
        assert!(!told(member).unwrap().offsets.has_task_cgroup(), "{member}");
    }
    let bytes = kernel(false, "none");
    assert!(Btf::parse(&bytes).unwrap().offset("task_struct", "execve").is_err());
}

#[test]
fn the_running_kernel_is_understood() {
    // Without BTF the loader reports an error, and the fallback is used.
    let Ok(btf) = fs::read("/sys/kernel/btf/vmlinux") else { return };
    let offsets = kernel_facts(&btf).unwrap().offsets;
    assert!(offsets.has_task_cgroup() && offsets.task_window != ABSENT);
    assert!(![offsets.task_comm, offsets.mm_rss, offsets.css_memory_usage, offsets.kernfs_node_name].contains(&ABSENT));
    assert_eq!(offsets.task_tgid, offsets.task_pid + 4);
    assert_eq!(offsets.mm_arg_end, offsets.mm_arg_start + 8);
    assert!(offsets.task_comm < 16_384 && offsets.pid_numbers.is_multiple_of(8));
}

proptest! {
    #[test]
    fn no_bytes_are_a_panic(changes: Vec<(prop::sample::Index, u8)>, cut: prop::sample::Index) {
        let mut bytes = kernel(changes.len() % 2 == 0, "none");
        for (at, byte) in changes {
            *at.get_mut(&mut bytes) = byte;
        }
        let _ = kernel_facts(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        let _ = kernel_facts(&bytes);
    }
}
