//! The runner survives an OOM kill in its own cgroup: it answers, runs the next step, and reports the kill.
//!
//! By default each scenario runs a few times under two limits. `KRUNNER_SURVIVAL_RUNS=15 cargo xtask test survival::`
//! runs the full matrix, 15 times under each of three limits. With `-- --nocapture` each scenario prints its rows.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;
use std::{env, fs};

use krunner_tests::cgroup::Cgroup;
use krunner_tests::oom_matrix::KernelLog;
use krunner_tests::{LaunchMethod, Monitor, host, require, wait};
use tempfile::TempDir;

use crate::limited_session::{Limited, LimitedSession, NO_BPF, Plan, Tracer};
use crate::oom::VICTIM;

/// How long the runner may take to answer while memory is short.
const STATUS_PATIENCE: Duration = Duration::from_secs(10);

/// How long hundreds of processes may take to fill the limit, beside whatever else this machine does.
const KILL_PATIENCE: Duration = Duration::from_mins(3);

/// How long a report may take to arrive after all is over.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);

/// The limits of the full matrix, and how many of them are the subset's.
const LIMITS_MIB: [u64; 3] = [64, 300, 1024];
const SUBSET: usize = 2;

/// Runs under each limit, unless told otherwise. The pair is fatal in some runs only.
const RUNS: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    /// Fills a tmpfs, whose pages stay when the victim is gone.
    DdIntoTmpfs,
    /// Each is smaller than the runner.
    ManyShells,
    /// Two processes that share their memory and are killed together.
    SharedMemoryPair,
    PairBesideAnother,
    OneHog,
    FourHogs,
    MakeOfHogs,
    ForkBomb,
}

impl Scenario {
    /// How many of the limits are tried beside the other suites.
    fn subset(self) -> usize {
        match self {
            // Some hundred processes that all want to run are no neighbours for tests that wait for something.
            Self::ForkBomb => 1,
            _ => SUBSET,
        }
    }

    fn name(self) -> String {
        format!("{self:?}")
    }

    fn command(self, limit_mib: u64) -> String {
        let hog = format!("{VICTIM} eat {}", 2 * limit_mib);
        let pair = format!("{VICTIM} clone-vm {}", 2 * limit_mib);
        match self {
            Self::DdIntoTmpfs => {
                // 16 blocks of 64 KiB are 1 MiB.
                format!("dd if=/dev/zero of=fill bs=64k count={} 2> /dev/null; echo code $?", 32 * limit_mib)
            }
            Self::ManyShells => format!(
                "for i in $(seq {}); do
                    (x=0123456789abcdef; while [ ${{#x}} -lt 2097152 ]; do x=$x$x; done; sleep 600; :) &
                done; wait",
                (limit_mib * 5 / 8).max(40)
            ),
            Self::SharedMemoryPair => format!("exec {pair}"),
            Self::PairBesideAnother => format!("sleep 60 & {pair}; kill $!"),
            Self::OneHog => format!("{hog}; echo code $?"),
            Self::FourHogs => format!("{hog} & {hog} & {hog} & {hog} & wait"),
            Self::MakeOfHogs => {
                format!("printf 'all: a b c d\\na b c d:\\n\\t{hog}\\n' > Makefile; make -k -j4; true")
            }
            Self::ForkBomb => {
                "bomb() { x=$(head -c 512k /dev/zero | tr '\\0' x); bomb & bomb; }; bomb 2> /dev/null".to_owned()
            }
        }
    }

    /// Whether it keeps running after a kill.
    fn lasts(self) -> bool {
        matches!(self, Self::ManyShells | Self::ForkBomb)
    }

    fn plan(self, tracer: Tracer, limit_mib: u64) -> Plan {
        let plan = Plan::new(tracer, Limited::Runner, limit_mib);
        match self {
            Self::DdIntoTmpfs => plan.tmpfs_at_home(4 * limit_mib),
            // Each has 2 MiB or less.
            Self::ForkBomb => plan.pids(limit_mib * 3 / 2 + 150),
            _ => plan,
        }
    }
}

/// The result of one run.
#[derive(Debug, Default)]
struct RunOutcome {
    runner_killed: bool,
    unreported: bool,
    /// Failures besides the runner not surviving.
    fault: Option<String>,
}

impl RunOutcome {
    fn killed() -> Self {
        Self { runner_killed: true, ..Self::default() }
    }

    fn fault(text: impl Into<String>) -> Self {
        Self { fault: Some(text.into()), ..Self::default() }
    }
}

#[track_caller]
fn run_once(scenario: Scenario, session: &mut LimitedSession, limit_mib: u64) -> RunOutcome {
    session.send("exec", &scenario.command(limit_mib));
    if scenario.lasts() {
        let is_killed = || (session.limited.oom_kills() > 0 || !session.is_alive()).then_some(());
        wait::within(KILL_PATIENCE, is_killed).unwrap_or_else(|| panic!("no kill within {KILL_PATIENCE:?}"));
        if scenario == Scenario::ManyShells {
            let counter = session.limited.counter();
            wait::until_stalled("the counter of kills", || Some(counter.oom_kills()));
        }
    } else if !session.until_finished() {
        return RunOutcome::killed();
    }
    let answered = session.status_within(STATUS_PATIENCE);
    if !session.is_alive() {
        return RunOutcome::killed();
    }
    if answered.is_none() {
        return RunOutcome::fault(format!("status was not answered within {STATUS_PATIENCE:?}"));
    }
    session.end_children();
    let _ = fs::remove_file(session.home_file("fill"));
    if !session.until_finished() {
        return RunOutcome::killed();
    }
    let Some(alive) = session.exec("echo alive") else { return RunOutcome::killed() };
    if alive.codes() != [("finished", 0)] || alive.stdout() != "alive\n" {
        return RunOutcome::fault(format!("the next step: {alive:?}"));
    }
    wait::within(REPORT_PATIENCE, || {
        session.status_within(STATUS_PATIENCE);
        session.has_reported().then_some(())
    });
    if session.limited.oom_kills() == 0 {
        return RunOutcome::fault("no OOM kill: this run shows nothing");
    }
    RunOutcome { unreported: !session.has_reported(), ..RunOutcome::default() }
}

/// How the runner ended, if it did, what it logged, and what the kernel logged about its kill.
fn end_of(session: &mut LimitedSession, log: Option<KernelLog>) -> String {
    let status = if session.is_alive() { "it runs".to_owned() } else { session.runner.wait_exit().to_string() };
    let circumstances = log.and_then(|mut log| log.circumstances_of(session.pid)).unwrap_or_default();
    format!("the runner: {status}; its log: {}; the kernel's log: {circumstances}", session.runner.stderr())
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned())).unwrap_or_default()
}

/// Runs a scenario as often as asked for under each limit, prints a row a limit, and fails unless all runs went well.
#[track_caller]
fn survive(scenario: Scenario, tracer: Tracer) -> Result<(), String> {
    if scenario == Scenario::MakeOfHogs {
        host::program("make")?;
    }
    let full: Option<usize> = env::var("KRUNNER_SURVIVAL_RUNS").ok().map(|runs| runs.parse().expect("a number"));
    let limits = if full.is_some() { &LIMITS_MIB[..] } else { &LIMITS_MIB[..scenario.subset()] };
    let runs = full.unwrap_or(RUNS);
    let mut failures = Vec::new();
    for &limit_mib in limits {
        let mut outcomes = Vec::new();
        for _ in 0..runs {
            let mut session = scenario.plan(tracer, limit_mib).start()?;
            let log = KernelLog::follow();
            let run = AssertUnwindSafe(|| run_once(scenario, &mut session, limit_mib));
            let outcome = panic::catch_unwind(run).unwrap_or_else(|panic| RunOutcome::fault(text_of(&*panic)));
            if outcome.runner_killed || outcome.unreported || outcome.fault.is_some() {
                failures.push(format!("{limit_mib} MiB: {outcome:?}; {}", end_of(&mut session, log)));
            }
            outcomes.push(outcome);
        }
        let number = |is: fn(&RunOutcome) -> bool| outcomes.iter().filter(|outcome| is(outcome)).count();
        println!(
            "{:<18} {limit_mib:>5} MiB  {:<8}  runs {runs:>3}  runner killed {:>3}  unreported {:>3}  other {:>3}",
            scenario.name(),
            tracer.name(),
            number(|outcome| outcome.runner_killed),
            number(|outcome| outcome.unreported),
            number(|outcome| outcome.fault.is_some()),
        );
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

/// The first read of such a file allocates a buffer in the kernel. If it came right after an OOM kill at the runner's own limit,
/// it would be charged for it and could be killed as well.
#[test]
fn files_that_stay_open_are_read_when_they_are_opened() {
    require!(host::program("strace").and_then(|_| host::util_linux()));
    let scratch = require!(Cgroup::scratch());
    let limited = scratch.limited("limited", 64);
    let folder = TempDir::new().expect("a temporary folder");
    let traces = folder.path().join("thread");
    let calls = "trace=?open,openat,read,pread64,close";
    let strace = ["strace", "-D", "-ff", "-qq", "-o", traces.to_str().expect("UTF-8"), "-e", calls];
    let mut monitor = Monitor::start(&LaunchMethod::direct().cgroup(&limited).then(NO_BPF).then(strace));
    assert_eq!(monitor.watching()["tracer"], "snapshot", "{}", monitor.watching());
    assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());

    let traces = fs::read_dir(&folder).expect("a file for each thread").flatten();
    let traces: Vec<_> = traces.map(|file| fs::read_to_string(file.path()).expect("a trace")).collect();
    let calls = traces.iter().flat_map(|trace| trace.lines().zip(trace.lines().skip(1)));
    let opened: Vec<_> = calls.filter_map(|(call, next)| Some((opened_counter(call)?, call, next))).collect();
    let is_read =
        |next: &str, file: u32| ["pread64", "read"].iter().any(|call| next.starts_with(&format!("{call}({file},")));
    let unread: Vec<_> = opened.iter().filter(|(file, _, next)| !is_read(next, *file)).collect();
    assert!(opened.len() > 10 && unread.is_empty(), "{unread:#?} of {}", opened.len());
}

/// The descriptor, if this call opens a file of a memory cgroup or `/proc/meminfo`.
fn opened_counter(call: &str) -> Option<u32> {
    let is_counter = call.contains("/memory.") || call.contains("\"/proc/meminfo\"");
    call.rsplit_once(" = ")?.1.parse().ok().filter(|_| call.starts_with("open") && is_counter)
}

macro_rules! scenarios {
    ($($test:ident: $scenario:ident,)*) => {
        $(mod $test {
            use krunner_tests::require;

            use super::{Scenario, survive};
            use crate::limited_session::Tracer;

            #[test]
            fn bpf() {
                require!(survive(Scenario::$scenario, Tracer::Bpf));
            }

            #[test]
            fn snapshot() {
                require!(survive(Scenario::$scenario, Tracer::Snapshot));
            }
        })*
    };
}

scenarios! {
    dd_into_tmpfs: DdIntoTmpfs,
    many_shells: ManyShells,
    shared_memory_pair: SharedMemoryPair,
    pair_beside_another: PairBesideAnother,
    one_hog: OneHog,
    four_hogs: FourHogs,
    make_of_hogs: MakeOfHogs,
    fork_bomb: ForkBomb,
}
