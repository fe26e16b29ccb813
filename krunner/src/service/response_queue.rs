//! Responses of one kind, sent in the order of their requests.
//!
//! A response carries no name, and an agent takes the next one for its oldest pending request. Each has a deadline, counted
//! from its request. A request with an earlier deadline than those before it shortens their deadlines to its own; otherwise
//! they would make it late.

use std::pin::Pin;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::command::ServiceEvent;
use crate::tasks::TaskGroup;

/// Queued responses of one kind. An agent has as many pending requests.
pub(super) const QUEUED_RESPONSES: usize = 128;

/// A response that is not ready yet.
struct Queued {
    answer: Pin<Box<dyn Future<Output = ServiceEvent> + Send>>,
    /// Dropped when the response was sent.
    delivered: DropGuard,
}

/// Sends responses of one kind in the order of their requests.
pub(super) struct ResponseQueue {
    queue: mpsc::Sender<Queued>,
    deadlines: Vec<watch::Sender<Instant>>,
}

/// Resolves when a response was sent.
pub(super) struct Delivered(CancellationToken);

impl Delivered {
    pub(super) async fn wait(&self) {
        self.0.cancelled().await;
    }
}

/// The deadline of a response; may become earlier.
#[derive(Clone)]
pub(super) struct Deadline(watch::Receiver<Instant>);

impl Deadline {
    pub(super) async fn wait(&mut self) {
        loop {
            let at = *self.0.borrow_and_update();
            tokio::select! {
                () = sleep_until(at) => return,
                Ok(()) = self.0.changed() => {}
            }
        }
    }
}

impl ResponseQueue {
    pub(super) fn new(events: &mpsc::Sender<ServiceEvent>, tasks: &TaskGroup) -> Self {
        let (queue, mut answers) = mpsc::channel::<Queued>(QUEUED_RESPONSES);
        let events = events.clone();
        tasks.spawn("answers about services", async move {
            while let Some(Queued { answer, delivered }) = answers.recv().await {
                if events.send(answer.await).await.is_err() {
                    return;
                }
                drop(delivered);
            }
        });
        Self { queue, deadlines: Vec::new() }
    }

    /// Creates the deadline of the response that is pushed next.
    pub(super) fn deadline(&mut self, at: Instant) -> Deadline {
        self.deadlines.retain(|deadline| !deadline.is_closed());
        for earlier in &self.deadlines {
            earlier.send_if_modified(|deadline| {
                let is_later = *deadline > at;
                *deadline = at.min(*deadline);
                is_later
            });
        }
        let (deadline, reads) = watch::channel(at);
        self.deadlines.push(deadline);
        Deadline(reads)
    }

    /// Appends a response.
    pub(super) async fn push(&self, answer: impl Future<Output = ServiceEvent> + Send + 'static) -> Delivered {
        let delivered = CancellationToken::new();
        let queued = Queued { answer: Box::pin(answer), delivered: delivered.clone().drop_guard() };
        // Fails only when the session ends.
        let _ = self.queue.send(queued).await;
        Delivered(delivered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ServiceOutcome;
    use std::time::Duration;
    use tokio::sync::oneshot;

    fn service(answer: &str) -> ServiceEvent {
        ServiceEvent::Service(ServiceOutcome::failed(answer))
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_order_with_less_time_is_not_late() {
        let (tell, mut told) = mpsc::channel(8);
        let mut answers = ResponseQueue::new(&tell, &TaskGroup::new());
        let begun = Instant::now();
        for (name, seconds) in [("patient", 60), ("hasty", 9), ("last", 30)] {
            let mut deadline = answers.deadline(begun + Duration::from_secs(seconds));
            let answer = async move {
                deadline.wait().await;
                service(name)
            };
            answers.push(answer).await;
        }
        for (name, seconds) in [("patient", 9), ("hasty", 9), ("last", 30)] {
            assert_eq!(told.recv().await, Some(service(name)));
            assert_eq!(begun.elapsed().as_secs(), seconds, "{name}");
        }
    }

    #[tokio::test]
    async fn what_follows_an_answer_can_wait_for_it() {
        let (tell, mut told) = mpsc::channel(8);
        let answers = ResponseQueue::new(&tell, &TaskGroup::new());
        let (first, waits) = oneshot::channel::<()>();
        answers.push(async { waits.await.map_or(service("lost"), |()| service("first")) }).await;
        let delivered = answers.push(async { service("second") }).await;
        let follow = async {
            delivered.wait().await;
            delivered.wait().await;
            tell.send(service("third")).await
        };
        first.send(()).unwrap();
        follow.await.unwrap();
        for name in ["first", "second", "third"] {
            assert_eq!(told.recv().await, Some(service(name)));
        }
    }
}
