//! No two modules of krunner that stand beside each other use each other, directly or around a ring.
//!
//! A path (`crate::a::b`, `super::c`, `self::d::{e, f}`) leads to the deepest module that it names, and by a name that this module
//! has from a `use` on to where that leads; what follows is an item of that module. Each use counts for the two siblings, files or folders, in the lowest folder that has both ends. A module and its own
//! children are no siblings: they may use each other. Unit tests do not count.

use std::collections::{BTreeMap, BTreeSet};

use super::Complaint;
use super::modules::{ModulePath, ModuleTree, code_without_tests, module_of, paths, test_modules};
use super::source::Source;

/// One module that uses another one beside it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct SiblingUse {
    from: String,
    to: String,
    path: String,
    line: usize,
}

/// Adds a complaint for each group of modules that use each other in a ring, and returns the number of groups.
pub(super) fn check(sources: &[Source], complaints: &mut Vec<Complaint>) -> usize {
    let rings = rings(&sibling_uses(sources));
    for ring in &rings {
        let Some(first) = ring.first() else { continue };
        let members: BTreeSet<&str> = ring.iter().flat_map(|edge| [edge.from.as_str(), edge.to.as_str()]).collect();
        let members: Vec<&str> = members.into_iter().collect();
        let places = ring.iter().map(|edge| format!("{}:{} {} -> {}", edge.path, edge.line, edge.from, edge.to));
        complaints.push(Complaint::new(
            &first.path,
            first.line,
            format!("a cycle: {}", members.join(" <-> ")),
            format!("move what both need to a file of its own:\n    {}", places.collect::<Vec<_>>().join("\n    ")),
        ));
    }
    rings.len()
}

/// All uses between siblings, by the folder that both are in.
fn sibling_uses(sources: &[Source]) -> BTreeMap<ModulePath, Vec<SiblingUse>> {
    let files: Vec<(ModulePath, &Source, String)> = sources
        .iter()
        .filter_map(|source| Some((module_of(source.path())?, source, code_without_tests(source))))
        .collect();
    let tests: BTreeSet<ModulePath> =
        files.iter().flat_map(|(module, source, code)| test_modules(module, source.code(), code)).collect();
    let tree = ModuleTree::new(files.iter().map(|(module, _, code)| (module, code.as_str())));
    let mut uses: BTreeMap<ModulePath, Vec<SiblingUse>> = BTreeMap::new();
    for (module, source, code) in &files {
        if tests.iter().any(|test| module.starts_with(test)) {
            continue;
        }
        for used in paths(code) {
            let Some(target) = tree.resolve(module, &used.segments) else { continue };
            let common = module.iter().zip(&target).take_while(|(own, other)| own == other).count();
            if common == module.len() || common == target.len() {
                continue;
            }
            let (from, to) = (module[..=common].join("/"), target[..=common].join("/"));
            let (path, line) = (source.path().to_owned(), source.line_of(used.offset));
            uses.entry(module[..common].to_vec()).or_default().push(SiblingUse { from, to, path, line });
        }
    }
    uses
}

/// The strongly connected groups of more than one module, each as the uses inside it.
fn rings(uses: &BTreeMap<ModulePath, Vec<SiblingUse>>) -> Vec<Vec<SiblingUse>> {
    let mut rings = Vec::new();
    for edges in uses.values() {
        let mut used: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for edge in edges {
            used.entry(&edge.from).or_default().insert(&edge.to);
        }
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            used.keys().map(|module| (*module, reachable(&used, module))).collect();
        let reaches = |from: &str, to: &str| reached.get(from).is_some_and(|found| found.contains(to));
        let mut inside: BTreeMap<Vec<&str>, Vec<SiblingUse>> = BTreeMap::new();
        for edge in edges.iter().filter(|edge| reaches(&edge.to, &edge.from)) {
            let group = used.keys().filter(|other| reaches(&edge.from, other) && reaches(other, &edge.from));
            inside.entry(group.copied().collect()).or_default().push(edge.clone());
        }
        rings.extend(inside.into_values().map(|mut ring| {
            ring.sort();
            ring
        }));
    }
    rings
}

/// The modules that `start` uses, directly or not.
fn reachable<'a>(used: &BTreeMap<&'a str, BTreeSet<&'a str>>, start: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![start];
    while let Some(module) = waiting.pop() {
        for next in used.get(module).into_iter().flatten() {
            if found.insert(*next) {
                waiting.push(next);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(files: &[(&str, &str)]) -> Vec<Complaint> {
        let sources: Vec<Source> =
            files.iter().map(|(path, text)| Source::new(&format!("krunner/src/{path}"), text)).collect();
        let mut complaints = Vec::new();
        let count = check(&sources, &mut complaints);
        assert_eq!(count, complaints.len());
        complaints
    }

    fn problems(files: &[(&str, &str)]) -> Vec<String> {
        complaints(files).into_iter().map(|complaint| complaint.problem).collect()
    }

    #[test]
    fn a_pair_is_named_with_all_its_places() {
        let found = complaints(&[
            ("room/mod.rs", "mod a;\nmod b;\n"),
            ("room/a.rs", "//! A.\nuse super::b::B;\nuse crate::room::b;\n"),
            ("room/b.rs", "//! B.\n\nfn f() { crate::room::a::f(); }\n"),
        ]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].problem, "a cycle: room/a <-> room/b");
        assert_eq!((found[0].path.as_str(), found[0].line), ("krunner/src/room/a.rs", 2));
        for place in ["a.rs:2 room/a -> room/b", "a.rs:3 room/a -> room/b", "b.rs:3 room/b -> room/a"] {
            assert!(found[0].remedy.contains(place), "{place}: {}", found[0].remedy);
        }
    }

    #[test]
    fn a_ring_is_one_cycle() {
        let files = [
            ("a.rs", "use crate::b::B;"),
            ("b.rs", "use crate::c;"),
            ("c.rs", "use crate::{a::{self, A}, d};"),
            ("d.rs", "use crate::e::E;"),
            ("e.rs", "//! E."),
        ];
        assert_eq!(problems(&files), ["a cycle: a <-> b <-> c"]);
    }

    #[test]
    fn uses_count_for_the_folders_that_stand_beside_each_other() {
        let files = [
            ("room/one/deep.rs", "use crate::room::two::Item;"),
            ("room/one.rs", "mod deep;"),
            ("room/two.rs", "mod inner;"),
            ("room/two/inner.rs", "use super::super::one::deep::Deep;"),
        ];
        assert_eq!(problems(&files), ["a cycle: room/one <-> room/two"]);
    }

    #[test]
    fn parents_and_children_may_use_each_other() {
        let files = [
            ("room.rs", "mod a;\nuse a::A;\nuse self::a::B;\nuse crate::room::a::C;"),
            ("room/a.rs", "use super::Room;\npub(in crate::room) fn f() {}"),
            ("lib.rs", "use crate::room::a::A;"),
        ];
        assert_eq!(problems(&files), [""; 0]);
    }

    #[test]
    fn the_end_of_a_path_is_an_item() {
        let files = [("a.rs", "use crate::b::not_a_module::X;"), ("b.rs", "use crate::{a::x as y, c};"), ("c.rs", "")];
        assert_eq!(problems(&files), ["a cycle: a <-> b"]);
    }

    #[test]
    fn a_name_of_the_parent_hides_no_cycle() {
        let files = [
            ("room/mod.rs", "mod a;\nmod b;\npub(crate) use a::A;\nuse b::B as Other;"),
            ("room/a.rs", "use super::Other;"),
            ("room/b.rs", "use crate::room::A;"),
        ];
        assert_eq!(problems(&files), ["a cycle: room/a <-> room/b"]);
    }

    #[test]
    fn groups_nest() {
        let files = [
            ("a.rs", "use crate::{\n    x::{Y, z::{self}},\n    b::{c::C, *},\n    d,\n};"),
            ("b.rs", ""),
            ("b/c.rs", ""),
            ("d.rs", "use crate::a;"),
        ];
        assert_eq!(problems(&files), ["a cycle: a <-> d"]);
    }

    #[test]
    fn tests_do_not_count() {
        let files = [
            ("a.rs", "#[cfg(test)]\nmod testing;\nuse crate::b;\n#[cfg(test)]\nuse crate::c;"),
            ("a/testing.rs", "use crate::d::D;"),
            ("b.rs", "#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n"),
            ("b_tests.rs", "use crate::a;"),
            ("c.rs", "use crate::a;"),
            ("d.rs", "use crate::a;"),
        ];
        assert_eq!(problems(&files), [""; 0]);
    }

    #[test]
    fn only_krunner_is_looked_at() {
        let sources = [Source::new("xtask/src/a.rs", "use crate::b;"), Source::new("xtask/src/b.rs", "use crate::a;")];
        assert_eq!(check(&sources, &mut Vec::new()), 0);
    }
}
