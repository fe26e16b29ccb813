//! The table of languages.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use super::traits::Runtime;
use super::{
    app, c, cpp, git, golang, h2o, haskell, java, julia, lua, nodejs, octave, php, polly, python, r, r_server, rust,
    scheme,
};
use crate::config::Paths;
use crate::process::is_executable;

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Language {
    /// Name on the command line.
    pub name: &'static str,
    /// Prefix of each log line.
    pub log_prefix: &'static str,
    /// The runtime's program when the command line names none; `*` stands for any name.
    pub default_path: &'static str,
    /// Tried in order if the default path does not exist. A name without a slash is looked up in `PATH`.
    pub fallbacks: &'static [&'static str],
    /// Whether programs may request input.
    pub user_input: bool,
    /// Creates the runtime from its program.
    pub make: fn(PathBuf) -> Arc<dyn Runtime>,
}

/// All languages, a row for each.
pub(crate) const LANGUAGES: &[Language] = &[
    Language {
        name: "app",
        log_prefix: "app-kernel",
        default_path: "/opt/backend.ai/bin/python",
        fallbacks: &[],
        user_input: false,
        make: |_| Arc::new(app::App),
    },
    Language {
        name: "c",
        log_prefix: "c-kernel",
        default_path: "/usr/bin/gcc",
        fallbacks: &[],
        user_input: true,
        make: |path| Arc::new(c::runtime(path)),
    },
    Language {
        name: "cpp",
        log_prefix: "cpp-kernel",
        default_path: "/usr/bin/g++",
        fallbacks: &[],
        user_input: true,
        make: |path| Arc::new(cpp::runtime(path)),
    },
    Language {
        name: "golang",
        log_prefix: "golang-kernel",
        default_path: "/usr/local/bin/go",
        fallbacks: &[],
        user_input: false,
        make: |path| Arc::new(golang::runtime(path)),
    },
    Language {
        name: "haskell",
        log_prefix: "haskell-kernel",
        default_path: "/usr/bin/ghc",
        fallbacks: &[],
        user_input: false,
        make: |path| Arc::new(haskell::runtime(path)),
    },
    Language {
        name: "java",
        log_prefix: "java-kernel",
        default_path: "/usr/lib/jvm/java-*/bin/java",
        fallbacks: &[],
        user_input: true,
        make: |path| Arc::new(java::Java::new(path)),
    },
    Language {
        name: "julia",
        log_prefix: "julia-kernel",
        default_path: "/usr/local/julia",
        fallbacks: &[],
        user_input: true,
        make: |path| Arc::new(julia::runtime(path)),
    },
    Language {
        name: "lua",
        log_prefix: "lua-kernel",
        default_path: "/usr/local/bin/lua",
        fallbacks: &[],
        user_input: false,
        make: |path| Arc::new(lua::runtime(path)),
    },
    Language {
        name: "nodejs",
        log_prefix: "nodejs-kernel",
        default_path: "/usr/local/bin/node",
        fallbacks: &[],
        user_input: false,
        make: |path| Arc::new(nodejs::runtime(path)),
    },
    Language {
        name: "octave",
        log_prefix: "octave-kernel",
        default_path: "/usr/bin/octave-cli",
        fallbacks: &[],
        user_input: false,
        make: |path| Arc::new(octave::runtime(path)),
    },
    Language {
        name: "php",
        log_prefix: "php-kernel",
        default_path: "/usr/bin/php",
        fallbacks: &[],
        user_input: false,
        make: |path| Arc::new(php::runtime(path)),
    },
    Language {
        name: "git",
        log_prefix: "shell-kernel",
        default_path: "",
        fallbacks: &[],
        user_input: false,
        make: |_| Arc::new(git::Git),
    },
    Language {
        name: "python",
        log_prefix: "python-kernel",
        default_path: "/usr/bin/python",
        fallbacks: &["python3", "/opt/backend.ai/bin/python"],
        user_input: true,
        make: |path| Arc::new(python::Python::new(path)),
    },
    Language {
        name: "r",
        log_prefix: "r-kernel",
        default_path: "/usr/bin/R",
        fallbacks: &[],
        user_input: true,
        make: |path| Arc::new(r::runtime(path)),
    },
    Language {
        name: "rust",
        log_prefix: "rust-kernel",
        default_path: "/usr/bin/rustc",
        fallbacks: &[],
        user_input: false,
        make: |path| Arc::new(rust::runtime(path)),
    },
    Language {
        name: "scheme",
        log_prefix: "scheme-kernel",
        default_path: "/usr/bin/scheme",
        fallbacks: &[],
        user_input: false,
        make: |path| Arc::new(scheme::runtime(path)),
    },
    Language {
        name: "r_server_ms",
        log_prefix: "r_server_ms-kernel",
        default_path: "",
        fallbacks: &[],
        user_input: false,
        make: |_| Arc::new(r_server::RServer),
    },
    Language {
        name: "vendor.aws_polly",
        log_prefix: "vendor.aws_polly-kernel",
        default_path: "",
        fallbacks: &[],
        user_input: false,
        make: |_| Arc::new(polly::Polly),
    },
    Language {
        name: "vendor.h2o",
        log_prefix: "vendor.h2o-kernel",
        default_path: "/opt/h2oai/dai/python/bin/python",
        fallbacks: &[],
        user_input: true,
        make: |interpreter| Arc::new(h2o::H2o::new(interpreter)),
    },
];

impl Language {
    /// The row of this name.
    #[must_use]
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        LANGUAGES.iter().find(|kind| kind.name == name)
    }

    /// The program at the default path or a fallback, if one exists.
    #[must_use]
    pub(crate) fn found(&self, paths: &Paths, search_path: Option<&OsStr>) -> Option<PathBuf> {
        let at_default = paths.find(self.default_path).into_iter().find(|path| path.exists());
        at_default.or_else(|| self.fallbacks.iter().find_map(|fallback| looked_up(fallback, paths, search_path)))
    }

    /// The runtime's program: the one on the command line, else the one found, else the default path.
    #[must_use]
    pub(crate) fn program(&self, named: Option<PathBuf>, search_path: Option<&OsStr>) -> PathBuf {
        let found = || self.found(&Paths::default(), search_path);
        named.or_else(found).unwrap_or_else(|| self.default_path.into())
    }
}

fn looked_up(program: &str, paths: &Paths, search_path: Option<&OsStr>) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| path.is_absolute() && path.is_file() && is_executable(path);
    if program.contains('/') {
        return paths.find(program).into_iter().find(is_program);
    }
    std::env::split_paths(search_path?).map(|folder| folder.join(program)).find(is_program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    #[test]
    fn names_are_unique_and_found() {
        let names: HashSet<&str> = LANGUAGES.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), LANGUAGES.len());
        for kind in LANGUAGES {
            assert_eq!(Language::find(kind.name).map(|found| found.name), Some(kind.name));
        }
    }

    fn put_program(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn python_is_looked_for_in_the_path_variable_and_in_the_volume() {
        let root = tempfile::tempdir().unwrap();
        let (paths, python) = (Paths::below(root.path()), Language::find("python").unwrap());
        let at = |path: &str| root.path().join(path);
        let search_path = std::env::join_paths([at("empty"), at("conda/bin")]).unwrap();
        let found = || python.found(&paths, Some(&search_path));
        assert_eq!(found(), None);
        put_program(&at("opt/backend.ai/bin/python"));
        assert_eq!(found(), Some(at("opt/backend.ai/bin/python")));
        put_program(&at("conda/bin/python3"));
        assert_eq!(found(), Some(at("conda/bin/python3")));
        assert_eq!(python.found(&paths, None), Some(at("opt/backend.ai/bin/python")));
        put_program(&at("usr/bin/python"));
        assert_eq!(found(), Some(at("usr/bin/python")));
        let named = python.program(Some("/named".into()), Some(&search_path));
        assert_eq!(named, Path::new("/named"), "there or not");
    }

    #[test]
    fn what_cannot_be_run_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("python3"), "").unwrap();
        assert_eq!(looked_up("python3", &Paths::default(), Some(root.path().as_os_str())), None);
    }
}
