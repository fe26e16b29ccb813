//! What users keep in their folders: several sources, packages, modules, and what the image adds around them.

use std::env;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use krunner_tests::{Raw, Setup, host, require};

use super::{build, session, step, table};

#[track_caller]
fn assert_prints(raw: &mut Raw, expected: &str) {
    let run = raw.exec("*");
    assert_eq!((run.codes(), run.stdout()), (vec![("finished", 0)], format!("{expected}\n")), "{}", run.stderr());
}

#[test]
fn cargo_project_is_built_and_its_program_run() {
    let rustc = require!(host::rustc());
    // Cargo takes the compiler of PATH.
    let folder = rustc.parent().expect("a folder").display();
    let path = format!("{folder}:{}", env::var("PATH").unwrap_or_default());
    let setup = Setup::new("rust")
        .runtime(&rustc)
        .env("PATH", path)
        .file("home/work/Cargo.toml", "[package]\nname = \"thing\"\nversion = \"0.1.0\"\nedition = \"2021\"\n")
        .file("home/work/src/main.rs", "fn main() { println!(\"{}\", thing::answer()); }\n")
        .file("home/work/src/lib.rs", "pub fn answer() -> i32 { 42 }\n");
    let (_runner, mut raw) = session(setup);
    build(&mut raw);
    assert_prints(&mut raw, "42");
}

#[test]
fn go_module_is_built_with_its_packages_and_without_its_tests() {
    let go = require!((table::GOLANG.program)());
    let main =
        "package main\nimport (\"fmt\"; \"example.org/thing/lib\")\nfunc main() { fmt.Println(lib.Answer() + one) }\n";
    let setup = Setup::new("golang")
        .runtime(&go)
        .file("home/work/go.mod", "module example.org/thing\ngo 1.18\n")
        .file("home/work/main.go", main)
        .file("home/work/one.go", "package main\nconst one = 1\n")
        .file("home/work/one_test.go", "package main\nthis is not compiled\n")
        .file("home/work/lib/lib.go", "package lib\nfunc Answer() int { return 41 }\n");
    let (_runner, mut raw) = session(setup);
    build(&mut raw);
    assert_prints(&mut raw, "42");

    let setup = Setup::new("golang")
        .runtime(&go)
        .file("home/work/main.go", "package main\nimport \"fmt\"\nfunc main() { fmt.Println(two) }\n")
        .file("home/work/two.go", "package main\nconst two = 2\n")
        .file("home/work/two_test.go", "package main\nthis is not compiled\n")
        .file("home/work/other/other.go", "package other\n");
    let (_runner, mut raw) = session(setup);
    build(&mut raw);
    assert_prints(&mut raw, "2");
}

#[test]
fn haskell_modules_in_folders_are_found() {
    let setup = Setup::new("haskell")
        .runtime(require!((table::HASKELL.program)()))
        .file("home/work/Main.hs", "module Main where\nimport Data.Answer\nmain = print answer\n")
        .file("home/work/Data/Answer.hs", "module Data.Answer where\nanswer = 42 :: Int\n");
    let (_runner, mut raw) = session(setup);
    build(&mut raw);
    assert_prints(&mut raw, "42");
}

#[test]
fn java_class_in_the_package_main_is_started() {
    let setup = Setup::new("java")
        .runtime(require!((table::JAVA.program)()))
        .file(
            "home/work/src/Main.java",
            "package main;\npublic class Main { public static void main(String[] a) { System.out.println(other.Tool.X); } }\n",
        )
        .file("home/work/src/other/Tool.java", "package other;\npublic class Tool { public static int X = 42; }\n");
    let (_runner, mut raw) = session(setup);
    build(&mut raw);
    assert_prints(&mut raw, "42");
}

#[test]
fn java_is_found_without_a_path() {
    let installed = fs::read_dir("/usr/lib/jvm").map(|entries| {
        entries.flatten().any(|entry| {
            entry.file_name().to_string_lossy().starts_with("java-") && entry.path().join("bin/javac").is_file()
        })
    });
    require!(if installed.unwrap_or(false) { Ok(()) } else { Err("no /usr/lib/jvm/java-*/bin/javac".to_owned()) });
    // Nothing of Java in PATH: what is used comes from the default place.
    let (_runner, mut raw) = session(Setup::new("java").env("PATH", "/nowhere"));
    let code = "public class A { public static void main(String[] a) { \
                System.out.println(System.getProperty(\"java.home\")); } }";
    let run = step(&mut raw, "code", code);
    assert!(run.stdout().starts_with("/usr/lib/jvm/"), "{run:?}");
}

#[test]
fn snippets_find_what_lies_beside_them() {
    let setup =
        Setup::new("c").runtime(require!(host::c_compiler())).file("home/work/answer.h", "#define ANSWER \"42\"\n");
    let (_runner, mut raw) = session(setup);
    let code = "#include <stdio.h>\n#include \"answer.h\"\nint main(void) { puts(ANSWER); return 0; }\n";
    assert_eq!(step(&mut raw, "code", code).stdout(), "42\n");

    let setup = Setup::new("nodejs")
        .runtime(require!((table::NODEJS.program)()))
        .file("home/work/answer.js", "module.exports = 42;\n");
    let (_runner, mut raw) = session(setup);
    assert_eq!(step(&mut raw, "code", "console.log(require('./answer'))").stdout(), "42\n");
}

#[test]
fn php_errors_name_the_users_own_line() {
    let (_runner, mut raw) = session(Setup::new("php").runtime(require!((table::PHP.program)())));
    for code in ["\nmissing();", "<?php\nmissing();"] {
        let run = step(&mut raw, "code", code);
        assert_eq!(run.codes(), [("finished", 255)]);
        let said = run.stdout() + &run.stderr();
        assert!(said.contains("on line 2") || said.contains(".php:2"), "{said}");
    }
}

/// No Julia can be installed on a test machine: a shell script in its place tells what it was started with.
#[test]
fn julia_stand_in_gets_the_images_environment() {
    let setup = Setup::new("julia").file(
        "usr/local/julia/bin/julia",
        "#!/bin/sh\necho \"ran $*\"; echo \"$JULIA_LOAD_PATH\"; echo \"$PATH\" | cut -d : -f 1,2; . \"./$1\"\n",
    );
    let setup = setup
        .file("usr/local/bin/movecompiled.sh", "#!/bin/sh\necho \"moved in $HOME\" > moved\n")
        .file("home/work/main.jl", "echo 'main.jl as a shell reads it'; exit 3\n");
    for program in ["usr/local/julia/bin/julia", "usr/local/bin/movecompiled.sh"] {
        fs::set_permissions(setup.root().join(program), Permissions::from_mode(0o755)).expect("chmod");
    }
    let root = setup.root().display().to_string();
    let home = setup.home().display().to_string();
    let runtime = setup.root().join("usr/local/julia");
    let (runner, mut raw) = session(setup.runtime(runtime));

    assert_eq!(step(&mut raw, "build", "*").codes(), [("build-finished", 0)]);
    let run = raw.exec("*");

    assert_eq!(run.codes(), [("finished", 3)], "{}", run.stderr());
    let paths =
        ["/opt/julia", "/usr/local/julia", "/opt/julia/bin", "/usr/local/julia/bin"].map(|path| root.clone() + path);
    let expected =
        format!("ran main.jl\n{}:{}\n{}:{}\nmain.jl as a shell reads it\n", paths[0], paths[1], paths[2], paths[3]);
    assert_eq!(run.stdout(), expected);
    assert_eq!(runner.read("moved"), Some(format!("moved in {home}\n")));
}

#[test]
fn start_script_that_fails_is_told_and_holds_up_nothing() {
    let setup = Setup::new("julia").file("usr/local/bin/movecompiled.sh", "#!/bin/sh\nexit 7\n");
    let script = setup.root().join("usr/local/bin/movecompiled.sh");
    fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("chmod");
    let (runner, mut raw) = session(setup);
    assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
    runner.wait_for_log(&["julia-kernel: ", script.to_str().expect("UTF-8"), "7"]);
}

#[test]
fn languages_add_to_the_environment_and_the_agent_has_the_last_word() {
    let ask = "echo \"$GOPATH\"; echo \"$PATH\" | cut -d : -f 1-3";
    let setup = Setup::new("golang").env("GOPATH", "/go");
    let root = setup.root().display().to_string();
    let (_runner, mut raw) = session(setup);
    let path = ["/home/work/bin", "/usr/local/go/bin", "/go/bin"].map(|folder| root.clone() + folder).join(":");
    assert_eq!(raw.exec(ask).stdout(), format!("{root}/home/work\n{path}\n"));

    let (_runner, mut raw) = session(Setup::new("golang").file("home/config/environ.txt", "GOPATH=/mine\n"));
    assert!(raw.exec(ask).stdout().starts_with("/mine\n"));
}

#[test]
fn folders_of_an_image_lead_the_path_where_they_are_there() {
    let setup = Setup::new("haskell").folder("opt/ghc/9.4/bin").folder("opt/alex/3/bin").folder("opt/cabal/none");
    let root = setup.root().display().to_string();
    let (_runner, mut raw) = session(setup);
    let expected = ["/home/work/.cabal/bin", "/opt/ghc/9.4/bin", "/opt/alex/3/bin"].map(|path| root.clone() + path);
    assert_eq!(raw.exec("echo \"$PATH\" | cut -d : -f 1-3").stdout(), expected.join(":") + "\n");
}
