//! Finds kernelspecs as Jupyter does (jupyter-client.readthedocs.io/en/stable/kernels.html, "Kernel specs").
//!
//! A kernelspec is a directory `kernels/NAME` with a `kernel.json` in one of Jupyter's data directories. The name that fits
//! the language best wins; among equal names the first directory wins.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use jupyter_protocol::JupyterKernelspec;

use crate::config::{ChildEnv, read_regular};
use crate::process::Command;

/// A kernelspec that was found.
#[derive(Debug, Clone)]
pub(super) struct Kernelspec {
    /// The folder's name, e.g. `python3`.
    pub(super) name: String,
    folder: PathBuf,
    spec: JupyterKernelspec,
}

/// The interpreter of a language whose kernelspecs refer to one.
#[derive(Debug, Clone)]
pub(crate) struct Interpreter {
    /// Replaces `python` in a kernelspec.
    pub path: PathBuf,
    /// The interpreter's `sys.prefix`.
    pub prefix: PathBuf,
    /// Whether it belongs to a virtual environment, whose kernelspecs come before the user's.
    pub is_virtual: bool,
}

/// Why no kernelspec can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoKernelspec {
    #[error("no kernelspec for {name:?} in {}", shown(searched))]
    Missing { name: &'static str, searched: Vec<PathBuf> },
    #[error("invalid kernelspec {}: {problem}", file.display())]
    Bad { file: PathBuf, problem: String },
}

fn shown(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Jupyter's data folders, in the order in which they are searched.
pub(super) fn data_folders(env: &ChildEnv, interpreter: Option<&Interpreter>) -> Vec<PathBuf> {
    let variable = |name: &str| env.get(OsStr::new(name)).filter(|value| !value.is_empty());
    let mut folders: Vec<PathBuf> = variable("JUPYTER_PATH").map(std::env::split_paths).into_iter().flatten().collect();
    let user = variable("JUPYTER_DATA_DIR").map(PathBuf::from).or_else(|| {
        let share = variable("XDG_DATA_HOME").map(PathBuf::from);
        let share = share.or_else(|| variable("HOME").map(|home| Path::new(home).join(".local/share")));
        share.map(|share| share.join("jupyter"))
    });
    let own = interpreter.map(|interpreter| interpreter.prefix.join("share/jupyter"));
    if interpreter.is_some_and(|interpreter| interpreter.is_virtual) {
        folders.extend(own.into_iter().chain(user));
    } else {
        folders.extend(user.into_iter().chain(own));
    }
    folders.extend(["/usr/local/share/jupyter", "/usr/share/jupyter"].map(PathBuf::from));
    let mut seen = Vec::new();
    folders.retain(|folder| {
        !folder.as_os_str().is_empty() && !seen.contains(folder) && {
            seen.push(folder.clone());
            true
        }
    });
    folders
}

/// The kernelspec of a language. Reads files.
pub(super) fn find(language: &'static str, folders: &[PathBuf]) -> Result<Kernelspec, NoKernelspec> {
    let mut found = Vec::new();
    for folder in folders {
        let entries = fs::read_dir(folder.join("kernels")).into_iter().flatten().flatten();
        for entry in entries {
            // Names are not case-sensitive.
            let Some(name) = entry.file_name().to_str().map(str::to_lowercase) else { continue };
            if let Some(rank) = rank(language, &name) {
                found.push((rank, name, entry.path()));
            }
        }
    }
    // The sort is stable: equal names stay in the order of the directories. The highest version comes first.
    found.sort_by(|(a_rank, a, _), (b_rank, b, _)| a_rank.cmp(b_rank).then_with(|| version(b).cmp(&version(a))));
    let mut problem = None;
    for (_, name, folder) in found {
        match read(&folder) {
            Ok(Some(spec)) => return Ok(Kernelspec { name, folder, spec }),
            Ok(None) => {}
            Err(bad) => {
                let bad = NoKernelspec::Bad { file: folder.join("kernel.json"), problem: bad.to_string() };
                tracing::warn!("{bad}");
                problem.get_or_insert(bad);
            }
        }
    }
    Err(problem.unwrap_or_else(|| NoKernelspec::Missing { name: language, searched: folders.to_vec() }))
}

/// How well a kernel's name fits: `python`, `python3`, `python-x`, `xpython`; lower is better.
fn rank(language: &str, name: &str) -> Option<u8> {
    match name.split_once(language)? {
        ("", "") => Some(0),
        ("", rest) if rest.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-')) => Some(1),
        ("", _) => Some(2),
        _ => Some(3),
    }
}

/// The numbers in a name.
fn version(name: &str) -> Vec<u64> {
    name.split(|character: char| !character.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// `None` when there is no such file.
fn read(folder: &Path) -> io::Result<Option<JupyterKernelspec>> {
    let text = match read_regular(&folder.join("kernel.json")) {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    parse(&text).map(Some)
}

fn parse(text: &[u8]) -> io::Result<JupyterKernelspec> {
    let spec: JupyterKernelspec = serde_json::from_slice(text)?;
    if spec.argv.is_empty() {
        return Err(io::Error::other("`argv` is empty"));
    }
    Ok(spec)
}

impl Kernelspec {
    /// The kernelspec `name` in a Jupyter directory below `prefix`, from its text.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of_text(prefix: &Path, name: &str, text: &[u8]) -> io::Result<Self> {
        let folder = prefix.join("share/jupyter/kernels").join(name);
        Ok(Self { name: name.to_owned(), folder, spec: parse(text)? })
    }

    /// The words of its command, before names are filled in.
    #[cfg(any(test, fuzzing))]
    pub(super) fn argv(&self) -> &[String] {
        &self.spec.argv
    }

    /// The command that starts the kernel.
    pub(super) fn command(&self, connection_file: &Path, interpreter: Option<&Interpreter>) -> Command {
        let argv = self.spec.argv.iter().enumerate().map(|(position, word)| {
            let python = if position == 0 && is_python(word) { self.python(word, interpreter) } else { None };
            python.map_or_else(|| self.filled_in(word, connection_file, interpreter), PathBuf::into_os_string)
        });
        Command::argv(argv)
    }

    /// The interpreter that has the kernel: that of the kernelspec's own prefix, else the language's. Looks for files.
    fn python(&self, word: &str, interpreter: Option<&Interpreter>) -> Option<PathBuf> {
        let prefix = self.prefix().filter(|prefix| interpreter.is_none_or(|known| known.prefix != *prefix));
        let candidates =
            prefix.into_iter().flat_map(|prefix| [word, "python", "python3"].map(|name| prefix.join("bin").join(name)));
        let own = candidates.into_iter().find(|path| path.is_file());
        own.or_else(|| interpreter.map(|interpreter| interpreter.path.clone()))
    }

    /// PREFIX of PREFIX/share/jupyter/kernels/NAME. `None` for ~/.local, where `pip install --user` of any interpreter installs
    /// kernelspecs.
    fn prefix(&self) -> Option<&Path> {
        let prefix = self.folder.ancestors().nth(4)?;
        let is_installed = self.folder.parent()?.ends_with("share/jupyter/kernels");
        (is_installed && !prefix.ends_with(".local")).then_some(prefix)
    }

    /// Whether an interrupt is a message, and not a signal.
    pub(super) fn interrupts_by_message(&self) -> bool {
        self.spec.interrupt_mode.as_deref() == Some("message")
    }

    /// Adds the kernelspec's variables, in which `${NAME}` stands for a variable that was there before.
    pub(super) fn add_variables(&self, env: &mut ChildEnv) {
        let before = env.clone();
        for (name, value) in self.spec.env.iter().flatten() {
            if !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0') {
                env.insert(name.into(), expanded(value, &before));
            }
        }
    }

    fn filled_in(&self, word: &str, connection_file: &Path, interpreter: Option<&Interpreter>) -> OsString {
        let places: HashMap<&str, &Path> = [
            ("{connection_file}", Some(connection_file)),
            ("{resource_dir}", Some(self.folder.as_path())),
            ("{prefix}", interpreter.map(|interpreter| interpreter.prefix.as_path())),
        ]
        .into_iter()
        .filter_map(|(place, path)| Some((place, path?)))
        .collect();
        let mut filled = OsString::new();
        let mut rest = word;
        while let Some((at, place)) = places.keys().filter_map(|place| Some((rest.find(place)?, *place))).min() {
            filled.push(&rest[..at]);
            filled.push(places[place]);
            rest = &rest[at + place.len()..];
        }
        filled.push(rest);
        filled
    }
}

/// `python`, `python3`, `python3.11`: the interpreter that the kernelspec is installed in.
fn is_python(word: &str) -> bool {
    word.strip_prefix("python").is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
}

/// `${NAME}` and `$NAME` replaced; unknown ones stay.
fn expanded(value: &str, env: &ChildEnv) -> OsString {
    let mut expanded = OsString::new();
    let mut rest = value;
    while let Some(at) = rest.find('$') {
        expanded.push(&rest[..at]);
        let after = &rest[at + 1..];
        let is_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
        let (name, end) = match after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let end = after.find(|character| !is_name(character)).unwrap_or(after.len());
                (&after[..end], end)
            }
        };
        match env.get(OsStr::from_bytes(name.as_bytes())) {
            Some(value) if !name.is_empty() => expanded.push(value),
            _ => expanded.push(&rest[at..=at + end]),
        }
        rest = &after[end..];
    }
    expanded.push(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn install(root: &Path, name: &str, json: &str) {
        let folder = root.join("kernels").join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("kernel.json"), json).unwrap();
    }

    fn spec(argv: &str) -> String {
        format!(r#"{{"argv": {argv}, "display_name": "x", "language": "x"}}"#)
    }

    fn env(variables: &[(&str, &str)]) -> ChildEnv {
        variables.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn folders_come_in_jupyters_order() {
        let shown = |env: &ChildEnv, interpreter: Option<&Interpreter>| {
            data_folders(env, interpreter).iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>()
        };
        let variables = env(&[("HOME", "/home/work"), ("JUPYTER_PATH", "/a:/b:")]);
        let (user, own) = ("/home/work/.local/share/jupyter", "/v/share/jupyter");
        let system = ["/usr/local/share/jupyter", "/usr/share/jupyter"];
        assert_eq!(shown(&variables, None), [&["/a", "/b", user][..], &system].concat());
        let interpreter = |is_virtual| Interpreter { path: "/v/bin/python".into(), prefix: "/v".into(), is_virtual };
        assert_eq!(shown(&variables, Some(&interpreter(false))), [&["/a", "/b", user, own][..], &system].concat());
        let variables = env(&[("HOME", "/home/work"), ("JUPYTER_DATA_DIR", "/d")]);
        assert_eq!(shown(&variables, Some(&interpreter(true))), [&[own, "/d"][..], &system].concat());
        let in_usr = Interpreter { path: "/usr/bin/python".into(), prefix: "/usr".into(), is_virtual: false };
        assert_eq!(shown(&env(&[]), Some(&in_usr)), ["/usr/share/jupyter", "/usr/local/share/jupyter"]);
    }

    #[test]
    fn the_best_name_wins_then_the_first_folder() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folders = [first.path().to_path_buf(), "/nonexistent".into(), second.path().to_path_buf()];
        let found = || find("python", &folders).map(|found| (found.name, found.spec.argv.concat()));
        assert!(matches!(found(), Err(NoKernelspec::Missing { .. })));
        install(first.path(), "xpython", &spec(r#"["x"]"#));
        assert_eq!(found().unwrap(), ("xpython".into(), "x".into()));
        install(second.path(), "python-gpu", &spec(r#"["gpu"]"#));
        assert_eq!(found().unwrap(), ("python-gpu".into(), "gpu".into()));
        install(second.path(), "python3", &spec(r#"["second"]"#));
        install(second.path(), "python2", &spec(r#"["two"]"#));
        assert_eq!(found().unwrap(), ("python3".into(), "second".into()));
        install(first.path(), "Python3", &spec(r#"["first"]"#));
        assert_eq!(found().unwrap(), ("python3".into(), "first".into()));
    }

    #[test]
    fn versions_are_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["julia-1.9", "julia-1.10", "ir"] {
            install(folder.path(), name, &spec(r#"["x"]"#));
        }
        let folders = [folder.path().to_path_buf()];
        assert_eq!(find("julia", &folders).unwrap().name, "julia-1.10");
        assert_eq!(find("ir", &folders).unwrap().name, "ir");
    }

    #[test]
    fn a_bad_kernelspec_is_passed_over_or_named() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().to_path_buf()];
        install(folder.path(), "python3", "{");
        let told = find("python", &folders).unwrap_err().to_string();
        assert!(told.contains("python3/kernel.json: EOF while parsing"), "{told}");
        install(folder.path(), "python3", &spec("[]"));
        assert!(find("python", &folders).unwrap_err().to_string().ends_with("`argv` is empty"));
        install(folder.path(), "python2", &spec(r#"["two"]"#));
        assert_eq!(find("python", &folders).unwrap().name, "python2");
    }

    #[test]
    fn the_command_is_filled_in() {
        let folder = tempfile::tempdir().unwrap();
        let argv = r#"["python3", "-m", "python", "--f={connection_file}", "{resource_dir}/x", "{prefix}/o"]"#;
        install(folder.path(), "python3", &spec(argv));
        let found = find("python", &[folder.path().to_path_buf()]).unwrap();
        let interpreter = Interpreter { path: "/v/bin/python".into(), prefix: "/v".into(), is_virtual: true };
        let resources = folder.path().join("kernels/python3");
        let command = found.command(Path::new("/tmp/c.json"), Some(&interpreter)).to_string();
        assert_eq!(command, format!("/v/bin/python -m python --f=/tmp/c.json {}/x /v/o", resources.display()));
        let command = found.command(Path::new("c"), None).to_string();
        assert_eq!(command, format!("python3 -m python --f=c {}/x '{{prefix}}/o'", resources.display()));
    }

    #[test]
    fn python_is_that_of_the_kernelspecs_own_prefix() {
        let root = tempfile::tempdir().unwrap();
        let command = |prefix: &str, interpreter: Option<&Interpreter>| {
            let share = root.path().join(prefix).join("share/jupyter");
            install(&share, "python3", &spec(r#"["python", "-c"]"#));
            find("python", &[share]).unwrap().command(Path::new("c"), interpreter).to_string()
        };
        let put = |program: &str| {
            let program = root.path().join(program);
            fs::create_dir_all(program.parent().unwrap()).unwrap();
            fs::write(&program, "").unwrap();
            program.display().to_string()
        };
        let at = |prefix: &str| Interpreter {
            path: "/opt/python".into(),
            prefix: root.path().join(prefix),
            is_virtual: false,
        };
        let elsewhere = at("elsewhere");
        assert_eq!(command("usr", Some(&elsewhere)), "/opt/python -c", "there is none in the prefix");
        assert_eq!(command("usr", None), "python -c");
        let python3 = put("usr/bin/python3");
        assert_eq!(command("usr", Some(&elsewhere)), format!("{python3} -c"));
        let python = put("usr/bin/python");
        assert_eq!(command("usr", Some(&elsewhere)), format!("{python} -c"));
        assert_eq!(command("usr", Some(&at("usr"))), "/opt/python -c", "the prefix is its own");
        put("home/.local/bin/python");
        assert_eq!(command("home/.local", Some(&elsewhere)), "/opt/python -c");
    }

    #[test]
    fn variables_refer_to_those_before() {
        let folder = tempfile::tempdir().unwrap();
        let json = r#"{"argv": ["x"], "display_name": "", "language": "", "interrupt_mode": "message",
            "env": {"A": "${PATH}:/a", "B": "$A$PATH$$-${none}", "C=": "x", "PATH": "/c"}}"#;
        install(folder.path(), "ir", json);
        let found = find("ir", &[folder.path().to_path_buf()]).unwrap();
        let mut variables = env(&[("PATH", "/bin")]);
        found.add_variables(&mut variables);
        assert_eq!(variables, env(&[("A", "/bin:/a"), ("B", "$A/bin$$-${none}"), ("PATH", "/c")]));
        assert!(found.interrupts_by_message());
    }

    proptest! {
        #[test]
        fn text_without_variables_stays_as_it_is(value in ".*") {
            prop_assert_eq!(expanded(&value, &ChildEnv::new()), OsString::from(value));
        }
    }
}
