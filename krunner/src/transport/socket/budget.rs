//! How much memory the messages of all peers of a port may take while they are received.
//!
//! ```text
//!  small messages ───────────────────────▶ no share needed
//!  large message ──▶ waits for a share ──▶ holds it ──connection closes──▶ returns it
//!                     (SHARE_DEADLINE)         │ slow or idle, and another connection waits
//!                                              └──▶ closed
//! ```
//!
//! A connection keeps its share after the message, because the `zeromq` crate keeps the buffer. Peers that deliver
//! nothing cannot keep memory from the others: once another one waits, each holder has to deliver [`MIN_RATE`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::scanner::FrameLimits;

/// What a message may take without a share, so that no peer can hold it up: everything that comes to Backend.AI by HTTP.
/// 64 connections of this size are 64 MiB.
const FREE_BYTES: u64 = 1024 * 1024;

/// How long a connection waits for its share: longer than it takes to close 63 others that deliver nothing.
const SHARE_DEADLINE: Duration = Duration::from_mins(1);

/// How long a holder may deliver nothing while another connection waits.
const GRACE: Duration = Duration::from_secs(2);

/// Bytes per second that a holder has to deliver beyond [`GRACE`] while another connection waits.
const MIN_RATE: u64 = 1024 * 1024;

/// How often a holder that delivers nothing is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// What a port accepts from its peers.
#[derive(Debug, Clone)]
pub(in crate::transport) struct ReceiveLimits {
    pub(super) frames: FrameLimits,
    pool: Arc<LargeMessagePool>,
}

/// Why a connection is closed for the memory that others need.
#[derive(Debug, thiserror::Error)]
pub(in crate::transport) enum ShareError {
    #[error("the peer sent too slowly and held {held_bytes} bytes of memory that another connection waited for")]
    Slow { held_bytes: usize },
    #[error("no memory for a message of {message_bytes} bytes: other connections hold it")]
    NoMemory { message_bytes: u64 },
}

/// The memory for large messages.
#[derive(Debug)]
struct LargeMessagePool {
    free: Arc<Semaphore>,
    /// Connections that wait for a share.
    waiting: AtomicUsize,
}

impl ReceiveLimits {
    /// Limits for each message, and the memory for the large messages of all connections.
    pub(in crate::transport) fn new(frames: FrameLimits, pool_bytes: usize) -> Self {
        let pool = LargeMessagePool { free: Arc::new(Semaphore::new(pool_bytes)), waiting: AtomicUsize::new(0) };
        Self { frames, pool: Arc::new(pool) }
    }

    /// The share of a new connection.
    pub(super) fn share(&self) -> ReceiveShare {
        ReceiveShare {
            pool: Arc::clone(&self.pool),
            held: None,
            is_in_message: false,
            received_bytes: 0,
            idle: Duration::ZERO,
        }
    }
}

/// Counts a connection as waiting until it is dropped.
struct Waiting<'a>(&'a LargeMessagePool);

impl<'a> Waiting<'a> {
    fn new(pool: &'a LargeMessagePool) -> Self {
        pool.waiting.fetch_add(1, Ordering::Relaxed);
        Self(pool)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one connection holds of the pool.
#[derive(Debug)]
pub(super) struct ReceiveShare {
    pool: Arc<LargeMessagePool>,
    held: Option<OwnedSemaphorePermit>,
    /// A large message is being received.
    is_in_message: bool,
    /// Received since the current large message began.
    received_bytes: u64,
    /// Spent in waiting for the peer since then.
    idle: Duration,
}

impl ReceiveShare {
    /// Waits until there is memory for a message of this size, of which parts may have arrived before; 0 between messages.
    pub(super) async fn reserve(&mut self, message_bytes: u64) -> Result<(), ShareError> {
        let wanted = message_bytes.saturating_sub(FREE_BYTES);
        let begins = wanted > 0 && !self.is_in_message;
        self.is_in_message = wanted > 0;
        if begins {
            (self.received_bytes, self.idle) = (0, Duration::ZERO);
        }
        let missing = usize::try_from(wanted).unwrap_or(usize::MAX).saturating_sub(self.held_bytes());
        if missing == 0 {
            return Ok(());
        }
        let _waiting = Waiting::new(&self.pool);
        let more = Arc::clone(&self.pool.free).acquire_many_owned(u32::try_from(missing).unwrap_or(u32::MAX));
        let Ok(Ok(more)) = timeout(SHARE_DEADLINE, more).await else {
            return Err(ShareError::NoMemory { message_bytes });
        };
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }

    /// Reads from the peer. Fails if the connection holds a share and delivers too little while another one waits.
    pub(super) async fn read<R: AsyncRead + Unpin>(
        &mut self,
        peer: &mut R,
        buffer: &mut [u8],
    ) -> Result<io::Result<usize>, ShareError> {
        if self.held.is_none() {
            return Ok(peer.read(buffer).await);
        }
        loop {
            let started = Instant::now();
            let read = timeout(CHECK_INTERVAL, peer.read(buffer)).await.ok();
            self.idle += started.elapsed();
            if let Some(Ok(bytes)) = read {
                self.received_bytes += bytes as u64;
            }
            // Bytes that have arrived between two messages may be an op of a live agent.
            let may_close = read.is_none() || self.is_in_message;
            if may_close && self.is_slow() && self.pool.waiting.load(Ordering::Relaxed) > 0 {
                return Err(ShareError::Slow { held_bytes: self.held_bytes() });
            }
            if let Some(read) = read {
                return Ok(read);
            }
        }
    }

    fn is_slow(&self) -> bool {
        let allowed = GRACE + Duration::from_millis(self.received_bytes.saturating_mul(1000) / MIN_RATE);
        self.idle > allowed
    }

    fn held_bytes(&self) -> usize {
        self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use tokio::io::AsyncWriteExt as _;

    const MIB: u64 = 1024 * 1024;

    fn limits() -> ReceiveLimits {
        ReceiveLimits::new(FrameLimits { message_bytes: 8 * MIB, message_frames: 16 }, 8 << 20)
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_holds_memory_and_sends_a_byte_now_and_then_is_closed_once_another_waits() {
        let limits = limits();
        let (mut slow, mut other) = (limits.share(), limits.share());
        slow.reserve(8 * MIB).await.unwrap();
        let (mut peer, mut ours) = tokio::io::duplex(16);
        let mut buffer = [0; 16];
        for _ in 0..10 {
            tokio::time::sleep(GRACE).await;
            peer.write_all(b"x").await.unwrap();
            assert_eq!(slow.read(&mut ours, &mut buffer).await.unwrap().unwrap(), 1, "nobody else waits");
        }
        let wait = async {
            other.reserve(8 * MIB).await.unwrap();
            Instant::now()
        };
        let hold = async {
            let ended = slow.read(&mut ours, &mut buffer).await;
            drop(slow);
            ended
        };
        let started = Instant::now();
        let (served, ended) = tokio::join!(wait, hold);
        assert!(matches!(ended, Err(ShareError::Slow { .. })), "{ended:?}");
        assert!(served - started <= GRACE + CHECK_INTERVAL, "{:?}", served - started);
    }

    #[tokio::test(start_paused = true)]
    async fn what_arrives_between_two_messages_is_not_thrown_away() {
        let limits = limits();
        let (mut agent, mut other) = (limits.share(), limits.share());
        agent.reserve(8 * MIB).await.unwrap();
        agent.reserve(0).await.unwrap();
        let (mut peer, mut ours) = tokio::io::duplex(16);
        tokio::time::sleep(2 * GRACE).await;
        agent.idle = 2 * GRACE;
        let wait = other.reserve(8 * MIB);
        tokio::pin!(wait);
        assert!(wait.as_mut().now_or_never().is_none());
        peer.write_all(b"op").await.unwrap();
        let mut buffer = [0; 16];
        assert_eq!(agent.read(&mut ours, &mut buffer).await.unwrap().unwrap(), 2);
        let ended = agent.read(&mut ours, &mut buffer).await;
        assert!(matches!(ended, Err(ShareError::Slow { .. })), "an idle one gives way: {ended:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_wait_for_each_other_do_not_wait_for_ever() {
        let limits = limits();
        let (mut first, mut second) = (limits.share(), limits.share());
        first.reserve(5 * MIB).await.unwrap();
        second.reserve(5 * MIB).await.unwrap();
        let (a, b) = tokio::join!(first.reserve(8 * MIB), second.reserve(8 * MIB));
        assert!(matches!(a, Err(ShareError::NoMemory { .. })) && matches!(b, Err(ShareError::NoMemory { .. })));
        assert_eq!(limits.pool.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn small_messages_need_no_share_and_a_share_is_kept_until_the_end() {
        let limits = limits();
        let mut holder = limits.share();
        holder.reserve(8 * MIB).await.unwrap();
        holder.reserve(MIB).await.unwrap();
        let mut other = limits.share();
        assert!(other.reserve(FREE_BYTES).now_or_never().is_some());
        assert!(other.reserve(4 * MIB).now_or_never().is_none(), "the crate keeps the buffer");
        drop(holder);
        assert!(other.reserve(4 * MIB).now_or_never().is_some());
    }
}
