//! Runs a virtual machine from power on to power off and reads the events on its second serial port.
//!
//! ```text
//!  start ─▶ booting ──"booted"──▶ running ──"outcome"──▶ running ──"done"──▶ over
//!              │ 2 min               │ silent for 4 min, 12 min in all
//!              ▼                     ▼
//!            fault, with the tail of the console. An exit without the last line is a fault too, for example a panic
//! ```
//!
//! The processor is emulated (TCG), which needs no privileges and runs anywhere, at a tenth of the speed.

use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::Result;
use krunner_tests::flaky::Retry;
use krunner_tests::oom_matrix::Outcome;
use serde::Deserialize;

use super::kernels::Kernel;
use super::qemu::{Processors, Qemu, console as console_of};

/// The deadline for booting. Takes 4 s on an idle machine.
const BOOT: Duration = Duration::from_mins(2);

/// Boot attempts. Emulation is imperfect, and a failure before init runs is unrelated to krunner.
const BOOTS: usize = 2;

/// The deadline between two outcomes. A case with a hundred kills is one outcome: on a loaded machine, two minutes with arm64.
const SILENCE: Duration = Duration::from_mins(4);

/// The deadline for the whole run.
const WHOLE: Duration = Duration::from_mins(12);

/// Enough for krunner while it reads the kernel's BTF twice. Scenarios use up the rest.
const MEMORY_MIB: u32 = 384;

/// Two, so that a container's init can exit in parallel with the processes that die with it.
pub(super) const GROUP_CPUS: usize = 2;

/// A line on the second serial port.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(super) enum Event {
    /// Init is running.
    Booted {
        /// The release, as `uname -r` prints it.
        kernel: String,
    },
    Outcome {
        outcome: Outcome,
    },
    /// A check beside the matrix is done.
    Checked {
        name: String,
        /// What failed first.
        problem: Option<String>,
    },
    /// An attempt in the machine that another one followed.
    Retried {
        retry: Retry,
    },
    Done,
    Failed {
        reason: String,
    },
}

/// The result of a machine's run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) release: Option<String>,
    pub(super) outcomes: Vec<Outcome>,
    /// The number of checks beside the matrix.
    pub(super) checks: usize,
    /// Those that failed, and why.
    pub(super) problems: Vec<String>,
    /// Why the run is incomplete.
    pub(super) fault: Option<String>,
    pub(super) took: Duration,
}

/// Boots the kernel with this image and reads its events until it powers off. Calls `on_event` for each event.
pub(super) fn boot(
    kernel: &Kernel,
    image: &Path,
    only: &[String],
    cpus: usize,
    folder: &Path,
    mut on_event: impl FnMut(&Event),
) -> Result<Run> {
    let console = folder.join(format!("console-{}", kernel.wanted));
    let began = Instant::now();
    let mut attempt = 1;
    loop {
        let mut machine = Machine::start(kernel, image, only, cpus, &console)?;
        let mut run = Run {
            release: None,
            outcomes: Vec::new(),
            checks: 0,
            problems: Vec::new(),
            fault: None,
            took: Duration::ZERO,
        };
        run.fault = machine.listen(&mut run, &mut on_event).err().map(|fault| format!("{fault}\n{}", machine.0.tail()));
        run.took = began.elapsed();
        match &run.fault {
            Some(fault) if run.release.is_none() && attempt < BOOTS => {
                println!("{}: boot {attempt} of {BOOTS} failed: {fault}", kernel.wanted);
                let why = fault.lines().next().unwrap_or_default();
                Retry::new(format!("vm::{}", kernel.wanted), why, attempt, BOOTS).record();
            }
            _ => return Ok(run),
        }
        attempt += 1;
    }
}

struct Machine(Qemu);

impl Machine {
    fn start(kernel: &Kernel, image: &Path, only: &[String], cpus: usize, console: &Path) -> Result<Self> {
        // The kernel passes the arguments after `--` to init.
        let line = format!("console={} quiet panic=-1 mitigations=off -- {}", console_of(kernel.arch), only.join(" "));
        let files = [("-kernel", &*kernel.image), ("-initrd", image), ("-append", Path::new(&line))];
        let further = files.map(|(flag, value)| [flag.to_owned(), value.display().to_string()]).concat();
        Qemu::start(kernel.arch, Processors::InTurns(cpus), MEMORY_MIB, console, &further).map(Self)
    }

    /// `Err` describes the fault.
    fn listen(&mut self, run: &mut Run, on_event: &mut impl FnMut(&Event)) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let patience = if run.release.is_none() { BOOT } else { SILENCE };
            let left = WHOLE.saturating_sub(began.elapsed());
            let line = match self.0.line(patience.min(left)) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) if left <= patience => {
                    return Err(format!("did not finish within {} s", WHOLE.as_secs()));
                }
                Err(RecvTimeoutError::Timeout) if run.release.is_none() => {
                    return Err(format!("did not boot within {} s", BOOT.as_secs()));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let last = run.outcomes.last().map_or("the start", |outcome| &outcome.case);
                    return Err(format!("hung: no outcome for {} s after {last}", SILENCE.as_secs()));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let last = run.outcomes.last().map_or("no case", |outcome| &outcome.case);
                    return Err(format!("powered off before the OOM matrix finished; the last outcome was {last}"));
                }
            };
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let event = serde_json::from_str(line)
                .map_err(|error| format!("invalid line on the serial port ({error}): {line:?}"))?;
            on_event(&event);
            match event {
                Event::Booted { kernel } => run.release = Some(kernel),
                Event::Outcome { outcome } => run.outcomes.push(outcome),
                Event::Checked { name, problem } => {
                    run.checks += 1;
                    run.problems.extend(problem.map(|problem| format!("{name}: {problem}")));
                }
                Event::Retried { mut retry } => {
                    let release = run.release.as_deref().unwrap_or_default();
                    retry.name = format!("vm::{release}::{}", retry.name);
                    retry.record();
                }
                Event::Done => return Ok(()),
                Event::Failed { reason } => return Err(reason),
            }
        }
    }
}
