//! `php`: scripts; a snippet is PHP from its first character on.

use std::path::PathBuf;

use super::recipe::Word::{Runtime, Source, Text};
use super::recipe::{Code, Recipe, Rule, When};

pub(super) fn runtime(path: PathBuf) -> Recipe {
    Recipe {
        execute: &[Rule { when: When::File("main.php"), run: &[Runtime, Text("main.php")] }],
        code: Some(Code { suffix: ".php", lead: "<?php ", run: &[&[Runtime, Source]] }),
        ..Recipe::new(path)
    }
}
