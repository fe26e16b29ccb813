//! Installs Python packages with uv: a quarter of a minute instead of three of a processor that compilers need.
//!
//! uv does not read pip's configuration, which says where this machine's registry is. So it is handed over, in variables: the
//! arguments of a process are visible to every user, and addresses may have passwords.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{INSTALL_DEADLINE, finish};
use crate::workspace::printed;

/// Options of pip (`pip config`), the variables of uv that have the same meaning, and what separates values there
/// (<https://docs.astral.sh/uv/reference/environment/>).
const VARIABLES: [(&str, &str, &str); 6] = [
    ("index-url", "UV_DEFAULT_INDEX", " "),
    ("extra-index-url", "UV_INDEX", " "),
    ("find-links", "UV_FIND_LINKS", ","),
    ("trusted-host", "UV_INSECURE_HOST", " "),
    ("cert", "SSL_CERT_FILE", " "),
    ("default-timeout", "UV_HTTP_TIMEOUT", " "),
];

/// Installs packages in the environment of this interpreter, uv among them.
///
/// # Errors
/// With the last line that pip or uv wrote.
pub(crate) fn install(python: &Path, requirements: &[&str]) -> Result<()> {
    super::install(python, ["uv"])?;
    let mut command = Command::new(python.with_file_name("uv"));
    command.args(["pip", "install", "--quiet", "--no-config", "--no-cache", "--python"]).arg(python);
    let config = printed(Command::new(python).args(["-m", "pip", "config", "list"]))?;
    hand_over(&String::from_utf8_lossy(&config), &mut command);
    command.args(requirements);
    finish(command, INSTALL_DEADLINE)
}

/// `config` has lines like `global.index-url='URL URL'`, with `\n` for a newline. Variables (`:env:`) come first and win.
fn hand_over(config: &str, command: &mut Command) {
    let values = |wanted: &str| {
        let found = config.lines().filter_map(|line| line.split_once('='));
        let mut values = found.filter(|(key, _)| key.rsplit('.').next() == Some(wanted));
        values.next().map(|(_, value)| value.trim_matches('\'').replace("\\n", " "))
    };
    if values("no-index").is_some_and(|value| matches!(value.as_str(), "1" | "true" | "yes" | "on")) {
        command.arg("--no-index");
    }
    for (of_pip, of_uv, separator) in VARIABLES {
        if let Some(value) = values(of_pip) {
            command.env(of_uv, value.split_whitespace().collect::<Vec<_>>().join(separator));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of the child, sorted by name.
    fn variables(command: &Command) -> Vec<(&str, &str)> {
        command.get_envs().map(|(name, value)| (name.to_str().unwrap(), value.unwrap().to_str().unwrap())).collect()
    }

    #[test]
    fn lines_of_a_value_are_values_and_no_index_is_obeyed() {
        let config = "global.extra-index-url='\\nhttps://a.test/s\\nhttps://b.test/s'\nglobal.no-index='true'\n";
        let mut command = Command::new("uv");
        hand_over(config, &mut command);
        assert_eq!(variables(&command), [("UV_INDEX", "https://a.test/s https://b.test/s")]);
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["--no-index"]);
    }

    #[test]
    fn configuration_of_pip_is_handed_over() {
        let config = ":env:.cert='/a.pem'\n:env:.index-url='https://first.test/simple'\n\
                      global.index-url='https://second.test/simple'\nglobal.find-links='/w /x'\nuser.quiet='1'\n";
        let mut command = Command::new("uv");
        hand_over(config, &mut command);
        let expected = [
            ("SSL_CERT_FILE", "/a.pem"),
            ("UV_DEFAULT_INDEX", "https://first.test/simple"),
            ("UV_FIND_LINKS", "/w,/x"),
        ];
        assert_eq!(variables(&command), expected);
        assert_eq!(command.get_args().count(), 0, "other users see arguments");
    }
}
