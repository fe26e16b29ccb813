//! What the `/proc` that is mounted here shows: the processes of our own PID namespace, or others under other numbers.
//!
//! A bind mount of the host's `/proc` in a container with a PID namespace of its own shows the host's processes, and ours
//! among them under the numbers that they have there. Whoever looks up one of our numbers in it finds a stranger. Reads
//! two small files, once at the start; [`ProcView::of`] is pure.

use std::fs;
use std::io;

use super::ProcRoot;

/// What `/proc` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcView {
    /// The processes of our PID namespace.
    Ours,
    /// The processes of another one.
    Foreign,
    /// Nothing: it is not mounted.
    Missing,
}

impl ProcView {
    /// What helps where it is [`Self::Foreign`].
    pub const REMEDY: &str = "mount a new /proc in the container's PID namespace, in place of the host's";

    /// Looks at this root, as the process with that id in its own PID namespace.
    #[must_use]
    pub fn find(root: &ProcRoot, own_pid: u32) -> Self {
        let own = root.path().join("self");
        if fs::symlink_metadata(&own).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Self::Missing;
        }
        let shown = fs::read_link(own).ok();
        let status = fs::read_to_string(root.path().join("self/status")).unwrap_or_default();
        Self::of(shown.as_deref().and_then(|shown| shown.to_str()), &status, own_pid)
    }

    /// `shown` is where the link `self` leads: to the number of the reader in the namespace that the file system was mounted
    /// in, and nowhere if the reader is not in it (`proc_self_get_link`, fs/proc/self.c). `status` has under `NSpid` the
    /// reader's numbers from that namespace down to its own: more than one if these are not the same
    /// (`task_state`, fs/proc/array.c; since Linux 4.1).
    fn of(shown: Option<&str>, status: &str, own_pid: u32) -> Self {
        let is_shown = shown.and_then(|shown| shown.parse().ok()) == Some(own_pid);
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let is_deeper = numbers.is_some_and(|numbers| numbers.split_whitespace().nth(1).is_some());
        if is_shown && !is_deeper { Self::Ours } else { Self::Foreign }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(numbers: &str) -> String {
        format!("Name:\tkrunner\nNStgid:\t1\nNSpid:\t{numbers}\nNSpgid:\t0\n")
    }

    #[test]
    fn proc_of_another_namespace_has_other_numbers_or_more_of_them() {
        assert_eq!(ProcView::of(Some("42"), &status("42"), 42), ProcView::Ours);
        assert_eq!(ProcView::of(Some("42"), "", 42), ProcView::Ours, "before Linux 4.1");
        assert_eq!(ProcView::of(Some("4711"), &status("4711\t42"), 42), ProcView::Foreign);
        assert_eq!(ProcView::of(Some("42"), &status("42\t42"), 42), ProcView::Foreign, "the same number by chance");
        assert_eq!(ProcView::of(None, "", 42), ProcView::Foreign, "one that we are not in");
    }

    #[test]
    fn own_proc_and_no_proc_are_recognised() {
        assert_eq!(ProcView::find(&ProcRoot::default(), std::process::id()), ProcView::Ours);
        let empty = tempfile::TempDir::new().unwrap();
        assert_eq!(ProcView::find(&ProcRoot::new(empty.path()), 42), ProcView::Missing);
        std::os::unix::fs::symlink("42", empty.path().join("self")).unwrap();
        assert_eq!(ProcView::find(&ProcRoot::new(empty.path()), 42), ProcView::Ours);
        assert_eq!(ProcView::find(&ProcRoot::new(empty.path()), 43), ProcView::Foreign);
    }
}
