//! From a definition and a user's wishes to arguments and variables.
//!
//! Pure. What a user chooses is taken as it is: it is never a template, and lets in no flag and no variable that the
//! definition does not allow.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use serde_json::{Map, Value as Json};

use super::definition::{Argument, CommandLine, Definition, ShellChoice, brief};
use super::template::{Shell, TemplateError, Variables, names, render, unknown};
use crate::config::ChildEnv;
use crate::process::Command;

/// What runs, and what is set for it beyond the session's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembled {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables, the definition's and then the user's.
    pub env: Vec<(String, String)>,
}

/// What a user has chosen of what a definition allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chosen {
    arguments: Vec<Argument>,
    envs: Vec<(String, String)>,
}

/// Why a service is not started as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Something among the options that is not what it should be.
    #[error("{0}")]
    BadOption(String),
    /// A flag of the user's.
    #[error("the argument `{flag}` is not allowed for the service {service}; {allowed}")]
    DisallowedArgument {
        /// The flag.
        flag: String,
        /// The service.
        service: String,
        /// What would be.
        allowed: String,
    },
    /// A variable of the user's.
    #[error("the variable `{name}` is not allowed for the service {service}; {allowed}")]
    DisallowedVariable {
        /// The variable.
        name: String,
        /// The service.
        service: String,
        /// What would be.
        allowed: String,
    },
    /// A variable that has a value already.
    #[error("the variable `{0}` is set by the session and cannot be overwritten")]
    FrozenVariable(String),
    /// A text of the definition.
    #[error("the definition's {place} cannot be filled in")]
    Template {
        /// Which.
        place: String,
        /// What is wrong with it.
        #[source]
        source: TemplateError,
    },
    /// A line that has no words: its quotes do not match.
    #[error("the command cannot be split into words: {0}")]
    Words(String),
    /// Nothing to run.
    #[error("the command is empty")]
    NoCommand,
    /// What no process can be given.
    #[error("{0} has a NUL byte in it")]
    Nul(String),
    /// Likewise.
    #[error("`{0}` is no name for a variable")]
    BadName(String),
}

impl Chosen {
    /// Reads a request's options by what the definition allows.
    ///
    /// # Errors
    /// Names the first that is not allowed, or not what it should be.
    pub fn read(
        service: &str,
        definition: &Definition,
        options: &Map<String, Json>,
        session: &ChildEnv,
    ) -> Result<Self, LaunchError> {
        let arguments = Argument::read_all(&object(options, "arguments")?).map_err(LaunchError::BadOption)?;
        let allowed = &definition.allowed_arguments;
        if let Some(Argument { flag, .. }) = arguments.iter().find(|argument| !allowed.contains(&argument.flag)) {
            let (flag, service) = (flag.clone(), service.to_owned());
            return Err(LaunchError::DisallowedArgument { flag, service, allowed: list(allowed) });
        }
        let mut envs = Vec::new();
        for (name, value) in object(options, "envs")? {
            if !definition.allowed_envs.contains(&name) {
                let (service, allowed) = (service.to_owned(), list(&definition.allowed_envs));
                return Err(LaunchError::DisallowedVariable { name, service, allowed });
            } else if session.contains_key(OsStr::new(&name)) {
                return Err(LaunchError::FrozenVariable(name));
            }
            let Json::String(value) = value else {
                let problem = format!("the value of the variable `{name}` is {}; a text is expected", brief(&value));
                return Err(LaunchError::BadOption(problem));
            };
            envs.push((name, value));
        }
        Ok(Self { arguments, envs })
    }
}

fn object(options: &Map<String, Json>, key: &str) -> Result<Map<String, Json>, LaunchError> {
    match options.get(key) {
        None | Some(Json::Null) => Ok(Map::new()),
        Some(Json::Object(object)) => Ok(object.clone()),
        Some(other) => {
            Err(LaunchError::BadOption(format!("the option `{key}` is {}; an object is expected", brief(other))))
        }
    }
}

fn list(allowed: &[String]) -> String {
    if allowed.is_empty() { "none is".to_owned() } else { format!("allowed are `{}`", allowed.join("`, `")) }
}

/// Finds mistakes before anything is done: all templates, with what is known now. What actions are going to find out
/// is only checked to have a name.
///
/// # Errors
/// The first mistake.
pub fn check(definition: &Definition, variables: &Variables) -> Result<(), LaunchError> {
    let mut later = BTreeSet::new();
    for action in &definition.prestart_actions {
        for template in action.act.templates() {
            check_one(template, &format!("action `{}`", action.act.name()), Shell::Never, variables, &later)?;
        }
        later.extend(action.reference.clone());
    }
    for (place, template) in texts(definition) {
        check_one(template, &place, Shell::Later, variables, &later)?;
    }
    Ok(())
}

/// Command and variables, each with a word for where it is written.
fn texts(definition: &Definition) -> Vec<(String, &str)> {
    let command: Vec<&str> = match &definition.command {
        Some(CommandLine::Argv(argv)) => argv.iter().map(String::as_str).collect(),
        Some(CommandLine::Line(line)) => vec![line],
        None => Vec::new(),
    };
    let command = command.into_iter().map(|template| ("`command`".to_owned(), template));
    let env = definition.env.iter().flat_map(|(name, value)| {
        let value = value.as_str().unwrap_or_default();
        [("`env`".to_owned(), name.as_str()), (format!("variable `{name}`"), value)]
    });
    command.chain(env).collect()
}

fn check_one(
    template: &str,
    place: &str,
    shell: Shell,
    now: &Variables,
    later: &BTreeSet<String>,
) -> Result<(), LaunchError> {
    let failed = |source| LaunchError::Template { place: place.to_owned(), source };
    let names = names(template, shell).map_err(failed)?;
    if let Some(name) = names.iter().find(|name| !now.contains_key(**name) && !later.contains(**name)) {
        return Err(failed(unknown(name, now.keys().chain(later).cloned())));
    }
    if !names.iter().any(|name| later.contains(*name)) {
        render(template, shell, now).map_err(failed)?;
    }
    Ok(())
}

/// Fills everything in.
///
/// # Errors
/// When a template is wrong, or the result cannot be given to a process.
pub fn assemble(definition: &Definition, chosen: &Chosen, variables: &Variables) -> Result<Assembled, LaunchError> {
    let fill = |place: &str, template: &str| {
        let failed = |source| LaunchError::Template { place: place.to_owned(), source };
        render(template, Shell::Later, variables).map_err(failed)
    };
    let arguments: Vec<String> = overlay(&definition.default_arguments, &chosen.arguments)
        .flat_map(|argument| std::iter::once(&argument.flag).chain(&argument.values).cloned())
        .collect();
    let argv = match definition.command.as_ref().ok_or(LaunchError::NoCommand)? {
        CommandLine::Argv(argv) => {
            let filled: Result<Vec<String>, _> = argv.iter().map(|word| fill("`command`", word)).collect();
            [filled?, arguments].concat()
        }
        CommandLine::Line(line) => match &definition.shell {
            ShellChoice::Split => {
                let words = shlex::split(line).ok_or_else(|| LaunchError::Words(line.clone()))?;
                let filled: Result<Vec<String>, _> = words.iter().map(|word| fill("`command`", word)).collect();
                [filled?, arguments].concat()
            }
            ShellChoice::Shell(shell) => {
                let mut line = fill("`command`", line)?;
                for argument in &arguments {
                    let nul = |_| LaunchError::Nul(format!("the argument {argument:?}"));
                    line.push(' ');
                    line.push_str(&shlex::try_quote(argument).map_err(nul)?);
                }
                if line.trim().is_empty() {
                    return Err(LaunchError::NoCommand);
                }
                vec![shell.clone(), "-c".to_owned(), line]
            }
        },
    };
    let mut env = Vec::new();
    for (name, value) in &definition.env {
        let value = fill(&format!("variable `{name}`"), value.as_str().unwrap_or_default())?;
        env.push((fill("`env`", name)?, value));
    }
    env.extend(chosen.envs.iter().cloned());
    possible(&argv, &env)?;
    Ok(Assembled { argv, env })
}

/// A user's flags take the place of the defaults of the same name; others follow.
fn overlay<'a>(defaults: &'a [Argument], chosen: &'a [Argument]) -> impl Iterator<Item = &'a Argument> {
    let chosen_for = |flag: &str| chosen.iter().find(|argument| argument.flag == flag);
    let overlaid = defaults.iter().map(move |default| chosen_for(&default.flag).unwrap_or(default));
    overlaid.chain(chosen.iter().filter(|argument| !defaults.iter().any(|default| default.flag == argument.flag)))
}

/// What the kernel takes no process with.
fn possible(argv: &[String], env: &[(String, String)]) -> Result<(), LaunchError> {
    if argv.first().is_none_or(String::is_empty) {
        return Err(LaunchError::NoCommand);
    }
    if let Some(word) = argv.iter().find(|word| word.contains('\0')) {
        return Err(LaunchError::Nul(format!("the argument {word:?}")));
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(LaunchError::BadName(name.clone()));
        } else if value.contains('\0') {
            return Err(LaunchError::Nul(format!("the variable `{name}`")));
        }
    }
    Ok(())
}

impl Assembled {
    /// The command.
    #[must_use]
    pub fn command(&self) -> Command {
        Command::argv(&self.argv)
    }

    /// The session's environment with what is set beyond; without the runner's own libraries, which are not for others.
    #[must_use]
    pub fn environment(&self, session: &ChildEnv, own_libraries: &OsStr) -> ChildEnv {
        let mut env = session.clone();
        env.extend(self.env.iter().map(|(name, value)| (name.into(), value.into())));
        if let Some(libraries) = env.get_mut(OsStr::new("LD_LIBRARY_PATH")) {
            let folders = libraries.as_bytes().split(|byte| *byte == b':');
            let kept: Vec<&[u8]> = folders.filter(|folder| *folder != own_libraries.as_bytes()).collect();
            *libraries = OsString::from_vec(kept.join(&b':'));
        }
        env
    }
}

#[cfg(test)]
mod tests {
    use super::super::template::Value;
    use super::*;
    use serde_json::json;

    fn definition(value: &Json) -> Definition {
        Definition::parse(value.to_string().as_bytes()).unwrap()
    }

    fn variables() -> Variables {
        Variables::from([
            ("ports".into(), Value::Numbers(vec![8080, 9090])),
            ("runtime_path".into(), Value::Text("/usr/bin/python3".into())),
        ])
    }

    fn session() -> ChildEnv {
        [("PATH", "/bin"), ("LD_PRELOAD", ""), ("LD_LIBRARY_PATH", "")].map(|(k, v)| (k.into(), v.into())).into()
    }

    fn argv(definition: &Definition, options: &Json) -> Result<Vec<String>, String> {
        let Json::Object(options) = options else { panic!() };
        let chosen = Chosen::read("s", definition, options, &session()).map_err(|error| error.to_string())?;
        check(definition, &variables()).map_err(|error| crate::error::chain(&error))?;
        assemble(definition, &chosen, &variables()).map(|it| it.argv).map_err(|error| crate::error::chain(&error))
    }

    #[test]
    fn arguments_take_the_place_of_defaults_and_follow_them() {
        let definition = definition(&json!({
            "command": ["x", "--port={ports[0]}"],
            "default_arguments": {"--b": "1", "--a": ["2", "3"], "--q": null},
            "allowed_arguments": ["--a", "--z"],
        }));
        let plain = argv(&definition, &json!({})).unwrap();
        assert_eq!(plain, ["x", "--port=8080", "--b", "1", "--a", "2", "3", "--q"]);
        let chosen = argv(&definition, &json!({"arguments": {"--z": "{ports[0]} ${HOME}", "--a": null}})).unwrap();
        assert_eq!(chosen, ["x", "--port=8080", "--b", "1", "--a", "--q", "--z", "{ports[0]} ${HOME}"]);
        assert_eq!(argv(&definition, &json!({"arguments": null, "envs": null})).unwrap(), plain);
    }

    #[test]
    fn a_text_is_for_a_shell_or_is_split() {
        let shape = |shell: Json| {
            json!({
                "command": "exec {runtime_path} \"a b\" ${X}", "shell": shell,
                "default_arguments": {"--n": "it's"},
            })
        };
        let with_shell = argv(&definition(&shape(json!("/bin/ash"))), &json!({})).unwrap();
        assert_eq!(with_shell, ["/bin/ash", "-c", "exec /usr/bin/python3 \"a b\" ${X} --n \"it's\""]);
        let split = argv(&definition(&shape(Json::Null)), &json!({})).unwrap();
        assert_eq!(split, ["exec", "/usr/bin/python3", "a b", "${X}", "--n", "it's"]);
        let default = argv(&definition(&json!({"command": "x"})), &json!({})).unwrap();
        assert_eq!(default, ["bash", "-c", "x"]);
    }

    #[test]
    fn nothing_gets_in_that_is_not_allowed() {
        let definition = definition(&json!({
            "command": ["x"], "allowed_arguments": ["--a"], "allowed_envs": ["E", "PATH", "LD_PRELOAD"],
        }));
        let error = |options: Json| argv(&definition, &options).unwrap_err();
        let flag = error(json!({"arguments": {"--evil": null}}));
        assert_eq!(flag, "the argument `--evil` is not allowed for the service s; allowed are `--a`");
        let variable = error(json!({"envs": {"BASH_ENV": "x"}}));
        assert_eq!(
            variable,
            "the variable `BASH_ENV` is not allowed for the service s; allowed are `E`, `PATH`, `LD_PRELOAD`"
        );
        for name in ["PATH", "LD_PRELOAD"] {
            let frozen = error(json!({"envs": {name: "/evil"}}));
            assert_eq!(frozen, format!("the variable `{name}` is set by the session and cannot be overwritten"));
        }
        let number = error(json!({"envs": {"E": 7}}));
        assert_eq!(number, "the value of the variable `E` is 7; a text is expected");
        assert!(error(json!({"arguments": ["--a"]})).starts_with("the option `arguments` is [\"--a\"]; an object"));
        assert_eq!(error(json!({"arguments": {"--a": "\0"}})), "the argument \"\\0\" has a NUL byte in it");
    }

    #[test]
    fn mistakes_are_found_before_anything_is_done() {
        let error = |value: Json| argv(&definition(&value), &json!({})).unwrap_err();
        let unknown = error(json!({"command": ["{port}"]}));
        assert_eq!(
            unknown,
            "the definition's `command` cannot be filled in: `{port}`: the name `port` is unknown; known are `ports`, `runtime_path`"
        );
        let action = error(json!({
            "command": ["x"], "prestart": [{"action": "log", "args": {"message": "{later}"}}],
        }));
        assert!(action.starts_with("the definition's action `log` cannot be filled in: `{later}`: "), "{action}");
        let index = error(json!({"command": ["x"], "env": {"P": "{ports[2]}"}}));
        assert!(
            index.ends_with("variable `P` cannot be filled in: `{ports[2]}`: there is no `2` in `ports`"),
            "{index}"
        );
    }

    #[test]
    fn the_runners_own_libraries_are_for_nobody_else() {
        let assembled = Assembled {
            argv: vec!["x".into()],
            env: vec![("LD_LIBRARY_PATH".into(), "/opt/own:/usr/lib/x".into()), ("A".into(), "b".into())],
        };
        let env = assembled.environment(&session(), OsStr::new("/opt/own"));
        assert_eq!(env[OsStr::new("LD_LIBRARY_PATH")], "/usr/lib/x");
        assert_eq!((env.len(), &env[OsStr::new("PATH")]), (4, &OsString::from("/bin")));
    }
}
