//! Kubernetes Events for OOM kills in pods (`--events`): `kubectl describe pod` shows who was killed, which the kubelet reports
//! only if it was the container's first process.
//!
//! ```text
//!  serve ─ kill ─▶ summary ─▶ series ─ when one is due ─▶ object ─▶ queue ─▶ api_server: POST, retried
//!                  (text)     (one Event at once, then fewer and fewer with the number of kills)
//! ```
//!
//! **Nothing is lost, nothing floods.** Each container has a series: its first kill is announced at once, what follows is counted
//! and announced together. While the API server does not answer, the queue is full, or the budget of the node is used up, kills
//! remain counted in their series. The loop never waits.
//!
//! **`events: create` is the only permission.** So an Event is never changed: each announcement is a new Event with the `series`
//! so far, as API servers accept it since 1.19 (`ValidateEventCreate`, pkg/apis/core/validation/events.go of kubernetes).
//!
//! **No command line, no other tenant.** Who may read Events of a namespace need not see the processes in it. An Event has names of
//! programs, and only of those in the victim's container.

mod announcement;
mod api_server;
mod object;
mod publish;
mod series;
mod summary;

pub(super) use api_server::{ApiServer, ApiServerError};
pub(super) use publish::PodEvents;
