//! Who listens on a port, as the kernel tells it: nobody is connected to.
//!
//! A connection would count as a client, and some services treat their first one specially.

use std::fmt;
use std::path::Path;

use nix::unistd::Pid;
use procfs::ProcResult;
use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::FDTarget;

use crate::tasks::blocking;

/// Whether something listens on this TCP port at any address of this network namespace.
pub(super) async fn is_open(port: u16) -> bool {
    blocking(move || listener(port).is_some()).await
}

/// Who listens on a port, as far as `/proc` shows it: processes of other users keep to themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) pid: Option<Pid>,
    name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "{} (process {pid})", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Whoever listens there, if somebody does.
pub(super) async fn holder(port: u16) -> Option<Holder> {
    blocking(move || {
        let inode = listener(port)?.inode;
        Some(owner(inode).unwrap_or_else(|| Holder { pid: None, name: "another program".to_owned() }))
    })
    .await
}

fn listener(port: u16) -> Option<TcpNetEntry> {
    let on_port = |table: ProcResult<Vec<TcpNetEntry>>| {
        // A kernel without IPv6 has no second table.
        let entries = table.unwrap_or_default();
        entries.into_iter().find(|entry| entry.state == TcpState::Listen && entry.local_address.port() == port)
    };
    on_port(procfs::net::tcp()).or_else(|| on_port(procfs::net::tcp6()))
}

/// The process that has the socket open.
fn owner(inode: u64) -> Option<Holder> {
    procfs::process::all_processes().ok()?.flatten().find_map(|process| {
        let has_it = |target: FDTarget| matches!(target, FDTarget::Socket(socket) if socket == inode);
        process.fd().ok()?.flatten().any(|fd| has_it(fd.target)).then_some(())?;
        let arguments = process.cmdline().unwrap_or_default();
        let name = arguments.first().and_then(|program| Path::new(program).file_name());
        let name = name.map_or_else(|| "a program".into(), |name| name.to_string_lossy().into_owned());
        Some(Holder { pid: Some(Pid::from_raw(process.pid())), name })
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
        let holder = holder(port).await.unwrap().to_string();
        assert!(holder.ends_with(&format!("(process {})", std::process::id())), "{holder}");
        drop(listener);
        assert!(!is_open(port).await);
        assert_eq!(super::holder(port).await, None);
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
