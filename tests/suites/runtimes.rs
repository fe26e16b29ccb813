//! Every language with its real compiler or interpreter, in batch and in query mode.
//!
//! One table; for each language a test of all its steps, with a line on stderr for each, and one through the agent's client.

mod bad_input;
mod java;
mod projects;
mod table;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Instant;

use krunner_tests::{Message, Raw, Runner, Setup, Steps, Transcript, host, proc, require, wait};

use self::table::Language;
use crate::with_agent;

/// The tests of a language, with its program on this machine: all its steps, and a run by the agent's client.
macro_rules! languages {
    ($($test:ident: $row:ident,)*) => {
        $(
            #[test]
            fn $test() {
                let program = require!((table::$row.program)());
                Trial { language: &table::$row, program: &program }.run_all();
            }
        )*

        mod by_agent {
            use super::*;

            $(
                #[test]
                fn $test() {
                    let client = require!(host::agent_python());
                    let program = require!((table::$row.program)());
                    Trial { language: &table::$row, program: &program }.run_by_agent(&client);
                }
            )*
        }
    };
}

languages! {
    c: C,
    cpp: CPP,
    golang: GOLANG,
    haskell: HASKELL,
    java: JAVA,
    lua: LUA,
    nodejs: NODEJS,
    octave: OCTAVE,
    php: PHP,
    python: PYTHON,
    r: R,
    rust: RUST,
    scheme: SCHEME,
}

/// A language on this machine.
struct Trial<'a> {
    language: &'a Language,
    program: &'a Path,
}

/// Name, whether it applies, and what is done.
type Step<'a> = (&'static str, bool, fn(&Trial<'a>));

impl<'a> Trial<'a> {
    fn run_all(&self) {
        let steps: [Step<'a>; 9] = [
            ("file", true, Self::file_is_built_and_run),
            ("file fails", true, Self::broken_file_is_named),
            ("file missing", true, Self::missing_file_is_named),
            ("file interrupted", true, Self::endless_file_is_interrupted),
            ("file floods", true, Self::flood_of_a_file_arrives),
            ("code", self.language.queries, Self::code_is_run),
            ("code fails", self.language.queries, Self::broken_code_fails),
            ("code interrupted", self.language.queries, Self::endless_code_is_interrupted),
            ("code floods", self.language.queries, Self::flood_of_code_arrives),
        ];
        for (name, _, step) in steps.into_iter().filter(|(_, applies, _)| *applies) {
            let begun = Instant::now();
            step(self);
            let took = begun.elapsed().as_millis();
            // Past the capture of tests that succeed: this is the list of what was tried.
            let _ = writeln!(io::stderr(), "runtimes: {:<8} {name:<17} {took:>6} ms", self.language.name);
        }
    }

    /// The three steps left to the runtime, then a snippet.
    fn run_by_agent(&self, client: &Path) {
        let Language { name, main, greets, .. } = self.language;
        let setup = Setup::new(name).runtime(self.program).file(&format!("home/work/{main}"), greets);
        let (_runner, agent) = with_agent(client, setup);

        let run = agent.batch(Steps::HEURISTIC);
        assert_eq!((run.codes(), run.exec().stdout.as_str()), (vec![0, 0, 3], "out\n"), "{run:#?}");
        if self.language.queries {
            let run = agent.query(greets);
            let code = run.exec().exit_code.map(i64::from);
            assert_eq!((code, run.stdout().as_str()), (Some(self.language.snippet_exit), "out\n"), "{run:#?}");
        }
    }

    /// A session with this text as the main file.
    fn with_main(&self, text: &str) -> (Runner, Raw) {
        self.start(|setup| setup.file(&format!("home/work/{}", self.language.main), text))
    }

    fn start(&self, prepare: impl FnOnce(Setup) -> Setup) -> (Runner, Raw) {
        session(prepare(Setup::new(self.language.name).runtime(self.program)))
    }

    fn assert_greeted(&self, run: &Transcript, exit_code: i64) {
        assert_eq!((run.codes(), run.stdout().as_str()), (vec![("finished", exit_code)], "out\n"), "{}", run.stderr());
        assert_eq!(run.stderr().lines().any(|line| line == "err"), self.language.has_stderr, "{}", run.stderr());
    }

    fn file_is_built_and_run(&self) {
        let (_runner, mut raw) = self.with_main(self.language.greets);
        build(&mut raw);
        self.assert_greeted(&raw.exec("*"), 3);
    }

    fn broken_file_is_named(&self) {
        let (_runner, mut raw) = self.with_main(self.language.broken);
        let built = step(&mut raw, "build", "*");
        let run = raw.exec("*");
        let said = if self.language.builds { &built } else { &run };
        assert_ne!(said.ends()[0].exit_code(), 0);
        let text = said.stdout() + &said.stderr();
        assert!(text.contains(self.language.complaint), "{text}");
        assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
    }

    fn missing_file_is_named(&self) {
        let (_runner, mut raw) = self.start(|setup| setup);
        let built = step(&mut raw, "build", "*");
        let extension = Path::new(self.language.main).extension().expect("an extension").to_str().expect("UTF-8");
        if self.language.builds {
            assert_eq!(built.codes(), [("build-finished", 127)]);
            assert!(built.stderr().contains(&format!(".{extension}\"")), "{}", built.stderr());
            assert_eq!(raw.exec("*").codes(), [("finished", 127)], "after a failed build");
        } else {
            assert_eq!(built.codes(), [("build-finished", 0)], "{}", built.stderr());
        }
        let run = raw.exec("*");
        let optional = self.language.name == "scheme";
        assert_eq!(run.codes(), [("finished", if optional { 0 } else { 127 })]);
        assert!(run.stderr().contains("there is n"), "{}", run.stderr());
    }

    fn endless_file_is_interrupted(&self) {
        let (runner, mut raw) = self.with_main(self.language.loops);
        build(&mut raw);
        raw.op("exec", "*");
        self.interrupt(&runner, &mut raw, self.language.interrupted[0]);
    }

    fn endless_code_is_interrupted(&self) {
        let (runner, mut raw) = self.start(|setup| setup);
        raw.op("code", self.language.loops);
        self.interrupt(&runner, &mut raw, self.language.interrupted[1]);
        assert_eq!(visible(&runner), BTreeSet::from(["started".to_owned()]));
    }

    fn interrupt(&self, runner: &Runner, raw: &mut Raw, exit_code: i64) {
        runner.wait_for("started");
        raw.op("interrupt", "");
        let run = raw.read_runs(1);
        assert_eq!(run.codes(), [("finished", exit_code)], "{}: {}", self.language.name, run.stderr());
        assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
        // The kernel for query mode stays.
        let is_kernel = |pid: &u32| proc::cmdline(*pid).is_none_or(|line| line.contains("IRkernel"));
        wait::until_true("no process of the step is left", || runner.processes().iter().all(is_kernel));
    }

    fn flood_of_a_file_arrives(&self) {
        let (_runner, mut raw) = self.with_main(self.language.floods);
        build(&mut raw);
        assert_flooded(&raw.exec("*"));
    }

    fn flood_of_code_arrives(&self) {
        let (_runner, mut raw) = self.start(|setup| setup);
        assert_flooded(&step(&mut raw, "code", self.language.floods));
    }

    fn code_is_run(&self) {
        let (runner, mut raw) = self.start(|setup| setup.file("home/work/main", "the user's own"));
        self.assert_greeted(&step(&mut raw, "code", self.language.greets), self.language.snippet_exit);
        self.assert_only_main_is_there(&runner);
    }

    fn broken_code_fails(&self) {
        let (runner, mut raw) = self.start(|setup| setup.file("home/work/main", "the user's own"));
        let run = step(&mut raw, "code", self.language.broken);
        assert_ne!(run.ends()[0].exit_code(), 0);
        let text = run.stdout() + &run.stderr();
        assert!(text.contains(self.language.complaint), "{text}");
        // Whatever an empty program returns, the session continues.
        step(&mut raw, "code", "");
        assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
        self.assert_only_main_is_there(&runner);
    }

    fn assert_only_main_is_there(&self, runner: &Runner) {
        assert_eq!(visible(runner), BTreeSet::from(["main".to_owned()]), "{} leaves something", self.language.name);
        assert_eq!(runner.read("main").as_deref(), Some("the user's own"));
    }
}

fn session(setup: Setup) -> (Runner, Raw) {
    let runner = setup.start();
    let raw = Raw::connect(&runner);
    (runner, raw)
}

fn step(raw: &mut Raw, op: &str, text: &str) -> Transcript {
    raw.op(op, text);
    raw.read_until(Message::ends_step)
}

/// Builds; where there is nothing to build that is fine, too.
fn build(raw: &mut Raw) {
    let built = step(raw, "build", "*");
    assert_eq!(built.codes(), [("build-finished", 0)], "{}", built.stderr());
}

fn assert_flooded(run: &Transcript) {
    let output = run.output("stdout");
    assert_eq!((run.codes(), output.len()), (vec![("finished", 0)], 20 << 20), "{}", run.stderr());
    let line = [&[b'x'; 1023][..], b"\n"].concat();
    assert!(output.chunks(line.len()).all(|chunk| chunk == line), "some line is not the program's");
}

/// What is in the working directory, but for the tools' own hidden folders.
fn visible(runner: &Runner) -> BTreeSet<String> {
    let entries = fs::read_dir(runner.home()).expect("the home folder").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).collect()
}

#[test]
fn python_without_a_runtime_path_is_looked_for() {
    let python = require!(host::user_python());
    require!(if Path::new("/usr/bin/python").exists() { Err("there is a /usr/bin/python".to_owned()) } else { Ok(()) });
    let setup = Setup::new("python").file("home/work/main.py", "import sys\nprint(sys.executable)\n");
    let folder = setup.root().join("conda/bin");
    let link = folder.join("python3");
    let setup = setup.link("conda/bin/python3", python.to_str().expect("UTF-8"));
    let path = format!("/nowhere:{}:/usr/bin:/bin", folder.display());
    let runner = setup.env("PATH", path).start();
    let run = Raw::connect(&runner).exec("*");
    assert_eq!(
        (run.codes(), run.stdout()),
        (vec![("finished", 0)], format!("{}\n", link.display())),
        "{}",
        run.stderr()
    );
    runner.wait_for_log(&["/usr/bin/python does not exist", link.to_str().expect("UTF-8")]);
}
