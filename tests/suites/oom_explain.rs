//! OOM kills with a known cause, and how reports explain them, with BPF and without.
//!
//! A scenario is data: its limits, what runs, and the expected report. The monitor is in the cgroup of a container, `own`:
//!
//! ```text
//! krunner-test-PID-N     no limit
//!   └ parent             a limit above the container, if the scenario has one
//!      ├ own             the container: the monitor, and what the scenario runs
//!      │  └ inner        if the scenario has it: what the scenario runs
//!      └ sibling         if the scenario has it: another container
//! ```
//!
//! Only in cgroup version 1: in version 2 a cgroup with processes has none with a limit below it. Each test prints its row of
//! the table (`--nocapture`); `cargo xtask vm` judges scope, limit and usage of other kills, in version 2.

use std::path::Path;
use std::time::Duration;

use krunner_tests::cgroup::{Cgroup, Version};
use krunner_tests::{LaunchMethod, Monitor, Scenario, binary, require};
use serde_json::Value;
use tempfile::TempDir;

use crate::oom::VICTIM;

const MIB: u64 = 1 << 20;

/// More than any scenario uses, and less than no limit.
const NEVER_MIB: u64 = 256;

/// Usage at a kill is within this of the limit, in percent.
const TOLERANCE_PERCENT: f64 = 2.0;

/// A kind of memory, by its name in `explanation.usage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Programs,
    FilesInMemory,
    PageCache,
    Kernel,
    Unexplained,
}

/// What fills a limit, and the expected explanation.
struct Cause {
    name: &'static str,
    parent_mib: Option<u64>,
    own_mib: u64,
    inner_mib: Option<u64>,
    /// A shell's; `$0` is the victim program, `$1` a folder on disk, `$2` one in memory.
    runs: &'static str,
    /// The same for the other container, a second later.
    sibling_runs: Option<&'static str>,
    scope: &'static str,
    limit_mib: u64,
    largest: Kind,
    /// What is largest goes with the victim: what is gone before the reading is unexplained, or else it would be a guess.
    is_victims: bool,
    shape: Option<&'static str>,
    /// So many processes of one parent.
    workers: Option<u64>,
}

/// One container with a limit.
const PLAIN: Cause = Cause {
    name: "",
    parent_mib: None,
    own_mib: 128,
    inner_mib: None,
    runs: "",
    sibling_runs: None,
    scope: "container",
    limit_mib: 128,
    largest: Kind::Programs,
    is_victims: false,
    shape: None,
    workers: None,
};

const LEAK: Cause = Cause { name: "leak", runs: "exec $0 grow 20:0 20:3 220:20", shape: Some("leak"), ..PLAIN };
const BURST: Cause = Cause { name: "burst", runs: "exec $0 grow 20:0 20:4 220:3", shape: Some("burst"), ..PLAIN };
const STEP: Cause =
    Cause { name: "step", runs: "exec $0 grow 20:0 20:3 100:0.5 100:4 220:1", shape: Some("step"), ..PLAIN };
const TMPFS: Cause =
    Cause { name: "tmpfs", runs: "exec $0 file-then-eat $2/file 80 96", largest: Kind::FilesInMemory, ..PLAIN };
const SHARED_MEMORY: Cause = Cause {
    name: "shared memory",
    runs: "exec $0 memfd-then-eat 80 96",
    largest: Kind::FilesInMemory,
    is_victims: true,
    ..PLAIN
};
const PAGE_CACHE: Cause = Cause {
    name: "page cache bystander",
    runs: "dd if=/dev/zero of=$1/file bs=1M count=300 2> /dev/null; \
           while :; do cat $1/file > /dev/null; done & exec $0 grow 20:0 20:3 220:5",
    ..PLAIN
};
const KERNEL: Cause = Cause {
    name: "kernel memory",
    runs: "exec $0 pipes-then-eat 80 96",
    largest: Kind::Kernel,
    is_victims: true,
    ..PLAIN
};
/// Each is larger than the monitor, which would be killed in its place.
const WORKERS: Cause = Cause {
    name: "many workers",
    own_mib: 384,
    limit_mib: 384,
    runs: "for worker in 1 2 3 4 5 6 7 8; do $0 grow 10:0 40:1 40:3 120:10 & done; wait",
    workers: Some(8),
    ..PLAIN
};
const PARENT: Cause = Cause {
    name: "parent's limit",
    parent_mib: Some(100),
    own_mib: NEVER_MIB,
    runs: "exec $0 grow 20:0 20:1 220:5",
    scope: "above",
    limit_mib: 100,
    ..PLAIN
};
const SIBLING: Cause = Cause {
    name: "sibling's growth",
    parent_mib: Some(128),
    own_mib: NEVER_MIB,
    runs: "exec $0 grow 70:0 70:30",
    sibling_runs: Some("exec $0 grow 10:1 60:4"),
    scope: "above",
    ..PLAIN
};
const INNER: Cause = Cause {
    name: "inner limit",
    inner_mib: Some(64),
    runs: "exec $0 grow 20:0 20:1 220:5",
    scope: "inner",
    limit_mib: 64,
    ..PLAIN
};

/// The cgroups and the monitor of a scenario.
struct CauseHarness {
    monitor: Monitor,
    own: Cgroup,
    parent: Option<Cgroup>,
    inner: Option<Cgroup>,
    sibling: Option<Cgroup>,
    disk: TempDir,
    memory: TempDir,
    _scratch: Cgroup,
}

impl CauseHarness {
    fn start(cause: &Cause, args: &[&str]) -> Result<Self, String> {
        let scratch = Cgroup::scratch()?;
        if scratch.version() == Version::Two {
            return Err("in cgroup v2 there is only one limit below a scratch cgroup".to_owned());
        }
        let parent = cause.parent_mib.map(|mib| scratch.limited("parent", mib));
        let own = parent.as_ref().unwrap_or(&scratch).limited("own", cause.own_mib);
        let inner = cause.inner_mib.map(|mib| own.limited("inner", mib));
        let sibling =
            parent.as_ref().filter(|_| cause.sibling_runs.is_some()).map(|parent| parent.limited("sibling", NEVER_MIB));
        let mut monitor = Monitor::start_program(&LaunchMethod::direct().cgroup(&own), &binary(), args);
        if args.is_empty() {
            monitor.needs_bpf()?;
        }
        // The tracer's loader has left, and the sampler has seen who is there.
        monitor.within(Duration::from_secs(1), "nothing", |_| false);
        let disk = TempDir::with_prefix_in("kro-", env!("CARGO_TARGET_TMPDIR")).expect("a folder on disk");
        let memory = TempDir::with_prefix_in("kro-", "/dev/shm").expect("a folder in memory");
        Ok(Self { monitor, own, parent, inner, sibling, disk, memory, _scratch: scratch })
    }

    fn run(&self, cgroup: &Cgroup, script: &str) -> Scenario {
        let mut command = LaunchMethod::direct().cgroup(cgroup).command("sh");
        command.args(["-c", script, VICTIM]).args([self.disk.path(), self.memory.path()]);
        Scenario::start(command)
    }

    /// Runs the scenario until a kill is reported, and ends what is left of it: the processes that may have been killed, and the
    /// one that started them.
    #[track_caller]
    fn run_cause(&mut self, cause: &Cause) -> (Vec<u32>, u32) {
        let scenario = self.run(self.inner.as_ref().unwrap_or(&self.own), cause.runs);
        let sibling = self.sibling.as_ref().zip(cause.sibling_runs).map(|(cgroup, runs)| {
            scenario.until("victim");
            std::thread::sleep(Duration::from_secs(1));
            self.run(cgroup, runs)
        });
        self.monitor.until_reports(1);
        // A monitor that reports one kill twice does so within this time.
        self.monitor.within(Duration::from_millis(500), "nothing", |_| false);
        let shell = scenario.pid();
        let victims = scenario.stop().all("victim");
        sibling.map(Scenario::stop);
        (victims, shell)
    }

    /// The cgroup whose limit is hit.
    fn hit(&self) -> &Cgroup {
        self.inner.as_ref().or(self.parent.as_ref()).unwrap_or(&self.own)
    }
}

/// Bytes by kind, of which `explanation.usage` knows.
fn kinds(usage: &Value) -> Vec<(u64, Kind)> {
    let parts = [
        (&usage["anon_bytes"], Kind::Programs),
        (&usage["shmem_bytes"], Kind::FilesInMemory),
        (&usage["page_cache_bytes"], Kind::PageCache),
        (&usage["kernel"]["total_bytes"], Kind::Kernel),
        (&usage["unexplained_bytes"], Kind::Unexplained),
    ];
    parts.into_iter().filter_map(|(bytes, kind)| Some((bytes.as_u64()?, kind))).collect()
}

fn percent_off(actual: u64, expected: u64) -> f64 {
    let parts = u32::try_from(actual.abs_diff(expected) * 10_000 / expected).expect("less than 42,000,000 %");
    f64::from(parts) / 100.0
}

/// A row of the table.
fn row(cause: &Cause, launch: &str, report: &Value) -> String {
    let explanation = &report["explanation"];
    let (limit, usage) = (&explanation["limit"], &explanation["usage"]);
    let mib = |value: &Value| value.as_u64().map_or_else(|| "-".to_owned(), |bytes| format!("{}m", bytes / MIB));
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let largest = kinds(usage).into_iter().max().map_or_else(
        || "-".to_owned(),
        |(bytes, kind)| format!("{kind:?} {}m of {}", bytes / MIB, mib(&usage["total_bytes"])),
    );
    let off = limit["usage_bytes"].as_u64().map_or_else(
        || "-".to_owned(),
        |usage| format!("{:.2} %", percent_off(usage, limit["limit_bytes"].as_u64().unwrap_or(1))),
    );
    format!(
        "{:<21} {launch:<7} {:>5} {:<10} {largest:<28} {:<6} {off:>7}",
        cause.name,
        mib(&limit["limit_bytes"]),
        text(&limit["scope"]),
        text(&explanation["growth"]["shape"]),
    )
}

/// The limit that was hit, whose it is, and what was in use there at the kill.
#[track_caller]
fn judge_limit(cause: &Cause, hit: &Cgroup, is_traced: bool, limit: &Value) {
    assert_eq!(limit["scope"], cause.scope, "{limit:#}");
    assert_eq!(limit["limit_bytes"], cause.limit_mib * MIB, "{limit:#}");
    let path = limit["path"].as_str().map(Path::new);
    let is_path_right = path.is_none_or(|path| path == hit.path_in_hierarchy());
    assert!(is_path_right, "{path:?} is not {hit:?}");
    assert_eq!(limit["is_exact"], is_traced, "{limit:#}");
    match limit["usage_bytes"].as_u64() {
        Some(usage) => {
            let off = percent_off(usage, cause.limit_mib * MIB);
            assert!(off <= TOLERANCE_PERCENT, "{off} % off: {limit:#}");
        }
        None => assert!(!is_traced && limit["usage_bytes"].is_null(), "{limit:#}"),
    }
    let is_outside = limit["is_trigger_outside"].as_bool();
    assert_eq!(is_outside.is_some(), is_traced, "{limit:#}");
    assert_eq!(is_outside.unwrap_or(false), is_traced && cause.sibling_runs.is_some(), "{limit:#}");
}

/// Where the memory was. What is not known of a cgroup that is not ours is null.
#[track_caller]
fn judge_usage(cause: &Cause, is_traced: bool, usage: &Value) {
    let kinds = kinds(usage);
    let Some((bytes, kind)) = kinds.iter().copied().max() else {
        assert!(usage.is_null() && !is_traced, "{usage:#}");
        return;
    };
    if cause.is_victims || !is_traced {
        // What the victim gave back before the reading may be of any kind, also of the one that was the largest.
        let of = |wanted: Kind| kinds.iter().find(|(_, kind)| *kind == wanted).map_or(0, |(bytes, _)| *bytes);
        let unexplained = of(Kind::Unexplained);
        assert!(kind == cause.largest || of(cause.largest) + unexplained >= bytes, "{kind:?}: {usage:#}");
    } else {
        assert_eq!(kind, cause.largest, "{usage:#}");
    }
    let total = usage["total_bytes"].as_u64().expect("a total");
    assert!(bytes <= total && total <= cause.limit_mib * MIB / 100 * 102, "{usage:#}");
}

/// The processes of one parent are summed up.
#[track_caller]
fn judge_workers(workers: u64, parent: u32, usage: &Value) {
    let tree = &usage["trees"][0];
    assert_eq!((&tree["pid"], &tree["descendants"]), (&parent.into(), &workers.into()), "{usage:#}");
    let anon = usage["anon_bytes"].as_u64().expect("programs");
    let sum = tree["rss_bytes"].as_u64().expect("a sum");
    assert!(sum > anon / 2 && sum < anon + workers * 8 * MIB, "{usage:#}");
}

#[track_caller]
fn judge(cause: &Cause, is_traced: bool) -> Result<(), String> {
    let args: &[&str] = if is_traced { &[] } else { &["--no-bpf"] };
    let mut harness = CauseHarness::start(cause, args)?;
    let (victims, parent) = harness.run_cause(cause);
    let reports = harness.monitor.reports();
    for report in &reports {
        eprintln!("{}", row(cause, if is_traced { "BPF" } else { "no BPF" }, report));
    }
    for report in &reports {
        let explanation = &report["explanation"];
        let is_victim = victims.iter().any(|pid| report["victim"]["pid"] == *pid);
        assert!(is_victim, "{victims:?}: {report:#}");
        judge_limit(cause, harness.hit(), is_traced, &explanation["limit"]);
        judge_usage(cause, is_traced, &explanation["usage"]);
    }
    let first = &reports[0]["explanation"];
    if let Some(shape) = cause.shape {
        assert_eq!(first["growth"]["shape"], shape, "{:#}", first["growth"]);
    }
    if let Some(workers) = cause.workers {
        judge_workers(workers, parent, &first["usage"]);
    }
    Ok(())
}

/// A test for each scenario, with BPF and without.
macro_rules! causes {
    ($($name:ident: $cause:expr,)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn with_bpf() {
                require!(judge(&$cause, true));
            }

            #[test]
            fn without_bpf() {
                require!(judge(&$cause, false));
            }
        }
    )*};
}

causes! {
    leak: LEAK,
    burst: BURST,
    step: STEP,
    tmpfs: TMPFS,
    shared_memory: SHARED_MEMORY,
    page_cache_bystander: PAGE_CACHE,
    kernel_memory: KERNEL,
    many_workers: WORKERS,
    limit_of_the_parent: PARENT,
    growth_of_a_sibling: SIBLING,
    inner_limit: INNER,
}
