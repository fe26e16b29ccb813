//! What an Event says of a kill: who died, who started it, why, and what would help. Names of programs only, and only of those in the
//! victim's container.

use std::fmt::Write as _;

use crate::monitor::node::{NodeKill, NodeVictim};
use crate::monitor::{Explanation, LimitHit, LimitScope, in_mib};
use crate::node::scope::{HostKill, PeerScope};

/// Ancestors in the text.
const SHOWN_ANCESTORS: usize = 4;

/// One line, without a final full stop.
#[must_use]
pub(super) fn summary(kill: &HostKill<'_>) -> String {
    let report = kill.report();
    let Some(view) = PeerScope::of_container_of(report).and_then(|scope| scope.view(kill)) else {
        // The victim's cgroup is not known any more.
        return format!("{} was OOM-killed", report.victim.process.name.escape_debug());
    };
    in_words(&view)
}

fn in_words(view: &NodeKill) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    if let Some((victim, others)) = view.victims.split_first() {
        let _ = write!(text, "{} was OOM-killed", victim.process.name.escape_debug());
        if let Some(resident) = resident(victim) {
            let _ = write!(text, " with {resident} resident");
        }
        let others = others.len() as u64 + view.victims_left_out;
        if others > 0 {
            let _ = write!(text, ", and {others} more with it");
        }
    }
    let ancestors: Vec<String> = view
        .ancestors
        .iter()
        .take(SHOWN_ANCESTORS)
        .map(|ancestor| ancestor.process.name.escape_debug().to_string())
        .collect();
    if !ancestors.is_empty() {
        let _ = write!(text, "; started by {}", ancestors.join(" < "));
    }
    if let Some(limit) = &view.limit {
        let _ = write!(text, "; {}", limit_in_words(limit));
    }
    // What it says of a limit outside contains the usage there.
    let has_advice =
        view.limit.as_ref().is_none_or(|limit| !matches!(limit.scope, LimitScope::Above | LimitScope::Beside));
    let explanation = Explanation { limit: view.limit.clone(), usage: view.usage.clone(), ..Explanation::default() };
    if let Some(advice) = explanation.with_advice().advice.filter(|_| has_advice) {
        text.push_str(&advice.to_string().replace('\n', "; "));
    }
    text
}

/// Without the path, and without the usage of what others share.
fn limit_in_words(limit: &LimitHit) -> String {
    match limit.scope {
        LimitScope::Container | LimitScope::Inner => {
            LimitHit { path: None, is_trigger_outside: None, ..limit.clone() }.to_string()
        }
        LimitScope::Above => "limit: not the container's, but one above it (the pod's or a slice's)".to_owned(),
        LimitScope::Beside => "limit: that of another container".to_owned(),
        LimitScope::Machine => "limit: none; the node ran out of memory".to_owned(),
        LimitScope::Outside | LimitScope::Unknown => "limit: not known".to_owned(),
    }
}

/// `None` if the record has no sizes.
fn resident(victim: &NodeVictim) -> Option<String> {
    let memory = &victim.memory;
    let bytes = memory.anon_bytes.saturating_add(memory.file_bytes).saturating_add(memory.shmem_bytes);
    (bytes > 0).then(|| in_mib(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Actor;
    use crate::node::identity::HostIdentity;
    use crate::node::scope::Named;
    use crate::node::scope::tests::{evidence, report};

    /// All processes of the report are in the victim's container but for the last ancestor.
    fn find(named: Named) -> Option<HostIdentity> {
        let Named::Process(process) = named else { return None };
        let cgroup = if process.pid == 700 { "/" } else { "/pod/a/job" };
        Some(HostIdentity { pids: vec![process.pid], namespaces: vec![1], cgroup: cgroup.to_owned() })
    }

    #[test]
    fn programs_of_the_container_are_named_without_arguments() {
        let (report, evidence) = (report(), evidence(&[]));
        let text = summary(&HostKill::new(&report, &evidence, &find));
        assert!(text.starts_with("hog was OOM-killed with 0m resident; started by worker < init; limit: "), "{text}");
        assert!(text.ends_with("; limit: not the container's, but one above it (the pod's or a slice's)"), "{text}");
        assert!(!["secret-host", "--arg", "/pod"].iter().any(|foreign| text.contains(foreign)), "{text}");
    }

    #[test]
    fn victim_whose_cgroup_is_unknown_is_named_alone() {
        let (mut report, evidence) = (report(), evidence(&[]));
        report.cgroup = None;
        report.trigger = Some(Actor { pid: 1, name: "other".to_owned() });
        assert_eq!(summary(&HostKill::new(&report, &evidence, &find)), "hog was OOM-killed");
    }
}
