//! A mount that never answers, like a dead NFS server: whatever is on it, ops are answered, and steps and the runner end.
//!
//! It is a FUSE file system without a server: the kernel waits for the first answer, and so does every access.

use std::path::Path;
use std::time::{Duration, Instant};

use krunner_tests::{LaunchMethod, Raw, Runner, Setup, host, proc, require, wait};
use nix::sys::signal::Signal;

/// An answer that does not wait for the mount.
const SOON: Duration = Duration::from_secs(5);

/// What this needs from the machine.
fn requirements() -> Result<(), String> {
    host::root()?;
    host::util_linux()?;
    if Path::new("/dev/fuse").exists() { Ok(()) } else { Err("no /dev/fuse".to_owned()) }
}

/// Starts the runner in a mount namespace where `folder` of its root hangs.
fn start_with_hung(setup: Setup, folder: &str) -> Runner {
    let setup = setup.folder(folder);
    let target = setup.root().join(folder);
    // The mount lives as long as the runner has the descriptor.
    let mount = format!(
        "exec 9<>/dev/fuse\nmount -i -t fuse hung {} -o fd=9,rootmode=40000,user_id=0,group_id=0",
        target.display()
    );
    setup.prefix_first(&LaunchMethod::direct().mounts(&mount)).start()
}

/// A session whose interpreter is on the mount.
fn with_hung_interpreter() -> Runner {
    let setup = Setup::new("php").file("home/work/main.php", "not reached\n");
    let interpreter = setup.root().join("hung/php");
    start_with_hung(setup.runtime(interpreter), "hung")
}

#[track_caller]
fn assert_answers(raw: &mut Raw) {
    let since = Instant::now();
    raw.sync();
    assert!(since.elapsed() < SOON, "status took {:?}", since.elapsed());
}

#[test]
fn program_that_cannot_start_can_be_interrupted() {
    require!(requirements());
    let runner = with_hung_interpreter();
    let mut raw = Raw::connect(&runner);
    raw.op("exec", "*");
    wait::until_true("a process in execve", || !runner.processes().is_empty());
    assert_answers(&mut raw);

    let since = Instant::now();
    raw.op("interrupt", "");
    assert_eq!(raw.read_runs(1).codes(), [("finished", -2)]);
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    runner.wait_for_log(&["has not started", "a mount that hangs"]);
    wait::until_true("the process to be ended", || runner.processes().is_empty());
    assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
    // Orphans are reaped all the same.
    raw.exec("sh -c 'sleep 0.1 & exit 0'");
    wait::until_true("no zombie", || proc::children(runner.pid()).is_empty());
}

#[test]
fn program_that_cannot_start_does_not_delay_the_end() {
    require!(requirements());
    let mut runner = with_hung_interpreter();
    let mut raw = Raw::connect(&runner);
    raw.op("exec", "*");
    wait::until_true("a process in execve", || !runner.processes().is_empty());
    assert_answers(&mut raw);

    let since = Instant::now();
    runner.signal(Signal::SIGTERM);
    assert_eq!(raw.read_to_end().codes(), [("finished", -15)]);
    assert!(runner.wait_exit().success());
    assert!(since.elapsed() < 2 * SOON, "{:?}", since.elapsed());
    wait::until_true("no process is left", || runner.processes().is_empty());
}

#[test]
fn orphans_are_reaped_while_a_program_cannot_start() {
    require!(requirements());
    let runner = with_hung_interpreter();
    let mut raw = Raw::connect(&runner);
    let orphan = raw.exec("sleep 3 > /dev/null 2>&1 & echo $!").stdout();
    let orphan: u32 = orphan.trim().parse().expect("a PID");
    raw.op("exec", "*");
    wait::until_true("a process in execve", || proc::children(runner.pid()).len() > 1);
    assert!(proc::children(runner.pid()).contains(&orphan), "adopted");

    // It does not stay as a zombie.
    wait::until_true("the orphan to be reaped", || !proc::children(runner.pid()).contains(&orphan));
    assert_eq!(proc::children(runner.pid()).len(), 1, "the program is still starting");
    raw.op("interrupt", "");
    assert_eq!(raw.read_runs(1).codes(), [("finished", -2)]);
}

/// The runtime looks for sources before there is a command to run.
#[test]
fn step_that_hangs_before_its_program_starts_is_ended() {
    require!(requirements());
    let mut runner = start_with_hung(Setup::new("c").file("home/work/main.c", "int main() {}\n"), "home/work/src");
    let mut raw = Raw::connect(&runner);
    for _ in 0..2 {
        raw.op("build", "*");
        assert_answers(&mut raw);
        let since = Instant::now();
        raw.op("interrupt", "");
        let end = raw.read_until(krunner_tests::Message::ends_step);
        assert_eq!(end.codes(), [("build-finished", -2)]);
        assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    }
    runner.wait_for_log(&["the step has not started", "a mount that hangs"]);
    // The exec of that run is answered with its build.
    raw.exec("echo not run");
    assert_eq!(raw.exec("echo alive").stdout(), "alive\n");

    raw.op("build", "*");
    assert_answers(&mut raw);
    let since = Instant::now();
    runner.signal(Signal::SIGTERM);
    assert_eq!(raw.read_to_end().codes(), [("build-finished", -15)]);
    assert!(runner.wait_exit().success());
    assert!(since.elapsed() < 2 * SOON, "{:?}", since.elapsed());
}

#[test]
fn program_that_reads_from_it_is_ended() {
    require!(requirements());
    let runner = start_with_hung(crate::app(), "home/work/hung");
    let mut raw = Raw::connect(&runner);
    raw.op("exec", "cat hung/file");
    runner.wait_for_program("cat", 1);
    assert_answers(&mut raw);
    raw.op("interrupt", "");
    assert_eq!(raw.read_runs(1).ends().len(), 1);
    assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
}

#[test]
fn steps_run_without_a_log_that_cannot_be_opened() {
    require!(requirements());
    let runner = start_with_hung(crate::app(), "home/work/.logs/task");
    let mut raw = Raw::connect(&runner);
    assert_answers(&mut raw);
    let since = Instant::now();
    assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    runner.wait_for_log(&["task log disabled", "did not open within"]);
}

/// A mount that stops answering while it is in use: a stopped `bindfs`, which is a FUSE server for another folder. Dropping it ends
/// the server, and so all that waits for it.
struct StoppableMount {
    server: u32,
}

impl StoppableMount {
    /// Starts the runner in a mount namespace where `folder` of its root is such a mount.
    fn start(setup: Setup, folder: &str) -> (Runner, Self) {
        let setup = setup.folder(folder).folder("beside");
        let [target, source] = [folder, "beside"].map(|folder| setup.root().join(folder));
        let mount = format!("bindfs {} {}", source.display(), target.display());
        let runner = setup.prefix_first(&LaunchMethod::direct().mounts(&mount)).start();
        let is_server = |pid: &u32| {
            proc::cmdline(*pid)
                .is_some_and(|line| line.starts_with("bindfs") && line.contains(&*target.to_string_lossy()))
        };
        let server = wait::until("the server of the mount", || proc::all().find(is_server));
        (runner, Self { server })
    }

    fn stop_answering(&self) {
        proc::signal(self.server, Signal::SIGSTOP);
    }
}

impl Drop for StoppableMount {
    fn drop(&mut self) {
        proc::signal(self.server, Signal::SIGKILL);
    }
}

/// More than the queue of the log and the buffers of the mount.
const LONG_OUTPUT_BYTES: usize = 8 << 20;

#[test]
fn output_arrives_and_the_runner_ends_while_writing_the_log_hangs() {
    require!(requirements());
    require!(host::program("bindfs"));
    let (mut runner, mount) = StoppableMount::start(crate::app(), "home/work/.logs/task");
    let mut raw = Raw::connect(&runner);
    assert_eq!(raw.exec("echo before").stdout(), "before\n");
    let logs = runner.root().join("beside");
    wait::until_true("the log", || std::fs::read_dir(&logs).is_ok_and(|files| files.count() > 0));

    mount.stop_answering();
    let since = Instant::now();
    let output = raw.exec(&format!("head -c {LONG_OUTPUT_BYTES} /dev/zero | tr '\\0' x")).stdout();
    assert_eq!(output.len(), LONG_OUTPUT_BYTES);
    // The writer waits for space for a while, since log drivers recover within seconds.
    assert!(since.elapsed() < 4 * SOON, "{:?}", since.elapsed());
    assert_answers(&mut raw);
    assert_eq!(raw.exec("echo after").stdout(), "after\n");

    let since = Instant::now();
    runner.signal(Signal::SIGTERM);
    assert!(runner.wait_exit().success());
    assert!(since.elapsed() < 2 * SOON, "{:?}", since.elapsed());
}
