//! `scheme`: programs are fed to the interpreter as if they were typed.

use std::path::PathBuf;

use super::recipe::Word::{Found, Runtime, Source, Text};
use super::recipe::{Code, Recipe, Rule, When};

/// For the shell: the interpreter, then the file.
const FEED: &str = r#"exec "$0" --quiet < "$1""#;

pub(super) fn runtime(path: PathBuf) -> Recipe {
    Recipe {
        execute: &[Rule {
            when: When::File("main.scm"),
            run: &[Text("/bin/sh"), Text("-c"), Text(FEED), Runtime, Found],
        }],
        execute_is_optional: true,
        code: Some(Code {
            suffix: ".scm",
            lead: "",
            run: &[&[Text("/bin/sh"), Text("-c"), Text(FEED), Runtime, Source]],
        }),
        ..Recipe::with_name_in_path(path, "scheme")
    }
}
