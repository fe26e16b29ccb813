//! systemd-oomd, which kills a whole container because its programs wait for memory. The next session in the same home must say so.

use std::fs;
use std::time::Duration;

use krunner_tests::node_vm::ContainerOutcome;
use krunner_tests::oom_matrix::KernelLog;

use crate::command::{command, output, write};
use crate::engine::{Container, Engine, KRUNNER, Launch};
use crate::session::Session;
use crate::trial::NAME;
use crate::{home, measured};

pub(crate) const CONTAINER: &str = "systemd-oomd, post-mortem";

/// What systemd-oomd watches.
const SLICE: &str = "watched.slice";

/// How long it lets programs wait.
const CONFIG: &str = "[OOM]\nDefaultMemoryPressureDurationSec=5s\n";

const FLAGS: &[&str] =
    &["--cap-add", "BPF", "--cap-add", "PERFMON", "--cgroup-parent", SLICE, "--volume", "/srv/home:/home/work"];

const LAUNCH: Launch = Launch::Session { memory_mib: 512, flags: FLAGS, command: &[KRUNNER, "app"] };

/// Bytes from which the kernel slows the container down.
const HIGH: &str = "167772160";

/// More than that, and less than the container's limit.
const STEP: &str = "sleep 600 & exec victim eat 384 --after-ms 1500";

/// Lets systemd-oomd end a container, and starts the next one in its home.
pub(crate) fn run() -> ContainerOutcome {
    measured(Engine::Docker, CONTAINER, measure)
}

fn measure(outcome: &mut ContainerOutcome) -> Result<(), String> {
    "bpf".clone_into(&mut outcome.tracer);
    home::make()?;
    watch()?;
    let ended = Engine::Docker.with(NAME, LAUNCH, |container| until_killed(container, outcome));
    // It would kill the next container, too, which waits for memory while it starts.
    let stopped = output(&mut command(&["systemctl", "stop", "systemd-oomd"]));
    ended.and(stopped)?;
    Engine::Docker.with(NAME, LAUNCH, |next| explain(next, outcome))
}

/// Starts systemd-oomd for the slice.
fn watch() -> Result<(), String> {
    const FOLDER: &str = "/etc/systemd/oomd.conf.d";
    fs::create_dir_all(FOLDER).map_err(|error| format!("{FOLDER}: {error}"))?;
    write(&format!("{FOLDER}/tests.conf"), CONFIG)?;
    write(
        &format!("/etc/systemd/system/{SLICE}"),
        "[Slice]\nManagedOOMMemoryPressure=kill\nManagedOOMMemoryPressureLimit=1%\n",
    )?;
    for words in [&["unmask", "systemd-oomd"][..], &["daemon-reload"], &["start", SLICE], &["start", "systemd-oomd"]] {
        output(&mut command(&[&["systemctl"], words].concat()))?;
    }
    Ok(())
}

fn until_killed(container: &Container, outcome: &mut ContainerOutcome) -> Result<(), String> {
    let mut log = KernelLog::follow().ok_or("the kernel log is not readable")?;
    let session = Session::until_ready(container)?;
    write(&format!("{}/memory.high", cgroup(container)?), HIGH)?;
    session.begin(STEP)?;
    container.until_ended(Duration::from_mins(2)).map_err(|error| format!("{error}; systemd-oomd: {}", its_log()))?;
    outcome.kills = log.pids()?.len() as u64;
    let is_its_doing = its_log().contains("due to memory pressure");
    if outcome.kills == 0 && is_its_doing { Ok(()) } else { Err(format!("{} kills; {}", outcome.kills, its_log())) }
}

/// The next session in this home.
fn explain(next: &Container, outcome: &mut ContainerOutcome) -> Result<(), String> {
    let (printed, end) = home::last_end(next)?;
    end["cause"].as_str().unwrap_or_default().clone_into(&mut outcome.confidence);
    let reason = end["reason"].as_str().unwrap_or_default();
    let is_right = printed.contains("systemd-oomd")
        && outcome.confidence == "killed"
        && reason.contains("programs had waited for memory");
    if is_right { Ok(()) } else { Err(format!("the next session said {printed:?}; last-end.json: {end}")) }
}

/// The folder of the container's cgroup.
fn cgroup(container: &Container) -> Result<String, String> {
    let path = format!("/proc/{}/cgroup", container.pid);
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let cgroup = text.lines().find_map(|line| line.strip_prefix("0::"));
    cgroup.map(|cgroup| format!("/sys/fs/cgroup{cgroup}")).ok_or_else(|| format!("{path}: {text:?}"))
}

fn its_log() -> String {
    let words = ["journalctl", "--unit", "systemd-oomd", "--output", "cat", "--no-pager"];
    output(&mut command(&words)).unwrap_or_else(|error| error)
}
