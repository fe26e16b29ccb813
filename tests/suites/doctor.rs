//! `krunner doctor`: the tracer that is chosen, and the remedy that is named, where the host is changed for real.
//!
//! Each test starts the binary inside something that takes one thing away: capabilities, namespaces, mounts. What
//! `krunner doctor` says is then what a runner started in the same way would find.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use krunner_tests::pids::PidsCgroup;
use krunner_tests::{binary, host, require, wait};
use serde_json::Value;
use tempfile::TempDir;

/// A user without any right, and no capabilities left to hand on.
const NOBODY: [&str; 7] = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all"];

/// As of container engines that know nothing of BPF.
const NO_BPF_IN_BOUNDING_SET: &str = "--bounding-set=-bpf,-perfmon,-sys_admin";

fn run(prefix: &[&str], krunner: &Path, arguments: &[&str]) -> Output {
    let mut argv = prefix.iter().map(Into::into).collect::<Vec<PathBuf>>();
    argv.push(krunner.to_owned());
    Command::new(&argv[0])
        .args(&argv[1..])
        .arg("doctor")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot start {argv:?}: {error}"))
}

/// What the doctor says in there, as JSON.
#[track_caller]
fn diagnosis_of(krunner: &Path, prefix: &[&str]) -> Value {
    let output = run(prefix, krunner, &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error} in {output:?}"))
}

#[track_caller]
fn diagnosis(prefix: &[&str]) -> Value {
    diagnosis_of(&binary(), prefix)
}

/// Names of the checks that rule BPF out.
fn missing(diagnosis: &Value) -> Vec<&str> {
    let checks = diagnosis["checks"].as_array().expect("checks");
    checks.iter().filter(|check| check["state"] == "missing").filter_map(|check| check["check"].as_str()).collect()
}

#[track_caller]
fn check<'a>(diagnosis: &'a Value, name: &str) -> &'a Value {
    let checks = diagnosis["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("no {name} in {diagnosis}"))
}

#[track_caller]
fn remedy<'a>(diagnosis: &'a Value, name: &str) -> &'a str {
    check(diagnosis, name)["remedy"].as_str().unwrap_or_else(|| panic!("no remedy for {name} in {diagnosis}"))
}

/// A host where root can have BPF: only there a test shows what takes it away.
fn bpf() -> Result<(), String> {
    host::root()?;
    host::util_linux()?;
    let here = diagnosis(&[]);
    if here["tracer"] == "bpf" { Ok(()) } else { Err(format!("no BPF here: {:?}", missing(&here))) }
}

/// A copy of krunner with file capabilities, where anyone can execute it.
fn with_file_capabilities(capabilities: &str) -> Result<(TempDir, PathBuf), String> {
    let setcap = host::program("setcap")?;
    let folder = TempDir::with_prefix("krt-").expect("a temporary folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("chmod");
    let copy = folder.path().join("krunner");
    fs::copy(binary(), &copy).expect("a copy of krunner");
    let set = Command::new(setcap).arg(capabilities).arg(&copy).output().expect("setcap runs");
    if set.status.success() { Ok((folder, copy)) } else { Err(format!("no file capabilities here: {set:?}")) }
}

#[test]
fn root_has_bpf_and_reads_why() {
    require!(bpf());
    let text = String::from_utf8(run(&[], &binary(), &[]).stdout).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.iter().any(|line| line.starts_with("ok       capabilities      ")), "{text}");
    assert!(lines.last().expect("a last line").starts_with("tracer: bpf;"), "{text}");
    assert_eq!(lines.len(), 21, "a line for each check and one for the tracer\n{text}");
}

#[test]
fn root_without_capabilities_needs_a_container_that_has_them() {
    require!(bpf());
    let told = diagnosis(&["setpriv", "--bounding-set=-all", "--inh-caps=-all"]);
    assert_eq!((&told["tracer"], missing(&told)), (&"snapshot".into(), vec!["capabilities"]));
    assert_eq!(remedy(&told, "capabilities"), "start the container with --cap-add BPF --cap-add PERFMON");
    assert_eq!(check(&told, "bpf-call")["state"], "note", "{told}");
}

/// containerd's own client mounts no cgroupfs.
#[test]
fn without_cgroupfs_kills_are_detected_by_bpf_only() {
    const HIDDEN: [&str; 9] = [
        "unshare",
        "--mount",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-c",
        "umount --lazy --recursive /sys/fs/cgroup && exec \"$@\"",
        "sh",
    ];
    require!(bpf());
    require!(host::util_linux());
    let last_line = |prefix: &[&str]| {
        let text = String::from_utf8(run(prefix, &binary(), &[]).stdout).expect("text");
        text.lines().last().expect("a last line").to_owned()
    };
    let plain = [&HIDDEN[..], &["setpriv", "--bounding-set=-all", "--inh-caps=-all"]].concat();
    assert!(last_line(&HIDDEN).starts_with("tracer: bpf;"));
    assert!(last_line(&plain).starts_with("tracer: none; OOM kills go undetected: "));
}

#[test]
fn a_user_needs_file_capabilities() {
    require!(bpf());
    let text = String::from_utf8(run(&NOBODY, &binary(), &[]).stdout).expect("text");
    assert!(
        text.contains("held: none -> `setcap cap_bpf,cap_perfmon+p` krunner's file, or run it as root\n")
            && text.contains("\ntracer: snapshot;"),
        "{text}"
    );
    let confined = [&NOBODY[..], &["--no-new-privs"]].concat();
    assert!(remedy(&diagnosis(&confined), "capabilities").contains("no_new_privs disables"));
}

#[test]
fn file_capabilities_give_a_user_bpf() {
    require!(bpf());
    for capabilities in ["cap_bpf,cap_perfmon+p", "cap_bpf,cap_perfmon+ep"] {
        let (_folder, krunner) = require!(with_file_capabilities(capabilities));
        let told = diagnosis_of(&krunner, &NOBODY);
        assert_eq!((&told["tracer"], missing(&told)), (&"bpf".into(), vec![]), "{capabilities}: {told}");
        assert_eq!(check(&told, "capabilities")["found"], "CAP_PERFMON, CAP_BPF");
    }
}

#[test]
fn file_capabilities_that_the_container_withholds_are_no_harm() {
    require!(bpf());
    let (_folder, krunner) = require!(with_file_capabilities("cap_bpf,cap_perfmon+p"));
    let told = diagnosis_of(&krunner, &[&NOBODY[..], &[NO_BPF_IN_BOUNDING_SET]].concat());
    assert_eq!((&told["tracer"], missing(&told)), (&"snapshot".into(), vec!["capabilities"]));
    let help = remedy(&told, "capabilities");
    assert!(help.contains("--cap-add BPF --cap-add PERFMON") && help.contains("setcap"), "{help}");
    // The reason for `+p`: with `+ep` the kernel refuses the exec, and there would be no runner at all.
    let (_folder, krunner) = require!(with_file_capabilities("cap_bpf,cap_perfmon+ep"));
    let refused = run(&[&NOBODY[..], &[NO_BPF_IN_BOUNDING_SET]].concat(), &krunner, &[]);
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
}

#[test]
fn root_of_a_user_namespace_has_capabilities_that_do_not_count() {
    require!(bpf());
    let told = diagnosis(&["unshare", "--user", "--map-root-user"]);
    assert_eq!((&told["tracer"], missing(&told)), (&"snapshot".into(), vec!["user-namespace"]));
    assert!(remedy(&told, "user-namespace").contains("--userns=host"));
    assert_eq!(check(&told, "capabilities")["state"], "ok", "{told}");
}

#[test]
fn the_scope_follows_the_pid_namespace() {
    require!(bpf());
    let own = diagnosis(&["unshare", "--pid", "--fork", "--mount-proc"]);
    assert_eq!((&own["tracer"], &own["scope"]), (&"bpf".into(), &"pid-namespace".into()));
    let inode = fs::read_link("/proc/self/ns/pid").expect("a link");
    if inode.to_str() == Some("pid:[4026531836]") {
        assert_eq!(diagnosis(&[])["scope"], "cgroup", "in the host's, krunner keeps to its own cgroup");
    }
}

#[test]
fn a_kernel_without_btf_is_told() {
    require!(bpf());
    let hide = "mount -t tmpfs none /sys/kernel/btf && exec \"$@\"";
    let told = diagnosis(&["unshare", "--mount", "sh", "-c", hide, "sh"]);
    assert_eq!((&told["tracer"], missing(&told)), (&"snapshot".into(), vec!["kernel-btf"]));
    assert!(remedy(&told, "kernel-btf").contains("CONFIG_DEBUG_INFO_BTF=y"));
}

#[test]
fn hidepid_and_a_hidden_cgroup_are_only_noted() {
    require!(bpf());
    let hide = "mount -t proc -o hidepid=2 proc /proc && mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"";
    let told = diagnosis(&["unshare", "--mount", "--pid", "--fork", "sh", "-c", hide, "sh"]);
    assert_eq!((&told["tracer"], missing(&told)), (&"bpf".into(), vec![]));
    assert!(remedy(&told, "proc").contains("without hidepid"), "{told}");
    assert!(remedy(&told, "cgroup").contains("mount cgroupfs in the container"), "{told}");
}

#[test]
fn check_that_hangs_is_named_and_given_up() {
    require!(bpf());
    let hang = "mkfifo \"$KRT\" && mount --bind \"$KRT\" /sys/kernel/btf/vmlinux && exec \"$@\"";
    let folder = TempDir::with_prefix("krt-").expect("a temporary folder");
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", hang, "sh"])
        .arg(binary())
        .arg("doctor")
        .env("KRT", folder.path().join("fifo"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare runs");
    let ended = wait::within(Duration::from_secs(30), || child.try_wait().expect("wait for krunner"));
    // One that hangs does so for as long as it lives.
    let _ = child.kill();
    let output = child.wait_with_output().expect("its output");
    assert_eq!(ended.and_then(|status| status.code()), Some(0), "{output:?}");
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("still waiting for: probe (2 s)") && said.contains("still waiting for: trial ("), "{said}");
    assert!(told.contains("note     probe             abandoned after 2."), "{told}");
    assert!(told.contains("note     trial             abandoned after "), "{told}");
    assert!(told.contains(" oom-protection    ") && told.contains(" proc-look         "), "{told}");
}

#[test]
fn no_room_for_a_thread_is_told_and_no_hindrance() {
    let pids = require!(PidsCgroup::scratch());
    pids.limit(1);
    let enter = pids.enter();
    let told = diagnosis(&enter.each_ref().map(String::as_str));
    let found = check(&told, "pids-limit");
    assert_eq!(
        (&found["state"], &found["found"]),
        (&"note".into(), &"1 of 1 processes and threads in use: steps that exceed the limit end with -1".into(),)
    );
    assert!(remedy(&told, "pids-limit").contains("--pids-limit"), "{told}");
    assert!(check(&told, "trial")["found"].is_string(), "{told}");
}

#[test]
fn runner_that_may_not_protect_itself_ranks_its_children() {
    require!(host::root());
    require!(host::program("setpriv"));
    let ranked = |score: &str| {
        let set = format!("echo {score} > /proc/self/oom_score_adj && exec \"$@\"");
        let told = diagnosis(&["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-all", "sh", "-c", &set, "sh"]);
        check(&told, "oom-protection").clone()
    };
    assert_eq!(ranked("200")["state"], "ok");
    let last = ranked("1000");
    assert_eq!(last["state"], "note");
    assert!(last["found"].as_str().expect("text").contains("ranked 0 above it"), "{last}");
    assert!(last["remedy"].as_str().expect("text").contains("cap_sys_resource+p"), "{last}");
}

#[test]
fn help_says_what_the_exit_code_means_and_a_full_disk_is_a_failure() {
    let help = run(&[], &binary(), &["--help"]);
    let help = String::from_utf8(help.stdout).expect("text");
    assert!(help.contains("Examples:") && help.contains("\n  0    done, whether or not eBPF"), "{help}");
    let full = Command::new(binary())
        .arg("doctor")
        .stdout(fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full"))
        .stderr(Stdio::piped())
        .output()
        .expect("the binary runs");
    assert_eq!(full.status.code(), Some(1), "{full:?}");
}
