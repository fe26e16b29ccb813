//! Hosts with a single obstacle, and hosts read from fake files.

use std::fs;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::super::btf::KernelFacts;
use super::super::probe::{ProbeRoots, probe_host};
use super::*;
use crate::monitor::model::detection::{Scope, TracerKind};

/// A host that meets all requirements.
fn good() -> Findings {
    let mut offsets = Offsets::UNKNOWN;
    for offset in [
        &mut offsets.signal_group_exit_code,
        &mut offsets.signal_oom_score_adj,
        &mut offsets.task_real_parent,
        &mut offsets.task_comm,
        &mut offsets.task_real_cred,
        &mut offsets.cred_uid,
        &mut offsets.task_mm,
        &mut offsets.mm_total_vm,
        &mut offsets.mm_rss,
        &mut offsets.mm_pgtables_bytes,
        &mut offsets.mm_arg_start,
        &mut offsets.mm_arg_end,
    ] {
        *offset = 8;
    }
    Findings {
        permitted: both(),
        bounding: both(),
        is_root: false,
        no_new_privileges: false,
        seccomp: Some(0),
        is_initial_user_namespace: Some(true),
        is_initial_pid_namespace: Some(false),
        bpf_answer: Ok(()),
        btf: Ok(KernelFacts { offsets, mark_victim_is_pid: false, has_direct_reads: true, css_set_default: 8 }),
        lockdown: Some("none".to_owned()),
        tracefs: None,
        unprivileged_bpf_disabled: Some(2),
        proc_view: ProcView::Ours,
        hidepid: None,
        memlock_bytes: None,
        cgroup: Err(CgroupError::NotMounted),
        cgroup_facts: None,
        cgroup_problems: Vec::new(),
    }
}

fn both() -> Capabilities {
    [Capability::CAP_BPF, Capability::CAP_PERFMON].into_iter().collect()
}

fn refused(number: i32) -> std::io::Result<()> {
    Err(Error::from_raw_os_error(number))
}

/// Names and remedies of the checks that are missing.
fn obstacles(findings: &Findings) -> Vec<(&'static str, String)> {
    let missing = checks(findings).into_iter().filter(|check| check.state == CheckState::Missing);
    let found: Vec<_> = missing.map(|check| (check.check, check.remedy.unwrap_or_default())).collect();
    let choice = findings.choose();
    assert_eq!(choice.why_not_better.len(), found.len());
    assert_eq!(choice.tracer == TracerKind::Bpf, found.is_empty());
    found
}

fn check(findings: &Findings, name: &str) -> HostCheck {
    checks(findings).into_iter().find(|check| check.check == name).unwrap()
}

#[test]
fn bpf_is_chosen_if_all_requirements_are_met() {
    assert_eq!(obstacles(&good()), []);
    let old = Findings { permitted: [Capability::CAP_SYS_ADMIN].into_iter().collect(), ..good() };
    assert_eq!(obstacles(&old), []);
}

#[test]
fn the_remedy_for_capabilities_is_one_that_works_here() {
    let none = Capabilities::default();
    let remedy = |bounding, is_root, no_new_privileges| {
        let findings = Findings {
            permitted: none,
            bounding,
            is_root,
            no_new_privileges,
            bpf_answer: refused(libc::EPERM),
            ..good()
        };
        match obstacles(&findings).as_slice() {
            [("capabilities", remedy)] => remedy.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(remedy(both(), false, false), "`setcap cap_bpf,cap_perfmon+p` krunner's file, or run it as root");
    assert!(remedy(both(), false, true).contains("no_new_privs"));
    assert!(remedy(both(), true, false).contains("bounding set"));
    assert_eq!(remedy(none, true, false), "start the container with --cap-add BPF --cap-add PERFMON");
    let last = remedy(none, false, true);
    assert!(last.contains("--cap-add BPF --cap-add PERFMON, and `setcap"), "{last}");
}

#[test]
fn one_capability_alone_is_not_enough_and_is_named() {
    let findings = Findings { permitted: [Capability::CAP_BPF].into_iter().collect(), ..good() };
    let told = check(&findings, "capabilities");
    assert_eq!(
        (told.state, told.found.as_str()),
        (CheckState::Missing, "CAP_BPF and CAP_PERFMON are required; held: CAP_BPF")
    );
}

#[test]
fn failed_bpf_call_is_attributed_to_its_cause() {
    let refusal = |number, seccomp| Findings { bpf_answer: refused(number), seccomp: Some(seccomp), ..good() };
    let profile = "allow bpf in the container's seccomp profile";
    assert_eq!(obstacles(&refusal(libc::EPERM, 2)), [("bpf-call", profile.to_owned())]);
    assert_eq!(obstacles(&refusal(libc::ENOSYS, 2)), [("bpf-call", profile.to_owned())]);
    assert!(obstacles(&refusal(libc::EPERM, 0))[0].1.contains("LSM policy"));
    assert!(obstacles(&refusal(libc::ENOSYS, 0))[0].1.contains("CONFIG_BPF_SYSCALL"));
    assert!(obstacles(&refusal(libc::EINVAL, 0))[0].1.contains("5.8"));
    assert_eq!(obstacles(&refusal(libc::EMFILE, 0)), [("bpf-call", String::new())]);
}

#[test]
fn capabilities_of_another_user_namespace_do_not_count() {
    let findings = Findings { is_initial_user_namespace: Some(false), bpf_answer: refused(libc::EPERM), ..good() };
    let found = obstacles(&findings);
    assert_eq!(found.len(), 1);
    assert!(found[0].0 == "user-namespace" && found[0].1.contains("--userns=host"), "{found:?}");
    assert!(found[0].1.contains("rootful engine"), "{found:?}");
    let rootless = Findings { permitted: Capabilities::default(), ..findings };
    // The reason in the session's log.
    let reason = rootless.choose().why_not_better[0].to_string();
    assert!(reason.contains("rootless podman"), "{reason}");
}

#[test]
fn lockdown_rules_bpf_out_only_when_it_hides_memory() {
    let locked = |mode: &str| Findings { lockdown: Some(mode.to_owned()), ..good() };
    assert_eq!(obstacles(&locked("integrity")), []);
    assert_eq!(obstacles(&locked("confidentiality"))[0].0, "lockdown");
}

#[test]
fn each_btf_error_has_a_remedy() {
    let lacking = |error| obstacles(&Findings { btf: Err(error), ..good() }).remove(0).1;
    let read = |kind: ErrorKind| BtfError::Read("/b".into(), kind.into());
    assert!(lacking(read(ErrorKind::NotFound)).contains("CONFIG_DEBUG_INFO_BTF"));
    assert!(lacking(read(ErrorKind::PermissionDenied)).contains("readable"));
    assert!(lacking(BtfError::Empty).contains("without masking"));
    assert!(lacking(BtfError::NoType("task_struct")).contains("different kernel"));
    let poor = KernelFacts {
        offsets: Offsets::UNKNOWN,
        mark_victim_is_pid: false,
        has_direct_reads: true,
        css_set_default: 8,
    };
    let told = check(&Findings { btf: Ok(poor), ..good() }, "kernel-btf");
    assert!(told.state == CheckState::Note && told.found.contains("users, memory"), "{told:?}");
}

#[test]
fn notes_do_not_rule_bpf_out() {
    let findings = Findings {
        tracefs: Some("/t".to_owned()),
        unprivileged_bpf_disabled: None,
        hidepid: Some("2".to_owned()),
        memlock_bytes: Some(64 << 10),
        is_initial_pid_namespace: Some(true),
        is_initial_user_namespace: None,
        seccomp: Some(SECCOMP_FILTER),
        lockdown: None,
        ..good()
    };
    assert_eq!(obstacles(&findings), []);
    assert_eq!(check(&findings, "seccomp").found, "a filter that allows bpf(2)");
    assert!(check(&findings, "memlock").remedy.unwrap().contains("memlock=-1"));
    assert!(check(&findings, "proc").found.contains("hidepid=2"));
    assert!(check(&findings, "tracefs").found.starts_with("at /t ("));
}

#[test]
fn the_scope_is_the_narrower_one_when_in_doubt() {
    let scope = |is_initial| Findings { is_initial_pid_namespace: is_initial, ..good() }.scope();
    assert_eq!(
        [scope(Some(false)), scope(Some(true)), scope(None)],
        [Scope::PidNamespace, Scope::Cgroup, Scope::Cgroup]
    );
}

#[test]
fn a_cgroup_that_cannot_be_read_is_a_note_with_its_cause() {
    let facts = CgroupFacts {
        path: "/a".to_owned(),
        version: 2,
        limit_bytes: Some(300 << 20),
        usage_bytes: None,
        oom_kill_count: None,
    };
    let cgroup_problems = vec![CgroupError::Off("/x".into())];
    let told = describe(&facts);
    assert_eq!(told, "v2 /a, limit 300 MiB, no OOM kill counter");
    let findings = Findings { cgroup_facts: Some(facts), cgroup_problems, ..good() };
    let none = check(&findings, "cgroup");
    assert!(none.state == CheckState::Note && none.remedy.is_some_and(|remedy| remedy.starts_with("mount ")));
    let facts = findings.cgroup_facts.as_ref().unwrap();
    let off = found_cgroup(facts, &findings.cgroup_problems);
    assert!(off.found.ends_with("; the memory controller is disabled in /x"), "{off:?}");
    let root = found_cgroup(facts, &[CgroupError::IsRoot("/x".into())]);
    assert_eq!(root.found, "/x is the root cgroup, which has no memory.* files");
    assert!(root.remedy.is_some_and(|remedy| remedy.starts_with("start krunner in its own cgroup")));
}

/// A container of a non-root user: the default capabilities and a filter of Docker's kind.
#[test]
fn a_container_is_read_from_its_files() {
    let root = TempDir::new().unwrap();
    let thread = root.path().join("proc/thread-self");
    for folder in ["proc/thread-self/ns", "proc/sys/kernel", "sys/kernel/security"] {
        fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    let status = "Name:\tx\nUid:\t1000\t1000\t1000\t1000\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\n\
        CapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
    fs::write(thread.join("status"), status).unwrap();
    let mounts = "overlay / overlay rw 0 0\nproc /proc proc rw 0 0\nproc /proc proc rw,nosuid,hidepid=invisible 0 0\n\
        tracefs /sys/kernel/tracing tracefs rw 0 0\n";
    fs::write(thread.join("mounts"), mounts).unwrap();
    let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
        Max locked memory         65536                65536                bytes     \n";
    fs::write(thread.join("limits"), limits).unwrap();
    symlink("pid:[4026532281]", thread.join("ns/pid")).unwrap();
    symlink("user:[4026531837]", thread.join("ns/user")).unwrap();
    fs::write(root.path().join("proc/sys/kernel/unprivileged_bpf_disabled"), "1\n").unwrap();
    fs::write(root.path().join("sys/kernel/security/lockdown"), "none [integrity] confidentiality\n").unwrap();

    let found = probe_host(&ProbeRoots::below(root.path()), refused(libc::EPERM));

    assert!(found.permitted.is_empty() && !found.is_root && found.no_new_privileges);
    assert_eq!((found.seccomp, found.unprivileged_bpf_disabled), (Some(2), Some(1)));
    assert_eq!((found.is_initial_pid_namespace, found.is_initial_user_namespace), (Some(false), Some(true)));
    assert_eq!(found.lockdown.as_deref(), Some("integrity"));
    assert_eq!(found.tracefs.as_deref(), Some("/sys/kernel/tracing"));
    assert_eq!((found.hidepid.as_deref(), found.memlock_bytes), (Some("invisible"), Some(65_536)));
    let missing: Vec<_> = obstacles(&found).into_iter().map(|(check, _)| check).collect();
    assert_eq!(missing, ["capabilities", "kernel-btf"]);
    let why = found.choose().why_not_better;
    assert!(why[0].to_string().contains("held: none (remedy: start the container with --cap-add BPF"), "{}", why[0]);
}

#[test]
fn proc_of_another_namespace_has_a_remedy() {
    let told = check(&Findings { proc_view: ProcView::Foreign, ..good() }, "proc");
    assert!(told.found.starts_with("shows a different PID namespace"), "{told:?}");
    assert_eq!((told.state, told.remedy.as_deref()), (CheckState::Note, Some(ProcView::REMEDY)));
    let told = check(&Findings { proc_view: ProcView::Missing, ..good() }, "proc");
    assert_eq!((told.state, told.remedy.as_deref()), (CheckState::Note, Some("mount /proc")));
}

#[test]
fn hidepid_check_says_whether_it_applies() {
    let hidepid = || Some("2".to_owned());
    let hidden = Findings { hidepid: hidepid(), proc_view: ProcView::OthersHidden("2".into()), ..good() };
    let told = check(&hidden, "proc");
    assert!(told.found.contains("hidden") && told.remedy.is_some_and(|remedy| remedy.contains("gid=")));
    let told = check(&Findings { hidepid: hidepid(), ..good() }, "proc");
    assert!(told.found.ends_with("does not affect this user"), "{told:?}");
}

#[test]
fn an_empty_host_is_no_error() {
    let root = TempDir::new().unwrap();
    let found = probe_host(&ProbeRoots::below(root.path()), refused(libc::ENOSYS));
    assert_eq!(found.choose().tracer, TracerKind::Snapshot);
    assert_eq!((found.scope(), found.seccomp, found.lockdown), (Scope::Cgroup, None, None));
}
