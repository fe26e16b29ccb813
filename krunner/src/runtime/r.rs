//! `r`: scripts, run by the `Rscript` that is installed with R; snippets go to `IRkernel`.

use std::path::PathBuf;

use super::recipe::Word::{Text, Tool};
use super::recipe::{Recipe, RecipeKernel, Rule, When};

pub(super) fn runtime(path: PathBuf) -> Recipe {
    Recipe {
        execute: &[Rule { when: When::File("main.R"), run: &[Tool("Rscript"), Text("main.R")] }],
        kernel: Some(RecipeKernel {
            name: "ir",
            remedy: "install one: in R, `install.packages(\"IRkernel\")` and `IRkernel::installspec()`",
        }),
        ..Recipe::with_name_in_path(path, "R")
    }
}
