//! Resolves a definition and the user's options to a command line and environment variables.
//!
//! Pure. The user's values are taken literally, never as templates, and only flags and variables that the definition allows
//! are accepted.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use serde_json::{Map, Value as Json};

use super::braces::{Syntax, without_blanks};
use super::definition::{Argument, ArgumentError, CommandLine, Definition, ShellChoice, brief};
use super::template::{Variables, names, render, unknown};
use super::template_error::TemplateError;
use crate::config::ChildEnv;
use crate::process::Command;

/// A command line, and variables beyond the session's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedCommand {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The definition's variables, then the user's.
    pub env: Vec<(String, String)>,
}

/// The flags and variables of a start request, all allowed by the definition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserOptions {
    arguments: Vec<Argument>,
    envs: Vec<(String, String)>,
}

/// Why a service cannot be started as requested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// An option is not an object.
    #[error("option `{key}`: expected an object, got {value}")]
    OptionType {
        /// The option's name.
        key: &'static str,
        /// The start of its value.
        value: String,
    },
    /// The values of a flag have the wrong type.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// The value of a variable is not a string.
    #[error("variable `{name}`: expected a string, got {value}")]
    VariableType {
        /// The variable's name.
        name: String,
        /// The start of its value.
        value: String,
    },
    /// The user gave a flag that the definition does not allow.
    #[error("argument `{flag}` is not allowed for service {service} (allowed: {allowed})")]
    DisallowedArgument {
        /// The rejected flag.
        flag: String,
        /// The service's name.
        service: String,
        /// The allowed flags, for the message.
        allowed: String,
    },
    /// The user set a variable that the definition does not allow.
    #[error("variable `{name}` is not allowed for service {service} (allowed: {allowed})")]
    DisallowedVariable {
        /// The rejected variable.
        name: String,
        /// The service's name.
        service: String,
        /// The allowed variables, for the message.
        allowed: String,
    },
    /// The session sets this variable itself.
    #[error("variable `{0}` is set by the session and cannot be overridden")]
    FrozenVariable(String),
    /// A template of the definition is invalid.
    #[error("cannot expand the definition's {place}")]
    Template {
        /// Where the template is written.
        place: String,
        /// What is invalid about it.
        #[source]
        source: TemplateError,
    },
    /// The quotes of a command without a shell do not match.
    #[error("cannot parse the command (unbalanced quotes): {0}")]
    UnbalancedQuotes(String),
    /// The command has no program.
    #[error("the command is empty")]
    NoCommand,
    /// An argument or variable contains a NUL byte, which `execve` cannot pass.
    #[error("{0} contains a NUL byte")]
    Nul(String),
    /// A variable's name is empty or contains `=`.
    #[error("`{0}` is not a valid variable name")]
    BadName(String),
}

impl UserOptions {
    /// Parses a request's options and checks them against the definition.
    ///
    /// # Errors
    /// Names the first option that is not allowed or has the wrong type.
    pub fn read(
        service: &str,
        definition: &Definition,
        options: &Map<String, Json>,
        session: &ChildEnv,
    ) -> Result<Self, LaunchError> {
        let arguments = Argument::read_all(&object(options, "arguments")?)?;
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
                return Err(LaunchError::VariableType { name, value: brief(&value) });
            };
            envs.push((name, value));
        }
        Ok(Self { arguments, envs })
    }
}

fn object(options: &Map<String, Json>, key: &'static str) -> Result<Map<String, Json>, LaunchError> {
    match options.get(key) {
        None | Some(Json::Null) => Ok(Map::new()),
        Some(Json::Object(object)) => Ok(object.clone()),
        Some(other) => Err(LaunchError::OptionType { key, value: brief(other) }),
    }
}

fn list(allowed: &[String]) -> String {
    if allowed.is_empty() { "none".to_owned() } else { format!("`{}`", allowed.join("`, `")) }
}

/// Checks all templates before any action runs. Of the results of actions only the names are checked.
///
/// # Errors
/// The first mistake.
pub(crate) fn check(definition: &Definition, variables: &Variables) -> Result<(), LaunchError> {
    let mut later = BTreeSet::new();
    for action in &definition.prestart_actions {
        for template in action.kind.templates() {
            check_one(template, &format!("action `{}`", action.kind.name()), Syntax::Format, variables, &later)?;
        }
        later.extend(action.reference.clone());
    }
    for template in command_templates(definition)? {
        check_one(&template, "`command`", Syntax::Shell, variables, &later)?;
    }
    for (name, value) in &definition.env {
        let value = value.as_str().unwrap_or_default();
        check_one(name, "`env`", Syntax::Shell, variables, &later)?;
        check_one(value, &format!("variable `{name}`"), Syntax::Shell, variables, &later)?;
    }
    Ok(())
}

/// The templates of the command, each of which is expanded on its own.
fn command_templates(definition: &Definition) -> Result<Vec<String>, LaunchError> {
    match (&definition.command, &definition.shell) {
        (None, _) => Ok(Vec::new()),
        (Some(CommandLine::Argv(argv)), _) => Ok(argv.clone()),
        (Some(CommandLine::Line(line)), ShellChoice::Shell(_)) => Ok(vec![line.clone()]),
        (Some(CommandLine::Line(line)), ShellChoice::Split) => {
            let line = without_blanks(line).map_err(in_command)?;
            shlex::split(&line).ok_or(LaunchError::UnbalancedQuotes(line))
        }
    }
}

fn in_command(source: TemplateError) -> LaunchError {
    LaunchError::Template { place: "`command`".to_owned(), source }
}

fn check_one(
    template: &str,
    place: &str,
    syntax: Syntax,
    now: &Variables,
    later: &BTreeSet<String>,
) -> Result<(), LaunchError> {
    let failed = |source| LaunchError::Template { place: place.to_owned(), source };
    let names = names(template, syntax).map_err(failed)?;
    if let Some(name) = names.iter().find(|name| !now.contains_key(**name) && !later.contains(**name)) {
        return Err(failed(unknown(name, now.keys().chain(later).cloned())));
    }
    if !names.iter().any(|name| later.contains(*name)) {
        render(template, syntax, now).map_err(failed)?;
    }
    Ok(())
}

/// Expands all templates.
///
/// # Errors
/// When a template is invalid, or the result cannot be passed to a process.
pub fn resolve(
    definition: &Definition,
    user_options: &UserOptions,
    variables: &Variables,
) -> Result<ResolvedCommand, LaunchError> {
    let fill = |place: &str, template: &str| {
        let failed = |source| LaunchError::Template { place: place.to_owned(), source };
        render(template, Syntax::Shell, variables).map_err(failed)
    };
    let arguments: Vec<String> = overlay(&definition.default_arguments, &user_options.arguments)
        .flat_map(|argument| std::iter::once(&argument.flag).chain(&argument.values).cloned())
        .collect();
    let templates = command_templates(definition)?;
    let filled: Vec<String> = templates.iter().map(|word| fill("`command`", word)).collect::<Result<_, _>>()?;
    let argv = match (definition.command.as_ref().ok_or(LaunchError::NoCommand)?, &definition.shell) {
        (CommandLine::Line(_), ShellChoice::Shell(shell)) => {
            let mut line = filled.concat();
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
        _ => [filled, arguments].concat(),
    };
    let mut env = Vec::new();
    for (name, value) in &definition.env {
        let value = fill(&format!("variable `{name}`"), value.as_str().unwrap_or_default())?;
        env.push((fill("`env`", name)?, value));
    }
    env.extend(user_options.envs.iter().cloned());
    possible(&argv, &env)?;
    Ok(ResolvedCommand { argv, env })
}

/// The user's flags replace the defaults of the same name; others follow.
fn overlay<'a>(defaults: &'a [Argument], user_options: &'a [Argument]) -> impl Iterator<Item = &'a Argument> {
    let chosen_for = |flag: &str| user_options.iter().find(|argument| argument.flag == flag);
    let overlaid = defaults.iter().map(move |default| chosen_for(&default.flag).unwrap_or(default));
    overlaid.chain(user_options.iter().filter(|argument| !defaults.iter().any(|default| default.flag == argument.flag)))
}

/// Rejects what `execve` cannot pass.
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

impl ResolvedCommand {
    /// The command line as a [`Command`].
    #[must_use]
    pub fn command(&self) -> Command {
        Command::argv(&self.argv)
    }

    /// The session's environment plus these variables, without the runner's own libraries in `LD_LIBRARY_PATH`.
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
    use crate::error::chain;
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

    fn argv(definition: &Definition, options: &Json) -> Result<Vec<String>, LaunchError> {
        let Json::Object(options) = options else { panic!() };
        let user_options = UserOptions::read("s", definition, options, &session())?;
        check(definition, &variables())?;
        Ok(resolve(definition, &user_options, &variables())?.argv)
    }

    #[test]
    fn words_without_a_shell_are_checked_as_they_are_expanded() {
        let split = |command: &str| definition(&json!({ "command": command, "shell": null }));
        let quoted = split("x '{\"a\": { ports[0] }}' # {prot}");
        assert_eq!(argv(&quoted, &json!({})).unwrap(), ["x", "{\"a\": 8080}"]);
        for (command, problem) in [("x {\"a\": 1}", "expand"), ("x 'y", "unbalanced quotes")] {
            let error = check(&split(command), &variables()).unwrap_err().to_string();
            assert!(error.contains(problem), "{command}: {error}");
        }
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
        let user_options =
            argv(&definition, &json!({"arguments": {"--z": "{ports[0]} ${HOME}", "--a": null}})).unwrap();
        assert_eq!(user_options, ["x", "--port=8080", "--b", "1", "--a", "--q", "--z", "{ports[0]} ${HOME}"]);
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
        let error = |options: Json| chain(&argv(&definition, &options).unwrap_err());
        let flag = error(json!({"arguments": {"--evil": null}}));
        assert_eq!(flag, "argument `--evil` is not allowed for service s (allowed: `--a`)");
        let variable = error(json!({"envs": {"BASH_ENV": "x"}}));
        assert_eq!(variable, "variable `BASH_ENV` is not allowed for service s (allowed: `E`, `PATH`, `LD_PRELOAD`)");
        for name in ["PATH", "LD_PRELOAD"] {
            let frozen = error(json!({"envs": {name: "/evil"}}));
            assert_eq!(frozen, format!("variable `{name}` is set by the session and cannot be overridden"));
        }
        let number = error(json!({"envs": {"E": 7}}));
        assert_eq!(number, "variable `E`: expected a string, got 7");
        let flag = error(json!({"arguments": {"--a": 7}}));
        assert_eq!(flag, "argument `--a`: expected a string, a list of strings or null, got 7");
        assert!(
            error(json!({"arguments": ["--a"]})).starts_with("option `arguments`: expected an object, got [\"--a\"]")
        );
        assert_eq!(error(json!({"arguments": {"--a": "\0"}})), "the argument \"\\0\" contains a NUL byte");
    }

    #[test]
    fn mistakes_are_found_before_anything_is_done() {
        let error = |value: Json| chain(&argv(&definition(&value), &json!({})).unwrap_err());
        let unknown = error(json!({"command": ["{port}"]}));
        assert_eq!(
            unknown,
            "cannot expand the definition's `command`: `{port}`: unknown name `port`; known names: `ports`, `runtime_path`"
        );
        let action = error(json!({
            "command": ["x"], "prestart": [{"action": "log", "args": {"message": "{later}"}}],
        }));
        assert!(action.starts_with("cannot expand the definition's action `log`: `{later}`: "), "{action}");
        let index = error(json!({"command": ["x"], "env": {"P": "{ports[2]}"}}));
        assert!(index.ends_with("variable `P`: `{ports[2]}`: `ports` has no element `2`"), "{index}");
    }

    #[test]
    fn the_runners_own_libraries_are_removed() {
        let resolved = ResolvedCommand {
            argv: vec!["x".into()],
            env: vec![("LD_LIBRARY_PATH".into(), "/opt/own:/usr/lib/x".into()), ("A".into(), "b".into())],
        };
        let env = resolved.environment(&session(), OsStr::new("/opt/own"));
        assert_eq!(env[OsStr::new("LD_LIBRARY_PATH")], "/usr/lib/x");
        assert_eq!((env.len(), &env[OsStr::new("PATH")]), (4, &OsString::from("/bin")));
    }
}
