//! Records how this session ends, and reports how earlier sessions in this home ended.
//!
//! ```text
//!  recorder thread ──RecorderStart──▶ earlier unexpected ends ──▶ one line, oom.jsonl, last-end.json
//!  steps, reports ───────Record─────▶ recorder
//!  stop ─────────────────Goodbye────▶ recorder, last-end.json
//! ```

use std::future::pending;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::last_end;
use crate::logging::OPERATOR;
use crate::monitor::recorder::{
    Certainty, EndCause, PostMortem, Record, Recorder, RecorderStart, RecordingPath, kernel_id,
};
use crate::monitor::{Confidence, KillEvent, OomReport, OwnCharge, boot_ns, utc};
use crate::tasks::{TaskGroup, blocking};
use crate::wire::Step;

/// The exit codes of a step for SIGKILL: of a program, and of a shell that reports it.
const KILLED: [i32; 2] = [-nix::libc::SIGKILL, 128 + nix::libc::SIGKILL];

/// The record of this session's end, and of those of earlier sessions.
pub(super) struct SessionEndLog {
    recorder: Option<Recorder>,
    starting: Option<oneshot::Receiver<RecorderStart>>,
    logs: PathBuf,
    step: Option<StepEnd>,
    kill: Option<KillId>,
    is_recorded: bool,
}

/// The content of `last-end.json`.
#[derive(Debug, Serialize)]
pub(super) struct LastEnd {
    event: &'static str,
    how: EndKind,
    /// An RFC 3339 timestamp.
    time: String,
    /// Why the session stopped, or the evidence for the cause.
    reason: String,
    pid: u32,
    kernel_id: Option<String>,
    step: Option<StepEnd>,
    oom_kill: Option<KillId>,
    cause: Option<EndCause>,
    confidence: Option<Certainty>,
    /// After an unexpected end: the argument for `krunner oom post-mortem`.
    recording: Option<String>,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum EndKind {
    /// A clean shutdown.
    Stopped,
    /// A clean shutdown after SIGKILL ended the last step.
    StepKilled,
    /// A clean shutdown after an OOM kill during or after the last step.
    OomKill,
    /// The session ended without a shutdown record.
    Unexpected,
}

/// The last step of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct StepEnd {
    number: u64,
    kind: String,
    /// Nanoseconds since boot.
    began_at_boot_ns: u64,
    exit_code: Option<i32>,
}

/// Identifies a report, with the same values as in `oom.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct KillId {
    time: String,
    killed_at_boot_ns: u64,
    pid: u32,
    name: Arc<str>,
    confidence: Confidence,
}

impl SessionEndLog {
    /// Starts the recorder if the log folder exists.
    pub(super) fn start(logs: PathBuf, charge: Option<Arc<OwnCharge>>) -> Self {
        let started = Recorder::start(RecordingPath::of_session(logs.clone()), charge)
            .inspect_err(|error| tracing::warn!("flight recorder unavailable: {error}"));
        let (recorder, starting) = started.ok().unzip();
        Self { recorder, starting, logs, step: None, kill: None, is_recorded: false }
    }

    pub(super) fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    /// Earlier sessions in this home that ended unexpectedly. Resolves once, when the recorder has started.
    pub(super) async fn unexpected_ends(&mut self) -> Vec<PostMortem> {
        let Some(starting) = &mut self.starting else { return pending().await };
        let start = starting.await.unwrap_or_default();
        self.starting = None;
        for problem in &start.problems {
            tracing::warn!(target: OPERATOR, "flight recorder: {problem}");
        }
        if let Some(path) = &start.path {
            tracing::debug!("flight recorder: recording to {}", path.display());
        }
        start.ended
    }

    /// Writes to `last-end.json` how an earlier session ended, in a task because the folder may hang.
    pub(super) fn write_unexpected_end(&self, end: &PostMortem, tasks: &TaskGroup) {
        let (logs, end) = (self.logs.clone(), LastEnd::unexpected(end));
        tasks.spawn("last end", async move { log_error(blocking(move || last_end::write(&logs, &end)).await) });
    }

    pub(super) fn record_step_start(&mut self, number: u64, step: &Step) {
        let kind = step.kind.op_name();
        self.record(Record::step_begun(number, kind, &step.text));
        self.step = Some(StepEnd { number, kind: kind.to_owned(), began_at_boot_ns: boot_ns(), exit_code: None });
    }

    pub(super) fn record_step_end(&mut self, number: u64, exit_code: i32) {
        if let Some(step) = self.step.as_mut().filter(|step| step.number == number && step.exit_code.is_none()) {
            step.exit_code = Some(exit_code);
            self.record(Record::StepEnded { number, exit_code });
        }
    }

    /// Records a kill or a slow-down.
    pub(super) fn record_notice(&mut self, notice: &KillEvent) {
        match notice {
            KillEvent::Report(report) => self.record_kill(report),
            KillEvent::Throttled(throttled) => self.record(Record::throttled(throttled)),
            _ => {}
        }
    }

    fn record_kill(&mut self, report: &OomReport) {
        let victim = &report.victim.process;
        self.record(Record::kill(report));
        self.kill = Some(KillId {
            time: utc(report.time),
            killed_at_boot_ns: report.killed_at_boot_ns,
            pid: victim.pid,
            name: Arc::clone(&victim.name),
            confidence: report.confidence,
        });
    }

    /// Records that the session starts to shut down.
    pub(super) fn record_stopping(&self, reason: &str) {
        self.record(Record::Stopping { reason: reason.to_owned() });
    }

    /// Records the clean shutdown, once. Waits until that is written, up to the deadline.
    pub(super) async fn record_shutdown(&mut self, reason: &str, deadline: Duration) {
        if std::mem::replace(&mut self.is_recorded, true) {
            return;
        }
        self.record(Record::Goodbye { reason: reason.to_owned() });
        let (until, logs, end) = (Instant::now() + deadline, self.logs.clone(), self.stopped(reason));
        let written = timeout_at(until, blocking(move || last_end::write(&logs, &end)));
        let flushed = async {
            if let Some(recorder) = &self.recorder {
                recorder.flush(deadline).await;
            }
        };
        let (written, ()) = tokio::join!(written, flushed);
        written.map_or_else(|_| tracing::warn!("cannot write {}: timed out", last_end::FILE), log_error);
    }

    fn stopped(&self, reason: &str) -> LastEnd {
        LastEnd {
            how: how(self.step.as_ref(), self.kill.as_ref()),
            time: utc(SystemTime::now()),
            reason: reason.to_owned(),
            pid: std::process::id(),
            kernel_id: kernel_id(),
            step: self.step.clone(),
            oom_kill: self.kill.clone(),
            ..LastEnd::default()
        }
    }

    fn record(&self, record: Record) {
        if let Some(recorder) = &self.recorder {
            recorder.record(record);
        }
    }
}

impl Default for LastEnd {
    fn default() -> Self {
        Self {
            event: "session_end",
            how: EndKind::Stopped,
            time: String::new(),
            reason: String::new(),
            pid: 0,
            kernel_id: None,
            step: None,
            oom_kill: None,
            cause: None,
            confidence: None,
            recording: None,
        }
    }
}

impl LastEnd {
    fn unexpected(end: &PostMortem) -> Self {
        let step = end.step.as_ref().map(|step| StepEnd {
            number: step.number,
            kind: step.kind.clone(),
            began_at_boot_ns: step.began_at_boot_ns,
            exit_code: step.exit_code,
        });
        Self {
            how: EndKind::Unexpected,
            time: utc(end.last_record),
            reason: end.reasons.join("; "),
            pid: end.pid,
            kernel_id: end.kernel_id.clone(),
            step,
            cause: Some(end.cause),
            confidence: Some(end.confidence),
            recording: Some(end.file.clone()),
            ..Self::default()
        }
    }
}

/// The kind of a clean shutdown.
fn how(step: Option<&StepEnd>, kill: Option<&KillId>) -> EndKind {
    let began_ns = step.map_or(0, |step| step.began_at_boot_ns);
    let is_killed = step.and_then(|step| step.exit_code).is_some_and(|code| KILLED.contains(&code));
    match kill {
        Some(kill) if kill.killed_at_boot_ns >= began_ns => EndKind::OomKill,
        _ if is_killed => EndKind::StepKilled,
        _ => EndKind::Stopped,
    }
}

fn log_error(written: io::Result<()>) {
    if let Err(error) = written {
        tracing::warn!("cannot write {}: {error}", last_end::FILE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(exit_code: Option<i32>) -> StepEnd {
        StepEnd { number: 1, kind: "exec".into(), began_at_boot_ns: 100, exit_code }
    }

    fn kill(killed_at_boot_ns: u64) -> KillId {
        let confidence = Confidence::Confirmed;
        KillId { time: String::new(), killed_at_boot_ns, pid: 7, name: "hog".into(), confidence }
    }

    #[test]
    fn end_is_named_after_what_happened_to_the_last_step() {
        assert_eq!(how(None, None), EndKind::Stopped);
        assert_eq!(how(Some(&step(Some(0))), None), EndKind::Stopped);
        assert_eq!(how(Some(&step(Some(137))), None), EndKind::StepKilled);
        assert_eq!(how(Some(&step(Some(-9))), Some(&kill(50))), EndKind::StepKilled, "that was in an earlier step");
        assert_eq!(how(Some(&step(Some(137))), Some(&kill(150))), EndKind::OomKill);
        assert_eq!(how(None, Some(&kill(1))), EndKind::OomKill, "of a service");
    }
}
