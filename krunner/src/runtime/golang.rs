//! `golang`: a module, or the sources of one folder.

use std::path::PathBuf;

use super::environment::Environment;
use super::recipe::Word::{Here, Runtime, Source, Text};
use super::recipe::{Code, Recipe, Rule, When};

pub(super) fn runtime(path: PathBuf) -> Recipe {
    Recipe {
        environment: Environment {
            variables: &[("GOPATH", &["/home/work"])],
            path: &["/home/work/bin", "/usr/local/go/bin", "/go/bin"],
        },
        build: &[
            // Go rejects a module in the root of GOPATH, which is the working directory. Without the variable it uses ~/go.
            Rule {
                when: When::File("go.mod"),
                run: &[
                    Text("env"),
                    Text("-u"),
                    Text("GOPATH"),
                    Runtime,
                    Text("build"),
                    Text("-o"),
                    Text("main"),
                    Text("."),
                ],
            },
            // Without a module, `go build` compiles the files of one directory and rejects tests.
            Rule {
                when: When::File("main.go"),
                run: &[Runtime, Text("build"), Text("-o"), Text("main"), Here { suffix: ".go", except: "_test.go" }],
            },
        ],
        execute: &[Rule { when: When::File("main"), run: &[Text("./main")] }],
        code: Some(Code { suffix: ".go", lead: "", run: &[&[Runtime, Text("run"), Source]] }),
        ..Recipe::new(path)
    }
}
