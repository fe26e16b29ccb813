//! Texts and JSON objects of reports.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::monitor::attribution::correlate::{Confidence, Victim};
use crate::monitor::attribution::history::{Candidate, History, ProcessRecord};
use crate::monitor::attribution::oom_report::{KillContext, LARGEST, MAX_MEMBERS, OomReport};
use crate::monitor::explain::Explanation;
use crate::monitor::model::cgroup::CgroupFacts;
use crate::monitor::model::detection::TracerKind;
use crate::monitor::model::event::{Actor, Kill, KillSource, MemoryAtKill};
use crate::monitor::model::process::{Cmdline, ProcessKey, ProcessSample, Snapshot};
use crate::monitor::model::time::utc;
use crate::monitor::model::units::{MIB, mib, mib_or_unknown};

#[path = "snapshot_tests.rs"]
mod snapshots;

const TICK_NS: u64 = 10_000_000;
const GIB: u64 = 1024 * MIB;

/// Time of the kill.
const NOW_NS: u64 = 345_678 * TICK_NS;

fn observed(pid: u32, start_ticks: u64, parent_pid: u32, cmdline: &[u8], rss_bytes: u64) -> ProcessSample {
    ProcessSample {
        key: ProcessKey { pid, start_ticks },
        parent_pid,
        name: format!("p{pid}").into(),
        cmdline: Arc::new(Cmdline { bytes: cmdline.to_vec(), is_cut: false }),
        first_cmdline: None,
        vm_bytes: 2 * rss_bytes,
        rss_bytes,
        oom_score_adj: 0,
        is_zombie: false,
        is_leaving: false,
        end: None,
    }
}

fn history(more: Vec<ProcessSample>) -> History {
    let mut processes = vec![
        observed(1, 0, 0, b"/sbin/init\0", 10 * MIB),
        observed(20, 1000, 1, b"", 7 * MIB),
        observed(300, 2000, 20, b"./hog\x00300\x00", 3 * MIB),
    ];
    processes.extend(more);
    let mut history = History::new();
    history.fold_snapshot(&Snapshot { at_boot_ns: 3000 * TICK_NS, processes, ..Snapshot::default() });
    history
}

fn report_of(victim: &Victim, history: &History) -> OomReport {
    OomReport::of_victim(victim, &[], history, context(history))
}

fn victim(pid: u32, start_ticks: u64) -> Victim {
    let memory = MemoryAtKill {
        vm_bytes: 2 * GIB,
        anon_bytes: GIB,
        file_bytes: 2 * MIB,
        shmem_bytes: 0,
        swap_bytes: 0,
        pgtables_bytes: 4096,
    };
    let trigger = Actor { pid: 20, name: "p20".into() };
    let kill = Kill {
        victim: ProcessKey { pid, start_ticks },
        name: "hog".into(),
        uid: 1000,
        oom_score_adj: 0,
        source: KillSource::Kernel,
        sender: Some(trigger.clone()),
        daemon: None,
        memory,
        memory_map: 0,
        cgroup_id: None,
        limit: None,
        already_pending: false,
        namespaces: Vec::new(),
    };
    Victim {
        tracer: TracerKind::Bpf,
        is_group_kill: false,
        kill,
        confidence: Confidence::Confirmed,
        co_victim_of: None,
        trigger: Some(trigger),
        killed_at_boot_ns: NOW_NS,
        exited_at_boot_ns: Some(345_679 * TICK_NS),
    }
}

fn context(history: &History) -> KillContext {
    let cgroup = CgroupFacts {
        path: "/docker/abc".into(),
        version: 1,
        limit_bytes: Some(GIB),
        usage_bytes: Some(GIB),
        oom_kill_count: Some(1),
    };
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_764_000_000, 123_456_789);
    let mut largest = history.largest(LARGEST, NOW_NS);
    largest.retain(|known| known.key.pid != 300);
    let largest = largest.into_iter().map(|known| (known, None)).collect();
    KillContext { time, cgroup: Some(cgroup), explanation: Explanation::default(), lost_records: 0, largest }
}

#[test]
fn the_object_has_stable_names_with_units() {
    let report = report_of(&victim(300, 2000), &history(Vec::new()));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["event"], "oom_kill");
    assert_eq!(json["confidence"], "confirmed");
    assert_eq!(json["tracer"], "bpf");
    assert_eq!(json["time"], "2025-11-24T16:00:00.123456Z");
    assert_eq!(json["victim"]["cmdline"], "./hog 300");
    assert_eq!(json["victim"]["rss_bytes"], GIB + 2 * MIB);
    assert_eq!(json["victim"]["uid"], 1000);
    assert_eq!(json["victim"]["exited"], true);
    assert_eq!(json["ancestors"][1]["pid"], 1);
    assert_eq!(json["trigger"]["name"], "p20");
    assert_eq!(json["cgroup"]["limit_bytes"], GIB);
    assert_eq!(json["with_pid"], serde_json::Value::Null);
}

#[test]
fn unknown_victim_is_reported() {
    let report = report_of(&victim(301, 3000), &History::new());
    assert!(report.to_string().starts_with(
        "detected oom-killed process:\n301 (running for 3,426.78s, vm: 2,048m, rss: 1,026m): [hog]\nconfidence:"
    ));
}

#[test]
fn unread_sizes_are_unknown_not_zero() {
    let nothing =
        MemoryAtKill { vm_bytes: 0, anon_bytes: 0, file_bytes: 0, shmem_bytes: 0, swap_bytes: 0, pgtables_bytes: 0 };
    let mut victim = victim(301, 3000);
    victim.kill.memory = nothing;
    let report = report_of(&victim, &History::new());
    let text = report.to_string();
    assert!(text.contains("\n301 (running for 3,426.78s, vm: ?, rss: ?): [hog]\n"), "{text}");
    assert!(!text.contains("victim's memory"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    for field in ["vm_bytes", "rss_bytes", "anon_bytes", "file_bytes", "shmem_bytes", "swap_bytes", "pgtables_bytes"] {
        assert_eq!(json["victim"][field], serde_json::Value::Null, "{field}");
    }

    victim.kill.victim = ProcessKey { pid: 300, start_ticks: 2000 };
    let seen = report_of(&victim, &history(Vec::new()));
    assert_eq!(seen.victim.process.rss_bytes, Some(3 * MIB), "when it was last seen");
}

#[test]
fn sizes_are_rounded_to_the_nearest() {
    let shown = [(0, "0m"), (MIB / 2 - 1, "0m"), (MIB / 2, "1m"), (MIB + MIB / 10, "1m"), (1537 * MIB / 1024, "2m")];
    for (bytes, text) in shown {
        assert_eq!(mib(bytes), text, "{bytes}");
    }
    assert_eq!((mib(u64::MAX), mib_or_unknown(None)), ("17,592,186,044,415m".to_owned(), "?".to_owned()));
}

#[test]
fn report_shows_processes_as_they_were_at_the_kill() {
    let mut history = history(Vec::new());
    history.mark_absent(ProcessKey { pid: 20, start_ticks: 1000 }, NOW_NS + TICK_NS);
    let report = report_of(&victim(300, 2000), &history);
    assert_eq!((report.ancestors[0].pid, report.ancestors[0].exited), (20, false));
    let among_largest = report.largest.iter().find(|process| process.process.pid == 20).unwrap();
    assert!(!among_largest.process.exited, "it ended after the kill");
}

#[test]
fn co_victims_and_candidates_are_labelled() {
    let victim = Victim {
        confidence: Confidence::CoVictim,
        co_victim_of: Some(ProcessKey { pid: 7, start_ticks: 1 }),
        ..victim(300, 2000)
    };
    let report = report_of(&victim, &history(Vec::new()));
    assert!(report.to_string().contains("\nconfidence: co-victim (killed together with 7)\n"));

    let history = history(Vec::new());
    let known = history.find(ProcessKey { pid: 300, start_ticks: 2000 }).unwrap();
    let candidate = Candidate {
        process: ProcessRecord { oom_score_adj: 500, ..known },
        end: None,
        end_ns: None,
        gone_by_ns: None,
        alive_ns: None,
        grown_ns: 0,
    };
    let report = OomReport::of_candidate(Confidence::Possible, &candidate, 4000 * TICK_NS, &history, context(&history));
    let text = report.to_string();
    assert!(text.starts_with("detected potentially oom-killed process:\n300 (running for 20.00s, vm: 6m, rss: 3m): "));
    assert!(text.contains("\nconfidence: possible (") && !text.contains("trigger"));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["victim"]["anon_bytes"], serde_json::Value::Null);
    assert_eq!(json["victim"]["oom_score_adj"], 500);
}

#[test]
fn command_lines_are_escaped() {
    let evil = b"a\nOut-of-memory detected!\x1b[2J\0\xff\0";
    let report = report_of(&victim(400, 2500), &history(vec![observed(400, 2500, 20, evil, MIB)]));
    let text = report.to_string();
    assert!(text.contains(": a\\nOut-of-memory detected!\\u{1b}[2J \u{fffd}\n"), "{text}");

    let long = [b'x'; 5000];
    let report = report_of(&victim(400, 2500), &history(vec![observed(400, 2500, 20, &long, MIB)]));
    assert!(report.to_string().contains("x… (4,488 more bytes)\n"));
}

#[test]
fn days_are_counted_as_the_calendar_does() {
    let day = |seconds: u64| utc(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    assert_eq!(day(0), "1970-01-01T00:00:00.000000Z");
    assert_eq!(day(951_782_399), "2000-02-28T23:59:59.000000Z");
    assert_eq!(day(951_782_400), "2000-02-29T00:00:00.000000Z");
    assert_eq!(day(1_735_689_599), "2024-12-31T23:59:59.000000Z");
    assert_eq!(day(4_107_542_400), "2100-03-01T00:00:00.000000Z");
}

#[test]
fn members_are_listed_up_to_a_limit() {
    let history = History::new();
    let member = |pid| {
        let with = Some(ProcessKey { pid: 7, start_ticks: 1 });
        Victim { confidence: Confidence::CoVictim, co_victim_of: with, ..victim(pid, 1) }
    };
    let members: Vec<_> = (100..100 + u32::try_from(MAX_MEMBERS).unwrap() + 6).map(member).collect();
    let told = |count: usize| OomReport::of_victim(&victim(7, 1), &members[..count], &history, context(&history));
    assert!(!told(0).to_string().contains("killed along"));
    let text = told(2).to_string();
    assert!(text.contains("\nalso killed: 2\n  100 (running"), "{text}");
    let text = told(members.len()).to_string();
    assert!(text.contains("\nalso killed: 70\n") && text.contains("\n  and 54 more\n"), "{text}");
    let json = serde_json::to_value(told(members.len())).unwrap();
    assert_eq!((json["members"].as_array().unwrap().len(), &json["members_left_out"]), (MAX_MEMBERS, &6.into()));
    assert_eq!(json["members"][0]["pid"], 100);
}
