//! Languages whose compiler turns each source into an object, and links them to `./main`.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use super::plan::{Plan, Severity, argument};
use super::scratch::ScratchFiles;
use super::sources;
use super::traits::Runtime;
use crate::process::Command;

/// A language with such a compiler.
#[derive(Debug)]
pub(super) struct Native {
    pub(super) compiler: PathBuf,
    /// Extension of source files, without the dot.
    pub(super) extension: &'static str,
    pub(super) compile_flags: &'static [&'static str],
    pub(super) link_flags: &'static [&'static str],
}

const PROGRAM: &str = "./main";
const OTHER_PROGRAM: &str = "./a.out";

impl Native {
    fn compile(&self, source: &Path, object: OsString) -> Command {
        let mut argv = vec![self.compiler.clone().into(), "-c".into(), argument(source)];
        argv.extend(self.compile_flags.iter().map(OsString::from));
        argv.extend(["-o".into(), object]);
        Command::argv(argv)
    }

    fn link(&self, inputs: impl IntoIterator<Item = OsString>, program: &Path) -> Command {
        let mut argv = vec![self.compiler.clone().into()];
        argv.extend(inputs);
        argv.extend(self.compile_flags.iter().map(OsString::from));
        argv.extend(["-o".into(), program.into()]);
        argv.extend(self.link_flags.iter().map(OsString::from));
        Command::argv(argv)
    }

    fn main(&self) -> String {
        format!("main.{}", self.extension)
    }
}

impl Runtime for Native {
    fn clean(&self, directory: &Path) -> Plan {
        if directory.join("Makefile").is_file() {
            return Plan::one(Command::shell("make clean"));
        }
        Plan::skip(Severity::Warning, "nothing to clean: there is no \"Makefile\"")
    }

    fn build(&self, directory: &Path) -> Plan {
        let main = self.main();
        if !directory.join(&main).is_file() {
            return Plan::missing(format!("there is neither a \"Makefile\" nor a \"{main}\" to build"));
        }
        let sources = sources::below(directory, self.extension);
        let objects = object_names(&sources);
        let pairs = sources.iter().zip(objects.iter().cloned());
        let mut commands: Vec<Command> = pairs.map(|(source, object)| self.compile(source, object)).collect();
        commands.push(self.link(objects, Path::new(PROGRAM)));
        Plan::Run(commands)
    }

    fn execute(&self, directory: &Path) -> Plan {
        match [PROGRAM, OTHER_PROGRAM].into_iter().find(|program| directory.join(program).is_file()) {
            Some(program) => Plan::one(Command::argv([program])),
            None => Plan::missing("there is neither a \"main\" nor an \"a.out\" to run"),
        }
    }

    fn query(&self, code: &str, scratch: &mut ScratchFiles) -> io::Result<Plan> {
        let source = scratch.beside(&format!(".{}", self.extension), &[code])?;
        let program = scratch.folder()?.join("main");
        Ok(Plan::Run(vec![self.link([source.into()], &program), Command::argv([program])]))
    }

    fn examples(&self) -> Vec<Vec<String>> {
        [&self.main(), "main", "a.out"].map(|file| vec![file.to_owned()]).into()
    }
}

/// `dir/util.c` becomes `./util.o`; where another source has that stem, `./dir-util.o`; where that is taken,
/// `./dir-util-2.o`.
fn object_names(sources: &[PathBuf]) -> Vec<OsString> {
    let stem = |source: &'_ PathBuf| source.file_stem().unwrap_or_default().to_owned();
    let mut uses: HashMap<OsString, usize> = HashMap::new();
    for source in sources {
        *uses.entry(stem(source)).or_default() += 1;
    }
    let mut taken = HashSet::new();
    let mut name = |source: &PathBuf| {
        let stem = stem(source);
        let whole = source.with_extension("").iter().collect::<Vec<_>>().join(OsStr::new("-"));
        let mut name = if uses[&stem] == 1 { stem } else { whole.clone() };
        for number in 2.. {
            if taken.insert(name.clone()) {
                break;
            }
            name.clone_from(&whole);
            name.push(format!("-{number}"));
        }
        let mut object = OsString::from("./");
        object.push(name);
        object.push(".o");
        object
    };
    sources.iter().map(&mut name).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{folder, shown};
    use super::*;

    const NO_FILES: &[&str] = &[];

    fn c() -> Native {
        super::super::c::runtime("/usr/bin/gcc".into())
    }

    #[test]
    fn every_source_is_compiled_then_linked() {
        let folder = folder(&["main.c", "lib/util.c", "lib/other.h", "-odd name.c"]);
        assert_eq!(
            shown(&c().build(folder.path())),
            [
                "/usr/bin/gcc -c './-odd name.c' -Wall -o './-odd name.o'",
                "/usr/bin/gcc -c ./lib/util.c -Wall -o ./util.o",
                "/usr/bin/gcc -c ./main.c -Wall -o ./main.o",
                "/usr/bin/gcc './-odd name.o' ./util.o ./main.o -Wall -o ./main -lrt -lm -lpthread -ldl",
            ]
        );
    }

    #[test]
    fn sources_of_one_stem_do_not_overwrite_each_others_objects() {
        let sources = ["a-x.c", "a/x.c", "b/x.c", "main.c"].map(PathBuf::from);
        assert_eq!(object_names(&sources), ["./a-x.o", "./a-x-2.o", "./b-x.o", "./main.o"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let empty = folder(NO_FILES);
        assert_eq!(shown(&c().build(empty.path())), ["127: there is neither a \"Makefile\" nor a \"main.c\" to build"]);
        assert_eq!(shown(&c().execute(empty.path())), ["127: there is neither a \"main\" nor an \"a.out\" to run"]);
        assert_eq!(shown(&c().clean(empty.path())), ["0: nothing to clean: there is no \"Makefile\""]);
    }

    #[test]
    fn programs_run_in_the_order_of_preference() {
        assert_eq!(shown(&c().execute(folder(&["a.out"]).path())), ["./a.out"]);
        assert_eq!(shown(&c().execute(folder(&["a.out", "main"]).path())), ["./main"]);
        assert_eq!(shown(&c().clean(folder(&["Makefile"]).path())), ["make clean"]);
    }
}
