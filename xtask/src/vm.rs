//! `cargo xtask vm`: runs the OOM matrix on other kernels, and real container engines on a node, in virtual machines.
//!
//! `kernels` fetches the kernels, `image` packs the initramfs (an archive written by `cpio`), `machine` boots a machine and
//! reads its output (`qemu` is the process). `node` is a machine with container engines. This module schedules the machines and summarizes their outcomes.

mod cpio;
mod image;
mod kernels;
mod machine;
mod node;
mod qemu;

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use krunner_tests::flaky::Retry;
use krunner_tests::machine_checks::MachineCheck;
use krunner_tests::oom_matrix::{self, CaseResult, MonitorMode, Outcome, Requirements, Totals};
use serde_json::{Value, json};

use crate::host;
use crate::musl::Arch;
use crate::oom_matrix::{check_names, line};
use crate::summary::Check;
use crate::workspace::{joined, step, target_dir};
use kernels::Kernel;
use machine::{Event, Run};

const HELP: &str = "\
Boots each kernel in QEMU with an emulated processor; neither root nor KVM is needed. The image has a static krunner, \
busybox and the cases of `cargo xtask oom-matrix`. The machines use cgroup v2, do not mount tracefs, and may run out of \
memory. Two machines run in parallel if this host has two processors. A machine has one processor; the group kills run \
again with two, where processes die in parallel.

Kernels are Debian packages. apt fetches them from the mirror that this machine uses, and they stay unpacked in \
target/vm/kernels. VERSION is a prefix: 6.1, 6.12, 7 (the newest 7.x). 6.12-arm64 and 6.12-arm64-16k are kernels for arm64, with pages of 4 KiB and 16 KiB. \
To add another kernel, put it at target/vm/kernels/VERSION/vmlinuz.

--node builds a root file system of Debian trixie or bookworm with mmdebstrap, as root, in target/vm/nodes, and boots it with \
systemd, cgroup v2 and two processors. In it Docker, podman, containerd (also as the kubelet asks for containers) and runc carry \
out the recipes of krunner/dist and other containers, with real OOM kills.

Beside the cases, a machine checks selftest, survival (sessions in a killed cgroup), krunner-node, memory.high (programs that the \
kernel slows down), and restrictions (no BTF, \
unprivileged_bpf_disabled, lockdown); --only selects these, too.

A case that a kernel cannot run is shown as n/a, with the reason. Delays are not checked because the processor is emulated.

Examples:
  cargo xtask vm
  cargo xtask vm --kernel 5.10 6.12 --only row group global
  cargo xtask vm --kernel 6.12-arm64 6.12-arm64-16k
  cargo xtask vm --kernel 6.18 --verbose
  cargo xtask vm --json target/vm.json
  cargo xtask vm --node
  cargo xtask vm --node bookworm --only podman

Exit codes: 0 all kernels pass, 1 a kernel fails or a machine stops early (the end of its console is printed), 2 wrong usage.";

/// Arguments of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Boot these kernels
    #[arg(long, value_name = "VERSION", num_args = 1.., default_values_t = kernels::DEFAULT.map(str::to_owned))]
    kernel: Vec<String>,
    /// Boot a node instead, a Debian with Docker, podman and containerd, and try krunner in their containers
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = node::SUITES[0])]
    #[arg(value_parser = node::SUITES, conflicts_with_all = ["kernel", "cpus", "json", "verbose"])]
    node: Option<String>,
    /// Run only cases, or with --node containers, whose name contains one of these
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Processors per machine; by default one, and a second run of the group kills with two
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..=8))]
    cpus: Option<u8>,
    /// Also write the outcomes to FILE as JSON; - prints JSON instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print each outcome as it arrives
    #[arg(long)]
    verbose: bool,
}

/// A kernel and the result of its machines.
struct KernelRun {
    kernel: Kernel,
    run: Run,
}

/// What to run in the machines of a kernel.
#[derive(Clone, Copy)]
struct Cases<'a> {
    only: &'a [String],
    cpus: Option<u8>,
}

impl Cases<'_> {
    /// Runs with one processor, then the group kills with two unless cases or processors were selected.
    fn run(self, kernel: &Kernel, image: &Path, folder: &Path, mut on_event: impl FnMut(&Event)) -> Result<Run> {
        let cpus = self.cpus.map_or(1, usize::from);
        let mut run = machine::boot(kernel, image, self.only, cpus, folder, &mut on_event)?;
        if self.cpus.is_some() || !self.only.is_empty() || run.fault.is_some() {
            return Ok(run);
        }
        let group = ["oom-group".to_owned()];
        let second = machine::boot(kernel, image, &group, machine::GROUP_CPUS, folder, &mut on_event)?;
        let cases = second.outcomes.into_iter();
        run.outcomes.extend(cases.map(|outcome| Outcome { case: format!("{}, 2 CPUs", outcome.case), ..outcome }));
        run.fault = second.fault;
        run.took += second.took;
        Ok(run)
    }
}

/// Boots the kernels. Returns `false` when one fails.
pub(crate) fn run(args: &Args) -> Result<bool> {
    if let Some(suite) = &args.node {
        return node::run(suite, &args.only);
    }
    let is_check = |part: &&String| MachineCheck::ALL.iter().any(|check| check.is_wanted(std::slice::from_ref(part)));
    check_names(&args.only.iter().filter(|part| !is_check(part)).cloned().collect::<Vec<_>>())?;
    let mut archs = args.kernel.iter().map(|version| kernels::arch(version));
    if let Some(missing) = archs.find_map(host::missing_for_machines) {
        bail!("{missing}; `cargo xtask test --all` installs it");
    }
    let cases = Cases { only: &args.only, cpus: args.cpus };
    let runs = run_all(&args.kernel, cases, most_at_once(), args.verbose)?;
    let is_on_stdout = args.json.as_deref().is_some_and(|file| file == Path::new("-"));
    match args.json.as_deref() {
        Some(_) if is_on_stdout => println!("{:#}", in_json(&runs)),
        Some(file) => fs::write(file, format!("{:#}\n", in_json(&runs)))
            .with_context(|| format!("cannot write {}", file.display()))?,
        None => {}
    }
    if !is_on_stdout {
        print!("\n{}", table(&runs));
    }
    Ok(runs.iter().all(|run| run.shortfalls().is_empty()))
}

/// Kernels that `cargo xtask test --all` boots.
#[derive(Debug, Clone, Copy)]
pub(crate) enum KernelSet {
    /// This processor's, of different ages.
    Default,
    Arm64,
}

impl KernelSet {
    fn versions(self) -> Vec<String> {
        let versions: &[&str] = match self {
            Self::Default => &kernels::DEFAULT,
            Self::Arm64 => &kernels::ARM64,
        };
        versions.iter().map(|version| (*version).to_owned()).collect()
    }
}

/// Fetches and builds what [`test`] needs.
pub(crate) fn prepare(set: KernelSet) -> Result<()> {
    let folder = folder()?;
    Images::pack(&kernels::ensure(&set.versions(), &folder)?, &folder).map(drop)
}

/// Fetches and builds what [`test_engines`] needs.
pub(crate) fn prepare_engines() -> Result<()> {
    node::prepare()
}

/// An initramfs for each processor.
struct Images(Vec<(Arch, PathBuf)>);

impl Images {
    fn pack(kernels: &[Kernel], folder: &Path) -> Result<Self> {
        let wanted = |arch: &Arch| kernels.iter().any(|kernel| kernel.arch == *arch);
        let pack = |arch| Ok((arch, image::pack(arch, folder)?));
        Arch::ALL.into_iter().filter(wanted).map(pack).collect::<Result<_>>().map(Self)
    }

    fn of(&self, arch: Arch) -> Result<&Path> {
        let found = self.0.iter().find(|(of, _)| *of == arch);
        found.map(|(_, image)| image.as_path()).with_context(|| format!("no image for {arch}"))
    }
}

/// Where the machines' files are.
fn folder() -> Result<PathBuf> {
    let folder = target_dir()?.join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Runs these kernels as part of `cargo xtask test --all`. Load on this machine delays what happens in all machines that
/// run at the same time, so a kernel that fails is run once more, without the other kernels. Both results are printed, and the
/// retry is counted.
pub(crate) fn test(set: KernelSet) -> Result<Vec<Check>> {
    let cases = Cases { only: &[], cpus: None };
    let mut runs = run_all(&set.versions(), cases, most_at_once(), false)?;
    print!("\n{}", table(&runs));
    for run in runs.iter_mut().filter(|run| !run.shortfalls().is_empty()) {
        Retry::new(format!("vm::{}", run.kernel.wanted), &run.shortfalls().join("; "), 1, 2).record();
        let again = run_all(std::slice::from_ref(&run.kernel.wanted), cases, 1, false)?;
        print!("\n{}", table(&again));
        if let Some(again) = again.into_iter().next() {
            *run = again;
        }
    }
    Ok(runs.iter().map(|run| check(&run.kernel.wanted, Ok(run.shortfalls()))).collect())
}

/// Tries the containers of real engines as part of `cargo xtask test --all --engines`.
pub(crate) fn test_engines() -> Result<Vec<Check>> {
    node::test()
}

/// The same checks, skipped for this reason.
pub(crate) fn skipped(reason: &str) -> Vec<Check> {
    kernels::DEFAULT.iter().map(|version| check(version, Err(reason.to_owned()))).collect()
}

fn check(version: &str, outcome: Result<Vec<String>, String>) -> Check {
    Check { name: format!("vm::{version}"), outcome }
}

/// A machine uses one processor.
fn most_at_once() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn run_all(versions: &[String], cases: Cases<'_>, at_once: usize, verbose: bool) -> Result<Vec<KernelRun>> {
    let folder = folder()?;
    let kernels = kernels::ensure(versions, &folder)?;
    let images = Images::pack(&kernels, &folder)?;
    let began = Instant::now();
    let at_once = at_once.clamp(1, kernels.len());
    step(&format!("booting {} kernels, {at_once} at a time", kernels.len()));
    let waiting = Mutex::new(kernels.iter().cloned().collect::<VecDeque<_>>());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let work = || -> Result<Vec<KernelRun>> {
        let mut runs = Vec::new();
        while let Some(kernel) = next() {
            let booted_at = Instant::now();
            let run = cases
                .run(&kernel, images.of(kernel.arch)?, &folder, |event| progress(&kernel, event, booted_at, verbose))?;
            println!("{}: {} in {} s", kernel.wanted, summary_of(&run), run.took.as_secs());
            runs.push(KernelRun { kernel, run });
        }
        Ok(runs)
    };
    let done: Vec<Result<Vec<KernelRun>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(joined).collect()
    });
    let mut runs: Vec<KernelRun> = done.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    runs.sort_by_key(|run| versions.iter().position(|version| *version == run.kernel.wanted));
    step(&format!("{} kernels in {} s", runs.len(), began.elapsed().as_secs()));
    Ok(runs)
}

fn progress(kernel: &Kernel, event: &Event, began: Instant, verbose: bool) {
    let wanted = &kernel.wanted;
    match event {
        Event::Booted { kernel: release } => {
            println!("{wanted}: {release} ({}) is up after {:.1} s", kernel.package, began.elapsed().as_secs_f64());
        }
        Event::Outcome { outcome } if verbose || !is_fine(outcome) => {
            println!("{wanted}: {:5.1} s {}", began.elapsed().as_secs_f64(), line(outcome));
        }
        Event::Checked { name, problem } => {
            println!(
                "{wanted}: {name}: {}",
                problem.as_ref().map_or("ok".to_owned(), |problem| format!("FAILED: {problem}"))
            );
        }
        Event::Outcome { .. } | Event::Retried { .. } | Event::Done | Event::Failed { .. } => {}
    }
}

fn is_fine(outcome: &Outcome) -> bool {
    matches!(&outcome.result, CaseResult::Scored(score) if score.missed + score.wrong == 0 && score.problems.is_empty())
}

fn summary_of(run: &Run) -> String {
    match &run.fault {
        Some(fault) => format!("FAILED, {fault}"),
        None => format!("{} outcomes", run.outcomes.len()),
    }
}

impl KernelRun {
    /// The requirements that this kernel missed.
    fn shortfalls(&self) -> Vec<String> {
        let of = |mode: &MonitorMode| {
            let short = oom_matrix::shortfalls(*mode, &self.run.outcomes, Requirements::EMULATED).into_iter();
            short.map(|text| format!("{mode}: {text}")).collect::<Vec<_>>()
        };
        let fault = self.run.fault.iter().chain(&self.run.problems).cloned();
        let nothing = (self.run.outcomes.is_empty() && self.run.checks == 0).then(|| "no case ran".to_owned());
        fault.chain(nothing).chain(MonitorMode::ALL.iter().flat_map(of)).collect()
    }
}

fn table(runs: &[KernelRun]) -> String {
    let named: Vec<_> = runs
        .iter()
        .map(|run| {
            let release = run.run.release.as_deref().unwrap_or(&run.kernel.wanted);
            let short = release.split("-cloud").next().unwrap_or(release);
            (short.to_owned(), run.run.outcomes.clone())
        })
        .collect();
    let mut text = oom_matrix::kernels(&named);
    for ((release, outcomes), run) in named.iter().zip(runs) {
        for mode in MonitorMode::ALL {
            let totals = Totals::of(mode, outcomes);
            let _ = writeln!(
                text,
                "{release}, {mode}: {} of {} reports correct, {} wrong; precision {:.1} %, recall {:.1} %, kills reported {:.1} %",
                totals.correct,
                totals.due,
                totals.wrong,
                totals.precision_percent,
                totals.recall_percent,
                totals.reported_percent
            );
        }
        text.push_str(
            &oom_matrix::unavailable(outcomes.iter())
                .replace("not available here", &format!("not available on {release}")),
        );
        for shortfall in run.shortfalls() {
            let _ = writeln!(text, "{release} FAILS: {shortfall}");
        }
    }
    text
}

fn in_json(runs: &[KernelRun]) -> Value {
    let kernel = |run: &KernelRun| {
        json!({
            "wanted": run.kernel.wanted,
            "package": run.kernel.package,
            "release": run.run.release,
            "seconds": run.run.took.as_secs_f64(),
            "outcomes": run.run.outcomes,
            "totals": MonitorMode::ALL.map(|mode| json!({ "means": mode, "totals": Totals::of(mode, &run.run.outcomes) })),
            "shortfalls": run.shortfalls(),
        })
    };
    json!({ "kernels": runs.iter().map(kernel).collect::<Vec<_>>() })
}
