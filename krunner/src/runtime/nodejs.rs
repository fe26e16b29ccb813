//! `nodejs`: runs `main.js`, or a snippet from a file.

use std::path::PathBuf;

use super::recipe::Word::{Runtime, Source, Text};
use super::recipe::{Code, Recipe, Rule, When};

pub(super) fn runtime(path: PathBuf) -> Recipe {
    Recipe {
        execute: &[Rule { when: When::File("main.js"), run: &[Runtime, Text("main.js")] }],
        code: Some(Code { suffix: ".js", lead: "", run: &[&[Runtime, Source]] }),
        ..Recipe::new(path)
    }
}
