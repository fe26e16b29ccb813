//! Finds the programs of a language, given `RUNTIME_PATH`.
//!
//! The agent passes the path from the image's label. The Python runner uses it for some languages and looks others up in
//! `PATH`, so a working image may have a wrong label. Hence a [`Toolchain`] may have a usual name, which is looked up if the
//! path does not exist.

use std::ffi::OsString;
use std::path::PathBuf;

/// The programs of a language, one of which is the runtime's own.
#[derive(Debug, Clone)]
pub(super) struct Toolchain {
    /// `RUNTIME_PATH`: the runtime's own program, or the folder it is installed in.
    pub(super) path: PathBuf,
    /// The program's name in `PATH`; `None` if only the path counts.
    pub(super) usual: Option<&'static str>,
}

impl Toolchain {
    /// The runtime's own program.
    pub(super) fn runtime(&self) -> OsString {
        match self.usual {
            Some(name) if !self.path.is_file() => self.tool(name),
            _ => self.path.clone().into(),
        }
    }

    /// Another program: the one that is installed with the runtime's own, else the one of this name in `PATH`.
    pub(super) fn tool(&self, name: &str) -> OsString {
        let beside = self.path.parent().map(|folder| folder.join(name));
        let within = [self.path.join("bin").join(name), self.path.join(name)];
        let installed = beside.into_iter().chain(within).find(|candidate| candidate.is_file());
        installed.map_or_else(|| name.into(), Into::into)
    }

    /// A warning if the path does not exist and another program is used.
    pub(super) fn complaint(&self) -> Option<String> {
        let name = self.usual.filter(|_| !self.path.exists())?;
        Some(format!("{} does not exist; using {}", self.path.display(), self.tool(name).display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    fn toolchain(path: &Path, usual: Option<&'static str>) -> Toolchain {
        Toolchain { path: path.to_owned(), usual }
    }

    fn installed() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        for program in ["bin/java", "bin/javac", "bin/rustc-1.63", "bin/rustc"] {
            fs::write(folder.path().join(program), "").unwrap();
        }
        folder
    }

    #[test]
    fn what_is_at_the_path_is_taken_as_it_is() {
        let folder = installed();
        let versioned = folder.path().join("bin/rustc-1.63");
        assert_eq!(toolchain(&versioned, Some("rustc")).runtime(), versioned);
        assert_eq!(toolchain(&versioned, Some("rustc")).complaint(), None);
    }

    #[test]
    fn neighbours_come_before_the_path_variable() {
        let folder = installed();
        let java = toolchain(&folder.path().join("bin/java"), Some("java"));
        assert_eq!(java.tool("javac"), folder.path().join("bin/javac"));
        assert_eq!(java.tool("jshell"), "jshell");
        // A label may name the folder of the installation.
        let folder_alone = toolchain(folder.path(), Some("java"));
        assert_eq!(folder_alone.runtime(), folder.path().join("bin/java"));
        assert_eq!(folder_alone.complaint(), None);
        assert_eq!(toolchain(&folder.path().join("bin"), Some("java")).runtime(), folder.path().join("bin/java"));
    }

    #[test]
    fn a_path_that_leads_nowhere_counts_where_there_is_no_usual_name() {
        let nowhere = Path::new("/nowhere/lua");
        assert_eq!(toolchain(nowhere, None).runtime(), "/nowhere/lua");
        assert_eq!(toolchain(nowhere, None).complaint(), None, "the step that fails says it");
        assert_eq!(toolchain(nowhere, Some("lua")).runtime(), "lua");
        assert_eq!(toolchain(nowhere, Some("lua")).complaint().unwrap(), "/nowhere/lua does not exist; using lua");
    }
}
