//! What a session does with OOM kills: tells the user, keeps a record, answers for the agent's word.
//!
//! With a tracer or a counter the agent's event adds nothing: what happened is reported anyway, and an event that comes late, twice
//! or without a kill is no alarm. Only where neither knows, its word counts:
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
//! A kill is one entry with the whole tree, so that no output of programs gets in between. The end of a step waits for
//! the reports of all kills before it ([`Oom::settle`]).

use std::future::pending;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::oom_log::OomLog;
use super::reports::Reports;
use super::terminal_notice;
use crate::logging::OPERATOR;
use crate::monitor::{Confidence, Means, Monitor, Notice, Report, SigkillCauses, Tell, TracerKind, Watching};
use crate::process::Witness;
use crate::tasks::TaskGroup;
use crate::transport::Outbox;

/// How long a report and the agent's event for the same kill may be apart.
const PATIENCE: Duration = Duration::from_secs(15);

/// What users are told first; they know it from the Python runner.
const HEADING: &str = "Out-of-memory detected!";

/// OOM kills, as a session sees them.
pub(super) struct Oom {
    /// None when it could not be started, which has been told.
    monitor: Option<(Monitor, mpsc::Receiver<Tell>)>,
    log: OomLog,
    reports: Reports,
    kills: Kills,
}

/// What can happen here.
pub(super) enum Told {
    /// By the monitor.
    ByMonitor(Tell),
    /// No report came for an event of the agent.
    PatienceEnds,
}

impl Oom {
    pub(super) fn start(means: Means, logs: PathBuf, outbox: Outbox, tasks: &TaskGroup) -> Self {
        let monitor = Monitor::start(means, tasks)
            .inspect_err(|error| tracing::error!("OOM kills will not be explained: {error}"))
            .ok();
        let charge = monitor.as_ref().map(|(monitor, _)| monitor.charge());
        let log = OomLog::start(logs, charge, tasks);
        Self { monitor, log, reports: Reports::new(outbox), kills: Kills::default() }
    }

    /// Shows the monitor how children end.
    pub(super) fn witness(&self) -> Witness {
        let deaths = self.monitor.as_ref().map(|(monitor, _)| monitor.deaths());
        Box::new(move |pid, signal| {
            if let Some(deaths) = &deaths {
                deaths.tell(pid.as_raw().unsigned_abs(), signal == Some(nix::libc::SIGKILL));
            }
        })
    }

    /// Where to ask why processes got SIGKILL.
    pub(super) fn causes(&self) -> Option<SigkillCauses> {
        self.monitor.as_ref().map(|(monitor, _)| monitor.causes())
    }

    /// Asks for [`Tell::Settled`] with this number, when all kills up to now are told; `false` when nobody will say so.
    #[must_use]
    pub(super) fn settle(&self, number: u64) -> bool {
        self.monitor.as_ref().is_some_and(|(monitor, _)| monitor.settle(number))
    }

    /// A step is attached, and there is room: tells it what was kept for it.
    pub(super) fn send_kept(&mut self) {
        self.reports.send_kept();
    }

    /// Whether reports wait for room, or for a step.
    #[must_use]
    pub(super) fn has_kept(&self) -> bool {
        self.reports.are_kept()
    }

    pub(super) async fn next(&mut self) -> Told {
        let patience = async {
            match self.kills.patience_ends_at() {
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
            Some(tell) = tell => Told::ByMonitor(tell),
            () = patience => Told::PatienceEnds,
        }
    }

    /// Tells it. `is_attached`: a step runs or waits. Returns the number of a question that is answered by this.
    pub(super) fn handle(&mut self, told: Told, is_attached: bool) -> Option<u64> {
        match told {
            Told::ByMonitor(Tell::Settled(number)) => return Some(number),
            Told::ByMonitor(Tell::Watching(watching)) => log_means(&watching),
            Told::ByMonitor(Tell::Notice(notice)) => self.notice(&notice, is_attached),
            Told::ByMonitor(Tell::Unconfirmed) => {
                if self.kills.told_by_agent(Instant::now()) == Known::No {
                    self.reports.tell(HEADING, SystemTime::now(), is_attached);
                }
            }
            Told::PatienceEnds => {
                self.kills.give_up();
                let text = "failed to get the information of oom-killed processes";
                self.reports.tell(text, SystemTime::now(), is_attached);
            }
        }
        None
    }

    /// The agent says that there was a kill.
    pub(super) fn told_by_agent(&self) {
        if let Some((monitor, _)) = &self.monitor {
            monitor.told_of_kill();
        }
    }

    fn notice(&mut self, notice: &Notice, is_attached: bool) {
        let text = match notice {
            Notice::Report(report) => return self.report(report, is_attached),
            Notice::Suppressed(suppressed) => {
                self.record(suppressed);
                suppressed.to_string()
            }
            Notice::Stuck => {
                "out of memory, and the kernel may not kill here (oom_kill_disable): programs wait until memory \
                              is freed or the limit is raised"
                    .to_owned()
            }
            Notice::Lost { records } => {
                tracing::warn!(
                    "{records} records of the OOM tracer were dropped (ring buffer full); an OOM kill may have been missed"
                );
                return;
            }
            Notice::Unnamed { kills } => {
                format!("{HEADING}\nthe kernel counted {kills} OOM kills; which processes were killed is not known yet")
            }
            Notice::Unattributed { kills, reason } => {
                let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
                format!("{HEADING}\n{kills} OOM kills could not be attributed to a process{reason}")
            }
        };
        self.reports.tell(&text, SystemTime::now(), is_attached);
    }

    fn report(&mut self, report: &Report, is_attached: bool) {
        let text = match self.kills.reported(report.confidence, Instant::now()) {
            Known::No => format!("{HEADING}\n{report}"),
            Known::Yes => report.to_string(),
        };
        self.reports.tell(&text, report.time, is_attached);
        self.record(report);
        terminal_notice::notify(report);
    }

    fn record(&self, entry: &impl serde::Serialize) {
        match serde_json::to_string(entry) {
            Ok(line) => self.log.add(line),
            Err(error) => tracing::error!("a bug: a report has no JSON: {error}"),
        }
    }
}

fn log_means(watching: &Watching) {
    match (watching.tracer, &watching.why_not_bpf) {
        (TracerKind::Snapshot, Some(reason)) => tracing::info!(
            target: OPERATOR,
            "OOM kills are inferred, not traced: {reason} (details: `krunner doctor`)"
        ),
        (tracer, _) => tracing::debug!("tracer of OOM kills: {tracer:?}"),
    }
}

/// Whether a kill has been told already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Yes,
    No,
}

/// Which word of the agent belongs to which report.
#[derive(Debug, Default)]
struct Kills {
    /// When the last report came.
    reported: Option<Instant>,
    /// When an event of the agent came to which no report has come yet.
    told: Option<Instant>,
    /// When the last one that had come was answered.
    answered: Option<Instant>,
}

impl Kills {
    fn told_by_agent(&mut self, now: Instant) -> Known {
        let reported = self.reported.is_some_and(|at| now - at < PATIENCE);
        if reported || self.told.is_some() {
            return Known::Yes;
        }
        self.told = Some(now);
        Known::No
    }

    fn reported(&mut self, confidence: Confidence, now: Instant) -> Known {
        self.reported = Some(now);
        if self.told.take().is_some() {
            self.answered = Some(now);
            return Known::Yes;
        }
        // Those whom the agent's word alone makes possible come one after the other.
        let is_of_same_event = self.answered.is_some_and(|at| now - at < PATIENCE);
        if confidence == Confidence::Possible && is_of_same_event { Known::Yes } else { Known::No }
    }

    fn patience_ends_at(&self) -> Option<Instant> {
        self.told.map(|at| at + PATIENCE)
    }

    fn give_up(&mut self) {
        self.told = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_answers_for_the_events_around_it() {
        let mut kills = Kills::default();
        let start = Instant::now();
        assert_eq!(kills.reported(Confidence::Confirmed, start), Known::No);
        assert_eq!(kills.told_by_agent(start + PATIENCE / 2), Known::Yes, "the same kill");
        assert_eq!(kills.patience_ends_at(), None);

        let later = start + PATIENCE * 2;
        assert_eq!(kills.told_by_agent(later), Known::No, "a new one");
        assert_eq!(kills.told_by_agent(later), Known::Yes, "told twice");
        assert_eq!(kills.patience_ends_at(), Some(later + PATIENCE));
        assert_eq!(
            kills.reported(Confidence::Possible, later + PATIENCE / 2),
            Known::Yes,
            "the heading was told with the event"
        );
        assert_eq!(kills.reported(Confidence::Possible, later + PATIENCE / 2), Known::Yes, "another of the same");
        assert_eq!(kills.reported(Confidence::Confirmed, later + PATIENCE / 2), Known::No, "a kill of its own");
        assert_eq!(kills.patience_ends_at(), None);
    }

    #[test]
    fn an_event_without_a_report_is_given_up() {
        let mut kills = Kills::default();
        let start = Instant::now();
        assert_eq!(kills.told_by_agent(start), Known::No);
        kills.give_up();
        assert_eq!(kills.patience_ends_at(), None);
        assert_eq!(kills.told_by_agent(start), Known::No);
    }
}
