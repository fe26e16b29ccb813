//! Programs of steps whose output and end are known beforehand.

use proptest::prelude::*;

use super::action::Kind;

/// What a step runs.
#[derive(Clone, Debug)]
pub(super) enum Script {
    /// The empty command, which is skipped.
    Empty,
    /// `*` in a folder without anything to build or run.
    Heuristic,
    /// A C program, for `code`.
    Snippet { code: u8 },
    /// Lines on both streams, then an exit code.
    Say { lines: u8, code: u8 },
    /// Thousands of numbered lines.
    Count { lines: u16 },
    /// A line, then death by this signal.
    Die(i32),
    /// Leaves a process behind that ends a little later.
    Orphan,
    /// Asks the user and prints the answer.
    Ask,
    /// Runs until a signal ends it; `trap` says so and exits with [`CAUGHT`] when it is interrupted.
    Hold { trap: bool },
}

/// The exit code where a runtime finds nothing to run.
const NOTHING_TO_RUN: i64 = 127;

/// The exit code of a script that caught an interrupt.
pub(super) const CAUGHT: i64 = 5;

pub(super) fn scripts() -> impl Strategy<Value = Script> {
    prop_oneof![
        2 => Just(Script::Empty),
        1 => Just(Script::Heuristic),
        8 => (0_u8..6, prop_oneof![2 => Just(0), 1 => 1_u8..=255]).prop_map(|(lines, code)| Script::Say { lines, code }),
        2 => (1_u16..20_000).prop_map(|lines| Script::Count { lines }),
        1 => prop::sample::select(vec![9, 15, 11, 6]).prop_map(Script::Die),
        1 => Just(Script::Orphan),
        3 => Just(Script::Ask),
        4 => any::<bool>().prop_map(|trap| Script::Hold { trap }),
    ]
}

impl Script {
    /// The command line. `ask` is one that asks.
    pub(super) fn line(&self, id: u32, ask: &str) -> String {
        match self {
            Self::Empty => String::new(),
            Self::Heuristic => "*".to_owned(),
            Self::Snippet { code } => {
                format!("#include <stdio.h>\nint main(void) {{ puts(\"ran-{id}\"); return {code}; }}")
            }
            Self::Say { lines, code } => {
                let say = (0..*lines).map(|i| format!("echo out-{id}-{i}; echo err-{id}-{i} >&2; "));
                format!("{}exit {code}", say.collect::<String>())
            }
            Self::Count { lines } => format!("seq -f 'n-{id}-%g' {lines}"),
            Self::Die(signal) => format!("echo dying-{id}; kill -{signal} $$"),
            Self::Orphan => format!("(sleep 0.02 > /dev/null 2>&1 &); echo left-{id}"),
            Self::Ask => ask.to_owned(),
            Self::Hold { trap: false } => format!("echo held-{id} $$; exec sleep 600"),
            Self::Hold { trap: true } => {
                format!("trap 'echo caught-{id}; exit {CAUGHT}' INT; echo held-{id} $$; while :; do sleep 0.05; done")
            }
        }
    }

    /// All of its output, unless it depends on more than the script.
    pub(super) fn stdout(&self, id: u32) -> Option<String> {
        Some(match self {
            Self::Empty | Self::Heuristic => String::new(),
            Self::Say { lines, .. } => numbered(&format!("out-{id}"), 0, (*lines).into()),
            Self::Count { lines } => numbered(&format!("n-{id}"), 1, *lines),
            Self::Die(_) => format!("dying-{id}\n"),
            Self::Orphan => format!("left-{id}\n"),
            Self::Snippet { .. } => format!("ran-{id}\n"),
            Self::Ask | Self::Hold { .. } => return None,
        })
    }

    pub(super) fn stderr(&self, id: u32) -> String {
        match self {
            Self::Say { lines, .. } => numbered(&format!("err-{id}"), 0, (*lines).into()),
            _ => String::new(),
        }
    }

    /// The exit code, if nothing cuts it short; `None` for one that never ends by itself.
    pub(super) fn code(&self, kind: Kind) -> Option<i64> {
        match self {
            Self::Heuristic => Some(if kind == Kind::Clean { 0 } else { NOTHING_TO_RUN }),
            Self::Empty | Self::Count { .. } | Self::Orphan | Self::Ask => Some(0),
            Self::Say { code, .. } | Self::Snippet { code } => Some(i64::from(*code)),
            Self::Die(signal) => Some(-i64::from(*signal)),
            Self::Hold { .. } => None,
        }
    }
}

/// This many lines, numbered from the first.
fn numbered(what: &str, first: u16, lines: u16) -> String {
    (first..first + lines).flat_map(|number| [what.to_owned(), format!("-{number}\n")]).collect()
}

/// The process that a held step said it is.
pub(super) fn held_pid(stdout: &str, id: u32) -> Option<u32> {
    let (pid, _) = stdout.strip_prefix(&format!("held-{id} "))?.split_once('\n')?;
    pid.parse().ok()
}
