//! Who may use whom inside krunner: the arrows of ARCHITECTURE.md as a table.
//!
//! A room is a folder or file right below `krunner/src`. The command line sits on top and uses
//! everything; infrastructure sits below and is used by everything. In between, a room uses only
//! what its row allows. A room with no row is a complaint, so that a new one gets its arrows here.
//! Inside `monitor` there is a table of the same kind for its own rooms.

use super::Complaint;
use super::modules::{absolute, code_without_tests, module_of, paths};
use super::source::{Source, is_word};

const ROOT: &str = "krunner/src/";

/// Use everything: the command line is used by `main.rs` alone, the entry points of the fuzz targets by those.
const TOP: &[&str] = &["cli", "fuzzing"];

/// Used by every room but the pure ones. These may use each other.
const INFRASTRUCTURE: &[&str] =
    &["config", "logging", "writer", "error", "exit", "tasks", "user_folder", "remove_tree"];

/// Rooms that use no other room at all, infrastructure included: `sys` wraps system calls, `wire` is
/// the protocol as plain types, `zmtp` the framing below it, `exit` a list of numbers.
const ALONE: &[&str] = &["sys", "wire", "zmtp", "exit"];

/// A room and the rooms that it may use besides infrastructure and `sys`.
const ARROWS: &[(&str, &[&str])] = &[
    ("session", &["runtime", "terminal", "service", "process", "user_input", "monitor", "transport", "wire"]),
    ("runtime", &["jupyter", "terminal", "service", "http_client", "process"]),
    ("jupyter", &["supervisor", "process", "zmtp"]),
    ("service", &["supervisor", "http_client", "process", "wire"]),
    ("terminal", &["supervisor", "process"]),
    ("supervisor", &["process"]),
    ("transport", &["wire", "zmtp"]),
    ("http_client", &[]),
    ("process", &["wire"]),
    ("user_input", &["process"]),
    ("node", &["monitor", "http_client"]),
    ("monitor", &[]),
    ("wire", &[]),
    ("zmtp", &[]),
];

/// The rooms inside `monitor`, and what each may use of the others. The files beside them use all.
const MONITOR: &[(&str, &[&str])] = &[
    ("report", &["attribution", "explain", "sources", "model"]),
    ("attribution", &["explain", "model"]),
    ("sources", &["explain", "model"]),
    ("explain", &["model"]),
    ("model", &[]),
];

/// Complaints about arrows that point up or sideways.
pub(super) fn check(source: &Source, complaints: &mut Vec<Complaint>) {
    let Some(room) = room_of(source.path()) else { return };
    if !is_known(room) {
        complaints.push(Complaint::new(
            source.path(),
            1,
            format!("the room `{room}` is in no table"),
            "add it with its arrows to xtask/src/tidy/layers.rs and to ARCHITECTURE.md",
        ));
        return;
    }
    for (offset, used) in references(source.code()) {
        // Macros and items at the crate's root are no rooms.
        if is_known(used) && !may_use(room, used) {
            complaints.push(Complaint::new(
                source.path(),
                source.line_of(offset),
                format!("`{room}` uses `{used}`"),
                format!("{}; hand it what it needs from a room above both", allowance(room)),
            ));
        }
    }
}

/// Complaints about arrows inside `monitor`.
pub(super) fn check_monitor(source: &Source, complaints: &mut Vec<Complaint>) {
    let Some(module) = module_of(source.path()) else { return };
    let [top, room, ..] = module.as_slice() else { return };
    let Some((_, allowed)) = MONITOR.iter().find(|(known, _)| top == "monitor" && known == room) else { return };
    for path in paths(&code_without_tests(source)) {
        let Some(target) = absolute(&module, &path.segments) else { continue };
        let [used_top, used, ..] = target.as_slice() else { continue };
        if used_top == top && used != room && !allowed.contains(&used.as_str()) {
            let remedy = match allowed {
                [] => format!("`{room}` uses no other room of monitor, by its own path or by monitor's names"),
                allowed => format!("`{room}` may use {}, by their own paths", allowed.join(", ")),
            };
            let problem = format!("`monitor/{room}` uses `{used}`");
            complaints.push(Complaint::new(source.path(), source.line_of(path.offset), problem, remedy));
        }
    }
}

/// The room of a file of krunner; none for `lib.rs` and `main.rs`.
fn room_of(path: &str) -> Option<&str> {
    let below = path.strip_prefix(ROOT)?;
    let room = below.split('/').next()?.trim_end_matches(".rs");
    (!matches!(room, "lib" | "main")).then_some(room)
}

fn is_known(room: &str) -> bool {
    TOP.contains(&room)
        || INFRASTRUCTURE.contains(&room)
        || ALONE.contains(&room)
        || ARROWS.iter().any(|(known, _)| *known == room)
}

fn arrows_of(room: &str) -> &'static [&'static str] {
    ARROWS.iter().find(|(known, _)| *known == room).map_or(&[], |(_, used)| used)
}

fn may_use(room: &str, used: &str) -> bool {
    if room == used || TOP.contains(&room) {
        return true;
    }
    if ALONE.contains(&room) || TOP.contains(&used) {
        return false;
    }
    INFRASTRUCTURE.contains(&used) || used == "sys" || arrows_of(room).contains(&used)
}

fn allowance(room: &str) -> String {
    if ALONE.contains(&room) {
        return format!("`{room}` uses no other room");
    }
    let arrows = arrows_of(room);
    if arrows.is_empty() {
        return format!("`{room}` may use infrastructure only");
    }
    format!("`{room}` may use infrastructure and {}", arrows.join(", "))
}

/// The first segments of all `crate::` paths, those in `crate::{a::b, c}` too, with their offsets.
fn references(code: &str) -> Vec<(usize, &str)> {
    const CRATE: &str = "crate::";
    let mut found = Vec::new();
    for start in super::source::find_words(code, CRATE) {
        let after = start + CRATE.len();
        if code[after..].trim_start().starts_with('{') {
            let open = after + code[after..].find('{').unwrap_or(0);
            found.extend(group_heads(code, open));
        } else if let Some(head) = word_at(code, after) {
            found.push((after, head));
        }
    }
    found
}

/// The first segments of the paths in a braced group that opens at `open`.
fn group_heads(code: &str, open: usize) -> Vec<(usize, &str)> {
    let mut heads = Vec::new();
    let mut depth = 0_usize;
    for (length, byte) in code.as_bytes()[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && matches!(byte, b'{' | b',') {
            let rest = &code[open + length + 1..];
            let head = open + length + 1 + (rest.len() - rest.trim_start().len());
            heads.extend(word_at(code, head).map(|word| (head, word)));
        }
    }
    heads
}

fn word_at(code: &str, offset: usize) -> Option<&str> {
    let rest = &code[offset..];
    let length = rest.bytes().take_while(|&byte| is_word(byte)).count();
    (length > 0).then(|| &rest[..length])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<Complaint> {
        let mut complaints = Vec::new();
        check(&Source::new(path, text), &mut complaints);
        complaints
    }

    #[test]
    fn arrows_that_point_down_pass() {
        assert_eq!(complaints("krunner/src/session/queue.rs", "use crate::{process, wire::Op};\nuse crate::sys;"), []);
        assert_eq!(complaints("krunner/src/cli/send.rs", "use crate::transport::Push;"), []);
        assert_eq!(complaints("krunner/src/process/pump.rs", "use crate::tasks::TaskGroup;"), []);
        assert_eq!(complaints("krunner/src/process/pump.rs", "use crate::process::spawn;"), []);
        assert_eq!(complaints("krunner/src/lib.rs", "pub use crate::session::run;"), []);
    }

    #[test]
    fn an_arrow_that_points_up_is_named_with_its_line() {
        let found = complaints("krunner/src/http_client.rs", "//! HTTP.\nuse crate::error;\nuse crate::wire::Reply;\n");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, found[0].problem.as_str()), (3, "`http_client` uses `wire`"));
        assert!(found[0].remedy.contains("infrastructure only"));
    }

    #[test]
    fn groups_over_many_lines_are_read() {
        let text = "use crate::{\n    error::{Critical, chain},\n    session::Session,\n    wire,\n};\n";
        let found = complaints("krunner/src/transport/pull.rs", text);
        assert_eq!(found.iter().map(|complaint| complaint.line).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn paths_inside_code_count_and_comments_do_not() {
        let text = "// crate::cli::main\n/// [`crate::session`]\nfn f() { crate::cli::main() }\n";
        assert_eq!(complaints("krunner/src/runtime/c.rs", text).len(), 1);
    }

    #[test]
    fn pure_rooms_use_nothing() {
        assert_eq!(complaints("krunner/src/sys/fds.rs", "use crate::error::chain;").len(), 1);
        assert_eq!(complaints("krunner/src/wire/op.rs", "use crate::config::Paths;").len(), 1);
    }

    #[test]
    fn a_room_without_a_row_is_a_complaint() {
        assert_eq!(complaints("krunner/src/gossip/mod.rs", "mod a;").len(), 1);
        assert_eq!(complaints("xtask/src/gossip.rs", "use crate::anything;"), []);
    }

    #[test]
    fn rooms_of_the_monitor_use_those_below() {
        let problems = |path: &str, text: &str| -> Vec<String> {
            let mut complaints = Vec::new();
            check_monitor(&Source::new(&format!("krunner/src/monitor/{path}"), text), &mut complaints);
            complaints.into_iter().map(|complaint| complaint.problem).collect()
        };
        let none = [""; 0];
        assert_eq!(
            problems("attribution/engine.rs", "use super::infer; use crate::monitor::{explain::E, model};"),
            none
        );
        assert_eq!(
            problems("attribution/engine.rs", "use crate::monitor::report;"),
            ["`monitor/attribution` uses `report`"]
        );
        assert_eq!(problems("sources/mod.rs", "use super::attribution::X;"), ["`monitor/sources` uses `attribution`"]);
        assert_eq!(problems("model/a.rs", "use crate::monitor::OwnCharge;"), ["`monitor/model` uses `OwnCharge`"]);
        assert_eq!(problems("model/a.rs", "pub(in crate::monitor) use crate::error::chain;"), none);
        assert_eq!(problems("explain/a.rs", "#[cfg(test)]\nmod tests { use crate::monitor::report; }"), none);
        assert_eq!(problems("task.rs", "use super::report; use super::sources;"), none);
    }
}
