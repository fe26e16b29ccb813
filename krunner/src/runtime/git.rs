//! `git`: a shell on a terminal that a browser shows, and `code` for what goes beside it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::engine::{Engine, Surroundings};
use super::plan::Plan;
use super::traits::Runtime;
use crate::config::ChildEnv;
use crate::process::{Control, Launcher, Rich, Stream};
use crate::terminal::{Order, Terminal, parse, show_graph};

const GRAPH_MIME: &str = "application/vnd.sorna.gitgraph";

/// As a shell says it of a command that is not there.
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

    fn engine(&self, surroundings: Surroundings) -> Option<Arc<dyn Engine>> {
        let Surroundings { launcher, env, paths, line, .. } = surroundings;
        let terminal = line.map(|line| Terminal::start(&launcher, env.clone(), line));
        Some(Arc::new(Shell { launcher, env, home: paths.work(), terminal }))
    }
}

/// The terminal, and whoever answers beside it.
struct Shell {
    launcher: Launcher,
    env: ChildEnv,
    home: PathBuf,
    /// None when its ports could not be had.
    terminal: Option<Terminal>,
}

#[async_trait]
impl Engine for Shell {
    async fn run(&self, code: &str, control: &Control) -> i32 {
        match parse(code) {
            Ok(Order::Ping) => self.say(Stream::Stdout, "pong!".to_owned(), 0).await,
            Ok(Order::Resize(size)) => match &self.terminal {
                Some(terminal) => {
                    terminal.resize(size).await;
                    let told = format!("OK; terminal resized to {} lines and {} columns", size.rows, size.columns);
                    self.say(Stream::Stdout, told, 0).await
                }
                None => self.say(Stream::Stderr, "There is no terminal; the log says why.".to_owned(), 1).await,
            },
            Ok(Order::ShowGraph(path)) => self.show_graph(&path, control).await,
            Err(problem) => self.say(Stream::Stderr, problem, INVALID).await,
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

    /// A path counts from where the shell is, as it does for whoever types there.
    async fn show_graph(&self, path: &str, control: &Control) -> i32 {
        let shell_is_in = match &self.terminal {
            Some(terminal) => terminal.directory().await,
            None => None,
        };
        let directory = shell_is_in.as_ref().unwrap_or(&self.home).join(path);
        match show_graph(&directory, &self.launcher, &self.env, control).await {
            Ok(graph) => {
                let media = Rich::Media { mime: GRAPH_MIME.to_owned(), data: graph.to_json() };
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
