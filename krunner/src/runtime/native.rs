//! The shape of languages whose compiler turns one source into one object, and objects into `./main`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::plan::{Plan, Severity, argument};
use super::sources;
use super::traits::Runtime;
use crate::process::Command;

/// A compiler of this shape.
#[derive(Debug)]
pub(super) struct Native {
    pub(super) compiler: PathBuf,
    /// Of source files, without the dot.
    pub(super) extension: &'static str,
    pub(super) compile_flags: &'static [&'static str],
    pub(super) link_flags: &'static [&'static str],
}

const PROGRAM: &str = "./main";
const OTHER_PROGRAM: &str = "./a.out";

impl Native {
    fn call(&self, arguments: impl IntoIterator<Item = String>) -> Command {
        let mut argv = vec![self.compiler.clone().into_os_string()];
        argv.extend(arguments.into_iter().map(Into::into));
        Command::argv(argv)
    }

    fn compile(&self, source: &Path, object: &str) -> Command {
        let flags = self.compile_flags.iter().map(ToString::to_string);
        self.call(["-c".into(), argument(source)].into_iter().chain(flags).chain(["-o".into(), object.into()]))
    }

    fn link(&self, inputs: impl IntoIterator<Item = String>) -> Command {
        let flags = |flags: &[&str]| flags.iter().map(ToString::to_string).collect::<Vec<_>>();
        let compile_flags = flags(self.compile_flags);
        let output = ["-o".into(), PROGRAM.into()];
        self.call(inputs.into_iter().chain(compile_flags).chain(output).chain(flags(self.link_flags)))
    }
}

impl Runtime for Native {
    fn clean(&self, directory: &Path) -> Plan {
        if directory.join("Makefile").is_file() {
            return Plan::one(Command::shell("make clean"));
        }
        Plan::skip(Severity::Warning, "nothing is cleaned: there is no \"Makefile\"")
    }

    fn build(&self, directory: &Path) -> Plan {
        let main = format!("main.{}", self.extension);
        if !directory.join(&main).is_file() {
            return Plan::missing(format!("there is neither a \"Makefile\" nor a \"{main}\" to build"));
        }
        let sources = sources::below(directory, self.extension);
        let objects = object_names(&sources);
        let mut commands: Vec<Command> =
            sources.iter().zip(&objects).map(|(source, object)| self.compile(source, object)).collect();
        commands.push(self.link(objects));
        Plan::Run(commands)
    }

    fn execute(&self, directory: &Path) -> Plan {
        match [PROGRAM, OTHER_PROGRAM].into_iter().find(|program| directory.join(program).is_file()) {
            Some(program) => Plan::one(Command::argv([program])),
            None => Plan::missing("there is neither a \"main\" nor an \"a.out\" to run"),
        }
    }

    fn query_suffix(&self) -> Option<&'static str> {
        Some(match self.extension {
            "c" => ".c",
            _ => ".cpp",
        })
    }

    fn query(&self, source: &Path) -> Plan {
        Plan::Run(vec![self.link([argument(source)]), Command::argv([PROGRAM])])
    }
}

/// `dir/util.c` becomes `./util.o`, or `./dir-util.o` where another source has the same stem.
fn object_names(sources: &[PathBuf]) -> Vec<String> {
    let stem = |source: &Path| source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut uses: HashMap<String, usize> = HashMap::new();
    for source in sources {
        *uses.entry(stem(source)).or_default() += 1;
    }
    let name = |source: &PathBuf| {
        let stem = stem(source);
        if uses[&stem] == 1 {
            return format!("./{stem}.o");
        }
        format!("./{}.o", source.with_extension("").to_string_lossy().replace('/', "-"))
    };
    sources.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        folder
    }

    fn shown(plan: Plan) -> Vec<String> {
        match plan {
            Plan::Run(commands) => commands.iter().map(ToString::to_string).collect(),
            Plan::Nothing { message, exit_code, .. } => vec![format!("{exit_code}: {message}")],
        }
    }

    fn c() -> Native {
        super::super::c::runtime("/usr/bin/gcc".into())
    }

    #[test]
    fn every_source_is_compiled_then_linked() {
        let folder = folder(&["main.c", "lib/util.c", "lib/other.h", "-odd name.c"]);
        assert_eq!(
            shown(c().build(folder.path())),
            [
                "/usr/bin/gcc -c ./-odd name.c -Wall -o ./-odd name.o",
                "/usr/bin/gcc -c ./lib/util.c -Wall -o ./util.o",
                "/usr/bin/gcc -c ./main.c -Wall -o ./main.o",
                "/usr/bin/gcc ./-odd name.o ./util.o ./main.o -Wall -o ./main -lrt -lm -lpthread -ldl",
            ]
        );
    }

    #[test]
    fn sources_of_one_stem_do_not_overwrite_each_others_objects() {
        let sources = ["a/x.c", "b/x.c", "main.c"].map(PathBuf::from);
        assert_eq!(object_names(&sources), ["./a-x.o", "./b-x.o", "./main.o"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let empty = folder(&[]);
        assert_eq!(shown(c().build(empty.path())), ["127: there is neither a \"Makefile\" nor a \"main.c\" to build"]);
        assert_eq!(shown(c().execute(empty.path())), ["127: there is neither a \"main\" nor an \"a.out\" to run"]);
        assert_eq!(shown(c().clean(empty.path())), ["0: nothing is cleaned: there is no \"Makefile\""]);
    }

    #[test]
    fn programs_run_in_the_order_of_preference() {
        assert_eq!(shown(c().execute(folder(&["a.out"]).path())), ["./a.out"]);
        assert_eq!(shown(c().execute(folder(&["a.out", "main"]).path())), ["./main"]);
        assert_eq!(shown(c().clean(folder(&["Makefile"]).path())), ["make clean"]);
    }
}
