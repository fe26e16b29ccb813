//! Hosts of fake files, and what is said of them.

use super::*;

/// A container of cgroup v2 with these files, the last part of the path being the content.
fn container(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("proc/self/cgroup", "0::/pod/box\n");
    write("proc/self/mountinfo", "31 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    write("proc/self/oom_score_adj", "0\n");
    write("proc/meminfo", "MemTotal:        4194304 kB\nMemFree: 1 kB\n");
    write("sys/fs/cgroup/pod/box/memory.max", "67108864\n");
    write("sys/fs/cgroup/pod/box/memory.current", "1048576\n");
    write("sys/fs/cgroup/pod/box/memory.events", "oom_kill 0\n");
    write("sys/fs/cgroup/pod/memory.max", "max\n");
    for (file, text) in files {
        write(file, text);
    }
    root
}

/// `STATE CHECK: found -> remedy`, a line each.
fn told(files: &[(&str, &str)], may_protect_itself: bool) -> Vec<String> {
    let root = container(files);
    let folder = format!("{}/sys/fs/cgroup", root.path().display());
    let line = |check: HostCheck| {
        let remedy = check.remedy.map(|remedy| format!(" -> {remedy}")).unwrap_or_default();
        format!("{:?} {}: {}{remedy}", check.state, check.check, check.found.replace(&folder, "CGROUP"))
    };
    HostFacts::find(root.path(), may_protect_itself).checks().into_iter().map(line).collect()
}

#[test]
fn a_container_with_nothing_against_it() {
    assert_eq!(
        told(&[("sys/fs/cgroup/pod/box/memory.oom.group", "0\n")], false),
        [
            "Ok oom-group: memory.oom.group is 0: an OOM kill terminates one process",
            "Ok oom-protection: children start at oom_score_adj +375 (limit 64 MiB), so they are killed before the \
             runner",
            "Ok pids-limit: no visible limit",
        ]
    );
}

#[test]
fn a_pod_of_kubernetes() {
    let pod = [
        ("sys/fs/cgroup/pod/memory.oom.group", "1\n"),
        ("proc/self/oom_score_adj", "995\n"),
        ("sys/fs/cgroup/pod/pids.max", "40\n"),
        ("sys/fs/cgroup/pod/pids.current", "38\n"),
        ("sys/fs/cgroup/pod/memory.current", "62914560\n"),
        ("sys/fs/cgroup/pod/memory.high", "58720256\n"),
    ];
    assert_eq!(
        told(&pod, false),
        [
            "Note oom-group: memory.oom.group is 1 in CGROUP/pod: one OOM kill terminates the whole container, this \
             runner included (Kubernetes 1.28 and later sets it) -> kubelet: `singleProcessOOMKill: true` (1.32 and later, \
             cgroup v2); elsewhere write 0 to memory.oom.group of the container's cgroup; or `setcap \
             cap_bpf,cap_perfmon,cap_sys_resource+p` krunner's file, in a container started with --cap-add SYS_RESOURCE, \
             which exempts the runner",
            "Note oom-protection: the runner has oom_score_adj 995 of at most 1000: children are ranked 5 above it, and \
             375 are needed (limit 64 MiB); a small child may survive the runner -> start the container with a lower \
             oom_score_adj (Kubernetes: limits equal to requests make the pod Guaranteed), or `setcap \
             cap_bpf,cap_perfmon,cap_sys_resource+p` krunner's file, in a container started with --cap-add SYS_RESOURCE, \
             which exempts the runner",
            "Note pids-limit: 38 of 40 processes and threads in use: steps that exceed the limit end with -1 -> stop some, or \
             start the container with a higher limit (--pids-limit, kubelet's podPidsLimit)",
            "Note memory-high: 60 of 56 MiB of memory.high in use: the kernel throttles this container -> stop \
             processes or raise memory.high (Kubernetes: MemoryQoS)",
        ]
    );
    let protected = told(&pod, true);
    assert!(protected[0].starts_with("Ok oom-group: memory.oom.group is 1 in CGROUP/pod"), "{protected:?}");
    assert_eq!(protected[1], "Ok oom-protection: the runner is exempt (it has CAP_SYS_RESOURCE)");
}

#[test]
fn what_cannot_be_seen_is_said() {
    let empty = tempfile::tempdir().unwrap();
    let checks = HostFacts::find(empty.path(), false).checks();
    let found: Vec<_> = checks.iter().map(|check| (check.check, check.found.as_str())).collect();
    assert_eq!(
        found,
        [
            ("oom-group", "unknown: not visible here"),
            ("oom-protection", "unknown: /proc has no oom_score_adj or meminfo"),
            ("pids-limit", "no visible limit"),
        ]
    );
}

#[test]
fn cgroups_of_the_container_that_are_not_counted_are_named() {
    let root = container(&[
        ("proc/1/cgroup", "0::/pod/box\n"),
        ("proc/7/cgroup", "0::/pod/box/job\n"),
        ("proc/8/cgroup", "0::/pod/sidecar\n"),
        ("proc/9/cgroup", "0::/\n"),
    ]);
    let counter = || {
        let checks = HostFacts::find(root.path(), false).checks();
        checks.into_iter().find(|check| check.check == "kill-counter").map(|check| check.found)
    };
    let namespace = |link: &str| {
        let path = root.path().join("proc/thread-self/ns/pid");
        let _ = fs::remove_file(&path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(link, path).unwrap();
    };
    assert_eq!(counter(), None, "the namespace is not known");
    namespace("pid:[4026531836]");
    assert_eq!(counter(), None, "these are the host's processes");
    namespace("pid:[4026532000]");
    let found = counter().unwrap();
    assert!(found.contains("(/pod/sidecar)"), "{found}");
}
