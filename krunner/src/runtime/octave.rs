//! `octave`: runs `main.m`, or a snippet from a file.

use std::path::PathBuf;

use super::recipe::Word::{Runtime, Source, Text};
use super::recipe::{Code, Recipe, Rule, When};

pub(super) fn runtime(path: PathBuf) -> Recipe {
    Recipe {
        execute: &[Rule { when: When::File("main.m"), run: &[Runtime, Text("main.m")] }],
        code: Some(Code { suffix: ".m", lead: "", run: &[&[Runtime, Source]] }),
        ..Recipe::new(path)
    }
}
