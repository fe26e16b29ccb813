//! `julia`: scripts, and snippets for `IJulia`; the image may have a script of its own that brings compiled packages
//! into place.

use std::path::PathBuf;

use super::environment::Environment;
use super::recipe::Word::{Runtime, Text};
use super::recipe::{Recipe, RecipeKernel, Rule, When};

pub(super) fn runtime(path: PathBuf) -> Recipe {
    Recipe {
        environment: Environment {
            variables: &[("JULIA_LOAD_PATH", &["/opt/julia", "/usr/local/julia"])],
            path: &["/opt/julia/bin", "/usr/local/julia/bin"],
        },
        start_script: Some("/usr/local/bin/movecompiled.sh"),
        execute: &[Rule { when: When::File("main.jl"), run: &[Runtime, Text("main.jl")] }],
        kernel: Some(RecipeKernel { name: "julia", remedy: "install one: in Julia, `using Pkg; Pkg.add(\"IJulia\")`" }),
        ..Recipe::with_name_in_path(path, "julia")
    }
}
