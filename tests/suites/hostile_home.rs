//! A runner of root in a home full of traps: it writes nothing outside of the home, says what it does not use and what to do
//! about it, and the session continues.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use krunner_tests::{LaunchMethod, Raw, Runner, Setup, host, require, wait};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use tempfile::TempDir;

use crate::{app, lines, sshd};

/// Of the session's kernel id in the harness.
const LOG: &str = "home/work/.logs/task/de/ad/beef0123456789abcdef01234567.log";

/// The owner of the home, and of nothing outside of it.
const USER: u32 = 43_210;

/// A folder that is not the user's, with a file in it.
struct Outside {
    folder: TempDir,
    before: String,
}

impl Outside {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("file"), "theirs").expect("a file");
        let before = shown(folder.path());
        Self { folder, before }
    }

    fn path(&self) -> &str {
        self.folder.path().to_str().expect("UTF-8")
    }

    fn file(&self) -> String {
        format!("{}/file", self.path())
    }

    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(shown(self.folder.path()), self.before);
    }
}

/// Owner, mode, and content or entries of a folder and of all that is in it.
fn shown(path: &Path) -> String {
    let about = fs::symlink_metadata(path).expect("metadata");
    let this = format!("{} {} {:o}", path.display(), about.uid(), about.mode());
    if !about.is_dir() {
        return format!("{this} {}", fs::read_to_string(path).expect("its content"));
    }
    let mut entries: Vec<PathBuf> =
        fs::read_dir(path).expect("its entries").map(|entry| entry.expect("one").path()).collect();
    entries.sort();
    lines(std::iter::once(this).chain(entries.iter().map(|entry| shown(entry))))
}

/// Starts a runner of root; the home and all that is in it belongs to a user.
fn start(setup: Setup) -> (Runner, Raw) {
    let home = setup.home();
    let give = format!("chown -hR {USER}:{USER} {}", home.display());
    let runner =
        setup.prefix_first(&LaunchMethod::direct().then(["sh", "-c", &format!("{give}; exec \"$@\""), "sh"])).start();
    let raw = Raw::connect(&runner);
    (runner, raw)
}

/// Two steps work, one line tells of the log, and the session ends as usual.
#[track_caller]
fn assert_steps_work_without_log(setup: Setup, why: &str) {
    let (mut runner, mut raw) = start(setup);
    for _ in 0..2 {
        let run = raw.exec("echo hi");
        assert_eq!((run.stdout().as_str(), run.codes()), ("hi\n", vec![("finished", 0)]), "{}", runner.stderr());
    }
    runner.signal(Signal::SIGTERM);
    assert!(runner.wait_exit().success());
    let log = runner.stderr();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("task log disabled")).collect();
    assert!(told.len() == 1 && told[0].contains(why), "{why}: {log}");
}

#[test]
fn log_folder_that_is_a_link_is_told_and_not_written() {
    require!(host::root());
    for link in [".logs", ".logs/task", ".logs/task/de", ".logs/task/de/ad"] {
        let outside = Outside::new();
        let path = format!("home/work/{link}");
        let setup = app().link(&path, outside.path());
        let why = format!(
            "{} is a symbolic link, which a runner of root does not follow",
            setup.root().join(&path).display()
        );
        assert_steps_work_without_log(setup, &why);
        outside.assert_untouched();
    }
}

#[test]
fn log_files_that_are_links_are_not_written() {
    require!(host::root());
    for link in [LOG, "home/work/.logs/recorder.bin", "home/work/.logs/last-end.json", "home/work/.logs/oom.jsonl"] {
        let outside = Outside::new();
        let setup = app().folder("home/work/.logs").link(link, &outside.file());
        if link == LOG {
            let why = format!("{} is a symbolic link", setup.root().join(link).display());
            assert_steps_work_without_log(setup, &why);
        } else {
            let (mut runner, mut raw) = start(setup);
            assert_eq!(raw.exec("echo hi").stdout(), "hi\n");
            runner.signal(Signal::SIGTERM);
            assert!(runner.wait_exit().success());
        }
        outside.assert_untouched();
    }
}

#[test]
fn log_that_is_a_fifo_or_another_users_file_is_told_and_not_written() {
    require!(host::root());
    let setup = app().file(&format!("{LOG}.other"), "");
    nix::unistd::mkfifo(&setup.root().join(LOG), Mode::S_IRWXU).expect("a FIFO");
    assert_steps_work_without_log(setup, "not a regular file");

    let outside = Outside::new();
    let setup = app().file(&format!("{LOG}.other"), "");
    let (home, link) = (setup.home(), setup.root().join(LOG));
    // As where fs.protected_hardlinks is 0. Made after the home has its owner.
    let link =
        format!("chown -hR {USER}:{USER} {}; ln {} {}; exec \"$@\"", home.display(), outside.file(), link.display());
    let runner = setup.prefix_first(&LaunchMethod::direct().then(["sh", "-c", &link, "sh"])).start();
    assert_eq!(Raw::connect(&runner).exec("echo hi").stdout(), "hi\n");
    runner.wait_for_log(&["task log disabled", "a hard link of a file of uid 0"]);
    drop(runner);
    outside.assert_untouched();
}

#[test]
fn log_folder_may_be_a_mount_and_the_home_a_link() {
    require!(host::root().and_then(|()| host::util_linux()));
    let outside = tempfile::tempdir().expect("a folder");
    let setup = app().folder("home/work/.logs");
    let (root, home) = (setup.root(), setup.home());
    let mounts = format!(
        "mount --bind {} {}/.logs; mv {} {}/elsewhere; ln -s ../elsewhere {}; cd {}/elsewhere",
        outside.path().display(),
        home.display(),
        home.display(),
        root.display(),
        home.display(),
        root.display(),
    );
    let runner = setup.prefix_first(&LaunchMethod::direct().mounts(&mounts)).start();
    assert_eq!(Raw::connect(&runner).exec("echo hi").stdout(), "hi\n");
    let log = outside.path().join(LOG.strip_prefix("home/work/.logs/").expect("below it"));
    wait::until_true("the task log", || fs::read_to_string(&log).is_ok_and(|text| text == "hi\n"));
}

#[test]
fn what_root_writes_in_the_home_belongs_to_its_owner() {
    require!(host::root());
    let (mut runner, mut raw) = start(app().folder("home/work/.logs"));
    assert_eq!(raw.exec("echo hi").stdout(), "hi\n");
    runner.signal(Signal::SIGTERM);
    assert!(runner.wait_exit().success());
    for name in [LOG, "home/work/.logs/task", "home/work/.logs/recorder.bin", "home/work/.logs/last-end.json"] {
        let about = fs::metadata(runner.root().join(name)).expect(name);
        assert_eq!((about.uid(), about.gid()), (USER, USER), "{name}");
    }
}

#[test]
fn ssh_folder_that_is_a_link_is_told_and_not_written() {
    require!(host::root());
    let outside = Outside::new();
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFake cluster";
    let setup = require!(sshd::single()).link("home/work/.ssh", outside.path());
    let (runner, mut raw) = start(setup.file("home/config/ssh/id_cluster.pub", key));
    assert_eq!(raw.exec("echo hi").stdout(), "hi\n");
    runner.wait_for_log(&["/home/work/.ssh is a symbolic link"]);
    drop(runner);
    outside.assert_untouched();
}

#[test]
fn site_folder_of_python_that_is_a_link_is_told_and_not_written() {
    require!(host::root());
    let python = require!(host::user_python());
    for link in [".local", ".local/lib"] {
        let outside = Outside::new();
        let setup = Setup::new("python").runtime(&python).link(&format!("home/work/{link}"), outside.path());
        let (runner, mut raw) = start(setup);
        assert_eq!(raw.exec("echo hi").stdout(), "hi\n");
        runner.wait_for_log(&[&format!("/home/work/{link} is a symbolic link")]);
        drop(runner);
        outside.assert_untouched();
    }
}
