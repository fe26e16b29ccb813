//! The table of cases: each runs a scenario in one or more placements.

use super::scenario::{self, Fixture, TOO_MUCH};
use super::scoring::ActualKills;
use crate::Sandbox;

/// Where the monitors run relative to the kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// In an ancestor of the limited cgroup; on a dedicated machine in the root cgroup.
    Below,
    /// As `Below`, in PID and mount namespaces of their own, with the scenario.
    Container,
    /// As `Below`, in a mount namespace without tracefs.
    NoTracefs,
    /// In the root cgroup, so that a group kill does not include them.
    Top,
}

impl Placement {
    /// Every placement, in the order in which they run. Each has one harness.
    pub(super) const ALL: [Self; 4] = [Self::Below, Self::Container, Self::NoTracefs, Self::Top];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Below | Self::Top => "",
            Self::Container => "container/",
            Self::NoTracefs => "no-tracefs/",
        }
    }
}

const BELOW: &[Placement] = &[Placement::Below];
const CONTAINER: &[Placement] = &[Placement::Container];
const BOTH: &[Placement] = &[Placement::Below, Placement::Container];
const EVERYWHERE: &[Placement] = &[Placement::Below, Placement::Container, Placement::NoTracefs];
const TOP: &[Placement] = &[Placement::Top];

/// A case of the matrix.
#[derive(Debug)]
pub(super) struct Case {
    name: &'static str,
    placements: &'static [Placement],
    /// Runs the scenario and returns its victims, or the reason why this machine cannot run it.
    pub(super) run: fn(&Fixture) -> Result<ActualKills, String>,
}

impl Case {
    /// Whether it runs below the monitors' cgroup and in a container, and nowhere else.
    pub(super) fn runs_in_both(&self) -> bool {
        self.placements == BOTH
    }

    /// What `--only` matches and tables show.
    pub(super) fn name_in(&self, placement: Placement) -> String {
        format!("{}{}", placement.prefix(), self.name)
    }
}

/// The cases that run in this placement.
pub(super) fn cases_in(placement: Placement) -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(move |case| case.placements.contains(&placement))
}

const fn case(
    name: &'static str,
    placements: &'static [Placement],
    run: fn(&Fixture) -> Result<ActualKills, String>,
) -> Case {
    Case { name, placements, run }
}

const CASES: &[Case] = &[
    case("lived-20-ms", EVERYWHERE, scenario::lived_20_ms),
    case("hog-0-s-bystanders", BOTH, |fixture| fixture.kills_child(&["bystanders", "8", TOO_MUCH])),
    case("hog-4-s-bystanders", BELOW, scenario::lived_4_s),
    case("trigger-survives", BOTH, scenario::trigger_survives),
    case("biggest-not-newest", BOTH, |fixture| fixture.kills_role(&["group", "big=18", "newer=4", "newest=14"], "big")),
    case("smallest-by-score", BOTH, scenario::smallest_by_score),
    case("thread-allocates", BOTH, |fixture| fixture.kills_itself(&["thread-eat", TOO_MUCH])),
    case("leader-gone", BOTH, scenario::leader_gone),
    case("shared-memory", BOTH, scenario::shared_memory),
    case("nested-pidns", EVERYWHERE, |fixture| fixture.kills_child(&["nested-pidns", TOO_MUCH])),
    case("nested-init", BOTH, scenario::nested_init),
    case("parent-died-first", BOTH, scenario::parent_died_first),
    case("cmdline-100-kb", BOTH, scenario::cmdline_100_kb),
    case("cmdline-not-utf8", BOTH, scenario::cmdline_not_utf8),
    case("cmdline-empty", BOTH, scenario::cmdline_empty),
    case("cmdline-wiped", BOTH, scenario::cmdline_wiped),
    case("odd-name", BOTH, scenario::odd_name),
    case("kill-9", BELOW, scenario::kill_9),
    case("kill-9-by-a-shell", BOTH, scenario::kill_9_by_a_shell),
    case("bystanders-alone", BOTH, scenario::bystanders_alone),
    case("row", BOTH, scenario::row),
    case("global-oom", BELOW, scenario::global_oom),
    case("pid-reused", CONTAINER, scenario::pid_reused),
    case("sibling-namespace", CONTAINER, |fixture| scenario::kill_elsewhere(fixture, Some(&Sandbox::new()))),
    case("namespace-above", CONTAINER, |fixture| scenario::kill_elsewhere(fixture, None)),
    case("oom-group", TOP, scenario::oom_group),
    case("oom-group-init", TOP, scenario::oom_group_init),
];
