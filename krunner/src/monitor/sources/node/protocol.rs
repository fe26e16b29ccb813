//! Messages of the node's socket. Plain values; how bytes become messages is in `frame`.
//!
//! ```text
//!  runner                              node
//!    │ ── Hello {protocol, wants} ──▶   │  who asks is read from the kernel, never from the message
//!    │ ◀─ Hello {protocol, missed} ──   │  or Refused {reason}, and the connection ends
//!    │ ◀─ Kill, Kill, ... ───────────   │  OOM kills within the scope of this peer, as they are attributed
//!    │ ◀─ DaemonKill ────────────────   │  a SIGKILL from a user-space OOM killer of the host
//!    │ ◀─ Missed {kills} ────────────   │  the peer read too slowly
//!    │ ◀─ RecordsLost {records} ─────   │  the tracer dropped records
//!    │ ◀─ Alive ─────────────────────   │  every [`ALIVE_INTERVAL`]
//! ```
//!
//! A peer says nothing after its greeting. Each side ignores fields and messages that it does not know, and refuses another
//! [`VERSION`] with both numbers. Numbers of processes are those of the peer's PID namespace; times and start times are those of
//! the initial time namespace.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::monitor::explain::{LimitHit, MemoryUsage};
use crate::monitor::model::event::{Actor, MemoryAtKill};

/// The version of the protocol. It changes when an older peer could not understand a newer one.
pub(crate) const VERSION: u32 = 1;

/// Where the node's socket is, in containers too.
pub(crate) const SOCKET: &str = "/run/krunner/node.sock";

/// Names another socket for a runner; if empty, none is used.
pub(crate) const SOCKET_VARIABLE: &str = "KRUNNER_NODE_SOCKET";

/// Longest message to a node: a greeting.
pub(crate) const MAX_TO_NODE_BYTES: usize = 4096;

/// Longest message from a node: a kill of [`MAX_VICTIMS`] processes with their command lines.
pub(crate) const MAX_FROM_NODE_BYTES: usize = 1 << 20;

/// Victims in one message.
pub(crate) const MAX_VICTIMS: usize = 64;

/// Bytes of a command line in a message.
pub(crate) const MAX_CMDLINE_BYTES: usize = 1024;

/// Interval of [`FromNode::Alive`].
pub(crate) const ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// How long either side waits for the other's greeting.
pub(crate) const GREETING_PATIENCE: Duration = Duration::from_secs(2);

/// A message to the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum ToNode {
    /// The first and only message.
    Hello {
        /// The peer's [`VERSION`].
        protocol: u32,
        /// The peer's release, for messages.
        version: String,
        /// What the peer connects for.
        #[serde(default)]
        wants: Wants,
    },
}

/// What a peer connects for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wants {
    /// The OOM kills within its scope.
    #[default]
    Kills,
    /// One [`FromNode::Status`], for root on the host.
    Status,
}

/// A message from the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum FromNode {
    /// The peer is accepted.
    Hello {
        /// The node's [`VERSION`].
        protocol: u32,
        /// The node's release.
        version: String,
        /// Kills that an earlier connection from the same scope did not take.
        #[serde(default)]
        missed: u64,
    },
    /// The peer is not accepted; the connection ends.
    Refused {
        /// The reason, a sentence fragment.
        reason: String,
    },
    /// An OOM kill.
    Kill(Box<NodeKill>),
    /// A user-space OOM killer of the host killed a process. No kernel counter of the peer counts it.
    DaemonKill {
        /// Name of its process.
        daemon: String,
        /// The kill, without limit and trigger.
        kill: Box<NodeKill>,
    },
    /// Kills were left out, because the peer did not read.
    Missed {
        /// The number of kills.
        kills: u64,
    },
    /// The tracer dropped records, so that kills may be missing.
    RecordsLost {
        /// The number of records.
        records: u64,
    },
    /// Nothing happened, and the node is alive.
    Alive,
    /// The answer to [`Wants::Status`].
    Status(Box<NodeStatus>),
    /// A message of a later version.
    #[serde(other)]
    Unknown,
}

/// An OOM kill with what its peer may know of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct NodeKill {
    /// The victim that the kernel chose, then those that died with it.
    pub victims: Vec<NodeVictim>,
    /// Further processes of the peer's that died with them.
    #[serde(default)]
    pub victims_left_out: u64,
    /// Whether `memory.oom.group` applies: the whole cgroup was killed.
    pub is_group_kill: bool,
    /// The process whose allocation failed, if it is within the scope.
    pub trigger: Option<Actor>,
    /// The victim's ancestors, parent first, up to the first one outside the scope.
    pub ancestors: Vec<NodeAncestor>,
    /// The victim's memory cgroup below that of the peer; empty if it is the same, `None` if it is another.
    pub cgroup: Option<String>,
    /// The limit that was reached. Its path is relative to the peer's cgroup, as in `cgroup`.
    pub limit: Option<LimitHit>,
    /// The memory of that limit's cgroup right after the kill, if that cgroup is within the peer's.
    pub usage: Option<MemoryUsage>,
}

/// A process that is named in a [`NodeKill`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeProcess {
    /// PID in the peer's PID namespace.
    pub pid: u32,
    /// Start time since boot, in ticks of 10 ms.
    pub start_ticks: u64,
    /// The process's comm.
    pub name: String,
    /// NUL-separated arguments; invalid UTF-8 is replaced.
    pub cmdline: String,
    /// Whether the arguments were truncated.
    pub cmdline_is_cut: bool,
}

/// An ancestor of a victim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeAncestor {
    /// The fields of every process.
    #[serde(flatten)]
    pub process: NodeProcess,
    /// Whether it was gone when the victim was killed.
    pub exited: bool,
}

/// A killed process, with the kernel's figures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeVictim {
    /// The fields of every process.
    #[serde(flatten)]
    pub process: NodeProcess,
    /// User ID in the host's user namespace.
    pub uid: u32,
    /// As in `/proc/PID/oom_score_adj`.
    pub oom_score_adj: i16,
    /// Its memory when the signal was sent.
    pub memory: MemoryAtKill,
    /// Time of the SIGKILL, in nanoseconds since boot.
    pub killed_at_boot_ns: u64,
    /// When it exited, if it did by then.
    pub exited_at_boot_ns: Option<u64>,
    /// Whether it died with another process.
    pub is_co_victim: bool,
    /// Its memory cgroup is known and not below that of the peer, whose counter does not count this kill.
    #[serde(default)]
    pub is_in_another_cgroup: bool,
}

/// The state of a node, for its operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NodeStatus {
    /// The node's release.
    pub version: String,
    /// The [`VERSION`] of its protocol.
    pub protocol: u32,
    /// The node's process.
    pub pid: u32,
    /// Seconds since it was ready.
    pub running_s: u64,
    /// Whether the tracer is attached.
    pub is_tracing: bool,
    /// OOM kills since then, co-victims included.
    pub kills: u64,
    /// Records that the tracer dropped.
    pub lost_records: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// The peers that receive kills.
    pub peers: Vec<PeerStatus>,
}

/// A connected peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerStatus {
    /// PID of the process that connected, on the host.
    pub pid: u32,
    /// What the peer may see: `pid:[INODE]`, or `cgroup PATH`.
    pub scope: String,
    /// The pod and container, container, or unit that it runs in, if known.
    pub name: Option<String>,
    /// Kills that were sent to it.
    pub sent: u64,
    /// Kills that it did not take.
    pub missed: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_fields_and_messages_are_ignored() {
        let known: FromNode =
            serde_json::from_str(r#"{"type":"hello","protocol":1,"version":"9","weather":"fine"}"#).unwrap();
        assert_eq!(known, FromNode::Hello { protocol: 1, version: "9".to_owned(), missed: 0 });
        let later: FromNode = serde_json::from_str(r#"{"type":"later","with":[1]}"#).unwrap();
        assert_eq!(later, FromNode::Unknown);
        let hello: ToNode = serde_json::from_str(r#"{"type":"hello","protocol":7,"version":""}"#).unwrap();
        assert_eq!(hello, ToNode::Hello { protocol: 7, version: String::new(), wants: Wants::Kills });
    }
}
