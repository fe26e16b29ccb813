//! The parts of `cargo xtask test` that `cargo test` does not run: they come after the suites, because load distorts what they measure.
//! What they need is made before.

use std::panic::resume_unwind;
use std::thread::{self, JoinHandle};

use anyhow::Result;

use super::{Args, TestEnv};
use crate::dist::Dist;
use crate::musl::Arch;
use crate::summary::Check;
use crate::vm::KernelSet;
use crate::workspace::{give_way, joined, step};
use crate::{audit, dist, newcomer, oom_matrix, vm};

/// The parts that `cargo test` does not run, each with its former name, which filters may still use.
pub(super) const OTHER_PARTS: [(&str, &str); 6] = [
    ("oom-matrix", "battery"),
    ("vm", "vm"),
    ("arm64", "arm64"),
    ("engines", "node"),
    ("newcomer", "newcomer"),
    ("audit", "supply"),
];

/// A part of [`OTHER_PARTS`] and its checks.
pub(super) type PartResult = (&'static str, Result<Vec<Check>>);

impl Args {
    pub(super) fn run_other_parts(&self, env: &TestEnv) -> Vec<PartResult> {
        let mut results = Vec::new();
        if self.runs("oom-matrix") {
            step("oom-matrix");
            let checks = env.program().and_then(|krunner| Ok(oom_matrix::test(krunner, self.build_victim()?)));
            results.push(("oom-matrix", checks));
        }
        results.extend(self.run_machines());
        if self.runs("audit") {
            step("audit");
            let skipped = || Ok(audit::skipped("may need to install cargo-deny: pass --all"));
            results.push(("audit", if self.all { audit::test() } else { skipped() }));
        }
        results
    }

    /// Machines with a kernel run two at a time. The one with container engines has two processors of its own, and load on this machine
    /// hides kills from the fallback, so it comes after them. Only the tests in a fresh clone run beside it, at the lowest priority.
    fn run_machines(&self) -> Vec<PartResult> {
        let mut results = Vec::new();
        if self.runs("vm") {
            step("vm");
            let skipped = || vm::skipped("takes minutes of emulation: run `cargo xtask vm`, or pass --all");
            results.push(("vm", if self.all { vm::test(KernelSet::Default) } else { Ok(skipped()) }));
        }
        if self.runs("arm64") {
            step("arm64");
            results.push(("arm64", vm::test(KernelSet::Arm64)));
        }
        thread::scope(|scope| {
            let newcomer = self.runs("newcomer").then(|| {
                step("newcomer");
                scope.spawn(|| give_way().and_then(|()| newcomer::test()))
            });
            if self.runs("engines") {
                step("engines");
                results.push(("engines", vm::test_engines()));
            }
            let ended = newcomer.map(joined);
            results.extend(ended.map(|checks| ("newcomer", checks)));
        });
        results
    }

    /// Whether this part of [`OTHER_PARTS`] is selected, by either name.
    fn runs(&self, part: &str) -> bool {
        let names = OTHER_PARTS.iter().find(|(name, _)| *name == part);
        let is_wanted = names.is_some_and(|(name, alias)| self.wants(&[name, alias]));
        is_wanted && self.includes(part)
    }

    /// Whether the options include this part.
    fn includes(&self, part: &str) -> bool {
        match part {
            "arm64" | "engines" => self.engines,
            "newcomer" => self.newcomer,
            _ => true,
        }
    }
}

/// What the parts behind the suites need. It is fetched and built beside everything before them, at the lowest priority.
pub(super) struct LaterParts(JoinHandle<Result<()>>);

impl LaterParts {
    pub(super) fn start(args: &Args) -> Self {
        let wants = |part: &str| args.all && args.runs(part);
        let (audit, engines, kernels, arm64) = (wants("audit"), wants("engines"), wants("vm"), wants("arm64"));
        Self(thread::spawn(move || {
            give_way()?;
            if audit {
                audit::ensure()?;
            }
            if engines {
                vm::prepare_engines()?;
            }
            let sets = [(kernels, KernelSet::Default), (arm64, KernelSet::Arm64)];
            sets.into_iter().filter(|(is_wanted, _)| *is_wanted).try_for_each(|(_, set)| vm::prepare(set))
        }))
    }

    /// Makes the artifacts for all processors and checks them, if `tested` are those that the suites use, and waits for the rest.
    pub(super) fn finish(self, tested: Option<&Dist>) -> [PartResult; 2] {
        let artifacts = give_way().and_then(|()| tested.map_or_else(|| Ok(Vec::new()), check_artifacts));
        let others = self.0.join().unwrap_or_else(|panic| resume_unwind(panic));
        [("dist", artifacts), ("preparation of the parts behind the suites", others.map(|()| Vec::new()))]
    }
}

fn check_artifacts(tested: &Dist) -> Result<Vec<Check>> {
    let dist = dist::make(&Arch::ALL)?;
    let mut checks = dist.checks()?;
    checks.push(dist.compare_with_tested(tested.folder())?);
    Ok(checks)
}

#[cfg(test)]
mod tests {
    use super::super::Selection;
    use super::*;

    fn runs(filters: &[&str], without: &[&str]) -> Vec<&'static str> {
        let filters = filters.iter().map(|name| (*name).to_owned()).collect();
        let selection = Selection { filters, ..Selection::all_without(without) };
        let args = Args { all: true, sanitize: None, engines: true, newcomer: true, selection };
        OTHER_PARTS.iter().map(|(name, _)| *name).filter(|name| args.runs(name)).collect()
    }

    #[test]
    fn parts_are_selected_and_left_out_by_either_name() {
        assert_eq!(runs(&[], &[]), ["oom-matrix", "vm", "arm64", "engines", "newcomer", "audit"]);
        assert_eq!(runs(&[], &["oom-matrix", "node"]), ["vm", "arm64", "newcomer", "audit"]);
        assert_eq!(runs(&["battery", "engines"], &[]), ["oom-matrix", "engines"]);
    }
}
