//! `cargo xtask vm --node`: real container engines in a virtual machine that is a node: Debian, systemd, cgroup v2, two
//! processors.
//!
//! ```text
//!  rootfs (mmdebstrap, cached) ─ disk ──┐
//!  files (krunner, recipes) ─ initramfs ┴─▶ QEMU ─▶ systemd ─▶ tests/vm/node ─ JSON lines ─▶ table
//! ```

mod files;
mod rootfs;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use krunner_tests::flaky::Retry;
use krunner_tests::node_vm::{ContainerOutcome, NodeEvent};
use krunner_tests::oom_matrix::FALLBACK_PERCENT;

use super::qemu::{Processors, Qemu};
use crate::host;
use crate::musl::Arch;
use crate::summary::Check;
use crate::workspace::step;
use files::Programs;
use rootfs::Rootfs;

/// Debian's suites that can be a node, the current one first.
pub(super) const SUITES: [&str; 2] = ["trixie", "bookworm"];

/// Where engines and kernel before the current Debian's differ: users with two capabilities, and a Docker that does not know them.
const ON_OLDER: [&str; 3] =
    ["docker root, two capabilities", "CRI session-capabilities.yaml", "podman user, two capabilities"];

/// The deadline for booting. Takes 12 s on an idle machine.
const BOOT: Duration = Duration::from_mins(3);

/// The deadline between two events. An engine's answer may take two minutes and a half, and so may the last step of a machine that
/// runs out of memory.
const SILENCE: Duration = Duration::from_mins(8);

/// The deadline for the whole run.
const WHOLE: Duration = Duration::from_mins(45);

/// Docker and containerd take 250 MiB, and the recipes' sessions fill 512 MiB.
const MEMORY_MIB: u32 = 1536;

const CPUS: usize = 2;

/// The tracer where BPF is not available.
const FALLBACK: &str = "snapshot";

/// Nothing is shown on the console while systemd starts.
const KERNEL_LINE: &str = "console=ttyS0 quiet systemd.show_status=0 mitigations=off panic=-1 net.ifnames=0";

/// The result of a machine's run.
struct NodeRun {
    kernel: String,
    outcomes: Vec<ContainerOutcome>,
    /// What this suite's engines cannot make.
    not_tried: Vec<String>,
    /// Why the run is incomplete.
    fault: Option<String>,
    took: Duration,
}

/// Tries the containers in a machine of this suite. Returns `false` when one fails.
pub(super) fn run(suite: &str, only: &[String]) -> Result<bool> {
    let node = boot_one(suite, only)?;
    print!("\n{}", table(suite, &node));
    Ok(node.failures().is_empty())
}

/// Tries them as part of `cargo xtask test`: all on the current Debian, and [`ON_OLDER`] on the one before.
pub(super) fn test() -> Result<Vec<Check>> {
    let [current, older] = SUITES;
    let mut checks = test_suite(current, &[])?;
    checks.extend(test_suite(older, &ON_OLDER.map(str::to_owned))?);
    Ok(checks)
}

/// Containers that fail are tried once more, in a machine of their own; all of them if the machine fails.
fn test_suite(suite: &str, only: &[String]) -> Result<Vec<Check>> {
    let mut node = boot_one(suite, only)?;
    print!("\n{}", table(suite, &node));
    let failed = node.failed();
    let is_whole = node.fault.is_some();
    if is_whole || !failed.is_empty() {
        Retry::new(format!("node::{suite}"), &node.failures().join("; "), 1, 2).record();
        let again = boot_one(suite, if is_whole { only } else { &failed })?;
        print!("\n{}", table(suite, &again));
        if is_whole {
            node = again;
        } else {
            node.replace(again);
        }
    }
    let check = |name: String, problems| Check { name: format!("node::{suite}::{name}"), outcome: Ok(problems) };
    let mut checks: Vec<Check> =
        node.outcomes.iter().map(|outcome| check(name(outcome), outcome.problems.clone())).collect();
    checks.push(check("fallback".to_owned(), node.fallback_shortfalls()));
    let untried = only.iter().filter(|wanted| !node.outcomes.iter().any(|outcome| name(outcome) == **wanted)).cloned();
    // The current engines have all that is needed.
    let untried: Vec<String> = if suite == SUITES[0] { node.not_tried.clone() } else { untried.collect() };
    checks.push(check("not tried".to_owned(), untried));
    checks.push(check("whole run".to_owned(), node.fault.into_iter().collect()));
    Ok(checks)
}

/// Makes and builds what [`test`] needs.
pub(super) fn prepare() -> Result<()> {
    let folder = folder()?;
    for suite in SUITES {
        rootfs::ensure(suite, &folder)?;
    }
    Programs::build().map(drop)
}

/// Where the machine's files are.
fn folder() -> Result<PathBuf> {
    if let Some(missing) = host::missing_for_nodes() {
        bail!("{missing}; `cargo xtask test --all` installs it");
    }
    super::folder()
}

fn name(outcome: &ContainerOutcome) -> String {
    format!("{} {}", outcome.engine, outcome.container)
}

fn boot_one(suite: &str, only: &[String]) -> Result<NodeRun> {
    let folder = folder()?;
    let began = Instant::now();
    let rootfs = rootfs::ensure(suite, &folder)?;
    let programs = Programs::build()?;
    step(&format!("booting a node of Debian {suite} (files took {} s)", began.elapsed().as_secs()));
    let image = folder.join(format!("initramfs-{suite}"));
    programs.pack(only, &image)?;
    boot(suite, &rootfs, &image, &folder)
}

fn boot(suite: &str, rootfs: &Rootfs, image: &Path, folder: &Path) -> Result<NodeRun> {
    let words = |words: [String; 2]| words;
    let further = [
        words(["-kernel".to_owned(), rootfs.kernel.display().to_string()]),
        words(["-initrd".to_owned(), image.display().to_string()]),
        words(["-append".to_owned(), KERNEL_LINE.to_owned()]),
        // What the machine writes is gone with it.
        words(["-drive".to_owned(), format!("if=none,id=d,file={},format=raw,snapshot=on", rootfs.disk.display())]),
        words(["-device".to_owned(), "nvme,drive=d,serial=root".to_owned()]),
    ];
    let console = folder.join(format!("console-{suite}"));
    let began = Instant::now();
    let machine = Qemu::start(Arch::X86_64, Processors::Parallel(CPUS), MEMORY_MIB, &console, &further.concat())?;
    let mut run = NodeRun {
        kernel: String::new(),
        outcomes: Vec::new(),
        not_tried: Vec::new(),
        fault: None,
        took: Duration::ZERO,
    };
    run.fault = run.listen(suite, &machine).err().map(|fault| format!("{fault}\n{}", machine.tail()));
    run.took = began.elapsed();
    Ok(run)
}

impl NodeRun {
    /// `Err` describes the fault.
    fn listen(&mut self, suite: &str, machine: &Qemu) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let patience = if self.kernel.is_empty() { BOOT } else { SILENCE };
            let left = WHOLE.saturating_sub(began.elapsed());
            let line = machine.line(patience.min(left)).map_err(|error| match error {
                RecvTimeoutError::Disconnected => "powered off before it was done".to_owned(),
                RecvTimeoutError::Timeout if left <= patience => format!("not done within {} s", WHOLE.as_secs()),
                RecvTimeoutError::Timeout => {
                    format!("silent for {} s, {} s after power on", patience.as_secs(), began.elapsed().as_secs())
                }
            })?;
            let Some(line) = Some(line.trim()).filter(|line| !line.is_empty()) else { continue };
            let event = serde_json::from_str(line)
                .map_err(|error| format!("invalid line on the serial port ({error}): {line:?}"))?;
            println!("{suite}: {:5.1} s {}", began.elapsed().as_secs_f64(), progress(&event));
            match event {
                NodeEvent::Booted { kernel } => self.kernel = kernel,
                NodeEvent::Outcome { outcome } => self.outcomes.push(outcome),
                NodeEvent::Done => return Ok(()),
                NodeEvent::Failed { reason } => return Err(reason),
                NodeEvent::NotTried { name, .. } => self.not_tried.push(name),
                NodeEvent::Prepared { .. } | NodeEvent::Printed { .. } => {}
            }
        }
    }

    /// Takes the outcomes of a second run. What was not tried again has failed.
    fn replace(&mut self, again: Self) {
        for outcome in again.outcomes {
            if let Some(before) = self.outcomes.iter_mut().find(|before| name(before) == name(&outcome)) {
                *before = outcome;
            }
        }
        self.fault = again.fault;
    }

    /// The containers to try once more.
    fn failed(&self) -> Vec<String> {
        let is_fallback_short = !self.fallback_shortfalls().is_empty();
        let is_inexact = |outcome: &ContainerOutcome| {
            is_fallback_short && outcome.tracer == FALLBACK && (outcome.correct < outcome.kills || outcome.wrong > 0)
        };
        let has_failed = |outcome: &&ContainerOutcome| !outcome.problems.is_empty() || is_inexact(outcome);
        self.outcomes.iter().filter(has_failed).map(name).collect()
    }

    /// What the containers without BPF do not reach, all together. As in the machines with the OOM matrix, it is about the kills that
    /// reports name, and the reports that are right.
    fn fallback_shortfalls(&self) -> Vec<String> {
        let sum = |number: fn(&ContainerOutcome) -> u64| -> u64 {
            self.outcomes.iter().filter(|outcome| outcome.tracer == FALLBACK).map(number).sum()
        };
        let (kills, reported) = (sum(|outcome| outcome.kills), sum(|outcome| outcome.reported));
        let correct = sum(|outcome| outcome.correct);
        let short = |of: u64, what: &str| {
            let is_short = correct * 100 < of * u64::from(FALLBACK_PERCENT);
            is_short.then(|| format!("fallback: {correct} of {of} {what}; {FALLBACK_PERCENT} % required"))
        };
        let named = short(kills, "victims were named");
        named.into_iter().chain(short(reported, "reports were correct")).collect()
    }

    fn failures(&self) -> Vec<String> {
        let of = |outcome: &ContainerOutcome| {
            let problems = outcome.problems.iter();
            problems.map(|problem| format!("{}: {problem}", name(outcome))).collect::<Vec<_>>()
        };
        let nothing = self.outcomes.is_empty().then(|| "no container was tried".to_owned());
        let each = self.outcomes.iter().flat_map(of);
        self.fault.iter().cloned().chain(nothing).chain(each).chain(self.fallback_shortfalls()).collect()
    }
}

fn progress(event: &NodeEvent) -> String {
    match event {
        NodeEvent::Booted { kernel } => format!("{kernel} is up"),
        NodeEvent::Prepared { what, seconds } => format!("{what} ({seconds:.1} s)"),
        NodeEvent::Printed { title, text } => format!("{title}:\n{}", text.trim_end()),
        NodeEvent::Outcome { outcome } if outcome.problems.is_empty() => {
            format!("{} ({:.1} s)", name(outcome), outcome.seconds)
        }
        NodeEvent::Outcome { outcome } => format!("{} FAILED: {}", name(outcome), outcome.problems.join("; ")),
        NodeEvent::NotTried { name, reason } => format!("{name} not tried: {reason}"),
        NodeEvent::Done => "done".to_owned(),
        NodeEvent::Failed { reason } => format!("FAILED: {reason}"),
    }
}

fn table(suite: &str, run: &NodeRun) -> String {
    let mut text = format!(
        "{:<17} {:<30} {:<9} {:>5} {:>8} {:>7} {:>5} {:>6}  confidence\n",
        "engine", "container", "tracer", "kills", "reported", "correct", "wrong", "s"
    );
    for outcome in &run.outcomes {
        let _ = writeln!(
            text,
            "{:<17} {:<30} {:<9} {:>5} {:>8} {:>7} {:>5} {:>6.1}  {}",
            outcome.engine,
            outcome.container,
            outcome.tracer,
            outcome.kills,
            outcome.reported,
            outcome.correct,
            outcome.wrong,
            outcome.seconds,
            outcome.confidence
        );
    }
    let _ = writeln!(text, "{suite}, {}: {} containers in {} s", run.kernel, run.outcomes.len(), run.took.as_secs());
    for failure in run.failures() {
        let _ = writeln!(text, "{suite} FAILS: {failure}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_without_bpf_are_scored_together() {
        let outcome = |container: &str, tracer: &str, [kills, reported, correct]: [u64; 3]| ContainerOutcome {
            container: container.to_owned(),
            tracer: tracer.to_owned(),
            kills,
            reported,
            correct,
            wrong: reported - correct,
            ..ContainerOutcome::default()
        };
        let run = |inexact: [u64; 3]| NodeRun {
            kernel: String::new(),
            outcomes: vec![
                outcome("exact", "bpf", [5, 5, 5]),
                outcome("most", FALLBACK, [15, 15, 15]),
                outcome("few", FALLBACK, inexact),
            ],
            not_tried: Vec::new(),
            fault: None,
            took: Duration::ZERO,
        };
        assert_eq!(run([5, 4, 4]).failures(), Vec::<String>::new(), "19 of 20");
        assert_eq!(run([5, 5, 4]).failed(), Vec::<String>::new(), "19 of 20");
        assert_eq!(run([5, 3, 3]).failures(), ["fallback: 18 of 20 victims were named; 95 % required"]);
        let wrong = run([5, 5, 3]);
        assert_eq!(wrong.failures().len(), 2);
        assert_eq!(wrong.failed(), [" few"]);
    }
}
