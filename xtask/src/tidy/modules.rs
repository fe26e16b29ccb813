//! Which module of krunner a file is, and which modules its paths lead to. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{Source, find_words, is_word};

const ROOT: &str = "krunner/src/";

/// What a path inside the crate begins with.
const ROOTS: [&str; 3] = ["crate", "self", "super"];

/// A module's path below the crate's root; empty for the root itself.
pub(super) type ModulePath = Vec<String>;

/// The module of a file of krunner; `None` for other files, programs and files of unit tests.
pub(super) fn module_of(path: &str) -> Option<ModulePath> {
    let below = path.strip_prefix(ROOT)?.strip_suffix(".rs")?;
    if below == "main" || below.ends_with("_tests") {
        return None;
    }
    let below = below.strip_suffix("/mod").unwrap_or(below);
    if below == "lib" { Some(Vec::new()) } else { Some(below.split('/').map(str::to_owned).collect()) }
}

/// The code with every `#[cfg(test)]` item turned to spaces.
pub(super) fn code_without_tests(source: &Source) -> String {
    const MARK: &str = "#[cfg(test)]";
    let code = source.code();
    let mut blanked = code.as_bytes().to_vec();
    for (start, _) in code.match_indices(MARK) {
        let end = start + MARK.len() + item_end(&code[start + MARK.len()..]);
        blanked[start..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    }
    String::from_utf8(blanked).unwrap_or_default()
}

/// The length of the item that the code begins with: up to its `;` or the end of its block.
fn item_end(code: &str) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate() {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && matches!(byte, b';' | b'}') {
            return offset + 1;
        }
    }
    code.len()
}

/// The modules that a file declares for tests only: those that are missing from its other code.
pub(super) fn test_modules(module: &[String], code: &str, without_tests: &str) -> Vec<ModulePath> {
    let declared = |code: &str| -> BTreeSet<String> {
        find_words(code, "mod")
            .filter_map(|offset| code[offset + "mod".len()..].split_once(';'))
            .map(|(name, _)| name.trim().to_owned())
            .filter(|name| !name.is_empty() && name.bytes().all(is_word))
            .collect()
    };
    declared(code)
        .difference(&declared(without_tests))
        .map(|name| [module, std::slice::from_ref(name)].concat())
        .collect()
}

/// A path in the code; each name of a group is a path of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CodePath<'a> {
    pub(super) offset: usize,
    pub(super) segments: Vec<&'a str>,
    /// The name behind `as`.
    alias: Option<&'a str>,
}

impl CodePath<'_> {
    /// The name that a `use` of this path introduces.
    fn name(&self) -> Option<&str> {
        self.alias.or_else(|| self.segments.iter().rev().find(|segment| **segment != "self").copied())
    }
}

/// The paths in the code that begin with `crate`, `self` or `super`.
pub(super) fn paths(code: &str) -> Vec<CodePath<'_>> {
    let mut found = Vec::new();
    for root in ROOTS {
        for offset in find_words(code, root) {
            let before = code[..offset].trim_end();
            let is_first = !before.ends_with("::") && !before.ends_with('$');
            let in_group = root == "self" && before.ends_with(['{', ',']);
            if is_first && !in_group && code[offset + root.len()..].trim_start().starts_with("::") {
                read_path(code, offset, &[], &mut found);
            }
        }
    }
    found
}

/// The paths of all `use` declarations.
fn declared_uses(code: &str) -> Vec<CodePath<'_>> {
    let mut found = Vec::new();
    for offset in find_words(code, "use") {
        read_path(code, offset + "use".len(), &[], &mut found);
    }
    found
}

/// Reads a path, or a branch of one whose beginning is `prefix`; returns the offset behind it.
fn read_path<'a>(code: &'a str, at: usize, prefix: &[&'a str], found: &mut Vec<CodePath<'a>>) -> usize {
    let mut segments = prefix.to_vec();
    let mut next = skip_space(code, at);
    let offset = next;
    loop {
        if code[next..].starts_with('{') {
            return read_group(code, next, &segments, found);
        }
        let Some(segment) = word_at(code, next) else { break };
        segments.push(segment);
        next += segment.len();
        let behind = skip_space(code, next);
        if !code[behind..].starts_with("::") {
            break;
        }
        next = skip_space(code, behind + "::".len());
    }
    let behind = skip_space(code, next);
    let alias = (word_at(code, behind) == Some("as")).then(|| word_at(code, skip_space(code, behind + "as".len())));
    found.push(CodePath { offset, segments, alias: alias.flatten() });
    next
}

/// Reads the branches of a group that opens at `open`; returns the offset behind it.
fn read_group<'a>(code: &'a str, open: usize, prefix: &[&'a str], found: &mut Vec<CodePath<'a>>) -> usize {
    let mut next = open + 1;
    loop {
        next = skip_space(code, next);
        match code[next..].bytes().next() {
            None => return code.len(),
            Some(b'}') => return next + 1,
            Some(b',') => next += 1,
            Some(b'*') => {
                found.push(CodePath { offset: next, segments: prefix.to_vec(), alias: None });
                next += 1;
            }
            Some(_) => {
                next = read_path(code, next, prefix, found);
                // The name behind `as`.
                next += code[next..].bytes().take_while(|byte| !matches!(byte, b',' | b'}')).count();
            }
        }
    }
}

fn word_at(code: &str, at: usize) -> Option<&str> {
    let length = code[at..].bytes().take_while(|&byte| is_word(byte)).count();
    (length > 0).then(|| &code[at..at + length])
}

fn skip_space(code: &str, at: usize) -> usize {
    code.len() - code[at..].trim_start().len()
}

/// The path from the crate's root, seen from `module`; `None` when it leaves the crate.
pub(super) fn absolute(module: &[String], segments: &[&str]) -> Option<ModulePath> {
    let mut target = module.to_vec();
    for (index, segment) in segments.iter().enumerate() {
        match *segment {
            "crate" if index == 0 => target.clear(),
            "self" => {}
            "super" => {
                target.pop()?;
            }
            name => target.push(name.to_owned()),
        }
    }
    Some(target)
}

/// All modules, and the names that each has by `use`.
#[derive(Debug, Default)]
pub(super) struct ModuleTree {
    modules: BTreeSet<ModulePath>,
    names: BTreeMap<ModulePath, BTreeMap<String, ModulePath>>,
}

impl ModuleTree {
    /// The tree of these modules, each with its code.
    pub(super) fn new<'a>(files: impl Iterator<Item = (&'a ModulePath, &'a str)> + Clone) -> Self {
        let modules: BTreeSet<ModulePath> = files.clone().map(|(module, _)| module.clone()).collect();
        let mut names: BTreeMap<ModulePath, BTreeMap<String, ModulePath>> = BTreeMap::new();
        for (module, code) in files {
            for path in declared_uses(code) {
                let Some(first) = path.segments.first() else { continue };
                let is_child = modules.contains(&[module.as_slice(), &[(*first).to_owned()]].concat());
                if (ROOTS.contains(first) || is_child)
                    && let (Some(name), Some(target)) = (path.name(), absolute(module, &path.segments))
                {
                    names.entry(module.clone()).or_default().insert(name.to_owned(), target);
                }
            }
        }
        Self { modules, names }
    }

    /// The module that has what a path names, seen from `module`; `None` when the path leaves the crate.
    pub(super) fn resolve(&self, module: &[String], segments: &[&str]) -> Option<ModulePath> {
        /// Names that lead to names; more would be a ring.
        const MAX_STEPS: usize = 8;
        let mut target = absolute(module, segments)?;
        for _ in 0..MAX_STEPS {
            let depth = (0..=target.len()).rev().find(|&depth| self.modules.contains(&target[..depth]))?;
            let Some(name) = target.get(depth) else { return Some(target) };
            let Some(next) = self.names.get(&target[..depth]).and_then(|names| names.get(name)) else {
                target.truncate(depth);
                return Some(target);
            };
            target = [next.as_slice(), &target[depth + 1..]].concat();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> ModulePath {
        text.split('/').map(str::to_owned).collect()
    }

    #[test]
    fn files_are_modules() {
        assert_eq!(module_of("krunner/src/a/mod.rs"), Some(path("a")));
        assert_eq!(module_of("krunner/src/a/b.rs"), Some(path("a/b")));
        assert_eq!(module_of("krunner/src/lib.rs"), Some(Vec::new()));
        for other in ["krunner/src/main.rs", "krunner/src/a_tests.rs", "xtask/src/a.rs", "krunner/src/a.css"] {
            assert_eq!(module_of(other), None, "{other}");
        }
    }

    #[test]
    fn groups_are_one_path_for_each_name() {
        let found = |code| paths(code).into_iter().map(|path| path.segments.join("/")).collect::<Vec<_>>();
        assert_eq!(
            found("use crate::{a::{self, b}, c as d, e::*};"),
            ["crate/a/self", "crate/a/b", "crate/c", "crate/e"]
        );
        assert_eq!(found("use crate::{\n    *,\n};"), ["crate"]);
        assert_eq!(found("super::super::f::<T>()"), ["super/super/f"]);
        assert_eq!(found("use a::{self, b}; pub(super) fn f(self) { $crate }"), [""; 0]);
    }

    #[test]
    fn paths_lead_to_the_module_that_has_the_item() {
        let files = [
            (path("a"), "mod b;\nmod c;\npub(crate) use c::{Type as Name, inner::Deep};\nuse serde::Serialize;"),
            (path("a/b"), ""),
            (path("a/c"), "pub use self::inner::Type;\nuse super::Name;"),
            (path("a/c/inner"), ""),
        ];
        let tree = ModuleTree::new(files.iter().map(|(module, code)| (module, *code)));
        let seen = |segments: &[&str]| tree.resolve(&path("a/b"), segments).map(|found| found.join("/"));
        assert_eq!(seen(&["super", "c", "Item", "new"]).as_deref(), Some("a/c"));
        assert_eq!(seen(&["super", "Name", "new"]).as_deref(), Some("a/c/inner"));
        assert_eq!(seen(&["crate", "a", "Deep"]).as_deref(), Some("a/c/inner"));
        assert_eq!(seen(&["super", "Serialize"]).as_deref(), Some("a"));
        assert_eq!(seen(&["super", "super", "super"]), None);
    }

    #[test]
    fn items_of_tests_are_blanked_wherever_they_are() {
        let text = "#[cfg(test)]\nmod testing;\nmod a;\n#[cfg(test)]\nmod tests {\n    f(b[0]);\n}\nmod c;\n";
        let source = Source::new("krunner/src/room.rs", text);
        let code = code_without_tests(&source);
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["mod", "a;", "mod", "c;"]);
        assert_eq!(test_modules(&path("room"), source.code(), &code), [path("room/testing")]);
    }
}
