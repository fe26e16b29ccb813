//! Languages described by data: which file selects which command, and how a snippet is run.
//!
//! ```text
//! step ─▶ the first rule whose file exists ─▶ its words, expanded ─▶ a command
//! ```

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::engine::{Engine, EngineContext};
use super::environment::Environment;
use super::jupyter::{self, JupyterKernel};
use super::plan::{Plan, Severity, argument};
use super::scratch::ScratchFiles;
use super::sources;
use super::toolchain::Toolchain;
use super::traits::{InitContext, InitError, Runtime};
use crate::process::Command;

/// A language as data. Fields keep the defaults of [`Recipe::new`] or [`Recipe::with_name_in_path`] if it has no such feature.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) toolchain: Toolchain,
    pub(super) environment: Environment,
    /// A script of the image, run once before the first step if it exists.
    pub(super) start_script: Option<&'static str>,
    /// Without rules there is nothing to build, which is not a failure.
    pub(super) build: &'static [Rule],
    pub(super) execute: &'static [Rule],
    /// Whether `exec` succeeds if none of the files exists.
    pub(super) execute_is_optional: bool,
    /// How `code` is run without a kernel.
    pub(super) code: Option<Code>,
    /// The Jupyter kernel that runs `code`.
    pub(super) kernel: Option<RecipeKernel>,
}

/// A language's Jupyter kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct RecipeKernel {
    /// Part of the names of its kernelspecs.
    pub(super) name: &'static str,
    /// How to install it.
    pub(super) remedy: &'static str,
}

/// A command and its condition.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) when: When,
    pub(super) run: &'static [Word],
}

/// The condition of a rule: files in the working directory.
#[derive(Debug, Clone, Copy)]
pub(super) enum When {
    /// This file exists.
    File(&'static str),
    /// Sources with this extension exist, in subdirectories also.
    Sources(&'static str),
    /// An executable file exists in this directory.
    ProgramIn(&'static str),
}

/// A part of a command.
#[derive(Debug, Clone, Copy)]
pub(super) enum Word {
    /// The runtime's own program.
    Runtime,
    /// Another program of its toolchain.
    Tool(&'static str),
    /// This text as it is.
    Text(&'static str),
    /// The files that the rule's condition found.
    Found,
    /// The files directly in the working directory that end in `suffix`, but not in `except`.
    Here { suffix: &'static str, except: &'static str },
    /// The file with the code.
    Source,
    /// The program compiled from the code.
    Program,
}

/// How `code` is run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Code {
    /// Suffix of the file's name.
    pub(super) suffix: &'static str,
    /// Prepended to code that does not begin with it, on the same line, so that line numbers stay.
    pub(super) lead: &'static str,
    pub(super) run: &'static [&'static [Word]],
}

impl Recipe {
    /// A recipe without steps whose program is at the path.
    pub(super) fn new(path: PathBuf) -> Self {
        Self::with(Toolchain { path, usual: None })
    }

    /// The same, with a program name to look up in `PATH` if the path does not exist.
    pub(super) fn with_name_in_path(path: PathBuf, name: &'static str) -> Self {
        Self::with(Toolchain { path, usual: Some(name) })
    }

    fn with(toolchain: Toolchain) -> Self {
        Self {
            toolchain,
            environment: Environment::default(),
            start_script: None,
            build: &[],
            execute: &[],
            execute_is_optional: false,
            code: None,
            kernel: None,
        }
    }

    /// The command of a rule or a snippet.
    fn command(&self, words: &[Word], fill: impl Fn(Word) -> Vec<OsString>) -> Command {
        Command::argv(words.iter().flat_map(|word| match *word {
            Word::Runtime => vec![self.toolchain.runtime()],
            Word::Tool(name) => vec![self.toolchain.tool(name)],
            Word::Text(text) => vec![text.into()],
            other => fill(other),
        }))
    }

    fn apply(&self, rules: &[Rule], directory: &Path) -> Option<Plan> {
        rules.iter().find_map(|rule| {
            let found = rule.when.look(directory)?;
            Some(Plan::one(self.command(rule.run, |word| match word {
                Word::Found => found.iter().map(|path| argument(path)).collect(),
                Word::Here { suffix, except } => {
                    sources::here(directory, suffix, except).iter().map(|path| argument(path)).collect()
                }
                _ => Vec::new(),
            })))
        })
    }
}

#[async_trait]
impl Runtime for Recipe {
    async fn init(&self, context: InitContext<'_>) -> Result<(), InitError> {
        self.environment.add_to(context.env, context.paths);
        if let Some(complaint) = self.toolchain.complaint() {
            tracing::warn!("{complaint}");
        }
        match self.start_script {
            Some(script) => run_if_there(context.paths.find(script), context).await,
            None => Ok(()),
        }
    }

    fn build(&self, directory: &Path) -> Plan {
        match self.apply(self.build, directory) {
            Some(plan) => plan,
            None if self.build.is_empty() => Plan::no_build(),
            None => Plan::missing(absence(self.build, "build")),
        }
    }

    fn execute(&self, directory: &Path) -> Plan {
        match self.apply(self.execute, directory) {
            Some(plan) => plan,
            None if self.execute_is_optional => Plan::skip(Severity::Info, absence(self.execute, "run")),
            None => Plan::missing(absence(self.execute, "run")),
        }
    }

    fn query(&self, code: &str, scratch: &mut ScratchFiles) -> io::Result<Plan> {
        let Some(how) = self.code else { return Ok(Plan::no_query()) };
        let lead = if code.trim_start().starts_with(how.lead.trim_end()) { "" } else { how.lead };
        let source = scratch.beside(how.suffix, &[lead, code])?;
        let makes_program = how.run.iter().any(|words| words.iter().any(|word| matches!(word, Word::Program)));
        let program = if makes_program { scratch.folder()?.join("main") } else { PathBuf::new() };
        let fill = |word| match word {
            Word::Source => vec![source.clone().into()],
            Word::Program => vec![program.clone().into()],
            _ => Vec::new(),
        };
        Ok(Plan::Run(how.run.iter().map(|words| self.command(words, fill)).collect()))
    }

    fn code_goes_to(&self) -> Option<String> {
        self.kernel.map(|kernel| jupyter::kernel_description(kernel.name))
    }

    fn engine(&self, context: EngineContext) -> Option<Arc<dyn Engine>> {
        let RecipeKernel { name, remedy } = self.kernel?;
        let kernel = JupyterKernel { name, interpreter: None, remedy: remedy.to_owned() };
        Some(kernel.start(context))
    }

    fn examples(&self) -> Vec<Vec<String>> {
        self.build.iter().chain(self.execute).map(|rule| vec![rule.when.example()]).collect()
    }
}

impl When {
    /// The files that satisfy the condition, `None` if there are none.
    fn look(self, directory: &Path) -> Option<Vec<PathBuf>> {
        let found = match self {
            Self::File(name) => directory.join(name).is_file().then(|| name.into()).into_iter().collect(),
            Self::Sources(extension) => sources::below(directory, extension),
            Self::ProgramIn(folder) => program_in(directory, folder).into_iter().collect(),
        };
        Some(found).filter(|found: &Vec<PathBuf>| !found.is_empty())
    }

    /// A file that satisfies the condition.
    fn example(self) -> String {
        match self {
            Self::File(name) => name.to_owned(),
            Self::Sources(extension) => format!("lib/x.{extension}"),
            Self::ProgramIn(folder) => format!("{folder}/x"),
        }
    }

    fn describe(self) -> String {
        match self {
            Self::File(name) => format!("\"{name}\""),
            Self::Sources(extension) => format!("\".{extension}\" file"),
            Self::ProgramIn(folder) => format!("program in \"{folder}\""),
        }
    }
}

/// Runs a script of the image through the shell's `exec`.
async fn run_if_there(script: Vec<PathBuf>, context: InitContext<'_>) -> Result<(), InitError> {
    let InitContext { launcher, control, env, .. } = context;
    for script in script.into_iter().filter(|script| script.is_file()) {
        let command =
            Command::argv(["/bin/sh".into(), "-c".into(), r#"exec "$0""#.into(), script.clone().into_os_string()]);
        match launcher.run(&command, env, control).await {
            Ok(outcome) if outcome.code() == 0 => {}
            Ok(outcome) => return Err(InitError::ScriptFailed { script, code: outcome.code() }),
            Err(error) => return Err(InitError::NotStarted { script, error }),
        }
    }
    Ok(())
}

/// The first executable file by name that is not a library.
fn program_in(directory: &Path, folder: &str) -> Option<PathBuf> {
    let entries = directory.join(folder).read_dir().ok()?.flatten();
    let is_program = |path: &PathBuf| {
        path.extension().is_none_or(|extension| extension != "so")
            && path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o100 != 0)
    };
    let first = entries.map(|entry| entry.path()).filter(is_program).min()?;
    Some(Path::new(folder).join(first.file_name()?))
}

/// `there is neither a "Cargo.toml" nor a "main.rs" to build`.
fn absence(rules: &[Rule], purpose: &str) -> String {
    let names: Vec<String> = rules.iter().map(|rule| rule.when.describe()).collect();
    match &names[..] {
        [one] => format!("there is no {one} to {purpose}"),
        [one, other] => format!("there is neither a {one} nor a {other} to {purpose}"),
        [most @ .., last] => format!("there is no {} and no {last} to {purpose}", most.join(", no ")),
        [] => format!("there is nothing to {purpose}"),
    }
}
