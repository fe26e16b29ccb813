//! The monitor at work: one task that owns the [`Engine`], fed by a tracer, a sampler and whoever asks.
//!
//! ```text
//!  loader thread ─Attached─▶ ring buffer ─batches─▶┐
//!  sampler thread ─────────────────────Snapshot──▶ │ this task ─Tell─▶ session, or `krunner monitor`
//!  the session ────────────────────────Request───▶ ┘
//! ```
//!
//! It starts with snapshots and goes over to the tracer when that is attached. It never waits for `/proc`:
//! reading there may block on a process that the kernel is about to kill.
//!
//! **A question is a barrier.** The end of a step asks to be told of all kills before it ([`Request::Settle`]). What the kernel
//! said of them is in the ring buffer, or in the counter, before the parent of the killed process can wait for it. So both
//! are read when the question comes, and it is answered as soon as no kill is left that was seen and not told: at
//! once where there was none, after [`SETTLE_DEADLINE`] at the latest.
//!
//! **Hold.** From a kill where memory is short for us until the victim's memory is back nothing is opened here, and nothing told: see
//! `cgroup::charge`.

mod traced;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use nix::unistd::read;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval};

use super::cgroup::Cgroup;
use super::cgroup::charge::OwnCharge;
use super::cgroup::counter::KillCounter;
use super::clock;
use super::engine::{Engine, is_of_interest};
use super::event::{Trace, TraceEvent};
use super::handle::{Question, Request, Tell, Watching};
use super::sampler::{Sample, Sampler};
use super::tracer::{Loading, RingReader, Scope, TracerKind};
use crate::sys;
use traced::Traced;

/// A snapshot is large, and an older one of no use. A beat of the sampler may bring two samples.
pub(super) const QUEUED_SAMPLES: usize = 2;

/// How often time passes for the engine while something waits for it.
const BUSY_TICK: Duration = Duration::from_millis(1);

/// In v1 the kernel tells that memory has run out before it kills and counts: within a millisecond, or some more where
/// there are thousands of processes to choose from.
const COUNTED_AFTER_ALARM: Duration = Duration::from_millis(50);

/// And while nothing does: for what is kept by age.
const IDLE_TICK: Duration = Duration::from_millis(250);

/// How long a question waits for kills that were seen and cannot be told yet. A victim of some GiB takes a second to exit.
pub(super) const SETTLE_DEADLINE: Duration = Duration::from_secs(1);

pub(super) struct Task {
    engine: Engine,
    sampler: Option<Sampler>,
    tells: mpsc::Sender<Tell>,
    cgroup: Option<Cgroup>,
    scope: Scope,
    charge: Arc<OwnCharge>,
    /// Set while the tracer is attached.
    ring: Option<Box<RingReader>>,
    /// Set while the tracer is attached.
    traced: Option<Traced>,
    /// Without a tracer: the counter that the sampler reads too.
    counter: Option<Arc<Mutex<KillCounter>>>,
    /// Without a tracer: readable when a counter of the cgroup may have changed.
    changes: Option<AsyncFd<OwnedFd>>,
    is_evidence: Arc<AtomicBool>,
    questions: Vec<Pending>,
    /// The sampler has counted something and was reading the counter when it was to be taken.
    is_count_due: bool,
    /// Until then the counter is read at each tick.
    count_until_ns: u64,
    /// Until then the victim's memory is waited for.
    held_until_ns: Option<u64>,
    /// That nobody may be killed here was told.
    is_stuck: bool,
    /// As was told last.
    forgotten: u64,
}

/// A question that waits until all kills up to now are told.
struct Pending {
    question: Question,
    /// The counter still has to be read: the sampler was reading it.
    needs_count: bool,
    until_ns: u64,
}

/// Whatever comes next.
enum Event {
    Batch(Vec<TraceEvent>),
    Sampled(Sample),
    Changed,
    Request(Request),
    Question(Question),
    Attached(Result<Box<RingReader>, String>),
    TracerEnded(String),
    Tick,
}

impl Task {
    pub(super) fn new(
        engine: Engine,
        sampler: Option<Sampler>,
        tells: mpsc::Sender<Tell>,
        cgroup: Option<Cgroup>,
        scope: Scope,
        charge: Arc<OwnCharge>,
        is_evidence: Arc<AtomicBool>,
    ) -> Self {
        Self {
            engine,
            sampler,
            tells,
            cgroup,
            scope,
            charge,
            ring: None,
            traced: None,
            counter: None,
            changes: None,
            is_evidence,
            questions: Vec::new(),
            is_count_due: false,
            count_until_ns: 0,
            held_until_ns: None,
            is_stuck: false,
            forgotten: 0,
        }
    }

    pub(super) async fn run(
        mut self,
        tracer: Result<Loading, String>,
        mut samples: mpsc::Receiver<Sample>,
        mut requests: mpsc::Receiver<Request>,
        mut questions: mpsc::Receiver<Question>,
    ) {
        // Loading takes a while, and a kill may come sooner.
        self.watch_without_tracer(true);
        let mut loading = Box::pin(attached(tracer));
        let mut is_loading = true;
        let mut busy = interval(BUSY_TICK);
        busy.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut idle = interval(IDLE_TICK);
        idle.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_busy = self.is_busy();
            let event = tokio::select! {
                batch = next_batch(self.ring.as_deref_mut()) => batch.map_or_else(Event::TracerEnded, Event::Batch),
                Some(sampled) = samples.recv() => Event::Sampled(sampled),
                attached = &mut loading, if is_loading => Event::Attached(attached),
                () = changed(self.changes.as_ref()) => Event::Changed,
                Some(request) = requests.recv() => Event::Request(request),
                Some(question) = questions.recv() => Event::Question(question),
                _ = busy.tick(), if is_busy => Event::Tick,
                _ = idle.tick() => Event::Tick,
            };
            is_loading &= !matches!(event, Event::Attached(_));
            let is_more_to_read = matches!(&event, Event::Batch(batch) if RingReader::is_full(batch));
            self.handle(event).await;
            if !self.tell().await {
                return;
            }
            if is_more_to_read {
                // A flood of forks is not to keep the session from its other work.
                yield_now().await;
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.held_until_ns.is_some()
            || self.is_count_due
            || clock::boot_ns() < self.count_until_ns
            || !self.questions.is_empty()
            || self.engine.is_busy(clock::boot_ns())
    }

    async fn handle(&mut self, event: Event) {
        self.engine.set_booted_at(clock::time_of_day(0));
        match event {
            Event::Attached(attached) => {
                let why_not = attached.as_ref().err().cloned();
                self.ring = attached.ok();
                self.tracer_changed(why_not).await;
            }
            Event::TracerEnded(reason) => {
                tracing::error!("the ring buffer of the OOM tracer cannot be read: {reason}");
                self.ring = None;
                self.tracer_changed(Some(reason)).await;
            }
            Event::Batch(batch) => self.traced(&batch),
            Event::Sampled(sample) => self.sampled(sample),
            Event::Request(request) => self.requested(request).await,
            Event::Question(question) => self.ask(question),
            Event::Changed => {
                self.is_count_due = true;
                if self.cgroup.as_ref().is_some_and(|cgroup| cgroup.version == 1) {
                    self.count_until_ns = clock::boot_ns() + nanoseconds(COUNTED_AFTER_ALARM);
                }
                if let Some(sampler) = &self.sampler {
                    sampler.beat_now();
                }
            }
            Event::Tick => {
                if self.is_count_due || clock::boot_ns() < self.count_until_ns {
                    self.is_count_due = !self.count_now();
                }
                self.end_hold();
                self.compare_with_counter();
                self.watch_for_stuck();
                self.engine.tick(clock::boot_ns());
            }
        }
    }

    /// Passes on what is to be told, and answers those who waited for it; `false` when nobody listens any more.
    async fn tell(&mut self) -> bool {
        let answered = self.answerable();
        for notice in self.engine.take_notices() {
            if self.tells.send(Tell::Notice(notice)).await.is_err() {
                return false;
            }
        }
        for question in answered {
            match question {
                Question::Settle(number) => {
                    if self.tells.send(Tell::Settled(number)).await.is_err() {
                        return false;
                    }
                }
                Question::Explain { whose, answer } => {
                    let cause = self.engine.sigkill_cause(whose, self.ring.is_some(), clock::boot_ns());
                    // Whoever asked may have given up.
                    let _ = answer.send(cause);
                }
            }
        }
        true
    }

    /// Takes out the questions that can be answered now.
    fn answerable(&mut self) -> Vec<Question> {
        if self.questions.is_empty() {
            return Vec::new();
        }
        let now_ns = clock::boot_ns();
        if self.questions.iter().any(|question| question.needs_count) && self.count_now() {
            self.questions.iter_mut().for_each(|question| question.needs_count = false);
        }
        if self.questions.iter().any(|question| question.until_ns <= now_ns) {
            self.engine.report_now(now_ns);
        }
        let is_settled =
            !self.engine.has_unreported(now_ns) && !self.traced.as_ref().is_some_and(Traced::is_comparison_pending);
        let is_answerable = |pending: &mut Pending| pending.until_ns <= now_ns || is_settled && !pending.needs_count;
        self.questions.extract_if(.., is_answerable).map(|pending| pending.question).collect()
    }

    async fn requested(&mut self, request: Request) {
        let now_ns = clock::boot_ns();
        match request {
            Request::ToldOfKill => {
                if self.ring.is_some() || self.engine.is_counted() {
                    tracing::debug!(
                        "the agent reports an OOM kill; the tracer or the counter reports those that happened"
                    );
                    return;
                }
                // Fails when nobody listens any more; the next notice ends the task then.
                let _ = self.tells.send(Tell::Unconfirmed).await;
                let look = self.engine.told_of_kill(now_ns);
                self.scan_if(look);
            }
            Request::Died(death) => self.engine.died(&death, now_ns),
            Request::DiedUnseen { pid, end } => self.engine.died_unseen(pid, end, now_ns),
        }
    }

    /// Reads all that was said of kills up to now; the answer comes when all of it is told.
    fn ask(&mut self, question: Question) {
        self.read_all();
        let until_ns = clock::boot_ns().saturating_add(nanoseconds(SETTLE_DEADLINE));
        self.questions.push(Pending { question, needs_count: self.counter.is_some(), until_ns });
    }

    /// Takes in all that the tracer has now.
    fn read_all(&mut self) {
        let events = self.ring.as_mut().map_or_else(Vec::new, |ring| ring.read_all());
        self.traced(&events);
    }

    /// Without a tracer: reads the counter; `false` when the sampler is doing so.
    fn count_now(&mut self) -> bool {
        let Some(counter) = &self.counter else { return true };
        let count = match counter.try_lock() {
            Ok(mut counter) => counter.take(),
            Err(TryLockError::Poisoned(counter)) => counter.into_inner().take(),
            Err(TryLockError::WouldBlock) => return false,
        };
        if self.engine.counted(count) {
            match self.charge.patience() {
                Some(patience) => self.hold(patience, clock::boot_ns()),
                None => self.scan_if(true),
            }
        }
        true
    }

    fn traced(&mut self, batch: &[TraceEvent]) {
        let now_ns = clock::boot_ns();
        let mut look = false;
        for event in batch {
            self.begin_hold(event, now_ns);
            let figures = self.figures(event);
            let group = self.group_victim(event, figures.as_ref());
            if let Some(traced) = &mut self.traced {
                traced.saw(event, now_ns);
            }
            look |= self.engine.trace(event, figures, now_ns);
            if let Some(victim) = group {
                self.engine.killed_with_group(victim);
            }
        }
        self.scan_if(look);
    }

    fn sampled(&mut self, sample: Sample) {
        let now_ns = clock::boot_ns();
        match sample {
            Sample::Snapshot(snapshot) => {
                self.engine.snapshot(&snapshot, now_ns);
                let forgotten = self.engine.forgotten();
                if forgotten > self.forgotten {
                    tracing::debug!("{} processes were dropped from the history (full)", forgotten - self.forgotten);
                    self.forgotten = forgotten;
                }
            }
            Sample::Glance(glance) => self.engine.glance(&glance, now_ns),
            Sample::Counted => self.is_count_due = !self.count_now(),
        }
    }

    fn scan_if(&self, look: bool) {
        if let Some(sampler) = self.sampler.as_ref().filter(|_| look) {
            sampler.scan_now();
        }
    }

    /// At the first sign of a kill where memory is short for us.
    fn begin_hold(&mut self, event: &TraceEvent, now_ns: u64) {
        let is_kill = matches!(&event.what, Trace::Kill(kill) if is_of_interest(kill));
        if is_kill
            && self.held_until_ns.is_none()
            && let Some(patience) = self.charge.patience()
        {
            self.hold(patience, now_ns);
        }
    }

    /// From the first kill on: in a storm at the limit reports are not to wait for its end.
    fn hold(&mut self, patience: Duration, now_ns: u64) {
        self.held_until_ns.get_or_insert(now_ns.saturating_add(nanoseconds(patience)));
        self.engine.hold();
        self.pause_sampler(true);
    }

    /// When there is room again, or patience ends.
    fn end_hold(&mut self) {
        let Some(until_ns) = self.held_until_ns else { return };
        let now_ns = clock::boot_ns();
        if now_ns < until_ns && self.charge.is_short() {
            return;
        }
        self.held_until_ns = None;
        self.pause_sampler(false);
        let traced = &mut self.traced;
        let look = self.engine.resume(|cgroup_id| traced.as_mut()?.figures(cgroup_id), now_ns);
        self.scan_if(look);
    }

    /// Tells it once, until it is over.
    fn watch_for_stuck(&mut self) {
        let is_stuck = self.charge.is_stuck();
        if is_stuck && !self.is_stuck {
            self.engine.stuck();
        }
        self.is_stuck = is_stuck;
    }

    fn pause_sampler(&self, is_paused: bool) {
        if let Some(sampler) = &self.sampler {
            sampler.pause(is_paused);
        }
    }

    async fn tracer_changed(&mut self, why_not_bpf: Option<String>) {
        let traced = self.ring.is_some();
        self.traced = traced.then(|| {
            let may_open = self.held_until_ns.is_none() && !self.charge.is_short();
            Traced::start(self.cgroup.clone(), self.counter.clone(), may_open)
        });
        self.take_over_from_counter();
        self.watch_without_tracer(!traced);
        // Who came while the programs were being loaded has been told by nobody.
        self.scan_if(traced);
        let tracer = if traced { TracerKind::Bpf } else { TracerKind::Snapshot };
        // As above.
        let _ = self.tells.send(Tell::Watching(Watching { tracer, why_not_bpf, scope: self.scope })).await;
    }

    /// Counters and glances stand in for a tracer, or no more.
    fn watch_without_tracer(&mut self, without: bool) {
        self.is_evidence.store(without, Ordering::Relaxed);
        let Some(sampler) = &self.sampler else { return };
        if without {
            let counter = KillCounter::start(self.cgroup.clone());
            // Where the kernel does not tell, the sampler's beat is all there is.
            self.changes = match &self.cgroup {
                Some(cgroup) if cgroup.version == 2 => changes_of(cgroup),
                _ => counter.alarm().and_then(|alarm| sys::readable(alarm).ok()),
            };
            let counter = Arc::new(Mutex::new(counter));
            self.counter = Some(Arc::clone(&counter));
            sampler.watch(counter);
        } else {
            self.changes = None;
            self.counter = None;
            sampler.rest();
        }
    }
}

/// Waits for the loader; `Err` with why there is no tracer.
async fn attached(tracer: Result<Loading, String>) -> Result<Box<RingReader>, String> {
    let attached = tracer?.attached().await?;
    attached
        .into_reader()
        .map(Box::new)
        .map_err(|error| format!("the ring buffer of the OOM tracer cannot be read: {error}"))
}

fn changes_of(cgroup: &Cgroup) -> Option<AsyncFd<OwnedFd>> {
    let inotify = KillCounter::changes(cgroup).inspect_err(|error| {
        tracing::debug!("the kernel does not tell when the cgroup's counters change ({error}): they are polled");
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

async fn next_batch(ring: Option<&mut RingReader>) -> Result<Vec<TraceEvent>, String> {
    match ring {
        Some(ring) => ring.next().await.map_err(|error| error.to_string()),
        None => std::future::pending().await,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
