//! Public handles of a running monitor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::attribution::engine::{MonitorEngine, ProcessLookup};
use super::attribution::sigkill::{SigkillCause, SigkillOf};
use super::message::{MonitorEvent, MonitorQuery, MonitorRequest};
use super::model::cgroup::{CgroupFacts, CgroupFilter};
use super::model::clock;
use super::model::process::{ExitKind, ProcessKey, SizeSplit, Sizes};
use super::report::recorder::Recorder;
use super::setup::MonitorSetup;
use super::sources::cgroup::charge::OwnCharge;
use super::sources::procfs::ProcRoot;
use super::sources::sampler::Sampler;
use super::task::{FLUSH_DEADLINE, MonitorTask, QUEUED_SAMPLES};
use crate::tasks::TaskGroup;

/// Capacity of the request channel. Each exit of a child is a request.
const QUEUED_REQUESTS: usize = 256;

/// Capacity of the query channel: one for the step, and one for each service or kernel that exits at the same time.
const QUEUED_QUERIES: usize = 64;

/// Capacity of the event channel. Bursts of OOM kills are summarized before.
const QUEUED_EVENTS: usize = 64;

/// Handle of a running monitor task.
#[derive(Debug)]
pub(crate) struct Monitor {
    requests: mpsc::Sender<MonitorRequest>,
    queries: mpsc::Sender<MonitorQuery>,
    /// A `/proc` that shows processes under our pids.
    proc: ProcRoot,
    charge: Arc<OwnCharge>,
    /// No tracer is attached, so exit statuses of children are evidence.
    is_evidence: Arc<AtomicBool>,
}

impl Monitor {
    /// Starts the monitor task and returns the receiver of its events.
    ///
    /// # Errors
    /// If the sampler thread cannot be started.
    pub(crate) fn start(
        setup: MonitorSetup,
        tasks: &TaskGroup,
    ) -> std::io::Result<(Self, mpsc::Receiver<MonitorEvent>)> {
        let (events, told) = mpsc::channel(QUEUED_EVENTS);
        let (requests, requested) = mpsc::channel(QUEUED_REQUESTS);
        let (queries, asked) = mpsc::channel(QUEUED_QUERIES);
        let (sampled, samples) = mpsc::channel(QUEUED_SAMPLES);
        let has_our_numbers = setup.view.has_our_numbers();
        if let Some(problem) = setup.proc_problem() {
            tracing::warn!("{problem}");
        }
        let present: Box<dyn ProcessLookup> = match setup.proc.clone().filter(|_| has_our_numbers) {
            Some(proc) => Box::new(proc),
            None => Box::new(NoLookup),
        };
        let proc = if has_our_numbers { ProcRoot::default() } else { ProcRoot::without_processes() };
        let charge = Arc::new(OwnCharge::open(setup.cgroup.as_ref()));
        let sampler = setup
            .proc
            .map(|_| Sampler::start(proc.clone(), setup.cgroup_filter, Arc::clone(&charge), Sampler::INTERVAL, sampled))
            .transpose()?;
        let is_evidence = Arc::new(AtomicBool::new(false));
        let mut engine = MonitorEngine::new(clock::time_of_day(0), present);
        if let Some(reason) = setup.view.why_unattributed() {
            engine.view_is_partial(reason);
        }
        if setup.traces_for_others {
            engine.trace_for_others();
        }
        let task = MonitorTask::new(
            engine,
            sampler,
            events,
            setup.cgroup,
            setup.scope,
            Arc::clone(&charge),
            Arc::clone(&is_evidence),
        )
        .with_node(setup.node);
        tasks.spawn("oom monitor", task.run(setup.tracer, samples, requested, asked));
        Ok((Self { requests, queries, proc, charge, is_evidence }, told))
    }

    /// Forwards an OOM notification of the agent. Without a tracer or counter it triggers a scan.
    pub(crate) fn agent_reported_kill(&self) {
        // If the queue is full, it already contains such requests.
        let _ = self.requests.try_send(MonitorRequest::AgentReportedKill);
    }

    /// Starts recording memory samples.
    pub(crate) fn record_to(&self, recorder: Recorder) {
        // The queue is full at the start of a session only in a burst of exits; losing samples is acceptable then.
        let _ = self.requests.try_send(MonitorRequest::RecordTo(recorder));
    }

    /// Requests [`MonitorEvent::Flushed`] once all OOM kills up to now have been reported; `false` if the queue is
    /// full.
    #[must_use]
    pub(crate) fn flush(&self, number: u64) -> bool {
        self.queries.try_send(MonitorQuery::Flush(number)).is_ok()
    }

    /// Returns a handle for reporting exits of processes.
    #[must_use]
    pub(crate) fn exit_reporter(&self) -> ExitReporter {
        ExitReporter {
            requests: self.requests.clone(),
            proc: self.proc.clone(),
            charge: Arc::clone(&self.charge),
            is_evidence: Arc::clone(&self.is_evidence),
        }
    }

    /// Returns a handle for asking why a process got SIGKILL.
    #[must_use]
    pub(crate) fn causes(&self) -> SigkillCauses {
        SigkillCauses(self.queries.clone())
    }

    /// The charge of our cgroup, for work that can wait until there is headroom.
    #[must_use]
    pub(crate) fn charge(&self) -> Arc<OwnCharge> {
        Arc::clone(&self.charge)
    }
}

/// Reports exits of processes to the monitor, which uses them as evidence if no tracer is attached.
#[derive(Debug, Clone)]
pub(crate) struct ExitReporter {
    requests: mpsc::Sender<MonitorRequest>,
    /// Shows a child until it is reaped.
    proc: ProcRoot,
    charge: Arc<OwnCharge>,
    is_evidence: Arc<AtomicBool>,
}

impl ExitReporter {
    /// Reports the exit of a process that has not been reaped yet. Does not block.
    pub(crate) fn report(&self, pid: u32, by_sigkill: bool) {
        if !self.is_evidence.load(Ordering::Relaxed) {
            return;
        }
        let end = if by_sigkill { ExitKind::Killed } else { ExitKind::Other };
        // Only after a SIGKILL may memory be short because of an OOM kill.
        let request = if by_sigkill && self.charge.is_short() {
            Some(MonitorRequest::ExitedUnread { pid, end })
        } else {
            self.proc.death_of(pid, end, clock::boot_ns()).map(MonitorRequest::Exited)
        };
        // A burst that fills the queue is reported as a number anyway.
        let _ = request.map(|request| self.requests.try_send(request));
    }
}

/// Answers why a process got SIGKILL.
#[derive(Debug, Clone)]
pub(crate) struct SigkillCauses(mpsc::Sender<MonitorQuery>);

impl SigkillCauses {
    /// Waits until all events before this call are processed and returns why the process got SIGKILL. `None` if the
    /// monitor has ended or its queue is full.
    pub(crate) async fn find(&self, whose: SigkillOf) -> Option<SigkillCause> {
        let (answer, cause) = oneshot::channel();
        self.0.try_send(MonitorQuery::Explain { whose, answer }).ok()?;
        timeout(2 * FLUSH_DEADLINE, cause).await.ok()?.ok()
    }
}

impl ProcessLookup for ProcRoot {
    fn has(&self, process: ProcessKey) -> bool {
        Self::has(self, process)
    }

    fn sizes(&self, process: ProcessKey) -> Option<Sizes> {
        self.sizes_of(process)
    }

    fn split(&self, process: ProcessKey) -> Option<SizeSplit> {
        self.split_of(process)
    }

    fn is_charged(&self, process: ProcessKey, cgroup: &CgroupFacts) -> bool {
        self.is_in_cgroup(process.pid, &CgroupFilter::new(cgroup.version, &cgroup.path))
    }
}

/// A lookup that finds nothing, used if `/proc` does not show processes under our pids.
struct NoLookup;

impl ProcessLookup for NoLookup {
    fn has(&self, _: ProcessKey) -> bool {
        true
    }

    fn sizes(&self, _: ProcessKey) -> Option<Sizes> {
        None
    }

    fn split(&self, _: ProcessKey) -> Option<SizeSplit> {
        None
    }

    fn is_charged(&self, _: ProcessKey, _: &CgroupFacts) -> bool {
        false
    }
}
