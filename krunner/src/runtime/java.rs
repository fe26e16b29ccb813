//! `java`: every source below the working directory; a snippet is a class, whose `System.in` asks the runner.

mod outline;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use async_trait::async_trait;

use self::outline::Outline;
use super::environment::Environment;
use super::plan::Plan;
use super::recipe::Word::{Found, Runtime as Own, Text, Tool};
use super::recipe::{Recipe, Rule, When};
use super::scratch::Scratch;
use super::traits::{InitContext, Runtime};
use crate::config::Paths;
use crate::process::Command;

/// Started in place of the user's class; compiled with it, as it has to fit whichever Java is there.
const LAUNCHER: &str = "KrunnerMain";
const LAUNCHER_SOURCE: &str = include_str!("java/KrunnerMain.java");

pub(super) struct Java {
    recipe: Recipe,
    surroundings: OnceLock<Surroundings>,
}

/// What is known once the session starts.
struct Surroundings {
    input_socket: PathBuf,
    /// The user's `CLASSPATH`; without one Java takes the working directory.
    class_path: OsString,
}

impl Java {
    pub(super) fn new(path: PathBuf) -> Self {
        let recipe = Recipe {
            environment: Environment {
                variables: &[],
                path: &["/usr/lib/jvm/java-*/bin", "/usr/lib/jvm/java-*/jre/bin"],
            },
            build: &[Rule { when: When::Sources("java"), run: &[Tool("javac"), Text("-d"), Text("."), Found] }],
            execute: &[
                Rule { when: When::File("main/Main.class"), run: &[Own, Text("main.Main")] },
                Rule { when: When::File("Main.class"), run: &[Own, Text("Main")] },
            ],
            ..Recipe::or_usual(path, "java")
        };
        Self { recipe, surroundings: OnceLock::new() }
    }
}

#[async_trait]
impl Runtime for Java {
    async fn init(&self, context: InitContext<'_>) -> Result<(), String> {
        let class_path = context.env.get(OsStr::new("CLASSPATH")).filter(|list| !list.is_empty());
        let surroundings = Surroundings {
            input_socket: context.paths.input_socket(),
            class_path: class_path.cloned().unwrap_or_else(|| ".".into()),
        };
        let _ = self.surroundings.set(surroundings);
        self.recipe.init(context).await
    }

    fn build(&self, directory: &Path) -> Plan {
        self.recipe.build(directory)
    }

    fn execute(&self, directory: &Path) -> Plan {
        self.recipe.execute(directory)
    }

    fn query(&self, code: &str, scratch: &mut Scratch) -> io::Result<Plan> {
        let Outline { file, main_class } = Outline::of(code);
        let surroundings = self.surroundings.get_or_init(Surroundings::unknown);
        let source = scratch.within(&format!("{file}.java"), code)?;
        let launcher = scratch.within(&format!("{LAUNCHER}.java"), LAUNCHER_SOURCE)?;
        let classes = scratch.folder()?;
        let mut class_path = classes.clone().into_os_string();
        class_path.push(":");
        class_path.push(&surroundings.class_path);

        let compiler = self.recipe.toolchain.tool("javac");
        let compile: [&OsStr; 9] = [
            &compiler,
            "-encoding".as_ref(),
            "UTF-8".as_ref(),
            "-cp".as_ref(),
            &surroundings.class_path,
            "-d".as_ref(),
            classes.as_ref(),
            source.as_ref(),
            launcher.as_ref(),
        ];
        let java = self.recipe.toolchain.runtime();
        let run: [&OsStr; 6] = [
            &java,
            "-cp".as_ref(),
            &class_path,
            LAUNCHER.as_ref(),
            surroundings.input_socket.as_ref(),
            main_class.as_ref(),
        ];
        Ok(Plan::Run(vec![Command::argv(compile), Command::argv(run)]))
    }

    fn examples(&self) -> Vec<Vec<String>> {
        self.recipe.examples()
    }
}

impl Surroundings {
    /// As they are in a container.
    fn unknown() -> Self {
        Self { input_socket: Paths::default().input_socket(), class_path: ".".into() }
    }
}
