//! Installs Python packages with uv: a quarter of a minute instead of three of a processor that compilers need.
//!
//! uv does not read pip's configuration, which says where this machine's registry is. So it is handed over.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{INSTALL_DEADLINE, finish};
use crate::workspace::printed;

/// Options of pip (`pip config`) and those of uv.
const OPTIONS: [(&str, &str); 4] = [
    ("index-url", "--default-index"),
    ("extra-index-url", "--index"),
    ("find-links", "--find-links"),
    ("trusted-host", "--allow-insecure-host"),
];

/// Options of pip that uv has as variables.
const VARIABLES: [(&str, &str); 2] = [("cert", "SSL_CERT_FILE"), ("default-timeout", "UV_HTTP_TIMEOUT")];

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
    for (of_pip, of_uv) in OPTIONS {
        for value in values(of_pip).iter().flat_map(|value| value.split_whitespace()) {
            command.args([of_uv, value]);
        }
    }
    if values("no-index").is_some_and(|value| matches!(value.as_str(), "1" | "true" | "yes" | "on")) {
        command.arg("--no-index");
    }
    for (of_pip, of_uv) in VARIABLES {
        command.envs(values(of_pip).map(|value| (of_uv, value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_value_are_values_and_no_index_is_obeyed() {
        let config = "global.extra-index-url='\\nhttps://a.test/s\\nhttps://b.test/s'\nglobal.no-index='true'\n";
        let mut command = Command::new("uv");
        hand_over(config, &mut command);
        let words: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(words, ["--index", "https://a.test/s", "--index", "https://b.test/s", "--no-index"]);
    }

    #[test]
    fn configuration_of_pip_is_handed_over() {
        let config = ":env:.cert='/a.pem'\n:env:.index-url='https://first.test/simple'\n\
                      global.index-url='https://second.test/simple'\nglobal.find-links='/w /x'\nuser.quiet='1'\n";
        let mut command = Command::new("uv");
        hand_over(config, &mut command);
        let words: Vec<_> = command.get_args().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(words, ["--default-index", "https://first.test/simple", "--find-links", "/w", "--find-links", "/x"]);
        let variables: Vec<_> = command.get_envs().map(|(name, value)| (name, value.unwrap())).collect();
        assert_eq!(variables, [("SSL_CERT_FILE".as_ref(), "/a.pem".as_ref())]);
    }
}
