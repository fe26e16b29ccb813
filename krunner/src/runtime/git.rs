//! `git`: a shell on a terminal in the browser, and `code` for the commands of that terminal.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::engine::{Engine, EngineContext};
use super::plan::Plan;
use super::traits::Runtime;
use crate::config::ChildEnv;
use crate::process::{Control, Launcher, RichOutput, Stream};
use crate::terminal::{Terminal, TerminalCommand, parse, show_graph};

const GRAPH_MIME: &str = "application/vnd.sorna.gitgraph";

/// A shell's exit code for a missing command.
const INVALID: i32 = 127;

const NO_BATCH: &str = "this runtime is a terminal: type into it, or give `build` and `exec` a command line";

pub(super) struct Git;

impl Runtime for Git {
    fn build(&self, _: &Path) -> Plan {
        Plan::missing(NO_BATCH)
    }

    fn execute(&self, _: &Path) -> Plan {
        Plan::missing(NO_BATCH)
    }

    fn has_terminal(&self) -> bool {
        true
    }

    fn code_goes_to(&self) -> Option<String> {
        Some("the terminal: `%ping`, `%resize ROWS COLUMNS`, `%show graph PATH`".to_owned())
    }

    fn engine(&self, context: EngineContext) -> Option<Arc<dyn Engine>> {
        let EngineContext { launcher, env, paths, terminal_transport, .. } = context;
        let terminal = terminal_transport.map(|transport| Terminal::start(&launcher, env.clone(), transport));
        Some(Arc::new(Shell { launcher, env, home: paths.work(), terminal }))
    }
}

/// Serves the terminal and its commands.
struct Shell {
    launcher: Launcher,
    env: ChildEnv,
    home: PathBuf,
    /// `None` if its ports could not be bound.
    terminal: Option<Terminal>,
}

#[async_trait]
impl Engine for Shell {
    async fn run(&self, code: &str, control: &Control) -> i32 {
        match parse(code) {
            Ok(TerminalCommand::Ping) => self.say(Stream::Stdout, "pong!".to_owned(), 0).await,
            Ok(TerminalCommand::Resize(size)) => match &self.terminal {
                Some(terminal) => {
                    terminal.resize(size);
                    let told = format!("OK; terminal resized to {} lines and {} columns", size.rows, size.columns);
                    self.say(Stream::Stdout, told, 0).await
                }
                None => self.say(Stream::Stderr, "The terminal is not available; see the log.".to_owned(), 1).await,
            },
            Ok(TerminalCommand::ShowGraph(path)) => self.show_graph(&path, control).await,
            Err(error) => self.say(Stream::Stderr, error.to_string(), INVALID).await,
        }
    }

    async fn stop(&self) {
        if let Some(terminal) = &self.terminal {
            terminal.stop().await;
        }
    }
}

impl Shell {
    async fn say(&self, stream: Stream, text: String, exit_code: i32) -> i32 {
        self.launcher.sink.deliver(stream, text.into()).await;
        exit_code
    }

    /// Relative paths start at the shell's working directory.
    async fn show_graph(&self, path: &str, control: &Control) -> i32 {
        let shell_is_in = match &self.terminal {
            Some(terminal) => terminal.directory().await,
            None => None,
        };
        let directory = shell_is_in.as_ref().unwrap_or(&self.home).join(path);
        match show_graph(&directory, &self.launcher, &self.env, control).await {
            Ok(graph) => {
                let media = RichOutput::Media { mime: GRAPH_MIME.to_owned(), data: graph.to_json() };
                self.launcher.sink.show(media).await;
                if !graph.is_cut {
                    return 0;
                }
                let told = format!("Only the newest {} commits are shown.\n", graph.len());
                self.say(Stream::Stderr, told, 0).await
            }
            Err(error) => self.say(Stream::Stderr, format!("{}\n", error.message), error.exit_code).await,
        }
    }
}
