//! Counters as files in a temporary folder, which grow when the test says so.

use tempfile::TempDir;

use super::super::CgroupRoot;
use super::*;
use crate::monitor::explain::GroupKill;

/// A hierarchy of which the whole is ours.
struct Tree {
    folder: TempDir,
    version: u8,
}

impl Tree {
    fn new(version: u8, options: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let tree = Self { folder, version };
        let (own, mount) = match version {
            1 => ("4:memory:/a\n", "33 31 0:29 /a /cg rw - cgroup cgroup rw,memory\n".to_owned()),
            _ => ("0::/\n", format!("33 31 0:29 / /cg rw - cgroup2 cgroup2 rw{options}\n")),
        };
        tree.write("proc/self/cgroup", own);
        tree.write("proc/self/mountinfo", &mount);
        tree.write("proc/meminfo", "MemTotal: 100 kB\nMemFree: 7 kB\nMemAvailable:      50 kB\n");
        tree.cgroup("cg", 1000, 400, 3);
        tree
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // In place: what is open stays the same file.
        fs::write(path, text).unwrap();
    }

    fn cgroup(&self, dir: &str, limit: u64, usage: u64, kills: u64) {
        let files = MemcgFiles::of(self.version);
        self.write(&format!("{dir}/{}", files.limit), &format!("{limit}\n"));
        self.write(&format!("{dir}/{}", files.usage), &format!("{usage}\n"));
        self.write(&format!("{dir}/cgroup.events"), "populated 1\n");
        self.kills(dir, kills);
    }

    fn kills(&self, dir: &str, kills: u64) {
        let files = MemcgFiles::of(self.version);
        self.write(&format!("{dir}/{}", files.events), &format!("oom 9\noom_kill {kills}\noom_group_kill 8\n"));
    }

    fn counter(&self) -> KillCounter {
        KillCounter::start(Some(Cgroup::find(&CgroupRoot::below(self.folder.path())).unwrap()))
    }
}

/// As the sampler looks, and the monitor takes.
fn read(counter: &mut KillCounter) -> Count {
    let has_kills = counter.poll(TickMode::Infer).has_kills;
    let count = counter.take();
    assert_eq!(has_kills, !count.kills.is_empty());
    count
}

/// Path and number of each growth. Cgroups that came or went are noticed as if their time had come.
fn grown(counter: &mut KillCounter) -> Vec<(String, u64)> {
    counter.refreshed = counter.refreshed.and_then(|at| at.checked_sub(TickMode::Infer.refresh_interval()));
    let count = read(counter);
    assert!(count.is_counted);
    count.kills.into_iter().map(|kills| (kills.facts.cgroup.unwrap().path, kills.number)).collect()
}

#[test]
fn what_was_counted_before_the_start_is_no_news() {
    for version in [1, 2] {
        let tree = Tree::new(version, "");
        let mut counter = tree.counter();
        let own = if version == 1 { "/a" } else { "/" };
        assert_eq!(grown(&mut counter), []);
        tree.kills("cg", 5);
        assert_eq!(grown(&mut counter), [(own.to_owned(), 2)]);
        assert_eq!(grown(&mut counter), []);
        tree.kills("cg", 1);
        assert_eq!(grown(&mut counter), [], "a counter that was set back");
        tree.kills("cg", 2);
        assert_eq!(grown(&mut counter), [(own.to_owned(), 1)]);
    }
}

#[test]
fn v1_counts_each_cgroup_for_itself_and_all_are_summed_up() {
    let tree = Tree::new(1, "");
    tree.cgroup("cg/old", 100, 1, 7);
    let mut counter = tree.counter();
    assert_eq!(grown(&mut counter), []);
    // Its first kill was counted before anybody had looked.
    tree.cgroup("cg/new", 100, 1, 1);
    tree.cgroup("cg/new/below", 100, 1, 0);
    assert_eq!(grown(&mut counter), [("/a/new".to_owned(), 1)]);
    tree.kills("cg/old", 8);
    tree.kills("cg/new/below", 2);
    let mut both = grown(&mut counter);
    both.sort();
    assert_eq!(both, [("/a/new/below".to_owned(), 2), ("/a/old".to_owned(), 1)]);
}

#[test]
fn kills_of_a_new_cgroup_are_as_old_as_it_may_be() {
    let tree = Tree::new(1, "");
    let mut counter = tree.counter();
    read(&mut counter);
    let refreshed_ns = clock::boot_ns();
    std::thread::sleep(TickMode::Infer.refresh_interval());
    tree.cgroup("cg/new", 100, 1, 1);
    let count = read(&mut counter);
    assert_eq!(count.kills.len(), 1);
    assert!(count.since_boot_ns <= refreshed_ns, "{} after {refreshed_ns}", count.since_boot_ns);
}

#[test]
fn v2_counts_those_below_at_every_level_and_ours_is_enough() {
    let tree = Tree::new(2, "");
    tree.cgroup("cg/below", 100, 1, 0);
    let mut counter = tree.counter();
    tree.kills("cg/below", 1);
    tree.kills("cg", 4);
    assert_eq!(grown(&mut counter), [("/".to_owned(), 1)]);
}

#[test]
fn groups_that_were_killed_are_seen_as_such() {
    let tree = Tree::new(2, "");
    let mut counter = tree.counter();
    let mut groups = |events: &str| {
        tree.write("cg/memory.events", events);
        read(&mut counter).kills.into_iter().map(|kills| (kills.number, kills.group)).collect::<Vec<_>>()
    };
    assert_eq!(groups("oom_kill 5\noom_group_kill 8\n"), [(2, GroupKill::No)], "two, one by one");
    assert_eq!(groups("oom_kill 8\noom_group_kill 9\n"), [(3, GroupKill::Members)]);
    assert_eq!(groups("oom_kill 9\noom_group_kill 9\n"), [(1, GroupKill::No)]);
    assert_eq!(groups("oom_kill 9\noom_group_kill 10\n"), [], "its members are counted next");
    assert_eq!(groups("oom_kill 10\noom_group_kill 10\n"), [(1, GroupKill::Members)]);
    assert_eq!(groups("oom_kill 11\noom_group_kill 11\n"), [(1, GroupKill::Begun)]);
    assert_eq!(groups("oom_kill 13\n"), [(2, GroupKill::Possible)], "an older kernel does not say");
    let old = Tree::new(1, "");
    let mut counter = old.counter();
    old.kills("cg", 5);
    assert_eq!(read(&mut counter).kills[0].group, GroupKill::No, "v1 has none");
}

#[test]
fn v2_with_local_events_is_summed_up() {
    let tree = Tree::new(2, ",memory_localevents");
    tree.cgroup("cg/below", 100, 1, 0);
    let mut counter = tree.counter();
    tree.kills("cg/below", 1);
    assert_eq!(grown(&mut counter), [("/below".to_owned(), 1)]);
}

#[test]
fn a_cgroup_that_has_gone_and_come_again_begins_anew() {
    let tree = Tree::new(1, "");
    tree.cgroup("cg/job", 100, 1, 7);
    let mut counter = tree.counter();
    fs::rename(tree.path("cg/job"), tree.path("gone")).unwrap();
    assert_eq!(grown(&mut counter), []);
    assert_eq!(counter.levels.len(), 1);
    tree.cgroup("cg/job", 100, 1, 2);
    assert_eq!(grown(&mut counter), [("/a/job".to_owned(), 2)]);
}

#[test]
fn a_cgroup_that_reuses_a_path_is_found() {
    let tree = Tree::new(1, "");
    tree.cgroup("cg/1", 100, 1, 0);
    let mut counter = tree.counter();
    for round in 1..7 {
        // The link count of the parent is the same at the next look.
        fs::rename(tree.path(&format!("cg/{round}")), tree.path(&format!("gone-{round}"))).unwrap();
        let next = round + 1;
        tree.cgroup(&format!("cg/{next}"), 100, 1, 1);
        assert_eq!(grown(&mut counter), [(format!("/a/{next}"), 1)]);
        assert_eq!(counter.levels.len(), 2, "the one that was removed is not read any more");
    }
}

#[test]
fn a_cgroup_that_was_replaced_at_its_path_is_another_one() {
    let tree = Tree::new(1, "");
    tree.cgroup("cg/job", 100, 1, 7);
    let mut counter = tree.counter();
    fs::rename(tree.path("cg/job"), tree.path("gone")).unwrap();
    tree.cgroup("cg/job", 100, 1, 2);
    assert_eq!(grown(&mut counter), [("/a/job".to_owned(), 2)]);
    tree.kills("gone", 9);
    assert_eq!(grown(&mut counter), [], "the old one is not read any more");
}

#[test]
fn the_root_of_v2_counts_nothing_and_the_machine_does() {
    let tree = Tree::new(2, "");
    for file in ["memory.max", "memory.current", "memory.events", "cgroup.events"] {
        fs::remove_file(tree.path("cg").join(file)).unwrap();
    }
    tree.write("cg/cgroup.controllers", "cpu memory\n");
    tree.write("proc/vmstat", "nr_free_pages 1\noom_kill 10\n");
    let mut counter = tree.counter();
    tree.write("proc/vmstat", "nr_free_pages 1\noom_kill 12\n");
    assert_eq!(grown(&mut counter), [("/".to_owned(), 2)]);
    assert_eq!(counter.poll(TickMode::Infer).headroom_bytes, Some(50 << 10), "as the machine has it");
}

#[test]
fn the_least_room_counts() {
    let tree = Tree::new(1, "");
    assert_eq!(tree.counter().poll(TickMode::Infer).headroom_bytes, Some(600), "of our own limit");
    tree.cgroup("cg/tight", 100, 99, 0);
    assert_eq!(tree.counter().poll(TickMode::Infer).headroom_bytes, Some(1), "of the limit below");
    tree.cgroup("cg/over", 100, 101, 0);
    assert_eq!(
        tree.counter().poll(TickMode::Infer).headroom_bytes,
        Some(0),
        "more is charged than may be, for a moment"
    );
}

#[test]
fn without_files_nothing_is_counted() {
    let tree = Tree::new(1, "");
    fs::remove_file(tree.path("cg/memory.oom_control")).unwrap();
    let mut counter = tree.counter();
    let count = read(&mut counter);
    assert_eq!((count.kills, count.is_counted), (Vec::new(), false));
    tree.write("cg/memory.oom_control", "");
    assert!(!read(&mut tree.counter()).is_counted, "masked by an empty file");
    let mut nowhere = KillCounter::start(None);
    assert_eq!((read(&mut nowhere).is_counted, nowhere.poll(TickMode::Infer).headroom_bytes), (false, None));
}

#[test]
fn what_one_thread_counts_another_can_take() {
    let tree = Tree::new(1, "");
    let mut counter = tree.counter();
    let before_ns = counter.take().at_boot_ns;
    tree.kills("cg", 6);
    assert!(counter.poll(TickMode::Infer).has_kills);
    assert!(counter.poll(TickMode::Infer).has_kills, "not taken yet");
    let count = counter.take();
    assert_eq!((count.kills.len(), count.kills[0].number), (1, 3));
    assert!(count.since_boot_ns <= before_ns, "since before the look that saw them");
    assert_eq!(counter.take().kills, []);
}

#[test]
fn kill_has_the_swap_of_the_reading_before() {
    let tree = Tree::new(2, "");
    tree.write("cg/memory.swap.current", "700\n");
    let mut counter = tree.counter();
    tree.write("cg/memory.swap.current", "10\n");
    tree.kills("cg", 4);
    assert_eq!(counter.take().kills[0].facts.swap_bytes, 700, "the victim's own is free by now");
    tree.kills("cg", 5);
    assert_eq!(counter.take().kills[0].facts.swap_bytes, 10);
}
