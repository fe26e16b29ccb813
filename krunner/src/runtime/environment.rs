//! Additions of a language to the environment of programs.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::config::{ChildEnv, Paths, agent_env, promote};

/// Additions of one language. Paths are the contract's; `*` stands for any name, and such a path counts only
/// where it exists.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Environment {
    /// Variables that list folders. They go over the image's own, and the agent's `environ.txt` goes over them.
    pub(super) variables: &'static [(&'static str, &'static [&'static str])],
    /// Folders that lead `PATH`, the first here before all others.
    pub(super) path: &'static [&'static str],
}

impl Environment {
    /// Adds variables and `PATH` entries.
    pub(super) fn add_to(self, env: &mut ChildEnv, paths: &Paths) {
        let agents = agent_env(paths);
        for (name, folders) in self.variables {
            if !agents.contains_key(&OsString::from(name)) {
                env.insert(name.into(), joined(folders.iter().flat_map(|folder| paths.find(folder))));
            }
        }
        let folders: Vec<PathBuf> = self.path.iter().flat_map(|folder| paths.find(folder)).collect();
        for folder in folders.iter().rev() {
            promote(env, "PATH", folder);
        }
    }
}

fn joined(folders: impl Iterator<Item = PathBuf>) -> OsString {
    let mut list = OsString::new();
    for folder in folders {
        if !list.is_empty() {
            list.push(":");
        }
        list.push(folder);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ADDED: Environment = Environment {
        variables: &[("LOAD_PATH", &["/opt/x", "/usr/x"]), ("CHOSEN", &["/opt/x"])],
        path: &["/home/work/bin", "/opt/*/bin", "/nowhere/*/bin"],
    };

    #[test]
    fn variables_are_set_and_folders_promoted() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display().to_string();
        let paths = Paths::below(folder.path());
        for made in ["opt/ghc/bin", "opt/alex/bin", "opt/none", "home/config"] {
            fs::create_dir_all(folder.path().join(made)).unwrap();
        }
        fs::write(paths.environ(), "CHOSEN=by the agent\n").unwrap();
        let mut env = ChildEnv::from(
            [("LOAD_PATH", "the image's"), ("CHOSEN", "by the agent"), ("PATH", "/bin")]
                .map(|(name, value)| (name.into(), value.into())),
        );
        ADDED.add_to(&mut env, &paths);
        let get = |name: &str| env[&OsString::from(name)].to_string_lossy().replace(&root, "");
        assert_eq!(get("LOAD_PATH"), "/opt/x:/usr/x");
        assert_eq!(get("CHOSEN"), "by the agent");
        assert_eq!(get("PATH"), "/home/work/bin:/opt/alex/bin:/opt/ghc/bin:/bin", "the first found comes first");
    }
}
