//! Messages between the monitor task and its handles: events, requests and queries.

use tokio::sync::oneshot;

use super::attribution::kill_event::KillEvent;
use super::attribution::sigkill::{SigkillCause, SigkillOf};
use super::model::detection::MonitorStatus;
use super::model::event::ChildExit;
use super::model::process::ExitKind;
use super::report::recorder::Recorder;

/// An event emitted by the monitor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum MonitorEvent {
    /// The detection method has changed, or is known for the first time.
    Status(MonitorStatus),
    /// OOM kills, warnings and losses.
    Oom(KillEvent),
    /// All OOM kills that happened before [`Monitor::flush`](super::Monitor::flush) was called with this number have been
    /// reported.
    Flushed(u64),
    /// The agent reported an OOM kill that neither a tracer nor a counter can confirm.
    Unconfirmed,
}

/// One-way requests to the monitor task.
#[derive(Debug)]
pub(super) enum MonitorRequest {
    /// The agent reported an OOM kill.
    AgentReportedKill,
    /// A process has exited and is about to be reaped.
    Exited(ChildExit),
    /// Like `Exited`, if memory was too short to read the process from `/proc`.
    ExitedUnread { pid: u32, end: ExitKind },
    /// Write memory samples to this flight recorder.
    RecordTo(Recorder),
}

/// Queries, which are answered once all OOM kills up to now have been reported.
#[derive(Debug)]
pub(super) enum MonitorQuery {
    /// Emit [`MonitorEvent::Flushed`] with this number.
    Flush(u64),
    /// Explain why a process got SIGKILL.
    Explain { whose: SigkillOf, answer: oneshot::Sender<SigkillCause> },
}
