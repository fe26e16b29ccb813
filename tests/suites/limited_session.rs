//! A session whose runner is itself in the cgroup with little memory, as in a container.
//!
//! The runner has a PID namespace of its own with a small init outside the limit. Its stdout and stderr are
//! pipes that are read outside the limit. The pages of a file would be charged to the limit, unlike a container's log.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use krunner_tests::cgroup::Cgroup;
use krunner_tests::pids::PidsCgroup;
use krunner_tests::{LaunchMethod, Message, Raw, Runner, Sandbox, Setup, Transcript, host, proc, wait};
use nix::sys::signal::Signal;

use crate::app;
use crate::oom_phrases::{HEADING, REPORT, count};

/// Connects the runner's output to programs outside the limit.
const THROUGH_PIPES: [&str; 4] = ["bash", "-c", "exec \"$@\" > >(exec cat) 2> >(exec cat >&2)", "bash"];

/// Drops the capabilities that BPF needs, like container engines do.
pub(crate) const NO_BPF: [&str; 3] = ["setpriv", "--bounding-set=-bpf,-perfmon,-sys_admin", "--inh-caps=-all"];

/// The tracer that a session uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tracer {
    Bpf,
    Snapshot,
}

impl Tracer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Snapshot => "snapshot",
        }
    }
}

/// Which cgroup has little memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limited {
    /// The runner's own cgroup.
    Runner,
    /// A child of it, which programs enter themselves.
    Below,
}

/// A session to start.
pub(crate) struct Plan {
    tracer: Tracer,
    limited: Limited,
    limit_mib: u64,
    setup: Setup,
    pids: Option<u64>,
    mounts: Option<String>,
}

/// A session under a limit. The fields are dropped in this order.
pub(crate) struct LimitedSession {
    raw: Option<Raw>,
    pub(crate) runner: Runner,
    /// The runner itself; the harness's child is `nsenter`, which is outside the limit.
    pub(crate) pid: u32,
    /// Every reply so far.
    pub(crate) seen: Transcript,
    /// Steps so far.
    steps: usize,
    pub(crate) limited: Cgroup,
    pub(crate) pids: Option<PidsCgroup>,
    _sandbox: Sandbox,
    scratch: Cgroup,
}

impl Plan {
    pub(crate) fn new(tracer: Tracer, limited: Limited, limit_mib: u64) -> Self {
        let setup = app().folder("home/work/.logs");
        Self { tracer, limited, limit_mib, setup, pids: None, mounts: None }
    }

    /// Changes the setup of the session.
    pub(crate) fn setup(mut self, change: impl FnOnce(Setup) -> Setup) -> Self {
        self.setup = change(self.setup);
        self
    }

    /// Mounts a tmpfs of this size at the session's home.
    pub(crate) fn tmpfs_at_home(mut self, size_mib: u64) -> Self {
        let home = self.setup.home();
        let home = home.display();
        self.mounts = Some(format!("mount -t tmpfs -o size={size_mib}m full {home}; mkdir {home}/.logs"));
        self
    }

    /// Limits the number of processes and threads in the session.
    pub(crate) fn pids(mut self, count: u64) -> Self {
        self.pids = Some(count);
        self
    }

    /// Starts the session and waits until it monitors kills. `Err` says what this machine lacks.
    pub(crate) fn start(self) -> Result<LimitedSession, String> {
        let scratch = Cgroup::scratch()?;
        let limited = scratch.limited("limited", self.limit_mib);
        let pids = self.pids.map(|_| PidsCgroup::scratch()).transpose()?;
        host::program("setpriv")?;
        let sandbox = Sandbox::new();
        let own = if self.limited == Limited::Runner { &limited } else { &scratch };
        let mut launch = LaunchMethod::direct().then(THROUGH_PIPES).sandbox(&sandbox).cgroup(own);
        if let Some((pids, count)) = pids.as_ref().zip(self.pids) {
            pids.limit(count);
            launch = launch.then(pids.enter());
        }
        // A process that enters a mount namespace starts at its root. The `cd` makes it see what is mounted at home.
        let mounts = self.mounts.as_deref().unwrap_or("true");
        launch = launch.mounts(&format!("{mounts}; cd {}", self.setup.home().display()));
        if self.tracer == Tracer::Snapshot {
            launch = launch.then(NO_BPF);
        }
        let links: Vec<_> = launch.argv_prefix().iter().map(|link| link.to_str().expect("UTF-8")).collect();
        let runner = self.setup.prefix(&links).start();
        let pid = wait::until("the runner in its cgroup", || own.members().into_iter().find(|&pid| is_krunner(pid)));
        let raw = Raw::connect(&runner);
        runner.until_it_watches(pid);
        if self.tracer == Tracer::Bpf && !proc::has_bpf(pid) {
            return Err(format!("no BPF: {}", runner.stderr()));
        }
        let seen = Transcript::default();
        Ok(LimitedSession { raw: Some(raw), runner, pid, seen, steps: 0, limited, pids, _sandbox: sandbox, scratch })
    }
}

impl LimitedSession {
    /// Disconnects, so that another client can connect.
    #[track_caller]
    pub(crate) fn disconnect(&mut self) {
        drop(self.raw.take());
    }

    /// Whether the runner is alive, as the same process.
    pub(crate) fn is_alive(&self) -> bool {
        proc::is_alive(self.pid) && is_krunner(self.pid)
    }

    /// The connections to the runner.
    #[track_caller]
    pub(crate) fn raw(&mut self) -> &mut Raw {
        self.raw.as_mut().expect("connected")
    }

    /// Sends an op unless the runner is gone. Returns whether it was sent.
    pub(crate) fn send(&mut self, op: &str, payload: &str) -> bool {
        let alive = self.is_alive();
        if alive {
            self.steps += usize::from(op == "exec");
            self.raw().op(op, payload);
        }
        alive
    }

    /// Reads up to and including the first reply that satisfies the condition; `None` when the runner is gone.
    #[track_caller]
    pub(crate) fn read_until(&mut self, is_last: impl Fn(&Message) -> bool) -> Option<Transcript> {
        let mut transcript = Transcript::default();
        loop {
            let message = self.raw().recv()?;
            let last = is_last(&message);
            self.seen.messages.push(message.clone());
            transcript.messages.push(message);
            if last {
                return Some(transcript);
            }
        }
    }

    /// Reads until every step so far has ended, which may have been read already; `false` when the runner is gone.
    #[track_caller]
    pub(crate) fn until_finished(&mut self) -> bool {
        while self.seen.ends().len() < self.steps {
            let Some(message) = self.raw().recv() else { return false };
            self.seen.messages.push(message);
        }
        true
    }

    /// Reads what arrives within that time, or until the condition holds for all that was read so far.
    #[track_caller]
    pub(crate) fn read_for(&mut self, limit: Duration, is_enough: impl Fn(&Transcript) -> bool) -> Transcript {
        let mut transcript = Transcript::default();
        wait::within(limit, || {
            while self.raw().pull.is_readable() {
                let Some(message) = self.raw().recv() else { return Some(()) };
                self.seen.messages.push(message.clone());
                transcript.messages.push(message);
            }
            is_enough(&transcript).then_some(())
        });
        transcript
    }

    /// Runs a step to its end; `None` when the runner is gone.
    #[track_caller]
    pub(crate) fn exec(&mut self, command: &str) -> Option<Transcript> {
        if !self.send("exec", command) {
            return None;
        }
        self.read_until(|message| message.kind == "finished")
    }

    /// How long the runner takes to answer `status`; `None` when it does not within that time.
    #[track_caller]
    pub(crate) fn status_within(&mut self, limit: Duration) -> Option<Duration> {
        if !self.send("status", "") {
            return None;
        }
        self.read_status_within(limit)
    }

    /// How long the answer to a `status` that was sent before takes from now on.
    pub(crate) fn read_status_within(&mut self, limit: Duration) -> Option<Duration> {
        let asked = Instant::now();
        let of = |transcript: &Transcript| {
            transcript.messages.iter().find(|message| message.kind == "status").map(|message| message.at)
        };
        let read = self.read_for(limit, |transcript| of(transcript).is_some());
        of(&read).map(|at| at.saturating_duration_since(asked))
    }

    /// Kills all processes in the session's cgroups but the runner.
    #[track_caller]
    pub(crate) fn end_children(&self) {
        if let Some(pids) = &self.pids {
            pids.limit(0);
        }
        wait::until_true("the session's children end", || {
            let mut left = [self.limited.members(), self.scratch.members()].concat();
            left.retain(|&pid| pid != self.pid && proc::is_alive(pid));
            for &pid in &left {
                proc::signal(pid, Signal::SIGKILL);
            }
            left.is_empty()
        });
        if let Some(pids) = &self.pids {
            pids.limit(PIDS_AFTERWARDS);
        }
    }

    /// A file of the home folder as the session sees it, whatever is mounted there.
    pub(crate) fn home_file(&self, name: &str) -> PathBuf {
        let home = self.runner.home();
        PathBuf::from(format!("/proc/{}/root{}", self.pid, home.join(name).display()))
    }

    /// The lines of `oom.jsonl`.
    pub(crate) fn record(&self) -> Vec<String> {
        let text = fs::read_to_string(self.home_file(".logs/oom.jsonl")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Whether a kill was reported, to the client or in the record.
    pub(crate) fn has_reported(&self) -> bool {
        let text = self.seen.stderr();
        text.contains(HEADING) || text.contains(REPORT) || !self.record().is_empty()
    }

    /// Waits until the kernel has counted so many kills.
    #[track_caller]
    pub(crate) fn until_killed(&self, kills: u64) {
        wait::until_true("the kernel counts a kill", || self.limited.oom_kills() >= kills);
    }
}

/// The PID limit after `end_children`; enough for the next step.
const PIDS_AFTERWARDS: u64 = 200;

/// The number of OOM reports in a text.
pub(crate) fn reports(text: &str) -> usize {
    count(text, REPORT)
}

fn is_krunner(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path.file_name().is_some_and(|name| name == "krunner"))
}
