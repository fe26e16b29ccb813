//! The servers of a session, reached at published ports: a login with ssh, and the terminal in the browser. What is started there is
//! killed and reported as any other program of the session.

use std::thread;
use std::time::Duration;

use krunner_tests::Tty;
use krunner_tests::node_vm::ContainerOutcome;
use krunner_tests::oom_matrix::KernelLog;
use krunner_tests::{http, wait};

use crate::command::{command, outcome as outcome_of};
use crate::engine::{Container, Engine, HOME, KRUNNER, Launch};
use crate::session::Session;
use crate::trial::NAME;
use crate::{home, measured};

pub(crate) const CONTAINER: &str = "ssh and ttyd from outside";

const SSH: &str = "2222";

const TTYD: u16 = 7681;

/// The programs are mounted as the agent mounts them.
const FLAGS: &[&str] = &[
    "--cap-add",
    "BPF",
    "--cap-add",
    "PERFMON",
    "--user",
    "1000:1000",
    "--network",
    "bridge",
    "--publish",
    "127.0.0.1:2222:2200",
    "--publish",
    "127.0.0.1:7681:7681",
    "--volume",
    "/srv/home:/home/work",
    "--volume",
    "/opt/node/agent/dropbear:/opt/kernel/dropbear:ro",
    "--volume",
    "/opt/node/agent/dropbearkey:/opt/kernel/dropbearkey:ro",
    "--volume",
    "/opt/node/agent/dropbearconvert:/opt/kernel/dropbearconvert:ro",
    "--volume",
    "/opt/node/agent/ttyd:/opt/kernel/ttyd:ro",
];

const LAUNCH: Launch = Launch::Session { memory_mib: 128, flags: FLAGS, command: &[KRUNNER, "app"] };

/// Shows where it runs, and is killed.
const PROGRAM: &str = "id -un | tr a-z A-Z; victim eat 192; echo code-$((100 + $?))";

/// What is shown of it.
const SHOWN: [&str; 2] = ["WORK", "code-237"];

const PATIENCE: Duration = Duration::from_mins(1);

/// Starts a session and uses its servers.
pub(crate) fn run() -> ContainerOutcome {
    measured(Engine::Docker, CONTAINER, |outcome| {
        "bpf".clone_into(&mut outcome.tracer);
        home::make()?;
        Engine::Docker.with(NAME, LAUNCH, |container| measure(container, outcome))
    })
}

fn measure(container: &Container, outcome: &mut ContainerOutcome) -> Result<(), String> {
    let mut log = KernelLog::follow().ok_or("the kernel log is not readable")?;
    let session = Session::until_ready(container)?;
    let shown = [by_ssh()?, in_the_browser()?];
    outcome.kills = log.pids()?.len() as u64;
    let reports = || Some(session.journal()).filter(|reports| reports.len() as u64 >= outcome.kills);
    let reports = wait::within(PATIENCE, reports).unwrap_or_else(|| session.journal());
    let is_right =
        |report: &&serde_json::Value| report["confidence"] == "confirmed" && report["victim"]["name"] == "victim";
    outcome.reported = reports.len() as u64;
    outcome.correct = reports.iter().filter(is_right).count() as u64;
    "confirmed".clone_into(&mut outcome.confidence);
    let is_shown = shown.iter().all(|text| SHOWN.iter().all(|part| text.contains(part)));
    if is_shown && [outcome.kills, outcome.reported, outcome.correct] == [2; 3] {
        return Ok(());
    }
    Err(format!("shown by ssh and in the browser: {shown:?}; reports {reports:?}"))
}

/// What a login prints. Tried until the server listens: Docker's own proxy accepts connections before.
fn by_ssh() -> Result<String, String> {
    let key = format!("{HOME}/id_container");
    let mut last = String::new();
    let login = wait::within(PATIENCE, || {
        let options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"];
        let words = [&["ssh", "-i", &key, "-p", SSH], &options[..], &["work@127.0.0.1", PROGRAM]].concat();
        let (code, stdout, stderr) = outcome_of(&mut command(&words)).ok()?;
        last = format!("{code:?}: {stderr}");
        (code == Some(0)).then_some(stdout)
    });
    login.ok_or_else(|| format!("ssh: {last}"))
}

/// What the terminal shows.
fn in_the_browser() -> Result<String, String> {
    let answers = || http::get(TTYD, "/", &[]).filter(|answer| answer.starts_with("HTTP/1.1 200"));
    wait::within(PATIENCE, answers).ok_or("ttyd serves no page")?;
    let terminal = thread::spawn(|| {
        let mut tty = Tty::connect(TTYD, 80, 24);
        tty.type_line(PROGRAM);
        tty.read_until(SHOWN[1])
    });
    terminal.join().map_err(|_| "the terminal's client panicked; see the journal".to_owned())
}
