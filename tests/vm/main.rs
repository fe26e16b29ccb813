//! The init of a virtual machine of `cargo xtask vm`: sets up the machine, runs the OOM matrix, writes each outcome to the
//! second serial port, and powers off.
//!
//! ```text
//!  kernel ─▶ init (PID 1): mounts, cgroup v2, PATH ─▶ a copy of itself: the OOM matrix ─▶ JSON lines on a serial port
//!              └── reaps orphans until the matrix exits ─▶ the last line ─▶ power off
//! ```
//!
//! The kernel log goes to the first serial port, so it cannot interleave with the JSON. No tracefs is mounted, and the matrix
//! may use up all memory.

#![forbid(unsafe_code)]

mod node_check;
mod restrictions;
mod survivor;
mod throttle_check;
mod watched_cgroup;

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};

use krunner_tests::flaky;
use krunner_tests::machine_checks::MachineCheck;
use krunner_tests::oom_matrix::{Machine, MatrixPlan, MonitorMode, run};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, waitpid};
use serde_json::{Value, json};

/// The first argument of the copy that runs the matrix.
const OOM_MATRIX: &str = "oom-matrix";

/// The second serial port of the machine; the first of an arm64 machine has another name.
const LINE: &str = if cfg!(target_arch = "aarch64") { "/dev/ttyS0" } else { "/dev/ttyS1" };

/// A user who is not root.
const USER: u32 = 1000;

const MOUNTS: &[(&str, &str)] =
    &[("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp"), ("cgroup2", "/sys/fs/cgroup")];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((first, only)) if first == OOM_MATRIX => oom_matrix(only.to_vec()),
        _ if std::process::id() == 1 => init(&args),
        _ => {
            eprintln!("this program is the init of a `cargo xtask vm` virtual machine; it does nothing elsewhere");
            ExitCode::from(2)
        }
    }
}

/// Runs as PID 1. The kernel passes the arguments after `--` on its command line: the cases to run.
fn init(only: &[String]) -> ExitCode {
    let last = match set_up().and_then(|()| child(only).map_err(Into::into)) {
        Ok(status) if status.success() => json!({ "event": "done" }),
        Ok(status) => json!({ "event": "failed", "reason": format!("the OOM matrix exited with {status}") }),
        Err(error) => json!({ "event": "failed", "reason": format!("{error:#}") }),
    };
    emit(&last);
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
    // On an emulated processor, small pages are slow to allocate and slow to free. While a victim's memory is being freed the
    // kernel already counts it as free, and kills the next process that allocates.
    fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "always")?;
    emit(&json!({ "event": "booted", "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim() }));
    Ok(())
}

/// Runs the matrix in a child and reaps orphans until it exits.
fn child(only: &[String]) -> std::io::Result<ExitStatus> {
    let mut command = Command::new("/proc/self/exe");
    command.arg(OOM_MATRIX).args(only).env("PATH", "/bin").env("RUST_BACKTRACE", "0");
    let matrix = i32::try_from(command.spawn()?.id()).expect("a pid");
    loop {
        match waitpid(None, None)? {
            WaitStatus::Exited(pid, code) if pid.as_raw() == matrix => return Ok(ExitStatus::from_raw(code << 8)),
            WaitStatus::Signaled(pid, signal, _) if pid.as_raw() == matrix => {
                return Ok(ExitStatus::from_raw(signal as i32));
            }
            _ => {}
        }
    }
}

fn oom_matrix(only: Vec<String>) -> ExitCode {
    let wants = |check: MachineCheck| check.is_wanted(&only);
    // Sessions are reached there.
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !up.is_ok_and(|status| status.success()) {
        eprintln!("the loopback interface is not up");
    }
    // First: the children of these checks would inherit the oom_score_adj that is set below.
    if wants(MachineCheck::Selftest) {
        emit_check("selftest", selftest(&mut Command::new("krunner")));
        emit_check("selftest of a user who may not read krunner", selftest_of_a_user());
    }
    if wants(MachineCheck::Survival) {
        emit_check("sessions in a killed cgroup", survivor::check());
    }
    if wants(MachineCheck::Node) {
        emit_check("krunner node", node_check::check());
    }
    if wants(MachineCheck::Throttle) {
        emit_check("memory.high", throttle_check::check());
    }
    // While a victim of a global OOM kill has not freed its memory yet, the next process that allocates is killed as well.
    let is_restricted = wants(MachineCheck::Restrictions);
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        eprintln!("the OOM matrix itself may be killed: /proc/self/oom_score_adj: {error}");
    }
    let plan = MatrixPlan {
        krunner: PathBuf::from("/bin/krunner"),
        victim: PathBuf::from("/bin/victim"),
        modes: MonitorMode::ALL.to_vec(),
        only,
        machine: Machine::Dedicated,
    };
    run(&plan, |outcome| {
        emit_retries();
        emit(&json!({ "event": "outcome", "outcome": outcome }));
    });
    if is_restricted {
        restrictions::check(emit_check);
    }
    ExitCode::SUCCESS
}

/// `krunner selftest` of a user who may not read krunner's file, so that `/proc/self/auxv` is root's, as with file capabilities
/// (`would_dump`, fs/exec.c). Before Linux 6.4 there is no `PR_GET_AUXV`.
fn selftest_of_a_user() -> Result<(), String> {
    const UNREADABLE: &str = "/tmp/krunner";
    let copied = fs::copy("/bin/krunner", UNREADABLE)
        .and_then(|_| fs::set_permissions(UNREADABLE, Permissions::from_mode(0o711)))
        .and_then(|()| fs::set_permissions("/tmp", Permissions::from_mode(0o1777)));
    copied.map_err(|error| format!("{UNREADABLE}: {error}"))?;
    let result = selftest(Command::new(UNREADABLE).uid(USER).gid(USER));
    fs::remove_file(UNREADABLE).map_err(|error| format!("{UNREADABLE}: {error}")).and(result)
}

/// A job and a service with the embedded defaults.
fn selftest(krunner: &mut Command) -> Result<(), String> {
    let output = krunner.arg("selftest").output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let printed = [output.stdout, output.stderr].concat();
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&printed).trim()))
}

fn emit_check(name: &str, outcome: Result<(), String>) {
    emit_retries();
    emit(&json!({ "event": "checked", "name": name, "problem": outcome.err() }));
}

fn emit_retries() {
    for retry in flaky::take() {
        emit(&json!({ "event": "retried", "retry": retry }));
    }
}

/// Writes a line with one `write`, so that lines do not interleave.
fn emit(line: &Value) {
    let written =
        OpenOptions::new().write(true).open(LINE).and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!("{LINE}: {error}; {line}");
    }
}
