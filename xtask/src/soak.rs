//! `cargo xtask soak`: hours of a session in minutes. Clients keep one runner busy with everything that it does, and what it
//! holds must not grow.
//!
//! `load` has the clients, `figures` the samples and their slopes, `chart` draws them.

mod chart;
mod figures;
mod load;
mod replies;

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use krunner_tests::cgroup::Cgroup;
use krunner_tests::{LaunchMethod, Runner, Setup, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use self::figures::{Figures, Sample};
use self::load::{Load, Programs};
use crate::venv;
use crate::workspace::{build_release, cargo, run as run_command, step, target_dir};

const HELP: &str = "\
Runs one session under load: clients for steps (output, exit codes, signals, interrupts, input, failed builds, orphans, OOM \
kills in a scratch memory cgroup, code in a Jupyter kernel), for `status`, and for services, lists, completions and invalid \
messages; the connection for replies is replaced every few seconds. Every reply is checked.

Samples RSS, descriptors, threads and zombies every second and prints a row each minute. The slopes of RSS and descriptors \
over the second half (least squares) must be within 128 KiB and 0.5 descriptors a minute of zero or below.

What the machine lacks (root and the memory controller, python3.11 for the environment of `cargo xtask test`) is left out, and \
that is printed.

Examples:
  cargo xtask soak --minutes 10
  cargo xtask soak --minutes 2 --bin target/debug/krunner
  cargo xtask soak --minutes 10 --json target/soak.json

Exit codes: 0 nothing grows and no reply is missing, 1 RSS or descriptors grow, a reply is missing or wrong, or a zombie stays, \
2 wrong usage.";

/// Arguments of `cargo xtask soak`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// How long the load lasts
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Test this binary instead of building one
    #[arg(long, value_name = "FILE")]
    bin: Option<PathBuf>,
    /// Also write all figures to FILE as JSON; - prints JSON instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The memory limit of the cgroup in which steps are killed.
const LIMIT_MIB: u64 = 24;

const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// A session under load, and what else it needs.
struct Soak {
    runner: Runner,
    programs: Programs,
    _cgroups: Option<(Cgroup, Cgroup)>,
}

/// Runs the soak. Returns `false` when something grows or is lost.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let is_quiet = args.json.as_deref().is_some_and(|file| file.as_os_str() == "-");
    let soak = Soak::start(args)?;
    let (figures, mut problems) = soak.measure(Duration::from_secs(60 * args.minutes), is_quiet);
    problems.extend(figures.problems());
    let text = format!("{:#}\n", in_json(&figures, &problems));
    match args.json.as_deref() {
        Some(_) if is_quiet => print!("{text}"),
        Some(file) => fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?,
        None => {}
    }
    if !is_quiet {
        print!("{}", figures.charts());
        println!("{}", figures.slopes());
        for problem in &problems {
            println!("problem: {problem}");
        }
    }
    Ok(problems.is_empty())
}

fn in_json(figures: &Figures, problems: &[String]) -> Value {
    json!({ "figures": figures.to_json(), "problems": problems })
}

/// The helper programs, in a debug build.
fn helper(name: &str) -> Result<PathBuf> {
    Ok(target_dir()?.join("debug").join(name))
}

impl Soak {
    fn start(args: &Args) -> Result<Self> {
        let krunner = match &args.bin {
            Some(path) => path.canonicalize().with_context(|| path.display().to_string())?,
            None => build_release("krunner")?,
        };
        step("building the helper programs");
        run_command(&mut cargo(["build", "--package", "krunner-tests", "--bin", "victim", "--bin", "scripted"]))?;
        let (victim, scripted) = (helper("victim")?, helper("scripted")?);
        let python = left_out("code in a Jupyter kernel", venv::ensure_without_root()?);
        let cgroups = left_out("OOM kills", Cgroup::scratch()).map(|scratch| {
            let limited = scratch.limited("limited", LIMIT_MIB);
            (limited, scratch)
        });
        let mut setup = match &python {
            Some(python) => Setup::new("python").runtime(python),
            None => Setup::new("c"),
        };
        setup = setup.debug().program(krunner).folder("home/work/.logs/task");
        let definition = json!({ "command": [&scripted, "listen", "{ports[0]}", "service-pid"] });
        setup = setup.file("etc/backend.ai/service-defs/soak.json", definition.to_string());
        if let Some((_, scratch)) = &cgroups {
            setup = setup.prefix_first(&LaunchMethod::direct().cgroup(scratch));
        }
        let kill = cgroups.as_ref().map(|(limited, _)| {
            format!(
                "sh -c 'echo 0 > {}; exec {} eat {}'",
                limited.procs_file().display(),
                victim.display(),
                4 * LIMIT_MIB
            )
        });
        let runner = setup.start();
        let socket = runner.root().join("tmp/bai-user-input.sock");
        let ask = format!("{} ask {}", scripted.display(), socket.display());
        Ok(Self { runner, programs: Programs { ask, kill, has_kernel: python.is_some() }, _cgroups: cgroups })
    }

    /// Samples the runner under load; returns the figures, and what was wrong.
    fn measure(mut self, duration: Duration, is_quiet: bool) -> (Figures, Vec<String>) {
        let load = Load::start(&self.runner, &self.programs);
        let (began, mut figures) = (Instant::now(), Figures::default());
        while began.elapsed() < duration && !load.has_failed() {
            thread::sleep(SAMPLE_INTERVAL);
            let sample = Sample::take(self.runner.pid(), began.elapsed(), load.take_latencies());
            if let Some(row) = figures.add(sample)
                && !is_quiet
            {
                println!("{row}");
            }
        }
        let (ops, mut problems) = load.stop();
        figures.ops = ops;
        problems.extend(self.end());
        (figures, problems)
    }

    /// Ends the session: its services are stopped, so nothing may be left but a kernel, and nothing after SIGTERM.
    fn end(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        if wait::within(Duration::from_secs(5), || figures::zombies(self.runner.pid()).is_empty().then_some(()))
            .is_none()
        {
            problems.push(format!("zombies stay: {:?}", figures::zombies(self.runner.pid())));
        }
        self.runner.signal(Signal::SIGTERM);
        let status = self.runner.wait_exit();
        if !status.success() {
            problems.push(format!("the runner ended with {status}"));
        }
        let left = self.runner.processes();
        if !left.is_empty() {
            problems.push(format!("processes stay: {left:?}"));
        }
        problems
    }
}

fn left_out<T>(what: &str, found: Result<T, String>) -> Option<T> {
    found.inspect_err(|reason| eprintln!("left out: {what}: {reason}")).ok()
}
