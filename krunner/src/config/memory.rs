//! User settings for low-memory warnings.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use super::switch::switch;
use super::{ChildEnv, ConfigWarning};

/// Whether warnings are shown: `on` (the default) or `off`.
const WARNING: &str = "KRUNNER_MEMORY_WARNING";

/// A command line to run on each warning, without a shell.
const HOOK: &str = "KRUNNER_MEMORY_HOOK";

/// The timeout of the hook in seconds.
const HOOK_TIMEOUT: &str = "KRUNNER_MEMORY_HOOK_TIMEOUT";

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// What to do when memory runs low.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemorySettings {
    /// Whether to show a warning.
    pub warns: bool,
    /// The command to run.
    pub hook: Option<MemoryHook>,
}

/// A command that runs when memory runs low.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryHook {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The time after which it is terminated.
    pub timeout: Duration,
}

impl MemorySettings {
    /// Reads the settings from the environment of user code.
    #[must_use]
    pub(crate) fn of(env: &ChildEnv) -> (Self, Vec<ConfigWarning>) {
        let (warns, warning) = switch(env, WARNING, (true, "warnings stay on"));
        let mut warnings = Vec::from_iter(warning);
        let text = |name: &str| env.get(OsStr::new(name)).map(|value| value.to_string_lossy().trim().to_owned());
        let mut reject = |name: &str, problem: &str| warnings.push(ConfigWarning::new(Path::new(name), None, problem));
        let seconds = text(HOOK_TIMEOUT).filter(|seconds| !seconds.is_empty());
        let timeout = seconds.map_or(Some(DEFAULT_TIMEOUT), |seconds| {
            seconds.parse().ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
        });
        if timeout.is_none() {
            reject(HOOK_TIMEOUT, "not a number of seconds; using the default");
        }
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
        let argv = text(HOOK).filter(|line| !line.is_empty()).and_then(|line| {
            let words = shlex::split(&line).filter(|words| !words.is_empty());
            if words.is_none() {
                reject(HOOK, "unbalanced quotes; the hook is disabled");
            }
            words
        });
        (Self { warns, hook: argv.map(|argv| MemoryHook { argv, timeout }) }, warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> (MemorySettings, Vec<String>) {
        let env = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let (settings, warnings) = MemorySettings::of(&env);
        (settings, warnings.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn without_variables_warnings_are_on() {
        assert_eq!(settings(&[]), (MemorySettings { warns: true, hook: None }, vec![]));
        assert_eq!(settings(&[(WARNING, "on"), (HOOK, " ")]), settings(&[]));
        assert!(!settings(&[(WARNING, "off")]).0.warns);
    }

    #[test]
    fn hook_is_an_argument_list() {
        let (found, problems) = settings(&[(HOOK, "save --to '/a b' $HOME"), (HOOK_TIMEOUT, "5")]);
        let hook = found.hook.unwrap();
        assert_eq!(hook.argv, ["save", "--to", "/a b", "$HOME"]);
        assert_eq!((hook.timeout, problems.len()), (Duration::from_secs(5), 0));
    }

    #[test]
    fn what_is_malformed_is_named_and_the_default_stands() {
        let (found, problems) = settings(&[(WARNING, "maybe"), (HOOK, "save 'x"), (HOOK_TIMEOUT, "-1")]);
        assert_eq!(found, MemorySettings { warns: true, hook: None });
        assert_eq!(
            problems,
            [
                "KRUNNER_MEMORY_WARNING: expected `on` or `off`; warnings stay on",
                "KRUNNER_MEMORY_HOOK_TIMEOUT: not a number of seconds; using the default",
                "KRUNNER_MEMORY_HOOK: unbalanced quotes; the hook is disabled",
            ]
        );
    }
}
