//! The sampler thread: scans `/proc` and reads the memory cgroup's counters.
//!
//! It is a separate thread because reading `/proc/PID` may block on a lock held by that process, and takes milliseconds
//! on hosts with thousands of processes. It scans periodically (see `schedule`); the more expensive a scan, the later
//! the next one. A scan requested with [`Sampler::scan_now`] starts immediately and reads all processes, including idle
//! ones, at most once per [`SHORTEST_PAUSE`].
//!
//! ```text
//!            ┌──────────── pause is over, or scan_now ────────────┐
//!            ▼                                                    │
//!  start ─▶ scan ─▶ send (blocks while the channel is full) ───────▶ pause ─▶ Sampler dropped: end
//!                        └─ receiver closed: end               ▲     │ fallback: ticks
//!                                                              └─────┘ counters, partial scan
//! ```
//!
//! In *fallback* mode, that is without a tracer, each tick reads the counters, new processes and growing processes
//! (`procfs::partial_scan`). Ticks are timed to come before the remaining memory can be filled ([`TickMode::tick_interval`]):
//! four per second with gigabytes of headroom, one every 5 ms with little. When half of the headroom at the last scan
//! is used up, all processes are scanned. While the machine's tracer delivers kills, ticks are rarer ([`TickMode`]).
//!
//! If there are too many processes to read them all before an OOM report is due (`procfs::many_processes`), a requested
//! scan first reads only likely victims, and reads the others [`WHOLE_SCAN_DELAY`] later; when memory runs out,
//! processes are read in turns. A request interrupts a running scan.
//!
//! Only this thread blocks on a full channel, never the receiver. Everything it sends is timestamped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{io, thread};

use tokio::sync::mpsc;

use super::cgroup::charge::{Hold, OwnCharge};
use super::cgroup::counter::KillCounter;
use super::procfs::{ProcRoot, Scanner};
use super::schedule::{CpuBudget, LONGEST_TICK, RUNNING_OUT_SHARE, TickMode, scan_pause};
use crate::monitor::model::cgroup::CgroupFilter;
use crate::monitor::model::clock;
use crate::monitor::model::process::{PartialScan, Snapshot};

/// Minimum time between requested scans. Requests within it share one scan.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// With many processes: delay from the victim scan to the full scan. Most OOM kills are attributed by then.
const WHOLE_SCAN_DELAY: Duration = Duration::from_millis(100);

/// With many processes, requested full scans may use 1 / this of one CPU.
const WHOLE_SCAN_SHARE: u32 = 10;

/// The call stack is shallow. The default of 2 MiB would be most of our address space.
const STACK_BYTES: usize = 128 * 1024;

/// Capacity of the command channel. Dropped requests are repeated if still needed.
const QUEUED_COMMANDS: usize = 8;

/// What the thread sends to the monitor task.
#[derive(Debug)]
pub(in crate::monitor) enum SamplerEvent {
    /// A scan of all processes.
    Snapshot(Snapshot),
    /// New, growing or likely killed processes.
    PartialScan(PartialScan),
    /// The counter of OOM kills has increased, or has been read for the first time.
    Counted,
}

/// Commands to the thread.
#[derive(Debug)]
enum SamplerCommand {
    Scan,
    ScanIfFewProcesses,
    Tick,
    /// A [`ModeChange`] is pending.
    ModeChanged,
}

/// Switches the fallback on or off.
#[derive(Debug)]
enum ModeChange {
    /// No tracer is attached: infer OOM kills from these counters.
    EnableFallback(Arc<Mutex<KillCounter>>),
    /// A tracer is attached.
    DisableFallback,
}

/// The mode to switch to. It bypasses the command channel, which may be full.
type PendingMode = Arc<Mutex<Option<ModeChange>>>;

/// Handle of the thread, which ends when this is dropped.
#[derive(Debug)]
pub(in crate::monitor) struct Sampler {
    commands: SyncSender<SamplerCommand>,
    pending_mode: PendingMode,
    is_paused: Arc<AtomicBool>,
    /// A tick is already queued. More of them would fill the command channel.
    is_tick_queued: Arc<AtomicBool>,
    /// A scan was requested: a running scan may be abandoned.
    is_urgent: Arc<AtomicBool>,
    is_standing_by: Arc<AtomicBool>,
}

impl Sampler {
    /// Time between scans unless they are expensive; the Python runner's interval.
    pub(in crate::monitor) const INTERVAL: Duration = Duration::from_secs(2);

    /// Starts scanning, at once and then every `interval`.
    ///
    /// # Errors
    /// If the root cannot be opened or the thread cannot be started.
    pub(in crate::monitor) fn start(
        root: ProcRoot,
        cgroup_filter: Option<CgroupFilter>,
        charge: Arc<OwnCharge>,
        interval: Duration,
        samples: mpsc::Sender<SamplerEvent>,
    ) -> io::Result<Self> {
        let is_paused = Arc::new(AtomicBool::new(false));
        let is_tick_queued = Arc::new(AtomicBool::new(false));
        let tick_taken = Arc::clone(&is_tick_queued);
        let pending_mode = PendingMode::default();
        let thread_mode = Arc::clone(&pending_mode);
        let is_urgent = Arc::new(AtomicBool::new(false));
        let urgent = Arc::clone(&is_urgent);
        let is_standing_by = Arc::new(AtomicBool::new(false));
        let standing_by = Arc::clone(&is_standing_by);
        let hold = Hold::new(Arc::clone(&is_paused), Arc::clone(&charge));
        let scanner = Scanner::new(root, cgroup_filter)?.held_by(hold).interrupted_by(Arc::clone(&is_urgent));
        let (commands, received) = sync_channel(QUEUED_COMMANDS);
        let run = move || {
            // `ReceiverClosed` needs no handling: the monitor task is gone.
            let thread_state = SamplerThread::new(scanner, charge, interval, samples, tick_taken, urgent, standing_by);
            let _ = thread_state.run(&received, &thread_mode);
        };
        thread::Builder::new().name("oom-sampler".into()).stack_size(STACK_BYTES).spawn(run)?;
        Ok(Self { commands, pending_mode, is_paused, is_tick_queued, is_urgent, is_standing_by })
    }

    /// Pauses or resumes the thread: while paused it opens no files. A pause times out, see [`Hold`].
    pub(in crate::monitor) fn pause(&self, is_paused: bool) {
        self.is_paused.store(is_paused, Ordering::Relaxed);
    }

    /// Requests a scan that begins after this call. Does not block.
    pub(in crate::monitor) fn scan_now(&self) {
        self.is_urgent.store(true, Ordering::Relaxed);
        self.send_command(SamplerCommand::Scan);
    }

    /// Requests a full scan that does not interrupt a running one. Ignored if there are many processes. Does not block.
    pub(in crate::monitor) fn scan_soon(&self) {
        self.send_command(SamplerCommand::ScanIfFewProcesses);
    }

    /// Requests a tick because a counter may have changed. Does not block.
    pub(in crate::monitor) fn tick_now(&self) {
        if !self.is_tick_queued.swap(true, Ordering::Relaxed) {
            self.send_command(SamplerCommand::Tick);
        }
    }

    /// In fallback mode: whether the machine's tracer delivers kills, so that ticks may be rare.
    pub(in crate::monitor) fn stand_by(&self, is_standing_by: bool) {
        self.is_standing_by.store(is_standing_by, Ordering::Relaxed);
        if !is_standing_by {
            self.scan_now();
            self.tick_now();
        }
    }

    /// Switches to fallback mode.
    pub(in crate::monitor) fn enable_fallback(&self, counter: Arc<Mutex<KillCounter>>) {
        self.change(ModeChange::EnableFallback(counter));
    }

    /// Leaves fallback mode, because a tracer is attached.
    pub(in crate::monitor) fn disable_fallback(&self) {
        self.change(ModeChange::DisableFallback);
    }

    fn change(&self, mode: ModeChange) {
        *self.pending_mode.lock().unwrap_or_else(PoisonError::into_inner) = Some(mode);
        // If the channel is full, the thread checks the pending mode with the next command.
        self.send_command(SamplerCommand::ModeChanged);
    }

    fn send_command(&self, command: SamplerCommand) {
        // Full: enough commands are queued. Disconnected: the thread has ended.
        let _ = self.commands.try_send(command);
    }
}

/// The monitor task has dropped its receiver.
struct ReceiverClosed;

/// State of the thread.
struct SamplerThread {
    scanner: Scanner,
    charge: Arc<OwnCharge>,
    interval: Duration,
    samples: mpsc::Sender<SamplerEvent>,
    is_tick_queued: Arc<AtomicBool>,
    is_urgent: Arc<AtomicBool>,
    is_standing_by: Arc<AtomicBool>,
    /// With many processes: when to scan for victims.
    next_victim_scan: Option<Instant>,
    last_victim_scan: Instant,
    /// Set in fallback mode.
    fallback: Option<FallbackState>,
    was_error_logged: bool,
    next_scan: Instant,
    last_scan: Instant,
    last_cost: Duration,
    is_scan_asked: bool,
    /// A scan read every process, and no tick followed yet.
    was_scanned: bool,
}

/// State of fallback mode.
struct FallbackState {
    counter: Arc<Mutex<KillCounter>>,
    was_announced: bool,
    last_tick: Instant,
    next_tick: Instant,
    budget: CpuBudget,
    /// `None` if unknown.
    headroom_bytes: Option<u64>,
    /// Headroom at the last scan.
    scanned_headroom_bytes: u64,
}

impl SamplerThread {
    fn new(
        scanner: Scanner,
        charge: Arc<OwnCharge>,
        interval: Duration,
        samples: mpsc::Sender<SamplerEvent>,
        is_tick_queued: Arc<AtomicBool>,
        is_urgent: Arc<AtomicBool>,
        is_standing_by: Arc<AtomicBool>,
    ) -> Self {
        let now = Instant::now();
        Self {
            scanner,
            charge,
            interval,
            samples,
            is_tick_queued,
            is_urgent,
            is_standing_by,
            next_victim_scan: None,
            last_victim_scan: now,
            fallback: None,
            was_error_logged: false,
            next_scan: now,
            last_scan: now,
            last_cost: Duration::ZERO,
            is_scan_asked: false,
            was_scanned: false,
        }
    }

    fn run(mut self, commands: &Receiver<SamplerCommand>, pending_mode: &PendingMode) -> Result<(), ReceiverClosed> {
        self.scan(false)?;
        loop {
            let mode = pending_mode.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(mode) = mode {
                self.change_mode(mode)?;
            }
            let tick = self.fallback.as_ref().map(|fallback| fallback.next_tick);
            let due = [tick, self.next_victim_scan].into_iter().flatten().fold(self.next_scan, Instant::min);
            match commands.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(SamplerCommand::Scan) => self.plan_scan(),
                Ok(SamplerCommand::ScanIfFewProcesses) if !self.scanner.has_many_processes() => self.plan_scan(),
                Ok(SamplerCommand::ScanIfFewProcesses | SamplerCommand::ModeChanged) => {}
                Err(RecvTimeoutError::Timeout) if self.next_victim_scan.is_some_and(|at| at <= Instant::now()) => {
                    self.find_killed()?;
                }
                Err(RecvTimeoutError::Timeout) if self.next_scan <= Instant::now() => {
                    self.scan(self.is_scan_asked)?;
                }
                Err(RecvTimeoutError::Timeout) => self.tick()?,
                Ok(SamplerCommand::Tick) => {
                    self.is_tick_queued.store(false, Ordering::Relaxed);
                    // At the limit, ticks may be requested back to back.
                    if self.next_scan <= Instant::now() {
                        self.scan(self.is_scan_asked)?;
                    }
                    self.tick()?;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn change_mode(&mut self, mode: ModeChange) -> Result<(), ReceiverClosed> {
        match mode {
            ModeChange::EnableFallback(counter) => {
                self.scanner.set_tracking(true);
                self.fallback = Some(FallbackState::start(counter));
                self.tick()
            }
            ModeChange::DisableFallback => {
                self.scanner.set_tracking(false);
                self.fallback = None;
                Ok(())
            }
        }
    }

    /// Schedules a requested scan.
    fn plan_scan(&mut self) {
        self.is_urgent.store(false, Ordering::Relaxed);
        let is_first = !std::mem::replace(&mut self.is_scan_asked, true);
        if !self.scanner.has_many_processes() {
            if is_first {
                self.next_scan = self.next_scan.min(self.last_scan + SHORTEST_PAUSE);
            }
            return;
        }
        let search = Instant::now().max(self.last_victim_scan + SHORTEST_PAUSE);
        self.next_victim_scan.get_or_insert(search);
        let pause = WHOLE_SCAN_DELAY.max(self.last_cost * WHOLE_SCAN_SHARE);
        self.next_scan = (self.last_scan + pause).max(search + WHOLE_SCAN_DELAY);
    }

    /// With many processes: most victims are found without a full scan.
    fn find_killed(&mut self) -> Result<(), ReceiverClosed> {
        self.next_victim_scan = None;
        if self.is_stuck() {
            return Ok(());
        }
        let partial_scan = self.scanner.find_killed();
        if let Some(partial_scan) = self.seen(partial_scan) {
            self.send(SamplerEvent::PartialScan(partial_scan))?;
        }
        self.last_victim_scan = Instant::now();
        Ok(())
    }

    fn scan(&mut self, everybody: bool) -> Result<(), ReceiverClosed> {
        if self.is_stuck() {
            self.next_scan = Instant::now() + LONGEST_TICK;
            return Ok(());
        }
        // This scan satisfies the request, unless it is partial.
        self.is_scan_asked &= !everybody;
        let scan = if everybody { self.scanner.scan() } else { self.scanner.scan_in_turns() };
        let scan = scan.inspect(|snapshot| self.scanner.track_growing(&snapshot.processes));
        if scan.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
            // Handle the request first, then restart the scan.
            self.is_scan_asked |= everybody;
            self.next_scan = Instant::now() + WHOLE_SCAN_DELAY;
            return Ok(());
        }
        self.last_cost = Duration::ZERO;
        if let Some(snapshot) = self.seen(scan) {
            self.last_cost = snapshot.cost.cpu;
            self.was_scanned = !self.scanner.has_many_processes();
            self.send(SamplerEvent::Snapshot(snapshot))?;
        }
        self.last_scan = Instant::now();
        let pause = if self.is_scan_asked { SHORTEST_PAUSE } else { scan_pause(self.interval, self.last_cost) };
        self.next_scan = self.last_scan + pause;
        if let Some(fallback) = &mut self.fallback {
            fallback.scanned_headroom_bytes = fallback.headroom_bytes.unwrap_or(u64::MAX);
        }
        Ok(())
    }

    /// Reads the counters and the new and growing processes.
    fn tick(&mut self) -> Result<(), ReceiverClosed> {
        let is_stuck = self.is_stuck();
        let mode = if self.is_standing_by.load(Ordering::Relaxed) { TickMode::StandBy } else { TickMode::Infer };
        let Some(fallback) = &mut self.fallback else { return Ok(()) };
        if is_stuck {
            fallback.next_tick = Instant::now() + LONGEST_TICK;
            return Ok(());
        }
        let cpu_before = clock::thread_cpu();
        let (is_news, has_kills) = fallback.count(mode);
        let is_running_out = fallback.is_running_out();
        if is_news {
            self.send(SamplerEvent::Counted)?;
        }
        if has_kills {
            self.charge.block_until_room();
        }
        // In stand-by, scan and tick share a wake-up.
        let was_scanned = std::mem::take(&mut self.was_scanned) && self.last_scan.elapsed() < SHORTEST_PAUSE;
        if mode == TickMode::Infer || has_kills || is_running_out || !was_scanned {
            self.scan_partially()?;
        }
        let cost = clock::thread_cpu().saturating_sub(cpu_before);
        if is_running_out
            && !self.scanner.has_many_processes()
            && self.last_scan.elapsed() > self.last_cost * RUNNING_OUT_SHARE
        {
            self.scan(true)?;
        }
        if let Some(fallback) = &mut self.fallback {
            fallback.plan(mode, cost, self.next_scan);
        }
        Ok(())
    }

    fn scan_partially(&mut self) -> Result<(), ReceiverClosed> {
        let partial_scan = self.scanner.partial_scan();
        match self.seen(partial_scan) {
            Some(scan) if !(scan.processes.is_empty() && scan.absent.is_empty()) => {
                self.send(SamplerEvent::PartialScan(scan))
            }
            _ => Ok(()),
        }
    }

    /// A thread that allocates now blocks until memory is available, and may hold the allocator's lock meanwhile.
    fn is_stuck(&self) -> bool {
        self.charge.is_stuck()
    }

    /// Unwraps the result of a scan; logs an error once.
    fn seen<T>(&mut self, look: io::Result<T>) -> Option<T> {
        match look {
            Ok(seen) => {
                self.was_error_logged = false;
                Some(seen)
            }
            Err(error) => {
                // A lasting memory shortage is reported elsewhere.
                let is_short = error.raw_os_error() == Some(nix::libc::ENOMEM);
                if !is_short && !std::mem::replace(&mut self.was_error_logged, true) {
                    tracing::warn!("cannot list processes: {error}; process information is out of date");
                }
                None
            }
        }
    }

    fn send(&self, sample: SamplerEvent) -> Result<(), ReceiverClosed> {
        self.samples.blocking_send(sample).map_err(|_| ReceiverClosed)
    }
}

impl FallbackState {
    fn start(counter: Arc<Mutex<KillCounter>>) -> Self {
        Self {
            counter,
            was_announced: false,
            last_tick: Instant::now(),
            next_tick: Instant::now(),
            budget: CpuBudget::full(),
            headroom_bytes: None,
            scanned_headroom_bytes: u64::MAX,
        }
    }

    /// Reads the counters. Returns whether to notify the monitor task, and whether there are new OOM kills.
    fn count(&mut self, mode: TickMode) -> (bool, bool) {
        let reading = self.counter.lock().unwrap_or_else(PoisonError::into_inner).poll(mode);
        self.headroom_bytes = reading.headroom_bytes;
        // Memory was freed: restart from the new headroom.
        if let Some(headroom_bytes) = self.headroom_bytes.filter(|bytes| bytes / 2 > self.scanned_headroom_bytes) {
            self.scanned_headroom_bytes = headroom_bytes;
        }
        (!std::mem::replace(&mut self.was_announced, true) || reading.has_kills, reading.has_kills)
    }

    /// Schedules the next tick after one that used `cost` of CPU time. In stand-by, the thread wakes up once for a scan and a tick.
    fn plan(&mut self, mode: TickMode, cost: Duration, next_scan: Instant) {
        let now = Instant::now();
        let passed = now.duration_since(std::mem::replace(&mut self.last_tick, now));
        let put_off = self.budget.spend(cost, passed);
        let next_tick = now + mode.tick_interval(self.headroom_bytes).max(put_off.min(LONGEST_TICK));
        self.next_tick =
            if mode == TickMode::StandBy && next_scan > now { next_tick.min(next_scan) } else { next_tick };
    }

    fn is_running_out(&self) -> bool {
        self.headroom_bytes.is_some_and(|bytes| bytes < self.scanned_headroom_bytes / 2)
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
