//! `cargo xtask fuzz`: builds the fuzz targets with coverage counters and runs them, each for a limited time.
//!
//! The targets are ordinary ones of cargo-fuzz (`fuzz/`), which is not needed: libFuzzer comes with the crate `libfuzzer-sys`, and
//! the flags that cargo-fuzz sets are known to stable Rust as long as no sanitizer is asked for. Nearly all of krunner is safe
//! Rust, so assertions and limits find what can be found, at twice the speed. `cargo fuzz run NAME` adds the address sanitizer.

mod output;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use self::output::{Finding, TargetResult, in_json, print_table};
use crate::workspace::{cargo, host_triple, on_path, root, run as run_command, step, target_dir};

const HELP: &str = "\
Runs each target for --time seconds, with the committed inputs of fuzz/corpus and those that earlier runs found \
(target/fuzz/corpus). What must hold for any input is in the `fuzzing.rs` files of krunner. An input is a finding if an \
assertion fails, if it takes more than a second, or if the process needs more than 256 MiB. It is kept in \
target/fuzz/artifacts. Once it is mended, it belongs in fuzz/corpus, whose files all run in the unit tests.
Not a part of `cargo xtask test --all`: what a run finds depends on chance, and a gate must not.

Needs a C++ compiler, for libFuzzer.

Examples:
  cargo xtask fuzz
  cargo xtask fuzz --time 600 template service_definition
  cargo xtask fuzz --time 10 --json target/fuzz.json
  cargo xtask fuzz --list

Exit codes: 0 no findings, 1 a finding or a target that could not run, 2 wrong usage.";

/// The flags of cargo-fuzz, without a sanitizer.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0";

/// Limits of each input: seconds, and the memory of the process.
const LIMITS: [&str; 2] = ["-timeout=1", "-rss_limit_mb=256"];

/// The longest input of a target, unless it is listed in [`LONGER_INPUTS`].
const MAX_INPUT_BYTES: u32 = 4096;

/// Targets whose formats need more: type information of a kernel, slots of 1 KiB.
const LONGER_INPUTS: [(&str, u32); 2] = [("btf", 16 * 1024), ("recorder_file", 8 * 1024)];

/// How much longer than its time a target may take: reading the corpus, and the last input.
const GRACE: Duration = Duration::from_mins(1);

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Seconds for each target
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86400))]
    time: u32,
    /// Number of targets that run at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: u32,
    /// Also write the results to FILE as JSON; - prints JSON instead of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// List the targets and exit
    #[arg(long)]
    list: bool,
    /// Run only these targets
    targets: Vec<String>,
}

/// Runs the targets; `false` if there is a finding.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let known = targets()?;
    if args.list {
        for name in known {
            println!("{name}");
        }
        return Ok(true);
    }
    if let Some(unknown) = args.targets.iter().find(|name| !known.contains(name)) {
        bail!("no target `{unknown}`; `cargo xtask fuzz --list` lists them");
    }
    if let Some(reason) = missing_compiler() {
        bail!("{reason}");
    }
    let names = if args.targets.is_empty() { known } else { args.targets.clone() };
    let results = run_targets(&FuzzPlan::build(&names, args.time)?, &names, args.jobs)?;
    match args.json.as_deref() {
        Some(file) if file.as_os_str() == "-" => println!("{:#}", in_json(&results)),
        Some(file) => {
            let text = format!("{:#}\n", in_json(&results));
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
            print_table(&results);
        }
        None => print_table(&results),
    }
    Ok(results.iter().all(|result| result.finding.is_none()))
}

/// The names of all targets, sorted.
fn targets() -> Result<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
    }
    names.sort_unstable();
    Ok(names)
}

/// Why libFuzzer cannot be compiled; `None` if it can.
fn missing_compiler() -> Option<String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let is_there = on_path(&compiler) || Path::new(&compiler).is_file();
    (!is_there).then(|| format!("no C++ compiler (`{compiler}`) to build libFuzzer; Debian package: g++"))
}

/// Targets that were built, and how to run them.
struct FuzzPlan {
    binaries: PathBuf,
    /// For corpora and artifacts.
    folder: PathBuf,
    seconds: u32,
}

impl FuzzPlan {
    /// Builds these targets in release mode.
    fn build(names: &[String], seconds: u32) -> Result<Self> {
        step(&format!("building {} fuzz targets", names.len()));
        let folder = target_dir()?.join("fuzz");
        let triple = host_triple()?;
        let mut build = cargo(["build", "--release", "--locked", "--quiet"]);
        // With a target, build scripts and macros are compiled without the flags.
        build.args(["--manifest-path", "fuzz/Cargo.toml", "--target", &triple]);
        build.args(names.iter().flat_map(|name| ["--bin", name.as_str()]));
        build.env("CARGO_TARGET_DIR", folder.join("build")).env("RUSTFLAGS", FLAGS);
        build.env_remove("CARGO_ENCODED_RUSTFLAGS");
        run_command(&mut build)?;
        Ok(Self { binaries: folder.join("build").join(triple).join("release"), folder, seconds })
    }

    fn run(&self, name: &str) -> Result<TargetResult> {
        let [corpus, artifacts] = ["corpus", "artifacts"].map(|folder| self.folder.join(folder).join(name));
        for folder in [&corpus, &artifacts] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let longer = LONGER_INPUTS.iter().find(|(longer, _)| *longer == name);
        let mut command = Command::new(self.binaries.join(name));
        command.arg(&corpus).arg(root().join("fuzz/corpus").join(name)).args(LIMITS);
        command.arg(format!("-max_total_time={}", self.seconds)).arg("-print_final_stats=1");
        command.arg(format!("-max_len={}", longer.map_or(MAX_INPUT_BYTES, |(_, bytes)| *bytes)));
        command.arg(format!("-artifact_prefix={}/", artifacts.display()));
        let dictionary = root().join("fuzz/dictionaries").join(format!("{name}.dict"));
        if dictionary.is_file() {
            command.arg(format!("-dict={}", dictionary.display()));
        }
        let (log, has_failed) = self.finish(&mut command, name)?;
        let mut result = TargetResult::read(name, &log);
        if has_failed {
            let finding = Finding::read(&log, &self.binaries.join(name), &LIMITS);
            // On a busy machine an input may take a second once.
            result.finding = Some(finding).filter(|finding| !finding.is_timeout() || self.is_repeated(finding, name));
        }
        Ok(result)
    }

    /// Whether an input fails again.
    fn is_repeated(&self, finding: &Finding, name: &str) -> bool {
        let Some(input) = &finding.input else { return true };
        let mut command = Command::new(self.binaries.join(name));
        self.finish(command.arg(input).args(LIMITS), name).is_ok_and(|(_, has_failed)| has_failed)
    }

    /// Waits for a target, at most until its deadline; returns its log and whether it failed.
    fn finish(&self, command: &mut Command, name: &str) -> Result<(String, bool)> {
        let path = self.folder.join("artifacts").join(format!("{name}.log"));
        let log = fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
        let deadline = Instant::now() + Duration::from_secs(self.seconds.into()) + GRACE;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            } else if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("{name} did not end within {GRACE:?} after its time; its log: {}", path.display());
            }
            thread::sleep(Duration::from_millis(50));
        };
        let log = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok((String::from_utf8_lossy(&log).into_owned(), !status.success()))
    }
}

/// Runs targets, some at a time; the results are in the order of the names.
fn run_targets(plan: &FuzzPlan, names: &[String], jobs: u32) -> Result<Vec<TargetResult>> {
    step(&format!("fuzzing {} targets, {} s each, {jobs} at a time", names.len(), plan.seconds));
    let waiting: Mutex<VecDeque<&String>> = Mutex::new(names.iter().collect());
    let take = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let mut results = thread::scope(|scope| -> Result<Vec<TargetResult>> {
        let work = || -> Result<Vec<TargetResult>> { std::iter::from_fn(take).map(|name| plan.run(name)).collect() };
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        let mut results = Vec::new();
        for worker in workers {
            results.extend(worker.join().expect("a worker does not panic")?);
        }
        Ok(results)
    })?;
    results.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fuzz targets test the crates that krunner is built with.
    #[test]
    fn both_lock_files_name_the_same_versions() {
        let versions = |path: &str| -> Vec<String> {
            let text = fs::read_to_string(root().join(path)).unwrap();
            let packages = text.split("[[package]]\n").skip(1);
            packages.map(|package| package.lines().take(2).collect::<Vec<_>>().join(" ")).collect()
        };
        let ours = versions("Cargo.lock");
        let name = |package: &String| package.split(" version").next().unwrap_or_default().to_owned();
        for package in versions("fuzz/Cargo.lock") {
            let is_ours = ours.iter().any(|other| name(other) == name(&package));
            assert!(
                !is_ours || ours.contains(&package),
                "{package} differs: copy Cargo.lock to fuzz/, then `cargo metadata --manifest-path fuzz/Cargo.toml`"
            );
        }
    }

    #[test]
    fn longer_inputs_belong_to_targets() {
        let names = targets().unwrap();
        assert!(names.len() > 20 && names.is_sorted());
        assert!(LONGER_INPUTS.iter().all(|(name, _)| names.iter().any(|known| known == name)));
    }
}
