//! `haskell`: every source below the working directory.

use std::path::PathBuf;

use super::environment::Environment;
use super::recipe::Word::{Found, Runtime, Source, Text, Tool};
use super::recipe::{Code, Recipe, Rule, When};

pub(super) fn runtime(path: PathBuf) -> Recipe {
    Recipe {
        environment: Environment {
            variables: &[],
            path: &[
                "/home/work/.cabal/bin",
                "/opt/ghc/*/bin",
                "/opt/cabal/*/bin",
                "/opt/alex/*/bin",
                "/opt/happy/*/bin",
            ],
        },
        build: &[Rule { when: When::Sources("hs"), run: &[Runtime, Text("--make"), Text("-o"), Text("main"), Found] }],
        execute: &[Rule { when: When::File("main"), run: &[Text("./main")] }],
        code: Some(Code { suffix: ".hs", lead: "", run: &[&[Tool("runhaskell"), Source]] }),
        ..Recipe::with_name_in_path(path, "ghc")
    }
}
