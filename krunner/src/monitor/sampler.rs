//! The thread that looks at `/proc`, and at the counters of the memory cgroup.
//!
//! A thread of its own, because reading there may block on a lock of the process that is looked at, and takes
//! milliseconds where there are thousands of processes. It scans every now and then, as `pace` says: after an expensive
//! scan the next one comes later. Asked for with [`Sampler::scan_now`], a scan
//! comes at once and reads everybody, the quiet ones too; there is at most one in each [`SHORTEST_PAUSE`].
//!
//! ```text
//!            ┌──────────── pause is over, or scan_now ────────────┐
//!            ▼                                                    │
//!  start ─▶ scan ─▶ hand over (waits while the reader has enough) ─▶ pause ─▶ Sampler dropped: end
//!                        └─ the reader is gone: end            ▲     │ watchful: beats
//!                                                              └─────┘ counters, glance
//! ```
//!
//! While no tracer tells of kills it is *watchful*: at each beat it reads the counters and looks at newcomers and those
//! who grow (`procfs::glance`). A beat comes before the memory that is left can be filled ([`beat`]): with gigabytes
//! to go four times a second, with little left every 5 ms. When half of what was left at the last scan is
//! used up, somebody grows: everybody is looked at.
//!
//! Where there are so many processes that reading them takes longer than a kill may wait (`procfs::crowd`), a scan that is
//! asked for begins with a look at those only who may have been killed; all others follow [`WHOLE_SCAN_DELAY`] later, and
//! when memory runs out nobody is read but in turns. A request interrupts a scan that is under way.
//!
//! Handing over waits on this thread only, never on the reader's; what is handed over carries its time.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::cgroup::charge::{Hold, OwnCharge};
use super::cgroup::counter::KillCounter;
use super::clock;
use super::pace::{Allowance, LONGEST_BEAT, RUNNING_OUT_SHARE, beat, pause};
use super::process::{Glance, Snapshot};
use super::procfs::{Fence, ProcRoot, Scanner};

/// Between a scan and the next one asked for. Who asks within it gets the same scan.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);

/// In a crowd, from the look for the killed to the scan of everybody: most kills have their name by then.
const WHOLE_SCAN_DELAY: Duration = Duration::from_millis(100);

/// In a crowd, scans of everybody that were asked for may take 1 / this of a processor.
const WHOLE_SCAN_SHARE: u32 = 10;

/// Reading a folder is the deepest it goes; the default of 2 MiB would be the larger part of our address space.
const STACK_BYTES: usize = 128 * 1024;

/// Orders under way: looks are asked for again if they are needed still.
const QUEUED_ORDERS: usize = 8;

/// What the thread sees.
#[derive(Debug)]
pub(super) enum Sample {
    /// Everybody.
    Snapshot(Snapshot),
    /// Some.
    Glance(Glance),
    /// That kills were counted, or whether they can be: the counter has the rest.
    Counted,
}

/// What it is told.
#[derive(Debug)]
enum Order {
    Scan,
    Beat,
    /// The [`Mode`] was changed.
    Mode,
}

/// Whether to be watchful.
#[derive(Debug)]
enum Mode {
    /// Nobody else tells of kills: be watchful, with these counters.
    Watch(Arc<Mutex<KillCounter>>),
    /// A tracer does.
    Rest,
}

/// The mode that is to be taken up: beside the orders, for which there may be no room.
type NextMode = Arc<Mutex<Option<Mode>>>;

/// The thread; ends when this is dropped.
#[derive(Debug)]
pub(super) struct Sampler {
    orders: SyncSender<Order>,
    next_mode: NextMode,
    is_paused: Arc<AtomicBool>,
    /// A beat was ordered and has not come: more of them would leave no room for other orders.
    is_beat_ordered: Arc<AtomicBool>,
    /// A scan was asked for: what is under way may be given up.
    is_urgent: Arc<AtomicBool>,
}

impl Sampler {
    /// Between scans, unless they are expensive: as the Python runner has it.
    pub(super) const INTERVAL: Duration = Duration::from_secs(2);

    /// Starts scanning, at once and then every `interval`.
    ///
    /// # Errors
    /// When the root cannot be opened or the thread not be started.
    pub(super) fn start(
        root: ProcRoot,
        fence: Option<Fence>,
        charge: Arc<OwnCharge>,
        interval: Duration,
        samples: mpsc::Sender<Sample>,
    ) -> io::Result<Self> {
        let is_paused = Arc::new(AtomicBool::new(false));
        let is_beat_ordered = Arc::new(AtomicBool::new(false));
        let beat_came = Arc::clone(&is_beat_ordered);
        let next_mode = NextMode::default();
        let ordered_mode = Arc::clone(&next_mode);
        let is_urgent = Arc::new(AtomicBool::new(false));
        let urgent = Arc::clone(&is_urgent);
        let hold = Hold::new(Arc::clone(&is_paused), Arc::clone(&charge));
        let scanner = Scanner::new(root, fence)?.held_by(hold).interrupted_by(Arc::clone(&is_urgent));
        let (orders, ordered) = sync_channel(QUEUED_ORDERS);
        let run = move || {
            // The reader has gone: nobody is there to be told.
            let lookout = Lookout::new(scanner, charge, interval, samples, beat_came, urgent);
            let _ = lookout.run(&ordered, &ordered_mode);
        };
        thread::Builder::new().name("oom-sampler".into()).stack_size(STACK_BYTES).spawn(run)?;
        Ok(Self { orders, next_mode, is_paused, is_beat_ordered, is_urgent })
    }

    /// Has the thread open nothing, or go on. A pause ends by itself, see [`Hold`].
    pub(super) fn pause(&self, is_paused: bool) {
        self.is_paused.store(is_paused, Ordering::Relaxed);
    }

    /// Asks for a scan that begins after this call. Does not wait.
    pub(super) fn scan_now(&self) {
        self.is_urgent.store(true, Ordering::Relaxed);
        self.order(Order::Scan);
    }

    /// Asks for a beat, because something has changed. Does not wait.
    pub(super) fn beat_now(&self) {
        if !self.is_beat_ordered.swap(true, Ordering::Relaxed) {
            self.order(Order::Beat);
        }
    }

    /// From now on nobody else tells of kills.
    pub(super) fn watch(&self, counter: Arc<Mutex<KillCounter>>) {
        self.change(Mode::Watch(counter));
    }

    /// From now on a tracer does.
    pub(super) fn rest(&self) {
        self.change(Mode::Rest);
    }

    fn change(&self, mode: Mode) {
        *self.next_mode.lock().unwrap_or_else(PoisonError::into_inner) = Some(mode);
        // Full: whichever order comes next has the thread look at the mode.
        self.order(Order::Mode);
    }

    fn order(&self, order: Order) {
        // Full: that many are waiting already. Disconnected: nobody reads any more.
        let _ = self.orders.try_send(order);
    }
}

/// The reader is gone.
struct Unheard;

/// The thread's own state.
struct Lookout {
    scanner: Scanner,
    charge: Arc<OwnCharge>,
    interval: Duration,
    samples: mpsc::Sender<Sample>,
    is_beat_ordered: Arc<AtomicBool>,
    is_urgent: Arc<AtomicBool>,
    /// In a crowd: when to look for the killed.
    next_search: Option<Instant>,
    last_search: Instant,
    /// While watchful.
    watch: Option<Watch>,
    complained: bool,
    next_scan: Instant,
    last_scan: Instant,
    last_cost: Duration,
    is_scan_asked: bool,
}

/// What being watchful takes.
struct Watch {
    counter: Arc<Mutex<KillCounter>>,
    is_told: bool,
    last_beat: Instant,
    next_beat: Instant,
    allowance: Allowance,
    /// None where that cannot be known.
    headroom_bytes: Option<u64>,
    /// At the last scan.
    scanned_headroom_bytes: u64,
}

impl Lookout {
    fn new(
        scanner: Scanner,
        charge: Arc<OwnCharge>,
        interval: Duration,
        samples: mpsc::Sender<Sample>,
        is_beat_ordered: Arc<AtomicBool>,
        is_urgent: Arc<AtomicBool>,
    ) -> Self {
        let now = Instant::now();
        Self {
            scanner,
            charge,
            interval,
            samples,
            is_beat_ordered,
            is_urgent,
            next_search: None,
            last_search: now,
            watch: None,
            complained: false,
            next_scan: now,
            last_scan: now,
            last_cost: Duration::ZERO,
            is_scan_asked: false,
        }
    }

    fn run(mut self, orders: &Receiver<Order>, next_mode: &NextMode) -> Result<(), Unheard> {
        self.scan(false)?;
        loop {
            let mode = next_mode.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(mode) = mode {
                self.take_up(mode)?;
            }
            let beat = self.watch.as_ref().map(|watch| watch.next_beat);
            let due = [beat, self.next_search].into_iter().flatten().fold(self.next_scan, Instant::min);
            match orders.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Order::Scan) => self.plan_scan(),
                Ok(Order::Mode) => {}
                Err(RecvTimeoutError::Timeout) if self.next_search.is_some_and(|at| at <= Instant::now()) => {
                    self.look_for_the_killed()?;
                }
                Err(RecvTimeoutError::Timeout) if self.next_scan <= Instant::now() => {
                    self.scan(self.is_scan_asked)?;
                }
                Err(RecvTimeoutError::Timeout) => self.beat()?,
                Ok(Order::Beat) => {
                    self.is_beat_ordered.store(false, Ordering::Relaxed);
                    // At the limit one beat may follow the other without a pause.
                    if self.next_scan <= Instant::now() {
                        self.scan(self.is_scan_asked)?;
                    }
                    self.beat()?;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    fn take_up(&mut self, mode: Mode) -> Result<(), Unheard> {
        match mode {
            Mode::Watch(counter) => {
                self.scanner.pay_attention(true);
                self.watch = Some(Watch::start(counter));
                self.beat()
            }
            Mode::Rest => {
                self.scanner.pay_attention(false);
                self.watch = None;
                Ok(())
            }
        }
    }

    /// A scan was asked for.
    fn plan_scan(&mut self) {
        self.is_urgent.store(false, Ordering::Relaxed);
        let is_first = !std::mem::replace(&mut self.is_scan_asked, true);
        if !self.scanner.is_crowded() {
            if is_first {
                self.next_scan = self.next_scan.min(self.last_scan + SHORTEST_PAUSE);
            }
            return;
        }
        let search = Instant::now().max(self.last_search + SHORTEST_PAUSE);
        self.next_search.get_or_insert(search);
        let pause = WHOLE_SCAN_DELAY.max(self.last_cost * WHOLE_SCAN_SHARE);
        self.next_scan = (self.last_scan + pause).max(search + WHOLE_SCAN_DELAY);
    }

    /// In a crowd: who was killed is mostly known without looking at everybody.
    fn look_for_the_killed(&mut self) -> Result<(), Unheard> {
        self.next_search = None;
        if self.is_stuck() {
            return Ok(());
        }
        let glance = self.scanner.look_for_the_killed();
        if let Some(glance) = self.seen(glance) {
            self.send(Sample::Glance(glance))?;
        }
        self.last_search = Instant::now();
        Ok(())
    }

    fn scan(&mut self, everybody: bool) -> Result<(), Unheard> {
        if self.is_stuck() {
            self.next_scan = Instant::now() + LONGEST_BEAT;
            return Ok(());
        }
        // Whoever asked for a scan gets this one, unless it leaves somebody out.
        self.is_scan_asked &= !everybody;
        let scan = if everybody { self.scanner.scan() } else { self.scanner.scan_in_turns() };
        let scan = scan.inspect(|snapshot| self.scanner.keep_in_view(&snapshot.processes));
        if scan.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
            // Whoever asked is heard first; the scan begins anew after that.
            self.is_scan_asked |= everybody;
            self.next_scan = Instant::now() + WHOLE_SCAN_DELAY;
            return Ok(());
        }
        self.last_cost = Duration::ZERO;
        if let Some(snapshot) = self.seen(scan) {
            self.last_cost = snapshot.cost.cpu;
            self.send(Sample::Snapshot(snapshot))?;
        }
        self.last_scan = Instant::now();
        let pause = if self.is_scan_asked { SHORTEST_PAUSE } else { pause(self.interval, self.last_cost) };
        self.next_scan = self.last_scan + pause;
        if let Some(watch) = &mut self.watch {
            watch.scanned_headroom_bytes = watch.headroom_bytes.unwrap_or(u64::MAX);
        }
        Ok(())
    }

    /// Counters, newcomers and those who grow.
    fn beat(&mut self) -> Result<(), Unheard> {
        let is_stuck = self.is_stuck();
        let Some(watch) = &mut self.watch else { return Ok(()) };
        if is_stuck {
            watch.next_beat = Instant::now() + LONGEST_BEAT;
            return Ok(());
        }
        let cpu_before = clock::thread_cpu();
        let (is_news, has_kills) = watch.count();
        let is_running_out = watch.is_running_out();
        if is_news {
            self.send(Sample::Counted)?;
        }
        if has_kills {
            self.charge.block_until_room();
        }
        let glance = self.scanner.glance();
        if let Some(glance) = self.seen(glance)
            && !(glance.processes.is_empty() && glance.absent.is_empty())
        {
            self.send(Sample::Glance(glance))?;
        }
        let cost = clock::thread_cpu().saturating_sub(cpu_before);
        if is_running_out && !self.scanner.is_crowded() && self.last_scan.elapsed() > self.last_cost * RUNNING_OUT_SHARE
        {
            self.scan(true)?;
        }
        if let Some(watch) = &mut self.watch {
            watch.plan(cost);
        }
        Ok(())
    }

    /// Whoever asks for memory now waits until there is some, and with it whoever waits for the allocator.
    fn is_stuck(&self) -> bool {
        self.charge.is_stuck()
    }

    /// What was seen, unless it was nothing; complains once.
    fn seen<T>(&mut self, look: io::Result<T>) -> Option<T> {
        match look {
            Ok(seen) => {
                self.complained = false;
                Some(seen)
            }
            Err(error) => {
                // Short memory is told otherwise, if it lasts.
                let is_short = error.raw_os_error() == Some(nix::libc::ENOMEM);
                if !is_short && !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!("cannot list processes: {error}; what is known of them grows old");
                }
                None
            }
        }
    }

    fn send(&self, sample: Sample) -> Result<(), Unheard> {
        self.samples.blocking_send(sample).map_err(|_| Unheard)
    }
}

impl Watch {
    fn start(counter: Arc<Mutex<KillCounter>>) -> Self {
        Self {
            counter,
            is_told: false,
            last_beat: Instant::now(),
            next_beat: Instant::now(),
            allowance: Allowance::full(),
            headroom_bytes: None,
            scanned_headroom_bytes: u64::MAX,
        }
    }

    /// Reads the counters; whether there is something to tell of them, and whether that is kills.
    fn count(&mut self) -> (bool, bool) {
        let look = self.counter.lock().unwrap_or_else(PoisonError::into_inner).look();
        self.headroom_bytes = look.headroom_bytes;
        // Memory was given back: running out begins anew.
        if let Some(headroom_bytes) = self.headroom_bytes.filter(|bytes| bytes / 2 > self.scanned_headroom_bytes) {
            self.scanned_headroom_bytes = headroom_bytes;
        }
        (!std::mem::replace(&mut self.is_told, true) || look.has_kills, look.has_kills)
    }

    /// When the next beat comes, after one that took so much of a processor.
    fn plan(&mut self, cost: Duration) {
        let now = Instant::now();
        let passed = now.duration_since(std::mem::replace(&mut self.last_beat, now));
        let put_off = self.allowance.spend(cost, passed);
        self.next_beat = now + beat(self.headroom_bytes).max(put_off).min(LONGEST_BEAT);
    }

    fn is_running_out(&self) -> bool {
        self.headroom_bytes.is_some_and(|bytes| bytes < self.scanned_headroom_bytes / 2)
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
