//! The table of languages.

use std::path::PathBuf;
use std::sync::Arc;

#[cfg(feature = "polly")]
use super::polly;
use super::traits::Runtime;
use super::{app, c, git, h2o, python, r_server};

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
    Kind {
        name: "r_server_ms",
        log_prefix: "r_server_ms-kernel",
        default_path: "",
        user_input: false,
        make: |_| Arc::new(r_server::RServer),
    },
    #[cfg(feature = "polly")]
    Kind {
        name: "vendor.aws_polly",
        log_prefix: "vendor.aws_polly-kernel",
        default_path: "",
        user_input: false,
        make: |_| Arc::new(polly::Polly),
    },
    Kind {
        name: "vendor.h2o",
        log_prefix: "vendor.h2o-kernel",
        default_path: "/opt/h2oai/dai/python/bin/python",
        user_input: true,
        make: |interpreter| Arc::new(h2o::H2o::new(interpreter)),
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
