//! Finds the listener of a port in `/proc`, without connecting.
//!
//! A connection would count as a client, and some services treat their first one specially.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{Pid, Uid};
use procfs::ProcResult;
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process};
use tokio::time::{Instant, sleep};

use crate::tasks::blocking;

/// Polling interval while a listener is expected to come or go.
const EAGER_POLL: Duration = Duration::from_millis(50);

/// Whether something listens on this TCP port at any address of this network namespace.
pub(crate) async fn is_open(port: u16) -> bool {
    blocking(move || listener(port).is_some()).await
}

/// Waits until something listens on the port, or nothing does; `false` if that takes longer.
pub(crate) async fn wait_until(port: u16, open: bool, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while is_open(port).await != open {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(EAGER_POLL).await;
    }
    true
}

/// The process that listens on a port. `/proc` does not show the pid of other users' processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortOwner {
    /// `None` if it cannot be seen.
    pub(crate) pid: Option<Pid>,
    name: String,
    user: Uid,
    /// The listening socket, which forked processes share.
    inode: u64,
    /// Start time of the process in clock ticks since boot, since a pid may be reused.
    start_ticks: Option<u64>,
    /// The process group, which the workers of a daemon share.
    group: Option<i32>,
    /// Whether it descends from the runner, or was adopted by it. What a former runner left behind was not.
    is_descendant: bool,
}

impl PortOwner {
    /// Whether a program of this session started it.
    pub(crate) fn is_of_this_session(&self) -> bool {
        self.is_descendant
    }

    /// Whether the listener belongs to the session's user and is not the runner itself.
    pub(crate) fn is_users_own(&self) -> bool {
        self.user == Uid::effective() && self.pid != Some(Pid::this())
    }

    /// Whether `later` listens on the same socket, or is the same process or another one of its group.
    pub(crate) fn is_still(&self, later: &Self) -> bool {
        let process = |owner: &Self| owner.pid.zip(owner.start_ticks);
        self.inode == later.inode
            || (process(self).is_some() && process(self) == process(later))
            || (self.group.is_some() && self.group == later.group)
    }
}

impl fmt::Display for PortOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "{} (process {pid})", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// The listener of a port, if there is one.
pub(crate) async fn port_owner(port: u16) -> Option<PortOwner> {
    blocking(move || {
        let listener = listener(port)?;
        let (user, inode) = (Uid::from_raw(listener.uid), listener.inode);
        let Some((process, name)) = process_with_socket(inode) else {
            let name = "another program".to_owned();
            return Some(PortOwner {
                pid: None,
                name,
                user,
                inode,
                start_ticks: None,
                group: None,
                is_descendant: false,
            });
        };
        let is_descendant = descends_from_us(&process);
        let (start_ticks, group) = process.stat().ok().map(|stat| (stat.starttime, stat.pgrp)).unzip();
        Some(PortOwner {
            pid: Some(Pid::from_raw(process.pid())),
            name,
            user,
            inode,
            start_ticks,
            group,
            is_descendant,
        })
    })
    .await
}

fn listener(port: u16) -> Option<TcpNetEntry> {
    let on_port = |table: ProcResult<Vec<TcpNetEntry>>| {
        // A kernel without IPv6 has no `tcp6`.
        let entries = table.unwrap_or_default();
        entries.into_iter().find(|entry| entry.state == TcpState::Listen && entry.local_address.port() == port)
    };
    on_port(procfs::net::tcp()).or_else(|| on_port(procfs::net::tcp6()))
}

/// Whether this process is among its ancestors. Orphans of our descendants are our children, as we are a subreaper.
fn descends_from_us(process: &Process) -> bool {
    let parent = |pid: i32| Process::new(pid).ok()?.stat().ok().map(|stat| stat.ppid).filter(|pid| *pid > 0);
    std::iter::successors(parent(process.pid()), |pid| parent(*pid)).any(|pid| pid == Pid::this().as_raw())
}

/// The process that has the socket open.
fn process_with_socket(inode: u64) -> Option<(Process, String)> {
    procfs::process::all_processes().ok()?.flatten().find_map(|process| {
        let has_it = |target: FDTarget| matches!(target, FDTarget::Socket(socket) if socket == inode);
        process.fd().ok()?.flatten().any(|fd| has_it(fd.target)).then_some(())?;
        let arguments = process.cmdline().unwrap_or_default();
        let name = arguments.first().and_then(|program| Path::new(program).file_name());
        let name = name.map_or_else(|| "a program".into(), |name| name.to_string_lossy().into_owned());
        Some((process, name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    async fn check(address: &str) {
        let listener = TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(is_open(port).await, "{address}");
        let owner = port_owner(port).await.unwrap();
        let shown = owner.to_string();
        assert!(shown.ends_with(&format!("(process {})", std::process::id())), "{shown}");
        assert!(!owner.is_users_own(), "it is this process");
        assert!(PortOwner { pid: Some(Pid::from_raw(1)), ..owner.clone() }.is_users_own());
        assert!(
            PortOwner { pid: None, ..owner.clone() }.is_users_own(),
            "not every process of a user can be looked into"
        );
        let other = Uid::from_raw(Uid::effective().as_raw() + 1);
        assert!(!PortOwner { pid: None, user: other, ..owner.clone() }.is_users_own());
        let worker = PortOwner { pid: Some(Pid::from_raw(1)), ..owner.clone() };
        let sibling = PortOwner { inode: owner.inode + 1, ..worker.clone() };
        let stranger = PortOwner { group: None, ..sibling.clone() };
        let is_still = |later: &PortOwner| owner.is_still(later);
        assert_eq!([&worker, &sibling, &stranger].map(is_still), [true, true, false]);
        let unknown = |owner: PortOwner| PortOwner { pid: None, group: None, ..owner };
        assert!(!unknown(owner.clone()).is_still(&unknown(stranger)));
        drop(listener);
        assert!(!is_open(port).await);
        assert_eq!(super::port_owner(port).await, None);
    }

    #[tokio::test]
    async fn any_address_counts() {
        check("127.0.0.1:0").await;
        check("0.0.0.0:0").await;
        check("127.1.2.3:0").await;
        if Path::new("/proc/net/if_inet6").exists() {
            check("[::]:0").await;
        }
    }
}
