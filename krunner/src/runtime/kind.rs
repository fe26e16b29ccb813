//! The table of languages.

use std::path::PathBuf;
use std::sync::Arc;

use super::traits::Runtime;
use super::{app, c, git, python};

/// One row: a language as the command line names it.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Name on the command line.
    pub name: &'static str,
    /// What leads each line of the log.
    pub log_prefix: &'static str,
    /// The runtime's program when the command line names none.
    pub default_path: &'static str,
    /// Whether programs may ask for input.
    pub user_input: bool,
    /// Makes the runtime, given its program.
    pub make: fn(PathBuf) -> Arc<dyn Runtime>,
}

/// All languages.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "app",
        log_prefix: "app-kernel",
        default_path: "/opt/backend.ai/bin/python",
        user_input: false,
        make: |_| Arc::new(app::App),
    },
    Kind {
        name: "c",
        log_prefix: "c-kernel",
        default_path: "/usr/bin/gcc",
        user_input: true,
        make: |compiler| Arc::new(c::runtime(compiler)),
    },
    Kind { name: "git", log_prefix: "shell-kernel", default_path: "", user_input: false, make: |_| Arc::new(git::Git) },
    Kind {
        name: "python",
        log_prefix: "python-kernel",
        default_path: "/usr/bin/python",
        user_input: true,
        make: |interpreter| Arc::new(python::Python::new(interpreter)),
    },
];

impl Kind {
    /// The row of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_found() {
        let names: HashSet<&str> = KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), KINDS.len());
        for kind in KINDS {
            assert_eq!(Kind::find(kind.name).map(|found| found.name), Some(kind.name));
        }
    }
}
