//! Odd names, odd bytes and missing tools: the message names the file or program, and the session continues.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use krunner_tests::{Setup, host, require};
use nix::sys::signal::Signal;

use super::{build, session, step, table, visible};
use crate::lines;

const NOBODY: u32 = 65534;

/// Names that have tripped tools over: options, quotes, lines, no UTF-8, response files.
fn odd_names() -> Vec<OsString> {
    let text = ["-odd", "two words", "it's \"quoted\"", "new\nline", "@file", "$HOME", "*", "#;&|"];
    text.iter().map(Into::into).chain([OsString::from_vec(b"no-utf-8-\xff".to_vec())]).collect()
}

/// A source of each of these names.
fn with_sources(setup: Setup, names: &[OsString], extension: &str, source: impl Fn(usize) -> String) -> Setup {
    for (number, name) in names.iter().enumerate() {
        let mut name = name.clone();
        name.push(format!(".{extension}"));
        fs::write(setup.home().join(name), source(number)).expect("a source");
    }
    setup
}

/// What a program prints that adds up the numbers of its sources.
fn sum(names: &[OsString]) -> String {
    format!("{}\n", (0..names.len()).sum::<usize>())
}

#[test]
fn odd_names_of_c_sources_compile() {
    let setup = Setup::new("c").runtime(require!(host::c_compiler()));
    let names = odd_names();
    let declared = lines((0..names.len()).map(|number| format!("int f{number}(void);")));
    let calls: Vec<String> = (0..names.len()).map(|number| format!("f{number}()")).collect();
    let main = format!(
        "#include <stdio.h>\n{declared}int main(void) {{ printf(\"%d\\n\", {}); return 0; }}\n",
        calls.join(" + ")
    );
    let setup = with_sources(setup.file("home/work/main.c", main), &names, "c", |number| {
        format!("int f{number}(void) {{ return {number}; }}\n")
    });
    let (_runner, mut raw) = session(setup);
    build(&mut raw);
    assert_eq!(raw.exec("*").stdout(), sum(&names));
}

#[test]
fn odd_names_of_java_sources_compile() {
    let setup = Setup::new("java").runtime(require!((table::JAVA.program)()));
    // Java's own reading of names that are no UTF-8 finds no such file, and says so.
    let names: Vec<OsString> = odd_names().into_iter().filter(|name| name.to_str().is_some()).collect();
    let calls: Vec<String> = (0..names.len()).map(|number| format!("F{number}.f()")).collect();
    let main = format!(
        "public class Main {{ public static void main(String[] a) {{ System.out.println({}); }} }}\n",
        calls.join(" + ")
    );
    let setup = with_sources(setup.file("home/work/Main.java", main), &names, "java", |number| {
        format!("class F{number} {{ static int f() {{ return {number}; }} }}\n")
    });
    let (_runner, mut raw) = session(setup);
    build(&mut raw);
    assert_eq!(raw.exec("*").stdout(), sum(&names));
}

#[test]
fn sources_of_one_stem_and_loops_of_links_compile() {
    let setup = Setup::new("c")
        .runtime(require!(host::c_compiler()))
        .file(
            "home/work/main.c",
            "#include <stdio.h>\nint a(void), b(void);\nint main(void) { printf(\"%d\\n\", a() + b()); return 0; }\n",
        )
        .file("home/work/a/util.c", "int a(void) { return 40; }\n")
        .file("home/work/b/util.c", "int b(void) { return 2; }\n");
    symlink("..", setup.home().join("a/up")).expect("a link");
    symlink("self.c", setup.home().join("self.c")).expect("a link");
    symlink("nowhere.c", setup.home().join("b/broken.c")).expect("a link");
    let (_runner, mut raw) = session(setup);
    build(&mut raw);
    assert_eq!(raw.exec("*").stdout(), "42\n");
}

#[test]
fn unreadable_source_is_named() {
    require!(host::root());
    for (lang, program, file) in [
        ("c", require!(host::c_compiler()), "main.c"),
        ("java", require!((table::JAVA.program)()), "Main.java"),
        ("lua", require!((table::LUA.program)()), "main.lua"),
    ] {
        let setup = Setup::new(lang).runtime(program).file(&format!("home/work/{file}"), "").user(NOBODY);
        fs::set_permissions(setup.home(), Permissions::from_mode(0o777)).expect("chmod");
        fs::set_permissions(setup.home().join(file), Permissions::from_mode(0o000)).expect("chmod");
        let (_runner, mut raw) = session(setup);
        let said = step(&mut raw, "build", "*").stderr() + &raw.exec("*").stderr();
        assert!(said.contains(file), "{lang}: {said}");
        assert_eq!(raw.exec("echo alive").stdout(), "alive\n");
    }
}

#[test]
fn bytes_that_are_no_text_pass_through_a_source() {
    let lua = require!((table::LUA.program)());
    let setup = Setup::new("lua").runtime(lua).file("home/work/main.lua", b"io.write('\xff\xfe')\n");
    let (_runner, mut raw) = session(setup);
    assert_eq!(raw.exec("*").output("stdout"), b"\xff\xfe");
    // `code` is text: what is none is refused with a word on it, and costs nothing but itself.
    raw.push.send(&[b"code", b"io.write('\xff')"]);
    let run = step(&mut raw, "code", "io.write('next')");
    assert_eq!(run.stdout(), "next");
    assert!(run.stderr().contains("code") && run.stderr().contains("UTF-8"), "{}", run.stderr());
}

#[test]
fn missing_programs_are_named() {
    let rows = [&table::C, &table::CPP, &table::GOLANG, &table::LUA, &table::NODEJS, &table::OCTAVE, &table::PHP];
    for language in rows {
        let path = format!("/nowhere/{}", language.name);
        let main = format!("home/work/{}", language.main);
        let (_runner, mut raw) = session(Setup::new(language.name).runtime(&path).file(&main, ""));
        let (op, end) = if language.builds { ("build", "build-finished") } else { ("exec", "finished") };
        let run = step(&mut raw, op, "*");
        assert_eq!(run.codes(), [(end, 127)], "{}", language.name);
        assert!(run.stderr().contains(&format!("{path} not found")), "{}", run.stderr());
        let query = step(&mut raw, "code", "");
        assert_eq!(query.codes().last(), Some(&("finished", 127)), "{}", language.name);
        assert!(query.stderr().contains(&format!("{path} not found")), "{}", query.stderr());
    }
}

/// These are looked up in PATH by the Python runner, whatever the path says, so images may have a wrong one.
#[test]
fn wrong_path_is_told_and_the_program_of_path_is_used() {
    for language in [&table::HASKELL, &table::JAVA, &table::SCHEME] {
        require!((language.program)());
        let (runner, mut raw) = session(Setup::new(language.name).runtime("/nowhere/at/all"));
        let run = step(&mut raw, "code", language.greets);
        assert_eq!((run.codes(), run.stdout().as_str()), (vec![("finished", 3)], "out\n"), "{}", run.stderr());
        runner.wait_for_log(&["/nowhere/at/all does not exist"]);
    }
}

#[test]
fn program_that_is_nowhere_is_named() {
    for (language, tool) in
        [(&table::HASKELL, "ghc"), (&table::JAVA, "javac"), (&table::R, "Rscript"), (&table::RUST, "rustc")]
    {
        let main = format!("home/work/{}", language.main);
        let setup = Setup::new(language.name).runtime("/nowhere/at/all").env("PATH", "/nowhere").file(&main, "");
        let (_runner, mut raw) = session(setup);
        let (op, end) = if language.builds { ("build", "build-finished") } else { ("exec", "finished") };
        let run = step(&mut raw, op, "*");
        assert_eq!(run.codes(), [(end, 127)], "{}", language.name);
        assert!(run.stderr().contains(&format!("{tool} not found in PATH")), "{}", run.stderr());
    }
}

#[test]
fn program_that_may_not_be_run_is_named() {
    let setup = Setup::new("c").file("home/work/main", "no program");
    let (_runner, mut raw) = session(setup);
    let run = raw.exec("*");
    assert_eq!(run.codes(), [("finished", 126)]);
    assert!(run.stderr().contains("./main"), "{}", run.stderr());
}

#[test]
fn snippet_cut_short_leaves_nothing_behind() {
    for language in [&table::C, &table::JAVA] {
        let program = require!((language.program)());
        let (mut runner, mut raw) = session(Setup::new(language.name).runtime(program));
        let home = runner.home();
        raw.op("code", language.loops);
        runner.wait_for("started");
        assert!(fs::read_dir(&home).expect("the home folder").count() > 1, "there is something to be removed");
        runner.signal(Signal::SIGTERM);
        assert!(runner.wait_exit().success());
        assert_eq!(visible(&runner), BTreeSet::from(["started".to_owned()]), "{}", language.name);
    }
}
