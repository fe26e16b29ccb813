//! Relays the bytes of one connection between the network and a `zeromq` socket.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::pipe2;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::scanner::{FrameLimits, ZmtpError, ZmtpScanner};
use crate::sys;

/// Buffer for ops and handshakes.
const INBOUND_BUFFER_BYTES: usize = 16 * 1024;

/// The pipe between the two sockets: a little more than a unix socket holds by default.
const PIPE_BYTES: i32 = 256 * 1024;
const SPLICE_BYTES: usize = 256 * 1024;

const SPLICE_FLAGS: SpliceFFlags = SpliceFFlags::SPLICE_F_MOVE.union(SpliceFFlags::SPLICE_F_NONBLOCK);

/// A frame of at least this size acquires its share of [`LARGE_FRAME_BYTES`] before it is read.
const LARGE_FRAME_FROM: u64 = 64 * 1024;

/// How long a peer that holds its share may send nothing while others wait.
const LARGE_FRAME_PATIENCE: Duration = Duration::from_secs(30);

/// Total size of the large frames being received on all connections: two of the largest.
const LARGE_FRAME_BYTES: usize = 128 * 1024 * 1024;

/// An op of more than 64 MiB is rejected. An op has two frames; a few more are accepted so that a wrong count is logged
/// instead of closing the connection.
pub(super) const LIMITS: FrameLimits = FrameLimits { message_bytes: 64 * 1024 * 1024, message_frames: 16 };

/// Retry interval while the kernel has no memory for a socket buffer.
const MEMORY_POLL: Duration = Duration::from_millis(10);

/// Why a relay ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    #[error("protocol violation by the peer")]
    Protocol(#[from] ZmtpError),
    #[error("the peer stalled in the middle of a large frame for {LARGE_FRAME_PATIENCE:?}")]
    Slow,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What a port accepts from its peers.
#[derive(Debug, Clone)]
pub(super) struct ReceiveLimits {
    pub(super) frames: FrameLimits,
    /// Budget for large frames, shared by all connections.
    pub(super) large_frames: Arc<Semaphore>,
}

impl Default for ReceiveLimits {
    fn default() -> Self {
        Self { frames: LIMITS, large_frames: Arc::new(Semaphore::new(LARGE_FRAME_BYTES)) }
    }
}

/// The type of the `zeromq` socket behind the relay.
#[derive(Debug, Clone)]
pub(super) enum Role {
    /// Receives messages within these limits.
    Pull(ReceiveLimits),
    /// Sends replies; after the handshake the peer sends nothing.
    Push,
}

/// Progress of the outbound direction.
#[derive(Debug)]
pub(super) struct SendProgress {
    /// Bytes after the handshake that the TCP socket has accepted.
    relayed: AtomicU64,
    changed: Arc<Notify>,
    tcp: OwnedFd,
}

impl SendProgress {
    pub(super) fn new(tcp: &TcpStream, changed: Arc<Notify>) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { relayed: AtomicU64::new(0), changed, tcp: tcp.as_fd().try_clone_to_owned()? }))
    }

    /// Bytes of messages that the TCP socket has accepted.
    pub(super) fn relayed_bytes(&self) -> u64 {
        self.relayed.load(Ordering::Relaxed)
    }

    /// Whether the peer's kernel has acknowledged all bytes.
    pub(super) fn is_acknowledged(&self) -> bool {
        sys::unsent_bytes(self.as_fd()).is_ok_and(|bytes| bytes == 0)
    }

    /// Shuts the connection down; its relay notices.
    pub(super) fn close_connection(&self) {
        if let Err(error) = shutdown(self.tcp.as_raw_fd(), Shutdown::Both) {
            tracing::debug!("connection already closed: {error}");
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }

    fn add(&self, bytes: usize) {
        if bytes > 0 {
            self.relayed.fetch_add(bytes as u64, Ordering::Relaxed);
            self.changed.notify_one();
        }
    }
}

/// Relays until the connection closes. Dropping the future closes both sides.
pub(super) async fn relay(
    peer: TcpStream,
    socket: UnixStream,
    role: Role,
    progress: Option<Arc<SendProgress>>,
) -> Result<(), RelayError> {
    let (from_peer, to_peer) = peer.into_split();
    let (from_socket, to_socket) = socket.into_split();
    let outbound = outbound(from_socket, to_peer, progress.as_deref());
    match role {
        Role::Pull(limits) => {
            tokio::try_join!(inbound(from_peer, to_socket, &limits), outbound)?;
        }
        Role::Push => tokio::select! {
            ended = handshake_only(from_peer, to_socket) => ended?,
            ended = outbound => ended?,
        },
    }
    Ok(())
}

/// Relays messages to the socket after checking the length of each frame.
async fn inbound(
    mut peer: tcp::OwnedReadHalf,
    mut socket: unix::OwnedWriteHalf,
    limits: &ReceiveLimits,
) -> Result<(), RelayError> {
    let mut buffer = vec![0; INBOUND_BUFFER_BYTES];
    let mut scanner = ZmtpScanner::new(limits.frames);
    let mut large: Option<OwnedSemaphorePermit> = None;
    loop {
        let read = peer.read(&mut buffer);
        let bytes = match large {
            Some(_) => timeout(LARGE_FRAME_PATIENCE, read).await.map_err(|_| RelayError::Slow)??,
            None => read.await?,
        };
        if bytes == 0 {
            socket.shutdown().await?;
            return Ok(());
        }
        scanner.feed(&buffer[..bytes])?;
        if scanner.body_left() == 0 {
            large = None;
        } else if large.is_none() && scanner.body_left() >= LARGE_FRAME_FROM {
            let share = u32::try_from(scanner.body_left()).unwrap_or(u32::MAX);
            large = Arc::clone(&limits.large_frames).acquire_many_owned(share).await.ok();
        }
        write_all(&socket, &buffer[..bytes]).await?;
    }
}

/// Like tokio's `write_all`, but retries while the kernel is out of memory.
async fn write_all(socket: &unix::OwnedWriteHalf, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let write = || async {
            socket.writable().await?;
            socket.try_write(bytes)
        };
        match with_memory(write).await {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            // A spurious wakeup.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Retries while the kernel is out of memory. Buffers of unix sockets and pipes are charged to our cgroup; at a memory
/// limit where the OOM killer is disabled, the kernel refuses them (ENOBUFS, `sock_alloc_send_pskb` in
/// `net/core/sock.c`). Stops when the connection closes.
async fn with_memory<F: Future<Output = io::Result<usize>>>(mut attempt: impl FnMut() -> F) -> io::Result<usize> {
    loop {
        match attempt().await {
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ENOBUFS | nix::libc::ENOMEM)) => {
                sleep(MEMORY_POLL).await;
            }
            done => return done,
        }
    }
}

/// Inbound direction of a PUSH socket: relays the handshake, then reads only to notice a disconnect.
async fn handshake_only(mut peer: tcp::OwnedReadHalf, mut socket: unix::OwnedWriteHalf) -> Result<(), RelayError> {
    let mut buffer = vec![0; INBOUND_BUFFER_BYTES];
    let mut scanner = ZmtpScanner::new(LIMITS);
    loop {
        let bytes = peer.read(&mut buffer).await?;
        if bytes == 0 {
            return Ok(());
        }
        let handshake = scanner.feed_handshake(&buffer[..bytes])?;
        socket.write_all(&buffer[..handshake]).await?;
    }
}

/// Relays replies to the peer and counts the bytes after the handshake.
async fn outbound(
    mut socket: unix::OwnedReadHalf,
    mut peer: tcp::OwnedWriteHalf,
    progress: Option<&SendProgress>,
) -> Result<(), RelayError> {
    let mut buffer = Vec::with_capacity(INBOUND_BUFFER_BYTES);
    let mut scanner = ZmtpScanner::new(LIMITS);
    while !scanner.handshake_done() {
        buffer.clear();
        if socket.read_buf(&mut buffer).await? == 0 {
            return Ok(peer.shutdown().await?);
        }
        // The buffer may contain replies after the handshake.
        let handshake = scanner.feed_handshake(&buffer)?;
        peer.write_all(&buffer).await?;
        count(progress, buffer.len() - handshake);
    }
    let pipe = Pipe::new()?;
    loop {
        let mut waiting = pipe.fill(socket.as_ref()).await?;
        if waiting == 0 {
            return Ok(peer.shutdown().await?);
        }
        while waiting > 0 {
            let bytes = pipe.drain(peer.as_ref(), waiting).await?;
            waiting -= bytes;
            count(progress, bytes);
        }
    }
}

fn count(progress: Option<&SendProgress>, bytes: usize) {
    if let Some(progress) = progress {
        progress.add(bytes);
    }
}

/// Moves bytes between two sockets inside the kernel (splice(2)), which saves a copy and a buffer of ours.
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Fails if the user's pipes hold too many pages already; the default size works too.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        Ok(Self { reader, writer })
    }

    /// Reads what the socket has, at least a byte; 0 at the end of the stream.
    async fn fill(&self, socket: &UnixStream) -> io::Result<usize> {
        let fill = || Ok(splice(socket, None, &self.writer, None, SPLICE_BYTES, SPLICE_FLAGS)?);
        with_memory(|| socket.async_io(Interest::READABLE, fill)).await
    }

    /// Writes as many of the `bytes` in the pipe as the peer accepts, at least one.
    async fn drain(&self, peer: &TcpStream, bytes: usize) -> io::Result<usize> {
        let drain = || Ok(splice(&self.reader, None, peer, None, bytes, SPLICE_FLAGS)?);
        with_memory(|| peer.async_io(Interest::WRITABLE, drain)).await
    }
}
