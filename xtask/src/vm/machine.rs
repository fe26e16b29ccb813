//! One virtual machine from power on to power off: what it told on its second serial line, or what went wrong.
//!
//! ```text
//!  start ─▶ booting ──"booted"──▶ running ──"outcome"──▶ running ──"done"──▶ over
//!              │ 60 s                │ silent for 120 s, 300 s in all
//!              ▼                     ▼
//!            fault, with the tail of the console. So is an end without the last line: a panic, or a console that was cut
//! ```
//!
//! The processor is emulated (TCG): that needs no rights and runs anywhere, at a tenth of the speed.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use krunner_tests::battery::Outcome;
use serde::Deserialize;

use super::kernels::Kernel;

/// From power on to our first process. Takes 4 s on an idle machine.
const BOOT: Duration = Duration::from_mins(1);

/// An emulated processor is not perfect. What fails before our first process is there says nothing of krunner.
const BOOTS: u32 = 2;

/// Between two outcomes; a hundred kills in a row are one.
const SILENCE: Duration = Duration::from_mins(2);

/// Of all of it.
const WHOLE: Duration = Duration::from_mins(5);

/// Room for krunner while it reads the kernel's BTF, twice; the rest is only there to be eaten.
const MEMORY_MIB: &str = "384";

/// Of the console, in a message.
const TAIL_LINES: usize = 25;

/// What comes over the second serial line.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(super) enum Event {
    /// Our first process is there.
    Booted {
        /// `uname -r`.
        kernel: String,
    },
    Outcome {
        outcome: Outcome,
    },
    /// A session with `CAP_SYS_RESOURCE` was killed around.
    Survivor {
        /// What was not as it should be.
        problem: Option<String>,
    },
    Done,
    Failed {
        reason: String,
    },
}

/// What a machine's run came to.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) release: Option<String>,
    pub(super) outcomes: Vec<Outcome>,
    /// What was not as it should be with a session that has `CAP_SYS_RESOURCE`.
    pub(super) problem: Option<String>,
    /// Why it is not whole.
    pub(super) fault: Option<String>,
    pub(super) took: Duration,
}

/// Boots the kernel with that image and listens until the end; events are told as they come.
pub(super) fn boot(
    kernel: &Kernel,
    image: &Path,
    only: &[String],
    folder: &Path,
    mut tell: impl FnMut(&Event),
) -> Result<Run> {
    let console = folder.join(format!("console-{}", kernel.wanted));
    let began = Instant::now();
    let mut attempt = 1;
    loop {
        let mut machine = Machine::start(kernel, image, only, &console)?;
        let mut run = Run { release: None, outcomes: Vec::new(), problem: None, fault: None, took: Duration::ZERO };
        run.fault = machine.listen(&mut run, &mut tell).err().map(|fault| format!("{fault}\n{}", machine.tail()));
        run.took = began.elapsed();
        match &run.fault {
            Some(fault) if run.release.is_none() && attempt < BOOTS => {
                println!("{}: boot {attempt} of {BOOTS} failed: {fault}", kernel.wanted);
            }
            _ => return Ok(run),
        }
        attempt += 1;
    }
}

struct Machine {
    qemu: Child,
    lines: Receiver<String>,
    console: PathBuf,
}

impl Machine {
    fn start(kernel: &Kernel, image: &Path, only: &[String], console: &Path) -> Result<Self> {
        // What is behind `--` goes to the first process.
        let line = format!("console=ttyS0 quiet panic=-1 mitigations=off -- {}", only.join(" "));
        let mut command = Command::new("qemu-system-x86_64");
        // cmpxchg16b of qemu 7.2's emulation leaves garbage in the flags now and then, and 6.12 allocates memory with it.
        command.args([
            "-accel",
            "tcg",
            "-cpu",
            "max,-cx16",
            "-smp",
            "1",
            "-m",
            MEMORY_MIB,
            "-no-reboot",
            "-nic",
            "none",
        ]);
        command.args(["-display", "none", "-monitor", "none", "-append", &line]);
        command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(image);
        command.args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut qemu = command.spawn().context("cannot run qemu-system-x86_64")?;
        let stdout = BufReader::new(qemu.stdout.take().context("no output")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Self { qemu, lines, console: console.to_owned() })
    }

    /// `Err` with what went wrong.
    fn listen(&mut self, run: &mut Run, tell: &mut impl FnMut(&Event)) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let patience = if run.release.is_none() { BOOT } else { SILENCE };
            let left = WHOLE.saturating_sub(began.elapsed());
            let line = match self.lines.recv_timeout(patience.min(left)) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) if left <= patience => {
                    return Err(format!("it took more than {} s", WHOLE.as_secs()));
                }
                Err(RecvTimeoutError::Timeout) if run.release.is_none() => {
                    return Err(format!("it has not booted within {} s", BOOT.as_secs()));
                }
                Err(RecvTimeoutError::Timeout) => {
                    let last = run.outcomes.last().map_or("the start", |outcome| &outcome.case);
                    return Err(format!("it hangs: silent for {} s since {last}", SILENCE.as_secs()));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let last = run.outcomes.last().map_or("no case", |outcome| &outcome.case);
                    return Err(format!("it ended before the battery did; the last it told of was {last}"));
                }
            };
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            let event =
                serde_json::from_str(line).map_err(|error| format!("its line is garbled ({error}): {line:?}"))?;
            tell(&event);
            match event {
                Event::Booted { kernel } => run.release = Some(kernel),
                Event::Outcome { outcome } => run.outcomes.push(outcome),
                Event::Survivor { problem } => run.problem = problem,
                Event::Done => return Ok(()),
                Event::Failed { reason } => return Err(reason),
            }
        }
    }

    fn tail(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n    ");
        format!("  the end of its console ({}):\n    {tail}", self.console.display())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It has told all that it had to: how it powers off is of no interest.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}
