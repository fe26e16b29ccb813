//! Explains why the kernel refuses another process, thread or descriptor: which limit is reached, and the remedy.
//!
//! `fork` fails with EAGAIN at any of several limits (fork(2)) without naming it. The limit of a container is
//! `pids.max` of its cgroup or of one above it, and counts threads as well (Documentation/admin-guide/cgroup-v2.rst,
//! "PID"). Parsing is pure; [`PidsLimit::find`] reads two files of `/proc` and two of each cgroup, none of which waits
//! for a user's process.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// The pids limit closest to being reached, in our cgroup or above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PidsLimit {
    /// The value of `pids.max`.
    pub(crate) max: u64,
    /// The value of `pids.current`.
    pub(crate) current: u64,
}

impl PidsLimit {
    /// Finds the limit with the least headroom, in this process's cgroup or a visible one above. `root` stands for `/`.
    /// `None` if there is no visible limit.
    #[must_use]
    pub(crate) fn find(root: &Path) -> Option<Self> {
        let own = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
        let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).ok()?;
        let (mount, folder) = place(&own, &mounts)?;
        let mount = below(root, &mount);
        let levels: Vec<PathBuf> = below(root, &folder).ancestors().map(Path::to_owned).collect();
        let visible = levels.iter().take_while(|level| level.starts_with(&mount));
        visible.filter_map(|level| Self::of(level)).min_by_key(Self::left)
    }

    fn of(folder: &Path) -> Option<Self> {
        // `max` does not parse as a number: no limit.
        let number = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok();
        Some(Self { max: number("pids.max")?, current: number("pids.current")? })
    }

    /// How many more processes and threads may be started.
    pub(crate) fn left(&self) -> u64 {
        self.max.saturating_sub(self.current)
    }

    /// Allows for a few that exited since the kernel refused one.
    fn was_reached(self) -> bool {
        const ENDED_MEANWHILE: u64 = 4;
        self.left() <= ENDED_MEANWHILE
    }
}

impl fmt::Display for PidsLimit {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "the limit of {} processes and threads of this container", self.max)
    }
}

/// Adds the limit behind an EAGAIN or EMFILE to the error, if it can be determined.
pub(crate) fn explain(error: io::Error) -> io::Error {
    let reason = match error.raw_os_error() {
        Some(nix::libc::EAGAIN) => reason(
            PidsLimit::find(Path::new("/")),
            finite(Resource::RLIMIT_NPROC),
            finite(Resource::RLIMIT_AS).filter(|bytes| *bytes < LITTLE_ADDRESS_SPACE),
        ),
        Some(nix::libc::EMFILE) => match finite(Resource::RLIMIT_NOFILE) {
            Some(max) => format!("the limit of {max} open files (RLIMIT_NOFILE) is reached; raise it (ulimit -n)"),
            None => return error,
        },
        _ => return error,
    };
    let kernel = error.to_string();
    // The errno adds nothing to the text.
    let kernel = kernel.split(" (os error").next().unwrap_or_default();
    io::Error::new(error.kind(), format!("{kernel}: {reason}"))
}

fn finite(resource: Resource) -> Option<u64> {
    getrlimit(resource).ok().map(|(soft, _)| soft).filter(|soft| *soft != RLIM_INFINITY)
}

/// The stack of a thread has 2 MiB, and 128 of them may block.
const LITTLE_ADDRESS_SPACE: u64 = 256 << 20;

/// The message. A user's limit counts the processes of that user in all containers, so the current number is not
/// visible.
fn reason(container: Option<PidsLimit>, of_user: Option<u64>, address_space: Option<u64>) -> String {
    if let (Some(bytes), None, false) = (address_space, of_user, container.is_some_and(PidsLimit::was_reached)) {
        let limit = bytes >> 20;
        return format!("the limit of {limit} MiB of address space (RLIMIT_AS) may be reached; raise it (ulimit -v)");
    }
    match (container, of_user) {
        (Some(limit), _) if limit.was_reached() => format!(
            "{limit} is reached ({} in use); end some, or start the container with a larger pids limit",
            limit.current
        ),
        (_, Some(max)) => format!(
            "the limit of {max} processes and threads of this user (RLIMIT_NPROC) may be reached; end some, or raise \
             it (ulimit -u)"
        ),
        (Some(limit), None) => format!(
            "{limit} is not reached ({} in use); it is one of the machine (kernel.threads-max, kernel.pid_max) or of \
             a cgroup that is not visible here",
            limit.current
        ),
        (None, None) => "the limit of processes of this container or machine is reached; end some, or start the \
             container with a larger pids limit"
            .to_owned(),
    }
}

/// The mount point of the hierarchy with the `pids` controller, and the folder of our cgroup in it.
fn place(own: &str, mounts: &str) -> Option<(String, String)> {
    let lines = || own.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let of_v1 = lines().find(|(controllers, _)| controllers.split(',').any(|name| name == "pids"));
    let (is_v1, path) = match of_v1 {
        Some((_, path)) => (true, path),
        None => (false, lines().find(|(controllers, _)| controllers.is_empty())?.1),
    };
    // Fields 4 and 5 are the mounted part and where it is; behind ` - ` kind, device, options (proc(5)).
    let parts = mounts.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (top, point) = (place.next()?, place.next()?);
        let mut kind = kind.split(' ');
        let fits = match kind.next()? {
            "cgroup" => is_v1 && kind.nth(1)?.split(',').any(|option| option == "pids"),
            "cgroup2" => !is_v1,
            _ => false,
        };
        fits.then_some((top, point))
    });
    let parts: Vec<(&str, &str)> = parts.collect();
    let inside = parts.iter().find_map(|(top, point)| {
        let rest = path.strip_prefix(top.trim_end_matches('/'))?;
        let is_inside = (rest.is_empty() || rest.starts_with('/')) && !rest.contains("..");
        is_inside.then(|| ((*point).to_owned(), format!("{point}{}", rest.trim_end_matches('/'))))
    });
    // A container's own part may be mounted under a path that says nothing of it.
    inside.or_else(|| parts.first().map(|(_, point)| ((*point).to_owned(), (*point).to_owned())))
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "30 24 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      31 24 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";

    #[test]
    fn our_cgroup_is_found_in_both_versions_and_below_what_is_mounted() {
        let at = |own, mounts| place(own, mounts).map(|(mount, folder)| format!("{mount} {folder}"));
        let own = "9:pids:/a/b\n4:memory:/m\n0::/\n";
        assert_eq!(at(own, V1).as_deref(), Some("/sys/fs/cgroup/pids /sys/fs/cgroup/pids/a/b"));
        let part = "31 24 0:26 /a /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        assert_eq!(at(own, part).as_deref(), Some("/sys/fs/cgroup/pids /sys/fs/cgroup/pids/b"));
        let elsewhere = "31 24 0:26 /other /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        assert_eq!(at(own, elsewhere).as_deref(), Some("/sys/fs/cgroup/pids /sys/fs/cgroup/pids"));
        let v2 = "31 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(at("0::/x\n", v2).as_deref(), Some("/sys/fs/cgroup /sys/fs/cgroup/x"));
        assert_eq!(at("0::/\n", v2).as_deref(), Some("/sys/fs/cgroup /sys/fs/cgroup"));
        assert_eq!(at("0::/x\n", V1), None);
        assert_eq!(at("", v2), None);
    }

    /// A root in which our cgroup is `/a/b` and each level has these files.
    fn root(levels: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        fs::write(root.path().join("proc/self/cgroup"), "8:pids:/a/b\n").unwrap();
        fs::write(root.path().join("proc/self/mountinfo"), V1).unwrap();
        fs::create_dir_all(root.path().join("sys/fs/cgroup/pids/a/b")).unwrap();
        for (level, max, current) in levels {
            let folder = root.path().join("sys/fs/cgroup/pids").join(level);
            fs::write(folder.join("pids.max"), max).unwrap();
            fs::write(folder.join("pids.current"), current).unwrap();
        }
        root
    }

    #[test]
    fn the_nearest_limit_counts_wherever_it_is() {
        let find = |levels| PidsLimit::find(root(levels).path());
        assert_eq!(find(&[("a/b", "max\n", "7\n")]), None);
        assert_eq!(find(&[("a/b", "40\n", "7\n")]), Some(PidsLimit { max: 40, current: 7 }));
        let above = find(&[("a/b", "40\n", "7\n"), ("a", "50\n", "49\n")]);
        assert_eq!(above, Some(PidsLimit { max: 50, current: 49 }));
        assert_eq!(PidsLimit::find(Path::new("/nowhere")), None);
    }

    #[test]
    fn the_reason_names_limit_and_remedy() {
        let container = |current| Some(PidsLimit { max: 40, current });
        assert_eq!(
            reason(container(40), Some(100), None),
            "the limit of 40 processes and threads of this container is reached (40 in use); end some, or start the \
             container with a larger pids limit"
        );
        assert!(reason(container(38), None, Some(1 << 24)).contains("is reached (38 in use)"));
        assert!(
            reason(container(7), Some(100), None).contains("100 processes and threads of this user (RLIMIT_NPROC)")
        );
        assert!(reason(container(7), None, None).contains("not reached (7 in use); it is one of the machine"));
        assert!(reason(container(7), None, Some(1 << 24)).contains("16 MiB of address space (RLIMIT_AS)"));
        assert!(reason(None, None, None).contains("larger pids limit"));
    }

    #[test]
    fn other_errors_stay_what_they_are() {
        let error = explain(io::Error::from_raw_os_error(nix::libc::ENOMEM));
        assert_eq!(error.raw_os_error(), Some(nix::libc::ENOMEM));
        let error = explain(io::Error::from_raw_os_error(nix::libc::EAGAIN));
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(error.to_string().starts_with("Resource temporarily unavailable: the limit of "), "{error}");
    }
}
