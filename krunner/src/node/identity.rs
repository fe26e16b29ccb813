//! Who a process is: its IDs in its PID namespaces and its memory cgroup, read from `/proc`; and who made a connection.
//!
//! A PID may be reused between two readings. So a process is known to be the same by its start time, and the peer of a
//! connection by its pidfd: `SO_PEERPIDFD` (Linux 6.5) is that of the process that connected; before, one is opened by PID, and
//! a process that started after the connection was accepted is another.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::monitor::{ProcRoot, ProcessKey, memory_cgroup};
use crate::sys::parent_of_pid_namespace;

/// A process on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostIdentity {
    /// Its PIDs, from the initial PID namespace inwards (`NSpid`, proc(5)).
    pub(super) pids: Vec<u32>,
    /// Inodes of the PID namespaces that these are in.
    pub(super) namespaces: Vec<u32>,
    /// Path of its memory cgroup.
    pub(super) cgroup: String,
}

impl HostIdentity {
    /// Inode of its own PID namespace.
    pub(super) fn namespace(&self) -> Option<u32> {
        self.namespaces.last().copied()
    }
}

/// Reads the identity of this process; `None` if it is gone.
#[must_use]
pub(super) fn identity_of(process: ProcessKey) -> Option<HostIdentity> {
    let identity = read_identity(process.pid)?;
    // After the readings: if the process still exists, they were of it.
    (ProcRoot::default().key_of(process.pid) == Some(process)).then_some(identity)
}

/// Reads the identity of the process that had this PID at that time, in nanoseconds since boot.
#[must_use]
pub(super) fn identity_at(pid: u32, at_boot_ns: u64) -> Option<HostIdentity> {
    let key = ProcRoot::default().key_of(pid).filter(|key| key.start_boot_ns() <= at_boot_ns)?;
    identity_of(key)
}

fn read_identity(pid: u32) -> Option<HostIdentity> {
    let text = |file: &str| fs::read(format!("/proc/{pid}/{file}")).ok();
    let namespaces = namespaces_from(File::open(format!("/proc/{pid}/ns/pid")).ok()?)?;
    let pids = namespace_pids(&String::from_utf8_lossy(&text("status")?))?;
    let cgroup = memory_cgroup(&String::from_utf8_lossy(&text("cgroup")?))?.to_owned();
    (pids.len() == namespaces.len()).then_some(HostIdentity { pids, namespaces, cgroup })
}

/// The inodes of a PID namespace and of those around it, outermost first.
fn namespaces_from(namespace: File) -> Option<Vec<u32>> {
    let mut inodes = VecDeque::new();
    let mut next = Some(namespace);
    while let Some(namespace) = next {
        inodes.push_front(u32::try_from(namespace.metadata().ok()?.ino()).ok()?);
        next = parent_of_pid_namespace(&namespace).ok()?;
    }
    Some(inodes.into())
}

/// The line `NSpid` of `/proc/PID/status`.
fn namespace_pids(status: &str) -> Option<Vec<u32>> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let pids: Option<Vec<u32>> = line.split_whitespace().map(|pid| pid.parse().ok()).collect();
    pids.filter(|pids| !pids.is_empty())
}

/// The process at the other end of a connection.
#[derive(Debug)]
pub(super) struct PeerIdentity {
    pub(super) identity: HostIdentity,
    /// Its user in the host's user namespace.
    pub(super) uid: u32,
    /// Keeps the namespace, so that its inode number is not given to another one.
    pub(super) namespace: File,
}

/// Why the other end of a connection is unknown.
#[derive(Debug, thiserror::Error)]
pub(super) enum IdentityError {
    /// The kernel tells no PID: the peer is in a namespace that is not below ours.
    #[error("the peer's PID is not visible to the node, which must run in the host's PID namespace")]
    NotVisible,
    /// The node may not look at the peer.
    #[error(
        "the node may not read the peer's PID namespace; it needs CAP_SYS_PTRACE, and no AppArmor profile that forbids ptrace \
         (--security-opt apparmor=unconfined)"
    )]
    NotPermitted,
    /// A system call failed.
    #[error("the peer cannot be identified")]
    Failed(#[source] io::Error),
    /// The process exited.
    #[error("the process that connected has exited")]
    Gone,
}

impl PeerIdentity {
    /// Identifies the process that connected. `accepted_ns`: when the connection was accepted, in nanoseconds since boot.
    ///
    /// Returns it with its pidfd, which becomes readable when the process exits (`pidfd_open(2)`).
    pub(super) fn of(stream: &impl AsFd, accepted_ns: u64) -> Result<(Self, OwnedFd), IdentityError> {
        let failed = |error: nix::Error| IdentityError::Failed(error.into());
        let credentials = getsockopt(stream, sockopt::PeerCredentials).map_err(failed)?;
        let pid = u32::try_from(credentials.pid()).ok().filter(|pid| *pid > 0).ok_or(IdentityError::NotVisible)?;
        let pidfd = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => pidfd,
            Err(nix::Error::ENOPROTOOPT) => open_pidfd(pid, accepted_ns)?,
            Err(_) => return Err(IdentityError::Gone),
        };
        let namespace = File::open(format!("/proc/{pid}/ns/pid")).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => IdentityError::NotPermitted,
            _ => IdentityError::Gone,
        })?;
        let identity = read_identity(pid).ok_or(IdentityError::Gone)?;
        let inode = namespace.metadata().map_err(IdentityError::Failed)?.ino();
        // After the readings: if the process still exists, they were of it.
        if has_exited(&pidfd) || Some(inode) != identity.namespace().map(u64::from) {
            return Err(IdentityError::Gone);
        }
        Ok((Self { identity, uid: credentials.uid(), namespace }, pidfd))
    }

    /// The PID on the host.
    pub(super) fn pid(&self) -> u32 {
        self.identity.pids.first().copied().unwrap_or(0)
    }
}

fn open_pidfd(pid: u32, accepted_ns: u64) -> Result<OwnedFd, IdentityError> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(IdentityError::NotVisible)?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty()).map_err(|_| IdentityError::Gone)?;
    let key = ProcRoot::default().key_of(pid);
    let is_same = key.is_some_and(|key| key.start_boot_ns() <= accepted_ns);
    if is_same { Ok(pidfd) } else { Err(IdentityError::Gone) }
}

fn has_exited(pidfd: &OwnedFd) -> bool {
    let mut ready = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut ready, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_of_all_namespaces_are_read() {
        assert_eq!(namespace_pids("Name:\ta\nNSpid:\t812\t14\t1\n"), Some(vec![812, 14, 1]));
        assert_eq!(namespace_pids("NSpid:\t812\tx\n"), None);
        assert_eq!((namespace_pids("NSpid:\n"), namespace_pids("Pid:\t1\n")), (None, None));
    }

    #[test]
    fn peer_of_a_pair_is_this_process() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let (peer, pidfd) = PeerIdentity::of(&one, crate::monitor::boot_ns()).unwrap();
        assert_eq!(peer.pid(), *identity_at(std::process::id(), u64::MAX).unwrap().pids.first().unwrap());
        assert!(!has_exited(&pidfd));
        let own = fs::metadata("/proc/self/ns/pid").unwrap().ino();
        assert_eq!(peer.identity.namespace().map(u64::from), Some(own));
        assert_eq!(identity_at(std::process::id(), 0), None, "it started later");
    }
}
