//! The peers of a node: their limits, their queues, and what they missed.
//!
//! ```text
//!  connected ─ admit: identity, scope, limits ─▶ greeting ─ greeted: version ─▶ receives kills ─ ended ─▶ (missed is kept)
//!      └──────────────────── refused, with the reason ────┘
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::connection::{FrameQueue, QueuedFrame};
use super::identity::PeerIdentity;
use super::names::accountable;
use super::scope::{HostKill, PeerScope};
use crate::monitor::node::{FromNode, PeerStatus, ToNode, VERSION, Wants, encode};

/// Connections at the same time. A machine with more containers has more than one kernel's worth of them.
const MAX_PEERS: usize = 1024;

/// Connections with the same scope: a session and its monitors.
const MAX_PEERS_OF_A_SCOPE: usize = 8;

/// Messages queued for a peer: the burst that a runner reports one by one.
const QUEUED_FRAMES: usize = 128;

/// Bytes queued for a peer. A kill has about 2 KiB.
const QUEUED_BYTES: usize = 512 << 10;

/// Bytes of kills queued for all peers.
const ALL_QUEUED_BYTES: usize = 8 << 20;

/// All peers of a container may have as many bytes queued as this part of what is free. One container that opens many connections
/// and does not read gets a fifth of all; however many do so, something is free for the next one (dynamic thresholds: Choudhury
/// and Hahne, 1998).
const CONTAINER_PART: usize = 4;

/// Peers to remember what they missed.
const MAX_MISSED: usize = 1024;

/// Connections from the same container or unit, whatever namespaces and cgroups it makes.
const MAX_PEERS_OF_AN_OWNER: usize = 64;

/// Why a peer is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// All connections are in use.
    #[error("the node serves {MAX_PEERS} connections already")]
    TooMany,
    /// The peer's container has too many connections.
    #[error("this container has {MAX_PEERS_OF_A_SCOPE} connections already")]
    TooManyOfScope,
    /// So have all that the peer's container or unit started.
    #[error("this container or unit has {MAX_PEERS_OF_AN_OWNER} connections already")]
    TooManyOfOwner,
    /// The peer speaks another version.
    #[error("krunner {version} speaks version {protocol} of the protocol, the node speaks {VERSION}")]
    Version {
        /// The peer's protocol.
        protocol: u32,
        /// The peer's release.
        version: String,
    },
    /// The status is for operators.
    #[error("the node's status is for root on the host")]
    NotOperator,
}

/// The connections, and what earlier ones missed.
#[derive(Debug, Default)]
pub(super) struct Peers {
    next_id: u64,
    by_id: BTreeMap<u64, ServedPeer>,
    queued_bytes: Arc<AtomicUsize>,
    /// What a process did not take before its connection ended, by scope and PID.
    missed: BTreeMap<(String, u32), MissedKills>,
}

#[derive(Debug)]
struct MissedKills {
    kills: u64,
    /// Keeps the PID namespace, whose inode number another container would get.
    _namespace: File,
}

#[derive(Debug)]
struct ServedPeer {
    pid: u32,
    scope: PeerScope,
    scope_text: String,
    name: Option<String>,
    is_root: bool,
    frames: mpsc::Sender<QueuedFrame>,
    queued_bytes: Arc<AtomicUsize>,
    /// Bytes queued for all peers of its container.
    container_bytes: Arc<AtomicUsize>,
    receives: bool,
    sent: u64,
    missed: u64,
    /// Missed kills that the peer was not told of.
    untold: u64,
    /// Keeps the peer's PID namespace, and so its inode number.
    namespace: File,
}

/// Whose part of the queues a message needs room in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum QueueShare {
    /// The peer's only: the message is short, and there are few of its kind.
    Peer,
    /// Its container's, too: a program there may cause any number of them.
    Container,
}

/// What the server does after a greeting.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeted {
    /// Nothing: the peer receives kills.
    Accepted,
    /// It sends the status, then closes.
    SendStatus,
    /// The refusal is queued.
    Refused(Refusal),
}

impl Peers {
    /// Accepts a connection, whose greeting is still to come.
    pub(super) fn admit(
        &mut self,
        peer: PeerIdentity,
        scope: PeerScope,
        name: Option<String>,
    ) -> Result<(u64, FrameQueue), Refusal> {
        let scope_text = scope.describe();
        if self.by_id.len() >= MAX_PEERS {
            return Err(Refusal::TooMany);
        }
        if self.by_id.values().filter(|known| known.scope_text == scope_text).count() >= MAX_PEERS_OF_A_SCOPE {
            return Err(Refusal::TooManyOfScope);
        }
        if name.is_some() && self.by_id.values().filter(|known| known.name == name).count() >= MAX_PEERS_OF_AN_OWNER {
            return Err(Refusal::TooManyOfOwner);
        }
        let (frames, queue) = mpsc::channel(QUEUED_FRAMES);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let container = accountable(scope.cgroup());
        let sibling = self.by_id.values().find(|known| accountable(known.scope.cgroup()) == container);
        let container_bytes = sibling.map(|known| Arc::clone(&known.container_bytes)).unwrap_or_default();
        let counted = [&queued_bytes, &container_bytes, &self.queued_bytes].map(Arc::clone);
        let queue = FrameQueue { frames: queue, queued_bytes: counted };
        self.next_id += 1;
        let peer = ServedPeer {
            pid: peer.pid(),
            is_root: peer.uid == 0,
            scope,
            scope_text,
            name,
            frames,
            queued_bytes,
            container_bytes,
            receives: false,
            sent: 0,
            missed: 0,
            untold: 0,
            namespace: peer.namespace,
        };
        self.by_id.insert(self.next_id, peer);
        Ok((self.next_id, queue))
    }

    /// Handles a greeting.
    pub(super) fn greeted(&mut self, id: u64, hello: ToNode) -> Greeted {
        let Some(peer) = self.by_id.get_mut(&id) else { return Greeted::Accepted };
        let ToNode::Hello { protocol, version, wants } = hello;
        if protocol != VERSION {
            // It is logged.
            let version = version.chars().take(32).filter(|letter| !letter.is_control()).collect();
            return self.refuse(id, Refusal::Version { protocol, version });
        }
        if wants == Wants::Status && !(peer.is_root && peer.scope.is_on_host()) {
            return self.refuse(id, Refusal::NotOperator);
        }
        let missed = match wants {
            Wants::Kills => self.missed.remove(&(peer.scope_text.clone(), peer.pid)).map_or(0, |missed| missed.kills),
            Wants::Status => 0,
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let hello = FromNode::Hello { protocol: VERSION, version, missed };
        peer.queue(&self.queued_bytes, &hello);
        peer.receives = wants == Wants::Kills;
        if wants == Wants::Status { Greeted::SendStatus } else { Greeted::Accepted }
    }

    fn refuse(&mut self, id: u64, refusal: Refusal) -> Greeted {
        self.send_last(id, &FromNode::Refused { reason: refusal.to_string() });
        Greeted::Refused(refusal)
    }

    /// Sends a message, after which the connection closes.
    pub(super) fn send_last(&mut self, id: u64, message: &FromNode) {
        if let Some(peer) = self.by_id.get_mut(&id) {
            peer.queue(&self.queued_bytes, message);
        }
        // The connection ends once the queue's other end is dropped and empty.
        self.by_id.remove(&id);
    }

    /// Queues a kill for all peers that may see it. Returns to how many.
    pub(super) fn deliver(&mut self, kill: &HostKill<'_>) -> u64 {
        let mut delivered = 0;
        for peer in self.by_id.values_mut().filter(|peer| peer.receives) {
            let Some(view) = peer.scope.view(kill) else { continue };
            let kills = view.victims.len() as u64;
            let bytes = encode(&FromNode::Kill(Box::new(view)));
            // Without room for the kill, no message says that it was missed: such messages would fill the queue as well.
            let has_room = peer.has_room(&self.queued_bytes, bytes.len(), QueueShare::Container);
            if has_room {
                peer.tell_missed(&self.queued_bytes);
            }
            if has_room && peer.untold == 0 && peer.queue_bytes(&self.queued_bytes, bytes, QueueShare::Container, kills)
            {
                peer.sent += kills;
                delivered += 1;
            } else {
                peer.missed += kills;
                peer.untold += kills;
            }
        }
        delivered
    }

    /// Queues a kill by a user-space OOM killer for all peers that may see it and have room. One that is left out is not missed: no
    /// counter of the peer counts it.
    pub(super) fn deliver_of_daemon(&mut self, daemon: &str, kill: &HostKill<'_>) {
        for peer in self.by_id.values_mut().filter(|peer| peer.receives) {
            let Some(view) = peer.scope.view(kill) else { continue };
            let bytes = encode(&FromNode::DaemonKill { daemon: daemon.to_owned(), kill: Box::new(view) });
            if !peer.queue_bytes(&self.queued_bytes, bytes, QueueShare::Container, 0) {
                tracing::debug!("a kill by {daemon} was not delivered to PID {}: it does not read", peer.pid);
            }
        }
    }

    /// Tells all peers that the tracer dropped records.
    pub(super) fn records_lost(&mut self, records: u64) {
        for peer in self.by_id.values_mut().filter(|peer| peer.receives) {
            peer.queue(&self.queued_bytes, &FromNode::RecordsLost { records });
        }
    }

    /// Shows all peers that the node is alive.
    pub(super) fn alive(&mut self) {
        for peer in self.by_id.values_mut().filter(|peer| peer.receives) {
            peer.tell_missed(&self.queued_bytes);
            peer.queue(&self.queued_bytes, &FromNode::Alive);
        }
    }

    /// Removes a connection and remembers what it did not take.
    pub(super) fn ended(&mut self, id: u64, unsent_kills: u64) {
        let Some(peer) = self.by_id.remove(&id) else { return };
        let missed = peer.untold.saturating_add(unsent_kills);
        if missed > 0 && peer.receives {
            if self.missed.len() >= MAX_MISSED {
                self.missed.pop_first();
            }
            let entry = self.missed.entry((peer.scope_text, peer.pid));
            entry.or_insert(MissedKills { kills: 0, _namespace: peer.namespace }).kills += missed;
        }
    }

    /// Number of connections.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The connected peers, for the operator.
    pub(super) fn status(&self) -> Vec<PeerStatus> {
        let of = |peer: &ServedPeer| PeerStatus {
            pid: peer.pid,
            scope: peer.scope_text.clone(),
            name: peer.name.clone(),
            sent: peer.sent,
            missed: peer.missed,
        };
        self.by_id.values().filter(|peer| peer.receives).map(of).collect()
    }
}

impl ServedPeer {
    fn tell_missed(&mut self, all_queued: &AtomicUsize) {
        let missed = FromNode::Missed { kills: self.untold };
        if self.untold > 0 && self.queue(all_queued, &missed) {
            self.untold = 0;
        }
    }

    /// Queues a message that is no kill; `false` if there is no room.
    fn queue(&mut self, all_queued: &AtomicUsize, message: &FromNode) -> bool {
        self.queue_bytes(all_queued, encode(message), QueueShare::Peer, 0)
    }

    /// Whether there is room for a message of this length.
    fn has_room(&self, all_queued: &AtomicUsize, length: usize, share: QueueShare) -> bool {
        let free = ALL_QUEUED_BYTES.saturating_sub(all_queued.load(Ordering::Relaxed));
        self.frames.capacity() > 0
            && self.queued_bytes.load(Ordering::Relaxed) + length <= QUEUED_BYTES
            && (share == QueueShare::Peer
                || self.container_bytes.load(Ordering::Relaxed) + length <= free / CONTAINER_PART)
    }

    fn queue_bytes(&mut self, all_queued: &AtomicUsize, bytes: Vec<u8>, share: QueueShare, kills: u64) -> bool {
        let length = bytes.len();
        let has_room = self.has_room(all_queued, length, share);
        let Some(room) = self.frames.try_reserve().ok().filter(|_| has_room) else { return false };
        for queued in [&self.queued_bytes, &self.container_bytes, all_queued] {
            queued.fetch_add(length, Ordering::Relaxed);
        }
        room.send(QueuedFrame { bytes, kills });
        true
    }
}

#[cfg(test)]
#[path = "peers_tests.rs"]
mod tests;
