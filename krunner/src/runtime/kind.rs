//! The table of languages.

use std::path::PathBuf;
use std::sync::Arc;

use super::traits::Runtime;
use super::{app, c, cpp, golang, haskell, java, julia, lua, nodejs, octave, php, python, r, rust, scheme};
use crate::config::Paths;

/// One row: a language as the command line names it.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Name on the command line.
    pub name: &'static str,
    /// What leads each line of the log.
    pub log_prefix: &'static str,
    /// The runtime's program when the command line names none; `*` stands for any name.
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
        make: |path| Arc::new(c::runtime(path)),
    },
    Kind {
        name: "cpp",
        log_prefix: "cpp-kernel",
        default_path: "/usr/bin/g++",
        user_input: true,
        make: |path| Arc::new(cpp::runtime(path)),
    },
    Kind {
        name: "golang",
        log_prefix: "golang-kernel",
        default_path: "/usr/local/bin/go",
        user_input: false,
        make: |path| Arc::new(golang::runtime(path)),
    },
    Kind {
        name: "haskell",
        log_prefix: "haskell-kernel",
        default_path: "/usr/bin/ghc",
        user_input: false,
        make: |path| Arc::new(haskell::runtime(path)),
    },
    Kind {
        name: "java",
        log_prefix: "java-kernel",
        default_path: "/usr/lib/jvm/java-*/bin/java",
        user_input: true,
        make: |path| Arc::new(java::Java::new(path)),
    },
    Kind {
        name: "julia",
        log_prefix: "julia-kernel",
        default_path: "/usr/local/julia",
        user_input: true,
        make: |path| Arc::new(julia::runtime(path)),
    },
    Kind {
        name: "lua",
        log_prefix: "lua-kernel",
        default_path: "/usr/local/bin/lua",
        user_input: false,
        make: |path| Arc::new(lua::runtime(path)),
    },
    Kind {
        name: "nodejs",
        log_prefix: "nodejs-kernel",
        default_path: "/usr/local/bin/node",
        user_input: false,
        make: |path| Arc::new(nodejs::runtime(path)),
    },
    Kind {
        name: "octave",
        log_prefix: "octave-kernel",
        default_path: "/usr/bin/octave-cli",
        user_input: false,
        make: |path| Arc::new(octave::runtime(path)),
    },
    Kind {
        name: "php",
        log_prefix: "php-kernel",
        default_path: "/usr/bin/php",
        user_input: false,
        make: |path| Arc::new(php::runtime(path)),
    },
    Kind {
        name: "python",
        log_prefix: "python-kernel",
        default_path: "/usr/bin/python",
        user_input: true,
        make: |path| Arc::new(python::Python::new(path)),
    },
    Kind {
        name: "r",
        log_prefix: "r-kernel",
        default_path: "/usr/bin/R",
        user_input: true,
        make: |path| Arc::new(r::runtime(path)),
    },
    Kind {
        name: "rust",
        log_prefix: "rust-kernel",
        default_path: "/usr/bin/rustc",
        user_input: false,
        make: |path| Arc::new(rust::runtime(path)),
    },
    Kind {
        name: "scheme",
        log_prefix: "scheme-kernel",
        default_path: "/usr/bin/scheme",
        user_input: false,
        make: |path| Arc::new(scheme::runtime(path)),
    },
];

impl Kind {
    /// The row of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// The program at the default path, if there is one.
    #[must_use]
    pub fn found(&self) -> Option<PathBuf> {
        Paths::default().find(self.default_path).into_iter().find(|path| path.exists())
    }

    /// The runtime's program: the one that the command line names, else the one found, else the path as it stands.
    #[must_use]
    pub fn program(&self, named: Option<PathBuf>) -> PathBuf {
        named.or_else(|| self.found()).unwrap_or_else(|| self.default_path.into())
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
