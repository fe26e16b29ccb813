//! Takes the samples, round by round. Figures that are compared are measured in the same round, in alternating order, because
//! the speed of a machine drifts within minutes.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::client::Client;
use super::figures::{Figure, Results, median};
use super::sandbox::{Implementation, Peer, Ports, Programs, Runtime, Sandbox};
use super::{node, oom};
use crate::workspace::step;

/// A runner keeps starting up after its first reply. Both are done after this time.
const SETTLE: Duration = Duration::from_secs(1);

/// How long the agent reads nothing in [`Figure::Stall`].
const STALL: Duration = Duration::from_secs(10);

/// How much the child writes meanwhile.
const STALL_MIB: u64 = 1024;

/// Status round trips per slice.
const STATUS_SLICE: u32 = 500;

/// The code whose round trip is measured, and also its output.
const CODE: &str = "1";

/// The run is aborted above this, before a runner fills the machine's memory.
const STALL_LIMIT_MIB: f64 = 4096.0;

/// How many samples to take.
pub(super) struct BenchPlan {
    pub(super) rounds: usize,
    /// Starts per runner and round.
    starts: usize,
    /// Slices per runner and round, each next to one of the baseline.
    status_slices: u32,
    steps: u32,
    krunner_stream_mib: u64,
    /// The Python runner takes 20 s for 512 MiB. Its rate is the same for less.
    python_stream_mib: u64,
}

impl BenchPlan {
    pub(super) const FULL: Self =
        Self { rounds: 5, starts: 5, status_slices: 10, steps: 100, krunner_stream_mib: 512, python_stream_mib: 512 };
    pub(super) const QUICK: Self =
        Self { rounds: 2, starts: 3, status_slices: 5, steps: 50, krunner_stream_mib: 512, python_stream_mib: 64 };
}

/// A run of the bench.
pub(super) struct Bench {
    programs: Programs,
    plan: BenchPlan,
    client: Client,
    pub(super) results: Results,
}

impl Bench {
    pub(super) fn new(programs: Programs, plan: BenchPlan, results: Results) -> Result<Self> {
        let client = Client::start(&programs.python)?;
        Ok(Self { programs, plan, client, results })
    }

    /// Measures every requested figure.
    pub(super) fn run(&mut self) -> Result<()> {
        // The first start of each is slower because its files are not in the page cache.
        for implementation in [Implementation::Python, Implementation::Krunner] {
            self.start(implementation)?.0.stop()?;
        }
        let plain = self.results.wants_any(&Figure::ROUNDS);
        let with_kernel = self.results.wants_any(&Figure::KERNEL_ROUNDS);
        for round in 0..if plain || with_kernel { self.plan.rounds } else { 0 } {
            step(&format!("round {} of {}", round + 1, self.plan.rounds));
            let mut order = [Implementation::Python, Implementation::Krunner];
            order.rotate_left(round % 2);
            for implementation in order {
                let context = || format!("measuring {}", implementation.name());
                if plain {
                    self.round(implementation).with_context(context)?;
                }
                if with_kernel {
                    self.kernel_round(implementation).with_context(context)?;
                }
            }
            self.baselines().context("measuring the baselines")?;
        }
        if self.results.wants(Figure::Stall) {
            step(&format!("stalling the agent for {} s", STALL.as_secs()));
            self.stall(Implementation::Krunner).context("measuring krunner")?;
            // The Python runner has no target here and may fail.
            if let Err(error) = self.stall(Implementation::Python) {
                self.results.note(format!("the Python runner with a stalled agent: {error:#}"));
            }
        }
        self.client.close()?;
        oom::run(&self.programs, &mut self.results).context("measuring the OOM tracer")?;
        node::run(&self.programs, &mut self.results).context("measuring the node")
    }

    /// Starts a runner in a new sandbox. Also returns the milliseconds until its first reply.
    fn start(&mut self, implementation: Implementation) -> Result<(Sandbox, f64)> {
        let sandbox = Sandbox::make(implementation, Runtime::Shell, &self.programs)?;
        self.client.connect(sandbox.ports)?;
        let took = self
            .client
            .release_start(&sandbox.start_barrier())
            .with_context(|| format!("starting {}", implementation.name()))?;
        Ok((sandbox, took))
    }

    fn round(&mut self, implementation: Implementation) -> Result<()> {
        if self.results.wants(Figure::Start) {
            for _ in 1..self.plan.starts {
                let (sandbox, took) = self.start(implementation)?;
                self.results.add(Figure::Start, implementation, took);
                sandbox.stop()?;
            }
        }
        let (sandbox, took) = self.start(implementation)?;
        self.results.add(Figure::Start, implementation, took);
        thread::sleep(SETTLE);
        self.results.add(Figure::Rss, implementation, sandbox.rss_mib()?);
        if self.results.wants(Figure::Status) {
            self.status(implementation, sandbox.ports)?;
            self.client.connect(sandbox.ports)?;
            self.client.status(1)?;
        }
        if self.results.wants(Figure::Exec) {
            let took = self.client.execute("true", self.plan.steps)?;
            self.results.add(Figure::Exec, implementation, took);
        }
        if self.results.wants(Figure::Throughput) {
            let mib = match implementation {
                Implementation::Python => self.plan.python_stream_mib,
                Implementation::Krunner => self.plan.krunner_stream_mib,
            };
            let rate = self.stream(mib)?;
            self.results.add(Figure::Throughput, implementation, rate);
        }
        sandbox.stop()
    }

    /// Measures the figures that need a Jupyter kernel.
    fn kernel_round(&mut self, implementation: Implementation) -> Result<()> {
        let sandbox = Sandbox::make(implementation, Runtime::Jupyter, &self.programs)?;
        self.client.connect(sandbox.ports)?;
        let took =
            self.client.start_with_code(&sandbox.start_barrier(), CODE, CODE).context("starting it with a kernel")?;
        self.results.add(Figure::KernelStart, implementation, took);
        thread::sleep(SETTLE);
        if self.results.wants(Figure::Code) {
            let took = self.client.code(CODE, CODE, self.plan.steps)?;
            self.results.add(Figure::Code, implementation, took);
        }
        self.results.add(Figure::KernelRss, implementation, sandbox.rss_mib()?);
        sandbox.stop()
    }

    /// Measures status round trips in slices that alternate with the baseline's, because the cost of waking an idle processor
    /// varies severalfold from one second to the next.
    fn status(&mut self, implementation: Implementation, ports: Ports) -> Result<()> {
        let echo = Peer::echo(&self.programs)?;
        for _ in 0..self.plan.status_slices {
            let took = self.status_slice(ports)?;
            self.results.add(Figure::Status, implementation, took);
            let took = self.status_slice(echo.ports)?;
            self.results.add_baseline(Figure::Status, took);
        }
        Ok(())
    }

    fn status_slice(&mut self, ports: Ports) -> Result<f64> {
        self.client.connect(ports)?;
        // Waits until both connections are up.
        self.client.status(1)?;
        self.client.status(STATUS_SLICE)
    }

    /// Measures the baselines, which show what the machine can do at the moment.
    fn baselines(&mut self) -> Result<()> {
        if self.results.wants(Figure::Exec) {
            self.results.add_baseline(Figure::Exec, spawn_and_wait(self.plan.steps)?);
        }
        if self.results.wants(Figure::KernelStart) {
            let took = self.client.bare_kernel(CODE)?;
            self.results.add_baseline(Figure::KernelStart, took);
        }
        if self.results.wants(Figure::Throughput) {
            let peer = Peer::copy_loop(&self.programs)?;
            self.client.connect(peer.ports)?;
            // Waits until both connections are up, so that only the copying is timed.
            self.client.status(1)?;
            let rate = self.stream(self.plan.krunner_stream_mib)?;
            self.results.add_baseline(Figure::Throughput, rate);
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "a few hundred MiB are exact")]
    fn stream(&mut self, mib: u64) -> Result<f64> {
        let seconds = self.client.stream(&format!("head -c {mib}M /dev/zero"), mib << 20)?;
        Ok(mib as f64 / seconds)
    }

    /// A child writes while the agent does not read. Then the agent reads and every byte must arrive.
    fn stall(&mut self, implementation: Implementation) -> Result<()> {
        let (sandbox, _) = self.start(implementation)?;
        thread::sleep(SETTLE);
        // The memory for loading the tracer is measured separately.
        sandbox.forget_peak_rss()?;
        self.client.send(&format!("head -c {STALL_MIB}M /dev/zero"))?;
        let end = Instant::now() + STALL;
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(100));
            let rss = sandbox.rss_mib()?;
            if rss > STALL_LIMIT_MIB {
                bail!("stopped at {rss:.0} MiB");
            }
        }
        self.results.add(Figure::Stall, implementation, sandbox.peak_rss_mib()?);
        self.client.drain(STALL_MIB << 20)?;
        sandbox.stop()
    }
}

/// The median time of `/bin/sh -c true` in milliseconds.
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
