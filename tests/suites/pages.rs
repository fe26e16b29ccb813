//! Manual pages and completions, tried with what reads them: mandoc, groff and the shells.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use krunner_tests::{binary, host, require};

/// The output of krunner with these arguments.
fn printed(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(binary()).args(arguments).output().expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Gives a program this text on its stdin.
fn feed(program: &str, arguments: &[&str], text: &[u8]) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it is installed");
    child.stdin.take().expect("a pipe").write_all(text).expect("it reads");
    child.wait_with_output().expect("its output")
}

/// What bash offers for the last word of a line.
fn offered(words: &[&str]) -> Vec<String> {
    let last = words.len() - 1;
    let mut script = printed(&["completions", "bash"]);
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    write!(
        script,
        "\nCOMP_WORDS=({})\nCOMP_CWORD={last}\n_krunner krunner '{}' '{}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
        quoted.join(" "),
        words[last],
        words[last - 1],
    )
    .expect("a Vec takes it");
    let output = feed("/bin/bash", &["--norc"], &script);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn manual_pages_are_sound() {
    let mandoc = require!(host::program("mandoc"));
    let groff = require!(host::program("groff"));
    for page in [&["man"][..], &["man", "send"], &["man", "languages"], &["man", "services"], &["man", "completions"]] {
        let text = printed(page);
        let lint = feed(&mandoc.to_string_lossy(), &["-T", "lint", "-W", "warning"], &text);
        assert!(lint.status.success() && lint.stdout.is_empty(), "{page:?}: {lint:?}");
        let set = feed(&groff.to_string_lossy(), &["-ww", "-man", "-T", "utf8"], &text);
        assert!(set.status.success() && set.stderr.is_empty(), "{page:?}: {set:?}");
    }
}

#[test]
fn bash_completes_languages_commands_and_options() {
    require!(host::program("bash"));
    assert_eq!(offered(&["krunner", "pyt"]), ["python"]);
    assert_eq!(offered(&["krunner", "languages", "ru"]), ["rust"]);
    assert_eq!(offered(&["krunner", "mon"]), ["monitor"]);
    assert_eq!(offered(&["krunner", "monitor", "--a"]), ["--all-namespaces"]);
    assert_eq!(offered(&["krunner", "services", "--language", "jul"]), ["julia"]);
    assert_eq!(offered(&["krunner", "completions", "z"]), ["zsh"]);
    let all = offered(&["krunner", ""]);
    for word in ["c", "vendor.h2o", "doctor", "--debug"] {
        assert!(all.iter().any(|offered| offered == word), "{word} is not in {all:?}");
    }
    assert!(!all.iter().any(|offered| offered == "-m"), "the agent's own options are of no use: {all:?}");
}

#[test]
fn zsh_and_fish_can_read_their_completions() {
    let zsh = require!(host::program("zsh"));
    let fish = require!(host::program("fish"));
    for (shell, program) in [("zsh", zsh), ("fish", fish)] {
        let output = feed(&program.to_string_lossy(), &["-n"], &printed(&["completions", shell]));
        assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {output:?}");
    }
    let mut script = printed(&["completions", "fish"]);
    script.extend_from_slice(
        b"complete -C 'krunner languages jul'\ncomplete -C 'krunner pyt'\ncomplete -C 'krunner mon'\n",
    );
    let output = feed("fish", &["--no-config"], &script);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let words: Vec<&str> = told.lines().filter_map(|line| line.split('\t').next()).collect();
    assert_eq!(words, ["julia", "python", "monitor"], "{output:?}");
}
