//! The recipes of `krunner/dist`, followed to the letter: each in a real container with a real kill.

use std::fs;
use std::path::Path;

use krunner_tests::container::KRUNNER;
use krunner_tests::recipe::{self, Recipe, podmans_profile};
use krunner_tests::{Monitor, require};
use serde_json::Value;

use crate::contained::{Contained, plain, with_bpf};
use crate::oom_privilege::capable;

const README: &str = include_str!("../../krunner/dist/README.md");
const DOCKERFILE: &str = include_str!("../../krunner/dist/Dockerfile");

/// The lines of `docker run` in the text, in their order.
fn docker_lines() -> Vec<Recipe> {
    let lines = README.lines().filter(|line| line.starts_with("docker run "));
    lines.map(|line| recipe::docker(line).unwrap_or_else(|problem| panic!("{line}: {problem}"))).collect()
}

/// The only line whose tracer and rights are these.
fn docker_line(tracer: &str, has_file_capabilities: bool) -> Recipe {
    let fits = |recipe: &Recipe| {
        recipe.tracer.as_deref() == Some(tracer) && recipe.rights.needs_file_capabilities() == has_file_capabilities
    };
    let mut found: Vec<Recipe> = docker_lines().into_iter().filter(fits).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn manifest(text: &str) -> Recipe {
    recipe::kubernetes(text).unwrap_or_else(|problem| panic!("{problem}: {text}"))
}

/// What the recipe says will result does.
#[track_caller]
fn holds(recipe: &Recipe) -> Result<(), String> {
    let tracer = recipe.tracer.as_deref().expect("a recipe says which tracer results");
    let confidence = if tracer == "bpf" { "confirmed" } else { "inferred" };
    let mut spec = recipe.rights.apply(plain())?;
    let marked = if recipe.rights.needs_file_capabilities() { Some(capable()?) } else { None };
    if let Some(marked) = &marked {
        spec = spec.krunner(&marked.program);
    }
    let mut session = Contained::start(&spec)?;
    session.until_it_watches();

    let output = session.container.way().command(KRUNNER).args(["doctor", "--json"]).output().expect("runc starts");
    let diagnosis: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!(diagnosis["tracer"], tracer, "{diagnosis:#}");
    let [first, options @ ..] = &recipe.arguments[..] else { panic!("no command: {recipe:?}") };
    assert_eq!(first, "monitor");
    let options: Vec<&str> = options.iter().map(String::as_str).filter(|option| *option != "--json").collect();
    let mut monitor = Monitor::start_program(&session.container.way(), Path::new(KRUNNER), &options);
    assert_eq!(monitor.watching()["tracer"], tracer, "{}", monitor.watching());

    session.kill_holder();

    let victim = session.victims[0];
    monitor.until_report_of(victim);
    let reports = monitor.reports();
    let report = reports.iter().find(|report| report["victim"]["pid"] == victim).expect("its report");
    assert_eq!((&report["tracer"], &report["confidence"]), (&tracer.into(), &confidence.into()), "{report:#}");
    assert_eq!(monitor.end().code(), Some(0), "{}", monitor.stderr());
    Ok(())
}

#[test]
fn docker_privileged() {
    require!(holds(&docker_line("bpf", false)));
}

#[test]
fn docker_with_two_capabilities() {
    require!(holds(&docker_line("bpf", true)));
}

#[test]
fn docker_plain() {
    require!(holds(&docker_line("snapshot", false)));
}

#[test]
fn kubernetes_privileged() {
    require!(holds(&manifest(include_str!("../../krunner/dist/kubernetes/privileged.yaml"))));
}

#[test]
fn kubernetes_with_two_capabilities() {
    require!(holds(&manifest(include_str!("../../krunner/dist/kubernetes/capable.yaml"))));
}

#[test]
fn kubernetes_plain() {
    require!(holds(&manifest(include_str!("../../krunner/dist/kubernetes/plain.yaml"))));
}

#[test]
fn agents_options() {
    let text = include_str!("../../krunner/dist/agent-docker-container-opts.json");
    require!(holds(&recipe::agents_options(text).expect("the agent's own form")));
}

#[test]
fn doctor_lines_give_what_the_lines_before_them_give() {
    let lines = docker_lines();
    let looks: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].arguments == ["doctor"]).collect();
    assert_eq!(looks.len(), 2);
    for at in looks {
        assert_eq!(lines[at].rights, lines[at - 1].rights);
    }
}

/// As the text says of engines whose profile does not know `CAP_BPF`.
#[test]
fn profile_that_does_not_know_the_capability_is_named_by_the_doctor() {
    let spec = with_bpf();
    let filter = require!(podmans_profile(spec.held()));
    let session = require!(Contained::start(&spec.seccomp(filter)));
    let doctor = session.container.way().command(KRUNNER).arg("doctor").output().expect("runc starts");
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(text.contains("refused by the seccomp filter, for the capabilities are there"), "{text}");
}

#[test]
fn dockerfile_copies_what_dist_makes() {
    let copied: Vec<&str> = DOCKERFILE
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|rest| !rest.starts_with("--from"))
        .map(|rest| rest.split_whitespace().next().expect("a source"))
        .collect();
    assert_eq!(copied, ["x86_64/krunner", "aarch64/krunner"]);
    let dist = require!(krunner_tests::host::dist());
    for source in copied {
        assert!(fs::metadata(dist.join(source)).is_ok_and(|file| file.is_file()), "{source}");
    }
    let marks = DOCKERFILE.lines().any(|line| line.contains("setcap cap_bpf,cap_perfmon+ep /krunner"));
    assert!(marks && DOCKERFILE.matches("FROM scratch").count() == 2, "{DOCKERFILE}");
}
