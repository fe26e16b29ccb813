//! Homes with traps in them, as a runner of root sees them and as any other.

use std::os::unix::fs::symlink;

use super::*;

/// How a path is opened: by one call, or component by component.
type Way = fn(BorrowedFd<'_>, &Path, OFlag, Mode) -> nix::Result<OwnedFd>;

const WAYS: [Way; 2] = [open_beneath, walk_beneath];

fn home(for_root: bool) -> (tempfile::TempDir, UserFolder) {
    let place = tempfile::tempdir().unwrap();
    let home = UserFolder::home_as(place.path(), for_root).unwrap();
    (place, home)
}

const WRITE: OFlag = OFlag::O_WRONLY.union(OFlag::O_APPEND).union(OFlag::O_CREAT);

fn write(home: &UserFolder, path: &str) -> io::Result<File> {
    home.open(Path::new(path), WRITE, Mode::S_IRUSR | Mode::S_IWUSR)
}

#[test]
fn both_ways_follow_no_link_and_stay_beneath() {
    let (place, home) = home(true);
    let (elsewhere, _) = self::home(true);
    fs::write(elsewhere.path().join("secret"), "theirs").unwrap();
    fs::create_dir_all(place.path().join("a/b")).unwrap();
    fs::write(place.path().join("a/b/plain"), "").unwrap();
    symlink(elsewhere.path(), place.path().join("link")).unwrap();
    symlink(elsewhere.path().join("secret"), place.path().join("a/file")).unwrap();
    symlink("/proc/self/root", place.path().join("magic")).unwrap();
    for way in WAYS {
        let open = |path: &str| way(home.as_fd(), Path::new(path), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
        open("a/b/plain").unwrap();
        for path in ["link/secret", "link", "a/file", "magic/etc/passwd", "..", "a/../../x", "/etc/passwd"] {
            assert!(open(path).is_err(), "{path}");
        }
    }
}

#[test]
fn link_anywhere_is_named_with_the_remedy() {
    let (place, home) = home(true);
    let (elsewhere, _) = self::home(true);
    fs::create_dir(place.path().join("logs")).unwrap();
    symlink(elsewhere.path(), place.path().join("logs/task")).unwrap();
    let errors = [
        write(&home, "logs/task/file").unwrap_err(),
        home.make_folders(Path::new("logs/task/00/11"), 0o755).unwrap_err(),
        home.folder(Path::new("logs/task")).unwrap_err(),
    ];
    for error in errors {
        let (text, link) = (error.to_string(), place.path().join("logs/task"));
        assert!(text.starts_with(&format!("{} is a symbolic link, ", link.display())), "{text}");
        assert!(text.contains("; put a folder"), "{text}");
    }
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn folders_and_files_are_created_where_none_are() {
    let (place, home) = home(true);
    let folder = home.make_folders(Path::new("a/b/c"), 0o700).unwrap();
    write(&folder, "file").unwrap().write_all(b"1").unwrap();
    write(&folder, "file").unwrap().write_all(b"2").unwrap();
    assert_eq!(fs::read(place.path().join("a/b/c/file")).unwrap(), b"12");
    let new = folder.open(Path::new("file"), WRITE | OFlag::O_EXCL, Mode::empty());
    assert_eq!(new.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(home.folder(Path::new("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn only_regular_files_are_opened() {
    let (place, home) = home(true);
    nix::unistd::mkfifo(&place.path().join("fifo"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(place.path().join("socket")).unwrap();
    for name in ["fifo", "socket"] {
        assert_eq!(write(&home, name).unwrap_err().to_string(), "not a regular file", "{name}");
    }
    fs::create_dir(place.path().join("folder")).unwrap();
    assert!(write(&home, "folder").is_err());
}

#[test]
fn another_users_file_is_not_written_by_a_second_name() {
    let (place, mut home) = home(true);
    let secret = place.path().join("secret");
    fs::write(&secret, "").unwrap();
    fs::hard_link(&secret, place.path().join("log")).unwrap();
    write(&home, "log").unwrap();
    let (user, group) = home.owner.unwrap();
    home.owner = Some((user + 1, group));
    let text = write(&home, "log").unwrap_err().to_string();
    assert!(text.starts_with(&format!("a hard link of a file of uid {user}, ")), "{text}");
    fs::remove_file(secret).unwrap();
    write(&home, "log").unwrap();
}

#[test]
fn runner_without_root_follows_the_users_links() {
    let (place, home) = home(false);
    let (elsewhere, _) = self::home(false);
    symlink(elsewhere.path(), place.path().join("logs")).unwrap();
    write(&home.make_folders(Path::new("logs/task"), 0o755).unwrap(), "file").unwrap();
    assert!(elsewhere.path().join("task/file").is_file());
}

#[test]
fn link_is_kept_or_replaced_as_asked() {
    let (place, home) = home(false);
    fs::write(place.path().join("theirs"), "theirs").unwrap();
    symlink("theirs", place.path().join("link")).unwrap();
    home.replace_link(Path::new("link"), b"ours", PRIVATE_FILE).unwrap();
    assert_eq!(fs::read(place.path().join("theirs")).unwrap(), b"theirs");
    assert_eq!(fs::read(place.path().join("link")).unwrap(), b"ours");
    symlink("theirs", place.path().join("kept")).unwrap();
    home.replace(Path::new("kept"), b"new", PRIVATE_FILE).unwrap();
    assert_eq!(fs::read(place.path().join("theirs")).unwrap(), b"new");
}

#[test]
fn mount_in_the_home_is_entered() {
    let (_, mut root) = home(true);
    root.held = File::open("/").unwrap();
    root.folder(Path::new("proc/self/task")).map(drop).unwrap_err();
    root.folder(Path::new("proc/sys")).unwrap();
}

#[test]
fn what_root_creates_is_the_homes_owners() {
    if !geteuid().is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(place.path(), Some(4321), Some(1234)).unwrap();
    let folder = UserFolder::home(place.path()).unwrap().make_folders(Path::new("a/b"), 0o755).unwrap();
    write(&folder, "file").unwrap();
    folder.replace(Path::new("whole"), b"", PRIVATE_FILE).unwrap();
    for made in ["a", "a/b", "a/b/file", "a/b/whole"] {
        let about = fs::metadata(place.path().join(made)).unwrap();
        assert_eq!((about.uid(), about.gid()), (4321, 1234), "{made}");
    }
}
