//! A session in a container, driven from outside: its steps, its reports, and the truth about its kills.
//!
//! The programs print the PIDs that died, in the container's namespace; the kernel's log has as many lines.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use krunner_tests::oom_matrix::KernelLog;
use krunner_tests::wait;
use serde_json::Value;

use crate::command::{command, outcome};
use crate::engine::Container;

/// Long because the processor is emulated, and because loading the tracer reads the kernel's types twice.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Seconds that a step may take, less than the deadline of any program: one that fills the machine waits for its disk.
const STEP: &str = "140";

/// The exit code of a program that SIGKILL ended, in a shell.
const KILLED: u64 = 137;

/// A session and the kills in it so far.
pub(crate) struct Session<'a> {
    container: &'a Container,
    /// PIDs of the container's namespace.
    pub(crate) victims: BTreeSet<u64>,
    /// Processes that the kernel logged.
    pub(crate) logged: u64,
}

impl<'a> Session<'a> {
    /// Waits until the session answers and has chosen its tracer.
    pub(crate) fn until_ready(container: &'a Container) -> Result<Self, String> {
        let session = Self { container, victims: BTreeSet::new(), logged: 0 };
        session.send("status", "")?;
        let is_loading = || threads(container.pid).iter().any(|name| name == "oom-loader");
        let settled = wait::within(PATIENCE, || (!is_loading()).then_some(()));
        settled.map(|()| session).ok_or_else(|| "the tracer did not finish loading".to_owned())
    }

    /// Runs a step that ends in OOM kills, and takes note of who died.
    pub(crate) fn kill(&mut self, script: &str, log: &mut KernelLog) -> Result<(), String> {
        let (code, output) = self.exec(&format!("{script}; echo code $?"))?;
        // While the victim's memory is being freed, the kernel may kill the shell as well: the processor is emulated.
        let is_shell_killed = code == KILLED;
        let pids = |word: &str| -> Vec<u64> {
            let numbers = output.lines().filter_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.parse().ok());
            numbers.collect()
        };
        let killed = pids("killed");
        // Without children, the program itself is the victim.
        let victims =
            if killed.is_empty() && (is_shell_killed || pids("code") == [KILLED]) { pids("victim") } else { killed };
        let logged = log.pids()?;
        self.logged += logged.len() as u64;
        if victims.len() > logged.len() {
            return Err(format!("{script}: {victims:?} died, but the kernel logged {logged:?}: {output}"));
        }
        self.victims.extend(victims);
        Ok(())
    }

    /// The reports in the journal, once that of the last victim has arrived or the patience is over.
    pub(crate) fn reports(&self, patience: Duration) -> Result<Vec<Value>, String> {
        let last = self.victims.last().ok_or("no process was killed")?;
        let is_there = |reports: &Vec<Value>| reports.iter().any(|report| report["victim"]["pid"] == *last);
        Ok(wait::within(patience, || Some(self.journal()).filter(is_there)).unwrap_or_else(|| self.journal()))
    }

    /// The reports in the journal.
    pub(crate) fn journal(&self) -> Vec<Value> {
        let path = format!("/proc/{}/root/home/work/.logs/oom.jsonl", self.container.pid);
        let text = fs::read_to_string(path).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let objects = whole.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        objects.filter(|object| object["event"] == "oom_kill").collect()
    }

    /// Starts a step that the runner does not survive.
    pub(crate) fn begin(&self, script: &str) -> Result<(), String> {
        // Fails, because there is no reply in time.
        outcome(&mut self.client(&["--wait", "5", "exec", script])).map(drop)
    }

    /// Sends an op with the node's own krunner, in the network of the container. Returns all that it prints.
    pub(crate) fn send(&self, op: &str, payload: &str) -> Result<String, String> {
        let (code, stdout, stderr) = outcome(&mut self.client(&[op, payload]))?;
        // For `exec`, the exit code is that of the command.
        if code == Some(0) {
            Ok(format!("{stdout}{stderr}"))
        } else {
            Err(format!("send {op}: {code:?}: {stderr}{stdout}"))
        }
    }

    /// Runs a step. Returns its exit code as a shell has it, and all that it printed.
    pub(crate) fn exec(&self, script: &str) -> Result<(u64, String), String> {
        let (code, stdout, stderr) = outcome(&mut self.client(&["--wait", STEP, "exec", script]))?;
        match code {
            Some(code @ (0 | 137)) => Ok((u64::from(code.unsigned_abs()), format!("{stdout}{stderr}"))),
            _ => Err(format!("send exec: {code:?}: {stderr}{stdout}")),
        }
    }

    fn client(&self, words: &[&str]) -> Command {
        let pid = self.container.pid.to_string();
        command(&[&["/usr/bin/nsenter", "--net", "--target", &pid, "dist/x86_64/krunner", "send"], words].concat())
    }
}

fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}
