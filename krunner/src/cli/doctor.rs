//! `krunner doctor`: which tracer a runner started here would use, and why not the better one; and what the container may
//! do to it.
//!
//! It ends within [`DEADLINE`], whatever hangs: each part is attended by a watchdog. The trial comes last, since loading
//! the tracer takes the most memory, and so the longest where the kernel slows the container down.

mod agent;
mod host;
mod watchdog;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::json;

use self::agent::PexRoots;
use self::host::HostFacts;
use self::watchdog::attend;
use super::args::DoctorArgs;
use super::stdout::print;
use crate::config::{LowLimit, low_limits};
use crate::error::chain;
use crate::exit::Exit;
use crate::monitor::node::greet;
use crate::monitor::setup::{NodeSocket, TracerError};
use crate::monitor::tracer::probe::{self, CheckState, Findings, HostCheck, ProbeRoots};
use crate::monitor::{ProcRoot, Scope, TracerKind, setup, time_scan};
use crate::sys;
use crate::sys::Capability;

/// For all together.
const DEADLINE: Duration = Duration::from_secs(9);

/// For each part but the last.
const PART_DEADLINE: Duration = Duration::from_millis(2100);

/// Looks with the rights of the calling thread, which are to be those that krunner was started with: threads that it
/// starts inherit them.
pub(super) fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    if let Some(agent) = &args.agent {
        return agent_diagnosis(agent, args.json);
    }
    // What cannot be raised is refused, and then told.
    let _ = sys::raise_permitted();
    let end = Instant::now() + DEADLINE;
    let say = |word: &str| eprintln!("krunner: {word}");
    let soon = || Instant::now() + PART_DEADLINE;
    let findings = attend("probe", soon(), say, || probe::probe_host(&ProbeRoots::default(), sys::try_bpf()));
    let may_protect = findings.as_ref().is_ok_and(may_protect_itself);
    let host = attend("host", soon(), say, move || HostFacts::find(Path::new("/"), may_protect));
    let look = attend("proc-look", soon(), say, look);
    // The kernel's own word, above what was probed.
    let trial = attend("trial", end, say, setup::try_tracer);

    let node = attend("node", soon(), say, node);
    let mut diagnosis = Diagnosis::new(findings, trial, host.as_ref().ok().and_then(HostFacts::throttling));
    diagnosis.use_node(node);
    diagnosis.checks.extend(host.map_or_else(|waited| vec![given_up("host", waited)], |host| host.checks()));
    diagnosis.checks.push(look.unwrap_or_else(|waited| given_up("proc-look", waited)));
    diagnosis.checks.push(limits(&low_limits()));
    diagnosis.checks.push(agents());
    let text = if args.json { diagnosis.to_json() } else { diagnosis.to_text() };
    print(text)?;
    Ok(Exit::Ok.into())
}

/// Agents that this version was tested with: the suites drive it with the clients of the first two (`xtask/src/venv.rs`),
/// and hold its replies against the rules of the others, of which there are no packages.
const TESTED_AGENTS: &str =
    "tested with the clients of backend.ai-agent 23.3.8 and 23.9.10; replies conform to agents up to 26.8.1";

fn agents() -> HostCheck {
    HostCheck { check: "agents", state: CheckState::Note, found: TESTED_AGENTS.to_owned(), remedy: None }
}

/// The limits of a runner started here, which are those of this process.
fn limits(low: &[LowLimit]) -> HostCheck {
    const CHECK: &str = "limits";
    if low.is_empty() {
        let found = "no resource limit is too low".to_owned();
        return HostCheck { check: CHECK, state: CheckState::Ok, found, remedy: None };
    }
    let join = |texts: Vec<String>| texts.join("; ");
    HostCheck {
        check: CHECK,
        state: CheckState::Note,
        found: join(low.iter().map(LowLimit::found).collect()),
        remedy: Some(join(low.iter().map(|limit| limit.remedy.clone()).collect())),
    }
}

/// What an agent on this node mounts. Its files may be on a mount that hangs.
fn agent_diagnosis(agent: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let (path, roots) = (agent.to_owned(), PexRoots::of_caller());
    let say = |word: &str| eprintln!("krunner: {word}");
    let found = attend("agent", Instant::now() + DEADLINE, say, move || agent::checks(&path, &roots));
    let mut checks = found.unwrap_or_else(|waited| vec![given_up("agent-files", waited)]);
    checks.push(agents());
    print(if json { format!("{}\n", json!({ "checks": checks })) } else { lines(&checks).collect() })?;
    Ok(Exit::Ok.into())
}

/// `oom_score_adj` can be lowered with the capability in the host's user namespace only (`has_capability_noaudit`,
/// kernel/capability.c).
fn may_protect_itself(findings: &Findings) -> bool {
    findings.permitted.contains(Capability::CAP_SYS_RESOURCE) && findings.is_initial_user_namespace != Some(false)
}

fn given_up(check: &'static str, waited: Duration) -> HostCheck {
    let found = format!("abandoned after {:.1} s", waited.as_secs_f64());
    HostCheck { check, state: CheckState::Note, found, remedy: None }
}

/// What a look at `/proc` takes here, once it has been looked at.
fn look() -> HostCheck {
    let (state, found) = match time_scan(ProcRoot::default()) {
        Ok((processes, took)) => {
            (CheckState::Note, format!("scanning {processes} processes takes {:.2} ms", took.as_secs_f64() * 1e3))
        }
        Err(error) => (CheckState::Note, format!("cannot read processes: {error}")),
    };
    HostCheck { check: "proc-look", state, found, remedy: None }
}

const NODE: &str = "node";

/// Whether a node of this machine would deliver OOM kills to a runner here.
fn node() -> HostCheck {
    let Some(socket) = NodeSocket::find() else {
        let found = "KRUNNER_NODE_SOCKET is empty: no krunner node is used".to_owned();
        return HostCheck { check: NODE, state: CheckState::Note, found, remedy: None };
    };
    let path = socket.path.display();
    match greet(&socket.path, socket.is_on_host) {
        Ok(version) => {
            let found = format!("krunner node {version} at {path} delivers the OOM kills of this container");
            HostCheck { check: NODE, state: CheckState::Ok, found, remedy: None }
        }
        Err(error) => {
            let found = format!("no krunner node at {path}: {}", chain(&error));
            HostCheck { check: NODE, state: CheckState::Note, found, remedy: None }
        }
    }
}

/// What is printed.
struct Diagnosis {
    tracer: TracerKind,
    /// Kills are detected without eBPF, too, as far as is known.
    counts_kills: bool,
    scope: Scope,
    checks: Vec<HostCheck>,
}

impl Diagnosis {
    /// Each with how long was waited for it if it did not end, and why that may be.
    fn new(
        findings: Result<Findings, Duration>,
        trial: Result<Result<(), TracerError>, Duration>,
        why_slow: Option<String>,
    ) -> Self {
        let scope = findings.as_ref().map_or(Scope::Cgroup, Findings::scope);
        let choice = findings.as_ref().map_or(TracerKind::Snapshot, |findings| findings.choose().tracer);
        let counts_kills = findings.as_ref().map_or(true, Findings::counts_kills);
        let mut checks = findings.map_or_else(|waited| vec![given_up("probe", waited)], |findings| findings.checks());
        let (tracer, state, found) = match trial {
            Ok(Ok(())) => (TracerKind::Bpf, CheckState::Ok, "the programs load and attach".to_owned()),
            // What was found above is the reason, if anything was.
            Ok(Err(error)) if choice == TracerKind::Snapshot => (TracerKind::Snapshot, CheckState::Note, chain(&error)),
            Ok(Err(error)) => (TracerKind::Snapshot, CheckState::Missing, chain(&error)),
            // A runner loads it for as long as it takes.
            Err(waited) => {
                let reason = why_slow.map(|reason| format!(": {reason}")).unwrap_or_default();
                (choice, CheckState::Note, given_up("trial", waited).found + &reason)
            }
        };
        checks.push(HostCheck { check: "trial", state, found, remedy: None });
        Self { tracer, counts_kills, scope, checks }
    }

    /// A node is used if the own tracer is not. Then nothing is missing that eBPF would require here.
    fn use_node(&mut self, node: Result<HostCheck, Duration>) {
        let node = node.unwrap_or_else(|waited| given_up(NODE, waited));
        if node.state == CheckState::Ok && self.tracer == TracerKind::Snapshot {
            self.tracer = TracerKind::Node;
            for check in self.checks.iter_mut().filter(|check| check.state == CheckState::Missing) {
                (check.state, check.remedy) = (CheckState::Note, None);
            }
        }
        self.checks.push(node);
    }

    fn to_json(&self) -> String {
        format!(
            "{}\n",
            json!({
                "tracer": self.tracer,
                "counts_kills": self.counts_kills,
                "scope": self.scope,
                "checks": self.checks,
            })
        )
    }

    fn to_text(&self) -> String {
        let tracer = match self.tracer {
            TracerKind::Bpf => "tracer: bpf; OOM kills are traced in the kernel\n",
            TracerKind::Node => "tracer: node; OOM kills are traced by this machine's krunner node\n",
            TracerKind::Snapshot if self.counts_kills => {
                "tracer: snapshot; OOM kills are inferred from cgroup counters and /proc (see MISSING)\n"
            }
            TracerKind::Snapshot => {
                "tracer: none; OOM kills go undetected: no eBPF (see MISSING), and no readable kill counter (see cgroup)\n"
            }
        };
        lines(&self.checks).chain([tracer.to_owned()]).collect()
    }
}

fn lines(checks: &[HostCheck]) -> impl Iterator<Item = String> {
    checks.iter().map(|check| {
        let state = match check.state {
            CheckState::Ok => "ok",
            CheckState::Missing => "MISSING",
            CheckState::Note => "note",
        };
        let remedy = check.remedy.as_ref().map(|remedy| format!(" -> {remedy}")).unwrap_or_default();
        format!("{state:<8} {:<17} {}{remedy}\n", check.check, check.found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder without anything in it: no capabilities, no BTF.
    fn findings() -> Findings {
        let empty = tempfile::TempDir::new().unwrap();
        probe::probe_host(&ProbeRoots::below(empty.path()), Err(std::io::ErrorKind::PermissionDenied.into()))
    }

    /// The whole text where nothing is allowed, so that a change of it is seen in review.
    #[test]
    fn text_without_any_rights() {
        let empty = tempfile::TempDir::new().unwrap();
        let refused = Err(std::io::ErrorKind::PermissionDenied.into());
        let findings = probe::probe_host(&ProbeRoots::below(empty.path()), refused);
        let text = Diagnosis::new(Ok(findings), Ok(Err(TracerError::Disabled)), None).to_text();
        insta::assert_snapshot!("doctor_without_rights", text.replace(&empty.path().display().to_string(), "ROOT"));
    }

    #[test]
    fn a_line_has_state_check_finding_and_remedy() {
        let text = Diagnosis::new(Ok(findings()), Ok(Err(TracerError::Disabled)), None).to_text();
        let line = text.lines().find(|line| line.contains(" capabilities ")).unwrap();
        assert_eq!(
            line,
            "MISSING  capabilities      CAP_BPF and CAP_PERFMON are required; held: none -> start the container with \
             --cap-add BPF --cap-add PERFMON, and `setcap cap_bpf,cap_perfmon+p` krunner's file"
        );
        assert!(text.contains("\nnote     seccomp           unknown\n"), "{text}");
        assert!(text.ends_with("\ntracer: none; OOM kills go undetected: no eBPF (see MISSING), and no readable kill counter (see cgroup)\n"));
        let counted =
            Diagnosis { counts_kills: true, ..Diagnosis::new(Ok(findings()), Ok(Err(TracerError::Disabled)), None) };
        assert!(
            counted
                .to_text()
                .ends_with("\ntracer: snapshot; OOM kills are inferred from cgroup counters and /proc (see MISSING)\n")
        );
    }

    #[test]
    fn a_trial_has_the_last_word() {
        let tried = |trial| Diagnosis::new(Ok(findings()), Ok(trial), None);
        assert_eq!(tried(Ok(())).tracer, TracerKind::Bpf);
        let refused = tried(Err(TracerError::Disabled));
        assert_eq!(refused.tracer, TracerKind::Snapshot);
        let text = refused.to_text();
        assert!(text.contains("note     trial             disabled\n"), "the cause is told above: {text}");
    }

    #[test]
    fn nothing_is_missing_where_a_node_traces() {
        let state_with = |state| {
            let mut diagnosis = Diagnosis::new(Ok(findings()), Ok(Err(TracerError::Disabled)), None);
            diagnosis.use_node(Ok(HostCheck { check: NODE, state, found: "found".to_owned(), remedy: None }));
            (diagnosis.tracer, diagnosis.to_text().contains("MISSING"))
        };
        assert_eq!(state_with(CheckState::Ok), (TracerKind::Node, false));
        assert_eq!(state_with(CheckState::Note), (TracerKind::Snapshot, true));
    }

    #[test]
    fn what_did_not_end_is_told_and_the_rest_too() {
        let late = Duration::from_secs(9);
        let text = Diagnosis::new(Ok(findings()), Err(late), Some("slow".to_owned())).to_text();
        assert!(text.contains("note     trial             abandoned after 9.0 s: slow\n"), "{text}");
        let text = Diagnosis::new(Err(late), Ok(Ok(())), None).to_text();
        assert!(text.starts_with("note     probe             abandoned after 9.0 s\nok       trial "), "{text}");
    }

    #[test]
    fn the_json_names_are_stable() {
        let told: serde_json::Value =
            serde_json::from_str(&Diagnosis::new(Ok(findings()), Ok(Err(TracerError::Disabled)), None).to_json())
                .unwrap();
        assert_eq!((&told["tracer"], &told["scope"]), (&json!("snapshot"), &json!("cgroup")));
        let check = &told["checks"][3];
        assert_eq!(check, &json!({ "check": "seccomp", "state": "note", "found": "unknown", "remedy": null }));
    }
}
