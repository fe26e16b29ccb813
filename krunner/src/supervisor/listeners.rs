//! Finds the listener of a port in `/proc`, without connecting.
//!
//! A connection would count as a client, and some services treat their first one specially.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{Pid, Uid};
use procfs::net::{TcpNetEntries, TcpNetEntry};
use procfs::process::{FDTarget, Process};
use procfs::{FromBufReadSI as _, LocalSystemInfo};
use tokio::time::{Instant, sleep};

use crate::tasks::blocking;

/// Maximum length of a program's path: `PATH_MAX` (include/uapi/linux/limits.h).
const MAX_PROGRAM_BYTES: u64 = 4096;

/// How many listeners of one port are looked at, each at another address.
const MAX_LISTENERS: usize = 64;

/// Polling interval while a listener is expected to come or go.
const EAGER_POLL: Duration = Duration::from_millis(50);

/// Whether something listens on this TCP port at any address of this network namespace.
pub(crate) async fn is_open(port: u16) -> bool {
    blocking(move || !listeners(port).is_empty()).await
}

/// Whether a listener that [may be this session's](session_listener) is on the port.
pub(crate) async fn is_open_in_session(port: u16) -> bool {
    // The user alone is known without a look at every process.
    blocking(move || listeners(port).iter().any(|listener| Uid::from_raw(listener.uid) == Uid::effective())).await
        || session_listener(port).await.is_some()
}

/// Waits until something listens on the port, or nothing does; `false` if that takes longer.
pub(crate) async fn wait_until(port: u16, open: bool, patience: Duration) -> bool {
    wait(|| is_open(port), open, patience).await
}

/// Waits until this session listens on the port, or it does not; `false` if that takes longer.
pub(crate) async fn wait_until_in_session(port: u16, open: bool, patience: Duration) -> bool {
    wait(|| is_open_in_session(port), open, patience).await
}

async fn wait<F: Future<Output = bool>>(is_open: impl Fn() -> F, open: bool, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while is_open().await != open {
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

    /// Whether it may be a program that this session started. A process whose descriptors cannot be seen counts if one of
    /// this session's has its user, as after a set-user-ID program.
    pub(crate) fn may_be_of_this_session(&self) -> bool {
        self.user == Uid::effective() || self.is_descendant || (self.pid.is_none() && has_descendant_of(self.user))
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
    blocking(move || listeners(port).first().map(owner)).await
}

/// The listener of a port that may belong to a program of this session: one of the runner's user, or of a process that
/// descends from the runner. Any other user of the container may listen on the port as well, before the program does.
pub(crate) async fn session_listener(port: u16) -> Option<PortOwner> {
    blocking(move || listeners(port).iter().map(owner).find(PortOwner::may_be_of_this_session)).await
}

fn owner(listener: &TcpNetEntry) -> PortOwner {
    let (user, inode) = (Uid::from_raw(listener.uid), listener.inode);
    let Some((process, name)) = process_with_socket(inode) else {
        let name = "another program".to_owned();
        return PortOwner { pid: None, name, user, inode, start_ticks: None, group: None, is_descendant: false };
    };
    let is_descendant = descends_from_us(&process);
    let (start_ticks, group) = process.stat().ok().map(|stat| (stat.starttime, stat.pgrp)).unzip();
    let pid = Some(Pid::from_raw(process.pid()));
    PortOwner { pid, name, user, inode, start_ticks, group, is_descendant }
}

fn listeners(port: u16) -> Vec<TcpNetEntry> {
    // A kernel without IPv6 has no `tcp6`.
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .into_iter()
        .filter_map(|table| File::open(table).ok())
        .flat_map(|table| listeners_in(table, port))
        .collect()
}

/// The listeners of the port in a table of TCP sockets. The kernel shows all listeners before other sockets (`tcp_seq_next`,
/// `net/ipv4/tcp_ipv4.c`), so the rest of the table is not read, however many connections there are.
fn listeners_in(table: impl Read, port: u16) -> Vec<TcpNetEntry> {
    const LISTEN: &str = "0A";
    let local_port = format!(":{port:04X}");
    let mut lines = BufReader::new(table).lines().map_while(Result::ok);
    let Some(header) = lines.next() else { return Vec::new() };
    let listeners = lines.take_while(|line| line.split_whitespace().nth(3) == Some(LISTEN));
    let is_on_port = |line: &String| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&local_port));
    let on_port: Vec<String> = listeners.filter(is_on_port).take(MAX_LISTENERS).collect();
    let table = format!("{header}\n{}\n", on_port.join("\n"));
    if on_port.is_empty() {
        return Vec::new();
    }
    TcpNetEntries::from_buf_read(table.as_bytes(), &LocalSystemInfo).map_or_else(|_| Vec::new(), |entries| entries.0)
}

/// Whether this process is among its ancestors. Orphans of our descendants are our children, as we are a subreaper.
fn descends_from_us(process: &Process) -> bool {
    let parent = |pid: i32| Process::new(pid).ok()?.stat().ok().map(|stat| stat.ppid).filter(|pid| *pid > 0);
    std::iter::successors(parent(process.pid()), |pid| parent(*pid)).any(|pid| pid == Pid::this().as_raw())
}

/// Whether a process of this user descends from this one.
fn has_descendant_of(user: Uid) -> bool {
    let is_users = |process: &Process| process.status().is_ok_and(|status| status.euid == user.as_raw());
    let Ok(mut processes) = procfs::process::all_processes() else { return false };
    processes.any(|process| process.is_ok_and(|process| is_users(&process) && descends_from_us(&process)))
}

/// The process that has the socket open.
fn process_with_socket(inode: u64) -> Option<(Process, String)> {
    procfs::process::all_processes().ok()?.flatten().find_map(|process| {
        let has_it = |target: FDTarget| matches!(target, FDTarget::Socket(socket) if socket == inode);
        process.fd().ok()?.flatten().any(|fd| has_it(fd.target)).then_some(())?;
        let name = process.open_relative("cmdline").ok().and_then(program_name);
        Some((process, name.unwrap_or_else(|| "a program".to_owned())))
    })
}

/// The program's name from `/proc/PID/cmdline`. A process chooses how long that is, up to all of its address space
/// (`PR_SET_MM_MAP`, prctl(2)), so only its beginning is read.
fn program_name(cmdline: impl Read) -> Option<String> {
    let mut beginning = Vec::new();
    cmdline.take(MAX_PROGRAM_BYTES).read_to_end(&mut beginning).ok()?;
    let program = beginning.split(|byte| *byte == 0).next()?;
    let name = Path::new(OsStr::from_bytes(program)).file_name()?;
    Some(name.to_string_lossy().into_owned())
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

    #[test]
    fn only_the_beginning_of_a_command_line_is_read() {
        assert_eq!(program_name(&b"/usr/bin/python3\0-m\0http.server\0"[..]).as_deref(), Some("python3"));
        assert_eq!(program_name(&b""[..]), None);
        let name = program_name(std::io::repeat(b'x')).unwrap();
        assert_eq!(name.len() as u64, MAX_PROGRAM_BYTES);
    }

    #[test]
    fn listeners_come_first_and_the_rest_is_not_read() {
        const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 77 1 0 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 78 1 0 100 0 0 10 0
   2: 0100007F:1F91 0100007F:0050 01 00000000:00000000 00:00000000 00000000  1000        0 79 1 0 100 0 0 10 0
";
        let found = |port| listeners_in(TABLE.as_bytes(), port).first().map(|entry| (entry.uid, entry.inode));
        assert_eq!((found(8080), found(80)), (Some((1000, 77)), Some((0, 78))));
        assert_eq!(found(8081), None, "a connection");
        let endless = TABLE.as_bytes().chain(std::io::repeat(b'0'));
        assert!(listeners_in(endless, 8081).is_empty());
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
