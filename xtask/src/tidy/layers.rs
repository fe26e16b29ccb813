//! Who may use whom inside krunner: the arrows of ARCHITECTURE.md as a table.
//!
//! A room is a folder or file right below `krunner/src`. The command line sits on top and uses
//! everything; infrastructure sits below and is used by everything. In between, a room uses only
//! what its row allows. A room with no row is a complaint, so that a new one gets its arrows here.

use super::Complaint;
use super::source::{Source, is_word};

const ROOT: &str = "krunner/src/";

/// Uses everything, is used by nothing but `main.rs`.
const TOP: &str = "cli";

/// Used by every room but the pure ones. These may use each other.
const INFRASTRUCTURE: &[&str] = &["config", "logging", "writer", "error", "exit", "tasks"];

/// Rooms that use no other room at all, infrastructure included: `sys` wraps system calls, `wire` is
/// the protocol as plain types, `zmtp` the framing below it, `exit` a list of numbers.
const ALONE: &[&str] = &["sys", "wire", "zmtp", "exit"];

/// A room and the rooms that it may use besides infrastructure and `sys`.
const ARROWS: &[(&str, &[&str])] = &[
    ("session", &["runtime", "terminal", "service", "process", "user_input", "monitor", "transport", "wire"]),
    ("runtime", &["jupyter", "terminal", "service", "http_client", "process"]),
    ("jupyter", &["process", "zmtp"]),
    ("service", &["http_client", "process"]),
    ("terminal", &["process"]),
    ("transport", &["wire", "zmtp"]),
    ("http_client", &[]),
    ("process", &[]),
    ("user_input", &["process"]),
    ("monitor", &[]),
    ("wire", &[]),
    ("zmtp", &[]),
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

/// The room of a file of krunner; none for `lib.rs` and `main.rs`.
fn room_of(path: &str) -> Option<&str> {
    let below = path.strip_prefix(ROOT)?;
    let room = below.split('/').next()?.trim_end_matches(".rs");
    (!matches!(room, "lib" | "main")).then_some(room)
}

fn is_known(room: &str) -> bool {
    room == TOP
        || INFRASTRUCTURE.contains(&room)
        || ALONE.contains(&room)
        || ARROWS.iter().any(|(known, _)| *known == room)
}

fn arrows_of(room: &str) -> &'static [&'static str] {
    ARROWS.iter().find(|(known, _)| *known == room).map_or(&[], |(_, used)| used)
}

fn may_use(room: &str, used: &str) -> bool {
    if room == used || room == TOP {
        return true;
    }
    if ALONE.contains(&room) || used == TOP {
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
        let found =
            complaints("krunner/src/process/pump.rs", "//! Pump.\nuse crate::error;\nuse crate::wire::Reply;\n");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, found[0].problem.as_str()), (3, "`process` uses `wire`"));
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
}
