//! Where the memory was, from the text of the kernel's files.

use super::*;

const MIB: u64 = 1 << 20;

const V2: &str = "anon 104857600\nfile 31457280\nkernel 5242880\nkernel_stack 1048576\npagetables 1048576\nsock 2097152\n\
                  shmem 20971520\ninactive_file 8388608\nslab 2097152\n";

fn v2(stat: &str, total: u64) -> MemoryUsage {
    MemoryUsage::read(UsageText { version: 2, stat, total_bytes: total, kernel_bytes: None, tcp_bytes: None })
}

#[test]
fn parts_of_version_2_add_up_to_the_total() {
    let usage = v2(V2, 140 * MIB);
    assert_eq!((usage.anon_bytes, usage.shmem_bytes), (Some(100 * MIB), Some(20 * MIB)));
    assert_eq!(usage.page_cache_bytes, Some(10 * MIB), "without shmem");
    assert_eq!(usage.kernel.unwrap().total_bytes, 7 * MIB, "with sockets");
    assert_eq!(usage.unexplained_bytes, 3 * MIB);
}

#[test]
fn kernel_before_5_18_is_the_sum_of_its_parts() {
    let old = V2.replace("kernel 5242880\n", "");
    assert_eq!(v2(&old, 140 * MIB).kernel.unwrap().total_bytes, 6 * MIB);
    assert_eq!(v2("anon 7\n", 9).kernel, None);
}

#[test]
fn parts_of_version_1_have_other_names() {
    let stat = "cache 1\nrss 2\ntotal_cache 31457280\ntotal_rss 104857600\ntotal_shmem 20971520\ntotal_swap 4096\n";
    let text =
        UsageText { version: 1, stat, total_bytes: 140 * MIB, kernel_bytes: Some(6 * MIB), tcp_bytes: Some(MIB) };
    let usage = MemoryUsage::read(text);
    assert_eq!((usage.anon_bytes, usage.page_cache_bytes), (Some(100 * MIB), Some(10 * MIB)));
    assert_eq!((usage.kernel.unwrap().total_bytes, usage.swap_bytes), (7 * MIB, Some(4096)));
    assert_eq!(usage.unexplained_bytes, 3 * MIB);
}

#[test]
fn freed_memory_is_added_to_its_kind() {
    let usage = v2(V2, 140 * MIB).at_kill(Some(256 * MIB), 100 * MIB, true);
    assert_eq!((usage.total_bytes, usage.anon_bytes), (256 * MIB, Some(200 * MIB)));
    assert_eq!((usage.freed_bytes, usage.unexplained_bytes), (100 * MIB, 19 * MIB));
    let unknown = v2(V2, 140 * MIB).at_kill(None, 100 * MIB, true);
    assert_eq!(unknown, v2(V2, 140 * MIB));
}

#[test]
fn programs_never_had_more_than_there_was() {
    // The parts are read after the total; meanwhile the next process had grown to 100 MiB.
    let usage = v2(V2, 20 * MIB).at_kill(Some(128 * MIB), 106 * MIB, true);
    assert_eq!((usage.total_bytes, usage.anon_bytes, usage.freed_bytes), (128 * MIB, Some(128 * MIB), 28 * MIB));
}

#[test]
fn freed_swap_of_the_victim_is_counted() {
    let swap = |usage: MemoryUsage| usage.swap_bytes.unwrap_or(0);
    assert_eq!(swap(v2(V2, 140 * MIB).with_swap_of(70 * MIB)), 70 * MIB);
    let before = swap(v2(V2, 140 * MIB));
    assert_eq!(swap(v2(V2, 140 * MIB).with_swap_of(0)), before);
}

#[test]
fn page_cache_that_came_after_the_kill_was_not_there() {
    // Seen without BPF: read 60 ms after the kill of a process with 106 MiB, while others read a file.
    let stat = "anon 2097152\nfile 73400320\nshmem 0\ninactive_file 73400320\n";
    let exact = v2(stat, 74 * MIB).at_kill(Some(128 * MIB), 106 * MIB, true);
    assert_eq!((exact.anon_bytes, exact.page_cache_bytes), (Some(106 * MIB), Some(20 * MIB)));
    assert_eq!((exact.freed_bytes, exact.unexplained_bytes), (104 * MIB, 2 * MIB));
    let inferred = v2(stat, 74 * MIB).at_kill(Some(128 * MIB), 106 * MIB, false);
    assert_eq!((inferred.anon_bytes, inferred.page_cache_bytes), (Some(56 * MIB), Some(20 * MIB)));
    assert_eq!((inferred.inactive_file_bytes, inferred.unexplained_bytes), (Some(20 * MIB), 52 * MIB));
}

#[test]
fn no_text_is_a_panic() {
    for stat in ["", "anon", "anon x\n", "\u{0} 5\nanon 18446744073709551616\n"] {
        assert_eq!(v2(stat, 9).unexplained_bytes, 9, "{stat:?}");
    }
}

fn process(pid: u32, parent: u32, name: &str, mib: u64) -> ProcessUsage {
    let key = |pid| ProcessKey { pid, start_ticks: 1 };
    ProcessUsage { key: key(pid), parent: (parent > 0).then(|| key(parent)), name: name.into(), rss_bytes: mib * MIB }
}

#[test]
fn workers_are_summed_up_with_their_parent() {
    let mut processes = vec![
        process(1, 0, "init", 1),
        process(2, 1, "sh", 1),
        process(3, 2, "train.py", 20),
        process(90, 1, "sshd", 5),
    ];
    processes.extend((10..18).map(|pid| process(pid, 3, "train.py", 24)));
    let trees = trees(&processes);
    assert_eq!(trees.len(), 1, "neither the shell nor init, which hold hardly more: {trees:?}");
    assert_eq!((trees[0].name.as_str(), trees[0].descendants, trees[0].rss_bytes), ("train.py", 8, 212 * MIB));
}

#[test]
fn one_large_process_is_no_tree() {
    let processes = [process(1, 0, "init", 1), process(2, 1, "sh", 1), process(3, 2, "eat", 200)];
    assert_eq!(trees(&processes), []);
}

#[test]
fn parents_in_a_circle_end() {
    let processes = [process(1, 2, "a", 9), process(2, 1, "b", 9)];
    assert!(trees(&processes).len() <= 2);
}
