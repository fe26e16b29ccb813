//! Capabilities that come with krunner's file, and their end.
//!
//! A runner that is not root may get the right to use BPF from its file (`setcap cap_bpf,cap_perfmon+ep`).
//! capabilities(7): at the exec its permitted and effective sets then hold them, and its ambient set is
//! empty. Without file capabilities a user's permitted set is the ambient one. So what is not ambient came
//! with the file, and children, who are to have what they would have without krunner, must not inherit from
//! it: they would not anyway, since an exec recomputes the sets, but a thread of ours could be made to use
//! them. What root has is root's own, and stays.
//!
//! Sets belong to threads: this has to be called before there are others than those that need them.
//!
//! A process with file capabilities is not dumpable (prctl(2), `PR_SET_DUMPABLE`): its `/proc/PID` belongs to root,
//! and no other process of that user can trace it or take its descriptors. That is left so, for the
//! descriptors of the ring buffer and the links are not the user's business. What the runner reads of its own
//! `/proc/self` is world-readable.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};

/// Drops what came with the file, from the calling thread and from those that it will make. Does nothing for
/// root. Returns what it dropped.
///
/// # Errors
/// When the kernel refuses, which it does not for less than one has.
pub fn drop_added() -> io::Result<Vec<Capability>> {
    if nix::unistd::geteuid().is_root() {
        return Ok(Vec::new());
    }
    let read = |set| caps::read(None, set).map_err(io::Error::other);
    let (permitted, ambient) = (read(CapSet::Permitted)?, read(CapSet::Ambient).unwrap_or_default());
    let added: Vec<Capability> = permitted.difference(&ambient).copied().collect();
    if !added.is_empty() {
        let kept: CapsHashSet = permitted.intersection(&ambient).copied().collect();
        // Effective first: it must lie within permitted.
        for set in [CapSet::Effective, CapSet::Permitted] {
            caps::set(None, set, &kept).map_err(io::Error::other)?;
        }
    }
    Ok(added)
}

/// Whether this program has rights that its user has not: from its file's capabilities or a set-user-ID bit.
#[must_use]
pub fn was_elevated() -> bool {
    // SAFETY: getauxval(3) reads a table that the kernel has filled before the first instruction.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
