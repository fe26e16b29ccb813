//! An OOM kill in a session is reported to the agent's client at once, and only once.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use krunner_tests::cgroup::Cgroup;
use krunner_tests::{Agent, LaunchMethod, Run, Runner, Setup, host, proc, require, wait};
use serde_json::{Value, json};

use crate::limited_session::NO_BPF;
use crate::oom::{LIMIT_MIB, TOO_MUCH, VICTIM};
use crate::oom_phrases::{CERTAIN, HEADING, NOTHING_FOUND, count};
use crate::{app, wait_for_file, with_agent};

/// A session in a cgroup of its own, and one below it in which memory is short.
struct TestEnv {
    agent: Agent,
    runner: Runner,
    limited: Cgroup,
    _scratch: Cgroup,
}

impl TestEnv {
    fn start(client: &Path, setup: Setup) -> Result<Self, String> {
        let scratch = Cgroup::scratch()?;
        let limited = scratch.limited("limited", LIMIT_MIB);
        let launch = LaunchMethod::direct().cgroup(&scratch);
        let links: Vec<_> = launch.argv_prefix().iter().map(|link| link.to_str().expect("UTF-8")).collect();
        let (runner, agent) = with_agent(client, setup.prefix(&links));
        wait::until_true("BPF is attached", || proc::has_bpf(runner.pid()));
        Ok(Self { agent, runner, limited, _scratch: scratch })
    }

    /// A step in which one process is killed, and that ends when the runner has logged it; and the victim's PID.
    fn run_with_a_kill(&self) -> (Run, u32) {
        let (procs, before) = (self.limited.procs_file(), self.limited.oom_kills());
        let (hog, go) = (format!("hog{before}"), format!("go{before}"));
        let eat = format!("sh -c 'echo $$ > {hog}; echo 0 > {}; exec {VICTIM} eat {TOO_MUCH}'", procs.display());
        let pending = self.agent.start_exec(&format!("{eat}; echo code $?; {}", wait_for_file(&go)));
        let victim = self.runner.wait_for(&hog).trim_end().to_owned();
        self.runner.wait_for_log(&[&victim, VICTIM, "eat", "rss"]);
        self.runner.write(&go, "");
        let run = pending.wait();
        assert!(run.stdout().contains("code 137"), "{run:#?}");
        assert_eq!(self.limited.oom_kills(), before + 1);
        (run, victim.parse().expect("a pid"))
    }

    /// The victims in the session's `oom.jsonl`, once the last of them is this one.
    fn until_kept(&self, last: u32) -> Vec<Value> {
        let path = self.runner.home().join(".logs/oom.jsonl");
        wait::until("the last victim in oom.jsonl", || {
            let text = fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'))?;
            let reports: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            reports.last().is_some_and(|report| report["victim"]["pid"] == last).then_some(reports)
        })
    }
}

#[test]
fn kill_is_told_in_the_run_with_the_tree_down_to_the_runner() {
    let client = require!(host::agent_python());
    let env = require!(TestEnv::start(&client, app()));

    let (run, victim) = env.run_with_a_kill();

    let text = run.stderr();
    assert_eq!((count(&text, HEADING), count(&text, CERTAIN)), (1, 1), "{text}");
    let line = text.lines().find(|line| line.contains(&victim.to_string()) && line.contains("rss"));
    let line = line.expect("the victim's line");
    assert!(line.contains(&format!("{VICTIM} eat {TOO_MUCH}")), "{line}");
    let runner = text.lines().find(|line| line.contains(&format!("{} (running for ", env.runner.pid())));
    assert!(runner.is_some_and(|line| line.contains("   └─ ")), "{text}");
    assert!(text.contains("confirmed"), "{text}");
}

#[test]
fn agents_event_adds_nothing_to_a_kill_that_was_told() {
    let client = require!(host::agent_python());
    let env = require!(TestEnv::start(&client, app()));
    env.run_with_a_kill();

    env.agent.event("oom", &json!({}));

    // The contract gives an event 15 s to be answered: in that time and a little more there is nothing to see.
    let answer = wait::within(Duration::from_secs(17), || env.runner.stderr().contains(NOTHING_FOUND).then_some(()));
    let text = env.runner.stderr();
    assert_eq!((answer, count(&text, CERTAIN), count(&text, HEADING)), (None, 1, 1), "{text}");
}

/// Where neither BPF nor a counter knows better than the agent.
#[test]
fn event_without_a_kill_says_that_nothing_was_found() {
    let client = require!(host::agent_python());
    require!(host::root());
    for program in ["mount", "setpriv", "unshare"] {
        require!(host::program(program));
    }
    // Others on this machine, who come and go, are out of sight.
    let alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let launch = LaunchMethod::direct().then(alone).mounts("mount -t tmpfs none /sys/fs/cgroup").then(NO_BPF);
    let links: Vec<_> = launch.argv_prefix().iter().map(|link| link.to_str().expect("UTF-8")).collect();
    let (runner, agent) = with_agent(&client, app().prefix(&links));
    runner.wait_for_log(&["OOM kills are inferred, not traced"]);

    agent.event("oom", &json!({}));

    runner.wait_for_log(&[NOTHING_FOUND]);
    let text = runner.stderr();
    assert_eq!((count(&text, CERTAIN), count(&text, "detected potentially")), (0, 0), "{text}");
}

#[test]
fn kill_is_kept_as_json_for_the_user_only() {
    let client = require!(host::agent_python());
    let env = require!(TestEnv::start(&client, app().folder("home/work/.logs")));
    let (_, victim) = env.run_with_a_kill();

    let reports = env.until_kept(victim);

    let file = fs::metadata(env.runner.home().join(".logs/oom.jsonl")).expect("the file");
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    let [report] = &reports[..] else { panic!("one line: {reports:#?}") };
    assert_eq!((&report["event"], &report["confidence"]), (&"oom_kill".into(), &"confirmed".into()));
}

#[test]
fn without_the_folder_nothing_is_kept() {
    let client = require!(host::agent_python());
    let env = require!(TestEnv::start(&client, app()));
    env.run_with_a_kill();

    // Reports are written in order, so the second one in the file shows that the first one was dealt with. `create_dir`
    // fails if the runner created the folder.
    fs::create_dir(env.runner.home().join(".logs")).expect("no folder before");
    let (_, victim) = env.run_with_a_kill();
    let reports = env.until_kept(victim);
    assert_eq!(reports.len(), 1, "the first one is not kept: {reports:#?}");
}
