//! Readiness: the first reply to `status` tells the agent that the session is ready.
//!
//! ```text
//!  session starts        bootstrap.sh through      sshd and ttyd listen
//!        │ Starting                │                        │ Ready
//!        ├─────────────────────────┴───── 10 s at most ─────┤
//!        └───────────────── 50 s at most ───────────────────┘
//! ```
//!
//! Agents request services, and in a cluster the batch command, after the first reply. Since 25.4 they destroy a
//! session that does not reply within 60 s. Replies have no id and are matched by arrival, so every `status` before
//! readiness waits, not only the first one.

use std::time::Duration;

use tokio::time::Instant;

/// Maximum time from the session's start to the first reply.
const READY_DEADLINE: Duration = Duration::from_secs(50);

/// How long to wait for sshd and ttyd after the bootstrap script.
pub(super) const SERVERS_DEADLINE: Duration = Duration::from_secs(10);

/// Maximum number of waiting requests. An agent sends one every 10 s.
const MAX_WAITING: usize = 64;

/// Whether the session is ready, and the requests that wait for that.
#[derive(Debug)]
pub(super) enum Readiness {
    Starting { waiting: usize, deadline: Instant },
    Ready,
}

/// What to do with a `status` request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StatusRequest {
    AnswerNow,
    Waits,
    /// Too many requests wait.
    Refused,
}

impl Readiness {
    pub(super) fn of_session_started_at(started: Instant) -> Self {
        Self::Starting { waiting: 0, deadline: started + READY_DEADLINE }
    }

    /// Registers a `status` request of the agent.
    pub(super) fn request(&mut self) -> StatusRequest {
        match self {
            Self::Ready => StatusRequest::AnswerNow,
            Self::Starting { waiting, .. } if *waiting < MAX_WAITING => {
                *waiting += 1;
                StatusRequest::Waits
            }
            Self::Starting { .. } => StatusRequest::Refused,
        }
    }

    /// Marks the session as ready and returns how many replies are due.
    pub(super) fn open(&mut self) -> usize {
        match std::mem::replace(self, Self::Ready) {
            Self::Starting { waiting, .. } => waiting,
            Self::Ready => 0,
        }
    }

    /// When to reply even if the session is not ready.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Starting { deadline, .. } => Some(*deadline),
            Self::Ready => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_before_readiness_are_answered_together() {
        let started = Instant::now();
        let mut readiness = Readiness::of_session_started_at(started);
        assert_eq!(readiness.deadline(), Some(started + READY_DEADLINE));
        assert_eq!([readiness.request(), readiness.request()], [StatusRequest::Waits, StatusRequest::Waits]);
        assert_eq!(readiness.open(), 2);
        assert_eq!((readiness.open(), readiness.deadline()), (0, None), "answered once");
        assert_eq!(readiness.request(), StatusRequest::AnswerNow);
    }

    #[test]
    fn requests_that_wait_are_bounded() {
        let mut readiness = Readiness::of_session_started_at(Instant::now());
        let taken = (0..MAX_WAITING).filter(|_| readiness.request() == StatusRequest::Waits).count();
        assert_eq!((taken, readiness.request()), (MAX_WAITING, StatusRequest::Refused));
        assert_eq!(readiness.open(), MAX_WAITING);
    }
}
