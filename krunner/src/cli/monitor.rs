//! `krunner monitor`: the monitor alone, on any Linux host.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::MonitorArgs;
use super::main::in_runtime;
use crate::exit::Exit;
use crate::monitor::{By, Means, Monitor, Notice, ProgramLog, Scope, Tell, TracerKind, Wanted, Watching};
use crate::session::Signals;
use crate::sys;
use crate::tasks::{TaskGroup, blocking};

pub(super) fn monitor(args: &MonitorArgs) -> anyhow::Result<ExitCode> {
    if args.all_namespaces && sys::was_elevated() {
        bail!(
            "--all-namespaces is for users with rights of their own: yours are those of this program's file \
             capabilities, which are for your own processes"
        );
    }
    let wanted = if args.all_namespaces { Wanted::Everything } else { Wanted::Ours };
    let by = if args.no_bpf { By::Snapshots } else { By::TheBest };
    let means = Means::of_this_host(wanted, by, ProgramLog::Off);
    if let Some(problem) = means.proc_problem() {
        eprintln!("krunner: {problem}");
    }
    sys::memory::reserve_heap();
    in_runtime(watch(means, args.json))
}

async fn watch(means: Means, json: bool) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::watch()?;
    let tasks = TaskGroup::new();
    let (_monitor, mut tells) = Monitor::start(means, &tasks).context("cannot start the monitor")?;
    let print_all = async {
        loop {
            let tell = tells.recv().await.context("a bug: the monitor has ended")?;
            refuse_half_a_machine(&tell)?;
            let line = if json { in_json(&tell)?.map(|value| value.to_string()) } else { in_words(&tell) };
            let Some(line) = line else { continue };
            // Whoever has closed stdout does not want to know. One who does not read holds us up, and what then
            // finds no room with the tracer is counted.
            if blocking(move || writeln!(io::stdout(), "{line}")).await.is_err() {
                return anyhow::Ok(());
            }
        }
    };
    tokio::select! {
        biased;
        () = signals.next() => {}
        task = tasks.failed() => bail!("a bug: the task `{task}` panicked"),
        printed = print_all => printed?,
    }
    Ok(Exit::Ok.into())
}

/// Without BPF kills are known from the counter of a cgroup: to watch that and say that it is the machine would be a lie.
fn refuse_half_a_machine(tell: &Tell) -> anyhow::Result<()> {
    if let Tell::Watching(Watching { scope: Scope::All, tracer: TracerKind::Snapshot, why_not_bpf, .. }) = tell {
        let reason = why_not_bpf.as_deref().unwrap_or("unknown");
        bail!(
            "--all-namespaces takes BPF, which cannot be had: {reason} (`krunner doctor` knows more); without that option \
             the kills in this cgroup are inferred"
        );
    }
    Ok(())
}

/// `None` for what is only of interest to a session.
fn in_json(tell: &Tell) -> anyhow::Result<Option<Value>> {
    Ok(Some(match tell {
        Tell::Watching(watching) => named("watching", watching)?,
        Tell::Notice(Notice::Report(report)) => serde_json::to_value(report)?,
        Tell::Notice(Notice::Suppressed(suppressed)) => serde_json::to_value(suppressed)?,
        Tell::Notice(Notice::Lost { records }) => json!({ "event": "records_lost", "count": records }),
        Tell::Notice(Notice::Unattributed { kills, reason }) => {
            json!({ "event": "oom_kills_unattributed", "count": kills, "reason": reason })
        }
        Tell::Notice(Notice::Stuck) => json!({ "event": "oom_without_kill" }),
        Tell::Notice(Notice::Unnamed { .. }) | Tell::Settled(_) | Tell::Unconfirmed => return Ok(None),
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

fn in_words(tell: &Tell) -> Option<String> {
    Some(match tell {
        Tell::Watching(watching) => watching_in_words(watching),
        Tell::Notice(Notice::Report(report)) => format!("Out-of-memory detected!\n{report}"),
        Tell::Notice(Notice::Suppressed(suppressed)) => suppressed.to_string(),
        Tell::Notice(Notice::Lost { records }) => {
            format!("{records} tracer records were dropped (ring buffer full); an OOM kill may have been missed")
        }
        Tell::Notice(Notice::Unattributed { kills, reason }) => {
            let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("{kills} OOM kills could not be attributed to a process{reason}")
        }
        Tell::Notice(Notice::Stuck) => "out of memory, and the kernel may not kill here (oom_kill_disable)".to_owned(),
        Tell::Notice(Notice::Unnamed { .. }) | Tell::Settled(_) | Tell::Unconfirmed => return None,
    })
}

fn watching_in_words(watching: &Watching) -> String {
    let whose = match watching.scope {
        Scope::PidNamespace => "in this PID namespace and its children",
        Scope::Cgroup => "in this memory cgroup and below (--all-namespaces shows all)",
        Scope::All => "on the whole machine",
    };
    let means = match watching.tracer {
        TracerKind::Bpf => "eBPF".to_owned(),
        TracerKind::Snapshot => {
            let reason = watching.why_not_bpf.as_deref().unwrap_or("unknown");
            format!("inferred, not traced: {reason}; details: `krunner doctor`")
        }
    };
    format!("monitoring OOM kills {whose} ({means})")
}
