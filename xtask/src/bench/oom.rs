//! What OOM attribution costs, and how fast it is.
//!
//! Kills are real: a memory cgroup below our own, in which `tail /dev/zero` eats until it is killed. The Python
//! runner learns of kills from the agent only, so it is told at once, which no agent does.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::programs::loaded_programs;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde_json::Value;

use super::figures::{Figure, Results, median};
use super::world::{Programs, Runtime, Who, World};
use crate::workspace::step;

/// Kills whose reports are timed; their 99th percentile is the second worst.
const KILLS: usize = 150;

/// Memory of a victim: what a report has to wait for besides us is the clearing of it.
const VICTIM_BYTES: u64 = 24 << 20;

/// Processes that do nothing.
const IDLE: usize = 2000;

/// Over which the use of the processor is taken.
const IDLE_TIME: Duration = Duration::from_secs(20);

/// Forks of a slice of the loop. A shell makes 1,000 in half a second.
const FORKS: u32 = 3000;

/// Slices with and without the tracer, in turn: what differs is a few percent of a noisy figure.
const SLICES: usize = 12;

/// For whatever should take a second.
const PATIENCE: Duration = Duration::from_mins(1);

/// The Python runner gives up after 15 s.
const PYTHON_PATIENCE: Duration = Duration::from_secs(20);

/// The programs as the kernel cuts their names, and what each run may cost in nanoseconds.
const COSTS: [(&str, Figure); 4] = [
    ("process_exit", Figure::BpfExit),
    ("process_fork", Figure::BpfFork),
    ("process_exec", Figure::BpfExec),
    ("sigkill", Figure::BpfSignal),
];

/// Takes what is wanted of the figures about kills.
pub(super) fn run(programs: &Programs, results: &mut Results) -> Result<()> {
    let wants = |results: &Results, figures: &[Figure]| figures.iter().any(|figure| results.wants(*figure));
    if wants(results, &[Figure::OomAttach, Figure::OomRss]) {
        step("attaching the OOM tracer");
        attach(programs, results)?;
    }
    if wants(results, &[Figure::OomReport]) {
        step(&format!("{KILLS} kills, and how long each report takes"));
        reports(programs, results)?;
    }
    if wants(results, &COSTS.map(|(_, figure)| figure)) {
        step("what the programs cost in the kernel");
        costs(programs, results)?;
    }
    if wants(results, &[Figure::OomForks]) {
        step("a loop of forks, with the tracer and without");
        forks(programs, results)?;
    }
    if wants(results, &[Figure::OomIdle, Figure::OomLook]) {
        step(&format!("{IDLE} idle processes"));
        idle(programs, results)?;
    }
    Ok(())
}

/// `krunner monitor`, which is the tracer and nothing else.
struct Monitor {
    child: Child,
    attached_ms: f64,
}

impl Monitor {
    fn start(krunner: &Path) -> Result<Self> {
        let began = Instant::now();
        let mut child = Command::new(krunner).args(["monitor", "--json"]).stdout(Stdio::piped()).spawn()?;
        let mut first = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut first)?;
        let attached_ms = began.elapsed().as_secs_f64() * 1e3;
        let monitor = Self { child, attached_ms };
        let told: Value = serde_json::from_str(&first).context("`krunner monitor` says nothing")?;
        if told["tracer"] != "bpf" {
            bail!("there is no BPF here: {}", told["why_not_bpf"]);
        }
        Ok(monitor)
    }

    fn memory_mib(&self, field: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn attach(programs: &Programs, results: &mut Results) -> Result<()> {
    for _ in 0..10 {
        let monitor = Monitor::start(&programs.krunner)?;
        results.add(Figure::OomAttach, Who::Krunner, monitor.attached_ms);
        thread::sleep(Duration::from_millis(200));
        results.add(Figure::OomRss, Who::Krunner, monitor.memory_mib("VmRSS:")?);
        results.note_once(format!("peak RSS while the tracer is loaded: {:.1} MiB", monitor.memory_mib("VmHWM:")?));
    }
    Ok(())
}

/// A memory cgroup below our own.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make() -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let v1 = own.lines().find_map(|line| line.split_once(":memory:"));
        let (parent, limit) = match v1 {
            Some((_, path)) => (format!("/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes"),
            None => {
                let path = own.lines().find_map(|line| line.strip_prefix("0::")).context("no memory cgroup")?;
                (format!("/sys/fs/cgroup{path}"), "memory.max")
            }
        };
        let folder = Path::new(&parent).join(format!("krunner-bench-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let made = Self(folder);
        fs::write(made.0.join(limit), VICTIM_BYTES.to_string())?;
        Ok(made)
    }

    /// A shell line that ends with a kill.
    fn victim(&self) -> String {
        format!("sh -c 'echo $$ > {}; exec tail /dev/zero'", self.0.join("cgroup.procs").display())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The last victim may not be cleared away yet.
        let deadline = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// `krunner send`, whose lines are timed as they come.
struct Sender(Child);

impl Sender {
    fn start(programs: &Programs, world: &World, line: &str) -> Result<Self> {
        let mut command = Command::new(&programs.krunner);
        command.args(["send", "--json", "--in-port", &world.ports.replin.to_string()]);
        command.args(["--out-port", &world.ports.replout.to_string(), "exec", line]);
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?))
    }

    /// When each line with `text` in it came, in nanoseconds since boot; until `count` have.
    fn times(&mut self, text: &str, count: usize) -> Result<Vec<u64>> {
        let mut times = Vec::new();
        for line in BufReader::new(self.0.stdout.take().context("no output")?).lines() {
            let line = line?;
            let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
            let now = u64::try_from(now.as_nanos())?;
            times.extend(std::iter::repeat_n(now, line.matches(text).count()));
            if times.len() >= count {
                break;
            }
        }
        Ok(times)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds")]
fn reports(programs: &Programs, results: &mut Results) -> Result<()> {
    let cgroup = Cgroup::make()?;
    let world = World::make(Who::Krunner, Runtime::Shell, programs)?;
    let logs = world.home().join(".logs");
    fs::create_dir(&logs)?;
    world.open_gate()?;
    wait_for("the tracer to be attached", || world.is_traced())?;
    // Further apart than a burst of reports is told in full.
    let line = format!("i=0; while [ $i -lt {KILLS} ]; do {}; sleep 0.12; i=$((i+1)); done", cgroup.victim());
    let mut sender = Sender::start(programs, &world, &line)?;
    let told = sender.times("oom-killed process:", KILLS)?;
    let record = || fs::read_to_string(logs.join("oom.jsonl")).unwrap_or_default();
    wait_for("the record of kills", || record().lines().count() >= KILLS)?;
    let exits = record().lines().map(|line| Ok(serde_json::from_str::<Value>(line)?)).collect::<Result<Vec<_>>>()?;
    if told.len() != KILLS || exits.len() != KILLS {
        bail!("{} reports arrived and {} were recorded of {KILLS} kills", told.len(), exits.len());
    }
    let since = |field: &str| {
        let pairs = exits.iter().zip(&told);
        let mut took: Vec<f64> =
            pairs.map(|(kill, told)| told.saturating_sub(kill[field].as_u64().unwrap_or(0)) as f64 / 1e6).collect();
        took.sort_by(f64::total_cmp);
        took
    };
    let (exit, killed) = (since("exited_at_boot_ns"), since("killed_at_boot_ns"));
    results.add(Figure::OomReport, Who::Krunner, exit[KILLS * 99 / 100 - 1]);
    results.note(format!(
        "exit to report: p50 {:.2} ms, worst {:.2} ms; from the SIGKILL: p50 {:.2} ms, p99 {:.2} ms",
        exit[KILLS / 2],
        exit[KILLS - 1],
        killed[KILLS / 2],
        killed[KILLS * 99 / 100 - 1]
    ));
    world.stop()?;
    python_report(programs, results, &cgroup)
}

/// One kill, of which the Python runner is told at once.
fn python_report(programs: &Programs, results: &mut Results, cgroup: &Cgroup) -> Result<()> {
    let world = World::make(Who::Python, Runtime::Shell, programs)?;
    world.open_gate()?;
    thread::sleep(Duration::from_secs(4));
    let line = format!("{}; echo killed; sleep {}", cgroup.victim(), PYTHON_PATIENCE.as_secs());
    let mut sender = Sender::start(programs, &world, &line)?;
    let mut began = None;
    for line in BufReader::new(sender.0.stdout.take().context("no output")?).lines() {
        let line = line?;
        if line.contains("killed\\n") && began.is_none() {
            began = Some(Instant::now());
            let mut event = Command::new(&programs.krunner);
            event.args(["send", "--in-port", &world.ports.replin.to_string()]);
            event.args(["--out-port", &world.ports.replout.to_string(), "event", r#"{"type":"oom","data":""}"#]);
            event.status()?;
        }
        let failed = line.contains("failed to get the information");
        if let Some(began) = began.filter(|_| failed || line.contains("oom-killed process")) {
            results.add(Figure::OomReport, Who::Python, began.elapsed().as_secs_f64() * 1e3);
            if failed {
                results.note("the Python runner named nobody".to_owned());
            }
            break;
        }
    }
    world.stop()
}

/// A container's pid namespace with `krunner monitor` in it, a load while the kernel counts, and then a wait.
const COUNTED: &str = r#"
set -e
krunner=$1 told=$2 switch=/proc/sys/kernel/bpf_stats_enabled
"$krunner" monitor --json >"$told" &
until grep -q watching "$told"; do sleep 0.02; done
before=$(cat $switch)
echo 1 >$switch
i=0; while [ $i -lt 4000 ]; do /bin/true; (:); kill -CONT $$; i=$((i+1)); done
echo "$before" >$switch
echo counted
read -r _
"#;

/// Run times of the programs under a load of forks, execs and exits.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds")]
fn costs(programs: &Programs, results: &mut Results) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let told = folder.path().join("told");
    let others: Vec<u32> = loaded_programs().filter_map(|program| Some(program.ok()?.id())).collect();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", COUNTED, "sh"]);
    let mut container =
        command.arg(&programs.krunner).arg(&told).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut counted = String::new();
    let read = BufReader::new(container.stdout.take().context("no output")?).read_line(&mut counted);
    for program in loaded_programs() {
        let program = program?;
        let (name, runs, total) = (program.name_as_str().unwrap_or(""), program.run_count(), program.run_time());
        let wanted = COSTS.iter().find(|(wanted, _)| *wanted == name && runs > 0 && !others.contains(&program.id()));
        let Some((_, figure)) = wanted else { continue };
        let mean = total.as_nanos() as f64 / runs as f64;
        results.add(*figure, Who::Krunner, mean);
        results.note(format!("{name}: {mean:.0} ns in the mean of {runs} runs"));
    }
    drop(container.stdin.take());
    container.wait()?;
    read?;
    if counted.trim() != "counted" {
        bail!("the load did not come to its end; {}", fs::read_to_string(&told)?.trim());
    }
    Ok(())
}

/// How much longer a loop of forks takes.
fn forks(programs: &Programs, results: &mut Results) -> Result<()> {
    let loop_of_forks = || -> Result<f64> {
        let line = format!("i=0; while [ $i -lt {FORKS} ]; do (:); i=$((i+1)); done");
        let began = Instant::now();
        if !Command::new("sh").args(["-c", &line]).status()?.success() {
            bail!("the loop of forks failed");
        }
        Ok(began.elapsed().as_secs_f64())
    };
    loop_of_forks()?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..SLICES {
        without.push(loop_of_forks()?);
        let _monitor = Monitor::start(&programs.krunner)?;
        thread::sleep(Duration::from_millis(100));
        with.push(loop_of_forks()?);
    }
    let least = |times: &[f64]| times.iter().copied().fold(f64::INFINITY, f64::min);
    let (Some(with_mid), Some(without_mid)) = (median(&with), median(&without)) else { bail!("no slices") };
    results.add(Figure::OomForks, Who::Krunner, (with_mid / without_mid - 1.0) * 100.0);
    results.note(format!(
        "{FORKS} forks: median {:.0} ms without, {:.0} ms with the tracer; fastest {:.0} and {:.0} ms",
        without_mid * 1e3,
        with_mid * 1e3,
        least(&without) * 1e3,
        least(&with) * 1e3
    ));
    Ok(())
}

/// What runners use while thousands of processes sleep, and how long a look at them takes.
fn idle(programs: &Programs, results: &mut Results) -> Result<()> {
    for who in [Who::Krunner, Who::Python] {
        let world = World::make(who, Runtime::Shell, programs)?;
        world.open_gate()?;
        thread::sleep(Duration::from_secs(3));
        let line = format!("i=0; while [ $i -lt {IDLE} ]; do sleep 600 & i=$((i+1)); done; echo ready; wait");
        let mut sender = Sender::start(programs, &world, &line)?;
        sender.times("ready", 1)?;
        thread::sleep(Duration::from_secs(6));
        let pid = world.runner_pid().context("the runner is gone")?;
        let before = processor_seconds(pid)?;
        thread::sleep(IDLE_TIME);
        let used = processor_seconds(pid)? - before;
        results.add(Figure::OomIdle, who, used / IDLE_TIME.as_secs_f64() * 100.0);
        if who == Who::Krunner {
            for _ in 0..5 {
                results.add(Figure::OomLook, who, look_ms(&programs.krunner)?);
            }
        }
        drop(sender);
        world.stop()?;
    }
    Ok(())
}

/// As `krunner doctor` measures it.
fn look_ms(krunner: &Path) -> Result<f64> {
    let output = Command::new(krunner).args(["doctor", "--json"]).output()?;
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let checks = told["checks"].as_array().context("no checks")?;
    let look = checks.iter().find(|check| check["check"] == "proc-look").context("doctor measured no look")?;
    let found = look["found"].as_str().context("no finding")?;
    let ms = found.split_once(" ms").and_then(|(text, _)| text.rsplit(' ').next()).context("no time")?;
    Ok(ms.parse()?)
}

/// Used by a process so far, in and for it.
fn processor_seconds(pid: Pid) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("a strange stat")?.1;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = 0.0;
    for _ in 0..2 {
        ticks += fields.next().context("a short stat")?.parse::<f64>()?;
    }
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(ticks / f64::from(i32::try_from(per_second)?))
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        if Instant::now() > deadline {
            bail!("waited {PATIENCE:?} in vain for {what}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
