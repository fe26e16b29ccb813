//! Manual pages and completions, judged by the programs that they are for.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use krunner_tests::{binary, host, require};

fn krunner(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(binary()).args(arguments).stdin(Stdio::null()).output().expect("the binary runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    output.stdout
}

#[test]
fn every_page_is_one_for_man() {
    require!(host::program("mandoc"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    krunner(&["man", "--dir", folder.path().to_str().expect("a path")]);
    let pages: Vec<_> = fs::read_dir(folder.path()).expect("the pages").flatten().map(|entry| entry.path()).collect();
    assert!(pages.len() > 8, "{pages:?}");
    let output = Command::new("mandoc").args(["-Tlint", "-Werror"]).args(&pages).output().expect("mandoc runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let read = Command::new("mandoc").args(["-Tutf8"]).arg(folder.path().join("krunner-monitor.1")).output();
    let read = String::from_utf8_lossy(&read.expect("mandoc runs").stdout).into_owned();
    for part in ["krunner monitor --json | jq .victim", "krunner-doctor(1)"] {
        assert!(read.contains(part), "{part}: {read}");
    }
}

/// What bash would offer at the end of these words.
fn offered(words: &[&str]) -> Vec<String> {
    let script = r#"source /dev/stdin; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _krunner "$1" "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"; printf '%s\n' "${COMPREPLY[@]}""#;
    let mut bash = Command::new("bash");
    bash.args(["-c", script, "bash"]).args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut bash = bash.spawn().expect("bash runs");
    bash.stdin.take().expect("a pipe").write_all(&krunner(&["completions", "bash"])).expect("bash reads");
    let output = bash.wait_with_output().expect("bash ends");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_languages_and_options() {
    require!(host::program("bash"));
    assert_eq!(offered(&["krunner", "mon"]), ["monitor"]);
    assert_eq!(offered(&["krunner", "py"]), ["python"]);
    assert_eq!(offered(&["krunner", "monitor", "--a"]), ["--all-namespaces"]);
    assert_eq!(offered(&["krunner", "languages", "vendor."]), ["vendor.aws_polly", "vendor.h2o"]);
    assert_eq!(offered(&["krunner", "man", "lang"]), ["languages"]);
}

#[test]
fn other_shells_have_theirs() {
    for (shell, mark) in [("zsh", "#compdef krunner"), ("fish", "complete -c krunner"), ("elvish", "edit:completion")] {
        let script = String::from_utf8(krunner(&["completions", shell])).expect("text");
        assert!(script.contains(mark) && script.contains("all-namespaces"), "{shell}: {script}");
    }
}
