//! OOM kills in a session: reports them to the user, records them, and handles the agent's `oom` events.
//!
//! With a tracer or a counter the agent's event adds nothing: kills are reported anyway, and an event that is late,
//! repeated or without a kill is ignored. The event matters only if neither is available:
//!
//! ```text
//!                   report                         agent's event
//!  quiet ───────────────────────▶ reported ──────────────────────▶ (the same kill: nothing to add)
//!    │ agent's event                  ▲
//!    └────────▶ awaited ──────────────┘ report
//!                  │ 15 s
//!                  └──────▶ "failed to get the information ..."
//! ```
//!
//! A kill is one log entry with the whole process tree, so that program output cannot split it. The end of a step waits
//! for the reports of all kills before it ([`OomReporter::request_barrier`]).

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::end_log::SessionEndLog;
use super::report_delivery::ReportDelivery;
use super::terminal_notice;
use super::termination_message::TerminationMessage;
use crate::config::{ChildEnv, MemoryHook, MemorySettings, Paths};
use crate::logging::OPERATOR;
use crate::monitor::recorder::{PostMortem, Recorder};
use crate::monitor::{
    Confidence, Journal, JournalPath, KillEvent, MemoryThrottled, MemoryWarning, Monitor, MonitorEvent, MonitorSetup,
    MonitorStatus, OomReport, OwnCharge, SigkillCauses, TracerKind,
};
use crate::process::{ExitObserver, Hook, Launcher};
use crate::tasks::TaskGroup;
use crate::transport::ReplySender;

/// The largest delay between a report and the agent's event for the same kill.
const TIMEOUT: Duration = Duration::from_secs(15);

/// The first line of a report, the same as in the Python runner.
const HEADING: &str = "Out-of-memory detected!";

/// Reports the OOM kills of a session.
pub(super) struct OomReporter {
    /// `None` if it could not be started, which was logged.
    monitor: Option<(Monitor, mpsc::Receiver<MonitorEvent>)>,
    journal: Journal,
    termination_message: TerminationMessage,
    reports: ReportDelivery,
    agent_reports: AgentReports,
    /// Whether to show low-memory warnings.
    warns: bool,
    /// The command to run on a low-memory warning.
    hook: Option<Hook>,
}

/// An event for [`OomReporter::handle`].
pub(super) enum OomEvent {
    /// An event from the monitor.
    Monitor(MonitorEvent),
    /// No report arrived for an event of the agent.
    AgentReportTimeout,
}

impl OomReporter {
    pub(super) fn start(setup: MonitorSetup, paths: &Paths, replies: ReplySender, tasks: &TaskGroup) -> Self {
        let monitor = Monitor::start(setup, tasks)
            .inspect_err(|error| tracing::error!("cannot start the OOM monitor: {error}"))
            .ok();
        let charge = monitor.as_ref().map(|(monitor, _)| monitor.charge());
        let place = JournalPath::in_folder(paths.logs());
        let journal = Journal::start(place, charge, |problem| tracing::warn!("{problem}"), tasks);
        let termination_message = TerminationMessage { path: paths.termination_message(), tasks: tasks.clone() };
        Self {
            monitor,
            journal,
            termination_message,
            reports: ReportDelivery::new(replies),
            agent_reports: AgentReports::default(),
            warns: true,
            hook: None,
        }
    }

    /// Memory charged to the runner itself; `None` without a monitor.
    pub(super) fn charge(&self) -> Option<Arc<OwnCharge>> {
        self.monitor.as_ref().map(|(monitor, _)| monitor.charge())
    }

    /// Sends memory samples to the recorder.
    pub(super) fn record_to(&self, recorder: Option<&Recorder>) {
        if let (Some((monitor, _)), Some(recorder)) = (&self.monitor, recorder) {
            monitor.record_to(recorder.clone());
        }
    }

    /// Reports an earlier session in this home that ended unexpectedly.
    pub(super) fn report_earlier_end(&mut self, end: &PostMortem, is_attached: bool) {
        self.reports.deliver(&end.one_line(), SystemTime::now(), is_attached);
        self.record(&end.for_journal());
    }

    /// Configures low-memory warnings. The hook runs like user code.
    pub(super) fn use_settings(&mut self, settings: MemorySettings, env: ChildEnv, launcher: &Launcher) {
        self.warns = settings.warns;
        let on_failure = Box::new(|problem: &str| tracing::warn!("memory hook: {problem}"));
        let hook = |hook: MemoryHook| {
            Hook::new(hook.argv, hook.timeout, env, launcher.reaper.clone(), launcher.tasks.clone(), on_failure)
        };
        self.hook = settings.hook.map(hook);
    }

    /// Notifies the monitor of exited children.
    pub(super) fn exit_observer(&self) -> ExitObserver {
        let deaths = self.monitor.as_ref().map(|(monitor, _)| monitor.exit_reporter());
        Box::new(move |pid, signal| {
            if let Some(deaths) = &deaths {
                deaths.report(pid.as_raw().unsigned_abs(), signal == Some(nix::libc::SIGKILL));
            }
        })
    }

    /// The source of reasons for SIGKILL; `None` without a monitor.
    pub(super) fn causes(&self) -> Option<SigkillCauses> {
        self.monitor.as_ref().map(|(monitor, _)| monitor.causes())
    }

    /// Requests [`MonitorEvent::Flushed`] with this number after the reports of all kills so far; `false` without a monitor.
    #[must_use]
    pub(super) fn request_barrier(&self, number: u64) -> bool {
        self.monitor.as_ref().is_some_and(|(monitor, _)| monitor.flush(number))
    }

    /// Sends pending reports. Call when a step is attached and there is budget.
    pub(super) fn send_pending(&mut self) {
        self.reports.send_pending();
    }

    /// Whether reports wait for budget or for a step.
    #[must_use]
    pub(super) fn has_pending(&self) -> bool {
        self.reports.has_pending()
    }

    pub(super) async fn next(&mut self) -> OomEvent {
        let patience = async {
            match self.agent_reports.deadline() {
                Some(at) => sleep_until(at).await,
                None => pending().await,
            }
        };
        let tell = async {
            match &mut self.monitor {
                Some((_, tells)) => tells.recv().await,
                None => None,
            }
        };
        tokio::select! {
            Some(tell) = tell => OomEvent::Monitor(tell),
            () = patience => OomEvent::AgentReportTimeout,
        }
    }

    /// Handles an event. `is_attached`: a step runs or waits. Returns the number of a barrier that was reached.
    pub(super) fn handle(&mut self, event: OomEvent, is_attached: bool, end_log: &mut SessionEndLog) -> Option<u64> {
        match event {
            OomEvent::Monitor(MonitorEvent::Flushed(number)) => return Some(number),
            OomEvent::Monitor(MonitorEvent::Status(status)) => log_source(&status),
            OomEvent::Monitor(MonitorEvent::Oom(notice)) => {
                end_log.record_notice(&notice);
                self.notice(&notice, is_attached);
            }
            OomEvent::Monitor(MonitorEvent::Unconfirmed) => {
                if self.agent_reports.agent_reported_kill(Instant::now()) == Announced::No {
                    self.reports.deliver(HEADING, SystemTime::now(), is_attached);
                }
            }
            OomEvent::AgentReportTimeout => {
                self.agent_reports.clear();
                let text = "failed to get the information of oom-killed processes";
                self.reports.deliver(text, SystemTime::now(), is_attached);
            }
        }
        None
    }

    /// Passes on the agent's event about a kill.
    pub(super) fn agent_reported_kill(&self) {
        if let Some((monitor, _)) = &self.monitor {
            monitor.agent_reported_kill();
        }
    }

    fn notice(&mut self, notice: &KillEvent, is_attached: bool) {
        let text = match notice {
            KillEvent::Report(report) => return self.report(report, is_attached),
            // Of an engine that traces for others.
            KillEvent::ByDaemon(_) => return,
            KillEvent::Warning(warning) => return self.warn(warning, is_attached),
            KillEvent::Throttled(throttled) => return self.report_throttled(throttled, is_attached),
            KillEvent::Suppressed(suppressed) => {
                self.record(suppressed);
                suppressed.to_string()
            }
            KillEvent::OomWithoutKill => {
                "out of memory with the OOM killer disabled (oom_kill_disable): processes block until memory \
                 is freed or the limit is raised"
                    .to_owned()
            }
            KillEvent::RecordsLost { records } => {
                tracing::warn!(
                    "{records} records of the OOM tracer were dropped (ring buffer full); an OOM kill may have been missed"
                );
                return;
            }
            KillEvent::AttributionPending { kills } => {
                format!("{HEADING}\nthe kernel counted {kills} OOM kills; the victims are not identified yet")
            }
            KillEvent::Unattributed { kills, reason } => {
                let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
                format!("{HEADING}\n{kills} OOM kills could not be attributed to a process{reason}")
            }
        };
        self.reports.deliver(&text, SystemTime::now(), is_attached);
    }

    fn report(&mut self, report: &OomReport, is_attached: bool) {
        let text = match self.agent_reports.reported(report.confidence, Instant::now()) {
            Announced::No => format!("{HEADING}\n{report}"),
            Announced::Yes => report.to_string(),
        };
        self.reports.deliver(&text, report.time, is_attached);
        self.record(report);
        self.termination_message.write(report, self.charge());
        terminal_notice::notify(report);
    }

    fn warn(&self, warning: &MemoryWarning, is_attached: bool) {
        if self.warns {
            self.reports.warn(&warning.to_string(), is_attached);
        }
        if let Some(hook) = &self.hook {
            hook.start(warning.to_json().into_bytes());
        }
    }

    fn report_throttled(&self, throttled: &MemoryThrottled, is_attached: bool) {
        if self.warns {
            self.reports.warn(&throttled.to_string(), is_attached);
        }
    }

    fn record(&self, entry: &impl serde::Serialize) {
        match serde_json::to_string(entry) {
            Ok(line) => self.journal.add(line),
            Err(error) => tracing::error!("internal error: cannot serialize a report: {error}"),
        }
    }
}

fn log_source(status: &MonitorStatus) {
    match (status.tracer, &status.why_not_bpf) {
        (TracerKind::Snapshot, Some(reason)) => tracing::info!(
            target: OPERATOR,
            "OOM kills are inferred, not traced: {reason} (details: `krunner doctor`)"
        ),
        (tracer, _) => tracing::debug!("OOM kill tracer: {tracer:?}"),
    }
}

/// Whether the user was already told that a kill occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Announced {
    Yes,
    No,
}

/// Matches the agent's events to reports.
#[derive(Debug, Default)]
struct AgentReports {
    /// The time of the last report.
    reported: Option<Instant>,
    /// The time of an event of the agent without a report so far.
    told: Option<Instant>,
    /// The time of the last report that matched an event.
    answered: Option<Instant>,
}

impl AgentReports {
    fn agent_reported_kill(&mut self, now: Instant) -> Announced {
        let reported = self.reported.is_some_and(|at| now - at < TIMEOUT);
        if reported || self.told.is_some() {
            return Announced::Yes;
        }
        self.told = Some(now);
        Announced::No
    }

    fn reported(&mut self, confidence: Confidence, now: Instant) -> Announced {
        self.reported = Some(now);
        if self.told.take().is_some() {
            self.answered = Some(now);
            return Announced::Yes;
        }
        // Reports based on the agent's event alone arrive one after the other.
        let is_of_same_event = self.answered.is_some_and(|at| now - at < TIMEOUT);
        if confidence == Confidence::Possible && is_of_same_event { Announced::Yes } else { Announced::No }
    }

    fn deadline(&self) -> Option<Instant> {
        self.told.map(|at| at + TIMEOUT)
    }

    fn clear(&mut self) {
        self.told = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_answers_for_the_events_around_it() {
        let mut agent_reports = AgentReports::default();
        let start = Instant::now();
        assert_eq!(agent_reports.reported(Confidence::Confirmed, start), Announced::No);
        assert_eq!(agent_reports.agent_reported_kill(start + TIMEOUT / 2), Announced::Yes, "the same kill");
        assert_eq!(agent_reports.deadline(), None);

        let later = start + TIMEOUT * 2;
        assert_eq!(agent_reports.agent_reported_kill(later), Announced::No, "a new one");
        assert_eq!(agent_reports.agent_reported_kill(later), Announced::Yes, "told twice");
        assert_eq!(agent_reports.deadline(), Some(later + TIMEOUT));
        assert_eq!(
            agent_reports.reported(Confidence::Possible, later + TIMEOUT / 2),
            Announced::Yes,
            "the heading was told with the event"
        );
        assert_eq!(
            agent_reports.reported(Confidence::Possible, later + TIMEOUT / 2),
            Announced::Yes,
            "another of the same"
        );
        assert_eq!(
            agent_reports.reported(Confidence::Confirmed, later + TIMEOUT / 2),
            Announced::No,
            "a kill of its own"
        );
        assert_eq!(agent_reports.deadline(), None);
    }

    #[test]
    fn an_event_without_a_report_is_given_up() {
        let mut agent_reports = AgentReports::default();
        let start = Instant::now();
        assert_eq!(agent_reports.agent_reported_kill(start), Announced::No);
        agent_reports.clear();
        assert_eq!(agent_reports.deadline(), None);
        assert_eq!(agent_reports.agent_reported_kill(start), Announced::No);
    }
}
