//! What others hold of a running monitor: questions to it, and what it tells.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::attribution::sigkill::{SigkillCause, SigkillOf};
use super::cgroup::CgroupFacts;
use super::cgroup::charge::OwnCharge;
use super::clock;
use super::engine::{Engine, Notice, Present};
use super::event::{Death, ProcessKey};
use super::means::Means;
use super::process::{End, Sizes};
use super::procfs::{Fence, ProcRoot};
use super::sampler::Sampler;
use super::task::{QUEUED_SAMPLES, SETTLE_DEADLINE, Task};
use super::tracer::{Scope, TracerKind};
use crate::tasks::TaskGroup;

/// Observations under way. Each death of a child is one.
const QUEUED_REQUESTS: usize = 256;

/// Questions under way: one for the step, and one for each service or kernel that dies at the same time.
const QUEUED_QUESTIONS: usize = 64;

/// Tells under way; storms are summed up before.
const QUEUED_TELLS: usize = 64;

/// What is told to whoever runs the monitor.
#[derive(Debug, Clone, PartialEq)]
pub enum Tell {
    /// By which means kills are seen from now on.
    Watching(Watching),
    /// About kills.
    Notice(Notice),
    /// All kills that happened before [`Monitor::settle`] was called with this number have been told.
    Settled(u64),
    /// The agent says that there was a kill, and neither a tracer nor a counter knows better.
    Unconfirmed,
}

/// By which means kills are seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Watching {
    /// The means.
    pub tracer: TracerKind,
    /// Why not the better one.
    pub why_not_bpf: Option<String>,
    /// Whose processes.
    pub scope: Scope,
}

/// What is said to the monitor.
#[derive(Debug)]
pub(super) enum Request {
    /// The agent says that there was a kill.
    ToldOfKill,
    /// A process has ended and is about to be waited for.
    Died(Death),
    /// The same, when there was no room to look at it.
    DiedUnseen { pid: u32, end: End },
}

/// What is asked of the monitor; answered once all kills up to now are told.
#[derive(Debug)]
pub(super) enum Question {
    /// Just that.
    Settle(u64),
    /// Why a process got SIGKILL.
    Explain { whose: SigkillOf, answer: oneshot::Sender<SigkillCause> },
}

/// A running monitor.
#[derive(Debug)]
pub struct Monitor {
    requests: mpsc::Sender<Request>,
    questions: mpsc::Sender<Question>,
    /// Where processes are shown under our numbers.
    proc: ProcRoot,
    charge: Arc<OwnCharge>,
    /// Nobody else tells how processes end.
    is_evidence: Arc<AtomicBool>,
}

impl Monitor {
    /// Starts the monitor; what it tells comes from the receiver.
    ///
    /// # Errors
    /// When the sampler's thread cannot be started.
    pub fn start(means: Means, tasks: &TaskGroup) -> std::io::Result<(Self, mpsc::Receiver<Tell>)> {
        let (tells, told) = mpsc::channel(QUEUED_TELLS);
        let (requests, requested) = mpsc::channel(QUEUED_REQUESTS);
        let (questions, asked) = mpsc::channel(QUEUED_QUESTIONS);
        let (sampled, samples) = mpsc::channel(QUEUED_SAMPLES);
        let has_our_numbers = means.view.has_our_numbers();
        if let Some(problem) = means.proc_problem() {
            tracing::warn!("{problem}");
        }
        let present: Box<dyn Present> = match means.proc.clone().filter(|_| has_our_numbers) {
            Some(proc) => Box::new(proc),
            None => Box::new(Unknown),
        };
        let proc = if has_our_numbers { ProcRoot::default() } else { ProcRoot::of_nobody() };
        let charge = Arc::new(OwnCharge::open(means.cgroup.as_ref()));
        let sampler = means
            .proc
            .map(|_| Sampler::start(proc.clone(), means.fence, Arc::clone(&charge), Sampler::INTERVAL, sampled))
            .transpose()?;
        let is_evidence = Arc::new(AtomicBool::new(false));
        let mut engine = Engine::new(clock::time_of_day(0), present);
        if let Some(reason) = means.view.why_unattributed() {
            engine.view_is_partial(reason);
        }
        let task =
            Task::new(engine, sampler, tells, means.cgroup, means.scope, Arc::clone(&charge), Arc::clone(&is_evidence));
        tasks.spawn("oom monitor", task.run(means.tracer, samples, requested, asked));
        Ok((Self { requests, questions, proc, charge, is_evidence }, told))
    }

    /// Passes on that the agent knows of a kill. Where nothing better is known that is a reason to look.
    pub fn told_of_kill(&self) {
        // A full queue holds the same already.
        let _ = self.requests.try_send(Request::ToldOfKill);
    }

    /// Asks for [`Tell::Settled`] once every kill up to now has been told; `false` when the monitor is too busy to be asked.
    #[must_use]
    pub fn settle(&self, number: u64) -> bool {
        self.questions.try_send(Question::Settle(number)).is_ok()
    }

    /// Where to say how processes have ended.
    #[must_use]
    pub fn deaths(&self) -> Deaths {
        Deaths {
            requests: self.requests.clone(),
            proc: self.proc.clone(),
            charge: Arc::clone(&self.charge),
            is_evidence: Arc::clone(&self.is_evidence),
        }
    }

    /// Where to ask why processes got SIGKILL.
    #[must_use]
    pub fn causes(&self) -> SigkillCauses {
        SigkillCauses(self.questions.clone())
    }

    /// What is charged to us: what has time waits until there is room.
    #[must_use]
    pub(crate) fn charge(&self) -> Arc<OwnCharge> {
        Arc::clone(&self.charge)
    }
}

/// Where it is said how processes have ended. Without a tracer that is evidence.
#[derive(Debug, Clone)]
pub struct Deaths {
    requests: mpsc::Sender<Request>,
    /// Where a child that has ended is still shown.
    proc: ProcRoot,
    charge: Arc<OwnCharge>,
    is_evidence: Arc<AtomicBool>,
}

impl Deaths {
    /// Passes on how a process that nobody has waited for yet has ended. Does not wait.
    pub fn tell(&self, pid: u32, by_sigkill: bool) {
        if !self.is_evidence.load(Ordering::Relaxed) {
            return;
        }
        let end = if by_sigkill { End::Killed } else { End::Other };
        // Only then may it be the moment after a kill.
        let request = if by_sigkill && self.charge.is_short() {
            Some(Request::DiedUnseen { pid, end })
        } else {
            self.proc.death_of(pid, end, clock::boot_ns()).map(Request::Died)
        };
        // A storm that fills the queue is told as one anyway.
        let _ = request.map(|request| self.requests.try_send(request));
    }
}

/// Where to ask why a process got SIGKILL.
#[derive(Debug, Clone)]
pub struct SigkillCauses(mpsc::Sender<Question>);

impl SigkillCauses {
    /// Why that process got SIGKILL, once all that happened before this call is known. `None` when the monitor is gone or
    /// too busy.
    pub async fn find(&self, whose: SigkillOf) -> Option<SigkillCause> {
        let (answer, cause) = oneshot::channel();
        self.0.try_send(Question::Explain { whose, answer }).ok()?;
        timeout(2 * SETTLE_DEADLINE, cause).await.ok()?.ok()
    }
}

impl Present for ProcRoot {
    fn has(&self, process: ProcessKey) -> bool {
        Self::has(self, process)
    }

    fn sizes(&self, process: ProcessKey) -> Option<Sizes> {
        self.sizes_of(process)
    }

    fn is_charged(&self, process: ProcessKey, cgroup: &CgroupFacts) -> bool {
        self.lets_in(process.pid, &Fence::around(cgroup.version, &cgroup.path))
    }
}

/// Where processes are numbered otherwise, nobody can be looked up.
struct Unknown;

impl Present for Unknown {
    fn has(&self, _: ProcessKey) -> bool {
        true
    }

    fn sizes(&self, _: ProcessKey) -> Option<Sizes> {
        None
    }

    fn is_charged(&self, _: ProcessKey, _: &CgroupFacts) -> bool {
        false
    }
}
