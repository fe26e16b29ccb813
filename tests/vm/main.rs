//! The first process of a virtual machine of `cargo xtask vm`: sets the machine up, has the battery run, tells each outcome
//! on the second serial line, powers off.
//!
//! ```text
//!  kernel ─▶ init (pid 1): mounts, cgroup v2, PATH ─▶ itself once more: the battery ─▶ JSON lines on /dev/ttyS1
//!              └── reaps whoever is left to it, until the battery ends ─▶ the last line ─▶ power off
//! ```
//!
//! The kernel's own words go to the first line, so that they cannot get between ours. No tracefs is mounted, and all memory
//! is ours to eat.

mod survivor;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};

use krunner_tests::battery::{Machine, Means, Plan, run};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, waitpid};
use serde_json::{Value, json};

/// What the battery is called by.
const BATTERY: &str = "battery";

const LINE: &str = "/dev/ttyS1";

const MOUNTS: &[(&str, &str)] =
    &[("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp"), ("cgroup2", "/sys/fs/cgroup")];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((first, only)) if first == BATTERY => battery(only.to_vec()),
        _ if std::process::id() == 1 => init(&args),
        _ => {
            eprintln!("this is the first process of a virtual machine of `cargo xtask vm`, and of no use elsewhere");
            ExitCode::from(2)
        }
    }
}

/// As pid 1. The kernel hands over what is behind `--` in its command line: which cases are wanted.
fn init(only: &[String]) -> ExitCode {
    let last = match set_up().and_then(|()| child(only).map_err(Into::into)) {
        Ok(status) if status.success() => json!({ "event": "done" }),
        Ok(status) => json!({ "event": "failed", "reason": format!("the battery ended with {status}") }),
        Err(error) => json!({ "event": "failed", "reason": format!("{error:#}") }),
    };
    tell(&last);
    let never = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("cannot power off: {never:?}");
    ExitCode::FAILURE
}

fn set_up() -> Result<(), Box<dyn std::error::Error>> {
    for (kind, at) in MOUNTS {
        fs::create_dir_all(at)?;
        let none: Option<&str> = None;
        mount(Some(*kind), *at, Some(*kind), MsFlags::empty(), none).map_err(|error| format!("{at}: {error}"))?;
    }
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
    // On an emulated processor small pages take long: to eat, and for a dead one to give back. Meanwhile the kernel takes its
    // memory for free already, and kills the next one who asks.
    fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "always")?;
    tell(&json!({ "event": "booted", "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim() }));
    Ok(())
}

/// Runs the battery, and reaps all others meanwhile.
fn child(only: &[String]) -> std::io::Result<ExitStatus> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(BATTERY).args(only).env("PATH", "/bin").env("RUST_BACKTRACE", "0");
    let battery = i32::try_from(command.spawn()?.id()).expect("a pid");
    loop {
        match waitpid(None, None)? {
            WaitStatus::Exited(pid, code) if pid.as_raw() == battery => return Ok(ExitStatus::from_raw(code << 8)),
            WaitStatus::Signaled(pid, signal, _) if pid.as_raw() == battery => {
                return Ok(ExitStatus::from_raw(signal as i32));
            }
            _ => {}
        }
    }
}

fn battery(only: Vec<String>) -> ExitCode {
    // Before the next line, whose rank children would inherit.
    if only.is_empty() {
        tell(&json!({ "event": "survivor", "problem": survivor::check().err() }));
    }
    // When all memory is eaten and its eater has not given it back yet, whoever asks next is killed as well.
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        eprintln!("the battery itself may be killed: /proc/self/oom_score_adj: {error}");
    }
    let plan = Plan {
        krunner: PathBuf::from("/bin/krunner"),
        victim: PathBuf::from("/bin/victim"),
        means: Means::ALL.to_vec(),
        only,
        machine: Machine::Own,
    };
    run(&plan, |outcome| tell(&json!({ "event": "outcome", "outcome": outcome })));
    ExitCode::SUCCESS
}

/// One write, so that a line is whole.
fn tell(line: &Value) {
    let told =
        OpenOptions::new().write(true).open(LINE).and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = told {
        eprintln!("{LINE}: {error}; {line}");
    }
}
