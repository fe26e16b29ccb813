//! Fuzz targets of the files that the agent writes: `environ.txt` and `intrinsic-ports.json`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::environ::{exec_bytes, merge, remove_oversized};
use super::ports::MAX_SSHD_PORTS;
use super::{ChildEnv, ConfigWarning, Ports};

/// What a file may add to the log.
const MAX_WARNINGS: usize = 32;
const MAX_WARNING_BYTES: usize = 2560;

/// Room for the variables of a program in this target.
const LIMIT_BYTES: usize = 1024;

/// Every variable can be passed to a program and comes from the file; a second reading of the result changes nothing.
pub(crate) fn environ(text: &[u8]) {
    let file = Path::new("environ.txt");
    let mut env = ChildEnv::new();
    check_warnings(&merge(&mut env, file, text));
    for (name, value) in &env {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        assert!(!name.is_empty() && !name.contains(&b'=') && !name.contains(&0) && !value.contains(&0));
        assert!(!name.contains(&b'\n'));
    }
    assert_eq!(written_and_read(&env), env);

    let all = env.clone();
    check_warnings(&remove_oversized(&mut env, LIMIT_BYTES, file));
    assert!(env.iter().map(exec_bytes).sum::<usize>() <= LIMIT_BYTES);
    assert!(env.iter().all(|(name, value)| all.get(name) == Some(value)));
    assert!(all.iter().map(exec_bytes).sum::<usize>() > LIMIT_BYTES / 4 * 3 || env == all, "there was room for all");
}

/// The variables after they were written as the agent does. Lines of a value that look like a variable are one, and a
/// carriage return before the end of a line belongs to it, so such values are left as they are.
fn written_and_read(env: &ChildEnv) -> ChildEnv {
    let mut text = Vec::new();
    for (name, value) in env {
        text.extend([name.as_bytes(), b"=", value.as_bytes(), b"\n"].concat());
    }
    let is_ambiguous = |value: &[u8]| {
        value.ends_with(b"\n")
            || value.contains(&b'\r')
            || value.split(|byte| *byte == b'\n').skip(1).any(|line| line.contains(&b'='))
    };
    if env.values().any(|value| is_ambiguous(value.as_bytes())) || env.keys().any(|name| has_return(name)) {
        return env.clone();
    }
    let mut read = ChildEnv::new();
    assert!(merge(&mut read, Path::new("environ.txt"), &text).is_empty());
    read
}

fn has_return(name: &OsStr) -> bool {
    name.as_bytes().contains(&b'\r')
}

/// Each port can be listened on; what is not one is named in a few lines.
pub(crate) fn ports(text: &[u8]) {
    let (ports, warnings) = Ports::parse(Path::new("intrinsic-ports.json"), text);
    check_warnings(&warnings);
    for port in [ports.replin, ports.replout, ports.termin, ports.termout, ports.ttyd] {
        assert_ne!(port, 0);
    }
    assert!((1..=MAX_SSHD_PORTS).contains(&ports.sshd.len()) && !ports.sshd.contains(&0));
    assert!(!warnings.is_empty() || serde_json::from_slice::<serde_json::Map<_, _>>(text).is_ok());
}

fn check_warnings(warnings: &[ConfigWarning]) {
    assert!(warnings.len() <= MAX_WARNINGS, "{} warnings", warnings.len());
    for warning in warnings {
        let text = warning.to_string();
        assert!(text.len() <= MAX_WARNING_BYTES, "{} bytes: {text}", text.len());
        assert!(!text.contains(char::is_control), "one line: {text:?}");
    }
}
