//! `krunner doctor`: which tracer a runner started here would use, and why not the better one.

use std::process::ExitCode;

use serde_json::json;

use super::args::DoctorArgs;
use super::stdout::print;
use crate::exit::Exit;
use crate::monitor::tracer::probe::{self, Check, Findings, ProbeRoots, State};
use crate::monitor::{ProcRoot, Scope, TracerKind, means, time_look};
use crate::sys;

/// Looks with the rights of the calling thread, which are to be those that krunner was started with.
pub(super) fn doctor(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    // What cannot be raised is refused, and then told.
    let _ = sys::raise_permitted();
    let findings = probe::of_this_host(&ProbeRoots::default(), sys::try_bpf());
    // The kernel's own word, above what was probed.
    let mut diagnosis = Diagnosis::new(&findings, &means::try_tracer());
    diagnosis.checks.push(look());
    let text = if args.json { diagnosis.to_json() } else { diagnosis.to_text() };
    print(text)?;
    Ok(Exit::Ok.into())
}

/// What a look at `/proc` takes here, once it has been looked at.
fn look() -> Check {
    let (state, found) = match time_look(ProcRoot::default()) {
        Ok((processes, took)) => {
            (State::Note, format!("a look at {processes} processes takes {:.2} ms", took.as_secs_f64() * 1e3))
        }
        Err(error) => (State::Note, format!("processes cannot be seen: {error}")),
    };
    Check { check: "proc-look", state, found, remedy: None }
}

/// What is printed.
struct Diagnosis {
    tracer: TracerKind,
    scope: Scope,
    checks: Vec<Check>,
}

impl Diagnosis {
    fn new(findings: &Findings, trial: &Result<(), String>) -> Self {
        let mut checks = findings.checks();
        let (tracer, state, found) = match trial {
            Ok(()) => (TracerKind::Bpf, State::Ok, "the programs load and attach".to_owned()),
            // What was found above is the reason, if anything was.
            Err(error) if findings.choose().tracer == TracerKind::Snapshot => {
                (TracerKind::Snapshot, State::Note, error.clone())
            }
            Err(error) => (TracerKind::Snapshot, State::Missing, error.clone()),
        };
        checks.push(Check { check: "trial", state, found, remedy: None });
        Self { tracer, scope: findings.scope(), checks }
    }

    fn to_json(&self) -> String {
        format!("{}\n", json!({ "tracer": self.tracer, "scope": self.scope, "checks": self.checks }))
    }

    fn to_text(&self) -> String {
        let lines = self.checks.iter().map(|check| {
            let state = match check.state {
                State::Ok => "ok",
                State::Missing => "MISSING",
                State::Note => "note",
            };
            let remedy = check.remedy.as_ref().map(|remedy| format!(" -> {remedy}")).unwrap_or_default();
            format!("{state:<8} {:<17} {}{remedy}\n", check.check, check.found)
        });
        let tracer = match self.tracer {
            TracerKind::Bpf => "tracer: bpf; kills are reported as the kernel tells them\n",
            TracerKind::Snapshot => "tracer: snapshot; kills are inferred from what /proc showed (see MISSING)\n",
        };
        lines.chain([tracer.to_owned()]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder without anything in it: no capabilities, no BTF.
    fn findings() -> Findings {
        let empty = tempfile::TempDir::new().unwrap();
        probe::of_this_host(&ProbeRoots::below(empty.path()), Err(std::io::ErrorKind::PermissionDenied.into()))
    }

    #[test]
    fn a_line_has_state_check_finding_and_remedy() {
        let text = Diagnosis::new(&findings(), &Err("refused".to_owned())).to_text();
        let first = text.lines().next().unwrap();
        assert_eq!(
            first,
            "MISSING  capabilities      CAP_BPF and CAP_PERFMON are needed, held: none -> start the container with \
             --cap-add BPF --cap-add PERFMON, and `setcap cap_bpf,cap_perfmon+p` krunner's file"
        );
        assert!(text.contains("\nnote     seccomp           cannot be seen\n"), "{text}");
        assert!(text.ends_with("tracer: snapshot; kills are inferred from what /proc showed (see MISSING)\n"));
    }

    #[test]
    fn a_trial_has_the_last_word() {
        let tried = |trial| Diagnosis::new(&findings(), &trial);
        assert_eq!(tried(Ok(())).tracer, TracerKind::Bpf);
        let refused = tried(Err("the kernel refuses".to_owned()));
        assert_eq!(refused.tracer, TracerKind::Snapshot);
        let text = refused.to_text();
        assert!(text.contains("note     trial             the kernel refuses\n"), "the cause is told above: {text}");
    }

    #[test]
    fn the_json_names_are_stable() {
        let told: serde_json::Value =
            serde_json::from_str(&Diagnosis::new(&findings(), &Err("refused".to_owned())).to_json()).unwrap();
        assert_eq!((&told["tracer"], &told["scope"]), (&json!("snapshot"), &json!("cgroup")));
        let check = &told["checks"][3];
        assert_eq!(check, &json!({ "check": "seccomp", "state": "note", "found": "cannot be seen", "remedy": null }));
    }
}
