//! The events of the session loop.

use bytes::Bytes;

use super::oom::OomEvent;
use super::preparation::PreparedSession;
use super::signals::StopSignal;
use crate::monitor::recorder::PostMortem;
use crate::user_input::InputWanted;
use crate::wire::Reply;

/// An event that the session loop handles.
pub(super) enum SessionEvent {
    /// A message from the agent, as its frames.
    Message(Vec<Bytes>),
    /// The runtime is initialized and the bootstrap script is done; steps may run.
    Ready(Box<PreparedSession>),
    /// sshd and ttyd listen or failed, or the deadline passed.
    ServersSettled {
        /// The services that are still starting.
        late: Vec<&'static str>,
    },
    /// The session is not ready and the agent will soon stop waiting.
    ReadinessOverdue,
    /// Suggestions for the oldest completion request.
    Completed(Vec<String>),
    /// The running step finished.
    StepDone {
        /// The exit code for the agent.
        exit_code: i32,
    },
    /// Ends of steps reached the agent, so that the next step may start.
    RoomForSteps,
    /// Pending reports can be sent to the agent.
    RoomForReports,
    /// The reports of OOM kills before the end of a step did not arrive in time.
    ReportsOverdue,
    /// A program or the engine requests input.
    InputWanted(InputWanted),
    /// The output of a program that requested input is in the reply queue.
    OutputFlushed {
        /// The step of the request.
        step_number: u64,
        /// The input request.
        wanted: InputWanted,
    },
    /// A reply about services, or a health change of a model service.
    Service(Reply),
    /// An event about OOM kills.
    Oom(OomEvent),
    /// Earlier sessions in this home that ended unexpectedly.
    UnexpectedEnds(Vec<PostMortem>),
    /// SIGINT or SIGTERM.
    Signal(StopSignal),
    /// An internal task panicked.
    TaskPanicked(&'static str),
}

/// How the session loop continues.
#[must_use]
pub(super) enum LoopAction {
    Continue,
    Stop(StopSignal),
    Fail(&'static str),
}
