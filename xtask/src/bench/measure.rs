//! Takes the figures, round by round. All that is compared is measured in the same round, with the
//! order turned around each time, since a machine's mood changes by the minute.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::client::Client;
use super::figures::{Figure, Results, median};
use super::oom;
use super::world::{Peer, Ports, Programs, Runtime, Who, World};
use crate::workspace::step;

/// After its first reply a runner goes on starting; by then both are done.
const SETTLE: Duration = Duration::from_secs(1);

/// How long the agent reads nothing in [`Figure::Stall`].
const STALL: Duration = Duration::from_secs(10);

/// What the child writes meanwhile.
const STALL_MIB: u64 = 1024;

/// Round trips of a slice.
const STATUS_SLICE: u32 = 500;

/// The code whose round trip is measured, and what it shows.
const CODE: &str = "1";

/// No runner gets to fill the machine's memory.
const STALL_LIMIT_MIB: f64 = 4096.0;

/// How much of everything.
pub(super) struct Plan {
    pub(super) rounds: usize,
    /// Starts per runner and round.
    starts: usize,
    /// Slices per runner and round, each beside one of the yardstick's.
    status_slices: u32,
    steps: u32,
    krunner_stream_mib: u64,
    /// The Python runner takes 20 s for 512 MiB; its rate is the same for less.
    python_stream_mib: u64,
}

impl Plan {
    pub(super) const FULL: Self =
        Self { rounds: 5, starts: 5, status_slices: 10, steps: 100, krunner_stream_mib: 512, python_stream_mib: 512 };
    pub(super) const QUICK: Self =
        Self { rounds: 2, starts: 3, status_slices: 5, steps: 50, krunner_stream_mib: 512, python_stream_mib: 64 };
}

/// All that a bench works with.
pub(super) struct Lab {
    programs: Programs,
    plan: Plan,
    client: Client,
    pub(super) results: Results,
}

impl Lab {
    pub(super) fn new(programs: Programs, plan: Plan, results: Results) -> Result<Self> {
        let client = Client::start(&programs.python)?;
        Ok(Self { programs, plan, client, results })
    }

    /// Takes every figure that is wanted.
    pub(super) fn run(&mut self) -> Result<()> {
        // The first start of each is slower: its files are not in memory yet.
        for who in [Who::Python, Who::Krunner] {
            self.start(who)?.0.stop()?;
        }
        let wants = |results: &Results, figures: &[Figure]| figures.iter().any(|&figure| results.wants(figure));
        let plain = wants(&self.results, &Figure::ROUNDS);
        let with_kernel = wants(&self.results, &Figure::KERNEL_ROUNDS);
        for round in 0..if plain || with_kernel { self.plan.rounds } else { 0 } {
            step(&format!("round {} of {}", round + 1, self.plan.rounds));
            let mut order = [Who::Python, Who::Krunner];
            order.rotate_left(round % 2);
            for who in order {
                let context = || format!("measuring {}", who.name());
                if plain {
                    self.round(who).with_context(context)?;
                }
                if with_kernel {
                    self.kernel_round(who).with_context(context)?;
                }
            }
            self.yardsticks().context("measuring the yardsticks")?;
        }
        if self.results.wants(Figure::Stall) {
            step(&format!("an agent that reads nothing for {} s", STALL.as_secs()));
            self.stall(Who::Krunner).context("measuring krunner")?;
            // The reference has no target here, and may well fail.
            if let Err(error) = self.stall(Who::Python) {
                self.results.note(format!("the Python runner and an agent that does not read: {error:#}"));
            }
        }
        self.client.close()?;
        oom::run(&self.programs, &mut self.results).context("measuring the OOM tracer")
    }

    /// Starts a runner in a world of its own; with the milliseconds to its first reply.
    fn start(&mut self, who: Who) -> Result<(World, f64)> {
        let world = World::make(who, Runtime::Shell, &self.programs)?;
        self.client.connect(world.ports)?;
        let took = self.client.open_gate(&world.gate()).with_context(|| format!("starting {}", who.name()))?;
        Ok((world, took))
    }

    fn round(&mut self, who: Who) -> Result<()> {
        if self.results.wants(Figure::Start) {
            for _ in 1..self.plan.starts {
                let (world, took) = self.start(who)?;
                self.results.add(Figure::Start, who, took);
                world.stop()?;
            }
        }
        let (world, took) = self.start(who)?;
        self.results.add(Figure::Start, who, took);
        thread::sleep(SETTLE);
        self.results.add(Figure::Rss, who, world.rss_mib()?);
        if self.results.wants(Figure::Status) {
            self.status(who, world.ports)?;
            self.client.connect(world.ports)?;
            self.client.status(1)?;
        }
        if self.results.wants(Figure::Exec) {
            let took = self.client.execute("true", self.plan.steps)?;
            self.results.add(Figure::Exec, who, took);
        }
        if self.results.wants(Figure::Throughput) {
            let mib = match who {
                Who::Python => self.plan.python_stream_mib,
                Who::Krunner => self.plan.krunner_stream_mib,
            };
            let rate = self.stream(mib)?;
            self.results.add(Figure::Throughput, who, rate);
        }
        world.stop()
    }

    /// What rests on a Jupyter kernel, the same for both.
    fn kernel_round(&mut self, who: Who) -> Result<()> {
        let world = World::make(who, Runtime::Jupyter, &self.programs)?;
        self.client.connect(world.ports)?;
        let took = self.client.open_gate_to_code(&world.gate(), CODE, CODE).context("starting it with a kernel")?;
        self.results.add(Figure::KernelStart, who, took);
        thread::sleep(SETTLE);
        if self.results.wants(Figure::Code) {
            let took = self.client.code(CODE, CODE, self.plan.steps)?;
            self.results.add(Figure::Code, who, took);
        }
        self.results.add(Figure::KernelRss, who, world.rss_mib()?);
        world.stop()
    }

    /// Status round trips, in slices that alternate with the yardstick's: waking an idle processor costs
    /// several times more in one second than in the next on these machines.
    fn status(&mut self, who: Who, ports: Ports) -> Result<()> {
        let echo = Peer::echo(&self.programs)?;
        for _ in 0..self.plan.status_slices {
            let took = self.status_slice(ports)?;
            self.results.add(Figure::Status, who, took);
            let took = self.status_slice(echo.ports)?;
            self.results.add_yardstick(Figure::Status, took);
        }
        Ok(())
    }

    fn status_slice(&mut self, ports: Ports) -> Result<f64> {
        self.client.connect(ports)?;
        // Once both connections are up.
        self.client.status(1)?;
        self.client.status(STATUS_SLICE)
    }

    /// What the machine itself can do, right now.
    fn yardsticks(&mut self) -> Result<()> {
        if self.results.wants(Figure::Exec) {
            self.results.add_yardstick(Figure::Exec, spawn_and_wait(self.plan.steps)?);
        }
        if self.results.wants(Figure::KernelStart) {
            let took = self.client.bare_kernel(CODE)?;
            self.results.add_yardstick(Figure::KernelStart, took);
        }
        if self.results.wants(Figure::Throughput) {
            let peer = Peer::copy_loop(&self.programs)?;
            self.client.connect(peer.ports)?;
            // Once both connections are up, the copying alone is timed.
            self.client.status(1)?;
            let rate = self.stream(self.plan.krunner_stream_mib)?;
            self.results.add_yardstick(Figure::Throughput, rate);
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "a few hundred MiB are exact")]
    fn stream(&mut self, mib: u64) -> Result<f64> {
        let seconds = self.client.stream(&format!("head -c {mib}M /dev/zero"), mib << 20)?;
        Ok(mib as f64 / seconds)
    }

    /// A child writes, the agent does not read; then it does, and every byte must come.
    fn stall(&mut self, who: Who) -> Result<()> {
        let (world, _) = self.start(who)?;
        thread::sleep(SETTLE);
        // What loading the tracer took has a row of its own.
        world.forget_peak_rss()?;
        self.client.send(&format!("head -c {STALL_MIB}M /dev/zero"))?;
        let end = Instant::now() + STALL;
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(100));
            let rss = world.rss_mib()?;
            if rss > STALL_LIMIT_MIB {
                bail!("stopped at {rss:.0} MiB");
            }
        }
        self.results.add(Figure::Stall, who, world.peak_rss_mib()?);
        self.client.drain(STALL_MIB << 20)?;
        world.stop()
    }
}

/// Milliseconds of the median `/bin/sh -c true` from here.
fn spawn_and_wait(count: u32) -> Result<f64> {
    let mut took = Vec::new();
    for _ in 0..count {
        let began = Instant::now();
        let status = Command::new("/bin/sh").args(["-c", "true"]).stdin(Stdio::null()).status()?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
        if !status.success() {
            bail!("true failed: {status}");
        }
    }
    median(&took).context("no step")
}
