//! `r`: scripts, run by the `Rscript` that is installed with R.

use std::path::PathBuf;

use super::recipe::Word::{Text, Tool};
use super::recipe::{Recipe, Rule, When};

pub(super) fn runtime(path: PathBuf) -> Recipe {
    Recipe {
        execute: &[Rule { when: When::File("main.R"), run: &[Tool("Rscript"), Text("main.R")] }],
        ..Recipe::or_usual(path, "R")
    }
}
