//! Batch and query runs through the agent's client: what each step does and what it answers.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use krunner_tests::{Setup, Steps, child_lines, host, require};

use crate::{app, with_agent};

/// A C session with its compiler, or the reason why there is none.
fn c() -> Result<Setup, String> {
    Ok(Setup::new("c").runtime(host::c_compiler()?))
}

fn python() -> Result<Setup, String> {
    Ok(Setup::new("python").runtime(host::user_python()?))
}

/// As much of make as these tests use, for machines without it: runs the lines of the first or the named target.
const MAKE: &str = r#"#!/bin/sh
sed -n "/^${1:-all}:/,/^[^	]/ s/^	@//p" Makefile | while read -r line; do sh -c "$line" || exit 2; done
"#;

/// A session that has make: the machine's own, or else a stand-in.
fn with_make(setup: Setup) -> Setup {
    if host::program("make").is_ok() {
        return setup;
    }
    let folder = setup.root().join("make");
    let path = std::env::var("PATH").unwrap_or_default();
    let setup = setup.file("make/make", MAKE).env("PATH", format!("{}:{path}", folder.display()));
    fs::set_permissions(folder.join("make"), Permissions::from_mode(0o755)).expect("chmod");
    setup
}

#[test]
fn c_heuristic_compiles_all_sources_and_runs_the_program() {
    let client = require!(host::agent_python());
    let setup = require!(c())
        .file("home/work/main.c", include_str!("../programs/c_project/main.c"))
        .file("home/work/lib/greet.h", include_str!("../programs/c_project/lib/greet.h"))
        .file("home/work/lib/greet.c", include_str!("../programs/c_project/lib/greet.c"));
    let (_runner, agent) = with_agent(&client, setup);

    let run = agent.batch(Steps::HEURISTIC);

    assert_eq!(run.codes(), [0, 0, 0], "{run:#?}");
    assert_eq!(run.exec().stdout, "hello, world\n");
    let warnings = &run.step("build-finished").stderr;
    assert!(warnings.contains("never_used"), "-Wall shows the unused variable: {warnings}");
}

#[test]
fn c_heuristic_prefers_main_to_a_out_and_takes_either() {
    let client = require!(host::agent_python());
    let script = |text: &str| format!("#!/bin/sh\necho {text}\n");
    let setup = require!(c()).file("home/work/a.out", script("a.out")).file("home/work/main", script("main"));
    let (_runner, agent) = with_agent(&client, setup);

    assert_eq!(agent.exec("chmod +x a.out main").exec().exit_code, Some(0));
    assert_eq!(agent.exec("*").stdout(), "main\n");
    assert_eq!(agent.exec("rm main").exec().exit_code, Some(0));
    assert_eq!(agent.exec("*").stdout(), "a.out\n");
}

#[test]
fn c_heuristic_without_sources_or_program_is_127_and_names_the_file() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, require!(c()));

    let run = agent.batch(Steps { build: "*", ..Steps::NONE });
    let build = run.step("build-finished");
    assert_eq!(build.exit_code, Some(127));
    assert!(build.stderr.contains("main.c"), "{build:?}");
    assert_eq!(run.exec().exit_code, Some(127), "a failed build skips the exec that follows");

    let run = agent.exec("*");
    assert_eq!(run.exec().exit_code, Some(127));
    assert!(run.exec().stderr.contains("a.out"), "{run:?}");
}

#[test]
fn c_heuristic_stops_at_the_first_source_that_does_not_compile() {
    let client = require!(host::agent_python());
    let setup = require!(c()).file("home/work/main.c", "int main(void) { return nonsense; }\n");
    let (runner, agent) = with_agent(&client, setup);

    let run = agent.batch(Steps { build: "*", exec: "*", ..Steps::NONE });

    let build = run.step("build-finished");
    assert_ne!(build.exit_code, Some(0));
    assert!(build.stderr.contains("nonsense"), "the compiler's own words: {build:?}");
    assert_eq!(run.exec().exit_code, Some(127));
    assert!(!runner.home().join("main").exists());
}

#[test]
fn makefile_goes_before_the_heuristic() {
    let client = require!(host::agent_python());
    let setup = with_make(require!(c()))
        .file("home/work/Makefile", "all:\n\t@echo made\nclean:\n\t@echo cleaned\n")
        .file("home/work/main.c", "this is no C\n");
    let (_runner, agent) = with_agent(&client, setup);

    let run = agent.batch(Steps { clean: "*", build: "*", exec: "echo ran" });

    assert_eq!(run.codes(), [0, 0, 0], "{run:#?}");
    assert_eq!(run.step("clean-finished").stdout, "cleaned\n");
    assert_eq!(run.step("build-finished").stdout, "made\n");
    assert_eq!(run.exec().stdout, "ran\n");
}

#[test]
fn makefile_is_built_for_a_runtime_without_a_heuristic_too() {
    let client = require!(host::agent_python());
    let setup = with_make(app()).file("home/work/Makefile", "all:\n\t@echo made\n\t@exit 5\n");
    let (_runner, agent) = with_agent(&client, setup);

    let run = agent.batch(Steps { build: "*", ..Steps::NONE });

    let build = run.step("build-finished");
    assert_eq!(build.stdout, "made\n");
    assert_eq!(build.exit_code, Some(2), "make says 2 when a rule fails");
}

#[test]
fn app_heuristics_warn_and_succeed() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    let run = agent.batch(Steps::HEURISTIC);

    assert_eq!(run.codes(), [0, 0, 0]);
    let warning = "batch-mode execution is not supported";
    assert!(run.step("build-finished").stderr.contains(warning), "{run:#?}");
    assert!(run.exec().stderr.contains(warning), "{run:#?}");
}

#[test]
fn python_heuristic_runs_main_py() {
    let client = require!(host::agent_python());
    let main = "import os, sys\nprint('from main', os.environ['_BACKEND_BATCH_MODE'])\nsys.exit(9)\n";
    let (_runner, agent) = with_agent(&client, require!(python()).file("home/work/main.py", main));

    let run = agent.batch(Steps::HEURISTIC);

    assert_eq!(run.codes(), [0, 0, 9], "{run:#?}");
    assert_eq!(run.exec().stdout, "from main 1\n");
}

#[test]
fn python_heuristic_without_main_py_is_127_and_names_it() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, require!(python()));

    let run = agent.batch(Steps::HEURISTIC);

    assert_eq!(run.codes(), [0, 0, 127], "{run:#?}");
    assert!(run.exec().stderr.contains("main.py"), "{run:#?}");
}

#[test]
fn custom_commands_run_in_the_home_folder_by_a_shell() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    let run = agent.batch(Steps {
        clean: "rm -f x && echo clean $PWD",
        build: "echo $((6 * 7)) > x; echo built >&2",
        exec: "cat x | tr 4 5",
    });

    assert_eq!(run.codes(), [0, 0, 0], "{run:#?}");
    let clean = &run.step("clean-finished").stdout;
    assert!(clean.starts_with("clean /") && clean.ends_with("/home/work\n"), "{clean}");
    let build = run.step("build-finished");
    assert_eq!((build.stdout.as_str(), child_lines(&build.stderr)), ("", vec!["built"]));
    assert_eq!(run.exec().stdout, "52\n");
}

#[test]
fn empty_steps_answer_zero_and_write_nothing() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    let run = agent.batch(Steps::NONE);

    let steps: Vec<_> = run.steps.iter().map(|step| (step.status.as_str(), step.exit_code)).collect();
    assert_eq!(steps, [("clean-finished", Some(0)), ("build-finished", Some(0)), ("finished", Some(0))]);
    assert_eq!(run.stdout(), "");
}

#[test]
fn failed_build_skips_the_exec_of_its_batch_and_no_later_one() {
    let client = require!(host::agent_python());
    let (runner, agent) = with_agent(&client, app());

    let run = agent.batch(Steps { clean: "", build: "exit 3", exec: "touch ran; echo ran" });
    assert_eq!(run.codes(), [0, 3, 127], "{run:#?}");
    assert_eq!(run.exec().stdout, "");
    assert!(!runner.home().join("ran").exists());

    let run = agent.batch(Steps { clean: "", build: "true", exec: "echo ran" });
    assert_eq!(run.codes(), [0, 0, 0], "{run:#?}");
    assert_eq!(run.exec().stdout, "ran\n");
}

#[test]
fn failed_clean_skips_nothing() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    let run = agent.batch(Steps { clean: "exit 4", build: "echo b", exec: "echo e" });

    assert_eq!(run.codes(), [4, 0, 0]);
    assert_eq!(run.stdout(), "b\ne\n");
}

#[test]
fn missing_command_is_127_in_the_words_of_the_shell() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    let run = agent.exec("no-such-command-here --flag");

    assert_eq!(run.exec().exit_code, Some(127));
    let lines = child_lines(&run.exec().stderr).join("\n");
    assert!(lines.contains("no-such-command-here"), "{run:#?}");
}

#[test]
fn exit_codes_are_the_childs_and_signals_are_negative() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    for code in [0, 1, 42, 255] {
        assert_eq!(agent.exec(&format!("exit {code}")).exec().exit_code, Some(code));
    }
    // 40 is a real-time signal: no library has a name for it.
    for (signal, code) in [("KILL", -9), ("SEGV", -11), ("TERM", -15), ("40", -40)] {
        assert_eq!(agent.exec(&format!("kill -{signal} $$")).exec().exit_code, Some(code), "{signal}");
    }
}

#[test]
fn c_query_compiles_runs_and_leaves_no_source_behind() {
    let client = require!(host::agent_python());
    let (runner, agent) = with_agent(&client, require!(c()));

    let code = "#include <math.h>\n#include <stdio.h>\n\
                int main(void) { volatile double x = 16; printf(\"%g é\\n\", sqrt(x)); return 6; }\n";
    let run = agent.query(code);
    assert_eq!(run.codes(), [6], "{run:#?}");
    assert_eq!(run.exec().stdout, "4 é\n");

    let run = agent.query("int main(void) { return undeclared; }");
    assert_ne!(run.codes(), [0]);
    assert!(run.exec().stderr.contains("undeclared"), "{run:#?}");

    let sources: Vec<_> = runner
        .home()
        .read_dir()
        .expect("the home folder")
        .filter_map(|entry| entry.expect("an entry").file_name().into_string().ok())
        .filter(|name| std::path::Path::new(name).extension().is_some_and(|extension| extension == "c"))
        .collect();
    assert_eq!(sources, Vec::<String>::new());
}

#[test]
fn app_query_is_127() {
    let client = require!(host::agent_python());
    let (_runner, agent) = with_agent(&client, app());

    assert_eq!(agent.query("print(1)").codes(), [127]);
    assert_eq!(agent.exec("echo still here").stdout(), "still here\n");
}
