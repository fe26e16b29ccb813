//! From a kill to the queue of the task that sends Events. Never waits.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::announcement::{DueAnnouncement, PodContainer};
use super::api_server::{self, ApiServer};
use super::object::{PodEvent, Reporter};
use super::series::PodSeries;
use super::summary::summary;
use crate::node::metrics::{EventOutcome, Metrics};
use crate::node::names::Owner;
use crate::node::scope::HostKill;
use crate::tasks::TaskGroup;

/// Events that wait for the API server.
const QUEUED_EVENTS: usize = 64;

/// The Events of this node's pods.
pub(in crate::node) struct PodEvents {
    metrics: Arc<Metrics>,
    series: PodSeries,
    reporter: Reporter,
    queue: mpsc::Sender<PodEvent>,
}

impl PodEvents {
    /// Starts the task that sends them.
    pub(in crate::node) fn start(server: ApiServer, metrics: Arc<Metrics>, tasks: &TaskGroup) -> Self {
        let (queue, events) = mpsc::channel(QUEUED_EVENTS);
        tasks.spawn("kubernetes events", api_server::send_all(server, events, Arc::clone(&metrics)));
        Self { metrics, series: PodSeries::new(Instant::now()), reporter: Reporter::of_this_process(), queue }
    }

    /// Announces a kill in a pod, or counts it for later.
    pub(in crate::node) fn kill(&mut self, kill: &HostKill<'_>, owner: &Owner) {
        let Some(container) = PodContainer::of(owner) else { return };
        if !self.series.add(container, kill.victims(), kill.report().time, summary(kill), Instant::now()) {
            self.metrics.pod_event(EventOutcome::Dropped);
        }
        self.send_due();
    }

    /// Sends what is due, as long as the queue takes it.
    pub(in crate::node) fn send_due(&mut self) {
        while let Ok(place) = self.queue.try_reserve() {
            let Some(DueAnnouncement { container, announcement }) = self.series.next_due(Instant::now()) else {
                return;
            };
            place.send(PodEvent::new(&self.reporter, container, announcement));
        }
    }
}
