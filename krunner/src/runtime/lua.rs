//! `lua`: runs `main.lua`, or a snippet from a file.

use std::path::PathBuf;

use super::recipe::Word::{Runtime, Source, Text};
use super::recipe::{Code, Recipe, Rule, When};

pub(super) fn runtime(path: PathBuf) -> Recipe {
    Recipe {
        execute: &[Rule { when: When::File("main.lua"), run: &[Runtime, Text("main.lua")] }],
        code: Some(Code { suffix: ".lua", lead: "", run: &[&[Runtime, Source]] }),
        ..Recipe::new(path)
    }
}
