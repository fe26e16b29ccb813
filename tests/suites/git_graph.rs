//! `%show graph` on real repositories, by the real git.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use krunner_tests::{Raw, Runner, Setup, Terminal, Transcript, host, require, wait};
use serde_json::{Value, json};

use crate::lines;

/// A repository in the making.
struct Repository<'a> {
    folder: &'a Path,
}

impl<'a> Repository<'a> {
    #[track_caller]
    fn new(folder: &'a Path) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        let repository = Self { folder };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository
    }

    #[track_caller]
    fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .arg("-C")
            .arg(self.folder)
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .envs([("GIT_AUTHOR_NAME", "Ann Author"), ("GIT_AUTHOR_EMAIL", "ann@example.org")])
            .envs([("GIT_COMMITTER_NAME", "Carl Committer"), ("GIT_COMMITTER_EMAIL", "carl@example.org")])
            .stdin(Stdio::null())
            .output()
            .expect("git starts");
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// A commit with that subject; its abbreviated id.
    #[track_caller]
    fn commit(&self, subject: &str) -> String {
        self.git(&["commit", "--quiet", "--allow-empty", "-m", subject]);
        self.git(&["rev-parse", "--short", "HEAD"])
    }
}

#[track_caller]
fn order(raw: &mut Raw, code: &str) -> Transcript {
    raw.op("code", code);
    raw.read_runs(1)
}

/// The list of commits in a run's only picture.
#[track_caller]
fn graph(run: &Transcript) -> Vec<Value> {
    assert_eq!(run.codes(), [("finished", 0)], "{}", run.stderr());
    let media: Vec<_> = run.messages.iter().filter(|message| message.kind == "media").collect();
    let [media] = media[..] else { panic!("not one picture: {run:?}") };
    let value: Value = serde_json::from_slice(&media.payload).expect("JSON");
    assert_eq!(value["type"], "application/vnd.sorna.gitgraph");
    value["data"].as_array().unwrap_or_else(|| panic!("no list: {value}")).clone()
}

fn git() -> Runner {
    Setup::new("git").start()
}

#[test]
fn graph_lists_branches_and_a_merge_oldest_first() {
    require!(host::program("git"));
    let runner = git();
    let folder = runner.home().join("my repo");
    let repository = Repository::new(&folder);
    let first = repository.commit("first");
    repository.git(&["checkout", "--quiet", "-b", "side"]);
    let side = repository.commit("on the side");
    repository.git(&["checkout", "--quiet", "main"]);
    let second = repository.commit("second: \"quoted\" || piped");
    repository.git(&["merge", "--quiet", "--no-ff", "-m", "the merge", "side"]);
    let merge = repository.git(&["rev-parse", "--short", "HEAD"]);
    repository.git(&["checkout", "--quiet", "--detach"]);
    repository.git(&["tag", "kept"]);
    let tagged = repository.commit("nobody's branch");
    repository.git(&["tag", "--force", "kept"]);

    let mut raw = Raw::connect(&runner);
    let commits = graph(&order(&mut raw, "%show graph 'my repo'"));
    let by_id = |oid: &str| {
        let found = commits.iter().position(|commit| commit["oid"] == oid);
        found.unwrap_or_else(|| panic!("{oid} is not in {commits:#?}"))
    };
    assert_eq!(commits.len(), 5);
    assert_eq!((by_id(&first), by_id(&merge), by_id(&tagged)), (0, 3, 4));
    let main = "main";
    assert_eq!(
        commits[by_id(&merge)],
        json!({
            "oid": merge, "parent_ids": [second, side], "author": "Ann Author", "message": "the merge",
            "branch": main, "parent_branches": [main, commits[by_id(&side)]["branch"]],
        })
    );
    assert_eq!(commits[by_id(&first)]["parent_ids"], json!([]));
    assert_eq!(commits[by_id(&second)]["message"], "second: \"quoted\" || piped");
    assert_eq!(commits[by_id(&second)]["branch"], main);
    assert_eq!(commits[by_id(&tagged)]["branch"], Value::Null);
    assert_eq!(commits[by_id(&tagged)]["parent_branches"], json!([main]));
    // What git itself says of the branch's commits.
    let sources = repository.git(&["log", "--branches", "--topo-order", "--source", "--format=%h %S"]);
    for line in sources.lines() {
        let (oid, branch) = line.split_once(' ').expect("two words");
        assert_eq!(commits[by_id(oid)]["branch"], branch);
    }
}

#[test]
fn dot_is_where_the_shell_is_and_paths_count_from_there() {
    require!(host::program("git"));
    let runner = git();
    let folder = runner.home().join("repo");
    Repository::new(&folder).commit("only");
    fs::create_dir_all(folder.join("sub")).expect("a folder");
    let mut raw = Raw::connect(&runner);
    let mut terminal = Terminal::connect(&runner);
    let refused = order(&mut raw, "%show graph .");
    assert!(refused.stderr().contains("not a git repository"), "{}", refused.stderr());
    assert_eq!(refused.codes(), [("finished", 128)]);
    terminal.run("cd repo/sub");
    assert_eq!(graph(&order(&mut raw, "%show graph .")).len(), 1);
    assert_eq!(graph(&order(&mut raw, "%show graph ..")).len(), 1);
    assert_eq!(graph(&order(&mut raw, &format!("%show graph {}", folder.display()))).len(), 1);
    terminal.run("cd; rm -rf repo/sub; mkdir gone; cd gone; rmdir ../gone");
    let gone = order(&mut raw, "%show graph .");
    assert_ne!(gone.ends()[0].exit_code(), 0);
    assert!(!gone.stderr().is_empty());
}

#[test]
fn bad_paths_and_an_empty_repository_get_an_answer() {
    require!(host::program("git"));
    let runner = git();
    let mut raw = Raw::connect(&runner);
    for path in ["--output=stolen", "-p", "nowhere", "/dev/null", "'a\nb'"] {
        let run = order(&mut raw, &format!("%show graph {path}"));
        assert_ne!(run.ends()[0].exit_code(), 0, "{path}");
        assert!(run.stderr().contains(path.trim_matches('\'')), "{path}: {}", run.stderr());
    }
    assert!(!runner.home().join("stolen").exists());
    let folder = runner.home().join("empty");
    Repository::new(&folder);
    assert_eq!(graph(&order(&mut raw, "%show graph empty")), Vec::<Value>::new());
    // A folder that looks like an option is a folder.
    let folder = runner.home().join("--help");
    Repository::new(&folder).commit("odd");
    assert_eq!(graph(&order(&mut raw, "%show graph --help")).len(), 1);
}

#[test]
fn bytes_and_settings_that_git_allows_do_not_break_the_list() {
    require!(host::program("git"));
    let runner = git();
    let folder = runner.home().join("repo");
    let repository = Repository::new(&folder);
    repository.commit("plain");
    let odd = std::ffi::OsStr::from_bytes(b"J\xfcrgen");
    let made = Command::new("git")
        .arg("-C")
        .arg(&folder)
        .args(["-c", "i18n.commitEncoding=none", "commit", "--quiet", "--allow-empty", "-m"])
        .arg(std::ffi::OsStr::from_bytes(b"\xff\xfe odd\n\nbody"))
        .env("GIT_AUTHOR_NAME", odd)
        .envs([("GIT_AUTHOR_EMAIL", "x"), ("GIT_COMMITTER_NAME", "x"), ("GIT_COMMITTER_EMAIL", "x")])
        .status();
    assert!(made.expect("git starts").success());
    repository.commit(&"long ".repeat(10_000));
    for (setting, value) in [
        ("log.showSignature", "true"),
        ("color.ui", "always"),
        ("log.decorate", "full"),
        ("core.pager", "false"),
        ("format.pretty", "fuller"),
    ] {
        repository.git(&["config", setting, value]);
    }
    let mut raw = Raw::connect(&runner);
    let commits = graph(&order(&mut raw, "%show graph repo"));
    assert_eq!(commits.len(), 3);
    assert_eq!(commits[1]["author"], "J\u{fffd}rgen");
    assert_eq!(commits[1]["message"], "\u{fffd}\u{fffd} odd");
    assert!(commits[2]["message"].as_str().is_some_and(|text| text.starts_with("long long") && text.len() <= 512));
}

#[test]
fn long_history_is_cut_and_that_is_told() {
    const COMMITS: usize = 10_050;
    require!(host::program("git"));
    let runner = git();
    let folder = runner.home().join("repo");
    Repository::new(&folder);
    let import = lines((1..=COMMITS).map(|number| {
        let message = format!("commit {number}");
        format!("commit refs/heads/main\ncommitter A <a@b> {number} +0000\ndata {}\n{message}", message.len())
    }));
    runner.write("import", import);
    let input = fs::File::open(runner.home().join("import")).expect("the file is there");
    let imported = Command::new("git").arg("-C").arg(&folder).args(["fast-import", "--quiet"]).stdin(input).status();
    assert!(imported.expect("git starts").success());

    let mut raw = Raw::connect(&runner);
    let run = order(&mut raw, "%show graph repo");
    assert_eq!(run.stderr(), "Only the newest 10000 commits are shown.\n");
    let commits = graph(&run);
    assert_eq!(commits.len(), 10_000);
    assert_eq!(commits[0]["message"], "commit 51");
    assert_eq!(commits[9999]["message"], format!("commit {COMMITS}"));
}

#[test]
fn interrupt_ends_a_git_that_hangs() {
    let runner = Setup::new("git").file("home/work/.local/bin/git", "#!/bin/sh\nexec sleep 1000\n").start();
    let program = runner.home().join(".local/bin/git");
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let mut raw = Raw::connect(&runner);
    raw.op("code", "%show graph .");
    runner.wait_for_program("sleep", 1);
    raw.op("interrupt", "");
    let run = raw.read_runs(1);
    assert_eq!(run.codes(), [("finished", -2)]);
    assert!(run.stderr().contains("git was interrupted"), "{}", run.stderr());
    wait::until_true("the end of the program", || proc_gone(&runner));
    fs::remove_file(&program).expect("the program goes");
}

fn proc_gone(runner: &Runner) -> bool {
    runner.processes().iter().all(|&pid| krunner_tests::proc::comm(pid).as_deref() != Some("sleep"))
}
