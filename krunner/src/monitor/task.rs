//! The monitor task. It owns the [`MonitorEngine`] and feeds it from the tracer, the sampler and requests.
//!
//! ```text
//!  loader thread ─Attached─▶ ring buffer ─batches─▶┐
//!  sampler thread ─────────────────────Snapshot──▶ │ this task ─MonitorEvent─▶ session, or `krunner monitor`
//!  the session ──────────────────MonitorRequest──▶ ┘
//! ```
//!
//! It starts with snapshots and switches to the tracer when that is attached. It never reads `/proc` in a blocking way:
//! a read may block on a process that the kernel is about to kill.
//!
//! **A query is a barrier.** When a step ends, all OOM kills before that moment must be reported first
//! ([`MonitorQuery::Flush`]). The kernel has put them into the ring buffer or the counter before the parent of the
//! killed process can reap it. So both are read when the query arrives, and it is answered once no detected OOM kill is
//! left unreported: immediately if there was none, after [`FLUSH_DEADLINE`] at the latest.
//!
//! **Hold.** After an OOM kill at our own limit, no file is opened and nothing is reported until the victim's memory
//! has been freed: see `sources::cgroup::charge`.

mod counted;
mod delivered;
mod hold;
mod memory;
mod queries;
mod recorded;
mod traced;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::read;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::attribution::engine::MonitorEngine;
use super::message::{MonitorEvent, MonitorQuery, MonitorRequest};
use super::model::clock;
use super::model::detection::{MonitorStatus, Scope, TracerKind};
use super::model::event::TraceEvent;
use super::setup::{NodeSocket, TracerError};
use super::sources::cgroup::Cgroup;
use super::sources::cgroup::charge::OwnCharge;
use super::sources::cgroup::counter::KillCounter;
use super::sources::node::client::NodeEvent;
use super::sources::sampler::{Sampler, SamplerEvent};
use super::sources::tracer::{Loading, RingReader};
use crate::error::chain;
use crate::sys;
use delivered::{NodeSource, next_from_node};
use memory::{DENSE_TICK, MemoryWatch};
pub(super) use queries::FLUSH_DEADLINE;
use queries::PendingQuery;
use recorded::RecorderState;
use traced::TracerState;

/// Snapshots are large, and old ones useless. One tick of the sampler may send two events.
pub(super) const QUEUED_SAMPLES: usize = 2;

/// Tick interval while a query, a count or a hold is pending.
const BUSY_TICK: Duration = Duration::from_millis(1);

/// In cgroup v1 the kernel signals that memory has run out before it kills and counts. The kill follows within a
/// millisecond, or later if there are thousands of processes to choose from.
const COUNTED_AFTER_ALARM: Duration = Duration::from_millis(50);

/// Tick interval otherwise, for expiry by age.
const IDLE_TICK: Duration = Duration::from_millis(250);

/// Tick interval where the machine's tracer delivers kills, and memory usage hardly changes.
const QUIET_TICK: Duration = Duration::from_secs(2);

pub(super) struct MonitorTask {
    engine: MonitorEngine,
    sampler: Option<Sampler>,
    events: mpsc::Sender<MonitorEvent>,
    cgroup: Option<Cgroup>,
    scope: Scope,
    charge: Arc<OwnCharge>,
    /// Set while the tracer is attached.
    ring: Option<Box<RingReader>>,
    /// Set while the tracer is attached.
    traced: Option<TracerState>,
    /// Without a tracer: the counter, shared with the sampler.
    counter: Option<Arc<Mutex<KillCounter>>>,
    /// Without a tracer: becomes readable when a counter of the cgroup may have changed.
    changes: Option<AsyncFd<OwnedFd>>,
    is_evidence: Arc<AtomicBool>,
    /// Where to find the machine's node, if it may be used.
    node_socket: Option<NodeSocket>,
    /// Set once the own tracer could not be attached.
    node: Option<NodeSource>,
    /// Set when there is a flight recorder.
    recorded: Option<RecorderState>,
    queries: Vec<PendingQuery>,
    /// The counter has changed but was locked by the sampler.
    is_count_due: bool,
    /// Read the counter at each tick until then.
    count_until_ns: u64,
    /// The heap's reserve may have become smaller.
    is_reserve_used: bool,
    /// Deadline for the victim's memory to be freed.
    held_until_ns: Option<u64>,
    memory: MemoryWatch,
    /// Already reported: out of memory, but the kernel may not kill (`oom_kill_disable`).
    is_stuck: bool,
    /// Number of dropped history records last logged.
    dropped_records: u64,
}

/// An input of the task.
enum MonitorInput {
    Batch(Vec<TraceEvent>),
    Sampled(SamplerEvent),
    Changed,
    Node(NodeEvent),
    Request(MonitorRequest),
    Query(MonitorQuery),
    Attached(Result<Box<RingReader>, TracerError>),
    TracerEnded(io::Error),
    Tick,
}

impl MonitorTask {
    pub(super) fn new(
        engine: MonitorEngine,
        sampler: Option<Sampler>,
        events: mpsc::Sender<MonitorEvent>,
        cgroup: Option<Cgroup>,
        scope: Scope,
        charge: Arc<OwnCharge>,
        is_evidence: Arc<AtomicBool>,
    ) -> Self {
        Self {
            engine,
            sampler,
            events,
            cgroup,
            scope,
            charge,
            ring: None,
            traced: None,
            counter: None,
            changes: None,
            is_evidence,
            node_socket: None,
            node: None,
            recorded: None,
            queries: Vec::new(),
            is_count_due: false,
            count_until_ns: 0,
            is_reserve_used: true,
            held_until_ns: None,
            memory: MemoryWatch::default(),
            is_stuck: false,
            dropped_records: 0,
        }
    }

    /// Uses the machine's node at this socket if the own tracer cannot be attached.
    #[must_use]
    pub(super) fn with_node(self, node_socket: Option<NodeSocket>) -> Self {
        Self { node_socket, ..self }
    }

    pub(super) async fn run(
        mut self,
        tracer: Result<Loading, TracerError>,
        mut samples: mpsc::Receiver<SamplerEvent>,
        mut requests: mpsc::Receiver<MonitorRequest>,
        mut queries: mpsc::Receiver<MonitorQuery>,
    ) {
        // OOM kills may happen while the tracer is being loaded.
        self.set_fallback(true);
        let mut loading = Box::pin(attached(tracer));
        let mut is_loading = true;
        let [mut busy, mut dense, mut idle, mut quiet] = [BUSY_TICK, DENSE_TICK, IDLE_TICK, QUIET_TICK].map(ticks);
        loop {
            let is_busy = self.is_busy();
            let is_dense = self.memory.is_dense() || !self.queries.is_empty();
            let is_quiet = self.is_quiet();
            let event = tokio::select! {
                batch = next_batch(self.ring.as_deref_mut()) => batch.map_or_else(MonitorInput::TracerEnded, MonitorInput::Batch),
                Some(sampled) = samples.recv() => MonitorInput::Sampled(sampled),
                attached = &mut loading, if is_loading => MonitorInput::Attached(attached),
                () = changed(self.changes.as_ref()) => MonitorInput::Changed,
                event = next_from_node(self.node.as_mut()) => MonitorInput::Node(event),
                Some(request) = requests.recv() => MonitorInput::Request(request),
                Some(query) = queries.recv() => MonitorInput::Query(query),
                _ = busy.tick(), if is_busy => MonitorInput::Tick,
                _ = dense.tick(), if is_dense => MonitorInput::Tick,
                _ = quiet.tick(), if is_quiet => MonitorInput::Tick,
                _ = idle.tick(), if !is_quiet => MonitorInput::Tick,
            };
            is_loading &= !matches!(event, MonitorInput::Attached(_));
            let is_more_to_read = matches!(&event, MonitorInput::Batch(batch) if RingReader::is_full(batch));
            self.handle(event).await;
            if !self.emit().await {
                return;
            }
            if is_more_to_read {
                // Under a flood of forks, let the session's other tasks run.
                yield_now().await;
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.held_until_ns.is_some()
            || self.is_count_due
            || clock::boot_ns() < self.count_until_ns
            || self.queries.iter().any(|query| query.is_urgent(clock::boot_ns()))
            || self.engine.is_busy(clock::boot_ns())
    }

    /// Whether nothing changes and nothing has to be inferred: a machine has hundreds of such sessions.
    fn is_quiet(&self) -> bool {
        self.memory.is_still() && self.node.as_ref().is_some_and(NodeSource::is_connected)
    }

    async fn handle(&mut self, event: MonitorInput) {
        self.engine.set_booted_at(clock::time_of_day(0));
        match event {
            MonitorInput::Attached(attached) => {
                let why_not = attached.as_ref().err().map(|error| chain(error));
                self.ring = attached.ok();
                self.tracer_changed(why_not).await;
            }
            MonitorInput::TracerEnded(error) => {
                tracing::error!("cannot read the OOM tracer's ring buffer: {error}");
                self.ring = None;
                self.tracer_changed(Some(error.to_string())).await;
            }
            MonitorInput::Batch(batch) => self.traced(&batch),
            MonitorInput::Sampled(sample) => self.sampled(sample),
            MonitorInput::Node(event) => self.node_event(event).await,
            MonitorInput::Request(request) => self.handle_request(request).await,
            MonitorInput::Query(query) => self.ask(query),
            MonitorInput::Changed => {
                self.is_count_due = true;
                if self.cgroup.as_ref().is_some_and(|cgroup| cgroup.version == 1) {
                    self.count_until_ns = clock::boot_ns() + nanoseconds(COUNTED_AFTER_ALARM);
                }
                if let Some(sampler) = &self.sampler {
                    sampler.tick_now();
                }
            }
            MonitorInput::Tick => {
                if self.is_count_due || clock::boot_ns() < self.count_until_ns {
                    self.is_count_due = !self.count_now();
                }
                self.end_hold();
                self.compare_with_counter();
                self.check_stuck();
                self.sample_memory();
                self.record_kills();
                self.renew_reserve();
                self.engine.tick(clock::boot_ns());
            }
        }
    }

    /// Emits pending events and answers queries; `false` if the receiver is closed.
    async fn emit(&mut self) -> bool {
        let answered = self.answerable();
        let notices = self.engine.take_events();
        self.is_reserve_used |= !answered.is_empty() || !notices.is_empty();
        for notice in notices {
            if self.events.send(MonitorEvent::Oom(notice)).await.is_err() {
                return false;
            }
        }
        for query in answered {
            match query {
                MonitorQuery::Flush(number) => {
                    if self.events.send(MonitorEvent::Flushed(number)).await.is_err() {
                        return false;
                    }
                }
                MonitorQuery::Explain { whose, answer } => {
                    let cause = self.engine.sigkill_cause(whose, self.ring.is_some(), clock::boot_ns());
                    // Fails if the caller has given up.
                    let _ = answer.send(cause);
                }
            }
        }
        true
    }

    async fn handle_request(&mut self, request: MonitorRequest) {
        let now_ns = clock::boot_ns();
        self.is_reserve_used = true;
        match request {
            MonitorRequest::AgentReportedKill => {
                let is_delivered = self.node.as_ref().is_some_and(NodeSource::is_connected);
                if self.ring.is_some() || is_delivered || self.engine.is_counted() {
                    tracing::debug!(
                        "ignoring the agent's OOM notification: the tracer or the cgroup counter is authoritative"
                    );
                    return;
                }
                // Fails if the receiver is closed; the next `emit` then ends the task.
                let _ = self.events.send(MonitorEvent::Unconfirmed).await;
                let look = self.engine.agent_reported_kill(now_ns);
                self.scan_if(look);
            }
            MonitorRequest::Exited(death) => self.engine.child_exited(&death, now_ns),
            MonitorRequest::ExitedUnread { pid, end } => self.engine.child_exited_unseen(pid, end, now_ns),
            MonitorRequest::RecordTo(recorder) => self.recorded = Some(RecorderState::new(recorder)),
        }
    }

    /// Processes all records in the ring buffers.
    fn read_all(&mut self) {
        let events = self.ring.as_mut().map_or_else(Vec::new, |ring| ring.read_all());
        self.traced(&events);
    }

    fn traced(&mut self, batch: &[TraceEvent]) {
        let now_ns = clock::boot_ns();
        let mut look = false;
        for event in batch {
            self.begin_hold(event, now_ns);
            let facts = self.facts(event);
            let group = self.group_setting(event, facts.as_ref());
            if let Some(traced) = &mut self.traced {
                traced.record(event, now_ns);
            }
            look |= self.engine.trace(event, facts, now_ns);
            if let Some((victim, is_group)) = group {
                self.engine.is_killed_with_group(victim, is_group);
            }
        }
        self.scan_if(look);
    }

    fn sampled(&mut self, sample: SamplerEvent) {
        let now_ns = clock::boot_ns();
        match sample {
            SamplerEvent::Snapshot(snapshot) => {
                self.engine.snapshot(&snapshot, now_ns);
                let dropped_records = self.engine.forgotten();
                if dropped_records > self.dropped_records {
                    tracing::debug!(
                        "process history is full: dropped {} records",
                        dropped_records - self.dropped_records
                    );
                    self.dropped_records = dropped_records;
                }
            }
            SamplerEvent::PartialScan(partial_scan) => self.engine.partial_scan(&partial_scan, now_ns),
            SamplerEvent::Counted => self.is_count_due = !self.count_now(),
        }
    }

    fn scan_if(&self, look: bool) {
        if let Some(sampler) = self.sampler.as_ref().filter(|_| look) {
            sampler.scan_now();
        }
    }

    async fn tracer_changed(&mut self, why_not_bpf: Option<String>) {
        let traced = self.ring.is_some();
        self.traced = traced.then(|| {
            let may_open = self.held_until_ns.is_none() && !self.charge.is_short();
            TracerState::start(self.cgroup.clone(), self.counter.clone(), may_open)
        });
        self.take_over_from_counter();
        self.set_fallback(!traced);
        self.is_reserve_used = true;
        // Processes started while the programs were being loaded are in no record.
        self.scan_if(traced);
        if let Some(socket) = self.node_socket.take_if(|_| !traced) {
            self.node = Some(NodeSource::new(socket, why_not_bpf.clone()));
        }
        let tracer = if traced { TracerKind::Bpf } else { TracerKind::Snapshot };
        if !traced && !self.cgroup.as_ref().is_some_and(Cgroup::counts_kills) {
            tracing::warn!(
                "OOM kills are reported only if krunner node or the agent tells of them: no eBPF, and no kill counter is \
                 readable (details: `krunner doctor`)"
            );
        }
        // Fails if the receiver is closed.
        let _ = self.events.send(MonitorEvent::Status(MonitorStatus { tracer, why_not_bpf, scope: self.scope })).await;
    }

    /// Enables or disables the fallback: counters and partial scans.
    fn set_fallback(&mut self, without: bool) {
        self.is_evidence.store(without, Ordering::Relaxed);
        let Some(sampler) = &self.sampler else { return };
        if without {
            // One that runs already has kills to hand over.
            let counter =
                self.counter.take().unwrap_or_else(|| Arc::new(Mutex::new(KillCounter::start(self.cgroup.clone()))));
            // Without notifications only the sampler's ticks read the counter.
            self.changes = match &self.cgroup {
                Some(cgroup) if cgroup.version == 2 => changes_of(cgroup),
                _ => counter
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .alarm()
                    .and_then(|alarm| sys::readable(alarm).ok()),
            };
            self.counter = Some(Arc::clone(&counter));
            sampler.enable_fallback(counter);
        } else {
            self.changes = None;
            self.counter = None;
            sampler.disable_fallback();
        }
    }
}

/// Ticks at this interval. One that comes late delays the next ones.
fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Waits for the loader thread; `Err` with the reason why there is no tracer.
async fn attached(tracer: Result<Loading, TracerError>) -> Result<Box<RingReader>, TracerError> {
    let attached = tracer?.attached().await?;
    attached.into_reader().map(Box::new).map_err(TracerError::Ring)
}

fn changes_of(cgroup: &Cgroup) -> Option<AsyncFd<OwnedFd>> {
    let inotify = KillCounter::changes(cgroup).inspect_err(|error| {
        tracing::debug!("cannot watch the cgroup's counters for changes ({error}); polling them instead");
    });
    sys::readable(inotify.ok()?.into()).ok()
}

/// Waits for a change notification and consumes it.
async fn changed(changes: Option<&AsyncFd<OwnedFd>>) {
    /// One event has 16 bytes (inotify(7)); which they are does not matter.
    const EVENTS_BYTES: usize = 1024;
    let Some(changes) = changes else { return std::future::pending().await };
    let Ok(mut ready) = changes.readable().await else { return std::future::pending().await };
    while read(changes.get_ref(), &mut [0; EVENTS_BYTES]).is_ok_and(|bytes| bytes == EVENTS_BYTES) {}
    ready.clear_ready();
}

async fn next_batch(ring: Option<&mut RingReader>) -> io::Result<Vec<TraceEvent>> {
    match ring {
        Some(ring) => ring.next().await,
        None => std::future::pending().await,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
