//! The environment of user code.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit};

use super::{ConfigWarning, Paths, read_regular};

/// Variables of a child process; any bytes but NUL.
pub type ChildEnv = BTreeMap<OsString, OsString>;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The kernel's limit for one variable (`MAX_ARG_STRLEN`, include/uapi/linux/binfmts.h), with 4 KiB pages.
const MAX_STRING_BYTES: usize = 128 * 1024;

/// How many skipped variables, and how many skipped lines, are named.
const MAX_NAMED: usize = 10;

/// The bounds of [`exec_limit_bytes`]: `ARG_MAX`, and three quarters of `_STK_LIM`.
const LEAST_EXEC_BYTES: usize = 128 * 1024;
const MOST_EXEC_BYTES: usize = 6 * 1024 * 1024;

/// The environment of children, from the runner's `own` and the agent's `environ.txt`.
#[must_use]
pub(crate) fn child_env(
    own: impl IntoIterator<Item = (OsString, OsString)>,
    paths: &Paths,
) -> (ChildEnv, Vec<ConfigWarning>) {
    let mut env: ChildEnv = own.into_iter().collect();
    env.insert("LANG".into(), "C.UTF-8".into());
    env.insert("HOME".into(), paths.work().into());
    env.insert("TERM".into(), "xterm".into());
    for name in ["LD_LIBRARY_PATH", "LD_PRELOAD", "SSH_AUTH_SOCK", "SSH_AGENT_PID"] {
        env.entry(name.into()).or_default();
    }
    env.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
    env.entry("SHELL".into()).or_insert_with(default_shell);

    let warnings = merge_file(&mut env, &paths.environ());

    for folder in paths.promoted_if_present() {
        if folder.is_dir() {
            promote(&mut env, "PATH", &folder);
        }
    }
    promote(&mut env, "PATH", &paths.user_bin());
    remove_entry(&mut env, "LD_LIBRARY_PATH", Paths::volume_libraries());
    (env, warnings)
}

/// The variables of the agent's `environ.txt` alone; [`child_env`] returns its warnings.
#[must_use]
pub(crate) fn agent_env(paths: &Paths) -> ChildEnv {
    let mut env = ChildEnv::new();
    merge_file(&mut env, &paths.environ());
    env
}

/// Puts `folder` first in a `:`-separated variable, once.
pub(crate) fn promote(env: &mut ChildEnv, variable: &str, folder: &Path) {
    let old = remove_entry(env, variable, folder);
    let mut new = folder.as_os_str().to_owned();
    if !old.is_empty() {
        new.push(":");
        new.push(old);
    }
    env.insert(variable.into(), new);
}

/// Removes `folder` from a `:`-separated variable; returns the remaining value.
fn remove_entry(env: &mut ChildEnv, variable: &str, folder: &Path) -> OsString {
    let value = env.entry(variable.into()).or_default();
    let kept: Vec<&[u8]> =
        value.as_bytes().split(|byte| *byte == b':').filter(|entry| *entry != folder.as_os_str().as_bytes()).collect();
    *value = OsString::from_vec(kept.join(&b':'));
    value.clone()
}

fn default_shell() -> OsString {
    if Path::new("/bin/ash").is_file() { "/bin/ash".into() } else { "/bin/bash".into() }
}

fn merge_file(env: &mut ChildEnv, file: &Path) -> Vec<ConfigWarning> {
    match read_regular(file) {
        Ok(text) => {
            let mut added = ChildEnv::new();
            let mut warnings = merge(&mut added, file, &text);
            let limit_bytes = exec_limit_bytes().saturating_sub(env.iter().map(exec_bytes).sum());
            warnings.extend(remove_oversized(&mut added, limit_bytes, file));
            env.extend(added);
            warnings
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => vec![ConfigWarning::new(file, None, format!("{error}; its variables are ignored"))],
    }
}

/// The kernel's limit for all arguments and variables of a program: a quarter of the stack's limit, within bounds
/// (`bprm_stack_limits`, fs/exec.c).
fn exec_limit_bytes() -> usize {
    let (soft, _) = getrlimit(Resource::RLIMIT_STACK).unwrap_or((LEAST_EXEC_BYTES as u64, 0));
    usize::try_from(soft / 4).unwrap_or(usize::MAX).clamp(LEAST_EXEC_BYTES, MOST_EXEC_BYTES)
}

/// What a variable takes of [`exec_limit_bytes`]: `NAME=VALUE` with its NUL, and the pointer to it.
pub(super) fn exec_bytes((name, value): (&OsString, &OsString)) -> usize {
    name.len() + value.len() + 2 + size_of::<usize>()
}

/// Removes variables with which no program could be executed: each that is too long, then the largest until the others
/// leave a quarter of `limit_bytes` for arguments.
pub(super) fn remove_oversized(env: &mut ChildEnv, limit_bytes: usize, file: &Path) -> Vec<ConfigWarning> {
    let mut sizes: Vec<(usize, OsString)> = env.iter().map(|entry| (exec_bytes(entry), entry.0.clone())).collect();
    sizes.sort();
    let mut total: usize = sizes.iter().map(|(bytes, _)| bytes).sum();
    let mut warnings = Vec::new();
    let mut removed = 0_usize;
    while let Some((bytes, name)) = sizes.pop_if(|(bytes, _)| *bytes > MAX_STRING_BYTES || total > limit_bytes / 4 * 3)
    {
        env.remove(&name);
        total -= bytes;
        removed += 1;
        if removed <= MAX_NAMED {
            let (name, size) = (name.display(), bytes.div_ceil(1024));
            let problem = format!("variable {name} skipped: with its {size} KiB no program could be executed (E2BIG)");
            warnings.push(ConfigWarning::new(file, None, problem));
        }
    }
    if removed > MAX_NAMED {
        let problem = format!("{} more variables skipped for the same reason", removed - MAX_NAMED);
        warnings.push(ConfigWarning::new(file, None, problem));
    }
    warnings
}

/// `K=V` lines; a line with no `=` continues the value before it.
pub(super) fn merge(env: &mut ChildEnv, file: &Path, text: &[u8]) -> Vec<ConfigWarning> {
    let mut warnings = Vec::new();
    let mut rejected = 0_usize;
    let mut last: Option<OsString> = None;
    let end = text.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
    let lines = text[..end].split(|byte| *byte == b'\n');
    for (number, line) in (1..).zip(lines) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut reject = |problem: &str| {
            rejected += 1;
            if rejected <= MAX_NAMED {
                warnings.push(ConfigWarning::new(file, Some(number), problem));
            }
        };
        if line.contains(&0) {
            reject("NUL byte; line skipped");
            continue;
        }
        match (line.iter().position(|byte| *byte == b'='), &last) {
            (Some(0), _) => reject("missing variable name; line skipped"),
            (Some(at), _) => {
                let name = OsStr::from_bytes(&line[..at]).to_owned();
                env.insert(name.clone(), OsStr::from_bytes(&line[at + 1..]).to_owned());
                last = Some(name);
            }
            (None, Some(name)) => {
                let value = env.entry(name.clone()).or_default();
                value.push("\n");
                value.push(OsStr::from_bytes(line));
            }
            (None, None) if line.is_empty() => {}
            (None, None) => reject("expected NAME=VALUE; line skipped"),
        }
    }
    if rejected > MAX_NAMED {
        warnings.push(ConfigWarning::new(file, None, format!("{} more lines skipped", rejected - MAX_NAMED)));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn variables_that_no_program_could_get_are_named_and_left_out() {
        let value = |bytes: usize| OsString::from("x".repeat(bytes));
        let mut env = ChildEnv::from([("A".into(), value(10)), ("HUGE".into(), value(MAX_STRING_BYTES))]);
        let warnings = remove_oversized(&mut env, MOST_EXEC_BYTES, Path::new("/e"));
        assert_eq!(env.len(), 1);
        assert_eq!(
            warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["/e: variable HUGE skipped: with its 129 KiB no program could be executed (E2BIG)"]
        );
        let mut env: ChildEnv = (0..20).map(|number| (format!("V{number}").into(), value(10_000 + number))).collect();
        let warnings = remove_oversized(&mut env, LEAST_EXEC_BYTES, Path::new("/e"));
        assert_eq!(warnings.len(), MAX_NAMED + 1);
        assert!(warnings[MAX_NAMED].to_string().starts_with("/e: 1 more variables skipped"), "{warnings:?}");
        assert_eq!((env.len(), env.contains_key(OsStr::new("V0"))), (9, true));
        let kept = env.clone();
        assert_eq!(remove_oversized(&mut env, LEAST_EXEC_BYTES, Path::new("/e")), []);
        assert_eq!(env, kept);
    }

    fn merged(text: &[u8]) -> (ChildEnv, Vec<String>) {
        let mut env = ChildEnv::new();
        let warnings = merge(&mut env, Path::new("/e.txt"), text);
        (env, warnings.iter().map(ToString::to_string).collect())
    }

    fn get(env: &ChildEnv, name: &str) -> String {
        env[OsStr::new(name)].to_string_lossy().into_owned()
    }

    #[test]
    fn lines_continue_values_and_crlf_is_no_part_of_them() {
        let (env, warnings) = merged(b"A=1\r\nKEY=-----BEGIN\nline two\n\nend\nB=x=y \n\n");
        assert_eq!(warnings, Vec::<String>::new());
        assert_eq!(get(&env, "A"), "1");
        assert_eq!(get(&env, "KEY"), "-----BEGIN\nline two\n\nend");
        assert_eq!(get(&env, "B"), "x=y ");
    }

    #[test]
    fn many_malformed_lines_are_counted() {
        let (env, warnings) = merged(&b"=\n".repeat(MAX_NAMED + 500));
        assert!(env.is_empty());
        assert_eq!(warnings.len(), MAX_NAMED + 1);
        assert_eq!(warnings[MAX_NAMED], "/e.txt: 500 more lines skipped");
    }

    #[test]
    fn malformed_lines_are_named() {
        let (env, warnings) = merged(b"junk\n=x\nA=1\nB=\0\n");
        assert_eq!(env.len(), 1);
        assert_eq!(
            warnings,
            [
                "/e.txt:1: expected NAME=VALUE; line skipped",
                "/e.txt:2: missing variable name; line skipped",
                "/e.txt:4: NUL byte; line skipped",
            ]
        );
    }

    #[test]
    fn the_environment_is_the_contracts() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::below(root.path());
        let cuda = root.path().join("usr/local/cuda/bin");
        fs::create_dir_all(&cuda).unwrap();
        fs::create_dir_all(root.path().join("home/config")).unwrap();
        fs::write(paths.environ(), "PATH=/image/bin\n").unwrap();
        let own = [("LANG", "ko_KR"), ("LD_LIBRARY_PATH", "/opt/backend.ai/lib:/usr/lib/x"), ("OTHER", "kept")];
        let (env, warnings) = child_env(own.map(|(k, v)| (k.into(), v.into())), &paths);
        assert!(warnings.is_empty());
        assert_eq!(get(&env, "LANG"), "C.UTF-8");
        assert_eq!(get(&env, "TERM"), "xterm");
        assert_eq!(get(&env, "HOME"), paths.work().display().to_string());
        assert_eq!(get(&env, "OTHER"), "kept");
        assert_eq!(get(&env, "LD_PRELOAD"), "");
        assert_eq!(get(&env, "LD_LIBRARY_PATH"), "/usr/lib/x");
        assert_eq!(get(&env, "PATH"), format!("{}:{}:/image/bin", paths.user_bin().display(), cuda.display()));
    }

    #[test]
    fn promoting_twice_keeps_one() {
        let mut env = ChildEnv::from([("PATH".into(), "/a:/b".into())]);
        promote(&mut env, "PATH", Path::new("/b"));
        promote(&mut env, "PATH", Path::new("/b"));
        assert_eq!(get(&env, "PATH"), "/b:/a");
    }

    proptest! {
        #[test]
        fn any_file_is_read_without_a_panic_and_no_nul_gets_through(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let (env, _) = merged(&text);
            for (name, value) in env {
                prop_assert!(!name.is_empty() && !name.as_bytes().contains(&0) && !value.as_bytes().contains(&0));
            }
        }
    }
}
