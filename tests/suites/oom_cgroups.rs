//! Which cgroup a victim was in, and the figures of that one: below the monitor's, gone by the time of the report, or not
//! the monitor's at all.

use std::fs;

use krunner_tests::cgroup::{Cgroup, Version};
use krunner_tests::{LaunchMethod, Monitor, Scenario, require};
use serde_json::Value;

use crate::oom::{LIMIT_MIB, OWN_MIB, TOO_MUCH, TestEnv, VICTIM};

/// Cgroups that come and go in a row.
const SHORT_LIVED: usize = 20;

/// The limit of a cgroup that is not the monitor's, another one than any that is.
const OTHER_MIB: u64 = 40;

/// The report's cgroup is the one with this directory, and has this limit.
#[track_caller]
fn assert_cgroup(report: &Value, cgroup: &Cgroup) {
    let told = &report["cgroup"];
    let path = told["path"].as_str().unwrap_or_else(|| panic!("no path: {report}"));
    assert!(path.len() > 1 && cgroup.path().ends_with(path.trim_start_matches('/')), "{path} is not {cgroup:?}");
    if cgroup.version() == Version::One {
        assert_eq!(told["limit_bytes"], cgroup.limit_bytes(), "{told}");
        assert_eq!(told["oom_kill_count"], cgroup.oom_kills(), "{told}");
    }
}

/// One that lives where the monitor does is killed in that cgroup, and reported.
#[track_caller]
fn kill_in(env: &mut TestEnv, cgroup: &Cgroup) {
    let mut command = env.inside().cgroup(cgroup).command(VICTIM);
    command.args(["eat", TOO_MUCH]);
    let told = Scenario::start(command).end();
    assert_eq!(cgroup.oom_kills(), 1, "{told:?}");
    env.monitor.until_report_of(told.pid("victim"));
}

#[test]
fn victims_below_have_their_own_cgroup_and_limit() {
    let mut env = require!(TestEnv::new());
    let told = env.run(&["eat", TOO_MUCH]);
    env.monitor.until_report_of(told.pid("victim"));
    assert_cgroup(env.monitor.reports()[0], &env.limited);
}

#[test]
fn cgroups_that_are_removed_right_after_the_kill_have_a_name() {
    let mut env = require!(TestEnv::new());
    require!(match env.limited.version() {
        Version::One => Ok(()),
        Version::Two => Err("in cgroup v2 there is only one limit below a scratch cgroup".to_owned()),
    });
    // The shell makes them where the monitor is; `eat` ends by SIGKILL, and the directory goes with the next call.
    let line = format!(
        "i=0; while [ $i -lt {SHORT_LIVED} ]; do d={scratch}/short-$i; mkdir $d; \
         echo {limit} > $d/memory.limit_in_bytes; \
         sh -c 'echo $$ > \"$0/cgroup.procs\"; exec {VICTIM} eat {TOO_MUCH}' $d; rmdir $d; i=$((i+1)); done",
        scratch = env.scratch.path().display(),
        limit = LIMIT_MIB << 20,
    );
    let mut command = krunner_tests::LaunchMethod::direct().cgroup(&env.scratch).command("sh");
    command.args(["-c", &line]);
    let told = Scenario::start(command).end();
    let victims = told.all("victim");
    assert_eq!(victims.len(), SHORT_LIVED, "{told:?}");

    for (index, victim) in victims.into_iter().enumerate() {
        env.monitor.until_report_of(victim);
        let reports = env.monitor.reports();
        let report = reports.iter().find(|report| report["victim"]["pid"] == victim).expect("it was told of");
        let cgroup = &report["cgroup"];
        let expected = env.scratch.path().join(format!("short-{index}"));
        let path = cgroup["path"].as_str().unwrap_or_else(|| panic!("no path: {report}"));
        assert!(expected.ends_with(path.trim_start_matches('/')), "{path} is not {}", expected.display());
        let limit = &cgroup["limit_bytes"];
        assert!(limit.is_null() || *limit == LIMIT_MIB << 20, "its own or none: {cgroup}");
    }
}

#[test]
fn victims_in_a_cgroup_beside_ours_have_that_ones_figures() {
    let mut env = require!(TestEnv::in_sandbox());
    let beside = env.scratch.beside().expect("a cgroup beside the monitor's");
    let other = beside.limited("other", OTHER_MIB);
    kill_in(&mut env, &other);
    assert_cgroup(env.monitor.reports()[0], &other);
}

#[test]
fn victims_in_a_cgroup_that_is_not_visible_have_none() {
    // As in most containers: of the hierarchy, only the monitor's own cgroup is mounted.
    let mut env = require!(TestEnv::seeing_only_its_own());
    let beside = env.scratch.beside().expect("a cgroup beside the monitor's");
    let other = beside.limited("other", OTHER_MIB);
    kill_in(&mut env, &other);
    assert_eq!(env.monitor.reports()[0]["cgroup"], Value::Null, "{:?}", env.monitor.reports());

    let own = env.run(&["eat", TOO_MUCH]).pid("victim");
    env.monitor.until_report_of(own);
    let cgroup = &env.monitor.reports()[1]["cgroup"];
    assert!(cgroup["path"].as_str().is_some_and(|path| path.ends_with("/limited")), "{cgroup}");
    assert!(fs::exists(other.path()).expect("the cgroup beside"), "it was there all the time");
}

#[test]
fn all_namespaces_shows_what_the_cgroup_filter_hides() {
    let scratch = require!(Cgroup::scratch());
    let (own, limited) = (scratch.limited("own", OWN_MIB), scratch.limited("other", LIMIT_MIB));
    require!(Monitor::start(&LaunchMethod::direct()).needs_bpf());
    let mut monitor =
        Monitor::start_program(&LaunchMethod::direct().cgroup(&own), &krunner_tests::binary(), &["--all-namespaces"]);
    assert_eq!(monitor.watching()["scope"], "all");
    let mut command = LaunchMethod::direct().cgroup(&limited).command(VICTIM);
    command.args(["eat", TOO_MUCH]);
    let told = Scenario::start(command).end();
    assert_eq!(limited.oom_kills(), 1, "{told:?}");
    monitor.until_report_of(told.pid("victim"));
}
