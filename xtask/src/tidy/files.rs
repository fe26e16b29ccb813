//! Rules for one .rs file at a time: its head and length, what a `mod.rs` and a `main.rs` may hold,
//! and the words that belong to one owner.

use super::Complaint;
use super::source::{Source, find_words};

/// Longer than this, and a file holds more than one thing.
const LONGEST: usize = 500;

/// Files that may be longer, each with its reason. Empty, and best left so.
const LONGER: &[(&str, &str)] = &[];

/// A `main.rs` has fewer lines than this.
const MAIN_LINES: usize = 25;

/// A word that only some places may say.
struct Owned {
    word: &'static str,
    /// Where the rule holds.
    within: &'static str,
    /// Files, or folders with a final `/`, that may say it.
    owners: &'static [&'static str],
    remedy: &'static str,
}

const OWNED: &[Owned] = &[
    Owned {
        word: "zeromq",
        within: "krunner/src/",
        owners: &["krunner/src/transport/socket/"],
        remedy: "only transport/socket/ knows the crate; use what it exports",
    },
    Owned {
        word: "aya",
        within: "krunner/src/",
        owners: &["krunner/src/monitor/sources/tracer/bpf.rs", "krunner/src/monitor/sources/tracer/bpf/"],
        remedy: "only monitor/sources/tracer/bpf.rs knows aya; everything else sees plain data",
    },
];

/// The rooms that never see frames or sockets, under whatever path they would be named.
const WIRELESS: &[&str] = &["process", "jupyter", "terminal", "service", "monitor", "user_input"];

/// Complaints about one file.
pub(super) fn check(source: &Source, complaints: &mut Vec<Complaint>) {
    let path = source.path();
    let mut complain =
        |line, problem: String, remedy: &str| complaints.push(Complaint::new(path, line, problem, remedy));

    if !source.text().starts_with("//!") {
        complain(1, "does not open with //!".into(), "say what the file owns, what it must not do, and why");
    }
    let lines = source.text().lines().count();
    if lines > LONGEST && !LONGER.iter().any(|(allowed, _)| *allowed == path) {
        complain(LONGEST + 1, format!("{lines} lines, more than {LONGEST}"), "split it by what it owns");
    }
    if path.ends_with("/src/main.rs") && lines >= MAIN_LINES {
        complain(MAIN_LINES, format!("{lines} lines; a main.rs has fewer than {MAIN_LINES}"), "move it to the library");
    }
    if path.ends_with("/mod.rs")
        && let Some((offset, item)) = first_logic(source.code())
    {
        complain(
            source.line_of(offset),
            format!("a mod.rs with `{item}`"),
            "move it to a file of its own, and `pub use` it",
        );
    }
    for owned in OWNED.iter().filter(|owned| path.starts_with(owned.within)) {
        if owned.owners.iter().any(|owner| is_at_or_below(path, owner)) {
            continue;
        }
        for offset in find_words(source.code(), owned.word) {
            complain(source.line_of(offset), format!("`{}` does not belong here", owned.word), owned.remedy);
        }
    }
    for room in WIRELESS {
        let folder = format!("krunner/src/{room}/");
        if !path.starts_with(&folder) && path != format!("krunner/src/{room}.rs") {
            continue;
        }
        for word in ["wire::", "transport::"] {
            // `crate::wire::` is a matter of layers, and reported there.
            let bare = find_words(source.code(), word).filter(|&offset| !source.code()[..offset].ends_with("crate::"));
            for offset in bare {
                let problem = format!("`{room}` mentions `{word}`");
                complain(source.line_of(offset), problem, "yield events of its own; the session maps them to replies");
            }
        }
    }
}

fn is_at_or_below(path: &str, owner: &str) -> bool {
    if owner.ends_with('/') { path.starts_with(owner) } else { path == owner }
}

/// The first item of a `mod.rs` that is neither `mod x;` nor `use`, with its opening words.
fn first_logic(code: &str) -> Option<(usize, String)> {
    let code = without_attributes(code);
    let mut start = 0;
    for item in code.split_inclusive(';') {
        let trimmed = item.trim();
        let offset = start + (item.len() - item.trim_start().len());
        start += item.len();
        let declaration = trimmed.strip_prefix("pub").map_or(trimmed, |rest| {
            let rest = rest.trim_start();
            rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or(rest, |(_, rest)| rest)
        });
        let mut words = declaration.split_whitespace();
        let declares = match words.next() {
            None | Some("use") => true,
            Some("mod") => !declaration.contains('{'),
            Some(_) => false,
        };
        if !declares {
            let opening = trimmed.split(['{', '(', ';', '\n']).next().unwrap_or(trimmed).trim();
            return Some((offset, opening.to_owned()));
        }
    }
    None
}

/// The code with `#[..]` and `#![..]` turned to spaces.
fn without_attributes(code: &str) -> String {
    let mut blanked = code.as_bytes().to_vec();
    let mut at = 0;
    while let Some(found) = code[at..].find('#') {
        let start = at + found;
        let open = start + 1 + usize::from(code[start + 1..].starts_with('!'));
        at = start + 1;
        if !code[open..].starts_with('[') {
            continue;
        }
        let mut depth = 0_usize;
        for (length, byte) in code.as_bytes()[open..].iter().enumerate() {
            match byte {
                b'[' => depth += 1,
                b']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                at = open + length + 1;
                break;
            }
        }
        blanked[start..at].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    }
    String::from_utf8(blanked).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> Vec<(usize, String)> {
        let mut complaints = Vec::new();
        check(&Source::new(path, text), &mut complaints);
        complaints.into_iter().map(|complaint| (complaint.line, complaint.problem)).collect()
    }

    #[test]
    fn a_file_opens_with_its_purpose() {
        assert_eq!(problems("krunner/src/a.rs", "//! A.\nfn f() {}\n"), []);
        assert_eq!(problems("krunner/src/a.rs", "// A.\n//! B.\n")[0].0, 1);
        assert_eq!(problems("krunner/src/a.rs", "").len(), 1);
    }

    #[test]
    fn length_has_a_limit() {
        let long = |lines| "//!\n".repeat(lines);
        assert_eq!(problems("tests/src/a.rs", &long(500)), []);
        assert_eq!(problems("tests/src/a.rs", &long(501))[0].0, 501);
        assert_eq!(problems("krunner/src/main.rs", &long(24)), []);
        assert_eq!(problems("krunner/src/main.rs", &long(25)).len(), 1);
    }

    #[test]
    fn a_mod_file_only_declares() {
        let good =
            "//! Room.\n#[cfg(unix)]\nmod a;\npub(crate) mod b;\n\npub use a::{\n    A,\n    B,\n};\nuse b::C;\n";
        assert_eq!(problems("krunner/src/wire/mod.rs", good), []);
        let bad = "//! Room.\nmod a;\n\n#[must_use]\npub fn f(x: u8) -> u8 {\n    x\n}\n";
        assert_eq!(problems("krunner/src/wire/mod.rs", bad), [(5, "a mod.rs with `pub fn f`".to_owned())]);
        assert_eq!(problems("tests/src/x/mod.rs", "//! T.\nmod t { fn f() {} }\n").len(), 1);
        assert_eq!(problems("tests/src/x/mod.rs", "//! T.\npub struct S;\n").len(), 1);
    }

    #[test]
    fn words_have_owners() {
        let text = "//! X.\nuse zeromq::PullSocket;\n";
        assert_eq!(problems("krunner/src/transport/socket/receive.rs", text), []);
        assert_eq!(problems("krunner/src/session/x.rs", text)[0].0, 2);
        assert_eq!(problems("xtask/src/bench/peer.rs", text), []);
        assert_eq!(problems("krunner/src/cli/x.rs", "//! A.\n// zeromq\nconst A: &str = \"zeromq\";\n"), []);
        assert_eq!(problems("krunner/src/monitor/sources/tracer/bpf.rs", "//! B.\nuse aya::Ebpf;\n"), []);
        assert_eq!(problems("krunner/src/monitor/sources/tracer/decode.rs", "//! B.\nuse aya::Ebpf;\n").len(), 1);
    }

    #[test]
    fn rooms_without_sockets_do_not_name_them() {
        let text = "//! X.\nfn f() { super::super::wire::go() }\n";
        assert_eq!(problems("krunner/src/process/x.rs", text).len(), 1);
        assert_eq!(problems("krunner/src/user_input.rs", text).len(), 1);
        assert_eq!(problems("krunner/src/session/x.rs", text), []);
    }
}
