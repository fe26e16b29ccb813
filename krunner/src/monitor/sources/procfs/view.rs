//! Detects which PID namespace `/proc` shows, and whether `hidepid` hides processes from us.
//!
//! A bind mount of the host's `/proc` in a container with its own PID namespace shows the host's processes, and ours
//! under their host pids. Looking up one of our pids there finds an unrelated process. A mount with `hidepid` hides the
//! processes of other users (`Documentation/filesystems/proc.rst`). [`ProcView::find`] reads a few small files once at
//! startup; [`ProcView::of`] is pure.

use std::{fs, io};

use super::ProcRoot;

/// Which processes `/proc` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProcView {
    /// All processes of our PID namespace.
    Ours,
    /// Only our user's processes: the mount option `hidepid` has this value.
    OthersHidden(String),
    /// The processes of another PID namespace.
    Foreign,
    /// `/proc` is not mounted.
    Missing,
}

impl ProcView {
    /// Remedy for [`Self::Foreign`].
    pub(crate) const REMEDY: &str = "mount a new /proc in the container's PID namespace instead of the host's";

    /// Examines this root. `own_pid` is the caller's pid in its own PID namespace.
    #[must_use]
    pub(crate) fn find(root: &ProcRoot, own_pid: u32) -> Self {
        let own = root.path().join("self");
        if fs::symlink_metadata(&own).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Self::Missing;
        }
        let shown = fs::read_link(own).ok();
        let text = |file: &str| fs::read_to_string(root.path().join(file)).unwrap_or_default();
        let (status, mounts) = (text("self/status"), text("self/mountinfo"));
        Self::of(shown.as_deref().and_then(|shown| shown.to_str()), &status, &mounts, own_pid)
    }

    /// `shown` is the target of the link `self`: the reader's pid in the namespace that the file system was mounted in;
    /// none if the reader is not in it (`proc_self_get_link`, fs/proc/self.c). In `status`, `NSpid` lists the reader's
    /// pids from that namespace down to its own: more than one if the namespaces differ (`task_state`, fs/proc/array.c;
    /// since Linux 4.1).
    fn of(shown: Option<&str>, status: &str, mounts: &str, own_pid: u32) -> Self {
        let is_shown = shown.and_then(|shown| shown.parse().ok()) == Some(own_pid);
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let is_deeper = numbers.is_some_and(|numbers| numbers.split_whitespace().nth(1).is_some());
        if !is_shown || is_deeper {
            return Self::Foreign;
        }
        match hidepid(mounts) {
            Some((value, gid)) if !sees_hidden(value, gid, status) => Self::OthersHidden(value.to_owned()),
            _ => Self::Ours,
        }
    }

    /// Whether it shows processes under the pids of our namespace.
    #[must_use]
    pub(in crate::monitor) fn has_our_numbers(&self) -> bool {
        matches!(self, Self::Ours | Self::OthersHidden(_))
    }

    /// Why an OOM kill may be unattributed without the tracer; `None` if all processes are shown.
    #[must_use]
    pub(in crate::monitor) fn why_unattributed(&self) -> Option<String> {
        match self {
            Self::Ours => None,
            Self::OthersHidden(value) => Some(format!("/proc hides the processes of other users (hidepid={value})")),
            Self::Foreign => Some("/proc shows a different PID namespace".to_owned()),
            Self::Missing => Some("/proc is not mounted".to_owned()),
        }
    }
}

/// Value of `hidepid` of the last mount on `/proc` in `mountinfo` (proc(5)) unless it hides nothing, and the exempt
/// group.
pub(super) fn hidepid(mounts: &str) -> Option<(&str, u32)> {
    let options = mounts.lines().rev().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let is_proc = place.split(' ').nth(4) == Some("/proc") && kind.starts_with("proc ");
        is_proc.then(|| kind.rsplit(' ').next())?
    })?;
    let option = |name| options.split(',').find_map(|option| option.strip_prefix(name));
    let value = option("hidepid=").filter(|value| !matches!(*value, "0" | "off"))?;
    // Group 0 is not written (`proc_show_options`, fs/proc/root.c).
    Some((value, option("gid=").and_then(|gid| gid.parse().ok()).unwrap_or(0)))
}

/// Whether a thread with this status is exempt from `hidepid` (`has_pid_permissions`, fs/proc/base.c): it has
/// `CAP_SYS_PTRACE`, or is a member of the group and the value is not `ptraceable` (4).
pub(super) fn sees_hidden(value: &str, gid: u32, status: &str) -> bool {
    const CAP_SYS_PTRACE: u32 = 19;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let effective = u64::from_str_radix(field("CapEff:"), 16).unwrap_or(0);
    // The last of the four group ids is the file system gid.
    let own_group = field("Gid:").split_whitespace().nth(3);
    let mut groups = own_group.into_iter().chain(field("Groups:").split_whitespace());
    effective & (1 << CAP_SYS_PTRACE) != 0
        || !matches!(value, "4" | "ptraceable") && groups.any(|group| group.parse() == Ok(gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(numbers: &str) -> String {
        format!("Name:\tkrunner\nNStgid:\t1\nNSpid:\t{numbers}\nNSpgid:\t0\n")
    }

    #[test]
    fn proc_of_another_namespace_shows_different_or_several_pids() {
        assert_eq!(ProcView::of(Some("42"), &status("42"), "", 42), ProcView::Ours);
        assert_eq!(ProcView::of(Some("42"), "", "", 42), ProcView::Ours, "before Linux 4.1");
        assert_eq!(ProcView::of(Some("4711"), &status("4711\t42"), "", 42), ProcView::Foreign);
        assert_eq!(ProcView::of(Some("42"), &status("42\t42"), "", 42), ProcView::Foreign, "the same number by chance");
        assert_eq!(ProcView::of(None, "", "", 42), ProcView::Foreign, "one that we are not in");
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

    fn mount(options: &str) -> String {
        format!(
            "24 1 0:22 / /proc rw - proc proc rw\n80 24 0:50 / /proc rw,nosuid - proc proc {options}\n\
             81 1 0:51 / /mnt/proc rw - proc proc rw,hidepid=invisible,gid=9\n"
        )
    }

    fn user(gid: u32, groups: &str, capabilities: &str) -> String {
        format!(
            "Gid:\t5\t5\t5\t{gid}\nGroups:\t{groups} \nNSpid:\t42\nCapPrm:\t00000000a80c25fb\nCapEff:\t{capabilities}\n"
        )
    }

    #[test]
    fn hidepid_hides_from_those_without_the_right_and_the_group() {
        const NONE: &str = "0000000000000000";
        let view = |status: &str, options| ProcView::of(Some("42"), status, &mount(options), 42);
        let hidden = |value: &str| ProcView::OthersHidden(value.to_owned());
        assert_eq!(view(&user(1000, "1000", NONE), "rw,hidepid=invisible"), hidden("invisible"));
        assert_eq!(view(&user(1000, "", NONE), "rw,hidepid=2,gid=7"), hidden("2"));
        assert_eq!(view(&user(1000, "", NONE), "rw,hidepid=off"), ProcView::Ours);
        assert_eq!(view(&user(1000, "", NONE), "rw"), ProcView::Ours, "another mount, and one that is covered");
        assert_eq!(view(&user(0, "", NONE), "rw,hidepid=invisible"), ProcView::Ours, "group 0 if none is named");
        assert_eq!(view(&user(1000, "4 7", NONE), "rw,hidepid=noaccess,gid=7"), ProcView::Ours);
        assert_eq!(view(&user(0, "7", NONE), "rw,hidepid=ptraceable,gid=7"), hidden("ptraceable"), "no group helps");
        assert_eq!(view(&user(1000, "", "0000000000080000"), "rw,hidepid=ptraceable"), ProcView::Ours);
    }
}
