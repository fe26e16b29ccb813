//! What each language makes of the files that are there: the contract's table, as plans.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::sync::Arc;

use super::testing::{folder, shown};
use super::{LANGUAGES, Language, Plan, Runtime, ScratchFiles, make_or_build};

fn runtime(name: &str, path: &str) -> Arc<dyn Runtime> {
    (Language::find(name).unwrap().make)(path.into())
}

/// The plans of `build` and `exec` for a folder with these files.
#[track_caller]
fn assert_steps(name: &str, files: &[&str], build: &str, exec: &str) {
    let (folder, runtime) = (folder(files), runtime(name, &format!("/nowhere/{name}")));
    assert_eq!(shown(&runtime.build(folder.path())), [build], "build of {name} with {files:?}");
    assert_eq!(shown(&runtime.execute(folder.path())), [exec], "exec of {name} with {files:?}");
}

const NO_BUILD: &str = "0: this runtime has no build step";

#[test]
fn scripts_are_run_as_they_are() {
    for (name, file) in [("lua", "main.lua"), ("nodejs", "main.js"), ("octave", "main.m"), ("php", "main.php")] {
        assert_steps(name, &[file], NO_BUILD, &format!("/nowhere/{name} {file}"));
        assert_steps(name, &["other"], NO_BUILD, &format!("127: there is no \"{file}\" to run"));
    }
    assert_steps("julia", &["main.jl"], NO_BUILD, "julia main.jl");
    assert_steps("julia", &[], NO_BUILD, "127: there is no \"main.jl\" to run");
    assert_steps("r", &["main.R"], NO_BUILD, "Rscript main.R");
    assert_steps("r", &[], NO_BUILD, "127: there is no \"main.R\" to run");
}

#[test]
fn scheme_without_a_main_file_has_nothing_to_do() {
    let feed = r#"/bin/sh -c 'exec "$0" --quiet < "$1"' scheme ./main.scm"#;
    assert_steps("scheme", &["main.scm"], NO_BUILD, feed);
    assert_steps("scheme", &[], NO_BUILD, "0: there is no \"main.scm\" to run");
}

#[test]
fn go_builds_a_module_or_the_files_of_its_folder() {
    let files = ["main.go", "util.go", "util_test.go", "-odd name.go", "lib/deep.go"];
    assert_steps(
        "golang",
        &files,
        "/nowhere/golang build -o main './-odd name.go' ./main.go ./util.go",
        "127: there is no \"main\" to run",
    );
    assert_steps("golang", &["go.mod", "main.go", "main"], "env -u GOPATH /nowhere/golang build -o main .", "./main");
    assert_steps(
        "golang",
        &["util.go"],
        "127: there is neither a \"go.mod\" nor a \"main.go\" to build",
        "127: there is no \"main\" to run",
    );
}

#[test]
fn rust_builds_a_cargo_project_or_one_source() {
    assert_steps(
        "rust",
        &["Cargo.toml", "main.rs", "target/debug/b", "target/debug/a"],
        "cargo build",
        "./target/debug/a",
    );
    assert_steps("rust", &["main.rs", "main", "target/debug/liba.so"], "rustc -o main main.rs", "./main");
    assert_steps("rust", &["Cargo.toml", "target/release/a"], "cargo build", "./target/release/a");
    assert_steps(
        "rust",
        &[],
        "127: there is neither a \"Cargo.toml\" nor a \"main.rs\" to build",
        "127: there is no program in \"target/debug\", no program in \"target/release\" and no \"main\" to run",
    );
}

#[test]
fn haskell_and_java_compile_all_sources() {
    assert_steps("haskell", &["main.hs", "Lib/A.hs", "main"], "ghc --make -o main ./Lib/A.hs ./main.hs", "./main");
    assert_steps("haskell", &[], "127: there is no \".hs\" file to build", "127: there is no \"main\" to run");
    let build = "javac -d . ./Main.java './a b/@C.java'";
    assert_steps("java", &["Main.java", "a b/@C.java", "Main.class"], build, "java Main");
    assert_steps("java", &["x/Y.java", "Main.class", "main/Main.class"], "javac -d . ./x/Y.java", "java main.Main");
    assert_steps(
        "java",
        &[],
        "127: there is no \".java\" file to build",
        "127: there is neither a \"main/Main.class\" nor a \"Main.class\" to run",
    );
}

#[test]
fn cpp_is_as_c() {
    let folder = folder(&["main.cpp", "lib/a.cpp"]);
    assert_eq!(
        shown(&runtime("cpp", "/usr/bin/g++").build(folder.path())),
        [
            "/usr/bin/g++ -c ./lib/a.cpp -Wall -o ./a.o",
            "/usr/bin/g++ -c ./main.cpp -Wall -o ./main.o",
            "/usr/bin/g++ ./a.o ./main.o -Wall -o ./main -lrt -lm -lpthread -ldl",
        ]
    );
}

#[test]
fn a_makefile_goes_first_whatever_the_language() {
    let folder = folder(&["Makefile", "main.c", "main.rs"]);
    for kind in LANGUAGES {
        assert_eq!(shown(&make_or_build(&*(kind.make)("/x".into()), folder.path())), ["make"], "{}", kind.name);
    }
}

#[test]
fn names_that_are_no_text_reach_the_compiler_as_they_are() {
    for (name, extension) in [("c", "c"), ("golang", "go"), ("haskell", "hs"), ("java", "java")] {
        let odd = OsString::from_vec([b"\xff\n'\" ", extension.as_bytes()].join(&b'.'));
        let main = OsString::from(format!("main.{extension}"));
        let folder = folder(&[odd.clone(), main]);
        let Plan::Run(commands) = runtime(name, "/x").build(folder.path()) else { panic!("{name} builds nothing") };
        let argument = [b"./", odd.as_encoded_bytes()].concat();
        let found = commands.iter().any(|command| format!("{command:?}").contains(&debugged(&argument)));
        assert!(found, "{name}: {commands:?}");
    }
}

fn debugged(bytes: &[u8]) -> String {
    format!("{:?}", OsString::from_vec(bytes.to_vec()))
}

/// The plan of `code`, with names that are always alike.
fn query(name: &str, code: &str) -> (Vec<String>, tempfile::TempDir, ScratchFiles) {
    let folder = tempfile::tempdir().unwrap();
    let mut scratch = ScratchFiles::for_show(folder.path());
    let plan = runtime(name, &format!("/nowhere/{name}")).query(code, &mut scratch).unwrap();
    (shown(&plan), folder, scratch)
}

#[test]
fn code_is_run_from_a_file() {
    let link = " -lrt -lm -lpthread -ldl";
    for (name, expected) in [
        ("c", vec![format!("/nowhere/c ./tmp.c -Wall -o ./tmp/main{link}"), "./tmp/main".into()]),
        ("cpp", vec![format!("/nowhere/cpp ./tmp.cpp -Wall -o ./tmp/main{link}"), "./tmp/main".into()]),
        ("golang", vec!["/nowhere/golang run ./tmp.go".into()]),
        ("haskell", vec!["runhaskell ./tmp.hs".into()]),
        ("lua", vec!["/nowhere/lua ./tmp.lua".into()]),
        ("nodejs", vec!["/nowhere/nodejs ./tmp.js".into()]),
        ("octave", vec!["/nowhere/octave ./tmp.m".into()]),
        ("php", vec!["/nowhere/php ./tmp.php".into()]),
        ("rust", vec!["rustc --crate-name main -o ./tmp/main ./tmp.rs".into(), "./tmp/main".into()]),
        ("scheme", vec![r#"/bin/sh -c 'exec "$0" --quiet < "$1"' scheme ./tmp.scm"#.into()]),
    ] {
        let (commands, folder, scratch) = query(name, "the code");
        assert_eq!(commands, expected, "{name}");
        drop(scratch);
        assert_eq!(folder.path().read_dir().unwrap().count(), 0, "{name} leaves something behind");
    }
}

#[test]
fn java_code_is_named_after_its_class() {
    let (commands, folder, _scratch) = query("java", "package p;\npublic class Hello {}");
    assert_eq!(
        commands,
        [
            "javac -encoding UTF-8 -cp . -d ./tmp ./tmp/Hello.java ./tmp/KrunnerMain.java",
            "java -cp ./tmp:. KrunnerMain /tmp/bai-user-input.sock p.Hello",
        ]
    );
    assert!(folder.path().join("tmp/Hello.java").is_file());
}

#[test]
fn php_is_led_in_once_and_keeps_its_line_numbers() {
    let text = |code| {
        let (_, folder, _scratch) = query("php", code);
        std::fs::read_to_string(folder.path().join("tmp.php")).unwrap()
    };
    assert_eq!(text("echo 1;"), "<?php echo 1;");
    assert_eq!(text("<?php\necho 1;"), "<?php\necho 1;");
    assert_eq!(text(""), "<?php ");
}

#[test]
fn default_paths_and_prefixes_are_the_contracts() {
    for (name, path) in [
        ("app", "/opt/backend.ai/bin/python"),
        ("c", "/usr/bin/gcc"),
        ("cpp", "/usr/bin/g++"),
        ("golang", "/usr/local/bin/go"),
        ("haskell", "/usr/bin/ghc"),
        ("java", "/usr/lib/jvm/java-*/bin/java"),
        ("julia", "/usr/local/julia"),
        ("lua", "/usr/local/bin/lua"),
        ("nodejs", "/usr/local/bin/node"),
        ("octave", "/usr/bin/octave-cli"),
        ("php", "/usr/bin/php"),
        ("python", "/usr/bin/python"),
        ("r", "/usr/bin/R"),
        ("rust", "/usr/bin/rustc"),
        ("scheme", "/usr/bin/scheme"),
    ] {
        let kind = Language::find(name).unwrap();
        assert_eq!((kind.default_path, kind.log_prefix.to_owned()), (path, format!("{name}-kernel")));
    }
}

#[test]
fn every_step_has_an_example_that_leads_to_it() {
    for kind in LANGUAGES {
        let runtime = (kind.make)("/nowhere".into());
        for files in runtime.examples() {
            let folder = folder(&files);
            let steps: [fn(&dyn Runtime, &Path) -> Plan; 3] =
                [|it, at| it.clean(at), make_or_build, |it, at| it.execute(at)];
            let runs = steps.iter().any(|step| matches!(step(&*runtime, folder.path()), Plan::Run(_)));
            assert!(runs, "{}: {files:?} lead to nothing", kind.name);
        }
    }
}
