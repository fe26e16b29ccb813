//! `krunner languages`: the table of languages as this binary has it.
//!
//! What a step runs is asked of the runtime itself, with folders that hold its own examples: there is no second
//! account of it that could be wrong. Nothing is started.

use std::env;
use std::fs::{self, Permissions};
use std::io;
use std::iter::repeat;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::json;

use super::args::LanguagesArgs;
use super::stdout::print;
use crate::config::Paths;
use crate::exit::Exit;
use crate::runtime::{LANGUAGES, Language, Plan, Runtime, ScratchFiles, make_or_build};

/// Prints the table, or the rows that are asked for.
pub(super) fn languages(args: &LanguagesArgs) -> anyhow::Result<ExitCode> {
    let wanted = |kind: &&Language| args.names.is_empty() || args.names.iter().any(|name| name == kind.name);
    let rows = LANGUAGES.iter().filter(wanted).map(LanguageRow::of).collect::<io::Result<Vec<_>>>();
    let rows = rows.context("cannot make example folders; see TMPDIR")?;
    let text = if args.json {
        format!("{}\n", json!({ "languages": rows }))
    } else {
        rows.iter().map(LanguageRow::to_text).collect::<Vec<_>>().join("\n")
    };
    print(text)?;
    Ok(Exit::Ok.into())
}

/// A language as `krunner languages` prints it.
#[derive(Serialize)]
struct LanguageRow {
    name: &'static str,
    default_path: &'static str,
    /// The program found here, at the default path or elsewhere.
    found: Option<String>,
    /// Whether programs may ask for input.
    user_input: bool,
    steps: Vec<StepRow>,
}

/// The commands of a step for one kind of folder.
#[derive(Serialize)]
struct StepRow {
    /// `clean`, `build` and `exec` with `*`, or `code`.
    step: &'static str,
    /// The file that selects this row; `null` if no such file exists.
    given: Option<String>,
    /// Commands, run in this order.
    commands: Vec<String>,
    /// The message if there is no command to run.
    message: Option<String>,
    /// The exit code if there is no command to run.
    exit_code: Option<i32>,
}

type StepPlanner = (&'static str, fn(&dyn Runtime, &Path) -> Plan);

const STEPS: [StepPlanner; 3] = [
    ("clean", |runtime, directory| runtime.clean(directory)),
    ("build", make_or_build),
    ("exec", |runtime, directory| runtime.execute(directory)),
];

impl LanguageRow {
    fn of(kind: &Language) -> io::Result<Self> {
        let search_path = env::var_os("PATH");
        let found = kind.found(&Paths::default(), search_path.as_deref());
        let runtime = (kind.make)(kind.program(found.clone(), None));
        let mut examples = runtime.examples();
        examples.push(vec!["Makefile".to_owned()]);
        let mut steps = Vec::new();
        for (name, plan) in STEPS {
            for files in &examples {
                let folder = folder_with(files)?;
                let plan = plan(&*runtime, folder.path());
                if matches!(plan, Plan::Run(_)) {
                    steps.push(StepRow::of(name, Some(files.join(", ")), plan));
                }
            }
            let otherwise = StepRow::of(name, None, plan(&*runtime, folder_with(&[])?.path()));
            // With the files of another step, a step does what it does without any.
            steps.retain(|case| case.step != name || case.commands != otherwise.commands);
            steps.push(otherwise);
        }
        let folder = folder_with(&[])?;
        steps.push(match runtime.code_goes_to() {
            Some(engine) => StepRow::handed_to(engine),
            None => StepRow::of("code", None, runtime.query("", &mut ScratchFiles::for_show(folder.path()))?),
        });
        Ok(Self {
            name: kind.name,
            default_path: kind.default_path,
            found: found.map(|path| path.display().to_string()),
            user_input: kind.user_input,
            steps,
        })
    }

    fn to_text(&self) -> String {
        let input = if self.user_input { ", programs may ask for input" } else { "" };
        let place = match &self.found {
            Some(found) if found == self.default_path => format!("{found}{input}"),
            Some(found) => format!("{} -> {found}{input}", self.default_path),
            None => format!("{} (not found here){input}", self.default_path),
        };
        let lines = self.steps.iter().flat_map(StepRow::lines);
        [format!("{}: {place}\n", self.name)].into_iter().chain(lines).collect()
    }
}

impl StepRow {
    fn handed_to(engine: String) -> Self {
        Self { step: "code", given: None, commands: Vec::new(), message: Some(engine), exit_code: None }
    }

    fn of(step: &'static str, given: Option<String>, plan: Plan) -> Self {
        match plan {
            Plan::Run(commands) => {
                let commands = commands.iter().map(ToString::to_string).collect();
                Self { step, given, commands, message: None, exit_code: None }
            }
            Plan::Nothing { message, exit_code, .. } => {
                Self { step, given, commands: Vec::new(), message: Some(message), exit_code: Some(exit_code) }
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let done = match (&self.message, self.exit_code) {
            (Some(message), Some(code)) => vec![format!("exit code {code}: {message}")],
            (Some(message), None) => vec![message.clone()],
            (None, _) => self.commands.clone(),
        };
        let heads = [(self.step, self.given.as_deref().unwrap_or_default())].into_iter().chain(repeat(("", "")));
        heads.zip(done).map(|((step, given), done)| format!("  {step:<6} {given:<16} {done}\n")).collect()
    }
}

/// A folder with these files, which may be run.
fn folder_with(files: &[String]) -> io::Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap_or(folder.path()))?;
        fs::write(&path, "")?;
        fs::set_permissions(&path, Permissions::from_mode(0o700))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str) -> LanguageRow {
        LanguageRow::of(Language::find(name).unwrap()).unwrap()
    }

    #[test]
    fn a_step_has_a_line_for_each_file_that_decides_it_and_one_for_none() {
        let row = LanguageRow { found: None, ..row("c") };
        assert_eq!(
            row.to_text(),
            "c: /usr/bin/gcc (not found here), programs may ask for input
  clean  Makefile         make clean
  clean                   exit code 0: nothing to clean: there is no \"Makefile\"
  build  main.c           /usr/bin/gcc -c ./main.c -Wall -o ./main.o
                          /usr/bin/gcc ./main.o -Wall -o ./main -lrt -lm -lpthread -ldl
  build  Makefile         make
  build                   exit code 127: there is neither a \"Makefile\" nor a \"main.c\" to build
  exec   main             ./main
  exec   a.out            ./a.out
  exec                    exit code 127: there is neither a \"main\" nor an \"a.out\" to run
  code                    /usr/bin/gcc ./tmp.c -Wall -o ./tmp/main -lrt -lm -lpthread -ldl
                          ./tmp/main
"
        );
    }

    #[test]
    fn every_language_has_all_its_steps_and_the_json_names_are_stable() {
        for kind in LANGUAGES {
            let told = serde_json::to_value(row(kind.name)).unwrap();
            assert_eq!((&told["name"], &told["default_path"]), (&json!(kind.name), &json!(kind.default_path)));
            let steps = told["steps"].as_array().unwrap();
            for step in ["clean", "build", "exec", "code"] {
                assert!(steps.iter().any(|case| case["step"] == step), "{}: {told}", kind.name);
            }
        }
        let case = &serde_json::to_value(row("lua")).unwrap()["steps"][3];
        assert_eq!(
            case,
            &json!({ "step": "exec", "given": "main.lua", "commands": ["/usr/local/bin/lua main.lua"],
                     "message": null, "exit_code": null })
        );
    }
}
