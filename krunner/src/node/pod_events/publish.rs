//! From a kill to the queue of the task that sends Events. Never waits, but at the end of the node.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::announcement::{DueAnnouncement, PodContainer};
use super::api_server::{self, ApiServer};
use super::object::{PodEvent, Reporter};
use super::series::PodSeries;
use super::summary::summary;
use crate::node::metrics::{EventOutcome, Metrics};
use crate::node::name_files::NameFiles;
use crate::node::names::{Owner, is_of_kubelet};
use crate::node::scope::{HostKill, PeerScope};
use crate::tasks::TaskGroup;

/// Events that wait for the API server.
const QUEUED_EVENTS: usize = 64;

/// Kills that wait for the name of their pod.
const MAX_UNNAMED: usize = 256;

/// How long a kill waits for the name of its pod. The kubelet makes the link after the container has started, which a process of it
/// may not survive.
const NAME_PATIENCE: Duration = Duration::from_secs(20);

/// How long the last Events may take when the node ends.
const FINISH_PATIENCE: Duration = Duration::from_secs(3);

/// The Events of this node's pods.
pub(in crate::node) struct PodEvents {
    metrics: Arc<Metrics>,
    series: PodSeries,
    reporter: Reporter,
    unnamed: VecDeque<UnnamedKill>,
    has_warned: bool,
    queue: mpsc::Sender<PodEvent>,
    /// Closed when all Events of the queue were sent.
    sent: oneshot::Receiver<()>,
}

/// A kill in a pod that has no name yet.
struct UnnamedKill {
    cgroup: String,
    victims: u64,
    at: SystemTime,
    summary: String,
    until: Instant,
}

impl PodEvents {
    /// Starts the task that sends them.
    pub(in crate::node) fn start(server: ApiServer, metrics: Arc<Metrics>, tasks: &TaskGroup) -> Self {
        let (queue, events) = mpsc::channel(QUEUED_EVENTS);
        let (sender, sent) = oneshot::channel();
        metrics.expect_pod_events();
        let counted = Arc::clone(&metrics);
        tasks.spawn("kubernetes events", async move {
            api_server::send_all(server, events, counted).await;
            drop(sender);
        });
        Self {
            metrics,
            series: PodSeries::new(Instant::now()),
            reporter: Reporter::of_this_process(),
            unnamed: VecDeque::new(),
            has_warned: false,
            queue,
            sent,
        }
    }

    /// Announces a kill in a pod, or counts it for later.
    pub(in crate::node) fn kill(&mut self, kill: &HostKill<'_>, owner: &Owner) {
        let report = kill.report();
        let (Some(cgroup), Some(scope)) = (&report.cgroup, PeerScope::of_container_of(report)) else { return };
        if !is_of_kubelet(&cgroup.path) || owner.container_id.is_none() {
            return;
        }
        let victims = scope.victims(kill);
        match PodContainer::of(owner) {
            Some(container) => {
                self.add(container, victims, report.time, || summary(kill));
                self.send_due();
            }
            None if self.unnamed.len() < MAX_UNNAMED => self.unnamed.push_back(UnnamedKill {
                cgroup: cgroup.path.clone(),
                victims,
                at: report.time,
                summary: summary(kill),
                until: Instant::now() + NAME_PATIENCE,
            }),
            None => self.metrics.pod_event(EventOutcome::Unnamed),
        }
    }

    /// To be called every second.
    pub(in crate::node) fn tick(&mut self, names: &mut NameFiles) {
        self.name(names);
        self.send_due();
    }

    /// Sends what is not sent yet, as far as the API server takes it in time. The rest is logged.
    pub(in crate::node) async fn finish(mut self, names: &mut NameFiles) {
        self.name(names);
        let mut unsent = self.unnamed.iter().map(|kill| kill.victims).sum::<u64>();
        for DueAnnouncement { container, announcement } in self.series.take_all(Instant::now()) {
            let killed = announcement.new;
            if self.queue.try_send(PodEvent::new(&self.reporter, container, announcement)).is_err() {
                unsent += killed;
            }
        }
        let Self { queue, sent, .. } = self;
        drop(queue);
        if timeout(FINISH_PATIENCE, sent).await.is_err() || unsent > 0 {
            tracing::warn!("the API server did not take the last Kubernetes Events in time");
        }
    }

    fn add(&mut self, container: PodContainer, victims: u64, at: SystemTime, summary: impl FnOnce() -> String) {
        if !self.series.add(container, victims, at, summary, Instant::now()) {
            self.metrics.pod_event(EventOutcome::Dropped);
        }
    }

    /// Looks again for the names of pods.
    fn name(&mut self, names: &mut NameFiles) {
        for kill in std::mem::take(&mut self.unnamed) {
            match PodContainer::of(&names.owner(&kill.cgroup)) {
                Some(container) => self.add(container, kill.victims, kill.at, || kill.summary),
                None if kill.until > Instant::now() => self.unnamed.push_back(kill),
                None => self.give_up(&kill),
            }
        }
    }

    fn give_up(&mut self, kill: &UnnamedKill) {
        self.metrics.pod_event(EventOutcome::Unnamed);
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(
                "no Kubernetes Event for an OOM kill in a pod whose name is not in /var/log/containers (is it mounted?): {}",
                kill.cgroup.escape_debug()
            );
        }
    }

    /// Sends what is due, as long as the queue takes it.
    fn send_due(&mut self) {
        while let Ok(place) = self.queue.try_reserve() {
            let Some(DueAnnouncement { container, announcement }) = self.series.next_due(Instant::now()) else {
                return;
            };
            place.send(PodEvent::new(&self.reporter, container, announcement));
        }
    }
}
