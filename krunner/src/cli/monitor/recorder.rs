//! `--recorder FILE`: the flight recorder of a monitor.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::timeout;

use crate::monitor::recorder::{Record, Recorder, RecordingPath};
use crate::monitor::{KillEvent, Monitor, MonitorEvent};

/// The file may be on a network mount that hangs.
const START_DEADLINE: Duration = Duration::from_secs(10);

const GOODBYE_DEADLINE: Duration = Duration::from_millis(500);

/// Begins to record; says so if the last one in that file ended unexpectedly.
pub(super) async fn start(place: RecordingPath, monitor: &Monitor) -> anyhow::Result<Recorder> {
    let (recorder, started) =
        Recorder::start(place, Some(monitor.charge())).context("cannot start the flight recorder")?;
    let started = timeout(START_DEADLINE, started).await.context("the file of the flight recorder hangs")??;
    for ended in &started.ended {
        eprintln!("krunner: {}", ended.one_line());
    }
    let problems = started.problems.join("; ");
    if started.path.is_none() {
        bail!("nothing can be recorded: {problems}");
    }
    if !problems.is_empty() {
        eprintln!("krunner: flight recorder: {problems}");
    }
    monitor.record_to(recorder.clone());
    Ok(recorder)
}

/// Records a kill or a slow-down.
pub(super) fn record(recorder: &Recorder, event: &MonitorEvent) {
    match event {
        MonitorEvent::Oom(KillEvent::Report(report)) => recorder.record(Record::kill(report)),
        MonitorEvent::Oom(KillEvent::Throttled(throttled)) => recorder.record(Record::throttled(throttled)),
        _ => {}
    }
}

/// The last record.
pub(super) async fn say_goodbye(recorder: &Recorder, reason: &str) {
    recorder.record(Record::Goodbye { reason: reason.to_owned() });
    if !recorder.flush(GOODBYE_DEADLINE).await {
        eprintln!("krunner: the end of the recording was not written in time");
    }
}
