//! The node's loop. It owns the peers, the log and the names, and never waits for any of them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{future, io};

use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};

use super::connection::{self, ConnectionChange, ConnectionEvent};
use super::identity::{HostIdentity, IdentityError, PeerIdentity, identity_at, identity_of};
use super::metrics::{self, Metrics};
use super::name_files::NameFiles;
use super::names::Owner;
use super::node_log::NodeLog;
use super::notify;
use super::peers::{Greeted, Peers, Refusal};
use super::pod_events::{ApiServer, ApiServerError, PodEvents};
use super::scope::{HostKill, Named, PeerScope, PeerScopeError, limit_seen_from};
use super::socket::{NodeListener, NodeSocketError};
use crate::error::chain;
use crate::monitor::node::{ALIVE_INTERVAL, FromNode, NodeStatus, VERSION, encode};
use crate::monitor::{
    DaemonKill, Journal, JournalPath, KillEvent, Monitor, MonitorEvent, MonitorSetup, OomReport, TracerKind, boot_ns,
};
use crate::sys;
use crate::tasks::TaskGroup;
use crate::writer::Writer;

/// Events of connections that wait for the loop.
const QUEUED_EVENTS: usize = 256;

/// Interval of the log's summaries.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(1);

/// Between two warnings about peers that cannot be identified.
const WARNING_PAUSE: Duration = Duration::from_mins(1);

/// How long the eBPF programs may take to load.
const ATTACH_PATIENCE: Duration = Duration::from_mins(1);

/// Connections are accepted again after this, if the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a node needs to know to run.
#[derive(Debug)]
pub(crate) struct NodeConfig {
    /// Path of the socket.
    pub socket: PathBuf,
    /// Address of the metrics, if wanted.
    pub metrics: Option<SocketAddr>,
    /// Whether kills in pods become Kubernetes Events.
    pub announces_in_pods: bool,
    /// The journal, if wanted.
    pub journal: Option<JournalPath>,
    /// Whether the log has command lines.
    pub shows_command_lines: bool,
}

/// Why a node cannot run, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The monitor did not start.
    #[error("cannot start the monitor")]
    Monitor(#[source] io::Error),
    /// The tracer is not attached.
    #[error("the OOM tracer cannot be used: {0} (details: `krunner doctor`)")]
    NoTracer(String),
    /// The tracer took too long.
    #[error("the OOM tracer was not attached within {} s", ATTACH_PATIENCE.as_secs())]
    TracerTimeout,
    /// The monitor task ended.
    #[error("bug: the monitor stopped")]
    MonitorStopped,
    /// The socket cannot be opened.
    #[error(transparent)]
    Socket(#[from] NodeSocketError),
    /// The address of the metrics cannot be used.
    #[error("cannot listen at {0} (--metrics)")]
    Metrics(SocketAddr, #[source] io::Error),
    /// Kubernetes Events cannot be created.
    #[error("cannot create Kubernetes Events (--events)")]
    Events(#[source] ApiServerError),
}

/// Why a connection is closed before its greeting.
#[derive(Debug, thiserror::Error)]
enum AdmitError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    PeerScope(#[from] PeerScopeError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the connection broke")]
    Broken(#[from] io::Error),
}

/// Traces until it is to stop, or fails.
pub(crate) async fn serve(
    setup: MonitorSetup,
    config: NodeConfig,
    stdout: Writer,
    tasks: &TaskGroup,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    tokio::pin!(stop);
    let started = tokio::select! {
        biased;
        () = &mut stop => return Ok(()),
        started = start(setup, config, stdout, tasks) => started?,
    };
    let StartedNode { mut server, listener, events, connections } = started;
    tokio::select! {
        biased;
        () = &mut stop => server.finish().await,
        ended = server.run(&listener, events, connections) => return ended,
    }
    Ok(())
}

/// A node that is ready to serve, and its inputs.
struct StartedNode {
    server: NodeServer,
    listener: NodeListener,
    events: mpsc::Receiver<MonitorEvent>,
    connections: mpsc::Receiver<ConnectionEvent>,
}

async fn start(
    setup: MonitorSetup,
    config: NodeConfig,
    stdout: Writer,
    tasks: &TaskGroup,
) -> Result<StartedNode, ServeError> {
    // A mistake in the configuration should not take a minute to show.
    let api_server =
        if config.announces_in_pods { Some(ApiServer::of_this_pod().await.map_err(ServeError::Events)?) } else { None };
    let (monitor, mut events) = Monitor::start(setup, tasks).map_err(ServeError::Monitor)?;
    timeout(ATTACH_PATIENCE, attached(&mut events)).await.map_err(|_| ServeError::TracerTimeout)??;
    let listener = NodeListener::bind(&config.socket)?;
    let log_problem = |problem: &str| tracing::warn!("{problem}");
    let journal = config.journal.map(|place| Journal::start(place, Some(monitor.charge()), log_problem, tasks));
    let metrics = Arc::new(Metrics::new());
    metrics.is_tracing.set(1);
    if let Some(address) = config.metrics {
        let bound = metrics::listen(address, Arc::clone(&metrics), tasks).await;
        let bound = bound.map_err(|error| ServeError::Metrics(address, error))?;
        tracing::info!("metrics at http://{bound}/metrics");
    }
    let pod_events = api_server.map(|server| {
        tracing::info!("OOM kills in pods become Kubernetes Events at {}", server.url());
        PodEvents::start(server, Arc::clone(&metrics), tasks)
    });
    let (connections, connection_events) = mpsc::channel(QUEUED_EVENTS);
    let server = NodeServer {
        peers: Peers::default(),
        names: NameFiles::below("/"),
        log: NodeLog::new(stdout, journal, config.shows_command_lines),
        metrics,
        pod_events,
        unreported_losses: 0,
        warned: None,
        started: Instant::now(),
        connections,
        tasks: tasks.clone(),
    };
    server.started(&config.socket);
    notify::ready();
    Ok(StartedNode { server, listener, events, connections: connection_events })
}

/// Waits until the tracer is attached.
async fn attached(events: &mut mpsc::Receiver<MonitorEvent>) -> Result<(), ServeError> {
    while let Some(event) = events.recv().await {
        if let MonitorEvent::Status(status) = event {
            return match status.tracer {
                TracerKind::Bpf => Ok(()),
                _ => Err(ServeError::NoTracer(status.why_not_bpf.unwrap_or_default())),
            };
        }
    }
    Err(ServeError::MonitorStopped)
}

struct NodeServer {
    peers: Peers,
    names: NameFiles,
    log: NodeLog,
    metrics: Arc<Metrics>,
    pod_events: Option<PodEvents>,
    /// Records that the tracer dropped since the last report to the peers.
    unreported_losses: u64,
    /// The last warning about a peer that could not be identified.
    warned: Option<Instant>,
    started: Instant,
    connections: mpsc::Sender<ConnectionEvent>,
    tasks: TaskGroup,
}

/// An input of the loop.
enum NodeInput {
    Monitor(Option<MonitorEvent>),
    Connected(io::Result<UnixStream>),
    Connection(ConnectionEvent),
    Alive,
    Summary,
    Watchdog,
}

impl NodeServer {
    async fn run(
        &mut self,
        listener: &NodeListener,
        mut events: mpsc::Receiver<MonitorEvent>,
        mut connections: mpsc::Receiver<ConnectionEvent>,
    ) -> Result<(), ServeError> {
        let [mut alive, mut summary] = [ALIVE_INTERVAL, SUMMARY_INTERVAL].map(ticks);
        let mut watchdog = notify::watchdog_interval().map(ticks);
        let mut accept_from = Instant::now();
        loop {
            let input = tokio::select! {
                // Signs of life are rare and must not wait for a storm of kills to end. Then kills: connections must not delay them.
                biased;
                _ = alive.tick() => NodeInput::Alive,
                () = next_tick(watchdog.as_mut()) => NodeInput::Watchdog,
                event = events.recv() => NodeInput::Monitor(event),
                Some(event) = connections.recv() => NodeInput::Connection(event),
                _ = summary.tick() => NodeInput::Summary,
                stream = accept(listener, accept_from) => NodeInput::Connected(stream),
            };
            match input {
                NodeInput::Monitor(Some(event)) => self.event(event)?,
                NodeInput::Monitor(None) => return Err(ServeError::MonitorStopped),
                NodeInput::Connected(Ok(stream)) => self.connected(stream),
                NodeInput::Connected(Err(error)) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    accept_from = Instant::now() + ACCEPT_PAUSE;
                }
                NodeInput::Connection(event) => self.connection(event),
                NodeInput::Alive => self.peers.alive(),
                NodeInput::Summary => {
                    self.report_losses();
                    self.log.summaries(boot_ns());
                    if let Some(events) = &mut self.pod_events {
                        events.tick(&mut self.names);
                    }
                }
                NodeInput::Watchdog => notify::watchdog(),
            }
        }
    }

    /// Sends what waits to be sent.
    async fn finish(&mut self) {
        if let Some(events) = self.pod_events.take() {
            events.finish(&mut self.names).await;
        }
    }

    fn started(&self, socket: &Path) {
        tracing::info!("tracing OOM kills of this machine; runners connect at {}", socket.display());
        let started = json!({
            "event": "node_started",
            "version": env!("CARGO_PKG_VERSION"),
            "protocol": VERSION,
            "socket": socket,
        });
        self.log.write(&started);
    }

    fn event(&mut self, event: MonitorEvent) -> Result<(), ServeError> {
        match event {
            MonitorEvent::Oom(KillEvent::Report(report)) => self.kill(&report),
            MonitorEvent::Oom(KillEvent::ByDaemon(kill)) => self.daemon_kill(&kill),
            MonitorEvent::Oom(KillEvent::RecordsLost { records }) => {
                self.metrics.lost_records.inc_by(records);
                self.unreported_losses += records;
            }
            MonitorEvent::Status(status) if status.tracer != TracerKind::Bpf => {
                return Err(ServeError::NoTracer(status.why_not_bpf.unwrap_or_default()));
            }
            // About the node's own cgroup, or for sessions.
            MonitorEvent::Status(_) | MonitorEvent::Oom(_) | MonitorEvent::Flushed(_) | MonitorEvent::Unconfirmed => {}
        }
        Ok(())
    }

    /// A flood of processes makes the tracer drop records many times a second.
    fn report_losses(&mut self) {
        let records = std::mem::take(&mut self.unreported_losses);
        if records > 0 {
            self.peers.records_lost(records);
            self.log.write(&json!({ "event": "records_lost", "count": records }));
        }
    }

    fn kill(&mut self, report: &OomReport) {
        let Some(evidence) = &report.evidence else { return };
        let kill = HostKill::new(report, evidence, &find);
        self.peers.deliver(&kill);
        let victims = kill.victims();
        let owner = self.owner(report);
        self.metrics.kill(report, &owner, victims);
        if let Some(events) = &mut self.pod_events {
            events.kill(&kill, &owner);
        }
        if !self.log.kill(&as_the_victim_sees_it(report), &owner, boot_ns()) {
            self.metrics.suppressed.inc_by(victims);
        }
    }

    /// Not counted as an OOM kill, and no Event: the kernel killed nothing.
    fn daemon_kill(&mut self, kill: &DaemonKill) {
        let Some(evidence) = &kill.report.evidence else { return };
        self.peers.deliver_of_daemon(kill.daemon, &HostKill::new(&kill.report, evidence, &find));
        let owner = self.owner(&kill.report);
        self.log.daemon_kill(kill, &owner, boot_ns());
    }

    fn owner(&mut self, report: &OomReport) -> Owner {
        report.cgroup.as_ref().map(|cgroup| self.names.owner(&cgroup.path)).unwrap_or_default()
    }

    /// Whether it is time for another warning: peers connect again and again.
    fn may_warn(&mut self) -> bool {
        let is_due = self.warned.is_none_or(|warned| warned.elapsed() >= WARNING_PAUSE);
        if is_due {
            self.warned = Some(Instant::now());
        }
        is_due
    }

    fn connected(&mut self, stream: UnixStream) {
        if let Err((stream, error)) = self.admit(stream) {
            self.metrics.refused.inc();
            match &error {
                AdmitError::Identity(IdentityError::NotPermitted) if self.may_warn() => tracing::warn!("{error}"),
                error => tracing::debug!("refused a connection: {}", chain(error)),
            }
            let refused = FromNode::Refused { reason: chain(&error) };
            // A new socket takes this at once, or its peer is gone.
            let _ = stream.try_write(&encode(&refused));
        }
        self.count_peers();
    }

    fn admit(&mut self, stream: UnixStream) -> Result<(), (UnixStream, AdmitError)> {
        let identified = PeerIdentity::of(&stream, boot_ns()).map_err(AdmitError::from).and_then(|(peer, pidfd)| {
            let scope = PeerScope::of(&peer)?;
            Ok((peer, scope, sys::readable(pidfd)?))
        });
        let (peer, scope, exited) = match identified {
            Ok(identified) => identified,
            Err(error) => return Err((stream, error)),
        };
        let name = self.names.owner(scope.cgroup()).text();
        match self.peers.admit(peer, scope, name) {
            Ok((id, queue)) => {
                let served = connection::run(id, stream, exited, queue, self.connections.clone());
                self.tasks.spawn("node connection", served);
                Ok(())
            }
            Err(refusal) => Err((stream, refusal.into())),
        }
    }

    fn connection(&mut self, event: ConnectionEvent) {
        match event.what {
            ConnectionChange::Greeted(hello) => match self.peers.greeted(event.id, hello) {
                Greeted::Accepted => {}
                Greeted::SendStatus => {
                    let status = FromNode::Status(Box::new(self.status()));
                    self.peers.send_last(event.id, &status);
                }
                Greeted::Refused(refusal) => {
                    self.metrics.refused.inc();
                    tracing::debug!("refused a connection: {refusal}");
                }
            },
            ConnectionChange::Ended { unsent_kills } => self.peers.ended(event.id, unsent_kills),
        }
        self.count_peers();
    }

    fn count_peers(&self) {
        self.metrics.peers.set(i64::try_from(self.peers.len()).unwrap_or(i64::MAX));
    }

    fn status(&self) -> NodeStatus {
        NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: VERSION,
            pid: std::process::id(),
            running_s: self.started.elapsed().as_secs(),
            is_tracing: true,
            kills: self.metrics.kills(),
            lost_records: self.metrics.lost_records.get(),
            refused: self.metrics.refused.get(),
            peers: self.peers.status(),
        }
    }
}

/// The limit's place is relative to the node's own cgroup, which says nothing to a reader of the log.
fn as_the_victim_sees_it(report: &OomReport) -> OomReport {
    let mut report = report.clone();
    report.evidence = None;
    if let (Some(limit), Some(cgroup)) = (&mut report.explanation.limit, &report.cgroup) {
        limit.scope = limit_seen_from(&cgroup.path, limit).scope;
    }
    report
}

fn find(named: Named) -> Option<HostIdentity> {
    match named {
        Named::Process(process) => identity_of(process),
        Named::At(pid, at_boot_ns) => identity_at(pid, at_boot_ns),
    }
}

async fn accept(listener: &NodeListener, from: Instant) -> io::Result<UnixStream> {
    sleep_until(from).await;
    listener.accept().await
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn next_tick(ticks: Option<&mut Interval>) {
    match ticks {
        Some(ticks) => {
            ticks.tick().await;
        }
        None => future::pending().await,
    }
}
