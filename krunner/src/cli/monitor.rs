//! `krunner monitor`: the monitor alone, on any Linux host.

mod recorder;

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::MonitorArgs;
use super::async_runtime::in_runtime;
use super::run::{FIRST_PRIVATE_FD, environment};
use super::stdout::print;
use crate::config::{ChildEnv, MemorySettings};
use crate::exit::Exit;
use crate::monitor::recorder::RecordingPath;
use crate::monitor::{
    BpfPolicy, Journal, JournalPath, KillEvent, Monitor, MonitorEvent, MonitorSetup, MonitorStatus, ProgramLog,
    RecordsLost, Scope, ScopeRequest, TracerKind, Unattributed, schema,
};
use crate::process::{Hook, OomScorePolicy, Reaper};
use crate::session::Signals;
use crate::sys;
use crate::tasks::{TaskGroup, blocking};

pub(super) fn monitor(args: &MonitorArgs) -> anyhow::Result<ExitCode> {
    if args.schema {
        print(serde_json::to_string_pretty(&schema::schema())? + "\n")?;
        return Ok(Exit::Ok.into());
    }
    if args.all_namespaces && sys::was_elevated() {
        bail!(
            "--all-namespaces requires capabilities of your own: yours come from this program's file capabilities, which \
             apply to your own processes only"
        );
    }
    let scope = if args.all_namespaces { ScopeRequest::All } else { ScopeRequest::Own };
    let bpf = if args.no_bpf { BpfPolicy::Never } else { BpfPolicy::Auto };
    let setup = MonitorSetup::detect(scope, bpf, ProgramLog::Off);
    if let Some(problem) = setup.proc_problem() {
        eprintln!("krunner: {problem}");
    }
    let env: ChildEnv = environment().into_iter().collect();
    let (settings, problems) = MemorySettings::of(&env);
    for problem in problems {
        eprintln!("krunner: {problem}");
    }
    if settings.hook.is_some() {
        sys::close_on_exec_from(FIRST_PRIVATE_FD).context("cannot close descriptors for the memory hook")?;
    }
    let log = args.log.as_deref().map(journal_place).transpose()?;
    let place = args.recorder.as_deref().map(|file| RecordingPath::of_file(file).context("--recorder takes a file"));
    sys::memory::reserve_heap();
    in_runtime(watch(setup, settings, env, args.json, Files { log, recording: place.transpose()? }))
}

/// Files that the monitor writes.
struct Files {
    log: Option<JournalPath>,
    recording: Option<RecordingPath>,
}

/// A file that cannot be written to now is an error; one that later cannot is said once, and the monitor goes on.
fn journal_place(file: &Path) -> anyhow::Result<JournalPath> {
    JournalPath::of_file(file).with_context(|| format!("cannot keep a journal in {} (--log)", file.display()))
}

async fn watch(
    setup: MonitorSetup,
    settings: MemorySettings,
    env: ChildEnv,
    json: bool,
    files: Files,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::watch()?;
    let tasks = TaskGroup::new();
    let (monitor, mut events) = Monitor::start(setup, &tasks).context("cannot start the monitor")?;
    let say = |problem: &str| eprintln!("krunner: {problem}");
    let journal = files.log.map(|place| Journal::start(place, Some(monitor.charge()), say, &tasks));
    let recorder = match files.recording {
        Some(place) => Some(recorder::start(place, &monitor).await?),
        None => None,
    };
    let warns = settings.warns;
    let hook = memory_hook(settings, env, &tasks)?;
    let print_all = async {
        loop {
            let event = events.recv().await.context("a bug: the monitor stopped")?;
            refuse_half_a_machine(&event)?;
            if let Some(journal) = &journal {
                record(&event, journal)?;
            }
            if let Some(recorder) = &recorder {
                recorder::record(recorder, &event);
            }
            if let (MonitorEvent::Oom(KillEvent::Warning(warning)), Some(hook)) = (&event, &hook) {
                hook.start(warning.to_json().into_bytes());
            }
            if matches!(event, MonitorEvent::Oom(KillEvent::Warning(_) | KillEvent::Throttled(_))) && !warns {
                continue;
            }
            let line = if json { in_json(&event)?.map(|value| value.to_string()) } else { in_words(&event) };
            let Some(line) = line else { continue };
            // A closed stdout ends the monitor. A reader that stalls blocks this loop; records that the tracer then drops are
            // counted.
            if blocking(move || io::stdout().write_all(format!("{line}\n").as_bytes())).await.is_err() {
                return anyhow::Ok(());
            }
        }
    };
    let (reason, ended) = tokio::select! {
        biased;
        signal = signals.next() => (signal.to_string(), Ok(())),
        task = tasks.failed() => ("a bug".to_owned(), Err(anyhow!("a bug: the task `{task}` panicked"))),
        printed = print_all => ("stdout was closed, or an error".to_owned(), printed),
    };
    if let Some(recorder) = &recorder {
        recorder::say_goodbye(recorder, &reason).await;
    }
    ended.map(|()| Exit::Ok.into())
}

/// What to run when memory runs out, if the user says so.
fn memory_hook(settings: MemorySettings, env: ChildEnv, tasks: &TaskGroup) -> anyhow::Result<Option<Hook>> {
    let Some(hook) = settings.hook else { return Ok(None) };
    let reaper =
        Reaper::start(tasks, Box::new(|_, _| ()), OomScorePolicy::Unchanged).context("cannot watch the memory hook")?;
    let on_failure = Box::new(|problem: &str| eprintln!("krunner: the memory hook: {problem}"));
    Ok(Some(Hook::new(hook.argv, hook.timeout, env, reaper, tasks.clone(), on_failure)))
}

/// Of the same events as a session.
fn record(event: &MonitorEvent, journal: &Journal) -> anyhow::Result<()> {
    if let MonitorEvent::Oom(KillEvent::Report(_) | KillEvent::Suppressed(_)) = event
        && let Some(value) = in_json(event)?
    {
        journal.add(value.to_string());
    }
    Ok(())
}

/// Without BPF kills are known from the counter of a cgroup: to watch that and say that it is the machine would be a lie.
fn refuse_half_a_machine(event: &MonitorEvent) -> anyhow::Result<()> {
    if let MonitorEvent::Status(MonitorStatus {
        scope: Scope::All, tracer: TracerKind::Snapshot, why_not_bpf, ..
    }) = event
    {
        let reason = why_not_bpf.as_deref().unwrap_or("unknown");
        bail!(
            "--all-namespaces requires eBPF, which is unavailable: {reason} (details: `krunner doctor`); without this option \
             OOM kills in this cgroup are inferred"
        );
    }
    Ok(())
}

/// `None` for what is only of interest to a session.
fn in_json(event: &MonitorEvent) -> anyhow::Result<Option<Value>> {
    Ok(Some(match event {
        MonitorEvent::Status(watching) => named("watching", watching)?,
        MonitorEvent::Oom(KillEvent::Report(report)) => serde_json::to_value(report)?,
        MonitorEvent::Oom(KillEvent::Suppressed(suppressed)) => serde_json::to_value(suppressed)?,
        MonitorEvent::Oom(KillEvent::Warning(warning)) => serde_json::to_value(warning)?,
        MonitorEvent::Oom(KillEvent::Throttled(throttled)) => serde_json::to_value(throttled)?,
        MonitorEvent::Oom(KillEvent::RecordsLost { records }) => {
            named("records_lost", &RecordsLost { count: *records })?
        }
        MonitorEvent::Oom(KillEvent::Unattributed { kills, reason }) => {
            named("oom_kills_unattributed", &Unattributed { count: *kills, reason: reason.as_deref() })?
        }
        MonitorEvent::Oom(KillEvent::OomWithoutKill) => json!({ "event": "oom_without_kill" }),
        MonitorEvent::Oom(KillEvent::AttributionPending { .. } | KillEvent::ByDaemon(_))
        | MonitorEvent::Flushed(_)
        | MonitorEvent::Unconfirmed => {
            return Ok(None);
        }
    }))
}

/// An object that says first what it is.
fn named(event: &str, what: &impl Serialize) -> anyhow::Result<Value> {
    let mut value = json!({ "event": event });
    if let (Value::Object(all), Value::Object(fields)) = (&mut value, serde_json::to_value(what)?) {
        all.extend(fields);
    }
    Ok(value)
}

fn in_words(event: &MonitorEvent) -> Option<String> {
    Some(match event {
        MonitorEvent::Status(watching) => watching_in_words(watching),
        MonitorEvent::Oom(KillEvent::Report(report)) => format!("Out-of-memory detected!\n{report}"),
        MonitorEvent::Oom(KillEvent::Suppressed(suppressed)) => suppressed.to_string(),
        MonitorEvent::Oom(KillEvent::Warning(warning)) => warning.to_string(),
        MonitorEvent::Oom(KillEvent::Throttled(throttled)) => throttled.to_string(),
        MonitorEvent::Oom(KillEvent::RecordsLost { records }) => {
            format!("{records} tracer records were dropped (ring buffer full); an OOM kill may have been missed")
        }
        MonitorEvent::Oom(KillEvent::Unattributed { kills, reason }) => {
            let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{kills} OOM kills could not be attributed to a process{reason}")
        }
        MonitorEvent::Oom(KillEvent::OomWithoutKill) => {
            "out of memory, but OOM kills are disabled here (oom_kill_disable)".to_owned()
        }
        MonitorEvent::Oom(KillEvent::AttributionPending { .. } | KillEvent::ByDaemon(_))
        | MonitorEvent::Flushed(_)
        | MonitorEvent::Unconfirmed => {
            return None;
        }
    })
}

fn watching_in_words(watching: &MonitorStatus) -> String {
    let whose = match watching.scope {
        Scope::PidNamespace => "in this PID namespace and its children",
        Scope::Cgroup => "in this memory cgroup and below (--all-namespaces shows all)",
        Scope::All => "on the whole machine",
    };
    let method = match watching.tracer {
        TracerKind::Bpf => "eBPF".to_owned(),
        TracerKind::Node => "eBPF, by this machine's krunner node".to_owned(),
        TracerKind::Snapshot => {
            let reason = watching.why_not_bpf.as_deref().unwrap_or("unknown");
            format!("inferred, not traced: {reason}; details: `krunner doctor`")
        }
    };
    format!("monitoring OOM kills {whose} ({method})")
}
