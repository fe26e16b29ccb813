//! The monitor at work: one task that owns the [`Engine`], fed by a tracer, a sampler and whoever asks.
//!
//! ```text
//!  loader thread ─Attached─▶ reader task ─batches─▶┐
//!  sampler thread ─────────────────────Snapshot──▶ │ this task ─Notice─▶ session, or `krunner monitor`
//!  the agent's word ────────────────────Request──▶ ┘
//! ```
//!
//! It starts with snapshots and goes over to the tracer when that is attached. It never waits for `/proc`:
//! reading there may block on a process that the kernel is about to kill.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use nix::unistd::read;
use serde::Serialize;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::cgroup::counter::KillCounter;
use super::cgroup::{Cgroup, CgroupFacts};
use super::clock;
use super::engine::{Engine, Notice, Present, is_of_interest};
use super::event::{Death, ProcessKey, Trace, TraceEvent};
use super::means::Means;
use super::process::End;
use super::procfs::{Fence, ProcRoot};
use super::sampler::{Sample, Sampler};
use super::tracer::{Loading, Scope, TracerKind};
use crate::sys;
use crate::tasks::TaskGroup;

/// Batches under way from the tracer; a full channel makes records wait in the ring.
const QUEUED_BATCHES: usize = 16;

/// A snapshot is large, and an older one of no use. A beat of the sampler may bring two samples.
const QUEUED_SAMPLES: usize = 2;

/// What somebody may say about kills; more is said of a kill than this only if it is said again.
const QUEUED_REQUESTS: usize = 256;

/// Tells under way; storms are summed up before.
const QUEUED_TELLS: usize = 64;

/// How often time passes for the engine while something waits for it.
const BUSY_TICK: Duration = Duration::from_millis(1);

/// And while nothing does: for what is kept by age.
const IDLE_TICK: Duration = Duration::from_millis(250);

/// What is told to whoever runs the monitor.
#[derive(Debug, Clone, PartialEq)]
pub enum Tell {
    /// By which means kills are seen from now on.
    Watching(Watching),
    /// About kills.
    Notice(Notice),
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

/// A running monitor.
#[derive(Debug)]
pub struct Monitor {
    requests: mpsc::Sender<Request>,
    /// Nobody else tells how processes end.
    is_evidence: Arc<AtomicBool>,
}

/// Where it is said how processes have ended. Without a tracer that is evidence.
#[derive(Debug, Clone)]
pub struct Deaths {
    requests: mpsc::Sender<Request>,
    /// Where a child that has ended is still shown.
    proc: ProcRoot,
    is_evidence: Arc<AtomicBool>,
}

/// What is said to the monitor.
#[derive(Debug)]
enum Request {
    /// The agent says that there was a kill.
    ToldOfKill,
    /// Somebody is about to wait for a process that has ended.
    Died(Death),
}

impl Monitor {
    /// Starts the monitor; what it tells comes from the receiver.
    ///
    /// # Errors
    /// When the sampler's thread cannot be started.
    pub fn start(means: Means, tasks: &TaskGroup) -> std::io::Result<(Self, mpsc::Receiver<Tell>)> {
        let (tells, told) = mpsc::channel(QUEUED_TELLS);
        let (requests, asked) = mpsc::channel(QUEUED_REQUESTS);
        let (sampled, samples) = mpsc::channel(QUEUED_SAMPLES);
        let present: Box<dyn Present> = match means.proc.clone() {
            Some(proc) => Box::new(proc),
            None => Box::new(Unknown),
        };
        let sampler =
            means.proc.map(|proc| Sampler::start(proc, means.fence, Sampler::INTERVAL, sampled)).transpose()?;
        let is_evidence = Arc::new(AtomicBool::new(false));
        let task = Task {
            engine: Engine::new(booted_at(), present),
            sampler,
            tells,
            cgroup: means.cgroup,
            scope: means.scope,
            changes: None,
            is_evidence: Arc::clone(&is_evidence),
            forgotten: 0,
        };
        tasks.spawn("oom monitor", task.run(means.tracer, samples, asked, tasks.clone()));
        Ok((Self { requests, is_evidence }, told))
    }

    /// Passes on that the agent knows of a kill. Without a tracer that is a reason to look.
    pub fn told_of_kill(&self) {
        // A full queue holds the same already.
        let _ = self.requests.try_send(Request::ToldOfKill);
    }

    /// Where to say how processes have ended.
    #[must_use]
    pub fn deaths(&self) -> Deaths {
        let (requests, is_evidence) = (self.requests.clone(), Arc::clone(&self.is_evidence));
        Deaths { requests, proc: ProcRoot::default(), is_evidence }
    }
}

impl Deaths {
    /// Passes on how a process that nobody has waited for yet has ended. Does not wait.
    pub fn tell(&self, pid: u32, by_sigkill: bool) {
        if !self.is_evidence.load(Ordering::Relaxed) {
            return;
        }
        let end = if by_sigkill { End::Killed } else { End::Other };
        // A storm that fills the queue is told as one anyway.
        let death = self.proc.death_of(pid, end, clock::boot_ns());
        let _ = death.map(|death| self.requests.try_send(Request::Died(death)));
    }
}

impl Present for ProcRoot {
    fn has(&self, process: ProcessKey) -> bool {
        Self::has(self, process)
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

    fn is_charged(&self, _: ProcessKey, _: &CgroupFacts) -> bool {
        false
    }
}

struct Task {
    engine: Engine,
    sampler: Option<Sampler>,
    tells: mpsc::Sender<Tell>,
    cgroup: Option<Cgroup>,
    scope: Scope,
    /// Without a tracer: readable when a counter of the cgroup may have changed.
    changes: Option<AsyncFd<OwnedFd>>,
    is_evidence: Arc<AtomicBool>,
    /// As was told last.
    forgotten: u64,
}

/// Whatever comes next.
enum Event {
    Batch(Vec<TraceEvent>),
    Sampled(Sample),
    Changed,
    Request(Request),
    Attached(Result<mpsc::Receiver<Vec<TraceEvent>>, String>),
    TracerEnded,
    Tick,
}

impl Task {
    async fn run(
        mut self,
        tracer: Result<Loading, String>,
        mut samples: mpsc::Receiver<Sample>,
        mut requests: mpsc::Receiver<Request>,
        tasks: TaskGroup,
    ) {
        let mut loading = Box::pin(attached(tracer, tasks));
        let mut is_loading = true;
        let mut batches: Option<mpsc::Receiver<Vec<TraceEvent>>> = None;
        let mut busy = interval(BUSY_TICK);
        busy.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut idle = interval(IDLE_TICK);
        idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                biased;
                batch = next(&mut batches) => batch.map_or(Event::TracerEnded, Event::Batch),
                Some(sampled) = samples.recv() => Event::Sampled(sampled),
                attached = &mut loading, if is_loading => Event::Attached(attached),
                () = changed(self.changes.as_ref()) => Event::Changed,
                Some(request) = requests.recv() => Event::Request(request),
                _ = busy.tick(), if self.engine.is_busy(clock::boot_ns()) => Event::Tick,
                _ = idle.tick() => Event::Tick,
            };
            match event {
                Event::Attached(attached) => {
                    is_loading = false;
                    let why_not = attached.as_ref().err().cloned();
                    batches = attached.ok();
                    self.watch_without_tracer(batches.is_none());
                    // Who came while the programs were being loaded has been told by nobody.
                    if let Some(sampler) = self.sampler.as_ref().filter(|_| batches.is_some()) {
                        sampler.scan_now();
                    }
                    self.tell_watching(batches.is_some(), why_not).await;
                }
                Event::TracerEnded => {
                    batches = None;
                    self.watch_without_tracer(true);
                    self.tell_watching(false, Some("the tracer's task has ended".to_owned())).await;
                }
                other => self.handle(other, batches.is_some()),
            }
            for notice in self.engine.take_notices() {
                if self.tells.send(Tell::Notice(notice)).await.is_err() {
                    return;
                }
            }
        }
    }

    fn handle(&mut self, event: Event, traced: bool) {
        let now_ns = clock::boot_ns();
        let look = match event {
            Event::Batch(batch) => {
                let mut look = false;
                for event in &batch {
                    let figures = self.figures(event);
                    look |= self.engine.trace(event, figures, now_ns);
                }
                look
            }
            Event::Sampled(sample) => self.sampled(sample, now_ns),
            Event::Request(Request::ToldOfKill) => !traced && self.engine.told_of_kill(now_ns),
            Event::Request(Request::Died(death)) => {
                self.engine.died(&death, now_ns);
                false
            }
            Event::Changed => {
                if let Some(sampler) = &self.sampler {
                    sampler.beat_now();
                }
                false
            }
            Event::Tick | Event::Attached(_) | Event::TracerEnded => {
                self.engine.tick(now_ns);
                false
            }
        };
        if let Some(sampler) = self.sampler.as_ref().filter(|_| look) {
            sampler.scan_now();
        }
    }

    /// Returns whether to look at `/proc` now.
    fn sampled(&mut self, sample: Sample, now_ns: u64) -> bool {
        match sample {
            Sample::Snapshot(snapshot) => {
                self.engine.snapshot(&snapshot, now_ns);
                let forgotten = self.engine.forgotten();
                if forgotten > self.forgotten {
                    tracing::debug!("{} processes were forgotten for want of room", forgotten - self.forgotten);
                    self.forgotten = forgotten;
                }
                false
            }
            Sample::Glance(glance) => {
                self.engine.glance(&glance, now_ns);
                false
            }
            Sample::Counted { count, since_boot_ns, at_boot_ns } => {
                self.engine.counted(count, since_boot_ns, at_boot_ns)
            }
        }
    }

    /// Counters and glances stand in for a tracer, or no more.
    fn watch_without_tracer(&mut self, without: bool) {
        self.is_evidence.store(without, Ordering::Relaxed);
        let Some(sampler) = &self.sampler else { return };
        if without {
            // Where the kernel does not tell, the sampler's beat is all there is.
            let changes = self.cgroup.as_ref().filter(|cgroup| cgroup.version == 2).and_then(changes_of);
            self.changes = changes;
            sampler.watch(self.cgroup.clone());
        } else {
            self.changes = None;
            sampler.rest();
        }
    }

    /// The victim's cgroup, read before the victim is gone.
    fn figures(&self, event: &TraceEvent) -> Option<CgroupFacts> {
        let Trace::Kill(kill) = &event.what else { return None };
        let cgroup = self.cgroup.as_ref().filter(|_| is_of_interest(kill))?;
        let facts = cgroup.facts_of_pid(kill.victim.pid);
        // One that has exited is in the root cgroup by then. Of the whole machine it need not have been in ours.
        if self.scope == Scope::All {
            return facts.filter(|facts| facts.path != "/");
        }
        let is_ours = |facts: &CgroupFacts| facts.path.starts_with(&cgroup.path);
        Some(facts.filter(is_ours).unwrap_or_else(|| cgroup.facts()))
    }

    async fn tell_watching(&self, traced: bool, why_not_bpf: Option<String>) {
        let tracer = if traced { TracerKind::Bpf } else { TracerKind::Snapshot };
        // Fails when nobody listens any more; the next notice ends the task then.
        let _ = self.tells.send(Tell::Watching(Watching { tracer, why_not_bpf, scope: self.scope })).await;
    }
}

/// Waits for the loader and starts the reader; `Err` with why there is no tracer.
async fn attached(
    tracer: Result<Loading, String>,
    tasks: TaskGroup,
) -> Result<mpsc::Receiver<Vec<TraceEvent>>, String> {
    let attached = tracer?.attached().await?;
    let (events, batches) = mpsc::channel(QUEUED_BATCHES);
    tasks.spawn("oom tracer", async move {
        if let Err(error) = attached.read(events).await {
            tracing::error!("the ring buffer of the OOM tracer cannot be read: {error}");
        }
    });
    Ok(batches)
}

fn changes_of(cgroup: &Cgroup) -> Option<AsyncFd<OwnedFd>> {
    let inotify = KillCounter::changes(cgroup).inspect_err(|error| {
        tracing::debug!("the kernel does not tell when the cgroup's counters change ({error}): they are read in turns");
    });
    sys::readable(inotify.ok()?.into()).ok()
}

/// Waits until something has changed, and takes note.
async fn changed(changes: Option<&AsyncFd<OwnedFd>>) {
    /// One event has 16 bytes (inotify(7)); which they are does not matter.
    const EVENTS_BYTES: usize = 1024;
    let Some(changes) = changes else { return std::future::pending().await };
    let Ok(mut ready) = changes.readable().await else { return std::future::pending().await };
    while read(changes.get_ref(), &mut [0; EVENTS_BYTES]).is_ok_and(|bytes| bytes == EVENTS_BYTES) {}
    ready.clear_ready();
}

async fn next(batches: &mut Option<mpsc::Receiver<Vec<TraceEvent>>>) -> Option<Vec<TraceEvent>> {
    match batches {
        Some(batches) => batches.recv().await,
        None => std::future::pending().await,
    }
}

fn booted_at() -> SystemTime {
    clock::time_of_day(0)
}
