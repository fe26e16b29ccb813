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
use super::scratch::ScratchFiles;
use super::traits::{InitContext, InitError, Runtime};
use crate::config::{INPUT_SOCKET_VARIABLE, Paths};
use crate::process::Command;

/// Started instead of the user's class. Compiled together with it, to match the installed Java version.
const LAUNCHER: &str = "KrunnerMain";
const LAUNCHER_SOURCE: &str = include_str!("java/KrunnerMain.java");

pub(super) struct Java {
    recipe: Recipe,
    host_env: OnceLock<HostEnv>,
}

/// Settings that are known when the session starts.
struct HostEnv {
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
            ..Recipe::with_name_in_path(path, "java")
        };
        Self { recipe, host_env: OnceLock::new() }
    }
}

#[async_trait]
impl Runtime for Java {
    async fn init(&self, context: InitContext<'_>) -> Result<(), InitError> {
        let class_path = context.env.get(OsStr::new("CLASSPATH")).filter(|list| !list.is_empty());
        let elsewhere = context.env.get(OsStr::new(INPUT_SOCKET_VARIABLE));
        let host_env = HostEnv {
            input_socket: elsewhere.map_or_else(|| context.paths.input_socket(), PathBuf::from),
            class_path: class_path.cloned().unwrap_or_else(|| ".".into()),
        };
        let _ = self.host_env.set(host_env);
        self.recipe.init(context).await
    }

    fn build(&self, directory: &Path) -> Plan {
        self.recipe.build(directory)
    }

    fn execute(&self, directory: &Path) -> Plan {
        self.recipe.execute(directory)
    }

    fn query(&self, code: &str, scratch: &mut ScratchFiles) -> io::Result<Plan> {
        let Outline { file, main_class } = Outline::of(code);
        let host_env = self.host_env.get_or_init(HostEnv::unknown);
        let source = scratch.within(&format!("{file}.java"), code)?;
        let launcher = scratch.within(&format!("{LAUNCHER}.java"), LAUNCHER_SOURCE)?;
        let classes = scratch.folder()?;
        let mut class_path = classes.clone().into_os_string();
        class_path.push(":");
        class_path.push(&host_env.class_path);

        let compiler = self.recipe.toolchain.tool("javac");
        let compile: [&OsStr; 9] = [
            &compiler,
            "-encoding".as_ref(),
            "UTF-8".as_ref(),
            "-cp".as_ref(),
            &host_env.class_path,
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
            host_env.input_socket.as_ref(),
            main_class.as_ref(),
        ];
        Ok(Plan::Run(vec![Command::argv(compile), Command::argv(run)]))
    }

    fn examples(&self) -> Vec<Vec<String>> {
        self.recipe.examples()
    }
}

impl HostEnv {
    /// The defaults in a container.
    fn unknown() -> Self {
        Self { input_socket: Paths::default().input_socket(), class_path: ".".into() }
    }
}
