//! Tests of the scope: what crosses it, and that nothing else does.

use std::cell::Cell;

use serde_json::json;

use super::*;
use crate::monitor::node::encode;

const PEER: u32 = 40;
const NESTED: u32 = 41;
const OTHER: u32 = 50;

/// A kill of host process 1000, which is 7 in the peer's namespace and 2 in one below. Its ancestors on the host are 900 (5
/// there), 800 (1 there) and 700, which belongs to the host.
pub(in crate::node) fn report() -> OomReport {
    let process = |pid: u32, name: &str| json!({"pid": pid, "start_ticks": 31, "name": name, "cmdline": format!("{name} --arg"), "vm_bytes": 1, "rss_bytes": 1});
    let mut victim = process(1000, "hog");
    for field in ["uid", "oom_score_adj", "anon_bytes", "file_bytes", "shmem_bytes", "swap_bytes", "pgtables_bytes"] {
        victim[field] = json!(null);
    }
    let report = json!({
        "confidence": "confirmed", "tracer": "bpf", "time": "2026-01-01T00:00:00Z", "killed_at_boot_ns": 5_000_000_000_u64,
        "exited_at_boot_ns": null, "victim": victim, "with_pid": null,
        "trigger": {"pid": 900, "name": "worker"},
        "ancestors": [process(900, "worker"), process(800, "init"), process(700, "secret-host")],
        "cgroup": {"path": "/pod/a/job", "version": 1, "limit_bytes": 9, "usage_bytes": 9, "oom_kill_count": 1},
    });
    serde_json::from_value(report).unwrap()
}

pub(in crate::node) fn evidence(namespaces: &[(u32, u32)]) -> KillEvidence {
    let limit = json!({"scope": "machine", "kind": "memory", "path": "/pod/a", "limit_bytes": 9, "usage_bytes": 9,
        "is_trigger_outside": null, "is_exact": true});
    let memory = json!({"vm_bytes": 1, "anon_bytes": 1, "file_bytes": 0, "shmem_bytes": 0, "swap_bytes": 0, "pgtables_bytes": 0});
    let namespaces: Vec<_> = namespaces.iter().map(|(inode, pid)| json!({"inode": inode, "pid": pid})).collect();
    let kill = json!({"victim": {"pid": 1000, "start_ticks": 31}, "name": "hog", "uid": 0, "oom_score_adj": 0,
        "source": "Kernel", "sender": null, "memory": memory, "memory_map": 0xffff_8888_0000_u64, "cgroup_id": 3, "limit": null,
        "already_pending": false, "namespaces": namespaces});
    let limit: LimitHit = serde_json::from_value(limit).unwrap();
    let victim = TracedVictim {
        tracer: crate::monitor::TracerKind::Bpf,
        kill: serde_json::from_value(kill).unwrap(),
        confidence: crate::monitor::Confidence::Confirmed,
        co_victim_of: None,
        is_group_kill: false,
        trigger: None,
        killed_at_boot_ns: 5_000_000_000,
        exited_at_boot_ns: None,
    };
    let cgroups = vec![Some("/pod/a/job".to_owned())];
    let mut evidence = KillEvidence { victims: vec![victim], cgroups, facts: crate::monitor::MemoryFacts::default() };
    evidence.facts.limit = Some(LimitHit { scope: LimitScope::Container, ..limit });
    evidence
}

fn identity(pids: &[u32], namespaces: &[u32], cgroup: &str) -> HostIdentity {
    let namespaces = [&[INIT_PID_NAMESPACE], namespaces].concat();
    HostIdentity { pids: pids.to_vec(), namespaces, cgroup: cgroup.to_owned() }
}

/// The processes on the host.
pub(in crate::node) fn find(named: Named) -> Option<HostIdentity> {
    let pid = match named {
        Named::Process(key) => key.pid,
        Named::At(pid, _) => pid,
    };
    Some(match pid {
        900 => identity(&[900, 5], &[PEER], "/pod/a"),
        800 => identity(&[800, 1], &[PEER], "/pod/a"),
        700 => identity(&[700], &[], "/"),
        _ => return None,
    })
}

pub(in crate::node) fn scope(namespace: u32, level: usize, cgroup: &str) -> PeerScope {
    let above = std::iter::repeat_n(OTHER, level.saturating_sub(1));
    let namespaces: Vec<u32> = above.chain((level > 0).then_some(namespace)).collect();
    PeerScope::new(&identity(&vec![9; level + 1], &namespaces, cgroup), 1000).unwrap()
}

fn view(scope: &PeerScope, namespaces: &[(u32, u32)]) -> Option<NodeKill> {
    let (report, evidence) = (report(), evidence(namespaces));
    scope.view(&HostKill::new(&report, &evidence, &find))
}

#[test]
fn peer_sees_a_kill_in_its_namespace_with_its_own_numbers() {
    for (namespaces, pid) in [(&[(PEER, 7)][..], 7), (&[(PEER, 7), (NESTED, 2)], 7)] {
        let view = view(&scope(PEER, 1, "/pod/a"), namespaces).unwrap();
        assert_eq!(view.victims[0].process.pid, pid);
        let ancestors: Vec<u32> = view.ancestors.iter().map(|ancestor| ancestor.process.pid).collect();
        assert_eq!(ancestors, [5, 1], "up to the first one outside");
        assert_eq!(view.trigger.unwrap().pid, 5);
        assert_eq!((view.cgroup.as_deref(), view.limit.as_ref().unwrap().scope), (Some("job"), LimitScope::Container));
    }
}

#[test]
fn peer_in_a_nested_namespace_sees_itself_only() {
    let nested = view(&scope(NESTED, 2, "/pod/a"), &[(PEER, 7), (NESTED, 2)]).unwrap();
    assert_eq!((nested.victims[0].process.pid, nested.ancestors.len(), nested.trigger), (2, 0, None));
    assert_eq!(nested.limit.unwrap().is_trigger_outside, Some(true));
    assert_eq!(view(&scope(NESTED, 2, "/pod/a"), &[(PEER, 7)]), None, "a kill above it");
}

#[test]
fn other_tenants_see_nothing_and_cause_no_lookup() {
    let lookups = Cell::new(0);
    let counted = |named| {
        lookups.set(lookups.get() + 1);
        find(named)
    };
    let (report, evidence) = (report(), evidence(&[(PEER, 7)]));
    let kill = HostKill::new(&report, &evidence, &counted);
    for other in
        [scope(OTHER, 1, "/pod/a"), scope(INIT_PID_NAMESPACE, 0, "/pod/b"), scope(INIT_PID_NAMESPACE, 0, "/pod/a/jo")]
    {
        assert_eq!(other.view(&kill), None, "{other:?}");
    }
    assert_eq!(lookups.get(), 0);
}

#[test]
fn peer_in_the_hosts_namespace_sees_its_cgroup_and_below() {
    let view = view(&scope(INIT_PID_NAMESPACE, 0, "/pod/a"), &[(PEER, 7)]).unwrap();
    assert_eq!((view.victims[0].process.pid, view.ancestors.len()), (1000, 2));
    assert_eq!(view.cgroup.as_deref(), Some("job"));
}

/// A group kill of a cgroup with several tenants: each sees its own victims, whichever was the first.
#[test]
fn members_in_other_cgroups_are_outside() {
    let (mut report, mut evidence) = (report(), evidence(&[]));
    let mut member = evidence.victims[0].clone();
    member.kill.victim.pid = 1001;
    member.kill.name = "secret-member".to_owned();
    member.co_victim_of = Some(evidence.victims[0].kill.victim);
    let mut info = report.victim.process.clone();
    info.pid = 1001;
    report.members = vec![
        serde_json::from_value(json!({"pid": 1001, "start_ticks": 31, "name": "secret-member", "cmdline": "",
        "vm_bytes": 1, "rss_bytes": 1, "uid": null, "oom_score_adj": null, "anon_bytes": null, "file_bytes": null,
        "shmem_bytes": null, "swap_bytes": null, "pgtables_bytes": null}))
        .unwrap(),
    ];
    evidence.victims.push(member);
    evidence.cgroups.push(Some("/pod/b".to_owned()));
    let kill = HostKill::new(&report, &evidence, &find);
    let pids = |cgroup: &str| {
        let view = scope(INIT_PID_NAMESPACE, 0, cgroup).view(&kill);
        view.map(|view| view.victims.iter().map(|victim| victim.process.pid).collect::<Vec<_>>())
    };
    assert_eq!(pids("/pod/a"), Some(vec![1000]));
    assert_eq!(pids("/pod/b"), Some(vec![1001]));
    assert_eq!(pids("/pod"), Some(vec![1000, 1001]));
    assert_eq!(pids("/pod/c"), None);
}

/// The trigger is gone when it is looked for, in a namespace of another peer's, or in one below the peer's own that is not the
/// victim's.
#[test]
fn trigger_is_outside_only_if_it_was_seen_there() {
    let seen = |trigger: Option<HostIdentity>, scope: &PeerScope| {
        let find = |named: Named| match named {
            Named::At(900, _) => trigger.clone(),
            other => find(other),
        };
        let (report, evidence) = (report(), evidence(&[(PEER, 7)]));
        let view = scope.view(&HostKill::new(&report, &evidence, &find)).unwrap();
        (view.trigger.map(|trigger| trigger.pid), view.limit.unwrap().is_trigger_outside)
    };
    let (peer, host) = (scope(PEER, 1, "/pod/a"), scope(INIT_PID_NAMESPACE, 0, "/pod/a"));
    assert_eq!(seen(None, &peer), (None, None));
    assert_eq!(seen(Some(identity(&[900, 4], &[OTHER], "/pod/b")), &peer), (None, Some(true)));
    assert_eq!(seen(Some(identity(&[900, 6, 2], &[PEER, NESTED], "/pod/a")), &peer), (Some(6), Some(false)));
    assert_eq!(seen(Some(identity(&[900], &[], "/pod/b")), &host), (None, Some(true)));
    assert_eq!(seen(Some(identity(&[900], &[], "/")), &host), (None, None), "as one that exits is shown");
}

/// Members of a group kill beyond those of a message are not named, but counted.
#[test]
fn victims_beyond_a_message_are_counted() {
    let (mut report, mut evidence) = (report(), evidence(&[(PEER, 7)]));
    for _ in 0..MAX_VICTIMS {
        evidence.victims.push(evidence.victims[0].clone());
        evidence.cgroups.push(evidence.cgroups[0].clone());
    }
    report.members_left_out = 30;
    let left_out = |evidence: &KillEvidence| {
        let view = scope(PEER, 1, "/pod/a").view(&HostKill::new(&report, evidence, &find)).unwrap();
        (view.victims.len(), view.victims_left_out)
    };
    assert_eq!(left_out(&evidence), (MAX_VICTIMS, 31));
    evidence.victims[3].kill.namespaces.clear();
    assert_eq!(left_out(&evidence), (MAX_VICTIMS, 0), "some were not the peer's, and of the others it is not known");
}

#[test]
fn each_victim_tells_whether_the_peers_counter_has_it() {
    let (report, mut evidence) = (report(), evidence(&[(PEER, 7)]));
    evidence.victims.push(evidence.victims[0].clone());
    evidence.cgroups.push(Some("/pod/b".to_owned()));
    let view = scope(PEER, 1, "/pod/a").view(&HostKill::new(&report, &evidence, &find)).unwrap();
    assert_eq!(view.victims.iter().map(|victim| victim.is_in_another_cgroup).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn limits_are_seen_from_the_peers_cgroup() {
    let scope = |cgroup: &str| {
        let limit = view(&scope(PEER, 1, cgroup), &[(PEER, 7)]).unwrap().limit.unwrap();
        (limit.scope, limit.path)
    };
    assert_eq!(scope("/pod/a"), (LimitScope::Container, Some(String::new())));
    assert_eq!(scope("/pod"), (LimitScope::Inner, Some("a".to_owned())));
    assert_eq!(scope("/pod/a/job"), (LimitScope::Above, None));
    assert_eq!(scope("/pod/ab"), (LimitScope::Beside, None));
}

#[test]
fn nothing_of_the_host_is_in_the_bytes() {
    let view = view(&scope(PEER, 1, "/pod/a"), &[(PEER, 7)]).unwrap();
    let bytes = String::from_utf8(encode(&view)[4..].to_vec()).unwrap();
    for foreign in ["secret-host", "/pod", "1000", "900", "800", "memory_map", "cgroup_id"] {
        assert!(
            !bytes.contains(&format!("{foreign}\"")) && !bytes.contains(&format!(":{foreign},")),
            "{foreign}: {bytes}"
        );
    }
    assert!(!bytes.contains("secret-host") && !bytes.contains("memory_map"), "{bytes}");
}

#[test]
fn whole_machine_is_for_root_alone() {
    let host = identity(&[9], &[], "/");
    assert_eq!(PeerScope::new(&host, 1000), Err(PeerScopeError::WholeMachine));
    assert!(PeerScope::new(&host, 0).is_ok_and(|scope| scope.is_on_host()));
    assert_eq!(PeerScope::new(&identity(&[1; 6], &[PEER; 5], "/a"), 0), Err(PeerScopeError::TooDeep));
}

#[test]
fn cgroup_paths_are_compared_by_steps() {
    assert_eq!(below("/a", "/a"), Some(""));
    assert_eq!(below("/a", "/a/b/c"), Some("b/c"));
    assert_eq!(below("/", "/a"), Some("a"));
    assert_eq!([below("/a", "/ab"), below("/a/b", "/a"), below("/a", "/b")], [None; 3]);
}
