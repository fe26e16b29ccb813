//! `krunner selftest`: the main jobs, on this machine, now.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::args::SelftestArgs;
use super::scratch::{Scratch, ScratchCgroup};
use crate::exit::Exit;
use crate::monitor::clock;
use crate::transport::{RawReply, RunnerClient, RunnerClientError};

/// No step of the self-test takes anywhere near as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// An interrupt that has had its effect is answered well before.
const INTERRUPT_PATIENCE: Duration = Duration::from_secs(1);

/// More than one chunk, every byte value, and no line structure.
const PATTERN_BYTES: usize = 300_000;

/// For the end of a program that eats, and the report of it. A report comes within milliseconds.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);

/// The memory that a program may have which then eats more. A small machine has that much.
const EATER_LIMIT_BYTES: u64 = 48 * 1024 * 1024;

const PROGRAM: &str = r#"#include <stdio.h>
int main(void) { printf("hello from C\n"); return 3; }
"#;

pub(super) async fn selftest(args: SelftestArgs) -> anyhow::Result<ExitCode> {
    let mut report = Report { json: args.json, steps: Vec::new(), failed: false };
    let outcome = all_steps(&mut report).await;
    if let Err(error) = &outcome {
        report.fail(&format!("{error:#}"));
    }
    report.close();
    Ok(if report.failed { Exit::Failure } else { Exit::Ok }.into())
}

async fn all_steps(report: &mut Report) -> anyhow::Result<()> {
    let compiler = ["/usr/bin/gcc", "/usr/bin/cc"].into_iter().find(|path| Path::new(path).is_file());
    let started = Instant::now();
    let mut scratch = Scratch::start(compiler.map_or("app", |_| "c"), compiler)?;
    let steps = drive(report, &mut scratch, compiler.is_some(), started).await;
    steps.with_context(|| format!("the runner's own log:\n{}", scratch.log()))
}

async fn drive(report: &mut Report, scratch: &mut Scratch, compiler: bool, started: Instant) -> anyhow::Result<()> {
    let mut client = RunnerClient::connect(&scratch.address, true, PATIENCE).await?;
    client.send("status", "").await?;
    let status = client.receive(PATIENCE).await?;
    ensure!(status.kind == "status", "the first reply is {}", status.kind);
    report.pass("start and first status reply", started.elapsed());

    if compiler {
        fs::write(scratch.work().join("main.c"), PROGRAM)?;
        let batch = report.time("C batch: build *, exec *", batch(&mut client, "*", "*")).await?;
        batch.expect(3, "hello from C\n")?;
    } else {
        report.skip("C batch", "no /usr/bin/gcc or /usr/bin/cc");
    }
    let shell = batch(&mut client, "", "printf 'to stdout\\n'; printf 'to stderr\\n' >&2");
    let shell = report.time("shell batch: both streams", shell).await?;
    shell.expect(0, "to stdout\n")?;
    ensure!(shell.stderr.ends_with(b"to stderr\n"), "stderr was {:?}", String::from_utf8_lossy(&shell.stderr));

    let pattern: Vec<u8> = (0..PATTERN_BYTES).map(|at| u8::try_from(at * 7 % 256).unwrap_or(0)).collect();
    fs::write(scratch.work().join("pattern"), &pattern)?;
    let bytes = report.time("300,000 raw bytes arrive unchanged", batch(&mut client, "", "cat pattern")).await?;
    ensure!(bytes.stdout == pattern, "{} bytes arrived, but they differ from those written", bytes.stdout.len());

    let failed = report.time("failed build: exec returns 127", batch(&mut client, "exit 9", "true")).await?;
    ensure!(failed.exit_code == 127, "exec ended with {}", failed.exit_code);

    let interrupted = report.time("interrupt of a running program", interrupt(&mut client)).await?;
    interrupted.expect(-2, "ready\n")?;

    oom_kill(report, &mut client, scratch).await?;

    report.time("shutdown: a running program is stopped and its exit reported", stop(&mut client, scratch)).await
}

/// Lets a program eat past its limit, and sees who is named for it.
async fn oom_kill(report: &mut Report, client: &mut RunnerClient, scratch: &Scratch) -> anyhow::Result<()> {
    const STEP: &str = "OOM kill: the victim is named";
    let cgroup = match ScratchCgroup::make(EATER_LIMIT_BYTES) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            report.skip(STEP, &format!("{error:#}"));
            return Ok(());
        }
    };
    fs::create_dir_all(scratch.work().join(".logs"))?;
    let traced = scratch.is_traced().await?;
    // `tail` keeps its last line, and this one has no end.
    let line = format!("echo $$ > '{}'; exec tail /dev/zero", cgroup.procs().display());
    client.send("exec", line).await?;
    let (mut batch, mut told) = (Batch::default(), None);
    let deadline = Instant::now() + REPORT_PATIENCE;
    while told.is_none() {
        match client.receive(INTERRUPT_PATIENCE).await {
            Ok(reply) => {
                let is_it = String::from_utf8_lossy(&reply.payload).contains("oom-killed process");
                told = is_it.then(clock::boot_ns);
                batch.take(&reply)?;
            }
            Err(RunnerClientError::Silent(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if told.is_none() && Instant::now() > deadline {
            ensure!(!traced, "no report came within {REPORT_PATIENCE:?}");
            report.skip(STEP, "without eBPF an OOM kill in a child cgroup of the runner is not detected");
            return Ok(());
        }
    }
    let kill: Value = oom_record(scratch).await?;
    let exited_ns = kill["exited_at_boot_ns"].as_u64();
    let (name, confidence) = (kill["victim"]["name"].as_str(), kill["confidence"].as_str().unwrap_or("unknown"));
    ensure!(name == Some("tail"), "{name:?} was named as the victim: {kill}");
    let took = told.zip(exited_ns).map(|(told_ns, exited_ns)| told_ns.saturating_sub(exited_ns));
    report.pass(&format!("{STEP}, {confidence}"), Duration::from_nanos(took.unwrap_or(0)));
    report.detail(&String::from_utf8_lossy(&batch.stderr));
    Ok(())
}

/// The first line of the record of kills, once it is there.
async fn oom_record(scratch: &Scratch) -> anyhow::Result<Value> {
    let path = scratch.work().join(".logs/oom.jsonl");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = fs::read_to_string(&path).unwrap_or_default();
        if let Some((line, _)) = text.split_once('\n') {
            return Ok(serde_json::from_str(line)?);
        }
        ensure!(Instant::now() < deadline, "{} was not written", path.display());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn interrupt(client: &mut RunnerClient) -> anyhow::Result<Batch> {
    client.send("exec", "echo ready; exec sleep 60").await?;
    let mut batch = Batch::default();
    while batch.stdout.is_empty() {
        batch.take(&client.receive(PATIENCE).await?)?;
    }
    // A shell loses the signal while it is about to become `sleep`: ask again, as a user would.
    loop {
        client.send("interrupt", "").await?;
        match client.receive(INTERRUPT_PATIENCE).await {
            Err(RunnerClientError::Silent(_)) => {}
            reply => {
                return if batch.take(&reply?)? { Ok(batch) } else { batch.until_finished(client).await };
            }
        }
    }
}

async fn stop(client: &mut RunnerClient, scratch: &mut Scratch) -> anyhow::Result<()> {
    client.send("exec", "trap 'echo stopping; exit 0' TERM; sleep 60 & echo ready; wait").await?;
    let mut batch = Batch::default();
    while batch.stdout.is_empty() {
        batch.take(&client.receive(PATIENCE).await?)?;
    }
    scratch.signal(Signal::SIGTERM)?;
    let batch = batch.until_finished(client).await?;
    batch.expect(-15, "ready\nstopping\n")?;
    let status = scratch.wait().await?;
    ensure!(status.success(), "the runner exited with {status}");
    let left: Vec<_> = fs::read_dir(scratch.work())?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
        .collect();
    ensure!(left.is_empty(), "sockets were left behind: {left:?}");
    Ok(())
}

/// The three ops of batch mode, as the agent sends them.
async fn batch(client: &mut RunnerClient, build: &str, exec: &str) -> anyhow::Result<Batch> {
    for (op, payload) in [("clean", ""), ("build", build), ("exec", exec)] {
        client.send(op, payload.to_owned()).await?;
    }
    Batch::default().until_finished(client).await
}

/// What came back.
#[derive(Default)]
struct Batch {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exit_code: i64,
}

impl Batch {
    /// Takes a reply in; `true` when it is the last.
    fn take(&mut self, reply: &RawReply) -> anyhow::Result<bool> {
        match reply.kind.as_str() {
            "stdout" => self.stdout.extend_from_slice(&reply.payload),
            "stderr" => self.stderr.extend_from_slice(&reply.payload),
            "clean-finished" | "build-finished" => {}
            "finished" => {
                let payload: Value = serde_json::from_slice(&reply.payload)?;
                self.exit_code = payload["exitCode"].as_i64().context("a `finished` without an exit code")?;
                return Ok(true);
            }
            other => bail!("an unexpected reply: {other}"),
        }
        Ok(false)
    }

    async fn until_finished(mut self, client: &mut RunnerClient) -> anyhow::Result<Self> {
        while !self.take(&client.receive(PATIENCE).await?)? {}
        Ok(self)
    }

    fn expect(&self, exit_code: i64, stdout: &str) -> anyhow::Result<()> {
        let (out, err) = (String::from_utf8_lossy(&self.stdout), String::from_utf8_lossy(&self.stderr));
        ensure!(
            self.exit_code == exit_code && out == stdout,
            "expected exit code {exit_code} and {stdout:?}; got {} and {out:?}, stderr {err:?}",
            self.exit_code
        );
        Ok(())
    }
}

/// The steps as they are told, at once or as JSON at the end.
struct Report {
    json: bool,
    steps: Vec<Value>,
    failed: bool,
}

impl Report {
    async fn time<T>(&mut self, step: &str, run: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let start = Instant::now();
        let value = run.await.with_context(|| step.to_owned())?;
        self.pass(step, start.elapsed());
        Ok(value)
    }

    fn pass(&mut self, step: &str, took: Duration) {
        self.say("ok", step, &format!("{:.1} ms", took.as_secs_f64() * 1000.0));
        self.steps.push(json!({ "step": step, "result": "ok", "ms": took.as_secs_f64() * 1000.0 }));
    }

    /// What a step was about, for people.
    fn detail(&self, text: &str) {
        if !self.json {
            text.lines().for_each(|text| line(&format!("         {text}")));
        }
    }

    fn skip(&mut self, step: &str, reason: &str) {
        self.say("skipped", step, reason);
        self.steps.push(json!({ "step": step, "result": "skipped", "reason": reason }));
    }

    fn fail(&mut self, problem: &str) {
        self.failed = true;
        self.say("FAILED", problem, "");
        self.steps.push(json!({ "result": "failed", "problem": problem }));
    }

    fn say(&self, result: &str, step: &str, detail: &str) {
        if !self.json {
            line(format!("{result:<8} {step:<52} {detail}").trim_end());
        }
    }

    fn close(&self) {
        if self.json {
            line(&json!({ "ok": !self.failed, "steps": self.steps }).to_string());
        } else if !self.failed {
            line("all checks passed");
        }
    }
}

/// Prints a line; a closed stdout is not an error, since the exit code reports the result.
fn line(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}
