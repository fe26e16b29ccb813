//! Trees as container engines and systemd lay them out, in a temporary folder.

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A file system with a `proc` and what the test puts there.
struct Host(TempDir);

impl Host {
    fn new(own: &str, mountinfo: &str) -> Self {
        let host = Self(TempDir::new().unwrap());
        // As the kernel has it: a link to a number.
        fs::create_dir_all(host.path("proc/42")).unwrap();
        std::os::unix::fs::symlink("42", host.path("proc/self")).unwrap();
        host.file("proc/42/cgroup", own).file("proc/42/mountinfo", mountinfo)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn file(self, path: &str, text: &str) -> Self {
        let file = self.path(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        self
    }

    /// A cgroup of v1: limit, usage, kills.
    fn v1(self, dir: &str, limit: u64, usage: u64, kills: u64) -> Self {
        self.file(&format!("{dir}/memory.limit_in_bytes"), &format!("{limit}\n"))
            .file(&format!("{dir}/memory.usage_in_bytes"), &format!("{usage}\n"))
            .file(&format!("{dir}/memory.oom_control"), &format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"))
    }

    /// A cgroup of v2.
    fn v2(self, dir: &str, limit: &str, usage: u64, kills: u64) -> Self {
        self.file(&format!("{dir}/memory.max"), &format!("{limit}\n"))
            .file(&format!("{dir}/memory.current"), &format!("{usage}\n"))
            .file(&format!("{dir}/memory.events"), &format!("low 0\noom 9\noom_kill {kills}\noom_group_kill 0\n"))
    }

    fn find(&self) -> Result<Cgroup, CgroupError> {
        Cgroup::find(&CgroupRoot::below(self.0.path()))
    }

    /// Finds it there, and has the id and all figures.
    fn found_at(&self, dir: &str) -> Cgroup {
        let cgroup = self.find().unwrap();
        assert_eq!(cgroup.dir, self.path(dir));
        assert_eq!(cgroup.id, fs::metadata(self.path(dir)).unwrap().ino());
        cgroup
    }
}

fn figures(facts: &CgroupFacts) -> (Option<u64>, Option<u64>, Option<u64>) {
    (facts.limit_bytes, facts.usage_bytes, facts.oom_kill_count)
}

/// 2^63 - 4096, as v1 says it.
const V1_NONE: u64 = 9_223_372_036_854_771_712;

#[test]
fn docker_v1_shows_the_hosts_path_and_mounts_the_container_alone() {
    let host = Host::new(
        "11:memory:/docker/abc\n10:cpu,cpuacct:/docker/abc\n0::/system.slice/containerd.service\n",
        "33 31 0:29 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
         34 33 0:30 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro,nosuid master:9 - cgroup cgroup rw,cpu,cpuacct\n\
         35 33 0:31 /docker/abc /sys/fs/cgroup/memory ro,nosuid master:10 - cgroup cgroup rw,memory\n",
    )
    .v1("sys/fs/cgroup/memory", 300 << 20, 100 << 20, 3);
    let cgroup = host.found_at("sys/fs/cgroup/memory");
    assert_eq!((cgroup.path.as_str(), cgroup.version), ("/docker/abc", 1));
    assert_eq!(figures(&cgroup.facts()), (Some(300 << 20), Some(100 << 20), Some(3)));
    assert_eq!(cgroup.read().problems.len(), 0);
}

#[test]
fn docker_v2_with_a_namespace_of_its_own_is_at_the_top() {
    let host = Host::new("0::/\n", "30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n").v2(
        "sys/fs/cgroup",
        "314572800",
        1000,
        2,
    );
    let cgroup = host.found_at("sys/fs/cgroup");
    assert_eq!((cgroup.path.as_str(), cgroup.version), ("/", 2));
    assert_eq!(figures(&cgroup.facts()), (Some(300 << 20), Some(1000), Some(2)));
}

#[test]
fn a_hybrid_hosts_memory_controller_is_where_v1_has_it() {
    let own = "/kubepods/burstable/pod1/c1";
    let host = Host::new(
        &format!("9:name=systemd:{own}\n5:hugetlb,memory:{own}\n0::/system.slice/containerd.service\n"),
        &format!(
            "30 23 0:26 /system.slice/containerd.service /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             31 23 0:27 {own} /sys/fs/cgroup/hugetlb,memory rw - cgroup cgroup rw,hugetlb,memory\n"
        ),
    )
    .v2("sys/fs/cgroup/unified", "1", 1, 1)
    .v1("sys/fs/cgroup/hugetlb,memory", V1_NONE, 5, 0);
    let cgroup = host.found_at("sys/fs/cgroup/hugetlb,memory");
    assert_eq!((cgroup.version, figures(&cgroup.facts())), (1, (None, Some(5), Some(0))));
}

#[test]
fn v2_charges_the_next_cgroup_above_that_has_the_controller() {
    let scope = "sys/fs/cgroup/user.slice/user-1.slice/session-3.scope";
    let host = Host::new(
        "0::/user.slice/user-1.slice/session-3.scope\n",
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    )
    .file(&format!("{scope}/cgroup.procs"), "42\n")
    .file("sys/fs/cgroup/cgroup.controllers", "cpu memory\n")
    .v2("sys/fs/cgroup/user.slice", "8000000", 7, 9)
    .v2("sys/fs/cgroup/user.slice/user-1.slice", "max", 6, 1);
    let cgroup = host.found_at(scope);
    // The limit is the slice's above, and so is the usage next to it; the counter is that of the charged one.
    assert_eq!(figures(&cgroup.facts()), (Some(8_000_000), Some(7), Some(1)));
    assert_eq!(cgroup.read().problems.len(), 0);
}

#[test]
fn the_smallest_limit_counts_a_hidden_one_too() {
    let nested = |stat: &str| {
        Host::new("4:memory:/box/in\n", "35 33 0:31 /box /m rw - cgroup cgroup rw,memory\n")
            .v1("m", 500, 450, 0)
            .v1("m/in", 900, 40, 1)
            .file("m/in/memory.stat", stat)
    };
    let visible = nested("cache 0\nhierarchical_memory_limit 500\n");
    assert_eq!(figures(&visible.found_at("m/in").facts()), (Some(500), Some(450), Some(1)));
    let hidden = nested("hierarchical_memory_limit 200\n");
    assert_eq!(figures(&hidden.found_at("m/in").facts()), (Some(200), Some(40), Some(1)));
}

#[test]
fn a_path_that_does_not_fit_the_mount_is_searched_for() {
    // Mounted from outside our cgroup namespace: two cgroups lie between, names unknown.
    let host = Host::new("0::/\n", "30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        .v2("sys/fs/cgroup/pods/other", "1", 1, 1)
        .file("sys/fs/cgroup/pods/other/cgroup.procs", "1\n4242\n")
        .v2("sys/fs/cgroup/pods/ours", "77", 1, 0)
        .file("sys/fs/cgroup/pods/ours/cgroup.procs", "7\n42\n");
    assert_eq!(host.found_at("sys/fs/cgroup/pods/ours").facts().limit_bytes, Some(77));
}

#[test]
fn cgroups_of_others_are_not_mistaken_for_ours() {
    for own in ["0::/../other\n", "0::/gone\n"] {
        let host = Host::new(own, "30 23 0:26 / /c rw - cgroup2 cgroup2 rw\n")
            .v2("c", "77", 1, 0)
            .file("c/cgroup.procs", "1\n2\n");
        let error = host.find().unwrap_err();
        assert!(matches!(error, CgroupError::Hidden(_)), "{error}");
    }
}

#[test]
fn unmounted_hierarchy_is_an_error() {
    // The controller is v1's, so the mounted v2 does not have it.
    let host = Host::new("4:memory:/a\n0::/a\n", "30 23 0:26 / /c rw - cgroup2 cgroup2 rw\n").v2("c/a", "7", 1, 0);
    assert!(matches!(host.find().unwrap_err(), CgroupError::NotMounted));
    assert!(matches!(Host::new("", "").find().unwrap_err(), CgroupError::NotMounted));
    let nowhere = TempDir::new().unwrap();
    assert!(matches!(Cgroup::find(&CgroupRoot::below(nowhere.path())).unwrap_err(), CgroupError::Read(..)));
}

#[test]
fn what_cannot_be_read_is_a_gap_with_a_cause() {
    let host = Host::new("0::/a\n", "30 23 0:26 / /c rw - cgroup2 cgroup2 rw\n")
        .file("c/a/memory.max", "plenty\n")
        .file("c/a/memory.events", "low 0\n");
    // A folder is as unreadable to root as to anyone.
    fs::create_dir(host.path("c/a/memory.current")).unwrap();
    let reading = host.find().unwrap().read();
    assert_eq!(figures(&reading.facts), (None, None, None));
    let told: Vec<String> = reading.problems.iter().map(ToString::to_string).collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].ends_with("memory.max has no limit") && told[2].ends_with("memory.events has no oom_kill"));

    let off = Host::new("0::/a\n", "30 23 0:26 / /c rw - cgroup2 cgroup2 rw\n").file("c/a/cgroup.procs", "42\n");
    let reading = off.find().unwrap().read();
    assert!(matches!(reading.problems.as_slice(), [CgroupError::Off(_)]));
}

#[test]
fn the_root_of_v2_is_told_from_a_cgroup_without_the_controller() {
    let problem = |host: Host| host.find().unwrap().read().problems.pop().unwrap().to_string();
    let top = || {
        Host::new("0::/\n", "30 23 0:26 / /c rw - cgroup2 cgroup2 rw\n").file("c/cgroup.controllers", "cpu memory\n")
    };
    assert!(problem(top()).ends_with("/c is the root cgroup, which has no memory.* files"));
    let top_of_namespace = top().file("c/cgroup.type", "domain\n");
    assert!(problem(top_of_namespace).contains("memory controller is disabled"));
}

#[test]
fn mount_points_may_have_blanks() {
    let host = Host::new("0::/a b:c\n", "30 23 0:26 / /my\\040c rw - cgroup2 cgroup2 rw\n").v2("my c/a b:c", "5", 1, 0);
    assert_eq!(host.found_at("my c/a b:c").facts().limit_bytes, Some(5));
    assert_eq!(unescape("a\\134b\\999\\04\\"), "a\\b\\999\\04\\");
}

#[test]
fn this_process_is_a_member_of_what_is_found() {
    // A machine without memory cgroups has nothing to be found.
    let Ok(cgroup) = Cgroup::find(&CgroupRoot::default()) else { return };
    let members = fs::read_to_string(cgroup.dir.join("cgroup.procs")).unwrap();
    assert!(members.lines().any(|pid| pid == std::process::id().to_string()), "{cgroup:?}");
}

proptest! {
    #[test]
    fn no_text_is_a_panic(own in "([0-9]:(memory)?:(/|[.]|a|\u{e9}|[\\\\])*\n?){0,3}",
                          mounts in "(1 2 3:4 (/|[.])* /([\\\\]|0|4|a|\u{e9})* rw - cgroup2? x (memory)?\n?){0,3}|.*") {
        let _ = Host::new(&own, &mounts).find().map(|cgroup| cgroup.read());
    }
}
