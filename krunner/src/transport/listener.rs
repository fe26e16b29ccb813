//! Accepts a bounded number of connections at a time.
//!
//! When every place is taken, or no descriptor is left, the connection that is needed least is closed for a new one
//! (see `eviction`), so that peers that connect and do nothing do not keep the agent out. Log lines about peers are limited,
//! since any peer can cause them.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::eviction::{ConnectionUse, EvictionCandidate, least_needed};
use super::log_limit::LogLimit;
use super::socket::LinkError;
use crate::error::{FatalError, chain};
use crate::sys;
use crate::tasks::TaskGroup;

/// Concurrent connections per port, as far as there are descriptors for them. An agent has one.
const MAX_CONNECTIONS: usize = 64;

/// An agent, and another one that takes over from it.
const MIN_CONNECTIONS: usize = 2;

/// Ports of a session with a terminal.
const PORTS: u64 = 4;

/// Descriptors of a connection: two of the network, two of the internal connection, one of its progress, and a pipe.
const CONNECTION_DESCRIPTORS: u64 = 7;

/// What the session itself uses: see `config/limits.rs`.
const OWN_DESCRIPTORS: u64 = 100;

/// Pause after a failed `accept`, which usually means that no descriptors are left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time for an evicted connection to end: what had arrived on it is still received.
const EVICTION_DEADLINE: Duration = Duration::from_secs(1);

/// A peer whose host disappeared is detected after about a minute and a half.
const KEEPALIVE_IDLE_SECONDS: u32 = 60;
const KEEPALIVE_INTERVAL_SECONDS: u32 = 10;
const KEEPALIVE_PROBES: u32 = 3;

/// Binds a port on every IPv4 address, as `tcp://*` of libzmq does.
pub(super) async fn bind(name: &'static str, port: u16) -> Result<TcpListener, FatalError> {
    let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
    TcpListener::bind(address).await.map_err(|source| FatalError::Bind { name, port, source })
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum ConnectionEnd {
    /// The peer left.
    Ordinary(String),
    /// The peer violated the protocol or a limit.
    Fault(String),
}

impl ConnectionEnd {
    pub(super) fn by(error: &(dyn std::error::Error + 'static), is_ordinary: bool) -> Self {
        let text = chain(error);
        if is_ordinary { Self::Ordinary(text) } else { Self::Fault(text) }
    }
}

/// How many connections each port accepts with this limit of descriptors.
fn places(descriptors: u64) -> usize {
    let left = descriptors.saturating_sub(OWN_DESCRIPTORS) / (PORTS * CONNECTION_DESCRIPTORS);
    usize::try_from(left).unwrap_or(MAX_CONNECTIONS).clamp(MIN_CONNECTIONS, MAX_CONNECTIONS)
}

fn is_without_descriptors(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    number.is_some_and(|error| matches!(error, Errno::EMFILE | Errno::ENFILE))
}

/// How a connection over a relay ended.
pub(super) fn end_of_link(ended: Result<(), LinkError>) -> ConnectionEnd {
    match ended {
        Ok(()) => ConnectionEnd::Ordinary("disconnected".to_owned()),
        Err(error) => ConnectionEnd::by(&error, error.is_ordinary()),
    }
}

/// A connection that is being served.
struct ServedConnection {
    progress: ConnectionUse,
    /// Shared with the stream, to look at it and to shut it down.
    stream: OwnedFd,
    is_evicted: bool,
}

impl ServedConnection {
    fn candidate(&self) -> Option<EvictionCandidate> {
        let stream = self.stream.as_fd();
        let waiting = |bytes: io::Result<usize>| bytes.is_ok_and(|bytes| bytes > 0);
        (!self.is_evicted).then(|| EvictionCandidate {
            stage: self.progress.stage(),
            idle: sys::tcp_idle_time(stream).unwrap_or_default(),
            has_traffic: waiting(sys::readable_bytes(stream)) || waiting(sys::unsent_bytes(stream)),
        })
    }
}

/// What the listener shares with the tasks of its connections.
struct Shared {
    connections: Mutex<HashMap<u64, ServedConnection>>,
    /// A connection ended.
    ended: Notify,
    log: Mutex<LogLimit>,
    /// A line was not logged.
    suppressed: Notify,
    places: usize,
    port: u16,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Logs a warning about a peer, unless there were many.
    fn warn(&self, text: &str) {
        if lock(&self.log).admits(Instant::now()) {
            tracing::warn!("{text}");
        } else {
            self.suppressed.notify_one();
        }
    }

    fn log_summary(&self) {
        if let Some(count) = lock(&self.log).take_summary(Instant::now()) {
            tracing::warn!(
                "port {}: {count} more connections were closed or refused (not logged one by one)",
                self.port
            );
        }
    }

    fn summary_due_at(&self) -> Option<Instant> {
        lock(&self.log).summary_due_at()
    }

    fn report(&self, peer: SocketAddr, ended: &ConnectionEnd, is_evicted: bool) {
        match ended {
            ConnectionEnd::Ordinary(text) => tracing::debug!("connection from {peer} closed: {text}"),
            ConnectionEnd::Fault(text) if is_evicted => tracing::debug!("connection from {peer} closed: {text}"),
            ConnectionEnd::Fault(text) => self.warn(&format!("closing the connection from {peer}: {text}")),
        }
    }

    /// Closes the connection that is needed least and waits for its end; `false` if there is none.
    async fn evict(&self, reason: &str) -> bool {
        let Some(id) = self.shut_least_needed_down(reason) else { return false };
        let is_gone = || !lock(&self.connections).contains_key(&id);
        let _ = timeout(EVICTION_DEADLINE, async {
            loop {
                let ended = self.ended.notified();
                if is_gone() {
                    return;
                }
                ended.await;
            }
        })
        .await;
        true
    }

    fn shut_least_needed_down(&self, reason: &str) -> Option<u64> {
        let mut connections = lock(&self.connections);
        let id = least_needed(connections.iter().filter_map(|(id, one)| Some((*id, one.candidate()?))))?;
        let connection = connections.get_mut(&id)?;
        connection.is_evicted = true;
        // Its task sees the end of the stream, after what had arrived. Fails if the peer has left.
        let _ = shutdown(connection.stream.as_raw_fd(), Shutdown::Both);
        let stage = connection.progress.stage();
        drop(connections);
        self.warn(&format!("port {}: closing a connection that {stage} for a new one: {reason}", self.port));
        Some(id)
    }

    /// How many connections take a place. One that does not end after its eviction takes none.
    fn places_taken(&self) -> usize {
        lock(&self.connections).values().filter(|connection| !connection.is_evicted).count()
    }

    fn is_full(&self) -> bool {
        // What hangs after its eviction is bounded as well.
        self.places_taken() >= self.places || lock(&self.connections).len() >= 2 * self.places
    }
}

/// Runs `serve` for each connection in its own task.
pub(super) fn accept<F>(
    listener: TcpListener,
    tasks: &TaskGroup,
    serve: impl Fn(TcpStream, SocketAddr, ConnectionUse) -> F + Send + 'static,
) where
    F: Future<Output = ConnectionEnd> + Send + 'static,
{
    let group = tasks.clone();
    let shared = Arc::new(Shared {
        connections: Mutex::default(),
        ended: Notify::new(),
        log: Mutex::default(),
        suppressed: Notify::new(),
        places: places(getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)),
        port: listener.local_addr().map_or(0, |address| address.port()),
    });
    tasks.spawn("accept", async move {
        let mut last_id = 0;
        loop {
            let due = shared.summary_due_at();
            let accepted = tokio::select! {
                accepted = listener.accept() => Some(accepted),
                () = shared.suppressed.notified() => None,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
            };
            shared.log_summary();
            let Some(accepted) = accepted else { continue };
            let accepted = accepted.and_then(|(stream, peer)| {
                let copy = stream.as_fd().try_clone_to_owned()?;
                Ok((stream, peer, copy))
            });
            let (stream, peer, copy) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    shared.warn(&format!("cannot accept a connection: {error}"));
                    if !is_without_descriptors(&error) || !shared.evict("no descriptors are left").await {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                    continue;
                }
            };
            if shared.is_full() {
                shared.evict(&format!("the limit is {} connections", shared.places)).await;
            }
            if shared.is_full() {
                // All are in use.
                shared.warn(&format!("limit of {} connections reached; rejecting {peer}", shared.places));
                continue;
            }
            tune(&stream);
            last_id += 1;
            let (id, progress) = (last_id, ConnectionUse::default());
            let served = serve(stream, peer, progress.clone());
            lock(&shared.connections).insert(id, ServedConnection { progress, stream: copy, is_evicted: false });
            let shared = Arc::clone(&shared);
            group.spawn("connection", async move {
                let ended = served.await;
                let connection = lock(&shared.connections).remove(&id);
                shared.report(peer, &ended, connection.is_some_and(|connection| connection.is_evicted));
                shared.ended.notify_waiters();
            });
        }
    });
}

/// Sets `TCP_NODELAY` and keepalive. A connection works without them.
pub(super) fn tune(stream: &TcpStream) {
    let tuned = stream.set_nodelay(true).and_then(|()| {
        setsockopt(stream, sockopt::KeepAlive, &true)?;
        setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_SECONDS)?;
        setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_SECONDS)?;
        Ok(setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)?)
    });
    if let Err(error) = tuned {
        tracing::debug!("cannot set TCP options: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_to_the_session() {
        assert_eq!([128, 256, 1024, 1 << 20, u64::MAX].map(places), [2, 5, 33, 64, 64]);
    }
}
