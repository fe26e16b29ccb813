//! Checks that the user's home belongs to the runner's user.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{AccessFlags, access, geteuid};

use super::ConfigWarning;

/// A warning if the home belongs to another user, as a mounted folder may. A runner with uid 0 gets none: it has full
/// access, and gives the files that it creates to the owner.
#[must_use]
pub(crate) fn foreign_home(home: &Path) -> Option<ConfigWarning> {
    let (owner, runner) = (fs::metadata(home).ok()?.uid(), geteuid());
    if runner.is_root() || owner == runner.as_raw() {
        return None;
    }
    let is_writable = access(home, AccessFlags::W_OK).is_ok();
    Some(ConfigWarning::new(home, None, problem(owner, runner.as_raw(), is_writable)))
}

fn problem(owner: u32, runner: u32, is_writable: bool) -> String {
    let consequence = if is_writable {
        "sshd may refuse the keys in it"
    } else {
        "not writable: ssh keys, Python's input() and files written by steps will not work"
    };
    format!(
        "owned by uid {owner}, but the runner has uid {runner}: {consequence}; chown it to uid {runner}, or start the \
         session with LOCAL_USER_ID={owner}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_home_and_a_missing_one_are_no_warning() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(foreign_home(home.path()), None);
        assert_eq!(foreign_home(Path::new("/nonexistent")), None);
    }

    #[test]
    fn both_users_are_named_and_what_fails() {
        let told = problem(1000, 4321, false);
        assert!(told.starts_with("owned by uid 1000, but the runner has uid 4321: not writable: "), "{told}");
        assert!(told.ends_with("LOCAL_USER_ID=1000"), "{told}");
        assert!(problem(1000, 4321, true).contains("sshd may refuse the keys"));
    }
}
