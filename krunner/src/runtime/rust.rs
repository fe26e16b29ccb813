//! `rust`: a Cargo project, or one source.

use std::path::PathBuf;

use super::recipe::Word::{Found, Program, Runtime, Source, Text, Tool};
use super::recipe::{Code, Recipe, Rule, When};

pub(super) fn runtime(path: PathBuf) -> Recipe {
    Recipe {
        build: &[
            Rule { when: When::File("Cargo.toml"), run: &[Tool("cargo"), Text("build")] },
            Rule { when: When::File("main.rs"), run: &[Runtime, Text("-o"), Text("main"), Text("main.rs")] },
        ],
        execute: &[
            Rule { when: When::ProgramIn("target/debug"), run: &[Found] },
            Rule { when: When::ProgramIn("target/release"), run: &[Found] },
            Rule { when: When::File("main"), run: &[Text("./main")] },
        ],
        code: Some(Code {
            suffix: ".rs",
            lead: "",
            // Without a name rustc derives one from the temporary file, and warns about it.
            run: &[&[Runtime, Text("--crate-name"), Text("main"), Text("-o"), Program, Source], &[Program]],
        }),
        ..Recipe::with_name_in_path(path, "rustc")
    }
}
